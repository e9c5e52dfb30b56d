// Reports of problems in kernels: see report.cpp.
#pragma once
#include "runtime.hpp"

namespace sim {

// Forgets what was reported of the launch before.
void begin_reports();
// Prints how many problems the launch had, when not all were printed.
void end_reports();
int launch_error();  // of the first problem, or 0

// A problem of an access: `code` is the return address of the call that tells of it, or null. Problems of one line of
// source that differ only in numbers are counted, but printed once a launch.
void access_problem(int error, const void* code, const char* format, ...) __attribute__((format(printf, 3, 4)));
[[noreturn]] void fault(int error, const void* code, const char* format, ...) __attribute__((format(printf, 3, 4)));

// Where an access is, in words.
std::string place_in_device(u64 offset);
std::string place_in_shared(u32 address);

}  // namespace sim
