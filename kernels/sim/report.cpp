// Reports of problems in kernels, on the standard error.
#include "report.hpp"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

namespace sim {

constexpr u64 MOST_PRINTED = 8;
static int first_error = 0;
static u64 count = 0, printed = 0;

// What was printed of this launch: the line of code, and the kind of problem.
struct Known {
  const void* code;
  const char* format;
};
static Known known[MOST_PRINTED];

void begin_reports() {
  first_error = 0;
  count = printed = 0;
}
void end_reports() {
  if (count <= printed) return;
  fprintf(stderr, "simulator: kernel `%s`: %llu problems, of which %llu are printed\n", running->name, count, printed);
}
int launch_error() { return first_error; }

// Counts a problem; true when it is to be printed.
static bool note(int error, const void* code, const char* format) {
  if (!first_error) first_error = error;
  running->problems++;
  count++;
  for (u64 i = 0; i < printed; i++) {
    if (known[i].code == code && known[i].format == format) return false;
  }
  if (printed == MOST_PRINTED) return false;
  known[printed++] = Known{code, format};
  return true;
}

// The source line of a return address, as " (file:line)", when addr2line can tell. Of inlined calls, the innermost line
// that is not the simulator's.
static std::string source_line(const void* code) {
  Dl_info info;
  if (!code || !dladdr(code, &info)) return "";
  char command[1024];
  u64 offset = (u64)((const u8*)code - (const u8*)info.dli_fbase) - 1;
  snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%llx 2>/dev/null", info.dli_fname, offset);
  FILE* pipe = popen(command, "r");
  if (!pipe) return "";
  char line[1024] = "", next[1024];
  while (fgets(next, sizeof next, pipe)) {
    if (!line[0] || strstr(line, "/../sim/")) memcpy(line, next, sizeof line);
  }
  pclose(pipe);
  line[strcspn(line, " \n")] = 0;
  if (!line[0] || line[0] == '?') return "";
  const char* name = strrchr(line, '/');
  return std::string(" (") + (name ? name + 1 : line) + ")";
}

static void print(const void* code, const char* format, va_list arguments) {
  char text[512];
  vsnprintf(text, sizeof text, format, arguments);
  std::string line = source_line(code);
  fprintf(stderr, "simulator: kernel `%s`, block (%u, %u, %u)", running->name, block.index.x, block.index.y,
          block.index.z);
  if (current) fprintf(stderr, ", thread (%u, %u, %u)", current->index.x, current->index.y, current->index.z);
  fprintf(stderr, ": %s%s\n", text, line.c_str());
}

#define REPORT(code) \
  if (note(error, code, format)) { \
    va_list arguments; \
    va_start(arguments, format); \
    print(code, format, arguments); \
    va_end(arguments); \
  }
void problem(int error, const char* format, ...) { REPORT(nullptr) }
void access_problem(int error, const void* code, const char* format, ...) { REPORT(code) }
void fault(int error, const void* code, const char* format, ...) {
  REPORT(code)
  abandon();
}

std::string place_in_shared(u32 address) {
  bool dynamic = address < STATIC_SHARED;
  return "at byte " + std::to_string(dynamic ? address : address - STATIC_SHARED) + " of " +
         std::to_string(dynamic ? block.dynamic_bytes : block.static_bytes) + " of " +
         (dynamic ? "dynamic" : "static") + " shared memory";
}

}  // namespace sim
