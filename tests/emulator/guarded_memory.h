// Memory that ends (or begins, see `Edge`) at an unreadable page, filled with a NaN pattern: an access outside faults
// at once, and a value that nobody wrote shows up in the result.
#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace emulator {

inline constexpr int kPoison = 0xff;  // every float type reads these bytes as NaN

// Which side of new memory lies directly at its guard page.
enum class Edge { end, begin };
inline Edge guarded_edge = Edge::end;

class GuardedMemory {
 public:
  GuardedMemory() = default;
  explicit GuardedMemory(size_t bytes) : bytes_(bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t usable = (bytes + page - 1) / page * page;
    mapped_ = usable + 2 * page;
    void* base = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<unsigned char*>(base);
    if (usable > 0 && mprotect(base_ + page, usable, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    data_ = base_ + page + (guarded_edge == Edge::end ? usable - bytes : 0);
    poison();
  }
  GuardedMemory(GuardedMemory&& other) noexcept { *this = std::move(other); }
  GuardedMemory& operator=(GuardedMemory&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(mapped_, other.mapped_);
    return *this;
  }
  ~GuardedMemory() {
    if (base_ != nullptr) munmap(base_, mapped_);
  }

  unsigned char* data() const { return data_; }
  size_t size() const { return bytes_; }
  void poison() {
    if (bytes_ > 0) std::memset(data_, kPoison, bytes_);
  }
  bool contains(const void* pointer, size_t bytes) const {
    const auto* p = static_cast<const unsigned char*>(pointer);
    return p >= data_ && p + bytes <= data_ + bytes_;
  }

 private:
  unsigned char* base_ = nullptr;
  unsigned char* data_ = nullptr;
  size_t bytes_ = 0;
  size_t mapped_ = 0;
};

// While it lives, a memory fault, or a trap that the compiler has put before a misaligned access (-fsanitize=alignment
// with -fsanitize-undefined-trap-on-error), calls `on_fault` with words for it on the stack of the thread (fiber) that
// made it.
class FaultHandler {
 public:
  explicit FaultHandler(void (*on_fault)(const char*)) {
    target() = on_fault;
    stack_ = GuardedMemory(64 << 10);
    stack_t alternate = {};
    alternate.ss_sp = stack_.data();
    alternate.ss_size = stack_.size();
    sigaltstack(&alternate, &previous_stack_);
    struct sigaction action = {};
    action.sa_sigaction = &redirect;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &previous_segv_);
    sigaction(SIGBUS, &action, &previous_bus_);
    sigaction(SIGILL, &action, &previous_ill_);
  }
  ~FaultHandler() {
    sigaction(SIGSEGV, &previous_segv_, nullptr);
    sigaction(SIGBUS, &previous_bus_, nullptr);
    sigaction(SIGILL, &previous_ill_, nullptr);
    sigaltstack(&previous_stack_, nullptr);
  }
  FaultHandler(const FaultHandler&) = delete;
  FaultHandler& operator=(const FaultHandler&) = delete;

 private:
  static void (*&target())(const char*) {
    static void (*function)(const char*) = nullptr;
    return function;
  }

  // Returns from the signal into `target`, as if the faulting instruction had called it.
  static void redirect(int signal_number, siginfo_t*, void* context) {
#ifdef __x86_64__
    auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    registers[REG_RSP] = ((registers[REG_RSP] - 256) & ~15LL) - 8;  // past the red zone, aligned as at a call
    registers[REG_RIP] = reinterpret_cast<greg_t>(target());
    registers[REG_RDI] =
        reinterpret_cast<greg_t>(signal_number == SIGILL ? "misaligned memory access" : "memory access out of range");
#else
    (void)context;
    signal(signal_number, SIG_DFL);  // the fault repeats and ends the process
#endif
  }

  GuardedMemory stack_;
  stack_t previous_stack_ = {};
  struct sigaction previous_segv_ = {}, previous_bus_ = {}, previous_ill_ = {};
};

}  // namespace emulator
