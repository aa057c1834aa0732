// The thread pool of the kernel tests: plain threads, started for each call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#include "../../csrc/kernels/types.h"

namespace adapterx {

// Splits [0, count) evenly over context = int32_t threads and waits for them.
inline void run_on_threads(void* context, int64_t count, ThreadPool::Body body, void* closure) {
  const int64_t shares = std::min<int64_t>(count, *static_cast<int32_t*>(context));
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < shares; ++i) {
    threads.emplace_back([=] { body(closure, count * i / shares, count * (i + 1) / shares); });
  }
  body(closure, 0, count / shares);
  for (auto& thread : threads) thread.join();
}

}  // namespace adapterx
