// The read of sentences: a softmax over reading nothing and every slot of a token's sentences, and the sum by it.
//
// The reference is TextRead in memscope/model/text/read.py without compiled loops. A token's sentences have different
// lengths; only slots that hold a token are read. softmax_read in memscope/model/ops/softmax_read.py calls these.

#include <numeric>

#include "lanes.h"
#include "row_sums.h"
#include "token_slots.h"

namespace {

constexpr float LOG2_E = 1.442695041f;
constexpr float NEVER = -1e30f;  // logit of the lanes that fill a register up: a weight of 2^-126 at most

// The slots of every token as rows of a table: those of its sentences, one sentence after the other.
struct SentenceRows {
  int64_t n_sentences, most = 0;  // of a token; the most slots that any token has
  const int64_t* lengths;
  std::vector<int64_t> counts, rows;  // slots of every token; [token, most], 0 behind the last

  // starts: the row of the first slot of every sentence.
  SentenceRows(const Tensor& starts, const Tensor& lengths_of)
      : n_sentences(starts.size(1)), lengths(int_data(lengths_of)), counts(starts.size(0)) {
    const int64_t n_tokens = starts.size(0), *start = int_data(starts);
    for (int64_t t = 0; t < n_tokens; t++)
      counts[t] = std::accumulate(lengths + t * n_sentences, lengths + (t + 1) * n_sentences, int64_t{0});
    if (n_tokens) most = *std::max_element(counts.begin(), counts.end());
    rows.assign(n_tokens * most, 0);
    at::parallel_for(0, n_tokens, 256, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; t++) {
        int64_t* row = rows.data() + t * most;
        for (int64_t k = t * n_sentences; k < (t + 1) * n_sentences; k++)
          for (int64_t s = 0; s < lengths[k]; s++) *row++ = start[k] + s;
      }
    });
  }

  void open(TokenSlots& token, int64_t t, int64_t n_columns) const {
    const int64_t next = std::min<int64_t>(t + 1, counts.size() - 1);
    token.open(rows.data() + t * most, counts[t], rows.data() + next * most, 0, n_columns);
  }

  // One number a sentence to one a slot, and NEVER in the lanes that fill up.
  void spread(int64_t t, const float* values, float* out) const {
    for (int64_t k = 0; k < n_sentences; k++) out = std::fill_n(out, lengths[t * n_sentences + k], values[k]);
    std::fill_n(out, padded_to_lanes(counts[t]) - counts[t], NEVER);
  }

  // One number a slot to their sum a sentence.
  void gather(int64_t t, const float* values, float* out) const {
    for (int64_t k = 0; k < n_sentences; k++) {
      const int64_t length = lengths[t * n_sentences + k];
      out[k] = std::accumulate(values, values + length, 0.0f);
      values += length;
    }
  }
};

// Logits of one head become its weights, n numbers. Returns the log of what they were divided by.
inline float softmax_row(float* logits, const float* biases, int64_t n, float nothing) {
  Lanes highest = Lanes{} + nothing, sums = {};
  for (int64_t i = 0; i < n; i += LANES) {
    const Lanes x = load_lanes(logits + i) + load_lanes(biases + i);
    store_lanes(x, logits + i);
    highest = x > highest ? x : highest;
  }
  float peak = highest[0];
  for (int64_t l = 1; l < LANES; l++) peak = std::max(peak, highest[l]);
  for (int64_t i = 0; i < n; i += LANES) {
    const Lanes weight = power_of_two((load_lanes(logits + i) - peak) * LOG2_E);
    store_lanes(weight, logits + i);
    sums += weight;
  }
  const float total = sum_of(sums) + std::exp(nothing - peak);
  for (int64_t i = 0; i < n; i += LANES) store_lanes(load_lanes(logits + i) / total, logits + i);
  return peak + std::log(total);
}

// Logits of one head become their gradients; weights are written, slot_sums added to. Returns the sum of weights times
// their gradients.
inline float softmax_row_backward(float* logits, const float* biases, const float* to_weights, int64_t n,
                                  float log_total, float* weights, float* slot_sums) {
  Lanes sums = {};
  for (int64_t i = 0; i < n; i += LANES) {
    const Lanes x = load_lanes(logits + i) + load_lanes(biases + i) - log_total;
    const Lanes weight = power_of_two((x < 0.0f ? x : Lanes{}) * LOG2_E);
    store_lanes(weight, weights + i);
    sums += weight * load_lanes(to_weights + i);
  }
  const float mean = sum_of(sums);
  for (int64_t i = 0; i < n; i += LANES) {
    const Lanes to_logit = load_lanes(weights + i) * (load_lanes(to_weights + i) - mean);
    store_lanes(to_logit, logits + i);
    store_lanes(load_lanes(slot_sums + i) + to_logit, slot_sums + i);
  }
  return mean;
}

// weights[t, a] = softmax of nothing[a] and vectors[t, a] . table[rows of t] + biases[t, sentence of the row]
// result[t, a] = sum of weights * table[rows of t]; the second result are the logs of the softmax's denominators.
std::tuple<Tensor, Tensor> softmax_read(const Tensor& vectors, const Tensor& table, const Tensor& starts,
                                        const Tensor& lengths, const Tensor& biases, const Tensor& nothing,
                                        at::ScalarType dtype) {
  const int64_t n_tokens = vectors.size(0), n_heads = vectors.size(1), width = vectors.size(2), size = n_heads * width;
  const Slices slices(n_heads, width, 0, 1, table.size(1));
  const SentenceRows sentences(starts, lengths);
  Tensor result = at::empty(vectors.sizes(), table.options().dtype(dtype));
  Tensor log_totals = at::empty({n_tokens, n_heads}, table.options().dtype(at::kFloat));
  const auto in = Vectors::contiguous(vectors);
  const Vectors out(result);
  const float *bias = float_data(biases), *no_slot = float_data(nothing);
  float* log_total = mutable_float_data(log_totals);
  at::parallel_for(0, n_tokens, 16, [&](int64_t first, int64_t last) {
    TokenSlots token(table, sentences.most);
    std::vector<float> buffer(size), sums(size), weights(n_heads * token.result_stride);
    std::vector<float> slot_biases(token.result_stride);
    for (int64_t t = first; t < last; t++) {
      sentences.open(token, t, width);
      token.transpose_columns(slices);
      token.dot(in.load(t * size, size, buffer.data()), slices, weights.data());
      sentences.spread(t, bias + t * sentences.n_sentences, slot_biases.data());
      for (int64_t a = 0; a < n_heads; a++) {
        float* logits = weights.data() + a * token.result_stride;
        log_total[t * n_heads + a] = softmax_row(logits, slot_biases.data(), token.padded_count, no_slot[a]);
      }
      token.sum(weights.data(), token.result_stride, slices, sums.data());
      out.store(t * size, size, sums.data());
    }
  });
  return {result, log_totals};
}

// Gradients of softmax_read with respect to vectors, biases and nothing, the last one of every token apart. The table's
// is added to table_gradient, if there is one. It goes chunk by chunk, as gelu_read_backward does.
std::tuple<Tensor, Tensor, Tensor> softmax_read_backward(const Tensor& gradient, const Tensor& vectors,
                                                         const Tensor& table, const Tensor& starts,
                                                         const Tensor& lengths, const Tensor& biases,
                                                         const Tensor& nothing, const Tensor& log_totals,
                                                         std::optional<Tensor> table_gradient) {
  constexpr int64_t CHUNK = 128;
  const int64_t n_tokens = vectors.size(0), n_heads = vectors.size(1), width = vectors.size(2), size = n_heads * width;
  const Slices slices(n_heads, width, 0, 1, table.size(1));
  const SentenceRows sentences(starts, lengths);
  const int64_t stride = padded_to_lanes(sentences.most);
  Tensor to_vectors = at::empty_like(vectors), to_biases = at::empty_like(biases);
  Tensor to_nothing = at::empty_like(log_totals);
  const auto in = Vectors::contiguous(vectors), given = Vectors::contiguous(gradient);
  const Vectors out(to_vectors);
  const float *bias = float_data(biases), *no_slot = float_data(nothing), *log_total = float_data(log_totals);
  float *bias_sums = mutable_float_data(to_biases), *nothing_sums = mutable_float_data(to_nothing);
  std::vector<float> weights(CHUNK * n_heads * stride), to_logits(CHUNK * n_heads * stride);
  for (int64_t start = 0; start < n_tokens; start += CHUNK) {
    const int64_t stop = std::min(start + CHUNK, n_tokens);
    at::parallel_for(start, stop, 8, [&](int64_t first, int64_t last) {
      TokenSlots token(table, sentences.most);
      std::vector<float> vector_buffer(size), gradient_buffer(size), sums(size);
      std::vector<float> to_weights(n_heads * stride), slot_biases(stride), slot_sums(stride);
      for (int64_t t = first; t < last; t++) {
        sentences.open(token, t, width);
        token.transpose_columns(slices);
        float* token_weights = weights.data() + (t - start) * n_heads * stride;
        float* token_to_logits = to_logits.data() + (t - start) * n_heads * stride;
        token.dot(in.load(t * size, size, vector_buffer.data()), slices, token_to_logits);
        token.dot(given.load(t * size, size, gradient_buffer.data()), slices, to_weights.data());
        sentences.spread(t, bias + t * sentences.n_sentences, slot_biases.data());
        std::fill(slot_sums.begin(), slot_sums.end(), 0.0f);
        for (int64_t a = 0; a < n_heads; a++) {
          const int64_t row = a * stride, head = t * n_heads + a;
          const float mean = softmax_row_backward(token_to_logits + row, slot_biases.data(), to_weights.data() + row,
                                                  token.padded_count, log_total[head], token_weights + row,
                                                  slot_sums.data());
          nothing_sums[head] = -std::exp(no_slot[a] - log_total[head]) * mean;
        }
        sentences.gather(t, slot_sums.data(), bias_sums + t * sentences.n_sentences);
        token.sum(token_to_logits, stride, slices, sums.data());
        out.store(t * size, size, sums.data());
      }
    });
    if (table_gradient) {
      const Term to_keys{in, to_logits.data(), stride, slices}, to_values{given, weights.data(), stride, slices};
      const RowSums table_sums(*table_gradient, std::nullopt);
      const int64_t* counts = sentences.counts.data();
      table_sums.add({to_keys, to_values}, sentences.rows.data(), sentences.most, start, stop, counts);
    }
  }
  return {to_vectors, to_biases, to_nothing};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(memscope, library) {
  library.def(
      "softmax_read(Tensor vectors, Tensor table, Tensor starts, Tensor lengths, Tensor biases, Tensor nothing, "
      "ScalarType dtype) -> (Tensor, Tensor)");
  library.def(
      "softmax_read_backward(Tensor gradient, Tensor vectors, Tensor table, Tensor starts, Tensor lengths, "
      "Tensor biases, Tensor nothing, Tensor log_totals, Tensor(a!)? table_gradient) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(memscope, CPU, library) {
  library.impl("softmax_read", &softmax_read);
  library.impl("softmax_read_backward", &softmax_read_backward);
}
