// One Adam step on the selected rows of a table, in float32 or in bfloat16 with stochastic rounding.
//
// The reference is adam_rows in memscope/model/ops/adam_rows.py, which calls this: its plain PyTorch path updates the
// same rows, and its rounding draws the same random bits.

#include "lanes.h"

namespace {

// Adam (arXiv 1412.6980) on a row; rate includes 1 / (1 - beta1^step), correction is 1 / (1 - beta2^step).
struct Adam {
  float beta1, beta2, rate, correction, epsilon;

  void update(const float* __restrict__ gradient, float* __restrict__ weight, float* __restrict__ mean,
              float* __restrict__ square, int64_t width) const {
#pragma omp simd
    for (int64_t d = 0; d < width; d++) {
      mean[d] = beta1 * mean[d] + (1 - beta1) * gradient[d];
      square[d] = beta2 * square[d] + (1 - beta2) * gradient[d] * gradient[d];
      weight[d] -= rate * mean[d] / (std::sqrt(square[d] * correction) + epsilon);
    }
  }
};

// A hash of 32 bits, one to one; the constants are those of C. Wellons' "lowbias32".
inline uint32_t hash_bits(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352d;
  x = (x ^ (x >> 15)) * 0x846ca68b;
  return x ^ (x >> 16);
}

// The bfloat16 below or above a number, chosen by 16 random bits; its mean is the number itself.
inline uint16_t round_stochastically(float number, uint32_t random_bits) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return (bits + random_bits) >> 16;
}

// Writes a row of weights and its moments in bfloat16. Rounding to nearest would lose every update of less than half a
// last place (arXiv 2010.06192). The random bits are a hash of step, row and column, so neither the number of threads
// nor a resumed run changes them.
void store_rounded_row(const std::vector<float>* values, const Tensor* tables, uint32_t step, int64_t row) {
  const int64_t width = tables[0].size(1);
  const float *weight = values[0].data(), *mean = values[1].data(), *square = values[2].data();
  uint16_t* to[3];
  for (int i = 0; i < 3; i++) to[i] = static_cast<uint16_t*>(tables[i].data_ptr()) + row * width;
  uint16_t *__restrict__ weight_bits = to[0], *__restrict__ mean_bits = to[1], *__restrict__ square_bits = to[2];
  const uint32_t row_hash = hash_bits(hash_bits(step) + static_cast<uint32_t>(row));
#pragma omp simd
  for (int64_t d = 0; d < width; d++) {
    const uint32_t first_hash = hash_bits(row_hash + static_cast<uint32_t>(d)), second_hash = hash_bits(first_hash);
    weight_bits[d] = round_stochastically(weight[d], first_hash & 0xffff);
    mean_bits[d] = round_stochastically(mean[d], first_hash >> 16);
    square_bits[d] = round_stochastically(square[d], second_hash & 0xffff);
  }
}

// One Adam step on some rows of weight, mean and square, in one pass; gradient has a row for each of them. step is the
// number of this step, which the rounding of bfloat16 depends on.
void adam_rows(Tensor& weight, Tensor& mean, Tensor& square, const Tensor& rows, const Tensor& gradient, int64_t step,
               double beta1, double beta2, double rate, double correction, double epsilon) {
  const int64_t width = weight.size(1);
  const Adam adam{float(beta1), float(beta2), float(rate), float(correction), float(epsilon)};
  const Tensor tables[] = {weight, mean, square};
  const Vectors vectors[] = {Vectors::contiguous(weight), Vectors::contiguous(mean), Vectors::contiguous(square)};
  const bool is_bfloat16 = vectors[0].is_bfloat16;
  TORCH_CHECK(is_bfloat16 == vectors[1].is_bfloat16 && is_bfloat16 == vectors[2].is_bfloat16,
              "moments are of the type of weights");
  const float* gradients = float_data(gradient);
  const int64_t* row = int_data(rows);
  at::parallel_for(0, rows.size(0), 64, [&](int64_t first, int64_t last) {
    std::vector<float> copies[3];
    for (auto& copy : copies) copy.resize(is_bfloat16 ? width : 0);
    for (int64_t i = first; i < last; i++) {
      float* values[3];
      for (int j = 0; j < 3; j++)
        values[j] = const_cast<float*>(vectors[j].load(row[i] * width, width, copies[j].data()));
      adam.update(gradients + i * width, values[0], values[1], values[2], width);
      if (is_bfloat16) store_rounded_row(copies, tables, step, row[i]);
    }
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(memscope, library) {
  library.def(
      "adam_rows(Tensor(a!) weight, Tensor(b!) mean, Tensor(c!) square, Tensor rows, Tensor gradient, int step, "
      "float beta1, float beta2, float rate, float correction, float epsilon) -> ()");
}

TORCH_LIBRARY_IMPL(memscope, CPU, library) { library.impl("adam_rows", &adam_rows); }
