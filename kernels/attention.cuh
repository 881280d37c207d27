// What the attention kernels share: the schedule they read, tiles in shared memory, fragments of tensor-core products.
//
// Logical keys. A query of row `r` of a segment (start, len, prefix) sees keys 0 .. prefix_len + r of one sequence: the
// prompt's rows, then the segment's own. Key j lives in row `j < prefix_len ? prefix_start + j : seg_start + j - prefix_len`.
// Tiles of keys are cut on that sequence, not on the two parts, so no tile is left half empty where the prompt ends, and
// sharing a prompt gives the same bits as repeating it in front of every response.
//
// Packed queries. The `group = heads / kv_heads` query heads that read one key/value head are packed into the M dimension:
// packed query m of a segment is row m / group, head kv_head * group + m % group. Tiles of M then fill up even where
// segments are short, and a tile's keys are loaded once for all heads of the group.
//
// Tiles in shared memory are rows of HD bf16 without padding; 16-byte chunks are permuted inside a row (`chunk_at`), so that
// the 8 rows that one ldmatrix phase or one 128-byte store phase touches lie in 8 different groups of banks.
#pragma once
#include "common.cuh"

constexpr int kAttnWarps = 4;
constexpr int kAttnThreads = 32 * kAttnWarps;

// One entry of the query schedule (8 numbers), made by src/backend/gpu/schedule.rs: up to kQueryRows packed queries of one
// segment. m_end == m_begin: nothing to do. kv_len == 0: rows of no segment, which get zeros.
constexpr int kQueryRows = 128;
struct QueryTile {
    int seg_start, m_begin, m_end, prefix_start, prefix_len, kv_len;
};
__device__ __forceinline__ QueryTile load_query_tile(const unsigned* __restrict__ tiles, int i) {
    const unsigned* t = tiles + size_t(i) * 8;
    return {int(t[0]), int(t[1]), int(t[2]), int(t[3]), int(t[4]), int(t[5])};
}

// One entry of the key schedule (8 numbers): rows kv_start .. kv_start + kv_rows, and packed queries m_begin .. m_end of those that
// see them, counted from row kv_start on (of these, row q sees row k exactly if q >= k). kv_rows == 0: nothing to do;
// m_end == m_begin: nobody sees them, zeros. Where many queries see a tile it has `parts` entries, each of some of them; the sums of
// part `part` lie in rows partial_row + part * kv_rows .. of an array of rows x kv_heads x (HD of dk, HD of dv), f32.
struct KeyTile {
    int kv_start, kv_rows, m_begin, m_end;
};
__device__ __forceinline__ KeyTile load_key_tile(const unsigned* __restrict__ tiles, int i) {
    const unsigned* t = tiles + size_t(i) * 8;
    return {int(t[0]), int(t[1]), int(t[2]), int(t[3])};
}
struct KeyTilePart {
    int partial_row, part, parts;
};
// Volatile: read where it is needed, not carried through a kernel's loop in registers that it has no room for.
__device__ __forceinline__ KeyTilePart load_key_tile_part(const unsigned* tiles, int i) {
    const volatile unsigned* t = tiles + size_t(i) * 8 + 4;
    return {int(t[0]), int(t[1]), int(t[2])};
}

// Geometry of one launch. A row of qkv is heads queries, kv_heads keys, kv_heads values, each HD elements.
struct Heads {
    int heads, kv_heads, group, kv_head;
    unsigned inverse;  // ceil(2^31 / group): exact quotients while m * group < 2^31, which the launch wrapper checks
    __device__ __forceinline__ int row_of(int m) const { return int((uint64_t(2u * unsigned(m)) * inverse) >> 32); }
};
__device__ __forceinline__ Heads heads_of(int heads, int kv_heads, int kv_head) {
    const unsigned group = unsigned(heads) / unsigned(kv_heads);
    return {heads, kv_heads, int(group), kv_head, (0x80000000u + group - 1) / group};
}
// The first packed query of a segment that sees logical key j (0 or less: all do), and whether m comes before it.
__device__ __forceinline__ int first_to_see(int j, const QueryTile& t, const Heads& h) { return (j - t.prefix_len) * h.group; }
__device__ __forceinline__ bool hidden(int m, int seen_from) { return m < seen_from; }
// The packed queries of one warp: the first of this lane, and the last key that the warp's first and last query see (-1: it
// has none, as the segment ends before). Tiles of keys beyond the latter are skipped, up to the former nothing is hidden.
struct WarpRows {
    int lane_m, first_key, last_key;
};
__device__ __forceinline__ WarpRows warp_rows(const QueryTile& t, const Heads& h, int row0, int rows) {
    const int first = t.m_begin + row0, end = first + rows < t.m_end ? first + rows : t.m_end;
    const int last_key = first < end ? t.prefix_len + h.row_of(end - 1) : -1;
    return {first + int(threadIdx.x & 31) / 4, t.prefix_len + h.row_of(first), last_key};
}
// Part `part` of the ROWS-high parts of an entry; empty where the entry ends before it.
template <int ROWS>
__device__ __forceinline__ QueryTile part_of(QueryTile t, int part, const Heads& h) {
    if (ROWS == kQueryRows) return t;
    t.m_begin += part * ROWS;
    if (t.m_end > t.m_begin + ROWS) t.m_end = t.m_begin + ROWS;
    if (t.m_end < t.m_begin) t.m_end = t.m_begin;
    if (t.kv_len > 0 && t.m_end > t.m_begin) t.kv_len = t.prefix_len + h.row_of(t.m_end - 1) + 1;
    return t;
}
// Elements of a row of qkv.
template <int HD>
__device__ __forceinline__ int qkv_width(const Heads& h) {
    return (h.heads + 2 * h.kv_heads) * HD;
}
// Row and head of packed query m, as one index into a rows x heads array (lse, delta; times HD: out, dout).
__device__ __forceinline__ size_t row_head(const Heads& h, int seg_start, int m) {
    const int row = h.row_of(m), head = m - row * h.group;
    return size_t(seg_start + row) * h.heads + h.kv_head * h.group + head;
}
// Offset in qkv (dqkv) of packed query m.
template <int HD>
__device__ __forceinline__ size_t query_at(const Heads& h, int seg_start, int m) {
    const int row = h.row_of(m), head = m - row * h.group;
    return size_t(seg_start + row) * qkv_width<HD>(h) + (h.kv_head * h.group + head) * HD;
}

// ---- tiles in shared memory ---------------------------------------------------------------------------------------
// Lowest bits of a chunk's index that are permuted, and by what. Rows of 64 or 128: a row covers whole 128-byte lines, so
// the row's number modulo 8. Rows of 32 or 96: two neighbouring rows fall into different halves of a line by themselves.
template <int HD>
__device__ __forceinline__ int chunk_key(int row) {
    return HD % 64 == 0 ? row & 7 : (row >> 1) & 3;
}
// Element offset of 16-byte chunk `chunk` of row `row`.
template <int HD>
__device__ __forceinline__ int chunk_at(int row, int chunk) {
    return row * HD + (chunk ^ chunk_key<HD>(row)) * 8;
}
// `base` = chunk_at(row, 0 or 1); moves on to the chunk that holds element `col` (a multiple of 16, constant after unrolling).
template <int HD>
__device__ __forceinline__ int shift_to(int base, int col) {
    return HD % 64 == 0 ? base ^ col : (base ^ (col & 31)) + (col & ~31);
}

// Where this lane points ldmatrix, for the 16x16 block at (0, 0) of a tile:
// `lane_mk`: A from [m][k], and B from [k][n] with Trans.   `lane_nk`: B from [n][k].
template <int HD>
__device__ __forceinline__ int lane_mk(int lane) {
    return chunk_at<HD>(lane & 15, lane >> 4);
}
template <int HD>
__device__ __forceinline__ int lane_nk(int lane) {
    return chunk_at<HD>((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
}

// How the threads of a block share the copy of a tile: kLanes of them take a row, each every kLanes-th of its chunks, and go on to
// the row kStep further down. That is a multiple of 8, so the chunks' places are permuted in the same way in all rows of a thread.
template <int HD>
struct CopyPlan {
    static constexpr int kLanes = HD % 64 == 0 ? HD / 8 : 4, kStep = kAttnThreads / kLanes, kChunks = HD / 8 / kLanes;
    static_assert(kStep % 8 == 0, "the permutation repeats every 8 rows");
    int row, column, at;  // this thread's first row, its first element there, and that element's place in the tile
    __device__ __forceinline__ CopyPlan() {
        const int lane = int(threadIdx.x) % kLanes;
        row = int(threadIdx.x) / kLanes;
        column = lane * 8;
        at = chunk_at<HD>(row, lane);
    }
    // Starts copying this thread's part of row `row + turn * kStep`, which starts at `from`, into `tile`; zeros if not `live`.
    __device__ __forceinline__ void start(bf16* tile, int turn, const char* from, bool live) const {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
            cp_async_16(tile + at + turn * kStep * HD + c * kLanes * 8, from + c * kLanes * 16, live);
        }
    }
};

// Where this thread finds its part of a packed query in qkv (or in out, dout: rows x heads x HD): row m / group, so
// m * head + row * rest bytes behind the segment's first.
struct PackedQueries {
    const char* first;
    unsigned rest;
    template <int HD>
    static __device__ __forceinline__ PackedQueries in(const bf16* array, int width, const Heads& h, int seg_start) {
        const size_t at = size_t(seg_start) * width + h.kv_head * h.group * HD + CopyPlan<HD>().column;
        return {reinterpret_cast<const char*>(array + at), 2u * unsigned(width - h.group * HD)};
    }
    template <int HD>
    __device__ __forceinline__ const char* at(int m, int row) const {
        return first + ptrdiff_t(m) * (2 * HD) + uint64_t(unsigned(row)) * rest;
    }
};

// Starts copying packed queries m_begin .. m_begin + ROWS of a segment from each array into its tile; those >= m_end become zeros.
template <int HD, int ROWS, int ARRAYS>
__device__ __forceinline__ void load_queries(
        bf16* const (&tiles)[ARRAYS], const PackedQueries (&arrays)[ARRAYS], const Heads& h, int m_begin, int m_end) {
    const CopyPlan<HD> plan;
    static_assert(ROWS % plan.kStep == 0, "every thread copies in every turn");
#pragma unroll
    for (int turn = 0; turn < ROWS / plan.kStep; ++turn) {
        const int m = m_begin + plan.row + turn * plan.kStep, row = h.row_of(m);
#pragma unroll
        for (int i = 0; i < ARRAYS; ++i) plan.start(tiles[i], turn, arrays[i].template at<HD>(m, row), m < m_end);
    }
}

// Starts copying logical keys j .. j + ROWS and their values; those >= kv_len become zeros. `kv` is qkv + offset of the key head.
template <int HD, int ROWS>
__device__ __forceinline__ void load_keys(
        bf16* k_tile, bf16* v_tile, const bf16* __restrict__ kv, const Heads& h, const QueryTile& t, int j) {
    const CopyPlan<HD> plan;
    static_assert(ROWS % plan.kStep == 0, "every thread copies in every turn");
    const unsigned width = 2u * unsigned(qkv_width<HD>(h));
    const char* keys = reinterpret_cast<const char*>(kv + plan.column);
    const char* values = reinterpret_cast<const char*>(kv + plan.column + h.kv_heads * HD);
    const int own = t.seg_start - t.prefix_len;
#pragma unroll
    for (int turn = 0; turn < ROWS / plan.kStep; ++turn) {
        const int key = j + plan.row + turn * plan.kStep;
        const uint64_t at = uint64_t(unsigned(key + (key < t.prefix_len ? t.prefix_start : own))) * width;
        plan.start(k_tile, turn, keys + at, key < t.kv_len);
        plan.start(v_tile, turn, values + at, key < t.kv_len);
    }
}

// ---- fragments ----------------------------------------------------------------------------------------------------
// d[n] += a * B for the 16 columns at `col` of B given as [n][k] rows (`base` = tile + lane_nk at row n), one k16 step.
template <int HD>
__device__ __forceinline__ void load_b_nk(uint32_t (&b)[4], const bf16* tile, int base, int row, int col) {
    ldmatrix_x4(b, tile + row * HD + shift_to<HD>(base, col));
}
// B given as [k][n] rows: k at `row`, n at `col`.
template <int HD>
__device__ __forceinline__ void load_b_kn(uint32_t (&b)[4], const bf16* tile, int base, int row, int col) {
    ldmatrix_x4_trans(b, tile + row * HD + shift_to<HD>(base, col));
}
template <int HD>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const bf16* tile, int base, int row, int col) {
    ldmatrix_x4(a, tile + row * HD + shift_to<HD>(base, col));
}
// The first K fragments of each of a warp's blocks of 16 rows, to keep.
template <int HD, int BLOCKS, int K>
__device__ __forceinline__ void load_fragments(uint32_t (&a)[BLOCKS][K][4], const bf16* tile, int base, int row0) {
#pragma unroll
    for (int i = 0; i < BLOCKS; ++i)
#pragma unroll
        for (int k = 0; k < K; ++k) load_a<HD>(a[i][k], tile, base, row0 + 16 * i, 16 * k);
}
// Two mma: columns 0-7 and 8-15 of a 16-column block.
__device__ __forceinline__ void mma_16x16(float (&d0)[4], float (&d1)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
    const uint32_t lo[2] = {b[0], b[1]}, hi[2] = {b[2], b[3]};
    mma_m16n8k16_bf16(d0, a, lo);
    mma_m16n8k16_bf16(d1, a, hi);
}
// Accumulators of 16 columns become the A fragment of a product over those columns.
__device__ __forceinline__ void pack_a(uint32_t (&a)[4], const float (&d0)[4], const float (&d1)[4]) {
    a[0] = pack_bf16(d0[0], d0[1]);
    a[1] = pack_bf16(d0[2], d0[3]);
    a[2] = pack_bf16(d1[0], d1[1]);
    a[3] = pack_bf16(d1[2], d1[3]);
}

// All lanes have read this warp's rows of a tile (ldmatrix) before any lane writes them: call before the first stage_rows.
__device__ __forceinline__ void rows_are_free() { __syncwarp(); }

// Writes a warp's 16 x HD accumulators, times `scale[0]` (rows 0-7) and `scale[1]` (rows 8-15), to rows `row` .. row + 16 of `tile`
// as bf16.
template <int HD>
__device__ __forceinline__ void stage_rows(bf16* tile, int row, const float (&acc)[HD / 8][4], const float (&scale)[2]) {
    int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int n = 0; n < HD / 8; ++n) {
            uint32_t pair = pack_bf16(acc[n][2 * half] * scale[half], acc[n][2 * half + 1] * scale[half]);
            *reinterpret_cast<uint32_t*>(tile + chunk_at<HD>(row + 8 * half + g, n) + 2 * t) = pair;
        }
}

// Copies rows row .. row + 16 * BLOCKS of `tile` (own rows of one warp, staged before a __syncwarp) to global memory, 16 bytes a
// lane; `to(r)` gives the address of row r's first element, or null.
template <int HD, int BLOCKS, class To>
__device__ __forceinline__ void store_rows(const bf16* tile, int row, To to) {
    constexpr int kChunks = HD / 8;
#pragma unroll 2
    for (int i = threadIdx.x & 31; i < 16 * BLOCKS * kChunks; i += 32) {
        const int r = row + i / kChunks, c = i % kChunks;
        bf16* p = to(r);
        if (p) store16(p + c * 8, load16(tile + chunk_at<HD>(r, c)));
    }
}
template <int BLOCKS, int COLUMNS>
__device__ __forceinline__ void zero(float (&acc)[BLOCKS][COLUMNS][4]) {
#pragma unroll
    for (int i = 0; i < BLOCKS; ++i)
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) acc[i][n][0] = acc[i][n][1] = acc[i][n][2] = acc[i][n][3] = 0.0f;
}
