// Root mean square norm over the last axis, one pass forward and one backward.
//
// The reference is torch.nn.RMSNorm; RMSNorm in memscope/model/ops/fused.py, which calls this, falls back to it.

#include "lanes.h"

namespace {

// How many vectors are read and written together: to start a loop for each narrow one would cost more than the loop.
inline int64_t group_size(int64_t width) { return std::max<int64_t>(1, 1024 / width); }

// vectors / rms * gain, and 1 / rms.
std::tuple<Tensor, Tensor> rms_norm(const Tensor& vectors, const Tensor& gain, double epsilon, at::ScalarType dtype) {
  const int64_t width = gain.size(0), n = vectors.numel() / width, group = group_size(width);
  Tensor result = at::empty(vectors.sizes(), gain.options().dtype(dtype)), inverse = at::empty({n}, gain.options());
  const auto in = Vectors::contiguous(vectors);
  const Vectors out(result);
  const float *g = float_data(gain), eps = epsilon;
  float* scales = mutable_float_data(inverse);
  at::parallel_for(0, (n + group - 1) / group, 1, [&](int64_t first, int64_t last) {
    std::vector<float> buffer(group * width), normed(group * width);
    for (int64_t start = first * group; start < std::min(last * group, n); start += group) {
      const int64_t count = std::min(group, n - start);
      const float* v = in.load(start * width, count * width, buffer.data());
      for (int64_t i = 0; i < count; i++) {
        const float* vector = v + i * width;
        const float scale = 1 / std::sqrt(dot_product(vector, vector, width) / width + eps);
        scales[start + i] = scale;
#pragma omp simd
        for (int64_t d = 0; d < width; d++) normed[i * width + d] = vector[d] * scale * g[d];
      }
      out.store(start * width, count * width, normed.data());
    }
  });
  return {result, inverse};
}

// Gradients of rms_norm with respect to vectors, in their type, and gain.
std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& gradient, const Tensor& vectors, const Tensor& gain,
                                             const Tensor& inverse) {
  const int64_t width = gain.size(0), n = vectors.numel() / width, group = group_size(width);
  // The gradient of gain is summed block by block, so that it does not depend on the number of threads.
  const int64_t block = std::max<int64_t>(256, group), n_blocks = (n + block - 1) / block;
  Tensor to_vectors = at::empty_like(vectors), block_sums = at::zeros({n_blocks, width}, gain.options());
  const auto in = Vectors::contiguous(vectors), given = Vectors::contiguous(gradient);
  const Vectors out(to_vectors);
  const float *g = float_data(gain), *scales = float_data(inverse);
  float* sums = mutable_float_data(block_sums);
  at::parallel_for(0, n_blocks, 1, [&](int64_t first, int64_t last) {
    std::vector<float> v_buffer(group * width), y_buffer(group * width), results(group * width);
    for (int64_t b = first; b < last; b++) {
      float* __restrict__ sum = sums + b * width;
      const int64_t stop = std::min((b + 1) * block, n);
      for (int64_t start = b * block; start < stop; start += group) {
        const int64_t count = std::min(group, stop - start);
        const float* v = in.load(start * width, count * width, v_buffer.data());
        const float* y = given.load(start * width, count * width, y_buffer.data());
        for (int64_t i = 0; i < count; i++, v += width, y += width) {
          float* __restrict__ result = results.data() + i * width;
          const float scale = scales[start + i];
#pragma omp simd
          for (int64_t d = 0; d < width; d++) result[d] = y[d] * g[d];
          const float along = dot_product(result, v, width) * scale * scale / width;  // the part along the vector
#pragma omp simd
          for (int64_t d = 0; d < width; d++) {
            sum[d] += y[d] * v[d] * scale;
            result[d] = (result[d] - v[d] * along) * scale;
          }
        }
        out.store(start * width, count * width, results.data());
      }
    }
  });
  return {to_vectors, block_sums.sum(0)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(memscope, library) {
  library.def("rms_norm(Tensor vectors, Tensor gain, float epsilon, ScalarType dtype) -> (Tensor, Tensor)");
  library.def("rms_norm_backward(Tensor gradient, Tensor vectors, Tensor gain, Tensor inverse) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(memscope, CPU, library) {
  library.impl("rms_norm", &rms_norm);
  library.impl("rms_norm_backward", &rms_norm_backward);
}
