// Scratch memory that outlives a call, so that a call pays neither malloc nor page faults.
#pragma once

#include <cstddef>

namespace adapterx::cpu {

// `call`: owned by the thread that entered the kernel and shared with its workers. `worker`: private to one worker.
// They are apart because the calling thread is usually a worker as well.
enum class ScratchOwner { call, worker };

// At least `bytes` bytes, aligned to 64, valid until this thread's next request for the same owner. Never null:
// throws std::bad_alloc. The contents are undefined.
std::byte* acquire_scratch(ScratchOwner owner, std::size_t bytes);

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ADAPTERX_GUARD_SCRATCH
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define ADAPTERX_GUARD_SCRATCH
#endif
// Bytes after each piece of scratch memory that nothing may touch; only the address sanitizer would notice.
#ifdef ADAPTERX_GUARD_SCRATCH
constexpr std::size_t kGuardBytes = 64;
#else
constexpr std::size_t kGuardBytes = 0;
#endif
void forbid_scratch(std::byte* begin, std::size_t bytes);
void allow_scratch(std::byte* begin, std::size_t bytes);

// Give the pages of an unusually large request back to the system; requests of ordinary size are kept.
void trim_scratch(ScratchOwner owner);

}  // namespace adapterx::cpu
