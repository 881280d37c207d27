// Attention, forward and backward, row by row: any head width, bf16 or f32. For checks, and for head widths that the tensor-core
//            kernels do not take. Mathematics, schedule tables and argument order of attention.cu and attention_bwd_*.cu,
//            with head_dim before scale.
// Shapes     as there.   Storage T, everything else in f32, probabilities included.
// Launch     grid and tables as there, block = 128: one warp a packed query (a key), 32 keys (queries) at a time, then the columns
//            of the head over the lanes. Dynamic shared = 4 warps (4 head_dim + 64) floats.
// Traffic    no tile is shared between rows: every query reads all of its keys. Slow, and meant to be simple.
//            Entries of the key table are whole tiles: no parts.
// Order      keys (queries) ascending in steps of 32; sums over a step in order; row sums by a butterfly. No atomics.
// Limits     rows * group^2 < 2^31; head_dim up to what 4 (4 head_dim + 64) floats of shared memory allow (1500 in 99 KiB).
// Reference  src/backend/cpu/attention/.
#include "attention.cuh"

// Row-wise twins of attention.cu and attention_bwd_*.cu: one warp a query (a key), lanes over 32 keys (queries) and then over
// the columns of the head. `shared` is split in four, one part a warp, of 4 * head_dim + 64 floats.
struct PlainShape : Heads {
    int head_dim;
    size_t stride;
    __device__ __forceinline__ PlainShape(int heads, int kv_heads, int head_dim_)
        : Heads(heads_of(heads, kv_heads, blockIdx.x)), head_dim(head_dim_), stride(size_t(heads + 2 * kv_heads) * head_dim_) {}
    __device__ __forceinline__ size_t query_at(int start, int m) const {
        const int row = row_of(m);
        return size_t(start + row) * stride + size_t(kv_head * group + m - row * group) * head_dim;
    }
    __device__ __forceinline__ size_t key_at(int row) const { return size_t(row) * stride + size_t(heads + kv_head) * head_dim; }
    __device__ __forceinline__ size_t value_at(int row) const { return key_at(row) + size_t(kv_heads) * head_dim; }
};
__device__ __forceinline__ float dot_shared(const float* a, const T* __restrict__ b, int n) {
    float sum = 0.0f;
    for (int d = 0; d < n; ++d) sum += a[d] * to_float(b[d]);
    return sum;
}
__device__ __forceinline__ int row_of_key(const QueryTile& t, int key) {
    return key < t.prefix_len ? t.prefix_start + key : t.seg_start + key - t.prefix_len;
}

KERNEL(kAttnThreads, attention_fwd_plain)(
        T* __restrict__ out, float* __restrict__ lse, const T* __restrict__ qkv, const unsigned* __restrict__ tiles, int heads,
        int kv_heads, int head_dim, float scale) {
    const PlainShape h(heads, kv_heads, head_dim);
    const QueryTile t = load_query_tile(tiles, blockIdx.y);
    DYNAMIC_SHARED(float, shared);
    const int lane = threadIdx.x & 31;
    float* q = shared + (threadIdx.x >> 5) * (4 * head_dim + 64);
    float *o = q + head_dim, *p = o + head_dim;
    for (int m = t.m_begin + int(threadIdx.x >> 5); m < t.m_end; m += kAttnWarps) {
        const T* query = qkv + h.query_at(t.seg_start, m);
        for (int d = lane; d < head_dim; d += 32) {
            q[d] = to_float(query[d]) * scale;
            o[d] = 0.0f;
        }
        __syncwarp();
        const int keys = t.kv_len > 0 ? t.prefix_len + h.row_of(m) + 1 : 0;
        float top = -INFINITY, sum = 0.0f;
        for (int j = 0; j < keys; j += 32) {
            const int live = keys - j < 32 ? keys - j : 32;
            const float s = lane < live ? dot_shared(q, qkv + h.key_at(row_of_key(t, j + lane)), head_dim) : -INFINITY;
            const float higher = fmaxf(top, warp_max(s)), shrink = expf(top - higher);
            top = higher;
            p[lane] = expf(s - top);
            sum = sum * shrink + warp_sum(p[lane]);
            __syncwarp();
            for (int d = lane; d < head_dim; d += 32) {
                float add = 0.0f;
                for (int i = 0; i < live; ++i) add += p[i] * to_float(qkv[h.value_at(row_of_key(t, j + i)) + d]);
                o[d] = o[d] * shrink + add;
            }
            __syncwarp();
        }
        const size_t at = row_head(h, t.seg_start, m);
        if (lane == 0) lse[at] = keys > 0 ? top + logf(sum) : 0.0f;
        const float inverse = keys > 0 ? 1.0f / sum : 0.0f;
        for (int d = lane; d < head_dim; d += 32) from_float(o[d] * inverse, out[at * head_dim + d]);
        __syncwarp();
    }
}
EXPORT_KERNEL(attention_fwd_plain)

KERNEL(kAttnThreads, attention_bwd_delta_plain)(
        float* __restrict__ delta, const T* __restrict__ dout, const T* __restrict__ out, int n, int head_dim) {
    const int i = int(blockIdx.x) * kAttnWarps + int(threadIdx.x >> 5);
    float sum = 0.0f;
    for (int d = threadIdx.x & 31; i < n && d < head_dim; d += 32)
        sum += to_float(dout[size_t(i) * head_dim + d]) * to_float(out[size_t(i) * head_dim + d]);
    sum = warp_sum(sum);
    if (i < n && (threadIdx.x & 31) == 0) delta[i] = sum;
}
EXPORT_KERNEL(attention_bwd_delta_plain)

KERNEL(kAttnThreads, attention_bwd_dq_plain)(
        T* __restrict__ dqkv, const T* __restrict__ dout, const float* __restrict__ lse, const float* __restrict__ delta,
        const T* __restrict__ qkv, const unsigned* __restrict__ tiles, int heads, int kv_heads, int head_dim, float scale) {
    const PlainShape h(heads, kv_heads, head_dim);
    const QueryTile t = load_query_tile(tiles, blockIdx.y);
    DYNAMIC_SHARED(float, shared);
    const int lane = threadIdx.x & 31;
    float* q = shared + (threadIdx.x >> 5) * (4 * head_dim + 64);
    float *g = q + head_dim, *dq = g + head_dim, *ds = dq + head_dim;
    for (int m = t.m_begin + int(threadIdx.x >> 5); m < t.m_end; m += kAttnWarps) {
        const size_t from = h.query_at(t.seg_start, m), at = row_head(h, t.seg_start, m);
        for (int d = lane; d < head_dim; d += 32) {
            q[d] = to_float(qkv[from + d]) * scale;
            g[d] = to_float(dout[at * head_dim + d]);
            dq[d] = 0.0f;
        }
        __syncwarp();
        const int keys = t.kv_len > 0 ? t.prefix_len + h.row_of(m) + 1 : 0;
        for (int j = 0; j < keys; j += 32) {
            const int live = keys - j < 32 ? keys - j : 32;
            if (lane < live) {
                const int row = row_of_key(t, j + lane);
                const float p = expf(dot_shared(q, qkv + h.key_at(row), head_dim) - lse[at]);
                ds[lane] = p * (dot_shared(g, qkv + h.value_at(row), head_dim) - delta[at]);
            }
            __syncwarp();
            for (int d = lane; d < head_dim; d += 32)
                for (int i = 0; i < live; ++i) dq[d] += ds[i] * to_float(qkv[h.key_at(row_of_key(t, j + i)) + d]);
            __syncwarp();
        }
        for (int d = lane; d < head_dim; d += 32) from_float(dq[d] * scale, dqkv[from + d]);
        __syncwarp();
    }
}
EXPORT_KERNEL(attention_bwd_dq_plain)

KERNEL(kAttnThreads, attention_bwd_dkv_plain)(
        T* __restrict__ dqkv, float*, const T* __restrict__ dout, const float* __restrict__ lse, const float* __restrict__ delta,
        const T* __restrict__ qkv, const unsigned* __restrict__ tiles, int heads, int kv_heads, int head_dim, float scale) {
    const PlainShape h(heads, kv_heads, head_dim);
    const KeyTile t = load_key_tile(tiles, blockIdx.y);
    DYNAMIC_SHARED(float, shared);
    const int lane = threadIdx.x & 31;
    float* k = shared + (threadIdx.x >> 5) * (4 * head_dim + 64);
    float *v = k + head_dim, *dk = v + head_dim, *dv = dk + head_dim, *p = dv + head_dim, *ds = p + 32;
    for (int r = threadIdx.x >> 5; r < t.kv_rows; r += kAttnWarps) {
        const size_t key = h.key_at(t.kv_start + r), value = h.value_at(t.kv_start + r);
        for (int d = lane; d < head_dim; d += 32) {
            k[d] = to_float(qkv[key + d]) * scale;
            v[d] = to_float(qkv[value + d]);
            dk[d] = dv[d] = 0.0f;
        }
        __syncwarp();
        for (int m0 = r * h.group; m0 < t.m_end; m0 += 32) {  // row kv_start + r is the first that sees key r
            const int live = t.m_end - m0 < 32 ? t.m_end - m0 : 32;
            if (lane < live) {
                const size_t at = row_head(h, t.kv_start, m0 + lane);
                p[lane] = expf(dot_shared(k, qkv + h.query_at(t.kv_start, m0 + lane), head_dim) - lse[at]);
                ds[lane] = p[lane] * (dot_shared(v, dout + at * head_dim, head_dim) - delta[at]);
            }
            __syncwarp();
            for (int d = lane; d < head_dim; d += 32)
                for (int i = 0; i < live; ++i) {
                    dv[d] += p[i] * to_float(dout[row_head(h, t.kv_start, m0 + i) * head_dim + d]);
                    dk[d] += ds[i] * to_float(qkv[h.query_at(t.kv_start, m0 + i) + d]);
                }
            __syncwarp();
        }
        for (int d = lane; d < head_dim; d += 32) {
            from_float(dk[d] * scale, dqkv[key + d]);
            from_float(dv[d], dqkv[value + d]);
        }
        __syncwarp();
    }
}
EXPORT_KERNEL(attention_bwd_dkv_plain)
