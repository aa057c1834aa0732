// What the grouped forward and backward share: the walk of a worker over its share of the tokens, sorted by adapter.
#pragma once

#include "driver.h"
#include "gemm.h"
#include "pack.h"
#include "rows.h"
#include "vector.h"

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

// Room in ScratchOwner::call for the order of the tokens.
struct SortRoom {
  int64_t num_tokens;
  int64_t num_adapters;
  int64_t most_shares;
  int64_t* order = nullptr;
  int64_t* starts = nullptr;
  Cut* cuts = nullptr;

  void lay_out(Pieces& pieces) {
    order = pieces.take<int64_t>(num_tokens);
    starts = pieces.take<int64_t>(starts_size(num_adapters));
    cuts = pieces.take<Cut>(most_shares + 1);
  }
};

// Those of a share without adapter, as positions in the order.
AX_INLINE RowRange tokens_without_adapter(const SortedTokens& tokens, const Cut* share) {
  return {share[0].position, max_of(share[0].position, min_of(share[1].position, tokens.starts[1]))};
}

// `count` tokens of one adapter, from a position in the order on.
AX_INLINE TokenRows rows_at(const SortedTokens& tokens, int64_t position, int64_t count) {
  const int64_t* order = tokens.order + position;
  // The order ascends within an adapter.
  return order[count - 1] - order[0] == count - 1 ? TokenRows{order[0], nullptr} : TokenRows{0, order};
}

// Up to kBlockRows tokens of one adapter.
struct RowBlock {
  int64_t adapter = 0;
  int64_t count = 0;
  TokenRows rows = kAllRows;
  bool first = false;  // of the adapter's blocks in this share
  bool last = false;
  bool begun_before = false;  // an earlier share has tokens of the adapter
  bool goes_on = false;       // a later share has
};

// Walks the blocks of a share.
class BlockWalk {
 public:
  BlockWalk(const SortedTokens& tokens, const Cut* share)
      : tokens_(tokens),
        slot_(max_of<int64_t>(1, share[0].slot)),
        begin_(max_of(share[0].position, tokens.starts[1])),
        position_(begin_),
        end_(share[1].position) {}

  // The next one, or one of no tokens at the end.
  RowBlock next() {
    if (position_ >= end_) return {};
    while (position_ >= tokens_.starts[slot_ + 1]) ++slot_;
    const int64_t slot_begin = tokens_.starts[slot_];
    const int64_t slot_end = tokens_.starts[slot_ + 1];
    RowBlock block;
    block.adapter = slot_ - 1;
    block.count = min_of(kBlockRows, min_of(end_, slot_end) - position_);
    block.rows = rows_at(tokens_, position_, block.count);
    block.first = position_ == max_of(begin_, slot_begin);
    position_ += block.count;
    block.last = position_ == min_of(end_, slot_end);
    block.begun_before = slot_begin < begin_;
    block.goes_on = slot_end > end_;
    return block;
  }

 private:
  const SortedTokens& tokens_;
  int64_t slot_;
  int64_t begin_;
  int64_t position_;
  int64_t end_;
};

// A part of a block's products: a chunk of the narrow product's depth, or a panel of the columns that come after it.
struct Part {
  RowBlock block;
  bool panel = false;
  int64_t at = 0;  // element of the depth, or column
};

// Walks the parts of the blocks of a share.
template <typename T>
class PartWalk {
 public:
  PartWalk(const SortedTokens& tokens, const Cut* share, int64_t depth, int64_t columns)
      : blocks_(tokens, share), depth_(depth), columns_(columns) {
    enter();
  }

  // The next one, or one of no tokens at the end.
  Part next() {
    const Part part = upcoming_;
    if (part.block.count == 0) return part;
    upcoming_.at += part.panel ? kPanelColumns<T> : kChunkDepth<T>;
    if (upcoming_.at < (part.panel ? columns_ : depth_)) return part;
    if (part.panel) {
      enter();
    } else {
      upcoming_.panel = true;
      upcoming_.at = 0;
    }
    return part;
  }

 private:
  void enter() { upcoming_ = {blocks_.next(), depth_ == 0, 0}; }

  BlockWalk blocks_;
  int64_t depth_;
  int64_t columns_;
  Part upcoming_;
};

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
