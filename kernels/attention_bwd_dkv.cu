// Attention, backward for keys and values, on tensor cores (bf16).   p, ds as in attention_bwd_dq.cu,
//            dv = p^T dout,   dk = scale ds^T q.
// Source     Dao 2023, FlashAttention-2 (arXiv 2307.08691), alg. 2, as two passes without atomics.
// Shapes     as attention_bwd_dq.cu; p and ds are rounded to bf16 as operands.
// Launch     attention_bwd_dkv: grid = (kv_heads, entries of the key table), block = 128. BM keys stay; all queries that see them pass
//            by, BN packed queries at a time, of all heads of the group: a prompt's keys see its own rows and those of every response,
//            which lie behind it, so the packed queries are one range and the causal bound is the only mask. Tiles that very many
//            see come in parts, whose sums go to f32 scratch (attention.cuh).
//            attention_bwd_dkv_sum: grid = (kv_heads, entries, 4), block = 256: adds up the parts.
//            HD                 32     64     96    128
//            BM x BN        128x64 128x64  64x64  64x32
//            shared bytes    33792  66560  74752  66048    = 2 HD (2 BM + 4 BN) + 16 BN
//            blocks an SM        3      2      2      2    by registers (launch bounds), 228 KiB of shared memory
// FLOPs      8 HD heads a visible (query, key) pair.
// Traffic    least: queries, keys, values, dout, dk, dv, lse, delta once: 2 rows ((2 heads + 4 kv_heads) HD) + 8 rows heads bytes.
//            Queries and dout again for every BM keys, from L2.
//            Parts: 16 kv_heads HD bytes a row and part, written once and read once.
// Order      packed queries ascending (row by row, heads of the group inside), SLICE at a time; each element by one thread. Parts in
//            order; where they are cut follows from the batch and its capacity, not from the GPU. No atomics.
// Limits     as attention.cu.
// Reference  src/backend/cpu/attention/; attention_plain.cu.
// Choices    The problem is transposed (rows are keys), so p^T and ds^T are operands where they were computed and no warp needs
//            another's. 32 keys a warp up to HD = 64, 16 above (two accumulators of HD columns each): with 32 every fragment of a
//            query feeds two products. As many of the values' fragments stay in registers as spill nowhere, the rest is read again.
//            Long prompts of many responses make long blocks: they come first, in parts of at most 2,048 packed queries
//            (`PART_QUERIES` in schedule.rs; by the model of scripts/attention_schedule.py). Chosen by the compiler's report as
//            attention_bwd_dq.cu. Nothing here was measured on a GPU yet.
#include "attention.cuh"
#ifdef STORAGE_BF16

// ---- dK, dV: keys stay --------------------------------------------------------------------------------------------
// MI: blocks of 16 keys a warp. BQ: packed queries a tile, taken SLICE at a time. V_KEPT: how many of the HD / 16 fragments of a
// block's values stay in registers (those of its keys all do).
template <int HD, int MI, int BQ, int SLICE, int V_KEPT>
struct KeyGradient {
    static constexpr int kRows = 16 * MI * kAttnWarps, kTile = BQ * HD;
    typedef float Slice[MI][SLICE / 8][4];  // transposed: rows are keys, columns packed queries
    typedef float Gradient[MI][HD / 8][4];
    typedef uint32_t Keys[MI][HD / 16][4];
    typedef uint32_t Values[MI][V_KEPT][4];

    // lse (in powers of 2) and delta of one packed query, on their way from global to shared memory.
    struct Stats {
        float lse, delta;
    };
    static __device__ __forceinline__ Stats load_stats(
            const float* __restrict__ lse, const float* __restrict__ delta, const Heads& h, int start, int m, int m_end) {
        const bool live = m < m_end;
        const size_t at = row_head(h, start, live ? m : 0);
        return {live ? lse[at] * LOG2E : INFINITY, live ? delta[at] : 0.0f};  // infinity: probability 0
    }
    static __device__ __forceinline__ void store_stats(float* stats, Stats s) {
        if (threadIdx.x >= BQ) return;
        stats[2 * threadIdx.x] = s.lse;
        stats[2 * threadIdx.x + 1] = s.delta;
    }

    // Starts copying the block's keys and values, `rows` of them; the others become zeros.
    static __device__ __forceinline__ void load_own(
            bf16* k_tile, bf16* v_tile, const bf16* __restrict__ kv, const Heads& h, int rows) {
        const CopyPlan<HD> plan;
        const char* from = reinterpret_cast<const char*>(kv + plan.column);
#pragma unroll
        for (int turn = 0; turn < kRows / plan.kStep; ++turn) {
            const int row = plan.row + turn * plan.kStep;
            const char* key = from + size_t(row) * (2 * qkv_width<HD>(h));
            plan.start(k_tile, turn, key, row < rows);
            plan.start(v_tile, turn, key + 2 * h.kv_heads * HD, row < rows);
        }
    }

    // s = k q^T and dp = v dout^T for the packed queries at `row` of the tiles.
    static __device__ __forceinline__ void products(
            Slice& s, Slice& dp, const Keys& k, const Values& v, const bf16* v_tile, int at_mk, int row0, const bf16* q_tile,
            int at_nk, int row) {
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
                load_b_nk<HD>(bq, q_tile, at_nk, row + 16 * n, 16 * c);
                load_b_nk<HD>(bo, q_tile + kTile, at_nk, row + 16 * n, 16 * c);
#pragma unroll
                for (int mi = 0; mi < MI; ++mi) {
                    mma_16x16(s[mi][2 * n], s[mi][2 * n + 1], k[mi][c], bq);
                    mma_16x16(dp[mi][2 * n], dp[mi][2 * n + 1], va[mi], bo);
                }
            }
        }
    }

    // p = exp(scale s - lse), 0 where hidden, into s; ds = p (dp - delta) into dp. `lane_key`: this lane's first key, from the first
    // key of the tile; `m0`: packed query of the first column; `stats`: of that column.
    static __device__ __forceinline__ void probabilities(
            Slice& s, Slice& dp, const float* stats, float scale2, bool masked, int m0, int lane_key, int group) {
#pragma unroll
        for (int n = 0; n < SLICE / 8; ++n) {
            const int col = 8 * n + 2 * (threadIdx.x & 3);
            const float4 st = *reinterpret_cast<const float4*>(stats + 2 * col);
#pragma unroll
            for (int mi = 0; mi < MI; ++mi)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float p = fast_exp2(s[mi][n][e] * scale2 - (e & 1 ? st.z : st.x));
                    s[mi][n][e] = p;
                    dp[mi][n][e] = p * (dp[mi][n][e] - (e & 1 ? st.w : st.y));
                }
        }
        if (!masked) return;
#pragma unroll
        for (int mi = 0; mi < MI; ++mi)
#pragma unroll
            for (int n = 0; n < SLICE / 8; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int m = m0 + 8 * n + 2 * (threadIdx.x & 3) + (e & 1), key = lane_key + 16 * mi + 8 * (e >> 1);
                    if (hidden(m, key * group)) s[mi][n][e] = dp[mi][n][e] = 0.0f;
                }
    }

    // dv += p dout, dk += ds q.
    static __device__ __forceinline__ void add_queries(
            Gradient& dk, Gradient& dv, const Slice& p, const Slice& ds, const bf16* q_tile, int at_mk, int row) {
#pragma unroll
        for (int n = 0; n < SLICE / 16; ++n) {
            uint32_t pa[MI][4], da[MI][4];
#pragma unroll
            for (int mi = 0; mi < MI; ++mi) {
                pack_a(pa[mi], p[mi][2 * n], p[mi][2 * n + 1]);
                pack_a(da[mi], ds[mi][2 * n], ds[mi][2 * n + 1]);
            }
#pragma unroll
            for (int c = 0; c < HD / 16; ++c) {
                uint32_t bo[4], bq[4];
                load_b_kn<HD>(bo, q_tile + kTile, at_mk, row + 16 * n, 16 * c);
                load_b_kn<HD>(bq, q_tile, at_mk, row + 16 * n, 16 * c);
#pragma unroll
                for (int mi = 0; mi < MI; ++mi) {
                    mma_16x16(dv[mi][2 * c], dv[mi][2 * c + 1], pa[mi], bo);
                    mma_16x16(dk[mi][2 * c], dk[mi][2 * c + 1], da[mi], bq);
                }
            }
        }
    }

    // A part's sums as they are: this warp's rows of those at `to`, `width` apart.
    static __device__ __forceinline__ void store_sums(
            float* __restrict__ to, int width, const Gradient& dk, const Gradient& dv, int row0, int rows) {
        const int lane = threadIdx.x & 31;
#pragma unroll
        for (int i = 0; i < 2 * MI; ++i) {
            const int mi = i >> 1, e = 2 * (i & 1), row = row0 + 8 * i + lane / 4;
            float* at = to + size_t(row) * width + 2 * (lane & 3);
            if (row >= rows) continue;
#pragma unroll
            for (int n = 0; n < HD / 8; ++n) {
                *reinterpret_cast<float2*>(at + 8 * n) = float2{dk[mi][n][e], dk[mi][n][e + 1]};
                *reinterpret_cast<float2*>(at + HD + 8 * n) = float2{dv[mi][n][e], dv[mi][n][e + 1]};
            }
        }
    }

    static __device__ __forceinline__ void run(
            bf16* __restrict__ dqkv, float* __restrict__ partial, const bf16* __restrict__ dout,
            const float* __restrict__ lse, const float* __restrict__ delta, const bf16* __restrict__ qkv,
            const unsigned* __restrict__ tiles, int heads, int kv_heads, float scale) {
        const KeyTile t = load_key_tile(tiles, blockIdx.y);
        if (t.kv_rows == 0) return;
        const Heads h = heads_of(heads, kv_heads, blockIdx.x);
        DYNAMIC_SHARED(bf16, shared);
        bf16 *k_tile = shared, *v_tile = shared + kRows * HD, *stages = shared + 2 * kRows * HD;  // a stage: queries, then dout
        float* stats = reinterpret_cast<float*>(stages + 4 * kTile);                              // a stage: BQ pairs (lse, delta)
        const int lane = threadIdx.x & 31, row0 = int(threadIdx.x >> 5) * 16 * MI;
        const int at_mk = lane_mk<HD>(lane), at_nk = lane_nk<HD>(lane);
        const size_t stride = qkv_width<HD>(h), kv = size_t(t.kv_start) * stride + size_t(heads + h.kv_head) * HD;
        const PackedQueries q_rows = PackedQueries::in<HD>(qkv, qkv_width<HD>(h), h, t.kv_start);
        const PackedQueries do_rows = PackedQueries::in<HD>(dout, heads * HD, h, t.kv_start);
        const int query_tiles = (t.m_end - t.m_begin + BQ - 1) / BQ;
        auto start = [&](int m0, int stage) {
            bf16* to = stages + stage * 2 * kTile;
            load_queries<HD, BQ, 2>({to, to + kTile}, {q_rows, do_rows}, h, m0, t.m_end);
        };
        load_own(k_tile, v_tile, qkv + kv, h, t.kv_rows);
        if (query_tiles > 0) {
            start(t.m_begin, 0);
            store_stats(stats, load_stats(lse, delta, h, t.kv_start, t.m_begin + int(threadIdx.x), t.m_end));
        }
        cp_async_commit();
        Gradient dk, dv;
        Keys k;
        Values v;
        zero(dk);
        zero(dv);
        const int first_seen = row0 < t.kv_rows ? row0 * h.group : 0x7fffffff;  // packed queries before it see none of this warp's keys
        const int all_see = (row0 + 16 * MI - 1) * h.group;                     // and from this one on, all of them
        for (int j = 0; j < query_tiles; ++j) {
            cp_async_wait<0>();
            __syncthreads();  // tile j is visible to all, and nobody reads tile j - 1 any more
            const int m0 = t.m_begin + j * BQ;
            const bool more = j + 1 < query_tiles;
            Stats next{0.0f, 0.0f};
            if (more) {
                start(m0 + BQ, (j + 1) & 1);
                next = load_stats(lse, delta, h, t.kv_start, m0 + BQ + int(threadIdx.x), t.m_end);
            }
            cp_async_commit();
            if (j == 0) {
                load_fragments<HD>(k, k_tile, at_mk, row0);
                load_fragments<HD>(v, v_tile, at_mk, row0);
            }
            const bf16* q_tile = stages + (j & 1) * 2 * kTile;
#pragma unroll
            for (int x = 0; x < BQ; x += SLICE) {
                if (m0 + x + SLICE <= first_seen) continue;
                Slice s, dp;
                products(s, dp, k, v, v_tile, at_mk, row0, q_tile, at_nk, x);
                const float* of_slice = stats + 2 * ((j & 1) * BQ + x);
                probabilities(s, dp, of_slice, scale * LOG2E, m0 + x < all_see, m0 + x, row0 + (lane >> 2), h.group);
                add_queries(dk, dv, s, dp, q_tile, at_mk, x);
            }
            if (more) store_stats(stats + 2 * ((j + 1) & 1) * BQ, next);
        }
        const KeyTilePart p = load_key_tile_part(tiles, blockIdx.y);
        if (p.parts > 1) {
            const size_t first = size_t(p.partial_row) + p.part * t.kv_rows;
            float* sums = partial + first * (2 * kv_heads * HD) + h.kv_head * 2 * HD;
            store_sums(sums, 2 * kv_heads * HD, dk, dv, row0, t.kv_rows);
            return;
        }
        // k_tile's and v_tile's rows are this warp's own. Without a query no barrier was passed: the copies must land first.
        if (query_tiles == 0) {
            cp_async_wait<0>();
            __syncthreads();
        }
        const float for_k[2] = {scale, scale}, for_v[2] = {1.0f, 1.0f};
        rows_are_free();
#pragma unroll
        for (int mi = 0; mi < MI; ++mi) {
            stage_rows<HD>(k_tile, row0 + 16 * mi, dk[mi], for_k);
            stage_rows<HD>(v_tile, row0 + 16 * mi, dv[mi], for_v);
        }
        __syncwarp();
        bf16 *to_k = dqkv + kv, *to_v = to_k + kv_heads * HD;
        store_rows<HD, MI>(k_tile, row0, [&](int r) { return r < t.kv_rows ? to_k + size_t(r) * stride : nullptr; });
        store_rows<HD, MI>(v_tile, row0, [&](int r) { return r < t.kv_rows ? to_v + size_t(r) * stride : nullptr; });
    }
};

#define ATTENTION_BWD_DKV(HD, CTAS, ...)                                                                   \
    DENSE_KERNEL(kAttnThreads, CTAS, attention_bwd_dkv_hd##HD)(                                            \
            bf16* __restrict__ dqkv, float* __restrict__ partial, const bf16* __restrict__ dout,           \
            const float* __restrict__ lse, const float* __restrict__ delta, const bf16* __restrict__ qkv,  \
            const unsigned* __restrict__ tiles, int heads, int kv_heads, float scale) {                    \
        KeyGradient<HD, __VA_ARGS__>::run(dqkv, partial, dout, lse, delta, qkv, tiles, heads, kv_heads, scale); \
    }                                                                                                      \
    EXPORT_KERNEL(attention_bwd_dkv_hd##HD)

// dk and dv of the tiles that have parts: the sums of the parts, added from the first to the last.
KERNEL(256, attention_bwd_dkv_sum)(
        bf16* __restrict__ dqkv, const float* __restrict__ partial, const unsigned* __restrict__ tiles, int heads, int kv_heads,
        int head_dim, float scale) {
    const KeyTilePart p = load_key_tile_part(tiles, blockIdx.y);
    if (p.parts < 2 || p.part > 0) return;
    const KeyTile t = load_key_tile(tiles, blockIdx.y);
    const int kv_head = blockIdx.x, packs = head_dim / 4;  // of 8 numbers, of dk and then of dv
    const size_t width = size_t(2) * kv_heads * head_dim, stride = size_t(heads + 2 * kv_heads) * head_dim;
    for (int i = blockIdx.z * blockDim.x + threadIdx.x; i < t.kv_rows * packs; i += gridDim.z * blockDim.x) {
        const int row = i / packs, c = i % packs * 8;
        const float* from = partial + size_t(p.partial_row + row) * width + kv_head * 2 * head_dim + c;
        Floats<8> sum = load_floats<true>(from, 8);
#pragma unroll 4
        for (int part = 1; part < p.parts; ++part) {
            const Floats<8> more = load_floats<true>(from + size_t(part) * t.kv_rows * width, 8);
#pragma unroll
            for (int e = 0; e < 8; ++e) sum[e] += more[e];
        }
        const bool values = c >= head_dim;
#pragma unroll
        for (int e = 0; e < 8; ++e) sum[e] *= values ? 1.0f : scale;
        const int column = values ? (heads + kv_heads + kv_head) * head_dim + c - head_dim : (heads + kv_head) * head_dim + c;
        store16(dqkv + size_t(t.kv_start + row) * stride + column, packed(sum));
    }
}
EXPORT_KERNEL(attention_bwd_dkv_sum)

// At HD = 64 ptxas finds room for two of the values' fragments up to Hopper, and for one after it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kValuesKept64 = 1;
#else
constexpr int kValuesKept64 = 2;
#endif

ATTENTION_BWD_DKV(32, 3, 2, 64, 16, 1)
ATTENTION_BWD_DKV(64, 2, 2, 64, 16, kValuesKept64)
ATTENTION_BWD_DKV(96, 2, 1, 64, 16, 6)
ATTENTION_BWD_DKV(128, 2, 1, 32, 16, 4)
#endif  // STORAGE_BF16
