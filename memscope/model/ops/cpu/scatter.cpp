// The backward pass of gathered rows: adds outer products to the rows of a table's gradient, and takes summed rows out.
//
// The reference is the gradient that autograd gives GatheredSlots in memscope/model/ops/sparse_read.py. OpenTable and
// SparseSum in the same module call these.

#include "lanes.h"
#include "row_sums.h"

namespace {

// Adds one or two terms, with weights [token, head, slot], to the gradient of a table's rows, and marks their entries.
void scatter_sum(Tensor& gradient, const std::optional<Tensor>& touched, const Tensor& rows, int64_t n_slices,
                 const Tensor& vectors, const Tensor& weights, int64_t column, const std::optional<Tensor>& vectors_2,
                 const std::optional<Tensor>& weights_2, int64_t column_2) {
  const RowSums sums(gradient, touched);
  const int64_t n_slots = rows.size(1);
  const auto make_term = [&](const Tensor& v, const Tensor& w, int64_t c) {
    const Slices slices(v.size(1), v.size(2), c, n_slices, sums.row_stride);
    return Term{Vectors::contiguous(v), float_data(w), n_slots, slices};
  };
  std::vector<Term> terms{make_term(vectors, weights, column)};
  if (vectors_2) terms.push_back(make_term(*vectors_2, *weights_2, column_2));
  sums.add(terms, int_data(rows), n_slots, 0, rows.size(0));
}

// Copies rows out of a table and leaves zeros in them.
Tensor take_rows(Tensor& table, const Tensor& rows) {
  const int64_t n = rows.size(0), width = table.size(1);
  Tensor values = at::empty({n, width}, table.options());
  float *from = mutable_float_data(table), *to = mutable_float_data(values);
  const int64_t* row = int_data(rows);
  at::parallel_for(0, n, 64, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      float* taken = from + row[i] * width;
      std::memcpy(to + i * width, taken, width * sizeof(float));
      std::memset(taken, 0, width * sizeof(float));
    }
  });
  return values;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(memscope, library) {
  library.def(
      "scatter_sum(Tensor(a!) gradient, Tensor(b!)? touched, Tensor rows, int slices, Tensor vectors, Tensor weights, "
      "int column, Tensor? vectors_2, Tensor? weights_2, int column_2) -> ()");
  library.def("take_rows(Tensor(a!) table, Tensor rows) -> Tensor");
}

TORCH_LIBRARY_IMPL(memscope, CPU, library) {
  library.impl("scatter_sum", &scatter_sum);
  library.impl("take_rows", &take_rows);
}
