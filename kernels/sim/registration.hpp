// How kernels become known by name: build.sh appends a `sim::Registration` for each of them to the preprocessed source.
#pragma once
#include <utility>

namespace sim {

struct Registration {
  Registration(const char* name, int most_threads, void (*call)(void**), const u32* parameters, u8* static_shared,
               u8* static_end);
};

// Calls a kernel with the parameters that cuLaunchKernel got: pointers to them, unpacked by the kernel's own types.
template <class Function> struct Caller;
template <class... Parameters> struct Caller<void(Parameters...)> {
  static constexpr u32 SIZES[] = {sizeof(Parameters)..., 0};  // bytes of each parameter
  template <void (*KERNEL_FUNCTION)(Parameters...)>
  __attribute__((no_sanitize("thread", "alignment"))) static void call(void** parameters) {
    unpack<KERNEL_FUNCTION>(parameters, std::index_sequence_for<Parameters...>());
  }
  template <void (*KERNEL_FUNCTION)(Parameters...), size_t... I>
  __attribute__((no_sanitize("thread", "alignment"))) static void unpack(void** parameters, std::index_sequence<I...>) {
    (void)parameters;  // of a kernel without any
    KERNEL_FUNCTION(*(std::remove_const_t<Parameters>*)parameters[I]...);
  }
};

}  // namespace sim
