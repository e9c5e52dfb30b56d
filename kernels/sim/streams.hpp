// Streams and events of the simulated driver. Work on a stream is numbered from 1.
#pragma once
#include <map>

#include "driver.hpp"

namespace sim {

struct Upload {
  void* to;
  const void* from;
  u64 bytes;
};
struct Download {  // or a function of the host
  u64 number;
  void* to;
  const void* from;
  std::vector<u8> data;  // of when it was issued, then of when it was taken
  bool taken;
  void (*function)(void*);
  void* argument;
};
struct Wait {
  u64 number;
  Stream* other;
  u64 other_number;
};
struct Late {  // see late.cpp
  u64 number;
  int (*finish)(void* argument, int may_wait);
  void* argument;
};
struct Stream {
  bool blocking = true;  // ordered with the null stream
  bool destroyed = false;
  int priority = 0, device = 0;
  u64 issued = 0;
  bool asked = false;  // cuStreamQuery said "not ready" since the last work
  std::vector<Upload> uploads;
  std::vector<Download> downloads;
  std::vector<Wait> waits;
  std::vector<Late> late;
  // Work that happens before what is issued next: of other streams, and of this one before the host.
  std::map<const Stream*, u64> seen;
  u64 waited_for = 0;
};
struct Event {
  Stream* stream = nullptr;
  u64 number = 0;
  double milliseconds = 0;
  bool timed = true, asked = false;
  std::map<const Stream*, u64> seen;  // as of the stream
};

extern std::vector<Stream*> streams;

// Whether the bytes lie within one allocation; prints it when not.
int check_device(const char* what, u64 address, u64 bytes);
// Whether `stream` runs behind the last copy to the allocation of `address`; prints it when not.
int check_order(const char* what, u64 address, Stream* stream);

}  // namespace sim
