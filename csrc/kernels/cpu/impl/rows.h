// Which tokens the rows of a block are.
#pragma once

#include "vector.h"

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

struct TokenRows {
  int64_t first;          // consecutive tokens from this one on,
  const int64_t* listed;  // or, unless null, these

  AX_INLINE int64_t token(int64_t row) const { return listed ? listed[row] : first + row; }
  AX_INLINE TokenRows from(int64_t row) const {
    return listed ? TokenRows{0, listed + row} : TokenRows{first + row, nullptr};
  }
};
// Rows that need no list: those of a weight, or of scratch memory.
constexpr TokenRows kAllRows = {0, nullptr};

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
