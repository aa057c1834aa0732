// How the rows of a tile and the chunks of its weights come to shared memory, and the result back. What does not change
// from chunk to chunk is computed once: a thread copies the same rows and the same 16-byte column of every chunk. Whole
// chunks of aligned rows take few instructions; all others look where the matrix ends, and put zeros there.
#pragma once

#include "bottleneck_layout.cuh"

namespace adapterx::cuda {

// A thread's share of the rows of the tile, or of what replaces it, chunk after chunk. Rows without a token are left as they are: no row
// of the result depends on another row.
template <class Config>
class TileRows {
  using Element = typename Config::Element;
  using Share = WindowShare<Config::kRows, Config::kChunk, Config::kThreads, Element>;

 public:
  __device__ __forceinline__ TileRows(const TileBlock<Config>& block, const Matrix<Element>& source)
      : to_(block.tile + Share::row(0) * block.tile_stride + Share::column()),
        step_(Share::kRowStep * block.tile_stride),
        columns_(block.columns),
        whole_(source.vector ? columns_ / Config::kChunk * Config::kChunk : 0),
        vector_(source.vector) {
#pragma unroll
    for (int j = 0; j < Share::kCount; ++j) {
      const int64_t row = block.tokens[Share::row(j)];
      from_[j] = source.data + row * source.stride + block.column0 + Share::column();
      exists_[j] = row >= 0;
    }
  }

  __device__ __forceinline__ void copy_next() {
    if (whole_ > 0) {
#pragma unroll
      for (int j = 0; j < Share::kCount; ++j) {
        if (exists_[j]) cp_async16(to_ + j * step_, from_[j], 16);
      }
    } else {
      const int inside = valid_elements<Element>(columns_ - Share::column());
#pragma unroll
      for (int j = 0; j < Share::kCount; ++j) {
        if (exists_[j]) copy_unit(to_ + j * step_, from_[j], inside, vector_);
      }
    }
    whole_ -= Config::kChunk;
    columns_ -= Config::kChunk;
    to_ += Config::kChunk;
#pragma unroll
    for (int j = 0; j < Share::kCount; ++j) from_[j] += Config::kChunk;
  }

 private:
  Element* to_;
  int step_;
  int columns_, whole_;  // from the chunk on: that exist, and in whole chunks of aligned rows
  bool vector_;
  const Element* from_[Share::kCount];
  int exists_[Share::kCount];
  static_assert(Config::kRows % Share::kRowStep == 0);
};

// A thread's share of down_weight's columns, chunk after chunk.
template <class Config>
class DownRows {
  using Element = typename Config::Element;
  using Share = WindowShare<Config::kBottleneck, Config::kChunk, Config::kThreads, Element>;

 public:
  __device__ __forceinline__ DownRows(const TileBlock<Config>& block, const Matrix<Element>& weight)
      : from_(weight.data + (block.adapter * weight.rows + Share::row(0)) * weight.stride + block.column0 +
              Share::column()),
        step_(Share::kRowStep * weight.stride),
        place_(Share::row(0) * Config::kDownStride + Share::column()),
        rows_(static_cast<int>(weight.rows)),
        columns_(block.columns),
        whole_(weight.vector && rows_ == Config::kBottleneck ? columns_ / Config::kChunk * Config::kChunk : 0),
        vector_(weight.vector) {}

  __device__ __forceinline__ void copy_next(Element* stage) {
    Element* to = stage + place_;
    if (whole_ > 0) {
      Share::visit(true,
                   [&](int j) { cp_async16(to + j * Share::kRowStep * Config::kDownStride, from_ + j * step_, 16); });
    } else {
      const int inside = valid_elements<Element>(columns_ - Share::column());
      Share::visit(vector_, [&](int j) {
        copy_unit(to + j * Share::kRowStep * Config::kDownStride, from_ + j * step_, Share::row(j) < rows_ ? inside : 0,
                  vector_);
      });
    }
    whole_ -= Config::kChunk;
    columns_ -= Config::kChunk;
    from_ += Config::kChunk;
  }

 private:
  const Element* from_;
  int64_t step_;
  int place_, rows_;
  int columns_, whole_;  // as above
  bool vector_;
};

// A thread's share of up_weight's rows, chunk after chunk; the rows lie one behind another.
template <class Config>
class UpRows {
  using Element = typename Config::Element;
  using Share = WindowShare<Config::kChunk, Config::kBottleneck, Config::kThreads, Element>;

 public:
  __device__ __forceinline__ UpRows(const TileBlock<Config>& block, const Matrix<Element>& weight)
      : from_(weight.data + (block.adapter * weight.rows + block.column0 + Share::row(0)) * weight.columns +
              Share::column()),
        place_(Share::row(0) * Config::kUpStride + Share::column()),
        rows_(block.columns),
        columns_(weight.columns),
        whole_(weight.vector && columns_ == Config::kBottleneck ? rows_ / Config::kChunk * Config::kChunk : 0),
        vector_(weight.vector) {}

  __device__ __forceinline__ void copy_next(Element* stage) {
    Element* to = stage + place_;
    if (whole_ > 0) {
      Share::visit(true, [&](int j) {
        cp_async16(to + j * Share::kRowStep * Config::kUpStride, from_ + j * Share::kRowStep * Config::kBottleneck, 16);
      });
    } else {
      const int inside = valid_elements<Element>(columns_ - Share::column());
      Share::visit(vector_, [&](int j) {
        copy_unit(to + j * Share::kRowStep * Config::kUpStride, from_ + j * Share::kRowStep * columns_,
                  Share::row(j) < rows_ ? inside : 0, vector_);
      });
    }
    whole_ -= Config::kChunk;
    rows_ -= Config::kChunk;
    from_ += Config::kChunk * columns_;
  }

 private:
  const Element* from_;
  int place_, columns_;
  int rows_, whole_;  // as above
  bool vector_;
};

// A thread's share of the finished tile's rows, chunk after chunk.
template <class Config>
class OutputRows {
  using Element = typename Config::Element;
  using Share = WindowShare<Config::kRows, Config::kChunk, Config::kThreads, Element>;

 public:
  __device__ __forceinline__ OutputRows(const TileBlock<Config>& block, const TileArguments<Element>& arguments)
      : from_(block.tile + Share::row(0) * block.tile_stride + Share::column()),
        step_(Share::kRowStep * block.tile_stride),
        vector_(arguments.output_vector) {
#pragma unroll
    for (int j = 0; j < Share::kCount; ++j) {
      const int64_t row = block.tokens[Share::row(j)];
      to_[j] = arguments.output + row * arguments.tile.columns + block.column0 + Share::column();
      count_[j] = row >= 0 ? block.columns - Share::column() : 0;
    }
  }

  __device__ __forceinline__ void store_next() {
    if (vector_) {
#pragma unroll
      for (int j = 0; j < Share::kCount; ++j) {
        if (count_[j] > 0) *reinterpret_cast<uint4*>(to_[j]) = *reinterpret_cast<const uint4*>(from_ + j * step_);
      }
    } else {
#pragma unroll
      for (int j = 0; j < Share::kCount; ++j) {
#pragma unroll 1
        for (int i = 0; i < min(count_[j], Share::kWidth); ++i) to_[j][i] = from_[j * step_ + i];
      }
    }
#pragma unroll
    for (int j = 0; j < Share::kCount; ++j) to_[j] += Config::kChunk, count_[j] -= Config::kChunk;
    from_ += Config::kChunk;
  }

 private:
  const Element* from_;
  int step_;
  bool vector_;
  Element* to_[Share::kCount];
  int count_[Share::kCount];  // columns from the unit on that exist
};

// Everything that a tile needs from global memory, in the order in which it is needed: items 0 to chunks - 1 are the
// chunks of the first weight with the tile's, the following ones those of the second weight. The weights pass through a
// ring of stages; the tile's chunks have places of their own, and all of them are asked for at the start.
template <class Config, bool kBackward>
class TileFeed {
  using First = std::conditional_t<kBackward, UpRows<Config>, DownRows<Config>>;
  using Second = std::conditional_t<kBackward, DownRows<Config>, UpRows<Config>>;
  using Element = typename Config::Element;

 public:
  __device__ __forceinline__ TileFeed(const TileBlock<Config>& block, const TileArguments<Element>& arguments)
      : block_(block),
        first_(block, kBackward ? arguments.up_weight : arguments.down_weight),
        second_(block, kBackward ? arguments.down_weight : arguments.up_weight),
        stages_(arguments.stages),
        first_left_(block.chunks),
        left_(arguments.output == nullptr ? block.chunks : 2 * block.chunks) {}

  // Asks for the tile and for as many items as the ring holds.
  __device__ __forceinline__ void start(const Matrix<Element>& tile) {
    TileRows<Config> rows(block_, tile);
    int chunk = 0;
#pragma unroll 1
    for (int i = 0; i < stages_; ++i) {
      ask<false>();
      const int end = i + 1 < stages_ ? i + 1 : block_.chunks;
#pragma unroll 1
      for (; chunk < min(end, block_.chunks); ++chunk) rows.copy_next();
      cp_async_commit();  // a group for every item, those that do not exist too, so that the count in `wait` stays right
    }
  }

  // Waits for item 0.
  __device__ __forceinline__ void wait_for_first() const {
    stages_ == 2 ? cp_async_wait<1>() : stages_ == 4 ? cp_async_wait<3>() : cp_async_wait<7>();
  }

  // Waits until item `item` of the first (or second) product, the one after the last, has landed for all threads and refills the stage of the one before it, with which all are
  // done. Returns the item's stage.
  template <bool kSecond>
  __device__ __forceinline__ const Element* next(int chunk) {
    const int item = kSecond ? block_.chunks + chunk : chunk;
    if (kSecond || item > 0) stages_ == 2 ? cp_async_wait<0>() : stages_ == 4 ? cp_async_wait<2>() : cp_async_wait<6>();
    __syncthreads();
    if (kSecond || item > 0) {
      ask<kSecond>();
      cp_async_commit();
    }
    return block_.stage(item & (stages_ - 1));
  }

 private:
  // For the next item, if there is one. `kSecond`: all of the first weight has been asked for.
  template <bool kSecond>
  __device__ __forceinline__ void ask() {
    if (left_-- <= 0) return;
    Element* stage = block_.stage(asked_++ & (stages_ - 1));
    if (!kSecond && first_left_-- > 0) {
      first_.copy_next(stage);
    } else {
      second_.copy_next(stage);
    }
  }

  const TileBlock<Config>& block_;
  First first_;
  Second second_;
  int stages_;
  int first_left_, left_;  // items of the first weight, and of both, that have not been asked for
  int asked_ = 0;
};

}  // namespace adapterx::cuda
