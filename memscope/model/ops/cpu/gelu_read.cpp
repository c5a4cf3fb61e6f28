// The read of non-competing slots, gelu(logit) * score: by itself, and fused with the gather and the sum around it.
//
// The references: gated_gelu in memscope/model/ops/fused.py for gated_gelu; Slots.gelu_read in
// memscope/model/ops/sparse_read.py for gelu_read, which equals gather_dot, gated_gelu and gather_sum to the last bit.

#include "lanes.h"
#include "row_sums.h"
#include "token_slots.h"

namespace {

// The normal distribution function of 16 numbers, and its density. Both use one exponential: Abramowitz and Stegun
// 7.1.26, as PyTorch's vectorised erf, so with an error of up to 1.5e-7.
inline std::pair<Lanes, Lanes> normal_cdf_and_density(Lanes x) {
  const Lanes exponential = power_of_two(x * x * -0.7213475204f);
  const Lanes size = x < 0.0f ? -x : x, t = 1.0f / (1.0f + 0.2316418883f * size);
  Lanes tail = t * 0.5307027145f - 0.7265760135f;
  for (const float c : {0.7107068705f, -0.142248368f, 0.127414796f}) tail = tail * t + c;
  tail *= t * exponential;  // the mass beyond x, on the side of x
  return {x < 0.0f ? tail : 1.0f - tail, exponential * 0.3989422804f};
}

// out = gelu(logits) * scores, n numbers.
inline void gated_gelu_row(const float* logits, const float* scores, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += LANES) {
    const Lanes x = load_lanes(logits + i, n - i);
    store_lanes(x * normal_cdf_and_density(x).first * load_lanes(scores + i, n - i), out + i, n - i);
  }
}

// Its gradients: to_logits is written, to_scores is added to. With out, gated_gelu_row's result is written once more.
inline void gated_gelu_row_backward(const float* gradient, const float* logits, const float* scores, int64_t n,
                                    float* to_logits, float* to_scores, float* out = nullptr) {
  for (int64_t i = 0; i < n; i += LANES) {
    const Lanes x = load_lanes(logits + i, n - i), g = load_lanes(gradient + i, n - i);
    const Lanes score = load_lanes(scores + i, n - i);
    const auto [phi, density] = normal_cdf_and_density(x);
    store_lanes(g * score * (phi + x * density), to_logits + i, n - i);
    store_lanes(load_lanes(to_scores + i, n - i) + g * x * phi, to_scores + i, n - i);
    if (out) store_lanes(x * phi * score, out + i, n - i);
  }
}

// out[t, a, s] = gelu(logits[t, a, s]) * scores[t, s]
Tensor gated_gelu(const Tensor& logits, const Tensor& scores) {
  const int64_t n_heads = logits.size(1), n_slots = logits.size(2);
  Tensor result = at::empty_like(logits);
  const float *x = float_data(logits), *score = float_data(scores);
  float* out = mutable_float_data(result);
  at::parallel_for(0, logits.size(0) * n_heads, 64, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++)
      gated_gelu_row(x + i * n_slots, score + i / n_heads * n_slots, n_slots, out + i * n_slots);
  });
  return result;
}

// Gradients of gated_gelu with respect to logits and scores.
std::tuple<Tensor, Tensor> gated_gelu_backward(const Tensor& gradient, const Tensor& logits, const Tensor& scores) {
  const int64_t n_heads = logits.size(1), n_slots = logits.size(2);
  Tensor to_logits = at::empty_like(logits), to_scores = at::zeros_like(scores);
  const float *given = float_data(gradient), *x = float_data(logits), *score = float_data(scores);
  float *out = mutable_float_data(to_logits), *score_sums = mutable_float_data(to_scores);
  at::parallel_for(0, logits.size(0), 8, [&](int64_t first, int64_t last) {
    for (int64_t i = first * n_heads; i < last * n_heads; i++) {
      const int64_t head = i * n_slots, token = i / n_heads * n_slots;
      gated_gelu_row_backward(given + head, x + head, score + token, n_slots, out + head, score_sums + token);
    }
  });
  return {to_logits, to_scores};
}

// gather_dot, gated_gelu and gather_sum in one pass over tokens: logits and read weights never leave the cache.
Tensor gelu_read(const Tensor& vectors, const Tensor& scores, const Tensor& table, int64_t key_column,
                 int64_t value_column, int64_t n_slices, const Tensor& rows, at::ScalarType dtype) {
  const int64_t n_tokens = vectors.size(0), n_heads = vectors.size(1), width = vectors.size(2), n_slots = rows.size(1);
  const Slices keys(n_heads, width, key_column, n_slices, table.size(1));
  const Slices values(n_heads, width, value_column, n_slices, table.size(1));
  Tensor result = at::empty(vectors.sizes(), table.options().dtype(dtype));
  const auto in = Vectors::contiguous(vectors);
  const Vectors out(result);
  const float* score = float_data(scores);
  const int64_t *row = int_data(rows), size = n_heads * width;
  const int64_t first_column = std::min(key_column, value_column);
  const int64_t n_columns = std::max(key_column, value_column) + keys.n_columns() - first_column;
  at::parallel_for(0, n_tokens, 16, [&](int64_t first, int64_t last) {
    TokenSlots token(table, n_slots);
    std::vector<float> buffer(size), weights(n_heads * token.padded_count), sums(size);
    std::vector<float> token_scores(token.padded_count);  // padded with zeros: whole registers are faster
    for (int64_t t = first; t < last; t++) {
      const int64_t next = std::min(t + 1, n_tokens - 1);
      token.open(row + t * n_slots, row + next * n_slots, first_column, n_columns);
      token.transpose_columns(keys);
      token.dot(in.load(t * size, size, buffer.data()), keys, weights.data());
      std::copy_n(score + t * n_slots, n_slots, token_scores.data());
      for (int64_t a = 0; a < n_heads; a++) {
        float* head_weights = weights.data() + a * token.padded_count;
        gated_gelu_row(head_weights, token_scores.data(), token.padded_count, head_weights);
      }
      token.sum(weights.data(), token.padded_count, values, sums.data());
      out.store(t * size, size, sums.data());
    }
  });
  return result;
}

// Gradients of gelu_read with respect to vectors and scores. The table's is added to table_gradient, if there is one.
//
// It goes chunk by chunk: first it computes the read weights of the chunk's tokens again, and their gradients; then it
// adds what they give the table.
std::tuple<Tensor, Tensor> gelu_read_backward(const Tensor& gradient, const Tensor& vectors, const Tensor& scores,
                                              const Tensor& table, int64_t key_column, int64_t value_column,
                                              int64_t n_slices, const Tensor& rows,
                                              std::optional<Tensor> table_gradient,
                                              const std::optional<Tensor>& touched) {
  constexpr int64_t CHUNK = 128;
  const int64_t n_tokens = vectors.size(0), n_heads = vectors.size(1), width = vectors.size(2), n_slots = rows.size(1);
  const Slices keys(n_heads, width, key_column, n_slices, table.size(1));
  const Slices values(n_heads, width, value_column, n_slices, table.size(1));
  Tensor to_vectors = at::empty_like(vectors), to_scores = at::zeros_like(scores);
  const auto in = Vectors::contiguous(vectors), given = Vectors::contiguous(gradient);
  const Vectors out(to_vectors);
  const float* score = float_data(scores);
  float* score_sums = mutable_float_data(to_scores);
  const int64_t *row = int_data(rows), size = n_heads * width, padded_count = padded_to_lanes(n_slots);
  const int64_t first_column = std::min(key_column, value_column);
  const int64_t n_columns = std::max(key_column, value_column) + keys.n_columns() - first_column;
  std::vector<float> weights(CHUNK * n_heads * padded_count), to_logits(CHUNK * n_heads * padded_count);
  for (int64_t start = 0; start < n_tokens; start += CHUNK) {
    const int64_t stop = std::min(start + CHUNK, n_tokens);
    at::parallel_for(start, stop, 8, [&](int64_t first, int64_t last) {
      TokenSlots token(table, n_slots);
      std::vector<float> vector_buffer(size), gradient_buffer(size), sums(size);
      std::vector<float> logits(n_heads * padded_count), to_weights(n_heads * padded_count);
      std::vector<float> token_scores(padded_count), to_token_scores(padded_count);  // padded with zeros, as above
      for (int64_t t = first; t < last; t++) {
        const int64_t next = std::min(t + 1, n_tokens - 1);
        token.open(row + t * n_slots, row + next * n_slots, first_column, n_columns);
        token.transpose_columns(keys);
        if (value_column != key_column) token.transpose_columns(values);
        in.prefetch(next * size, size);
        given.prefetch(next * size, size);
        token.dot(in.load(t * size, size, vector_buffer.data()), keys, logits.data());
        token.dot(given.load(t * size, size, gradient_buffer.data()), values, to_weights.data());
        std::copy_n(score + t * n_slots, n_slots, token_scores.data());
        std::fill(to_token_scores.begin(), to_token_scores.end(), 0.0f);
        float* token_to_logits = to_logits.data() + (t - start) * n_heads * padded_count;
        float* token_weights = weights.data() + (t - start) * n_heads * padded_count;
        for (int64_t a = 0; a < n_heads; a++) {
          const int64_t head = a * padded_count;
          gated_gelu_row_backward(to_weights.data() + head, logits.data() + head, token_scores.data(), padded_count,
                                  token_to_logits + head, to_token_scores.data(), token_weights + head);
        }
        std::copy_n(to_token_scores.data(), n_slots, score_sums + t * n_slots);
        token.sum(token_to_logits, padded_count, keys, sums.data());
        out.store(t * size, size, sums.data());
      }
    });
    if (table_gradient) {
      const Term to_keys{in, to_logits.data(), padded_count, keys};
      const Term to_values{given, weights.data(), padded_count, values};
      RowSums(*table_gradient, touched).add({to_keys, to_values}, row, n_slots, start, stop);
    }
  }
  return {to_vectors, to_scores};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(memscope, library) {
  library.def("gated_gelu(Tensor logits, Tensor scores) -> Tensor");
  library.def("gated_gelu_backward(Tensor gradient, Tensor logits, Tensor scores) -> (Tensor, Tensor)");
  library.def(
      "gelu_read(Tensor vectors, Tensor scores, Tensor table, int key_column, int value_column, int slices, "
      "Tensor rows, ScalarType dtype) -> Tensor");
  library.def(
      "gelu_read_backward(Tensor gradient, Tensor vectors, Tensor scores, Tensor table, int key_column, "
      "int value_column, int slices, Tensor rows, Tensor(a!)? table_gradient, Tensor(b!)? touched) -> "
      "(Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(memscope, CPU, library) {
  library.impl("gated_gelu", &gated_gelu);
  library.impl("gated_gelu_backward", &gated_gelu_backward);
  library.impl("gelu_read", &gelu_read);
  library.impl("gelu_read_backward", &gelu_read_backward);
}
