// Attention, backward for queries, on tensor cores (bf16), and delta for both backward passes.
//            p = exp(scale q k^T - lse),   dp = dout v^T,   delta = sum_d dout out,   ds = p (dp - delta),   dq = scale ds k.
// Source     Dao 2023, FlashAttention-2 (arXiv 2307.08691), alg. 2, as two passes without atomics: attention_bwd_dkv.cu is the other.
// Shapes     dqkv, qkv (rows, (heads + 2 kv_heads) HD)   dout, out (rows, heads HD)   lse, delta (rows, heads) f32.
//            bf16 in and out; products accumulate in f32; ds is rounded to bf16 as an operand.
// Launch     attention_bwd_delta: grid = ceil(rows heads / 32), block = 128, 4 lanes a (row, head).
//            attention_bwd_dq: grid = (kv_heads, entries of the query table, 128 / BM), block = 128. BM packed queries stay, tiles of
//            BN keys pass by.
//            HD                 32     64     96    128
//            BM x BN        128x64 128x64 128x64  64x32
//            shared bytes    32768  65536  98304  65536    = 2 HD (2 BM + 4 BN)
//            blocks an SM        3      2      2      2    by registers (launch bounds), 228 KiB of shared memory
// FLOPs      useful in both passes 10 HD heads a visible (query, key) pair, executed 14: q k^T and dout v^T are computed twice; 6 here.
// Traffic    least: queries, keys, values, out, dout once (out in delta), dq, lse, delta: 2 rows ((4 heads + 2 kv_heads) HD) bytes
//            and 12 rows heads. Keys and values again for every BM packed queries, from L2.
// Order      keys ascending, SLICE at a time; each element by one thread. No atomics: same inputs, same bits.
// Limits     as attention.cu.
// Reference  src/backend/cpu/attention/; attention_plain.cu.
// Choices    Two passes and 7 products against one pass and 5 with dq by atomics: 1.4 times the arithmetic of the backward, 1-2 %
//            of a step by the model of the plan, for the same bits every time, no f32 dq buffer and no second sweep over it. Slices of
//            16 or 32 keys go through all products before the next: p and ds never need a whole tile of registers. 32 rows a warp up
//            to HD = 96; q and dout stay in registers except at 96. Chosen by the compiler's report for sm_80, 90a, 100 and 120: the
//            largest that spill nowhere. Nothing here was measured on a GPU yet.
#include "attention.cuh"
#ifdef STORAGE_BF16

// ---- delta --------------------------------------------------------------------------------------------------------
template <int HD>
__device__ __forceinline__ void attention_bwd_delta_rows(
        float* __restrict__ delta, const bf16* __restrict__ dout, const bf16* __restrict__ out, int n) {
    const int i = int(blockIdx.x) * (kAttnThreads / 4) + int(threadIdx.x) / 4, part = threadIdx.x & 3;
    const size_t at = size_t(i < n ? i : n - 1) * HD + part * 8;
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < HD / 32; ++c) {
        Floats<8> a, b;
        unpack(load16(dout + at + c * 32), a);
        unpack(load16(out + at + c * 32), b);
#pragma unroll
        for (int e = 0; e < 8; ++e) sum += a[e] * b[e];
    }
    sum += __shfl_xor_sync(FULL, sum, 1);
    sum += __shfl_xor_sync(FULL, sum, 2);
    if (part == 0 && i < n) delta[i] = sum;
}

// ---- dQ: queries stay ---------------------------------------------------------------------------------------------
// MI: blocks of 16 packed queries a warp. BN: keys a tile, taken SLICE at a time. KEPT: fragments of q and dout stay in registers.
template <int HD, int MI, int BN, int SLICE, bool KEPT>
struct QueryGradient {
    static constexpr int kRows = 16 * MI * kAttnWarps, kTile = BN * HD, kFragments = KEPT ? HD / 16 : 1;
    typedef uint32_t Fragments[MI][kFragments][4];
    typedef float Slice[MI][SLICE / 8][4];

    // s = q k^T and dp = dout v^T for the keys at `row` of the tiles.
    static __device__ __forceinline__ void products(
            Slice& s, Slice& dp, Fragments& q, Fragments& g, const bf16* q_tile, const bf16* do_tile, int at_mk, int row0,
            const bf16* k_tile, int at_nk, int row) {
        zero(s);
        zero(dp);
#pragma unroll
        for (int k = 0; k < HD / 16; ++k) {
            if (!KEPT) {
#pragma unroll
                for (int mi = 0; mi < MI; ++mi) {
                    load_a<HD>(q[mi][0], q_tile, at_mk, row0 + 16 * mi, 16 * k);
                    load_a<HD>(g[mi][0], do_tile, at_mk, row0 + 16 * mi, 16 * k);
                }
            }
#pragma unroll
            for (int n = 0; n < SLICE / 16; ++n) {
                uint32_t bk[4], bv[4];
                load_b_nk<HD>(bk, k_tile, at_nk, row + 16 * n, 16 * k);
                load_b_nk<HD>(bv, k_tile + kTile, at_nk, row + 16 * n, 16 * k);
#pragma unroll
                for (int mi = 0; mi < MI; ++mi) {
                    mma_16x16(s[mi][2 * n], s[mi][2 * n + 1], q[mi][KEPT ? k : 0], bk);
                    mma_16x16(dp[mi][2 * n], dp[mi][2 * n + 1], g[mi][KEPT ? k : 0], bv);
                }
            }
        }
    }

    // p = exp(scale s - lse), 0 where hidden; packed queries from `seen_from` on see this lane's first key.
    static __device__ __forceinline__ void probabilities(
            Slice& s, const float (&row_lse)[2 * MI], float scale2, bool masked, int lane_m, int seen_from, int group) {
#pragma unroll
        for (int mi = 0; mi < MI; ++mi)
#pragma unroll
            for (int n = 0; n < SLICE / 8; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) s[mi][n][e] = fast_exp2(s[mi][n][e] * scale2 - row_lse[2 * mi + (e >> 1)]);
        if (!masked) return;
#pragma unroll
        for (int mi = 0; mi < MI; ++mi)
#pragma unroll
            for (int n = 0; n < SLICE / 8; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int m = lane_m + 16 * mi + 8 * (e >> 1);
                    if (hidden(m, seen_from + (8 * n + (e & 1)) * group)) s[mi][n][e] = 0.0f;
                }
    }

    // dq += ds k with ds = p (dp - delta).
    static __device__ __forceinline__ void add_keys(
            float (&dq)[MI][HD / 8][4], Slice& p, const Slice& dp, const float (&row_delta)[2 * MI], const bf16* k_tile,
            int at_mk, int row) {
#pragma unroll
        for (int n = 0; n < SLICE / 16; ++n) {
            uint32_t ds[MI][4];
#pragma unroll
            for (int mi = 0; mi < MI; ++mi) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    p[mi][2 * n][e] *= dp[mi][2 * n][e] - row_delta[2 * mi + (e >> 1)];
                    p[mi][2 * n + 1][e] *= dp[mi][2 * n + 1][e] - row_delta[2 * mi + (e >> 1)];
                }
                pack_a(ds[mi], p[mi][2 * n], p[mi][2 * n + 1]);
            }
#pragma unroll
            for (int c = 0; c < HD / 16; ++c) {
                uint32_t b[4];
                load_b_kn<HD>(b, k_tile, at_mk, row + 16 * n, 16 * c);
#pragma unroll
                for (int mi = 0; mi < MI; ++mi) mma_16x16(dq[mi][2 * c], dq[mi][2 * c + 1], ds[mi], b);
            }
        }
    }

    static __device__ __forceinline__ void run(
            bf16* __restrict__ dqkv, const bf16* __restrict__ dout, const float* __restrict__ lse,
            const float* __restrict__ delta, const bf16* __restrict__ qkv, const unsigned* __restrict__ tiles, int heads,
            int kv_heads, float scale) {
        const Heads h = heads_of(heads, kv_heads, blockIdx.x);
        const QueryTile t = part_of<kRows>(load_query_tile(tiles, blockIdx.y), blockIdx.z, h);
        if (t.m_end == t.m_begin) return;
        DYNAMIC_SHARED(bf16, shared);
        bf16 *q_tile = shared, *do_tile = shared + kRows * HD, *stages = shared + 2 * kRows * HD;
        const int lane = threadIdx.x & 31, row0 = int(threadIdx.x >> 5) * 16 * MI;
        const int at_mk = lane_mk<HD>(lane), at_nk = lane_nk<HD>(lane);
        const bf16* kv = qkv + size_t(heads + h.kv_head) * HD;
        const WarpRows rows = warp_rows(t, h, row0, 16 * MI);
        const int key_tiles = (t.kv_len + BN - 1) / BN;
        if (key_tiles > 0) {
            const PackedQueries q_rows = PackedQueries::in<HD>(qkv, qkv_width<HD>(h), h, t.seg_start);
            const PackedQueries do_rows = PackedQueries::in<HD>(dout, heads * HD, h, t.seg_start);
            load_queries<HD, kRows, 2>({q_tile, do_tile}, {q_rows, do_rows}, h, t.m_begin, t.m_end);
            load_keys<HD, BN>(stages, stages + kTile, kv, h, t, 0);
        }
        cp_async_commit();
        float dq[MI][HD / 8][4], row_lse[2 * MI], row_delta[2 * MI];
        zero(dq);
#pragma unroll
        for (int i = 0; i < 2 * MI; ++i) {  // rows past the end: infinity makes their probabilities 0
            const int m = rows.lane_m + 8 * i;
            const bool live = m < t.m_end;
            const size_t at = row_head(h, t.seg_start, live ? m : t.m_begin);
            row_lse[i] = live ? lse[at] * LOG2E : INFINITY;
            row_delta[i] = live ? delta[at] : 0.0f;
        }
        Fragments q, g;
        for (int j = 0; j < key_tiles; ++j) {
            const int key0 = j * BN;
            bf16 *k_tile = stages + (j & 1) * 2 * kTile, *next = stages + (~j & 1) * 2 * kTile;
            cp_async_wait<0>();
            __syncthreads();  // tile j is visible to all, and nobody reads tile j - 1 any more
            if (j + 1 < key_tiles) load_keys<HD, BN>(next, next + kTile, kv, h, t, key0 + BN);
            cp_async_commit();
            if (KEPT && j == 0) {
                load_fragments<HD>(q, q_tile, at_mk, row0);
                load_fragments<HD>(g, do_tile, at_mk, row0);
            }
#pragma unroll
            for (int x = 0; x < BN && key0 + x <= rows.last_key; x += SLICE) {
                Slice s, dp;
                products(s, dp, q, g, q_tile, do_tile, at_mk, row0, k_tile, at_nk, x);
                const bool masked = key0 + x + SLICE - 1 > rows.first_key;
                const int seen_from = first_to_see(key0 + x + 2 * (lane & 3), t, h);
                probabilities(s, row_lse, scale * LOG2E, masked, rows.lane_m, seen_from, h.group);
                add_keys(dq, s, dp, row_delta, k_tile, at_mk, x);
            }
        }
        const float both[2] = {scale, scale};
        rows_are_free();
#pragma unroll
        for (int mi = 0; mi < MI; ++mi) stage_rows<HD>(q_tile, row0 + 16 * mi, dq[mi], both);  // q_tile's rows are this warp's own
        __syncwarp();
        store_rows<HD, MI>(q_tile, row0, [&](int r) -> bf16* {
            const int m = t.m_begin + r;
            return m < t.m_end ? dqkv + query_at<HD>(h, t.seg_start, m) : nullptr;
        });
    }
};

#define ATTENTION_BWD_DELTA(HD)                                                                            \
    KERNEL(kAttnThreads, attention_bwd_delta_hd##HD)(                                                      \
            float* __restrict__ delta, const bf16* __restrict__ dout, const bf16* __restrict__ out, int n) { \
        attention_bwd_delta_rows<HD>(delta, dout, out, n);                                                 \
    }                                                                                                      \
    EXPORT_KERNEL(attention_bwd_delta_hd##HD)
#define ATTENTION_BWD_DQ(HD, CTAS, ...)                                                                    \
    DENSE_KERNEL(kAttnThreads, CTAS, attention_bwd_dq_hd##HD)(                                             \
            bf16* __restrict__ dqkv, const bf16* __restrict__ dout, const float* __restrict__ lse,         \
            const float* __restrict__ delta, const bf16* __restrict__ qkv, const unsigned* __restrict__ tiles, \
            int heads, int kv_heads, float scale) {                                                        \
        QueryGradient<HD, __VA_ARGS__>::run(dqkv, dout, lse, delta, qkv, tiles, heads, kv_heads, scale);   \
    }                                                                                                      \
    EXPORT_KERNEL(attention_bwd_dq_hd##HD)

ATTENTION_BWD_DELTA(32)
ATTENTION_BWD_DELTA(64)
ATTENTION_BWD_DELTA(96)
ATTENTION_BWD_DELTA(128)
ATTENTION_BWD_DQ(32, 3, 2, 64, 16, true)
ATTENTION_BWD_DQ(64, 2, 2, 64, 16, true)
ATTENTION_BWD_DQ(96, 2, 2, 64, 32, false)
ATTENTION_BWD_DQ(128, 2, 1, 32, 32, true)
#endif  // STORAGE_BF16
