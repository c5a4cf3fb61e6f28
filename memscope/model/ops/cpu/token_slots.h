// The slots that one token reads from a table, and the two ways to read them: dot products and weighted sums.
//
// gather.cpp and gelu_read.cpp read through these; row_sums.h adds gradients to the same columns.

#pragma once

#include "lanes.h"

namespace {

// Which columns of a row a read head sees: those of its slice. Heads of one slice are consecutive.
struct Slices {
  int64_t heads, width, column, count, heads_per_slice;

  Slices(int64_t heads, int64_t width, int64_t column, int64_t count, int64_t row_stride)
      : heads(heads), width(width), column(column), count(count), heads_per_slice(heads / count) {
    TORCH_CHECK(heads % count == 0 && column + count * width <= row_stride, "slices do not fit heads or columns");
  }

  int64_t n_columns() const { return count * width; }

  // Calls work(first head, its first column, number of heads) for heads of one slice: four at a time, then singly. The
  // number is a constant of its type, so that the sums of all four heads stay in registers while columns are read once.
  template <typename Work>
  void for_heads(const Work& work) const { for_heads(0, count, work); }

  // The same for the slices from first_slice to last_slice.
  template <typename Work>
  void for_heads(int64_t first_slice, int64_t last_slice, const Work& work) const {
    for (int64_t slice = first_slice; slice < last_slice; slice++) {
      const int64_t first_column = column + slice * width, first_head = slice * heads_per_slice;
      int64_t i = 0;
      for (; i + 4 <= heads_per_slice; i += 4) work(first_head + i, first_column, std::integral_constant<int, 4>());
      for (; i < heads_per_slice; i++) work(first_head + i, first_column, std::integral_constant<int, 1>());
    }
  }
};

// The slots of one token: pointers to rows of a float32 table, or to float32 copies of the rows of a bfloat16 table.
struct TokenSlots {
  static constexpr int64_t MIN_HEADS_TO_TRANSPOSE = 4;  // a slice; with fewer, transposing takes longer than it saves
  Vectors table;
  int64_t row_stride, result_stride;  // result_stride: from one head's results to the next head's
  int64_t count, padded_count;  // slots of the token that is open
  std::vector<const float*> slots;
  std::vector<float> copies;  // of the rows of a bfloat16 table, in the columns that are read
  std::vector<float> columns;  // transposed: [column, slot], so that a register holds a column of 16 slots

  // most: slots that a token can have. Tokens have as many where nothing else is said.
  TokenSlots(const Tensor& table, int64_t most)
      : table(Vectors::contiguous(table)),
        row_stride(table.size(1)),
        result_stride(padded_to_lanes(most)),
        count(most),
        padded_count(result_stride),
        slots(padded_count),
        copies(this->table.is_bfloat16 ? most * row_stride : 0),
        columns(row_stride * padded_count) {}

  // The same for a token that has n slots; next_rows has as many valid rows at least.
  void open(const int64_t* rows, int64_t n, const int64_t* next_rows, int64_t column, int64_t n_columns) {
    count = n;
    padded_count = padded_to_lanes(n);
    open(rows, next_rows, column, n_columns);
  }

  // rows: those of this token. next_rows: those of the token after it, which are prefetched.
  void open(const int64_t* rows, const int64_t* next_rows, int64_t column, int64_t n_columns) {
    for (int64_t s = 0; s < count; s++) {
      float* copy = copies.data() + s * row_stride + column;
      slots[s] = table.load(rows[s] * row_stride + column, n_columns, copy) - column;
      table.prefetch(next_rows[s] * row_stride + column, n_columns);
    }
    for (int64_t s = count; s < padded_count; s++) slots[s] = slots[count - 1];
  }

  // Fills the transposed columns, which dot reads. With few heads a slice, dot reads the rows instead.
  void transpose_columns(const Slices& slices) {
    if (slices.heads_per_slice < MIN_HEADS_TO_TRANSPOSE) return;
    const int64_t column = slices.column, n_columns = slices.n_columns();
    for (int64_t s = 0; s < padded_count; s += LANES) {
      int64_t c = column;
      for (; c + LANES <= column + n_columns; c += LANES) {
        Lanes square[LANES];
        for (int64_t i = 0; i < LANES; i++) square[i] = load_lanes(slots[s + i] + c);
        transpose(square);
        for (int64_t i = 0; i < LANES; i++) store_lanes(square[i], columns.data() + (c + i) * padded_count + s);
      }
      for (; c < column + n_columns; c++)
        for (int64_t i = 0; i < LANES; i++) columns[c * padded_count + s + i] = slots[s + i][c];
    }
  }

  // out[a, s] = vectors[a] . columns of head a of slot s. Rows of out are result_stride long.
  void dot(const float* vectors, const Slices& slices, float* out) const {
    slices.for_heads([&](int64_t a, int64_t column, auto n_heads) {
      const float* query = vectors + a * slices.width;
      float* logits = out + a * result_stride;
      if (slices.heads_per_slice < MIN_HEADS_TO_TRANSPOSE) {
        for (int64_t s = 0; s < count; s++) logits[s] = dot_product(query, slots[s] + column, slices.width);
        return;
      }
      int64_t s = 0;
      for (; s + 2 * LANES <= padded_count; s += 2 * LANES)
        dot_columns<n_heads, 2>(query, slices.width, column, s, logits);
      if (s < padded_count) dot_columns<n_heads, 1>(query, slices.width, column, s, logits);
    });
  }

  // The same for n_heads heads of one slice and n_registers registers of slots, from slot s on.
  template <int n_heads, int n_registers>
  void dot_columns(const float* query, int64_t width, int64_t column, int64_t s, float* logits) const {
    Lanes sums[n_heads][n_registers] = {};
    for (int64_t d = 0; d < width; d++) {
      const float* column_values = columns.data() + (column + d) * padded_count + s;
      for (int r = 0; r < n_registers; r++) {
        const Lanes values = load_lanes(column_values + r * LANES);
        for (int a = 0; a < n_heads; a++) sums[a][r] += query[a * width + d] * values;
      }
    }
    for (int a = 0; a < n_heads; a++)
      for (int r = 0; r < n_registers; r++) store_lanes(sums[a][r], logits + a * result_stride + s + r * LANES);
  }

  // out[a] = sum over slots of weights[a, s] * columns of head a of slot s. Rows of weights are weight_stride apart.
  void sum(const float* weights, int64_t weight_stride, const Slices& slices, float* out) const {
    slices.for_heads([&](int64_t a, int64_t column, auto n_heads) {
      const float* weight = weights + a * weight_stride;
      float* head_sums = out + a * slices.width;
      int64_t d = 0;
      for (; d + LANES <= slices.width; d += LANES) {
        Lanes even[n_heads] = {}, odd[n_heads] = {};
        int64_t s = 0;
        for (; s + 2 <= count; s += 2) {
          const Lanes even_slot = load_lanes(slots[s] + column + d), odd_slot = load_lanes(slots[s + 1] + column + d);
          for (int i = 0; i < n_heads; i++) {
            even[i] += weight[i * weight_stride + s] * even_slot;
            odd[i] += weight[i * weight_stride + s + 1] * odd_slot;
          }
        }
        if (s < count)
          for (int i = 0; i < n_heads; i++)
            even[i] += weight[i * weight_stride + s] * load_lanes(slots[s] + column + d);
        for (int i = 0; i < n_heads; i++) store_lanes(even[i] + odd[i], head_sums + i * slices.width + d);
      }
      for (int i = 0; i < n_heads; i++) {
        for (int64_t e = d; e < slices.width; e++) {
          float total = 0;
          for (int64_t s = 0; s < count; s++) total += weight[i * weight_stride + s] * slots[s][column + e];
          head_sums[i * slices.width + e] = total;
        }
      }
    });
  }
};

}  // namespace
