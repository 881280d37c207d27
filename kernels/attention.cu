// Attention, forward, on tensor cores (bf16).   out = softmax(scale * q k^T) v,   lse = log sum exp(scale * q k^T),
//            for every query over the keys that it sees: its prompt's, and its own segment's up to itself. scale = head_dim^-1/2.
// Source     Milakov & Gimelshein 2018 (online softmax); Dao 2023, FlashAttention-2 (arXiv 2307.08691), alg. 1; shared prefixes
//            as one logical key sequence: attention.cuh.
// Shapes     qkv (rows, (heads + 2 kv_heads) HD)   out (rows, heads HD)   lse (rows, heads) f32.   HD = 32, 64, 96, 128.
//            bf16 in and out; products accumulate in f32; P is rounded to bf16 for P v, its sum is taken before rounding.
// Launch     grid = (kv_heads, entries of the query table), block = 128; the table: attention.cuh. One block: 128 packed queries
//            (4 warps of 32), keys and values in tiles of BN through two stages of cp.async, one barrier a tile.
//            HD            32     64     96    128
//            BN            64     64     64     32
//            shared bytes  24576  49152  73728  65536     = 2 HD (128 + 4 BN)
//            blocks an SM   3      2      2      2        by registers (launch bounds), 228 KiB of shared memory
// FLOPs      4 HD heads a visible (query, key) pair; executed: whole tiles, but a warp skips tiles that none of its rows sees.
// Traffic    least: qkv and out once, 2 rows ((2 heads + 2 kv_heads) HD) + 4 rows heads bytes. Keys and values are read once per
//            128 packed queries of their kv head, from L2 but for the first time.
// Order      keys from the prompt's first to the own: tiles of BN of the logical sequence, inside a tile the tensor core's
//            order; row sums lane by lane, then over 4 lanes. Nothing depends on the place of a row in its tile: hidden keys
//            add exact zeros. No atomics.
// Limits     rows * group^2 < 2^31 (quotients by a 31-bit inverse); 16-byte aligned buffers; a NaN in a key reaches the
//            earlier queries of its tile (0 * NaN). A row whose sum is NaN gets NaN in out and in lse.
// Reference  src/backend/cpu/attention/; attention_plain.cu.
// Choices    32 rows a warp, not 16: every fragment of K and V then feeds two products, 128 bytes of shared memory an mma
//            instead of 256 (at 256 the 128 bytes a cycle of an SM are the limit before the tensor cores are). BN = 32 at
//            HD = 128: 48 and 64 spill on some target. Q stays in registers at HD = 64 (32 of them), elsewhere it is read again
//            from shared memory. One list of tiles, longest first, instead of a persistent grid. wgmma and TMA: docs/attention.md.
//            Nothing here was measured on a GPU yet.
#include "attention.cuh"
#ifdef STORAGE_BF16

// MI: blocks of 16 packed queries a warp. BN: keys a tile. Q_KEPT: Q's fragments stay in registers.
template <int HD, int MI, int BN, bool Q_KEPT>
struct Forward {
    static constexpr int kRows = 16 * MI * kAttnWarps, kTile = BN * HD;
    typedef uint32_t Query[Q_KEPT ? MI : 1][Q_KEPT ? HD / 16 : 1][4];
    typedef float Scores[MI][BN / 8][4];
    typedef float Output[MI][HD / 8][4];
    typedef float Rows[2 * MI];  // rows g and g + 8 of every block, g = lane / 4

    // s = q k^T.
    static __device__ __forceinline__ void scores(
            Scores& s, const Query& q, const bf16* q_tile, int at_mk, int row0, const bf16* k_tile, int at_nk) {
        zero(s);
#pragma unroll(Q_KEPT ? HD / 16 : 4)
        for (int k = 0; k < HD / 16; ++k) {
            uint32_t read[MI][4];
            if (!Q_KEPT) {
#pragma unroll
                for (int mi = 0; mi < MI; ++mi) load_a<HD>(read[mi], q_tile, at_mk, row0 + 16 * mi, 16 * k);
            }
#pragma unroll
            for (int n = 0; n < BN / 16; ++n) {
                uint32_t b[4];
                load_b_nk<HD>(b, k_tile, at_nk, 16 * n, 16 * k);
#pragma unroll
                for (int mi = 0; mi < MI; ++mi) {
                    if constexpr (Q_KEPT) mma_16x16(s[mi][2 * n], s[mi][2 * n + 1], q[mi][k], b);
                    else mma_16x16(s[mi][2 * n], s[mi][2 * n + 1], read[mi], b);
                }
            }
        }
    }

    // Minus infinity where packed query lane_m + 16 mi (+ 8) does not see the key; from `seen_from` on they see this lane's first.
    static __device__ __forceinline__ void hide(Scores& s, int lane_m, int seen_from, int group) {
#pragma unroll
        for (int mi = 0; mi < MI; ++mi)
#pragma unroll
            for (int n = 0; n < BN / 8; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int m = lane_m + 16 * mi + 8 * (e >> 1);
                    if (hidden(m, seen_from + (8 * n + (e & 1)) * group)) s[mi][n][e] = -INFINITY;
                }
    }

    // Scores become exp(scale (s - max)); what was summed under a smaller maximum shrinks. Key 0 is in the first tile and
    // every row sees it, so the maximum is finite from then on.
    static __device__ __forceinline__ void online_softmax(
            Scores& s, Output& o, Rows& row_max, Rows& row_sum, float scale2) {
#pragma unroll
        for (int i = 0; i < 2 * MI; ++i) {
            const int mi = i >> 1, e = 2 * (i & 1);
            float top = row_max[i];
#pragma unroll
            for (int n = 0; n < BN / 8; ++n) top = fmaxf(top, fmaxf(s[mi][n][e], s[mi][n][e + 1]));
            top = fmaxf(top, __shfl_xor_sync(FULL, top, 1));
            top = fmaxf(top, __shfl_xor_sync(FULL, top, 2));
            const float shrink = fast_exp2((row_max[i] - top) * scale2), offset = top * scale2;
            row_max[i] = top;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < BN / 8; ++n) {
                s[mi][n][e] = fast_exp2(s[mi][n][e] * scale2 - offset);
                s[mi][n][e + 1] = fast_exp2(s[mi][n][e + 1] * scale2 - offset);
                sum += s[mi][n][e] + s[mi][n][e + 1];
            }
            row_sum[i] = row_sum[i] * shrink + sum;
#pragma unroll
            for (int n = 0; n < HD / 8; ++n) {
                o[mi][n][e] *= shrink;
                o[mi][n][e + 1] *= shrink;
            }
        }
    }

    // o += p v.
    static __device__ __forceinline__ void add_values(Output& o, const Scores& p, const bf16* v_tile, int at_mk) {
#pragma unroll
        for (int k = 0; k < BN / 16; ++k) {
            uint32_t a[MI][4];
#pragma unroll
            for (int mi = 0; mi < MI; ++mi) pack_a(a[mi], p[mi][2 * k], p[mi][2 * k + 1]);
#pragma unroll
            for (int n = 0; n < HD / 16; ++n) {
                uint32_t b[4];
                load_b_kn<HD>(b, v_tile, at_mk, 16 * k, 16 * n);
#pragma unroll
                for (int mi = 0; mi < MI; ++mi) mma_16x16(o[mi][2 * n], o[mi][2 * n + 1], a[mi], b);
            }
        }
    }

    // Divides by the sums, writes lse, and leaves the rows of this warp in `tile` and then in out. Only this warp reads its rows of
    // q_tile, so that is what `tile` may be. A sum that is 0 is that of a row of no segment, which has no keys.
    static __device__ __forceinline__ void finish(
            bf16* __restrict__ out, float* __restrict__ lse, bf16* tile, const Output& o, const Rows& row_max,
            const Rows& row_sum, const Heads& h, const QueryTile& t, int row0, float scale) {
        const int lane_m = t.m_begin + row0 + (threadIdx.x & 31) / 4;
        rows_are_free();
#pragma unroll
        for (int mi = 0; mi < MI; ++mi) {
            float inverse[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int i = 2 * mi + half, m = lane_m + 8 * i;
                float sum = row_sum[i];
                sum += __shfl_xor_sync(FULL, sum, 1);
                sum += __shfl_xor_sync(FULL, sum, 2);
                inverse[half] = sum == 0.0f ? 0.0f : 1.0f / sum;
                if ((threadIdx.x & 3) == 0 && m < t.m_end) {
                    lse[row_head(h, t.seg_start, m)] = sum == 0.0f ? 0.0f : row_max[i] * scale + logf(sum);
                }
            }
            stage_rows<HD>(tile, row0 + 16 * mi, o[mi], inverse);
        }
        __syncwarp();
        store_rows<HD, MI>(tile, row0, [&](int r) -> bf16* {
            const int m = t.m_begin + r;
            return m < t.m_end ? out + row_head(h, t.seg_start, m) * HD : nullptr;
        });
    }

    static __device__ __forceinline__ void run(
            bf16* __restrict__ out, float* __restrict__ lse, const bf16* __restrict__ qkv, const unsigned* __restrict__ tiles,
            int heads, int kv_heads, float scale) {
        const QueryTile t = load_query_tile(tiles, blockIdx.y);
        if (t.m_end == t.m_begin) return;
        const Heads h = heads_of(heads, kv_heads, blockIdx.x);
        DYNAMIC_SHARED(bf16, shared);
        bf16 *q_tile = shared, *stages = shared + kRows * HD;  // a stage: keys, then values
        const int lane = threadIdx.x & 31, row0 = int(threadIdx.x >> 5) * 16 * MI;
        const int at_mk = lane_mk<HD>(lane), at_nk = lane_nk<HD>(lane);
        const bf16* kv = qkv + size_t(heads + h.kv_head) * HD;
        const WarpRows rows = warp_rows(t, h, row0, 16 * MI);
        Output o;
        Rows row_max, row_sum;
        Query q;
        zero(o);
#pragma unroll
        for (int i = 0; i < 2 * MI; ++i) {
            row_max[i] = -INFINITY;
            row_sum[i] = 0.0f;
        }
        const int key_tiles = (t.kv_len + BN - 1) / BN;
        if (key_tiles > 0) {
            const PackedQueries q_rows = PackedQueries::in<HD>(qkv, qkv_width<HD>(h), h, t.seg_start);
            load_queries<HD, kRows, 1>({q_tile}, {q_rows}, h, t.m_begin, t.m_end);
            load_keys<HD, BN>(stages, stages + kTile, kv, h, t, 0);
        }
        cp_async_commit();
        for (int j = 0; j < key_tiles; ++j) {
            const int key0 = j * BN;
            bf16 *stage = stages + (j & 1) * 2 * kTile, *next = stages + (~j & 1) * 2 * kTile;
            cp_async_wait<0>();
            __syncthreads();  // tile j is visible to all, and nobody reads tile j - 1 any more
            if (j + 1 < key_tiles) load_keys<HD, BN>(next, next + kTile, kv, h, t, key0 + BN);
            cp_async_commit();
            if (Q_KEPT && j == 0) load_fragments<HD>(q, q_tile, at_mk, row0);
            if (key0 > rows.last_key) continue;  // nothing here for this warp, but it meets the barriers
            Scores s;
            scores(s, q, q_tile, at_mk, row0, stage, at_nk);
            if (key0 + BN - 1 > rows.first_key) {
                hide(s, rows.lane_m, first_to_see(key0 + 2 * (lane & 3), t, h), h.group);
            }
            online_softmax(s, o, row_max, row_sum, scale * LOG2E);
            add_values(o, s, stage + kTile, at_mk);
        }
        finish(out, lse, q_tile, o, row_max, row_sum, h, t, row0, scale);
    }
};

#define ATTENTION_FWD(HD, CTAS, ...)                                                                      \
    DENSE_KERNEL(kAttnThreads, CTAS, attention_fwd_hd##HD)(                                               \
            bf16* __restrict__ out, float* __restrict__ lse, const bf16* __restrict__ qkv,                \
            const unsigned* __restrict__ tiles, int heads, int kv_heads, float scale) {                   \
        Forward<HD, __VA_ARGS__>::run(out, lse, qkv, tiles, heads, kv_heads, scale);                      \
    }                                                                                                     \
    EXPORT_KERNEL(attention_fwd_hd##HD)

ATTENTION_FWD(32, 3, 2, 64, false)
ATTENTION_FWD(64, 2, 2, 64, true)
ATTENTION_FWD(96, 2, 2, 64, false)
ATTENTION_FWD(128, 2, 2, 32, false)
#endif  // STORAGE_BF16
