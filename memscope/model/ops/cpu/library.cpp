// All loops as one translation unit, which native.py compiles: reading PyTorch's headers takes the compiler longer than
// the loops of a file, so it reads them once. Each file registers its operators in torch.ops.memscope.

#include "adam_rows.cpp"
#include "gather.cpp"
#include "gelu_read.cpp"
#include "product_keys.cpp"
#include "rms_norm.cpp"
#include "scatter.cpp"
#include "softmax_read.cpp"
