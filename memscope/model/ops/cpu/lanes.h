// What all loops share: tables in float32 or bfloat16 read as float32, and sixteen floats as one vector register.
//
// Tensors are contiguous unless a comment says otherwise. "Vectors" and tables of entries are float32 or bfloat16;
// everything else is float32 or int64. Work is split over PyTorch's threads (at::parallel_for).

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

using at::Tensor;

namespace {

// Vectors of either type, read and written as float32.
struct Vectors {
  char* data;
  bool is_bfloat16;

  explicit Vectors(const Tensor& tensor)
      : data(static_cast<char*>(tensor.data_ptr())), is_bfloat16(tensor.scalar_type() == at::kBFloat16) {
    TORCH_CHECK(is_bfloat16 || tensor.scalar_type() == at::kFloat, "vectors must be float32 or bfloat16");
  }

  static Vectors contiguous(const Tensor& tensor) {
    TORCH_CHECK(tensor.is_contiguous(), "vectors must be contiguous");
    return Vectors(tensor);
  }

  // n numbers from the given one on. float32 is read where it lies; bfloat16 is converted into the buffer.
  const float* load(int64_t first, int64_t n, float* buffer) const {
    if (!is_bfloat16) return reinterpret_cast<const float*>(data) + first;
    const auto* bits = reinterpret_cast<const uint16_t*>(data) + first;
    auto* out = reinterpret_cast<uint32_t*>(buffer);
    for (int64_t i = 0; i < n; i++) out[i] = static_cast<uint32_t>(bits[i]) << 16;
    return buffer;
  }

  void store(int64_t first, int64_t n, const float* values) const {
    if (!is_bfloat16) {
      std::memcpy(reinterpret_cast<float*>(data) + first, values, n * sizeof(float));
      return;
    }
    auto* bits = reinterpret_cast<uint16_t*>(data) + first;
    const auto* in = reinterpret_cast<const uint32_t*>(values);
    for (int64_t i = 0; i < n; i++) {  // round to nearest, ties to even; a NaN stays a NaN
      uint32_t rounded = (in[i] + 0x7fff + ((in[i] >> 16) & 1)) >> 16;
      bits[i] = (in[i] & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
    }
  }

  // Into the second-level cache, which can wait for more lines at once than the first.
  void prefetch(int64_t first, int64_t n) const {
    constexpr int64_t CACHE_LINE = 64;
    const int64_t size = is_bfloat16 ? sizeof(uint16_t) : sizeof(float);
    for (int64_t byte = 0; byte < n * size; byte += CACHE_LINE) __builtin_prefetch(data + first * size + byte, 0, 2);
  }
};

const float* float_data(const Tensor& tensor) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.is_contiguous(), "needs contiguous float32");
  return tensor.data_ptr<float>();
}

float* mutable_float_data(Tensor& tensor) { return const_cast<float*>(float_data(tensor)); }

const int64_t* int_data(const Tensor& tensor) {
  TORCH_CHECK(tensor.scalar_type() == at::kLong && tensor.is_contiguous(), "needs contiguous int64");
  return tensor.data_ptr<int64_t>();
}

// Sixteen floats as one vector register, or as several narrower ones where the processor has only those.
constexpr int64_t LANES = 16;
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t IntLanes __attribute__((vector_size(LANES * sizeof(int32_t))));

inline Lanes load_lanes(const float* from) {
  Lanes values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline void store_lanes(Lanes values, float* to) { std::memcpy(to, &values, sizeof values); }

// The first n floats of a register; the lanes after them are zero.
inline Lanes load_lanes(const float* from, int64_t n) {
  if (n >= LANES) return load_lanes(from);
  Lanes values = {};
  std::memcpy(&values, from, n * sizeof(float));
  return values;
}

inline void store_lanes(Lanes values, float* to, int64_t n) {
  if (n >= LANES) return store_lanes(values, to);  // else a copy of unknown length, which is slow
  std::memcpy(to, &values, n * sizeof(float));
}

inline int64_t padded_to_lanes(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

inline float sum_of(Lanes values) {
  float total = 0;
  for (int64_t l = 0; l < LANES; l++) total += values[l];
  return total;
}

// 2 to the power of numbers that are not positive; 2^-126 for all below -126.
inline Lanes power_of_two(Lanes exponent) {
  const Lanes bounded = exponent < -126.0f ? Lanes{} - 126.0f : exponent;
  const auto whole = __builtin_convertvector(bounded - 0.5f, IntLanes);
  const Lanes fraction = bounded - __builtin_convertvector(whole, Lanes);  // -0.5 to 0.5
  Lanes power = fraction * 1.525273380e-5f + 1.540353039e-4f;
  for (const float c : {1.333355815e-3f, 9.618129108e-3f, 5.550410866e-2f, 2.402265070e-1f, 6.931471806e-1f, 1.0f})
    power = power * fraction + c;
  const IntLanes scaled = reinterpret_cast<const IntLanes&>(power) + (whole << 23);
  return reinterpret_cast<const Lanes&>(scaled);
}

// Sum of a[i] * b[i].
inline float dot_product(const float* a, const float* b, int64_t n) {
  Lanes sums = {};
  int64_t d = 0;
  for (; d + LANES <= n; d += LANES) sums += load_lanes(a + d) * load_lanes(b + d);
  float total = sum_of(sums);
  for (; d < n; d++) total += a[d] * b[d];
  return total;
}

// One step of the transposition of a square of 16 rows: swaps the off-diagonal quarters of all squares of side
// 2 * half.
template <int half, int... lane>
inline void swap_quarters(Lanes* rows, std::integer_sequence<int, lane...>) {
  for (int i = 0; i < LANES; i++) {
    if (i & half) continue;
    const Lanes a = rows[i], b = rows[i + half];
    rows[i] = __builtin_shufflevector(a, b, (lane & half ? lane - half + static_cast<int>(LANES) : lane)...);
    rows[i + half] = __builtin_shufflevector(a, b, (lane & half ? lane + static_cast<int>(LANES) : lane + half)...);
  }
}

// Transposes a square of 16 rows in place.
inline void transpose(Lanes* rows) {
  constexpr auto all_lanes = std::make_integer_sequence<int, LANES>();
  swap_quarters<8>(rows, all_lanes);
  swap_quarters<4>(rows, all_lanes);
  swap_quarters<2>(rows, all_lanes);
  swap_quarters<1>(rows, all_lanes);
}

}  // namespace
