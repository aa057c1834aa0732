// A fiber: a function with a stack of its own that gives up the processor where it likes.
// On x86-64 a switch is a dozen instructions (swapcontext costs two system calls, and an emulated block of 128 threads
// makes a hundred thousand switches); elsewhere it is swapcontext.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>

#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef __x86_64__
extern "C" void emulator_switch(void** save_stack_pointer, void* load_stack_pointer);
asm(R"(
.weak emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");
#endif

namespace emulator {

#ifdef __SANITIZE_ADDRESS__
inline constexpr size_t kStackBytes = 256 << 10;  // the sanitizer's red zones make frames several times larger
#else
inline constexpr size_t kStackBytes = 64 << 10;
#endif

// The context that fibers leave to.
struct Scheduler {
#ifdef __x86_64__
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  const void* stack = nullptr;
  size_t stack_bytes = 0;
};

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() { std::free(stack_); }

  // Makes the next `enter` call `entry`, which must not return.
  void prepare(void (*entry)()) {
    if (stack_ == nullptr) stack_ = static_cast<char*>(std::aligned_alloc(64, kStackBytes));
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stack_, kStackBytes);  // frames that a failed launch has left behind
#endif
#ifdef __x86_64__
    void** top = reinterpret_cast<void**>(stack_ + kStackBytes - 16);
    *top = reinterpret_cast<void*>(entry);
    stack_pointer_ = top - 6;  // six registers that the first switch pops
    std::memset(top - 6, 0, 6 * sizeof(void*));
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  // From the scheduler: runs this fiber until it leaves.
  void enter() {
#ifdef __SANITIZE_ADDRESS__
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack_, kStackBytes);
#endif
#ifdef __x86_64__
    emulator_switch(&scheduler_.stack_pointer, stack_pointer_);
#else
    swapcontext(&scheduler_.context, &context_);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  // From this fiber: back to the scheduler.
  void leave() {
#ifdef __SANITIZE_ADDRESS__
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, scheduler_.stack, scheduler_.stack_bytes);
#endif
#ifdef __x86_64__
    emulator_switch(&stack_pointer_, scheduler_.stack_pointer);
#else
    swapcontext(&context_, &scheduler_.context);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  // The first thing a fiber's entry must call: tells the sanitizer which stack it came from.
  static void arrived() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_.stack, &scheduler_.stack_bytes);
#endif
  }

 private:
  static inline Scheduler scheduler_;

  char* stack_ = nullptr;
#ifdef __x86_64__
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
};

}  // namespace emulator
