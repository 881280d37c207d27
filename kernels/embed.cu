// Embedding. Forward: x[t] = table[token[t]] is gather_rows (rows.cu).   dtable[id] += sum of dx[t] over live rows t with token id.
// Shapes     dx (rows, dim)   dtable (vocab, dim)   token (rows)   rows_by_token: live rows by (token, row).   Storage T; dtable f32, or bf16 (_narrow).
// Launch     grid = (ceil(packs of dim / 256), min(rows, 65535)), a thread per pack; rows by grid stride, no shared memory. Only
//            the block at the start of a run of equal tokens works; it takes the whole run.
// Traffic    dim elements a row and 8 bytes for every dtable element of a token that occurs; a token that occurs often is
//            summed by one block, 8 rows in flight where rows are whole packs.
// Order      rows in order, one thread per column. No atomics.
// Limits     token ids < vocab, rows < 2^31: checked by the wrapper.
// Reference  src/backend/cpu/embed.rs.   Measured: docs/results/2026-11-26-h100.md.
#include "common.cuh"

template <bool WHOLE>
__device__ __forceinline__ void store_gradient(float* to, const Floats<PACK(T)>&, const Floats<PACK(T)>& sum, int live) {
    store_floats<WHOLE>(to, sum, live);
}
#ifdef STORAGE_BF16
template <bool WHOLE>
__device__ __forceinline__ void store_gradient(bf16* to, const Floats<8>& before, Floats<8> sum, int live) {
#pragma unroll
    for (int e = 0; e < 8; ++e) sum[e] = before[e] + sum[e];
    store_pack<WHOLE>(to, sum, live);
}
#endif

template <class G>
__device__ __forceinline__ void add_rows(G* __restrict__ dtable, const T* __restrict__ dx, const unsigned* __restrict__ token,
                                         const unsigned* __restrict__ rows_by_token, int used, int dim) {
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * PACK(T);
    if (c >= dim) return;
    if_whole(dim, [&](auto whole) {
        constexpr int AHEAD = decltype(whole)::value ? 8 : 1;
        for (int i = blockIdx.y; i < used; i += gridDim.y) {
            const unsigned id = token[rows_by_token[i]];
            if (i > 0 && token[rows_by_token[i - 1]] == id) continue;
            G* to = dtable + size_t(id) * dim + c;
            const auto before = load_gradient<whole>(static_cast<const G*>(to), dim - c);
            // In f32 the table goes on from what it has; in bf16 that is added last, so that it is rounded once.
            auto sum = before;
            if (sizeof(G) < sizeof(float)) sum = Floats<PACK(T)>{};
            int j = i;
            // Rows are sorted by token: if the last of AHEAD has this one, all have, and their loads need not wait for each other.
            for (; j + AHEAD <= used && token[rows_by_token[j + AHEAD - 1]] == id; j += AHEAD) {
                Floats<PACK(T)> d[AHEAD];
#pragma unroll
                for (int a = 0; a < AHEAD; ++a) d[a] = load_pack<whole>(dx + size_t(rows_by_token[j + a]) * dim + c, dim - c);
#pragma unroll
                for (int a = 0; a < AHEAD; ++a)
#pragma unroll
                    for (int e = 0; e < PACK(T); ++e) sum[e] += d[a][e];
            }
            for (; j < used && token[rows_by_token[j]] == id; ++j) {
                const auto d = load_pack<whole>(dx + size_t(rows_by_token[j]) * dim + c, dim - c);
#pragma unroll
                for (int e = 0; e < PACK(T); ++e) sum[e] += d[e];
            }
            store_gradient<whole>(to, before, sum, dim - c);
        }
    }, dtable, dx);
}

KERNEL(256, embed_bwd)(float* __restrict__ dtable, const T* __restrict__ dx, const unsigned* __restrict__ token,
                       const unsigned* __restrict__ rows_by_token, int used, int dim) {
    add_rows(dtable, dx, token, rows_by_token, used, dim);
}
EXPORT_KERNEL(embed_bwd)

#ifdef STORAGE_BF16
KERNEL(256, embed_bwd_narrow)(bf16* __restrict__ dtable, const T* __restrict__ dx, const unsigned* __restrict__ token,
                              const unsigned* __restrict__ rows_by_token, int used, int dim) {
    add_rows(dtable, dx, token, rows_by_token, used, dim);
}
EXPORT_KERNEL(embed_bwd_narrow)
#endif
