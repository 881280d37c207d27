// SwiGLU.    act = silu(gate) * up,  silu(x) = x / (1 + exp(-x));  a row of gate_up is ffn gates, then ffn ups.
//            dgate = dact * up * s (1 + gate (1 - s)),  dup = dact * gate * s,  s = sigmoid(gate);  in place. With `again`
//            act goes where dact was: the next product reads it, so it need not be kept.
// Source     Shazeer 2020 (arXiv 2002.05202), as in Hugging Face's LlamaMLP.
// Shapes     act, dact (rows, ffn)   gate_up (rows, 2 ffn).   Storage T, computed in f32.
// Launch     grid = (ceil(packs of ffn / 256), min(rows, 65535)), block = 256, no shared memory; rows by grid stride.
// Traffic    forward 3 ffn, backward 5 ffn (6 with `again`) elements a row, each once: the least.
// Order      elementwise. Quotients by the approximate reciprocal, 2 ulp of f32; where exp(-x) is beyond 2^126 they are 0.
// Limits     rows, ffn <= 2^31 - 1. ffn a multiple of a pack (8 bf16, 4 f32): 16-byte accesses, else element by element.
// Reference  src/backend/cpu/swiglu.rs.   Measured: docs/results/2026-11-26-h100.md.
#include "common.cuh"

KERNEL(256, swiglu_fwd)(T* __restrict__ act, const T* __restrict__ gate_up, int rows, int ffn) {
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * PACK(T);
    if (c >= ffn) return;
    if_whole(ffn, [&](auto whole) {
        for (size_t r = blockIdx.y; r < size_t(rows); r += gridDim.y) {
            const T* row = gate_up + r * 2 * ffn;
            auto gate = load_pack<whole>(row + c, ffn - c), up = load_pack<whole>(row + ffn + c, ffn - c);
#pragma unroll
            for (int i = 0; i < PACK(T); ++i) gate[i] = fast_divide(gate[i], 1.0f + expf(-gate[i])) * up[i];
            store_pack<whole>(act + r * ffn + c, gate, ffn - c);
        }
    }, act, gate_up);
}
EXPORT_KERNEL(swiglu_fwd)

KERNEL(256, swiglu_bwd)(T* __restrict__ gate_up, T* __restrict__ dact, int rows, int ffn, int again) {
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * PACK(T);
    if (c >= ffn) return;
    if_whole(ffn, [&](auto whole) {
        for (size_t r = blockIdx.y; r < size_t(rows); r += gridDim.y) {
            T* row = gate_up + r * 2 * ffn;
            auto gate = load_pack<whole>(row + c, ffn - c), up = load_pack<whole>(row + ffn + c, ffn - c);
            auto d = load_pack<whole>(dact + r * ffn + c, ffn - c);
#pragma unroll
            for (int i = 0; i < PACK(T); ++i) {
                const float below = 1.0f + expf(-gate[i]), s = fast_divide(1.0f, below);
                const float dgate = d[i] * up[i] * s * (1.0f + gate[i] * (1.0f - s));
                const float dup = d[i] * gate[i] * s;
                d[i] = fast_divide(gate[i], below) * up[i];
                up[i] = dup;
                gate[i] = dgate;
            }
            if (again) store_pack<whole>(dact + r * ffn + c, d, ffn - c);
            store_pack<whole>(row + c, gate, ffn - c);
            store_pack<whole>(row + ffn + c, up, ffn - c);
        }
    }, gate_up, dact);
}
EXPORT_KERNEL(swiglu_bwd)
