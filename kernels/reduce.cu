// Column sums, second stage.   out[c] += sum over slabs s of part[s * stride + c].
// Shapes     out (dim)   part (slabs, stride), f32.   Written by the first stages in norm.cu, qk_norm.cu and bias.cu.
// Launch     grid = ceil(dim / 32), block = (32, 32), 4 KB shared memory.
// Traffic    4 slabs dim bytes, from L2; small beside the first stage.
// Order      thread y adds slabs y, y + 32, ...; then y in order. No atomics.
// Predicted  latency alone: 16 loads a thread at 512 slabs, 8 at a time.
// Limits     slabs * stride < 2^31.
// Reference  tests/kernels.rs, through the ops that use it.   Measured: docs/results/2026-11-26-h100.md.
#include "common.cuh"

#ifdef STORAGE_F32
KERNEL(1024, reduce_slabs)(float* __restrict__ out, const float* __restrict__ part, int slabs, int dim, int stride) {
    SHARED(float, sums, 1024);
    const int c = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    if (c < dim) {
#pragma unroll 8
        for (int s = threadIdx.y; s < slabs; s += 32) sum += part[s * stride + c];
    }
    sums[threadIdx.y * 32 + threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < dim) {
        for (int y = 1; y < 32; ++y) sum += sums[y * 32 + threadIdx.x];
        out[c] += sum;
    }
}
EXPORT_KERNEL(reduce_slabs)
#endif
