// Dot products with selected rows of a table, and weighted sums of them, without gathering the rows.
//
// The reference is GatheredSlots in memscope/model/ops/sparse_read.py, whose dot and sum work on a gathered tensor
// [batch, pos, slot, width]. Nothing of that size is built here. TableSlots in the same module calls these.

#include "lanes.h"
#include "token_slots.h"

namespace {

// out[t, a, s] = vectors[t, a] . table[rows[t, s], columns of head a]
Tensor gather_dot(const Tensor& vectors, const Tensor& table, int64_t column, int64_t n_slices, const Tensor& rows) {
  const int64_t n_tokens = vectors.size(0), n_slots = rows.size(1), row_stride = table.size(1);
  const Slices slices(vectors.size(1), vectors.size(2), column, n_slices, row_stride);
  Tensor result = at::empty({n_tokens, slices.heads, n_slots}, table.options().dtype(at::kFloat));
  const auto in = Vectors::contiguous(vectors);
  const int64_t *row = int_data(rows), size = slices.heads * slices.width;
  float* out = mutable_float_data(result);
  at::parallel_for(0, n_tokens, 16, [&](int64_t first, int64_t last) {
    TokenSlots token(table, n_slots);
    std::vector<float> buffer(size), logits(slices.heads * token.padded_count);
    for (int64_t t = first; t < last; t++) {
      const int64_t next = std::min(t + 1, n_tokens - 1);
      token.open(row + t * n_slots, row + next * n_slots, column, slices.n_columns());
      token.transpose_columns(slices);
      token.dot(in.load(t * size, size, buffer.data()), slices, logits.data());
      for (int64_t a = 0; a < slices.heads; a++) {
        float* to = out + (t * slices.heads + a) * n_slots;
        std::memcpy(to, logits.data() + a * token.padded_count, n_slots * sizeof(float));
      }
    }
  });
  return result;
}

// out[t, a] = sum over s of weights[t, a, s] * table[rows[t, s], columns of head a]
Tensor gather_sum(const Tensor& weights, const Tensor& table, int64_t column, int64_t width, int64_t n_slices,
                  const Tensor& rows, at::ScalarType dtype) {
  const int64_t n_tokens = weights.size(0), n_heads = weights.size(1), n_slots = rows.size(1);
  const Slices slices(n_heads, width, column, n_slices, table.size(1));
  Tensor result = at::empty({n_tokens, n_heads, width}, table.options().dtype(dtype));
  const Vectors out(result);
  const float* weight = float_data(weights);
  const int64_t* row = int_data(rows);
  at::parallel_for(0, n_tokens, 16, [&](int64_t first, int64_t last) {
    TokenSlots token(table, n_slots);
    std::vector<float> sums(n_heads * width);
    for (int64_t t = first; t < last; t++) {
      const int64_t next = std::min(t + 1, n_tokens - 1);
      token.open(row + t * n_slots, row + next * n_slots, column, slices.n_columns());
      token.sum(weight + t * n_heads * n_slots, n_slots, slices, sums.data());
      out.store(t * n_heads * width, n_heads * width, sums.data());
    }
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(memscope, library) {
  library.def("gather_dot(Tensor vectors, Tensor table, int column, int slices, Tensor rows) -> Tensor");
  library.def(
      "gather_sum(Tensor weights, Tensor table, int column, int width, int slices, Tensor rows, ScalarType dtype) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(memscope, CPU, library) {
  library.impl("gather_dot", &gather_dot);
  library.impl("gather_sum", &gather_sum);
}
