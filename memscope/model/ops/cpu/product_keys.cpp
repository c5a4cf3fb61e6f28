// The search of a product-key gate (arXiv 1907.05242), and the scores of the entries that it chose.
//
// The references are search_product and score_product in memscope/model/ops/product_keys.py, which call these: their
// plain PyTorch paths give the same.

#include <functional>
#include <limits>

#include "lanes.h"

namespace {

// A score and a number as one integer, whose order is that of the scores; of equal scores the lower number is larger.
inline int64_t sort_key(float score, int64_t number) {
  int32_t bits;
  std::memcpy(&bits, &score, 4);
  bits ^= (bits >> 31) & 0x7fffffff;  // negative floats fall as their bits grow
  return (static_cast<int64_t>(bits) << 32) | (std::numeric_limits<int32_t>::max() - number);
}

inline float score_of(int64_t key) {
  auto bits = static_cast<int32_t>(key >> 32);
  bits ^= (bits >> 31) & 0x7fffffff;
  float score;
  std::memcpy(&score, &bits, 4);
  return score;
}

inline int64_t number_of(int64_t key) { return std::numeric_limits<int32_t>::max() - (key & 0xffffffff); }

// A growing list of sort keys, of which the best are asked for.
struct Candidates {
  static constexpr int64_t BLOCK = 16, MAX_RANKED = 16 * BLOCK;
  std::vector<int64_t> keys;
  int64_t count = 0;

  explicit Candidates(int64_t capacity) : keys(capacity + BLOCK) {}

  void add(int64_t key) { keys[count++] = key; }

  // Writes the best n, best first; out has room for n + 1. A short list is ranked without branches: the rank of a key
  // is the number of better ones.
  void write_best(int64_t n, int64_t* out) {
    if (count > MAX_RANKED) {
      std::partial_sort(keys.begin(), keys.begin() + n, keys.begin() + count, std::greater<>());
      std::copy(keys.begin(), keys.begin() + n, out);
      return;
    }
    const int64_t padded_count = (count + BLOCK - 1) / BLOCK * BLOCK;
    std::fill(keys.begin() + count, keys.begin() + padded_count, std::numeric_limits<int64_t>::min());
    int64_t rank[MAX_RANKED];
    std::fill(rank, rank + padded_count, 0);
    for (int64_t j = 0; j < count; j++) {
      const int64_t key = keys[j];
#pragma omp simd
      for (int64_t i = 0; i < padded_count; i++) rank[i] += key > keys[i] ? 1 : 0;
    }
    for (int64_t i = 0; i < count; i++) out[std::min(rank[i], n)] = keys[i];
  }
};

// Collects candidates for the best n of some scores: of GROUPS interleaved groups, the n with the largest maxima hold
// all of the best n; of those groups, the scores that reach the smallest of these maxima.
template <int64_t GROUPS>
void collect_candidates(const float* scores, int64_t side, int64_t n, Candidates& candidates) {
  candidates.count = 0;
  if (n > GROUPS || side < 2 * GROUPS || side % GROUPS) {
    for (int64_t i = 0; i < side; i++) candidates.add(sort_key(scores[i], i));
    return;
  }
  constexpr float infinity = std::numeric_limits<float>::infinity();
  float maxima[GROUPS], bound = infinity;
  std::copy(scores, scores + GROUPS, maxima);
  for (int64_t i = GROUPS; i < side; i += GROUPS)
    for (int64_t l = 0; l < GROUPS; l++) maxima[l] = scores[i + l] > maxima[l] ? scores[i + l] : maxima[l];
  int32_t n_larger[GROUPS] = {};
  for (int64_t m = 0; m < GROUPS; m++)
#pragma omp simd
    for (int64_t l = 0; l < GROUPS; l++) n_larger[l] += maxima[m] > maxima[l] ? 1 : 0;
#pragma omp simd reduction(min : bound)
  for (int64_t l = 0; l < GROUPS; l++) {
    const float largest = maxima[l];
    bound = std::min(bound, n_larger[l] < n ? largest : infinity);
  }
  uint64_t high_groups = 0;  // a bit for each group whose maximum reaches the bound
#pragma omp simd reduction(| : high_groups)
  for (int64_t l = 0; l < GROUPS; l++) high_groups |= static_cast<uint64_t>(maxima[l] >= bound ? 1 : 0) << l;
  for (int64_t first = 0; first < side; first += 32 * GROUPS) {
    const int64_t n_rounds = std::min<int64_t>(32, (side - first) / GROUPS);
    uint32_t high_scores[GROUPS] = {};  // a bit for each score of a group that reaches the bound
    for (int64_t r = 0; r < n_rounds; r++)
#pragma omp simd
      for (int64_t l = 0; l < GROUPS; l++)
        high_scores[l] |= static_cast<uint32_t>(scores[first + r * GROUPS + l] >= bound ? 1 : 0) << r;
    for (uint64_t groups = high_groups; groups; groups &= groups - 1) {
      const int64_t l = __builtin_ctzll(groups);
      for (uint32_t bits = high_scores[l]; bits; bits &= bits - 1) {
        const int64_t i = first + __builtin_ctz(bits) * GROUPS + l;
        candidates.add(sort_key(scores[i], i));
      }
    }
  }
}

// The best sums of one score of each half, exactly, and the margin of the last above the next (NaN if there is none).
//
// The sum of the i-th best of one half and the j-th best of the other is beaten by i * j - 1 others, so only pairs with
// i * j <= k + 1 can be among the k + 1 best. Ties go to the better first half, and within a half to the lower number.
// halves [token, head, 2, side] may have any strides but the last, which is 1; bias [head, 2, side] is added to them.
std::tuple<Tensor, Tensor> product_top(const Tensor& halves, const std::optional<Tensor>& bias, int64_t selected) {
  const int64_t n_tokens = halves.size(0), n_heads = halves.size(1), side = halves.size(3);
  TORCH_CHECK(halves.stride(3) == 1, "the last axis must be contiguous");
  const int64_t n = std::min(selected + 1, side), wanted = std::min(selected + 1, n * n);
  Tensor indices = at::empty({n_tokens, n_heads, selected}, halves.options().dtype(at::kLong));
  Tensor margins = at::empty({n_tokens, n_heads}, halves.options().dtype(at::kFloat));
  const Vectors in(halves);
  const Tensor zeros = at::zeros({bias ? 0 : side}, halves.options().dtype(at::kFloat));
  const float* bias_data = float_data(bias ? *bias : zeros);
  int64_t* entries = indices.data_ptr<int64_t>();
  float* margin = mutable_float_data(margins);
  std::vector<std::pair<int32_t, int32_t>> pairs;
  for (int32_t i = 0; i < n; i++)
    for (int32_t j = 0; j < n && (i + 1) * (j + 1) <= wanted; j++) pairs.emplace_back(i, j);
  const auto n_pairs = static_cast<int64_t>(pairs.size());
  at::parallel_for(0, n_tokens, 16, [&](int64_t first, int64_t last) {
    std::vector<float> buffer(side), scores(side);
    std::vector<int64_t> rows(n + 1), columns(n + 1), best(wanted + 1);
    Candidates candidates(side), sums(n_pairs);
    for (int64_t t = first; t < last; t++) {
      for (int64_t h = 0; h < n_heads; h++) {
        for (int64_t half = 0; half < 2; half++) {
          const int64_t start = t * halves.stride(0) + h * halves.stride(1) + half * halves.stride(2);
          const float* raw = in.load(start, side, buffer.data());
          const float* added = bias ? bias_data + (h * 2 + half) * side : bias_data;
          float* ordered = scores.data();
          // NaN, of a model that diverged, has no order.
#pragma omp simd
          for (int64_t i = 0; i < side; i++) {
            const float score = raw[i] + added[i];
            ordered[i] = score == score ? score : -std::numeric_limits<float>::infinity();
          }
          (n <= 24 ? collect_candidates<32> : collect_candidates<64>)(ordered, side, n, candidates);
          candidates.write_best(n, (half == 0 ? rows : columns).data());
        }
        sums.count = 0;
        for (int64_t i = 0; i < n_pairs; i++)
          sums.add(sort_key(score_of(rows[pairs[i].first]) + score_of(columns[pairs[i].second]), i));
        sums.write_best(wanted, best.data());
        const int64_t head = t * n_heads + h;
        for (int64_t i = 0; i < selected; i++) {
          const auto [row, column] = pairs[number_of(best[i])];
          entries[head * selected + i] = number_of(rows[row]) * side + number_of(columns[column]);
        }
        margin[head] = wanted > selected ? score_of(best[selected - 1]) - score_of(best[selected])
                                         : std::numeric_limits<float>::quiet_NaN();
      }
    }
  });
  return {indices, margins};
}

// The arguments of both directions of product_scores: halves [token, head, 2, width], keys [head, 2, side, width],
// indices [token, head, k] of entries. An entry's half keys are those of its row and its column in the square.
struct ChosenKeys {
  Vectors halves;
  const float* keys;
  const int64_t* index;
  int64_t n_tokens, n_heads, side, width, selected;

  ChosenKeys(const Tensor& halves, const Tensor& keys, const Tensor& indices)
      : halves(Vectors::contiguous(halves)),
        keys(float_data(keys)),
        index(int_data(indices)),
        n_tokens(indices.size(0)),
        n_heads(indices.size(1)),
        side(keys.size(2)),
        width(keys.size(3)),
        selected(indices.size(2)) {}

  // Number of the half key of entry i, among those of its head and half.
  int64_t half_key(int64_t i, int64_t half) const { return half == 0 ? index[i] / side : index[i] % side; }
};

// scores[t, h, i] = sum over both halves p of halves[t, h, p] . the half key p of entry indices[t, h, i]
Tensor product_scores(const Tensor& halves, const Tensor& keys, const Tensor& indices) {
  const ChosenKeys chosen(halves, keys, indices);
  Tensor result = at::empty(indices.sizes(), keys.options());
  float* out = mutable_float_data(result);
  const int64_t width = chosen.width, square = chosen.side * width, n = chosen.n_tokens * chosen.n_heads;
  at::parallel_for(0, n, 64, [&](int64_t first, int64_t last) {
    std::vector<float> buffer(2 * width);
    for (int64_t head = first; head < last; head++) {
      const float* query = chosen.halves.load(head * 2 * width, 2 * width, buffer.data());
      const float* head_keys = chosen.keys + head % chosen.n_heads * 2 * square;
      for (int64_t i = head * chosen.selected; i < (head + 1) * chosen.selected; i++)
        out[i] = dot_product(query, head_keys + chosen.half_key(i, 0) * width, width) +
                 dot_product(query + width, head_keys + square + chosen.half_key(i, 1) * width, width);
    }
  });
  return result;
}

// Gradients of product_scores with respect to halves and keys. Each half of each head is the work of one thread, so no
// two threads add to the same keys.
std::tuple<Tensor, Tensor> product_scores_backward(const Tensor& gradient, const Tensor& halves, const Tensor& keys,
                                                   const Tensor& indices) {
  const ChosenKeys chosen(halves, keys, indices);
  Tensor to_halves = at::empty_like(halves), to_keys = at::zeros_like(keys);
  const Vectors out(to_halves);
  const float* given = float_data(gradient);
  float* key_sums = mutable_float_data(to_keys);
  const int64_t width = chosen.width, square = chosen.side * width;
  at::parallel_for(0, 2 * chosen.n_heads, 1, [&](int64_t first, int64_t last) {
    std::vector<float> buffer(width), half_sum(width);
    for (int64_t part = first; part < last; part++) {
      const float* part_keys = chosen.keys + part * square;
      float* part_sums = key_sums + part * square;
      for (int64_t t = 0; t < chosen.n_tokens; t++) {
        const int64_t half_start = (t * 2 * chosen.n_heads + part) * width;
        const float* query = chosen.halves.load(half_start, width, buffer.data());
        std::fill(half_sum.begin(), half_sum.end(), 0);
        const int64_t start = (t * chosen.n_heads + part / 2) * chosen.selected;
        for (int64_t i = start; i < start + chosen.selected; i++) {
          const int64_t key_start = chosen.half_key(i, part % 2) * width;
          float *__restrict__ to_half = half_sum.data(), *__restrict__ to_key = part_sums + key_start;
          const float *key = part_keys + key_start, g = given[i];
#pragma omp simd
          for (int64_t d = 0; d < width; d++) {
            to_half[d] += g * key[d];
            to_key[d] += g * query[d];
          }
        }
        out.store(half_start, width, half_sum.data());
      }
    }
  });
  return {to_halves, to_keys};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(memscope, library) {
  library.def("product_top(Tensor halves, Tensor? bias, int selected) -> (Tensor, Tensor)");
  library.def("product_scores(Tensor halves, Tensor keys, Tensor indices) -> Tensor");
  library.def(
      "product_scores_backward(Tensor gradient, Tensor halves, Tensor keys, Tensor indices) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(memscope, CPU, library) {
  library.impl("product_top", &product_top);
  library.impl("product_scores", &product_scores);
  library.impl("product_scores_backward", &product_scores_backward);
}
