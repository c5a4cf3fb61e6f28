// The loops of training a memory on a CPU: nothing of the size [token, slot, width] is ever built.
//
// Tensors are contiguous unless said; "vectors" and tables of entries are float32 or bfloat16, everything else is float32
// or int64. Work is split over PyTorch's own threads. native.py loads this; fused.py, gate.py, optimizer.py and
// sparse_read.py call it.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

using at::Tensor;

namespace {

// Vectors of either type, read and written as float32.
struct Vectors {
  char* data;
  bool half;

  explicit Vectors(const Tensor& tensor)
      : data(static_cast<char*>(tensor.data_ptr())), half(tensor.scalar_type() == at::kBFloat16) {
    TORCH_CHECK(half || tensor.scalar_type() == at::kFloat, "vectors must be float32 or bfloat16");
  }

  static Vectors contiguous(const Tensor& tensor) {
    TORCH_CHECK(tensor.is_contiguous(), "vectors must be contiguous");
    return Vectors(tensor);
  }

  const float* load(int64_t first, int64_t n, float* buffer) const {
    if (!half) return reinterpret_cast<const float*>(data) + first;
    const auto* bits = reinterpret_cast<const uint16_t*>(data) + first;
    auto* out = reinterpret_cast<uint32_t*>(buffer);
    for (int64_t i = 0; i < n; i++) out[i] = static_cast<uint32_t>(bits[i]) << 16;
    return buffer;
  }

  void store(int64_t first, int64_t n, const float* values) const {
    if (!half) {
      std::memcpy(reinterpret_cast<float*>(data) + first, values, n * sizeof(float));
      return;
    }
    auto* bits = reinterpret_cast<uint16_t*>(data) + first;
    const auto* in = reinterpret_cast<const uint32_t*>(values);
    for (int64_t i = 0; i < n; i++) {  // round to nearest, ties to even; a NaN stays one
      uint32_t rounded = (in[i] + 0x7fff + ((in[i] >> 16) & 1)) >> 16;
      bits[i] = (in[i] & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
    }
  }

  // Into the second cache: more lines are asked for at once than can be under way to the first.
  void prefetch(int64_t first, int64_t n) const {
    constexpr int64_t LINE = 64;
    const int64_t size = half ? sizeof(uint16_t) : sizeof(float);
    for (int64_t byte = 0; byte < n * size; byte += LINE) __builtin_prefetch(data + first * size + byte, 0, 2);
  }
};

const float* floats(const Tensor& tensor) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.is_contiguous(), "needs contiguous float32");
  return tensor.data_ptr<float>();
}

float* filled(Tensor& tensor) { return const_cast<float*>(floats(tensor)); }

const int64_t* numbers(const Tensor& tensor) {
  TORCH_CHECK(tensor.scalar_type() == at::kLong && tensor.is_contiguous(), "needs contiguous int64");
  return tensor.data_ptr<int64_t>();
}

// Sixteen floats as one vector register, or as several narrower ones where registers are.
constexpr int64_t LANES = 16;
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(int32_t))));

inline Lanes lanes(const float* from) {
  Lanes out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

inline void put(Lanes values, float* to) { std::memcpy(to, &values, sizeof values); }

inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// One step of the transposition of a square of 16 rows: swaps the off-diagonal quarters of all squares of side 2 * half.
template <int half, int... lane>
inline void swap_quarters(Lanes* rows, std::integer_sequence<int, lane...>) {
  for (int i = 0; i < LANES; i++) {
    if (i & half) continue;
    const Lanes a = rows[i], b = rows[i + half];
    rows[i] = __builtin_shufflevector(a, b, (lane & half ? lane - half + static_cast<int>(LANES) : lane)...);
    rows[i + half] = __builtin_shufflevector(a, b, (lane & half ? lane + static_cast<int>(LANES) : lane + half)...);
  }
}

inline void transpose(Lanes* rows) {
  constexpr auto all = std::make_integer_sequence<int, LANES>();
  swap_quarters<8>(rows, all);
  swap_quarters<4>(rows, all);
  swap_quarters<2>(rows, all);
  swap_quarters<1>(rows, all);
}

inline float inner(const float* a, const float* b, int64_t n) {
  Lanes sums = {};
  int64_t d = 0;
  for (; d + LANES <= n; d += LANES) sums += lanes(a + d) * lanes(b + d);
  float total = 0;
  for (int64_t l = 0; l < LANES; l++) total += sums[l];
  for (; d < n; d++) total += a[d] * b[d];
  return total;
}

// Which columns a read head sees: those of its slice. Heads of one slice stand side by side.
struct Slices {
  int64_t heads, width, column, count, each;  // each: heads of a slice

  Slices(int64_t heads, int64_t width, int64_t column, int64_t count, int64_t stride)
      : heads(heads), width(width), column(column), count(count), each(heads / count) {
    TORCH_CHECK(heads % count == 0 && column + count * width <= stride, "slices do not fit heads or columns");
  }

  int64_t columns() const { return count * width; }

  // Calls work(first head, its first column, how many) for heads of one slice: four at a time, then one by one. How many
  // is a constant of the type, so that what belongs to a head stays in registers while columns are read once for all.
  template <typename Work>
  void for_heads(const Work& work) const { for_heads(0, count, work); }

  // The same for some of the slices.
  template <typename Work>
  void for_heads(int64_t first, int64_t last, const Work& work) const {
    for (int64_t slice = first; slice < last; slice++) {
      const int64_t from = column + slice * width;
      int64_t i = 0;
      for (; i + 4 <= each; i += 4) work(slice * each + i, from, std::integral_constant<int, 4>());
      for (; i < each; i++) work(slice * each + i, from, std::integral_constant<int, 1>());
    }
  }
};

// The slots of one token, as pointers to rows of a table or to float32 copies of them, and the two ways to read them.
struct TokenSlots {
  static constexpr int64_t FEW = 4;  // heads of a slice below which it does not pay to transpose it
  Vectors table;
  int64_t stride, count, wide;  // wide: the count, padded to full registers
  std::vector<const float*> slot;
  std::vector<float> copies;  // of the rows of a bfloat16 table, in the columns that are read
  std::vector<float> columns;  // transposed: [column, slot], so that a register holds a column of 16 slots

  TokenSlots(const Tensor& table, int64_t count)
      : table(Vectors::contiguous(table)),
        stride(table.size(1)),
        count(count),
        wide(padded(count)),
        slot(wide),
        copies(this->table.half ? count * stride : 0),
        columns(stride * wide) {}

  // rows: of this token; next: of the one after it, whose rows are asked for in advance.
  void open(const int64_t* rows, const int64_t* next, int64_t column, int64_t n_columns) {
    for (int64_t s = 0; s < count; s++) {
      slot[s] = table.load(rows[s] * stride + column, n_columns, copies.data() + s * stride + column) - column;
      table.prefetch(next[s] * stride + column, n_columns);
    }
    for (int64_t s = count; s < wide; s++) slot[s] = slot[count - 1];
  }

  // Makes what dot reads; for few heads a slice it reads the rows.
  void transpose_columns(const Slices& slice) {
    if (slice.each < FEW) return;
    const int64_t column = slice.column, n_columns = slice.columns();
    for (int64_t s = 0; s < wide; s += LANES) {
      int64_t c = column;
      for (; c + LANES <= column + n_columns; c += LANES) {
        Lanes square[LANES];
        for (int64_t i = 0; i < LANES; i++) square[i] = lanes(slot[s + i] + c);
        transpose(square);
        for (int64_t i = 0; i < LANES; i++) put(square[i], columns.data() + (c + i) * wide + s);
      }
      for (; c < column + n_columns; c++)
        for (int64_t i = 0; i < LANES; i++) columns[c * wide + s + i] = slot[s + i][c];
    }
  }

  // out[a, s] = v[a] . columns of head a of slot s; rows of out are wide.
  void dot(const float* v, const Slices& slice, float* out) const {
    slice.for_heads([&](int64_t a, int64_t column, auto heads) {
      const float* query = v + a * slice.width;
      float* to = out + a * wide;
      if (slice.each < FEW) {
        for (int64_t s = 0; s < count; s++) to[s] = inner(query, slot[s] + column, slice.width);
        return;
      }
      int64_t s = 0;
      for (; s + 2 * LANES <= wide; s += 2 * LANES) dot_columns<heads, 2>(query, slice.width, column, s, to);
      if (s < wide) dot_columns<heads, 1>(query, slice.width, column, s, to);
    });
  }

  // The same for some heads of a slice and as many registers of slots, from slot s on.
  template <int heads, int registers>
  void dot_columns(const float* query, int64_t width, int64_t column, int64_t s, float* out) const {
    Lanes sums[heads][registers] = {};
    for (int64_t d = 0; d < width; d++) {
      const float* seen = columns.data() + (column + d) * wide + s;
      for (int r = 0; r < registers; r++) {
        const Lanes some = lanes(seen + r * LANES);
        for (int a = 0; a < heads; a++) sums[a][r] += query[a * width + d] * some;
      }
    }
    for (int a = 0; a < heads; a++)
      for (int r = 0; r < registers; r++) put(sums[a][r], out + a * wide + s + r * LANES);
  }

  // out[a] = sum over slots of w[a, s] * columns of head a of slot s; rows of w are as far apart as said.
  void sum(const float* w, int64_t apart, const Slices& slice, float* out) const {
    slice.for_heads([&](int64_t a, int64_t column, auto heads) {
      const float* weight = w + a * apart;
      float* to = out + a * slice.width;
      int64_t d = 0;
      for (; d + LANES <= slice.width; d += LANES) {
        Lanes even[heads] = {}, odd[heads] = {};
        int64_t s = 0;
        for (; s + 2 <= count; s += 2) {
          const Lanes one = lanes(slot[s] + column + d), two = lanes(slot[s + 1] + column + d);
          for (int i = 0; i < heads; i++) {
            even[i] += weight[i * apart + s] * one;
            odd[i] += weight[i * apart + s + 1] * two;
          }
        }
        if (s < count)
          for (int i = 0; i < heads; i++) even[i] += weight[i * apart + s] * lanes(slot[s] + column + d);
        for (int i = 0; i < heads; i++) put(even[i] + odd[i], to + i * slice.width + d);
      }
      for (int i = 0; i < heads; i++) {
        for (int64_t e = d; e < slice.width; e++) {
          float total = 0;
          for (int64_t s = 0; s < count; s++) total += weight[i * apart + s] * slot[s][column + e];
          to[i * slice.width + e] = total;
        }
      }
    });
  }
};

// out[t, a, s] = vectors[t, a] . table[rows[t, s], columns of head a]
Tensor gather_dot(const Tensor& vectors, const Tensor& table, int64_t column, int64_t slices, const Tensor& rows) {
  const int64_t tokens = vectors.size(0), slots = rows.size(1), stride = table.size(1);
  const Slices slice(vectors.size(1), vectors.size(2), column, slices, stride);
  Tensor result = at::empty({tokens, slice.heads, slots}, table.options().dtype(at::kFloat));
  const auto in = Vectors::contiguous(vectors);
  const int64_t *row = numbers(rows), size = slice.heads * slice.width;
  float* out = filled(result);
  at::parallel_for(0, tokens, 16, [&](int64_t first, int64_t last) {
    TokenSlots token(table, slots);
    std::vector<float> buffer(size), logits(slice.heads * token.wide);
    for (int64_t t = first; t < last; t++) {
      token.open(row + t * slots, row + std::min(t + 1, tokens - 1) * slots, column, slice.columns());
      token.transpose_columns(slice);
      token.dot(in.load(t * size, size, buffer.data()), slice, logits.data());
      for (int64_t a = 0; a < slice.heads; a++)
        std::memcpy(out + (t * slice.heads + a) * slots, logits.data() + a * token.wide, slots * sizeof(float));
    }
  });
  return result;
}

// out[t, a] = sum over s of weights[t, a, s] * table[rows[t, s], columns of head a]
Tensor gather_sum(const Tensor& weights, const Tensor& table, int64_t column, int64_t width, int64_t slices,
                  const Tensor& rows, at::ScalarType type) {
  const int64_t tokens = weights.size(0), heads = weights.size(1), slots = rows.size(1);
  const Slices slice(heads, width, column, slices, table.size(1));
  Tensor result = at::empty({tokens, heads, width}, table.options().dtype(type));
  const Vectors out(result);
  const float* weight = floats(weights);
  const int64_t* row = numbers(rows);
  at::parallel_for(0, tokens, 16, [&](int64_t first, int64_t last) {
    TokenSlots token(table, slots);
    std::vector<float> sums(heads * width);
    for (int64_t t = first; t < last; t++) {
      token.open(row + t * slots, row + std::min(t + 1, tokens - 1) * slots, column, slice.columns());
      token.sum(weight + t * heads * slots, slots, slice, sums.data());
      out.store(t * heads * width, heads * width, sums.data());
    }
  });
  return result;
}

// A summand of a table's gradient: to row rows[t, s], weights[t, a, s] * vectors[t, a] in the columns of every head a.
struct Term {
  Vectors vectors;
  const float* weights;
  int64_t apart;  // rows of weights
  Slices slice;

  int64_t size() const { return slice.heads * slice.width; }

  // Asks for the part of a row that some slices will be added to.
  void prefetch(const float* row, int64_t first_slice, int64_t last_slice) const {
    const int64_t last = slice.column + last_slice * slice.width;
    for (int64_t d = slice.column + first_slice * slice.width; d < last; d += LANES) __builtin_prefetch(row + d, 1);
  }

  // v, w: of one token; to: rows of the gradient, of the n slots whose numbers are own; in the columns of some slices.
  void add(const float* v, const float* w, const int64_t* own, int64_t n, float* const* to, int64_t first_slice,
           int64_t last_slice) const {
    const int64_t width = slice.width;
    slice.for_heads(first_slice, last_slice, [&](int64_t a, int64_t column, auto heads) {
      const float *from = v + a * width, *weight = w + a * apart;
      int64_t d = 0;
      for (; d + LANES <= width; d += LANES) {
        Lanes some[heads];
        for (int i = 0; i < heads; i++) some[i] = lanes(from + i * width + d);
        for (int64_t c = 0; c < n; c++) {
          float* out = to[c] + column + d;
          Lanes sum = lanes(out);
          for (int i = 0; i < heads; i++) sum += weight[i * apart + own[c]] * some[i];
          put(sum, out);
        }
      }
      for (; d < width; d++)
        for (int64_t c = 0; c < n; c++)
          for (int i = 0; i < heads; i++) to[c][column + d] += weight[i * apart + own[c]] * from[i * width + d];
    });
  }
};

// Where the gradient of a table's rows is summed, and the entries (of some rows each) that were added to.
struct Sums {
  float* rows;
  int64_t stride, length;
  bool* marks;

  Sums(Tensor& gradient, const std::optional<Tensor>& touched)
      : rows(filled(gradient)),
        stride(gradient.size(1)),
        length(touched ? gradient.size(0) / touched->size(0) : 1),
        marks(touched ? touched->data_ptr<bool>() : nullptr) {}

  // Adds terms of tokens first to last; their weights start with those of the first.
  //
  // Every thread adds in slices of its own; if there are more threads than slices, those of the same slices walk the
  // same selections and add those of their own rows. So no atomics, no sort, and the same sum with any number of
  // threads. All terms at once, because fetching a row costs more than adding to it.
  void add(const std::vector<Term>& terms, const int64_t* row, int64_t slots, int64_t first, int64_t last) const {
    const int64_t threads = at::get_num_threads(), slices = terms[0].slice.count, parts = std::gcd(threads, slices);
    const auto owners = static_cast<uint64_t>(threads / parts);
    // Spreads rows over threads by their hash (Fibonacci's), without the price of a division.
    const auto owner = [owners](int64_t r) { return ((static_cast<uint32_t>(r) * 2654435769u) * owners) >> 32; };
    at::parallel_for(0, threads, 1, [&](int64_t first_thread, int64_t last_thread) {
      std::vector<std::vector<float>> buffers;
      for (const Term& term : terms) buffers.emplace_back(term.size());
      std::vector<int64_t> own(slots);
      std::vector<float*> to(slots);
      for (int64_t thread = first_thread; thread < last_thread; thread++) {
        const int64_t part = thread % parts, first_slice = part * slices / parts, last_slice = (part + 1) * slices / parts;
        const auto mine = static_cast<uint64_t>(thread / parts);
        for (int64_t t = first; t < last; t++) {
          const int64_t *here = row + t * slots, *next = t + 1 < last ? here + slots : here;
          int64_t count = 0;
          for (int64_t s = 0; s < slots; s++) {  // no branch: whose a row is cannot be predicted
            own[count] = s;
            to[count] = rows + here[s] * stride;
            count += owner(here[s]) == mine;
            if (owner(next[s]) == mine)
              for (const Term& term : terms) term.prefetch(rows + next[s] * stride, first_slice, last_slice);
          }
          for (size_t i = 0; i < terms.size(); i++) {
            const Term& term = terms[i];
            const int64_t skipped = first_slice * term.slice.each * term.slice.width;
            const int64_t size = (last_slice - first_slice) * term.slice.each * term.slice.width;
            const float* v = term.vectors.load(t * term.size() + skipped, size, buffers[i].data() + skipped) - skipped;
            const float* w = term.weights + (t - first) * term.slice.heads * term.apart;
            term.add(v, w, own.data(), count, to.data(), first_slice, last_slice);
          }
          if (marks && part == 0)
            for (int64_t c = 0; c < count; c++) {  // if need be only: writing takes a line from the other threads
              bool& mark = marks[here[own[c]] / length];
              if (!mark) mark = true;
            }
        }
      }
    });
  }
};

// Adds one or two terms, with weights [token, head, slot], to the gradient of a table's rows.
void scatter_sum(Tensor& gradient, const std::optional<Tensor>& touched, const Tensor& rows, int64_t slices,
                 const Tensor& vectors, const Tensor& weights, int64_t column, const std::optional<Tensor>& vectors_2,
                 const std::optional<Tensor>& weights_2, int64_t column_2) {
  const Sums sums(gradient, touched);
  const int64_t slots = rows.size(1);
  const auto term = [&](const Tensor& v, const Tensor& w, int64_t c) {
    return Term{Vectors::contiguous(v), floats(w), slots, Slices(v.size(1), v.size(2), c, slices, sums.stride)};
  };
  std::vector<Term> terms{term(vectors, weights, column)};
  if (vectors_2) terms.push_back(term(*vectors_2, *weights_2, column_2));
  sums.add(terms, numbers(rows), slots, 0, rows.size(0));
}

// The normal distribution function of 16 numbers and its density, with one exponential for both: Abramowitz and Stegun
// 7.1.26, as PyTorch's vectorised erf, so to 1.5e-7.
inline std::pair<Lanes, Lanes> normal(Lanes x) {
  const Lanes y = x * x * -0.7213475204f;  // the exponent of 2
  const Lanes bounded = y < -126.0f ? Lanes{} - 126.0f : y;
  const auto whole = __builtin_convertvector(bounded - 0.5f, Integers);
  const Lanes part = bounded - __builtin_convertvector(whole, Lanes);  // -0.5 to 0.5
  Lanes power = part * 1.525273380e-5f + 1.540353039e-4f;
  for (const float c : {1.333355815e-3f, 9.618129108e-3f, 5.550410866e-2f, 2.402265070e-1f, 6.931471806e-1f, 1.0f})
    power = power * part + c;
  const Integers scaled = reinterpret_cast<const Integers&>(power) + (whole << 23);
  const Lanes exponential = reinterpret_cast<const Lanes&>(scaled);
  const Lanes size = x < 0.0f ? -x : x, t = 1.0f / (1.0f + 0.2316418883f * size);
  Lanes tail = t * 0.5307027145f - 0.7265760135f;
  for (const float c : {0.7107068705f, -0.142248368f, 0.127414796f}) tail = tail * t + c;
  tail *= t * exponential;  // of the side that x is on
  return {x < 0.0f ? tail : 1.0f - tail, exponential * 0.3989422804f};
}

// Some numbers of a row, zeros after its end.
inline Lanes lanes(const float* from, int64_t n) {
  if (n >= LANES) return lanes(from);
  Lanes out = {};
  std::memcpy(&out, from, n * sizeof(float));
  return out;
}

inline void put(Lanes values, float* to, int64_t n) {
  if (n >= LANES) return put(values, to);  // else a copy of unknown length, which is slow
  std::memcpy(to, &values, n * sizeof(float));
}

// out = gelu(x) * gate, n numbers.
inline void weigh(const float* x, const float* gate, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += LANES) {
    const Lanes v = lanes(x + i, n - i);
    put(v * normal(v).first * lanes(gate + i, n - i), out + i, n - i);
  }
}

// Its gradients: to_x is written, to_gate added to; and out once more, if asked for.
inline void weigh_backward(const float* y, const float* x, const float* gate, int64_t n, float* to_x, float* to_gate,
                           float* out = nullptr) {
  for (int64_t i = 0; i < n; i += LANES) {
    const Lanes v = lanes(x + i, n - i), d = lanes(y + i, n - i), g = lanes(gate + i, n - i);
    const auto [phi, density] = normal(v);
    put(d * g * (phi + v * density), to_x + i, n - i);
    put(lanes(to_gate + i, n - i) + d * v * phi, to_gate + i, n - i);
    if (out) put(v * phi * g, out + i, n - i);
  }
}

// out[t, a, s] = gelu(logits[t, a, s]) * scores[t, s]
Tensor gated_gelu(const Tensor& logits, const Tensor& scores) {
  const int64_t heads = logits.size(1), slots = logits.size(2);
  Tensor result = at::empty_like(logits);
  const float *x = floats(logits), *gate = floats(scores);
  float* out = filled(result);
  at::parallel_for(0, logits.size(0) * heads, 64, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) weigh(x + i * slots, gate + i / heads * slots, slots, out + i * slots);
  });
  return result;
}

// Gradients of gated_gelu with respect to logits and scores.
std::tuple<Tensor, Tensor> gated_gelu_backward(const Tensor& gradient, const Tensor& logits, const Tensor& scores) {
  const int64_t heads = logits.size(1), slots = logits.size(2);
  Tensor to_logits = at::empty_like(logits), to_scores = at::zeros_like(scores);
  const float *y = floats(gradient), *x = floats(logits), *gate = floats(scores);
  float *out = filled(to_logits), *sums = filled(to_scores);
  at::parallel_for(0, logits.size(0), 8, [&](int64_t first, int64_t last) {
    for (int64_t i = first * heads; i < last * heads; i++) {
      const int64_t t = i / heads * slots;
      weigh_backward(y + i * slots, x + i * slots, gate + t, slots, out + i * slots, sums + t);
    }
  });
  return {to_logits, to_scores};
}

// gather_dot, gated_gelu and gather_sum in one pass over tokens: logits and read weights never leave the cache.
Tensor gelu_read(const Tensor& vectors, const Tensor& scores, const Tensor& table, int64_t key_column,
                 int64_t value_column, int64_t slices, const Tensor& rows, at::ScalarType type) {
  const int64_t tokens = vectors.size(0), heads = vectors.size(1), width = vectors.size(2), slots = rows.size(1);
  const Slices keys(heads, width, key_column, slices, table.size(1)), values(heads, width, value_column, slices, table.size(1));
  Tensor result = at::empty(vectors.sizes(), table.options().dtype(type));
  const auto in = Vectors::contiguous(vectors);
  const Vectors out(result);
  const float* gate = floats(scores);
  const int64_t *row = numbers(rows), size = heads * width;
  const int64_t first_column = std::min(key_column, value_column);
  const int64_t n_columns = std::max(key_column, value_column) + keys.columns() - first_column;
  at::parallel_for(0, tokens, 16, [&](int64_t first, int64_t last) {
    TokenSlots token(table, slots);
    std::vector<float> buffer(size), weights(heads * token.wide), sums(size);
    std::vector<float> gates(token.wide);  // padded with zeros: whole registers are faster
    for (int64_t t = first; t < last; t++) {
      token.open(row + t * slots, row + std::min(t + 1, tokens - 1) * slots, first_column, n_columns);
      token.transpose_columns(keys);
      token.dot(in.load(t * size, size, buffer.data()), keys, weights.data());
      std::copy_n(gate + t * slots, slots, gates.data());
      for (int64_t a = 0; a < heads; a++) {
        float* w = weights.data() + a * token.wide;
        weigh(w, gates.data(), token.wide, w);
      }
      token.sum(weights.data(), token.wide, values, sums.data());
      out.store(t * size, size, sums.data());
    }
  });
  return result;
}

// Gradients of gelu_read with respect to vectors and scores; the table's is added to table_gradient, if there is one.
//
// Chunk by chunk: the read weights of its tokens and their gradients are made anew, then used to add to the table's.
std::tuple<Tensor, Tensor> gelu_read_backward(const Tensor& gradient, const Tensor& vectors, const Tensor& scores,
                                              const Tensor& table, int64_t key_column, int64_t value_column,
                                              int64_t slices, const Tensor& rows, std::optional<Tensor> table_gradient,
                                              const std::optional<Tensor>& touched) {
  constexpr int64_t CHUNK = 128;
  const int64_t tokens = vectors.size(0), heads = vectors.size(1), width = vectors.size(2), slots = rows.size(1);
  const Slices keys(heads, width, key_column, slices, table.size(1)), values(heads, width, value_column, slices, table.size(1));
  Tensor to_vectors = at::empty_like(vectors), to_scores = at::zeros_like(scores);
  const auto in = Vectors::contiguous(vectors), given = Vectors::contiguous(gradient);
  const Vectors out(to_vectors);
  const float* gate = floats(scores);
  float* gate_sums = filled(to_scores);
  const int64_t *row = numbers(rows), size = heads * width, wide = padded(slots);
  const int64_t first_column = std::min(key_column, value_column);
  const int64_t n_columns = std::max(key_column, value_column) + keys.columns() - first_column;
  std::vector<float> weights(CHUNK * heads * wide), to_logits(CHUNK * heads * wide);
  for (int64_t start = 0; start < tokens; start += CHUNK) {
    const int64_t stop = std::min(start + CHUNK, tokens);
    at::parallel_for(start, stop, 8, [&](int64_t first, int64_t last) {
      TokenSlots token(table, slots);
      std::vector<float> v_buffer(size), d_buffer(size), logits(heads * wide), to_weights(heads * wide), sums(size);
      std::vector<float> gates(wide), to_gates(wide);  // padded with zeros, as above
      for (int64_t t = first; t < last; t++) {
        token.open(row + t * slots, row + std::min(t + 1, tokens - 1) * slots, first_column, n_columns);
        token.transpose_columns(keys);
        if (value_column != key_column) token.transpose_columns(values);
        in.prefetch(std::min(t + 1, tokens - 1) * size, size);
        given.prefetch(std::min(t + 1, tokens - 1) * size, size);
        token.dot(in.load(t * size, size, v_buffer.data()), keys, logits.data());
        token.dot(given.load(t * size, size, d_buffer.data()), values, to_weights.data());
        std::copy_n(gate + t * slots, slots, gates.data());
        std::fill(to_gates.begin(), to_gates.end(), 0.0f);
        for (int64_t a = 0; a < heads; a++) {
          const int64_t place = ((t - start) * heads + a) * wide;
          weigh_backward(to_weights.data() + a * wide, logits.data() + a * wide, gates.data(), wide,
                         to_logits.data() + place, to_gates.data(), weights.data() + place);
        }
        std::copy_n(to_gates.data(), slots, gate_sums + t * slots);
        token.sum(to_logits.data() + (t - start) * heads * wide, wide, keys, sums.data());
        out.store(t * size, size, sums.data());
      }
    });
    if (table_gradient)
      Sums(*table_gradient, touched)
          .add({Term{in, to_logits.data(), wide, keys}, Term{given, weights.data(), wide, values}}, row, slots, start, stop);
  }
  return {to_vectors, to_scores};
}

// Rows of a table taken out: a copy of them, and zeros left in their place.
Tensor take_rows(Tensor& table, const Tensor& rows) {
  const int64_t n = rows.size(0), width = table.size(1);
  Tensor values = at::empty({n, width}, table.options());
  float *from = filled(table), *to = filled(values);
  const int64_t* row = numbers(rows);
  at::parallel_for(0, n, 64, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      float* taken = from + row[i] * width;
      std::memcpy(to + i * width, taken, width * sizeof(float));
      std::memset(taken, 0, width * sizeof(float));
    }
  });
  return values;
}

// One Adam step (arXiv 1412.6980) on a row; lr = rate / (1 - beta1^step), scale = 1 / (1 - beta2^step).
struct Adam {
  float b1, b2, lr, scale, eps;

  void move(const float* __restrict__ g, float* __restrict__ w, float* __restrict__ m, float* __restrict__ v,
            int64_t width) const {
#pragma omp simd
    for (int64_t d = 0; d < width; d++) {
      m[d] = b1 * m[d] + (1 - b1) * g[d];
      v[d] = b2 * v[d] + (1 - b2) * g[d] * g[d];
      w[d] -= lr * m[d] / (std::sqrt(v[d] * scale) + eps);
    }
  }
};

// Scatters numbers over 32 bits, one to one; the constants are those of C. Wellons' "lowbias32".
inline uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352d;
  x = (x ^ (x >> 15)) * 0x846ca68b;
  return x ^ (x >> 16);
}

// The bfloat16 below or above a number, as 16 random bits have it: on average the number itself.
inline uint16_t by_chance(float number, uint32_t chance) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return (bits + chance) >> 16;
}

// Writes a row of weights and its moments in bfloat16. Rounding to the nearest would lose every update of less than half
// a last place (arXiv 2010.06192). Chance is a hash of step, row and column: neither threads nor resuming change it.
void store_by_chance(const std::vector<float>* rows, const Tensor* tables, uint32_t step, int64_t row) {
  const int64_t width = tables[0].size(1);
  const float *w = rows[0].data(), *m = rows[1].data(), *v = rows[2].data();
  uint16_t* to[3];
  for (int i = 0; i < 3; i++) to[i] = static_cast<uint16_t*>(tables[i].data_ptr()) + row * width;
  uint16_t *__restrict__ w_bits = to[0], *__restrict__ m_bits = to[1], *__restrict__ v_bits = to[2];
  const uint32_t key = mixed(mixed(step) + static_cast<uint32_t>(row));
#pragma omp simd
  for (int64_t d = 0; d < width; d++) {
    const uint32_t one = mixed(key + static_cast<uint32_t>(d)), other = mixed(one);
    w_bits[d] = by_chance(w[d], one & 0xffff);
    m_bits[d] = by_chance(m[d], one >> 16);
    v_bits[d] = by_chance(v[d], other & 0xffff);
  }
}

// One Adam step on some rows, in one pass; step, the number of this one, is what the rounding of bfloat16 depends on.
void adam_rows(Tensor& weight, Tensor& mean, Tensor& square, const Tensor& rows, const Tensor& gradient, int64_t step,
               double beta1, double beta2, double rate, double correction, double epsilon) {
  const int64_t width = weight.size(1);
  const Adam adam{float(beta1), float(beta2), float(rate), float(correction), float(epsilon)};
  const Tensor tables[] = {weight, mean, square};
  const Vectors table[] = {Vectors::contiguous(weight), Vectors::contiguous(mean), Vectors::contiguous(square)};
  TORCH_CHECK(table[0].half == table[1].half && table[0].half == table[2].half, "moments are of the type of weights");
  const bool half = table[0].half;
  const float* gradients = floats(gradient);
  const int64_t* row = numbers(rows);
  at::parallel_for(0, rows.size(0), 64, [&](int64_t first, int64_t last) {
    std::vector<float> copies[3];
    for (auto& copy : copies) copy.resize(half ? width : 0);
    for (int64_t i = first; i < last; i++) {
      float* own[3];
      for (int j = 0; j < 3; j++) own[j] = const_cast<float*>(table[j].load(row[i] * width, width, copies[j].data()));
      adam.move(gradients + i * width, own[0], own[1], own[2], width);
      if (half) store_by_chance(copies, tables, step, row[i]);
    }
  });
}

// How many vectors are read and written together: few narrow ones would cost more for the start of a loop than for it.
inline int64_t many(int64_t width) { return std::max<int64_t>(1, 1024 / width); }

// Root mean square norm over the last axis: vectors / rms * gain, and 1 / rms.
std::tuple<Tensor, Tensor> rms_norm(const Tensor& vectors, const Tensor& gain, double epsilon, at::ScalarType type) {
  const int64_t width = gain.size(0), n = vectors.numel() / width, group = many(width);
  Tensor result = at::empty(vectors.sizes(), gain.options().dtype(type)), inverse = at::empty({n}, gain.options());
  const auto in = Vectors::contiguous(vectors);
  const Vectors out(result);
  const float *g = floats(gain), eps = epsilon;
  float* scales = filled(inverse);
  at::parallel_for(0, (n + group - 1) / group, 1, [&](int64_t first, int64_t last) {
    std::vector<float> buffer(group * width), normed(group * width);
    for (int64_t start = first * group; start < std::min(last * group, n); start += group) {
      const int64_t count = std::min(group, n - start);
      const float* v = in.load(start * width, count * width, buffer.data());
      for (int64_t i = 0; i < count; i++) {
        const float* one = v + i * width;
        const float scale = 1 / std::sqrt(inner(one, one, width) / width + eps);
        scales[start + i] = scale;
#pragma omp simd
        for (int64_t d = 0; d < width; d++) normed[i * width + d] = one[d] * scale * g[d];
      }
      out.store(start * width, count * width, normed.data());
    }
  });
  return {result, inverse};
}

// Gradients of rms_norm with respect to vectors, in their type, and gain.
std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& gradient, const Tensor& vectors, const Tensor& gain,
                                             const Tensor& inverse) {
  const int64_t width = gain.size(0), n = vectors.numel() / width, group = many(width);
  const int64_t block = std::max<int64_t>(256, group);  // gain's gradient is summed by block: threads do not change it
  const int64_t blocks = (n + block - 1) / block;
  Tensor to_vectors = at::empty_like(vectors), partial = at::zeros({blocks, width}, gain.options());
  const auto in = Vectors::contiguous(vectors), given = Vectors::contiguous(gradient);
  const Vectors out(to_vectors);
  const float *g = floats(gain), *scales = floats(inverse);
  float* sums = filled(partial);
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    std::vector<float> v_buffer(group * width), d_buffer(group * width), results(group * width);
    for (int64_t b = first; b < last; b++) {
      float* __restrict__ sum = sums + b * width;
      const int64_t stop = std::min((b + 1) * block, n);
      for (int64_t start = b * block; start < stop; start += group) {
        const int64_t count = std::min(group, stop - start);
        const float* v = in.load(start * width, count * width, v_buffer.data());
        const float* y = given.load(start * width, count * width, d_buffer.data());
        for (int64_t i = 0; i < count; i++, v += width, y += width) {
          float* __restrict__ result = results.data() + i * width;
          const float scale = scales[start + i];
#pragma omp simd
          for (int64_t d = 0; d < width; d++) result[d] = y[d] * g[d];
          const float pull = inner(result, v, width) * scale * scale / width;
#pragma omp simd
          for (int64_t d = 0; d < width; d++) {
            sum[d] += y[d] * v[d] * scale;
            result[d] = (result[d] - v[d] * pull) * scale;
          }
        }
        out.store(start * width, count * width, results.data());
      }
    }
  });
  return {to_vectors, partial.sum(0)};
}

// A score and a number as one integer whose order is that of the scores, and of equal scores the lower number's first.
inline int64_t key(float score, int64_t number) {
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

// Keys, and the best of them.
struct Candidates {
  static constexpr int64_t BLOCK = 16, MOST = 16 * BLOCK;
  std::vector<int64_t> keys;
  int64_t count = 0;

  explicit Candidates(int64_t most) : keys(most + BLOCK) {}

  void add(int64_t key, bool really = true) {  // without a branch, which could not be predicted
    keys[count] = key;
    count += really;
  }

  // Writes the best n, best first; out has room for n + 1. Of few, by counting what is better than each: no branches.
  void best(int64_t n, int64_t* out) {
    if (count > MOST) {
      std::partial_sort(keys.begin(), keys.begin() + n, keys.begin() + count, std::greater<>());
      std::copy(keys.begin(), keys.begin() + n, out);
      return;
    }
    const int64_t padded = (count + BLOCK - 1) / BLOCK * BLOCK;
    std::fill(keys.begin() + count, keys.begin() + padded, std::numeric_limits<int64_t>::min());
    int64_t rank[MOST];
    std::fill(rank, rank + padded, 0);
    for (int64_t j = 0; j < count; j++) {
      const int64_t one = keys[j];
#pragma omp simd
      for (int64_t i = 0; i < padded; i++) rank[i] += one > keys[i] ? 1 : 0;
    }
    for (int64_t i = 0; i < count; i++) out[std::min(rank[i], n)] = keys[i];
  }
};

// Collects what the best n of some scores are among: of GROUPS interleaved groups, those with the n largest maxima.
template <int64_t GROUPS>
void collect(const float* scores, int64_t side, int64_t n, Candidates& found) {
  found.count = 0;
  if (n > GROUPS || side < 2 * GROUPS || side % GROUPS) {
    for (int64_t i = 0; i < side; i++) found.add(key(scores[i], i));
    return;
  }
  constexpr float infinity = std::numeric_limits<float>::infinity();
  float top[GROUPS], bound = infinity;
  std::copy(scores, scores + GROUPS, top);
  for (int64_t i = GROUPS; i < side; i += GROUPS)
    for (int64_t l = 0; l < GROUPS; l++) top[l] = scores[i + l] > top[l] ? scores[i + l] : top[l];
  int32_t above[GROUPS] = {};
  for (int64_t m = 0; m < GROUPS; m++)
#pragma omp simd
    for (int64_t l = 0; l < GROUPS; l++) above[l] += top[m] > top[l] ? 1 : 0;
#pragma omp simd reduction(min : bound)
  for (int64_t l = 0; l < GROUPS; l++) {
    const float largest = top[l];
    bound = std::min(bound, above[l] < n ? largest : infinity);
  }
  uint64_t reach = 0;  // a bit for each group whose maximum is high enough
#pragma omp simd reduction(| : reach)
  for (int64_t l = 0; l < GROUPS; l++) reach |= static_cast<uint64_t>(top[l] >= bound ? 1 : 0) << l;
  for (int64_t first = 0; first < side; first += 32 * GROUPS) {  // a bit for each score of a group that is high enough
    const int64_t rounds = std::min<int64_t>(32, (side - first) / GROUPS);
    uint32_t high[GROUPS] = {};
    for (int64_t r = 0; r < rounds; r++)
#pragma omp simd
      for (int64_t l = 0; l < GROUPS; l++)
        high[l] |= static_cast<uint32_t>(scores[first + r * GROUPS + l] >= bound ? 1 : 0) << r;
    for (uint64_t groups = reach; groups; groups &= groups - 1) {
      const int64_t l = __builtin_ctzll(groups);
      for (uint32_t bits = high[l]; bits; bits &= bits - 1) {
        const int64_t i = first + __builtin_ctz(bits) * GROUPS + l;
        found.add(key(scores[i], i));
      }
    }
  }
}

// The best sums of one score of each half, exactly, and the margin of the last above the next (NaN if there is none).
//
// The sum of the i-th best of one half and the j-th best of the other is beaten by i * j - 1 others, so few of them can be
// among the k + 1 best. Ties go to the better first half, and within a half to the lower number. halves
// [token, head, 2, side] may have any strides but the last, which is 1; bias [head, 2, side] is added to them.
std::tuple<Tensor, Tensor> product_top(const Tensor& halves, const std::optional<Tensor>& bias, int64_t selected) {
  const int64_t tokens = halves.size(0), heads = halves.size(1), side = halves.size(3);
  TORCH_CHECK(halves.stride(3) == 1, "the last axis must be contiguous");
  const int64_t n = std::min(selected + 1, side), wanted = std::min(selected + 1, n * n);
  Tensor indices = at::empty({tokens, heads, selected}, halves.options().dtype(at::kLong));
  Tensor margins = at::empty({tokens, heads}, halves.options().dtype(at::kFloat));
  const Vectors in(halves);
  const Tensor none = at::zeros({bias ? 0 : side}, halves.options().dtype(at::kFloat));
  const float* added = floats(bias ? *bias : none);
  int64_t* chosen = indices.data_ptr<int64_t>();
  float* margin = filled(margins);
  std::vector<std::pair<int32_t, int32_t>> pairs;
  for (int32_t i = 0; i < n; i++)
    for (int32_t j = 0; j < n && (i + 1) * (j + 1) <= wanted; j++) pairs.emplace_back(i, j);
  const auto n_pairs = static_cast<int64_t>(pairs.size());
  at::parallel_for(0, tokens, 16, [&](int64_t first, int64_t last) {
    std::vector<float> buffer(side), scores(side);
    std::vector<int64_t> rows(n + 1), columns(n + 1), best(wanted + 1);
    float* clean = scores.data();
    Candidates found(side), sums(n_pairs);
    for (int64_t t = first; t < last; t++) {
      for (int64_t h = 0; h < heads; h++) {
        for (int64_t p = 0; p < 2; p++) {
          const int64_t start = t * halves.stride(0) + h * halves.stride(1) + p * halves.stride(2);
          const float* raw = in.load(start, side, buffer.data());
          const float* more = bias ? added + (h * 2 + p) * side : added;
          // NaN, of a model that diverged, would defy any order.
#pragma omp simd
          for (int64_t i = 0; i < side; i++) {
            const float score = raw[i] + more[i];
            clean[i] = score == score ? score : -std::numeric_limits<float>::infinity();
          }
          (n <= 24 ? collect<32> : collect<64>)(clean, side, n, found);
          found.best(n, (p == 0 ? rows : columns).data());
        }
        sums.count = 0;
        for (int64_t i = 0; i < n_pairs; i++)
          sums.add(key(score_of(rows[pairs[i].first]) + score_of(columns[pairs[i].second]), i));
        sums.best(wanted, best.data());
        const int64_t place = t * heads + h;
        for (int64_t i = 0; i < selected; i++) {
          const auto [row, column] = pairs[number_of(best[i])];
          chosen[place * selected + i] = number_of(rows[row]) * side + number_of(columns[column]);
        }
        margin[place] = wanted > selected ? score_of(best[selected - 1]) - score_of(best[selected])
                                          : std::numeric_limits<float>::quiet_NaN();
      }
    }
  });
  return {indices, margins};
}

// What both directions of product_scores see: halves [token, head, 2, width], keys [head, 2, side, width], indices
// [token, head, k] of entries, whose half keys are the row and the column of their square.
struct ChosenKeys {
  Vectors halves;
  const float* keys;
  const int64_t* index;
  int64_t tokens, heads, side, width, selected;

  ChosenKeys(const Tensor& halves, const Tensor& keys, const Tensor& indices)
      : halves(Vectors::contiguous(halves)),
        keys(floats(keys)),
        index(numbers(indices)),
        tokens(indices.size(0)),
        heads(indices.size(1)),
        side(keys.size(2)),
        width(keys.size(3)),
        selected(indices.size(2)) {}

  // Number of the half key of entry i, among those of its head and half.
  int64_t row(int64_t i, int64_t half) const { return half == 0 ? index[i] / side : index[i] % side; }
};

// scores[t, h, i] = sum over both halves of halves[t, h, p] . the half key of entry indices[t, h, i]
Tensor product_scores(const Tensor& halves, const Tensor& keys, const Tensor& indices) {
  const ChosenKeys chosen(halves, keys, indices);
  Tensor result = at::empty(indices.sizes(), keys.options());
  float* out = filled(result);
  const int64_t width = chosen.width, square = chosen.side * width, n = chosen.tokens * chosen.heads;
  at::parallel_for(0, n, 64, [&](int64_t first, int64_t last) {
    std::vector<float> buffer(2 * width);
    for (int64_t one = first; one < last; one++) {
      const float* query = chosen.halves.load(one * 2 * width, 2 * width, buffer.data());
      const float* table = chosen.keys + one % chosen.heads * 2 * square;
      for (int64_t i = one * chosen.selected; i < (one + 1) * chosen.selected; i++)
        out[i] = inner(query, table + chosen.row(i, 0) * width, width) +
                 inner(query + width, table + square + chosen.row(i, 1) * width, width);
    }
  });
  return result;
}

// Gradients of product_scores with respect to halves and keys. A thread has the keys of some heads and halves to itself.
std::tuple<Tensor, Tensor> product_scores_backward(const Tensor& gradient, const Tensor& halves, const Tensor& keys,
                                                   const Tensor& indices) {
  const ChosenKeys chosen(halves, keys, indices);
  Tensor to_halves = at::empty_like(halves), to_keys = at::zeros_like(keys);
  const Vectors out(to_halves);
  const float* given = floats(gradient);
  float* sums = filled(to_keys);
  const int64_t width = chosen.width, square = chosen.side * width;
  at::parallel_for(0, 2 * chosen.heads, 1, [&](int64_t first, int64_t last) {
    std::vector<float> buffer(width), sum(width);
    for (int64_t part = first; part < last; part++) {
      const float* table = chosen.keys + part * square;
      float* to = sums + part * square;
      for (int64_t t = 0; t < chosen.tokens; t++) {
        const int64_t place = (t * 2 * chosen.heads + part) * width;
        const float* query = chosen.halves.load(place, width, buffer.data());
        std::fill(sum.begin(), sum.end(), 0);
        const int64_t start = (t * chosen.heads + part / 2) * chosen.selected;
        for (int64_t i = start; i < start + chosen.selected; i++) {
          const int64_t row = chosen.row(i, part % 2) * width;
          float *__restrict__ all = sum.data(), *__restrict__ own = to + row;
          const float *seen = table + row, g = given[i];
#pragma omp simd
          for (int64_t d = 0; d < width; d++) {
            all[d] += g * seen[d];
            own[d] += g * query[d];
          }
        }
        out.store(place, width, sum.data());
      }
    }
  });
  return {to_halves, to_keys};
}

}  // namespace

TORCH_LIBRARY(memscope, library) {
  library.def("gather_dot(Tensor vectors, Tensor table, int column, int slices, Tensor rows) -> Tensor");
  library.def(
      "gather_sum(Tensor weights, Tensor table, int column, int width, int slices, Tensor rows, ScalarType dtype) -> "
      "Tensor");
  library.def(
      "scatter_sum(Tensor(a!) gradient, Tensor(b!)? touched, Tensor rows, int slices, Tensor vectors, Tensor weights, int "
      "column, Tensor? vectors_2, Tensor? weights_2, int column_2) -> ()");
  library.def("take_rows(Tensor(a!) table, Tensor rows) -> Tensor");
  library.def(
      "adam_rows(Tensor(a!) weight, Tensor(b!) mean, Tensor(c!) square, Tensor rows, Tensor gradient, int step, "
      "float beta1, float beta2, float rate, float correction, float epsilon) -> ()");
  library.def("rms_norm(Tensor vectors, Tensor gain, float epsilon, ScalarType dtype) -> (Tensor, Tensor)");
  library.def("rms_norm_backward(Tensor gradient, Tensor vectors, Tensor gain, Tensor inverse) -> (Tensor, Tensor)");
  library.def(
      "gelu_read(Tensor vectors, Tensor scores, Tensor table, int key_column, int value_column, int slices, Tensor rows, "
      "ScalarType dtype) -> Tensor");
  library.def(
      "gelu_read_backward(Tensor gradient, Tensor vectors, Tensor scores, Tensor table, int key_column, int "
      "value_column, int slices, Tensor rows, Tensor(a!)? table_gradient, Tensor(b!)? touched) -> (Tensor, Tensor)");
  library.def("gated_gelu(Tensor logits, Tensor scores) -> Tensor");
  library.def("gated_gelu_backward(Tensor gradient, Tensor logits, Tensor scores) -> (Tensor, Tensor)");
  library.def("product_top(Tensor halves, Tensor? bias, int selected) -> (Tensor, Tensor)");
  library.def("product_scores(Tensor halves, Tensor keys, Tensor indices) -> Tensor");
  library.def(
      "product_scores_backward(Tensor gradient, Tensor halves, Tensor keys, Tensor indices) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(memscope, CPU, library) {
  library.impl("gather_dot", &gather_dot);
  library.impl("gather_sum", &gather_sum);
  library.impl("scatter_sum", &scatter_sum);
  library.impl("take_rows", &take_rows);
  library.impl("adam_rows", &adam_rows);
  library.impl("rms_norm", &rms_norm);
  library.impl("rms_norm_backward", &rms_norm_backward);
  library.impl("gelu_read", &gelu_read);
  library.impl("gelu_read_backward", &gelu_read_backward);
  library.impl("gated_gelu", &gated_gelu);
  library.impl("gated_gelu_backward", &gated_gelu_backward);
  library.impl("product_top", &product_top);
  library.impl("product_scores", &product_scores);
  library.impl("product_scores_backward", &product_scores_backward);
}
