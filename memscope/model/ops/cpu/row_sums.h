// The gradient of a table, summed into the rows that tokens selected, without atomics and without a sort.
//
// scatter.cpp and gelu_read.cpp add through RowSums.

#pragma once

#include <numeric>

#include "lanes.h"
#include "token_slots.h"

namespace {

// A summand of a table's gradient: weights[t, a, s] * vectors[t, a] goes to row rows[t, s], in the columns of head a.
struct Term {
  Vectors vectors;
  const float* weights;
  int64_t weight_stride;  // from one head's weights to the next head's
  Slices slices;

  int64_t vector_size() const { return slices.heads * slices.width; }

  // Prefetches the columns of a row that belong to the slices from first_slice to last_slice.
  void prefetch(const float* row, int64_t first_slice, int64_t last_slice) const {
    const int64_t last = slices.column + last_slice * slices.width;
    for (int64_t d = slices.column + first_slice * slices.width; d < last; d += LANES) __builtin_prefetch(row + d, 1);
  }

  // vector, weight: those of one token. Its slots number slot_numbers[0 .. n] are added to the gradient rows
  // targets[0 .. n], in the columns of the slices from first_slice to last_slice.
  void add(const float* vector, const float* weight, const int64_t* slot_numbers, int64_t n, float* const* targets,
           int64_t first_slice, int64_t last_slice) const {
    const int64_t width = slices.width;
    slices.for_heads(first_slice, last_slice, [&](int64_t a, int64_t column, auto n_heads) {
      const float *head_vector = vector + a * width, *head_weight = weight + a * weight_stride;
      int64_t d = 0;
      for (; d + LANES <= width; d += LANES) {
        Lanes values[n_heads];
        for (int i = 0; i < n_heads; i++) values[i] = load_lanes(head_vector + i * width + d);
        for (int64_t c = 0; c < n; c++) {
          float* target = targets[c] + column + d;
          Lanes sum = load_lanes(target);
          for (int i = 0; i < n_heads; i++) sum += head_weight[i * weight_stride + slot_numbers[c]] * values[i];
          store_lanes(sum, target);
        }
      }
      for (; d < width; d++)
        for (int64_t c = 0; c < n; c++)
          for (int i = 0; i < n_heads; i++)
            targets[c][column + d] += head_weight[i * weight_stride + slot_numbers[c]] * head_vector[i * width + d];
    });
  }
};

// The sums of a table's rows, and the marks of the entries (of rows_per_entry rows each) that were added to.
struct RowSums {
  float* rows;
  int64_t row_stride, rows_per_entry;
  bool* marks;

  RowSums(Tensor& gradient, const std::optional<Tensor>& touched)
      : rows(mutable_float_data(gradient)),
        row_stride(gradient.size(1)),
        rows_per_entry(touched ? gradient.size(0) / touched->size(0) : 1),
        marks(touched ? touched->data_ptr<bool>() : nullptr) {}

  // Adds terms of the tokens from first to last; the terms' weights start with those of token first.
  //
  // Every thread adds to slices that are its alone. With more threads than slices, the threads of one slice walk the
  // same selections, and each adds to the rows whose hash is its number. So there are no atomics and no sort, and the
  // sum is the same with any number of threads. All terms are added at once: to fetch a row costs more than to add.
  //
  // With counts, a token has that many slots; the rows after them are valid, and nothing is added to them.
  void add(const std::vector<Term>& terms, const int64_t* row, int64_t n_slots, int64_t first, int64_t last,
           const int64_t* counts = nullptr) const {
    const int64_t n_threads = at::get_num_threads(), n_slices = terms[0].slices.count;
    const int64_t n_parts = std::gcd(n_threads, n_slices);
    const auto n_owners = static_cast<uint64_t>(n_threads / n_parts);
    // Spreads rows over threads by Fibonacci hashing, which needs no division.
    const auto owner_of = [n_owners](int64_t r) { return ((static_cast<uint32_t>(r) * 2654435769u) * n_owners) >> 32; };
    at::parallel_for(0, n_threads, 1, [&](int64_t first_thread, int64_t last_thread) {
      std::vector<std::vector<float>> buffers;
      for (const Term& term : terms) buffers.emplace_back(term.vector_size());
      std::vector<int64_t> slot_numbers(n_slots);
      std::vector<float*> targets(n_slots);
      for (int64_t thread = first_thread; thread < last_thread; thread++) {
        const int64_t part = thread % n_parts;
        const int64_t first_slice = part * n_slices / n_parts, last_slice = (part + 1) * n_slices / n_parts;
        const auto owner = static_cast<uint64_t>(thread / n_parts);
        for (int64_t t = first; t < last; t++) {
          const int64_t *token_rows = row + t * n_slots, *next_rows = t + 1 < last ? token_rows + n_slots : token_rows;
          const int64_t count = counts ? counts[t] : n_slots;
          int64_t n = 0;
          for (int64_t s = 0; s < count; s++) {  // no branch: the owner of a row cannot be predicted
            slot_numbers[n] = s;
            targets[n] = rows + token_rows[s] * row_stride;
            n += owner_of(token_rows[s]) == owner;
            if (owner_of(next_rows[s]) == owner)
              for (const Term& term : terms) term.prefetch(rows + next_rows[s] * row_stride, first_slice, last_slice);
          }
          for (size_t i = 0; i < terms.size(); i++) {
            const Term& term = terms[i];
            const int64_t slice_size = term.slices.heads_per_slice * term.slices.width;
            const int64_t start = first_slice * slice_size, size = (last_slice - first_slice) * slice_size;
            const float* part_vector =
                term.vectors.load(t * term.vector_size() + start, size, buffers[i].data() + start);
            const float* weight = term.weights + (t - first) * term.slices.heads * term.weight_stride;
            term.add(part_vector - start, weight, slot_numbers.data(), n, targets.data(), first_slice, last_slice);
          }
          if (marks && part == 0)
            for (int64_t c = 0; c < n; c++) {  // only if it is not set: a write takes the cache line from other threads
              bool& mark = marks[token_rows[slot_numbers[c]] / rows_per_entry];
              if (!mark) mark = true;
            }
        }
      }
    });
  }
};

}  // namespace
