// Attention, backward, on tensor cores (bf16).   p = exp(scale q k^T - lse),   dv = p^T dout,   dp = dout v^T,
//            ds = p (dp - delta),   delta = sum_d dout out,   dq = scale ds k,   dk = scale ds^T q.   The three parts of dqkv.
// Source     Dao 2023, FlashAttention-2 (arXiv 2307.08691), alg. 2, as two passes without atomics.
// Shapes     dqkv, qkv (rows, (heads + 2 kv_heads) HD)   dout, out (rows, heads HD)   lse, delta (rows, heads) f32.
//            bf16 in and out; products accumulate in f32; p and ds are rounded to bf16 as operands.
// Launch     attention_bwd_delta: grid = ceil(rows heads / 32), block = 128, 4 lanes a (row, head).
//            attention_bwd_dq: grid = (kv_heads, entries of the query table, 128 / BM), block = 128. Queries stay, keys pass by.
//            attention_bwd_dkv: grid = (kv_heads, entries of the key table), block = 128. Keys stay; all queries that see them
//            pass by, of all heads of the group: a prompt's keys see its own rows and those of every response, which lie behind
//            it, so packed queries kv_start * group .. q_end * group are one range and the causal bound is the only mask.
//            HD                 32     64     96    128
//            dq    BM x BN   128x64 128x64 128x64  64x32    shared 32768 65536 98304 65536 = 2 HD (2 BM + 4 BN); blocks an SM 3 2 2 2
//            dkv   BM x BN   128x64  64x64  64x64  64x32    shared 33792 50176 74752 66048 = 2 HD (2 BM + 4 BN) + 16 BN; 3 3 2 2
// FLOPs      useful 10 HD heads a visible (query, key) pair, executed 14: q k^T and dout v^T are computed in both passes.
// Traffic    least: qkv, dqkv, out, dout once, lse and delta: 2 rows ((4 heads + 4 kv_heads) HD) bytes and 16 rows heads.
// Order      dq over keys, dk and dv over packed queries (row by row, heads of the group inside), ascending, in slices of SLICE;
//            each element by one thread. No atomics: same inputs, same bits.
// Limits     as attention.cu.
// Reference  src/backend/cpu/attention.rs; attention_plain.cu.
// Weighed    Two passes and 7 products against one pass and 5 with dq by atomics: 1.4 times the arithmetic of the backward, 1-2 %
//            of a step by PERFORMANCE's model, for the same bits every time, no f32 dq buffer and no second sweep over it. Slices
//            of 16 or 32 columns go through all products before the next: p and ds never need a whole tile of registers. dkv
//            transposes the problem (rows are keys), so p^T and ds^T are operands where they were computed, without shared memory.
//            16 rows a warp in dkv (two accumulators of HD columns a row), 32 at HD = 32; 32 in dq up to HD = 96. At HD = 128 dkv
//            keeps half of its values' fragments in registers and reads the rest again. All chosen by the compiler's report for
//            sm_80, 90a, 100 and 120: the largest that spill nowhere. Nothing here was measured on a GPU yet.
#include "attention.cuh"
#ifdef STORAGE_BF16

// ---- delta --------------------------------------------------------------------------------------------------------
template <int HD>
__device__ __forceinline__ void attention_bwd_delta_rows(float* __restrict__ delta, const bf16* __restrict__ dout, const bf16* __restrict__ out, int n) {
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

// ---- dQ: query-outer ----------------------------------------------------------------------------------------------
template <int HD, int MI, int BN, int SLICE, bool A_IN_REGISTERS>
__device__ __forceinline__ void attention_bwd_dq_tile(bf16* __restrict__ dqkv, const bf16* __restrict__ dout, const float* __restrict__ lse,
                                                      const float* __restrict__ delta, const bf16* __restrict__ qkv,
                                                      const unsigned* __restrict__ tiles, int heads, int kv_heads, float scale) {
    constexpr int kRows = 16 * MI * kAttnWarps, kKept = A_IN_REGISTERS ? HD / 16 : 1;
    const Heads h = heads_of(heads, kv_heads, blockIdx.x);
    const QueryTile t = part_of<kRows>(load_query_tile(tiles, blockIdx.y), blockIdx.z, h);
    if (t.m_end == t.m_begin) return;
    DYNAMIC_SHARED(bf16, shared);
    bf16 *q_tile = shared, *do_tile = shared + kRows * HD, *kv_tiles = shared + 2 * kRows * HD;
    const int lane = threadIdx.x & 31, row0 = int(threadIdx.x >> 5) * 16 * MI;
    const int at_mk = lane_mk<HD>(lane), at_nk = lane_nk<HD>(lane);
    const bf16* kv = qkv + size_t(heads + h.kv_head) * HD;

    const int first_m = t.m_begin + row0, lane_m = first_m + (lane >> 2), warp_end = first_m + 16 * MI < t.m_end ? first_m + 16 * MI : t.m_end;
    const int warp_first = t.prefix_len + h.row_of(first_m);
    const int warp_last = first_m < warp_end ? t.prefix_len + h.row_of(warp_end - 1) : -1;
    const int key_tiles = (t.kv_len + BN - 1) / BN;
    if (key_tiles > 0) {
        load_queries<HD, kRows, true>(q_tile, qkv, h, t.seg_start, t.m_begin, t.m_end);
        load_queries<HD, kRows, false>(do_tile, dout, h, t.seg_start, t.m_begin, t.m_end);
        load_keys<HD, BN>(kv_tiles, kv_tiles + BN * HD, kv, h, t, 0);
    }
    cp_async_commit();

    float dq[MI][HD / 8][4], row_lse[2 * MI], row_delta[2 * MI];
    zero(dq);
#pragma unroll
    for (int i = 0; i < 2 * MI; ++i) {  // rows past the end: infinity makes their probabilities 0
        const int m = lane_m + 8 * i;
        const bool live = m < t.m_end;
        const size_t at = row_head(h, t.seg_start, live ? m : t.m_begin);
        row_lse[i] = live ? lse[at] * LOG2E : INFINITY;
        row_delta[i] = live ? delta[at] : 0.0f;
    }
    const float scale2 = scale * LOG2E;
    uint32_t q[MI][kKept][4], g[MI][kKept][4];

    for (int j = 0; j < key_tiles; ++j) {
        const int key0 = j * BN;
        cp_async_wait<0>();
        __syncthreads();  // tile j is visible to all, and nobody reads tile j - 1 any more
        if (j + 1 < key_tiles) {
            bf16* next = kv_tiles + ((j + 1) & 1) * 2 * BN * HD;
            load_keys<HD, BN>(next, next + BN * HD, kv, h, t, key0 + BN);
        }
        cp_async_commit();
        if (A_IN_REGISTERS && j == 0) {
#pragma unroll
            for (int mi = 0; mi < MI; ++mi)
#pragma unroll
                for (int k = 0; k < kKept; ++k) {
                    load_a<HD>(q[mi][k], q_tile, at_mk, row0 + 16 * mi, 16 * k);
                    load_a<HD>(g[mi][k], do_tile, at_mk, row0 + 16 * mi, 16 * k);
                }
        }
        const bf16* k_tile = kv_tiles + (j & 1) * 2 * BN * HD;
        const bf16* v_tile = k_tile + BN * HD;
#pragma unroll 1
        for (int x = 0; x < BN; x += SLICE) {
            if (key0 + x > warp_last) break;
            float s[MI][SLICE / 8][4], dp[MI][SLICE / 8][4];
            zero(s);
            zero(dp);
#pragma unroll
            for (int k = 0; k < HD / 16; ++k) {
                if (!A_IN_REGISTERS) {
#pragma unroll
                    for (int mi = 0; mi < MI; ++mi) {
                        load_a<HD>(q[mi][0], q_tile, at_mk, row0 + 16 * mi, 16 * k);
                        load_a<HD>(g[mi][0], do_tile, at_mk, row0 + 16 * mi, 16 * k);
                    }
                }
#pragma unroll
                for (int n = 0; n < SLICE / 16; ++n) {
                    uint32_t bk[4], bv[4];
                    load_b_nk<HD>(bk, k_tile, at_nk, x + 16 * n, 16 * k);
                    load_b_nk<HD>(bv, v_tile, at_nk, x + 16 * n, 16 * k);
#pragma unroll
                    for (int mi = 0; mi < MI; ++mi) {
                        mma_16x16(s[mi][2 * n], s[mi][2 * n + 1], q[mi][A_IN_REGISTERS ? k : 0], bk);
                        mma_16x16(dp[mi][2 * n], dp[mi][2 * n + 1], g[mi][A_IN_REGISTERS ? k : 0], bv);
                    }
                }
            }
#pragma unroll
            for (int mi = 0; mi < MI; ++mi)
#pragma unroll
                for (int n = 0; n < SLICE / 8; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) s[mi][n][e] = fast_exp2(s[mi][n][e] * scale2 - row_lse[2 * mi + (e >> 1)]);
            if (key0 + x + SLICE - 1 > warp_first) {
                const int bound = (key0 + x + 2 * (lane & 3) - t.prefix_len) * h.group;
#pragma unroll
                for (int mi = 0; mi < MI; ++mi)
#pragma unroll
                    for (int n = 0; n < SLICE / 8; ++n)
#pragma unroll
                        for (int e = 0; e < 4; ++e)
                            if (hidden(lane_m + 16 * mi + 8 * (e >> 1), bound + (8 * n + (e & 1)) * h.group)) s[mi][n][e] = 0.0f;
            }
#pragma unroll
            for (int n = 0; n < SLICE / 16; ++n) {
                uint32_t ds[MI][4];
#pragma unroll
                for (int mi = 0; mi < MI; ++mi) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        s[mi][2 * n][e] *= dp[mi][2 * n][e] - row_delta[2 * mi + (e >> 1)];
                        s[mi][2 * n + 1][e] *= dp[mi][2 * n + 1][e] - row_delta[2 * mi + (e >> 1)];
                    }
                    pack_a(ds[mi], s[mi][2 * n], s[mi][2 * n + 1]);
                }
#pragma unroll
                for (int c = 0; c < HD / 16; ++c) {
                    uint32_t b[4];
                    load_b_kn<HD>(b, k_tile, at_mk, x + 16 * n, 16 * c);
#pragma unroll
                    for (int mi = 0; mi < MI; ++mi) mma_16x16(dq[mi][2 * c], dq[mi][2 * c + 1], ds[mi], b);
                }
            }
        }
    }

    const float both[2] = {scale, scale};
#pragma unroll
    for (int mi = 0; mi < MI; ++mi) stage_rows<HD>(q_tile, row0 + 16 * mi, dq[mi], both);  // q_tile's rows are this warp's own
    __syncwarp();
    store_rows<HD, MI>(q_tile, row0, [&](int r) -> bf16* {
        const int m = t.m_begin + r;
        return m < t.m_end ? dqkv + query_at<HD>(h, t.seg_start, m) : nullptr;
    });
}

// ---- dK, dV: key-outer --------------------------------------------------------------------------------------------
template <int HD, int MI, int BQ, int SLICE, int V_KEPT>
__device__ __forceinline__ void attention_bwd_dkv_tile(bf16* __restrict__ dqkv, const bf16* __restrict__ dout, const float* __restrict__ lse,
                                                       const float* __restrict__ delta, const bf16* __restrict__ qkv,
                                                       const unsigned* __restrict__ tiles, int heads, int kv_heads, float scale) {
    constexpr int kRows = 16 * MI * kAttnWarps, kStage = 2 * BQ * HD;
    const KeyTile t = load_key_tile(tiles, blockIdx.y);
    if (t.kv_rows == 0) return;
    const Heads h = heads_of(heads, kv_heads, blockIdx.x);
    DYNAMIC_SHARED(bf16, shared);
    bf16 *k_tile = shared, *v_tile = shared + kRows * HD, *stages = shared + 2 * kRows * HD;
    float* stats = reinterpret_cast<float*>(stages + 2 * kStage);  // stage s: BQ pairs (lse in powers of 2, delta) at 2 * s * BQ
    const int lane = threadIdx.x & 31, row0 = int(threadIdx.x >> 5) * 16 * MI;
    const int at_mk = lane_mk<HD>(lane), at_nk = lane_nk<HD>(lane);
    const size_t stride = qkv_stride<HD>(h), kv = size_t(t.kv_start) * stride + size_t(heads + h.kv_head) * HD;
    const int queries = (t.q_end - t.kv_start) * h.group;  // packed, from row kv_start on
    const int tiles_q = (queries + BQ - 1) / BQ;

    auto start_queries = [&](int m0, int stage) {
        bf16* to = stages + stage * kStage;
        load_queries<HD, BQ, true>(to, qkv, h, t.kv_start, m0, queries);
        load_queries<HD, BQ, false>(to + BQ * HD, dout, h, t.kv_start, m0, queries);
    };
    float next_lse = 0.0f, next_delta = 0.0f;
    auto fetch_stats = [&](int m0) {  // queries past the end: infinity makes their probabilities 0
        const int m = m0 + int(threadIdx.x);
        const bool live = m < queries;
        const size_t at = row_head(h, t.kv_start, live ? m : 0);
        next_lse = live ? lse[at] * LOG2E : INFINITY;
        next_delta = live ? delta[at] : 0.0f;
    };
    auto park_stats = [&](int stage) {
        if (threadIdx.x < BQ) {
            stats[2 * (stage * BQ + int(threadIdx.x))] = next_lse;
            stats[2 * (stage * BQ + int(threadIdx.x)) + 1] = next_delta;
        }
    };
#pragma unroll 2
    for (int i = threadIdx.x; i < kRows * (HD / 8); i += kAttnThreads) {
        const int r = i / (HD / 8), c = i % (HD / 8), to = chunk_at<HD>(r, c);
        const bool live = r < t.kv_rows;
        const bf16* from = qkv + kv + size_t(live ? r : 0) * stride + c * 8;
        cp_async_16(k_tile + to, from, live);
        cp_async_16(v_tile + to, from + kv_heads * HD, live);
    }
    if (tiles_q > 0) {
        start_queries(0, 0);
        fetch_stats(0);
        park_stats(0);
    }
    cp_async_commit();

    float dk[MI][HD / 8][4], dv[MI][HD / 8][4];
    zero(dk);
    zero(dv);
    const float scale2 = scale * LOG2E;
    const int first_seen = row0 < t.kv_rows ? row0 * h.group : 0x7fffffff;  // packed queries before it see none of this warp's rows
    const int all_see = (row0 + 16 * MI - 1) * h.group;                  // and from this one on, all of them
    uint32_t k[MI][HD / 16][4], v[MI][V_KEPT][4];  // this warp's rows; of the values, as many columns as registers allow

    for (int j = 0; j < tiles_q; ++j) {
        cp_async_wait<0>();
        __syncthreads();  // tile j is visible to all, and nobody reads tile j - 1 any more
        const int m0 = j * BQ;
        const bool more = j + 1 < tiles_q;
        if (more) {
            start_queries(m0 + BQ, (j + 1) & 1);
            fetch_stats(m0 + BQ);
        }
        cp_async_commit();
        if (j == 0) {
#pragma unroll
            for (int mi = 0; mi < MI; ++mi)
#pragma unroll
                for (int c = 0; c < HD / 16; ++c) {
                    load_a<HD>(k[mi][c], k_tile, at_mk, row0 + 16 * mi, 16 * c);
                    if (c < V_KEPT) load_a<HD>(v[mi][c < V_KEPT ? c : 0], v_tile, at_mk, row0 + 16 * mi, 16 * c);
                }
        }
        const bf16* q_tile = stages + (j & 1) * kStage;
        const bf16* do_tile = q_tile + BQ * HD;
        const float* stat = stats + 2 * (j & 1) * BQ;
#pragma unroll 1
        for (int x = 0; x < BQ; x += SLICE) {
            if (m0 + x + SLICE <= first_seen) continue;
            float s[MI][SLICE / 8][4], dp[MI][SLICE / 8][4];  // transposed: rows are keys, columns packed queries
            zero(s);
            zero(dp);
#pragma unroll
            for (int c = 0; c < HD / 16; ++c) {
                uint32_t va[MI][4];
#pragma unroll
                for (int mi = 0; mi < MI; ++mi) {
                    if (c < V_KEPT) {
#pragma unroll
                        for (int e = 0; e < 4; ++e) va[mi][e] = v[mi][c < V_KEPT ? c : 0][e];
                    } else {
                        load_a<HD>(va[mi], v_tile, at_mk, row0 + 16 * mi, 16 * c);
                    }
                }
#pragma unroll
                for (int n = 0; n < SLICE / 16; ++n) {
                    uint32_t bq[4], bo[4];
                    load_b_nk<HD>(bq, q_tile, at_nk, x + 16 * n, 16 * c);
                    load_b_nk<HD>(bo, do_tile, at_nk, x + 16 * n, 16 * c);
#pragma unroll
                    for (int mi = 0; mi < MI; ++mi) {
                        mma_16x16(s[mi][2 * n], s[mi][2 * n + 1], k[mi][c], bq);
                        mma_16x16(dp[mi][2 * n], dp[mi][2 * n + 1], va[mi], bo);
                    }
                }
            }
            const bool masked = m0 + x < all_see;
#pragma unroll
            for (int n = 0; n < SLICE / 8; ++n) {
                const int col = x + 8 * n + 2 * (lane & 3);
                const float4 st = *reinterpret_cast<const float4*>(stat + 2 * col);
#pragma unroll
                for (int mi = 0; mi < MI; ++mi)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        float p = fast_exp2(s[mi][n][e] * scale2 - (e & 1 ? st.z : st.x));
                        if (masked && hidden(m0 + col + (e & 1), (row0 + 16 * mi + 8 * (e >> 1) + (lane >> 2)) * h.group)) p = 0.0f;
                        s[mi][n][e] = p;
                        dp[mi][n][e] = p * (dp[mi][n][e] - (e & 1 ? st.w : st.y));
                    }
            }
#pragma unroll
            for (int n = 0; n < SLICE / 16; ++n) {
                uint32_t p[MI][4], ds[MI][4];
#pragma unroll
                for (int mi = 0; mi < MI; ++mi) {
                    pack_a(p[mi], s[mi][2 * n], s[mi][2 * n + 1]);
                    pack_a(ds[mi], dp[mi][2 * n], dp[mi][2 * n + 1]);
                }
#pragma unroll
                for (int c = 0; c < HD / 16; ++c) {
                    uint32_t bo[4], bq[4];
                    load_b_kn<HD>(bo, do_tile, at_mk, x + 16 * n, 16 * c);
                    load_b_kn<HD>(bq, q_tile, at_mk, x + 16 * n, 16 * c);
#pragma unroll
                    for (int mi = 0; mi < MI; ++mi) {
                        mma_16x16(dv[mi][2 * c], dv[mi][2 * c + 1], p[mi], bo);
                        mma_16x16(dk[mi][2 * c], dk[mi][2 * c + 1], ds[mi], bq);
                    }
                }
            }
        }
        if (more) park_stats((j + 1) & 1);
    }

    // k_tile's and v_tile's rows are this warp's own. Without a query no barrier was passed: the copies into them must land first.
    if (tiles_q == 0) {
        cp_async_wait<0>();
        __syncthreads();
    }
    const float for_k[2] = {scale, scale}, for_v[2] = {1.0f, 1.0f};
#pragma unroll
    for (int mi = 0; mi < MI; ++mi) {
        stage_rows<HD>(k_tile, row0 + 16 * mi, dk[mi], for_k);
        stage_rows<HD>(v_tile, row0 + 16 * mi, dv[mi], for_v);
    }
    __syncwarp();
    auto row_at = [&](int r) -> bf16* { return r < t.kv_rows ? dqkv + kv + size_t(r) * stride : nullptr; };
    store_rows<HD, MI>(k_tile, row0, row_at);
    store_rows<HD, MI>(v_tile, row0, [&](int r) -> bf16* { return r < t.kv_rows ? row_at(r) + kv_heads * HD : nullptr; });
}

#define ATTENTION_BWD_DELTA(HD)                                                                                         \
    KERNEL(kAttnThreads, attention_bwd_delta_hd##HD)(float* __restrict__ delta, const bf16* __restrict__ dout,          \
                                                     const bf16* __restrict__ out, int n) {                             \
        attention_bwd_delta_rows<HD>(delta, dout, out, n);                                                              \
    }                                                                                                                   \
    EXPORT_KERNEL(attention_bwd_delta_hd##HD)
#define ATTENTION_BWD(KIND, HD, CTAS, ...)                                                                              \
    ATTENTION_KERNEL(kAttnThreads, attention_bwd_##KIND##_hd##HD, CTAS)(                                                              \
        bf16* __restrict__ dqkv, const bf16* __restrict__ dout, const float* __restrict__ lse,                          \
        const float* __restrict__ delta, const bf16* __restrict__ qkv, const unsigned* __restrict__ tiles, int heads,        \
        int kv_heads, float scale) {                                                                                    \
        attention_bwd_##KIND##_tile<HD, __VA_ARGS__>(dqkv, dout, lse, delta, qkv, tiles, heads, kv_heads, scale);       \
    }                                                                                                                   \
    EXPORT_KERNEL(attention_bwd_##KIND##_hd##HD)

ATTENTION_BWD_DELTA(32)
ATTENTION_BWD_DELTA(64)
ATTENTION_BWD_DELTA(96)
ATTENTION_BWD_DELTA(128)
ATTENTION_BWD(dq, 32, 3, 2, 64, 16, true)
ATTENTION_BWD(dq, 64, 2, 2, 64, 16, true)
ATTENTION_BWD(dq, 96, 2, 2, 64, 32, false)
ATTENTION_BWD(dq, 128, 2, 1, 32, 32, true)
ATTENTION_BWD(dkv, 32, 3, 2, 64, 16, 2)
ATTENTION_BWD(dkv, 64, 3, 1, 64, 16, 4)
ATTENTION_BWD(dkv, 96, 2, 1, 64, 16, 6)
ATTENTION_BWD(dkv, 128, 2, 1, 32, 16, 4)
#endif  // STORAGE_BF16
