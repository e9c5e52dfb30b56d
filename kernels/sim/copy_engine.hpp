// The copy engine's side of a block: see copy_engine.cpp.
#pragma once
#include "runtime.hpp"

namespace sim {
void begin_copies();
// `finished` when all threads returned, so that copies still in flight are an error.
void end_copies(bool finished);
bool copies_in_flight();
// One of the copies in flight, chosen at random, writes its tile and reports to its mbarrier.
void land_one_copy();
}  // namespace sim
