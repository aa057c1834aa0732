// What is on its way beside the threads: cp.async copies, bulk copies, stores to other blocks, and the mbarriers that
// transfers land on.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace emulator {

// A line of a kernel, taken where a function with a default argument `Here here = Here::now()` is called.
struct Here {
  const char* file = nullptr;
  int line = 0;
  static constexpr Here now(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  std::string text() const {
    if (file == nullptr) return "";
    const char* name = std::strrchr(file, '/');
    return std::string(" at ") + (name == nullptr ? file : name + 1) + ":" + std::to_string(line);
  }
};

// A cp.async copy.
struct Copy {
  unsigned char* target;
  const unsigned char* source;
  int bytes;
};

// A bulk load, or a store to another block where `source` is null.
struct Transfer {
  unsigned char* target = nullptr;
  const unsigned char* source = nullptr;
  unsigned char value[16] = {};
  unsigned bytes = 0;
  bool remote = false;  // from another block

  // Takes `count` bytes off its beginning or its end.
  Transfer split(unsigned count, bool at_end) {
    Transfer piece = *this;
    piece.bytes = count;
    bytes -= count;
    if (bytes == 0) return piece;
    if (at_end) {
      piece.target += bytes;
      piece.source += bytes;
    } else {
      target += count;
      source += count;
    }
    return piece;
  }
  void land() const { std::memcpy(target, source != nullptr ? source : value, bytes); }
};

struct Barrier {
  const uint64_t* place = nullptr;
  int block = 0;
  int64_t arrivals = 0, pending = 0;  // of a phase; of the current one, still to come
  int64_t bytes = 0;                  // expected less landed in the current phase
  int64_t phase = 0;
  bool remote = false, last_remote = false;  // whether bytes of another block landed in the current, the last phase
  // Who made it, and how many barriers its block had passed and it had arrived at when it fenced.
  int maker = 0;
  bool fenced = false;
  int64_t fence_block = 0, fence_cluster = 0;
  std::vector<Transfer> under_way;
};

struct BulkStore {
  unsigned char* target = nullptr;
  const unsigned char* source = nullptr;
  unsigned bytes = 0;
  std::vector<unsigned char> data;  // what was read of the source
  bool written = false;

  void read() {
    if (data.empty()) data.assign(source, source + bytes);
  }
  void write() {
    if (!written) std::memcpy(target, data.data(), bytes);
    written = true;
  }
};

struct BulkGroup {
  std::vector<BulkStore> stores;
  bool read = false;  // its thread has waited for that
};

}  // namespace emulator
