// Gradient norm and updates, over a range of the flat arena.
//   norm     norm[0] = sqrt(sum g^2).
//   clip     g *= min(1, max_norm / (norm + 1e-6)); max_norm 0: not at all. A norm that is not finite: nothing is written.
//   adamw    m += (g - m)(1 - beta1);  v = v beta2 + g^2 (1 - beta2);  p = p decay - lr (m / (sqrt(v) / root + eps)),
//            lr = lr / (1 - beta1^t), root = sqrt(1 - beta2^t), decay = 1 - lr weight_decay: from the host.
//   rmsprop  g += decay p;  v = v beta2 + g^2 (1 - beta2);  p -= lr (g / (sqrt(v) + eps)).
//   add      to += from: gradients of lanes.
//   mix      p = p keep + from take, keep = 1 - take: a reference on its way to the policy (TR-DPO).
// Source     Loshchilov & Hutter 2019, as torch.optim.AdamW; torch.optim.RMSprop; Gorbatovski et al. 2024 (TR-DPO).
// Shapes     w (n) T   p = master, from, m, v, g (n) f32, g bf16 too (_narrow)   norm (1), part (blocks) f64. f32 storage: master is w.
// Launch     norm: grid = 8192 or fewer, block = 256, a contiguous part each; then one block. Updates: a thread per 8 (bf16) or
//            4 (f32) parameters, block = 256. The host does not wait for the norm.
// Traffic    norm 4 bytes; adamw 30 (bf16 with master) or 28 (f32), mix 14 or 12, add 12 bytes a parameter: the least.
// Order      norm: thread-strided sums in f64, butterfly, warps in order, blocks in order. No atomics.
// Limits     none that memory does not set.
// Predicted  HBM is the limiter. Norm: 8192 parts are 7 to 8 waves of an H100, the last nearly full (1024 would be 1.3: two). AdamW in
//            bf16: 2 blocks an SM by registers, 128 bytes a thread, 64 KB on their way, the norm's factor computed behind them.
// Reference  src/backend/cpu/optim.rs.   Measured: docs/results/2026-11-26-h100.md.
#include "common.cuh"

#ifdef STORAGE_F32
__device__ __forceinline__ double block_total(double v, double* part) { return block_sum_x(v, part); }

template <class S>
__device__ __forceinline__ void sum_part(double* __restrict__ part, const S* __restrict__ g, long long n, long long slab) {
    SHARED(double, sums, 32);
    constexpr int N = PACK(S);
    const long long first = blockIdx.x * slab, end = first + slab < n ? first + slab : n;
    double sum = 0.0;
    const long long packs = first + (end - first) / N * N;
    if_whole(0, [&](auto whole) {
#pragma unroll 4
        for (long long i = first + threadIdx.x * N; i < packs; i += N * blockDim.x) {
            const auto v = load_pack<whole>(g + i, N);
#pragma unroll
            for (int e = 0; e < N; ++e) sum += double(v[e]) * double(v[e]);
        }
    }, g);
    if (packs + threadIdx.x < end) {
        const double last = to_float(g[packs + threadIdx.x]);
        sum += last * last;
    }
    sum = block_total(sum, sums);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

KERNEL(256, sum_squares)(double* __restrict__ part, const float* __restrict__ g, long long n, long long slab) {
    sum_part(part, g, n, slab);
}
EXPORT_KERNEL(sum_squares)

KERNEL(256, sum_squares_narrow)(double* __restrict__ part, const bf16* __restrict__ g, long long n, long long slab) {
    sum_part(part, g, n, slab);
}
EXPORT_KERNEL(sum_squares_narrow)

KERNEL(256, norm_of_sums)(double* __restrict__ norm, const double* __restrict__ part, int count) {
    SHARED(double, sums, 32);
    double sum = 0.0;
#pragma unroll 8
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += part[i];
    sum = block_total(sum, sums);
    if (threadIdx.x == 0) norm[0] = sqrt(sum);
}
EXPORT_KERNEL(norm_of_sums)

KERNEL(256, add)(float* __restrict__ to, const float* __restrict__ from, long long n) {
    constexpr int N = PACK(float);
    const long long i = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (i >= n) return;
    if_whole(n - i < N ? n - i : 0, [&](auto whole) {  // the last pack alone may be cut short
        const int live = int(n - i < N ? n - i : N);
        const auto other = load_pack<whole>(from + i, live);
        auto sum = load_pack<whole>(to + i, live);
#pragma unroll
        for (int e = 0; e < N; ++e) sum[e] += other[e];
        store_pack<whole>(to + i, sum, live);
    }, to, from);
}
EXPORT_KERNEL(add)
#endif

// The factor for the gradient; false: leave everything as it is.
__device__ __forceinline__ bool clip(const double* norm, float max_norm, float& factor) {
    const double n = norm[0];
    const double f = double(max_norm) / (n + 1e-6);
    factor = max_norm > 0.0f && f < 1.0 ? float(f) : 1.0f;
    return n - n == 0.0;  // finite
}

template <bool WHOLE> __device__ __forceinline__ void store_weights(float*, const Floats<4>&, int) {}  // master is w
template <bool WHOLE> __device__ __forceinline__ void store_weights(bf16* w, const Floats<8>& p, int live) {
    store_pack<WHOLE>(w, p, live);
}

template <class G>
__device__ __forceinline__ void adam(T* w, float* master, float* __restrict__ m, float* __restrict__ v, const G* __restrict__ g,
                                     const double* __restrict__ norm, long long n, float lr, float decay, float beta1c,
                                     float beta2, float beta2c, float root, float eps, float max_norm) {
    constexpr int N = PACK(T);
    const long long i = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (i >= n) return;
    if_whole(n - i < N ? n - i : 0, [&](auto whole) {  // the last pack alone may be cut short
        const int live = int(n - i < N ? n - i : N);
        auto gradient = load_gradient<whole>(g + i, live), first = load_floats<whole>(m + i, live), second = load_floats<whole>(v + i, live);
        auto p = load_floats<whole>(master + i, live);
        float factor;
        if (!clip(norm, max_norm, factor)) return;  // behind the loads, which are on their way meanwhile
#pragma unroll
        for (int e = 0; e < N; ++e) {
            const float d = gradient[e] * factor;
            first[e] += (d - first[e]) * beta1c;
            second[e] = second[e] * beta2 + d * d * beta2c;
            p[e] = p[e] * decay - lr * (first[e] / (sqrtf(second[e]) / root + eps));
        }
        store_floats<whole>(m + i, first, live);
        store_floats<whole>(v + i, second, live);
        store_floats<whole>(master + i, p, live);
        store_weights<whole>(w + i, p, live);
    }, w, master, m, v, g);
}
#define ADAMW(name, G)                                                                                                             \
    KERNEL(256, name)(T* w, float* master, float* __restrict__ m, float* __restrict__ v, const G* __restrict__ g,                  \
                      const double* __restrict__ norm, long long n, float lr, float decay, float beta1c, float beta2,              \
                      float beta2c, float root, float eps, float max_norm) {                                                       \
        adam(w, master, m, v, g, norm, n, lr, decay, beta1c, beta2, beta2c, root, eps, max_norm);                                  \
    }                                                                                                                              \
    EXPORT_KERNEL(name)
ADAMW(adamw, float)

template <class G>
__device__ __forceinline__ void rms(T* w, float* master, float* __restrict__ v, const G* __restrict__ g,
                                    const double* __restrict__ norm, long long n, float lr, float decay, float beta2,
                                    float beta2c, float eps, float max_norm) {
    constexpr int N = PACK(T);
    const long long i = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (i >= n) return;
    if_whole(n - i < N ? n - i : 0, [&](auto whole) {  // the last pack alone may be cut short
        const int live = int(n - i < N ? n - i : N);
        auto gradient = load_gradient<whole>(g + i, live), second = load_floats<whole>(v + i, live), p = load_floats<whole>(master + i, live);
        float factor;
        if (!clip(norm, max_norm, factor)) return;
#pragma unroll
        for (int e = 0; e < N; ++e) {
            const float d = gradient[e] * factor + decay * p[e];
            second[e] = second[e] * beta2 + d * d * beta2c;
            p[e] -= lr * (d / (sqrtf(second[e]) + eps));
        }
        store_floats<whole>(v + i, second, live);
        store_floats<whole>(master + i, p, live);
        store_weights<whole>(w + i, p, live);
    }, w, master, v, g);
}
#define RMSPROP(name, G)                                                                                                           \
    DENSE_KERNEL(256, 4, name)(T* w, float* master, float* __restrict__ v, const G* __restrict__ g,                                \
                               const double* __restrict__ norm, long long n, float lr, float decay, float beta2, float beta2c,     \
                               float eps, float max_norm) {                                                                        \
        rms(w, master, v, g, norm, n, lr, decay, beta2, beta2c, eps, max_norm);                                                    \
    }                                                                                                                              \
    EXPORT_KERNEL(name)
RMSPROP(rmsprop, float)
#ifdef STORAGE_BF16
ADAMW(adamw_narrow, bf16)
RMSPROP(rmsprop_narrow, bf16)
#endif

KERNEL(256, mix)(T* w, float* master, const float* __restrict__ from, long long n, float keep, float take) {
    constexpr int N = PACK(T);
    const long long i = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (i >= n) return;
    if_whole(n - i < N ? n - i : 0, [&](auto whole) {  // the last pack alone may be cut short
        const int live = int(n - i < N ? n - i : N);
        const auto policy = load_floats<whole>(from + i, live);
        auto p = load_floats<whole>(master + i, live);
#pragma unroll
        for (int e = 0; e < N; ++e) p[e] = p[e] * keep + policy[e] * take;
        store_floats<whole>(master + i, p, live);
        store_weights<whole>(w + i, p, live);
    }, w, master, from);
}
EXPORT_KERNEL(mix)
