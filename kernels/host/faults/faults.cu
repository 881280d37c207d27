// Kernels with planted faults, and their sound twins: what the host runner and the tests must tell apart. tests/kernels/faults.rs
// launches them by hand; nothing else does.
#include "../../common.cuh"

#ifdef STORAGE_F32
// out[0] = sum of x[0..256], by a tree in shared memory.
__device__ void tree_sum(float* out, const float* x, bool barrier) {
    SHARED(float, part, 256);
    part[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    for (int half = 128; half; half /= 2) {
        if (int(threadIdx.x) < half) part[threadIdx.x] += part[threadIdx.x + half];
        if (barrier) __syncthreads();
    }
    if (threadIdx.x == 0) out[0] = part[0];
}
KERNEL(256, fault_none)(float* out, const float* x) { tree_sum(out, x, true); }
EXPORT_KERNEL(fault_none)
KERNEL(256, fault_barrier_removed)(float* out, const float* x) { tree_sum(out, x, false); }
EXPORT_KERNEL(fault_barrier_removed)

// Broadcast through shared memory: right in launch order even without the barrier, wrong in others.
KERNEL(256, fault_broadcast)(float* out, const float* x) {
    SHARED(float, first, 1);
    if (threadIdx.x == 0) first[0] = x[0];
    out[threadIdx.x] = first[0];
}
EXPORT_KERNEL(fault_broadcast)

KERNEL(256, fault_divergent_barrier)(float* out, const float* x) {
    if (threadIdx.x < 100) __syncthreads();
    out[threadIdx.x] = x[threadIdx.x];
}
EXPORT_KERNEL(fault_divergent_barrier)

KERNEL(256, fault_early_return)(float* out, const float* x) {
    if (threadIdx.x >= 100) return;
    out[threadIdx.x] = warp_sum(x[threadIdx.x]);
}
EXPORT_KERNEL(fault_early_return)

// A tile that is read, then written again: out = what the next warp put there first, plus its second. A barrier belongs between
// the two; where it is missing, an operation of the warp stands in its place and must not be taken for one.
enum Between { SHUFFLE, MMA, LDMATRIX };
__device__ void tile_used_twice(float* out, const float* x, Between between, bool barrier) {
    SHARED(float, tile, 256);
    SHARED(uint4, rows, 8);
    const int mine = threadIdx.x, next = (threadIdx.x + 32) % 256;
    if (mine < 8) rows[mine] = uint4{0, 0, 0, 0};
    tile[mine] = x[mine];
    __syncthreads();
    float sum = tile[next];
    if (barrier) __syncthreads();
    if (between == SHUFFLE) sum = __shfl_xor_sync(FULL, __shfl_xor_sync(FULL, sum, 1), 1);
    if (between == MMA) {
        const uint32_t zeros_a[4] = {0, 0, 0, 0}, zeros_b[2] = {0, 0};
        float d[4] = {sum, 0.0f, 0.0f, 0.0f};
        mma_m16n8k16_bf16(d, zeros_a, zeros_b);
        sum = d[0];
    }
    if (between == LDMATRIX) {
        uint32_t zeros[2];
        ldmatrix_x2(zeros, rows + mine % 8);
        sum += __uint_as_float(zeros[0]);
    }
    tile[mine] = x[256 + mine];
    __syncthreads();
    out[mine] = sum + tile[next];
}
#define TILE_USED_TWICE(name, between, barrier)                                                         \
    KERNEL(256, name)(float* out, const float* x) { tile_used_twice(out, x, between, barrier); }        \
    EXPORT_KERNEL(name)
TILE_USED_TWICE(fault_none_twice, SHUFFLE, true)
TILE_USED_TWICE(fault_shuffle_for_barrier, SHUFFLE, false)
TILE_USED_TWICE(fault_mma_for_barrier, MMA, false)
TILE_USED_TWICE(fault_ldmatrix_for_barrier, LDMATRIX, false)

// copy: 64 floats through shared memory by cp.async.
enum Landing { WAIT, WAIT_AFTER_USE, NO_WAIT };
__device__ void async_copy(float* out, const float* x, Landing landing, bool barrier) {
    SHARED(uint4, tile, 16);
    if (threadIdx.x < 16) cp_async_16(tile + threadIdx.x, x + threadIdx.x * 4);
    cp_async_commit();
    if (landing == WAIT) cp_async_wait<0>();
    if (barrier) __syncthreads();
    out[threadIdx.x] = reinterpret_cast<float*>(tile)[threadIdx.x];
    if (landing == WAIT_AFTER_USE) cp_async_wait<0>();
}
KERNEL(64, fault_none_async)(float* out, const float* x) { async_copy(out, x, WAIT, true); }
EXPORT_KERNEL(fault_none_async)
KERNEL(64, fault_wait_after_use)(float* out, const float* x) { async_copy(out, x, WAIT_AFTER_USE, true); }
EXPORT_KERNEL(fault_wait_after_use)
KERNEL(64, fault_wait_forgotten)(float* out, const float* x) { async_copy(out, x, NO_WAIT, true); }
EXPORT_KERNEL(fault_wait_forgotten)
KERNEL(64, fault_wait_without_barrier)(float* out, const float* x) { async_copy(out, x, WAIT, false); }
EXPORT_KERNEL(fault_wait_without_barrier)

// A tile filled by cp.async that nobody needs and each thread overwrites. Sound only behind the wait: a copy may land late, on top.
__device__ void reused_tile(float* out, const float* x, Landing landing) {
    SHARED(uint4, tile, 64);
    cp_async_16(tile + threadIdx.x, x + threadIdx.x * 4);
    cp_async_commit();
    if (landing == WAIT) cp_async_wait<0>();
    float* own = reinterpret_cast<float*>(tile + threadIdx.x);
    own[0] = x[threadIdx.x];
    __syncwarp();
    out[threadIdx.x] = own[0];
    if (landing == WAIT_AFTER_USE) cp_async_wait<0>();
}
KERNEL(64, fault_none_reused)(float* out, const float* x) { reused_tile(out, x, WAIT); }
EXPORT_KERNEL(fault_none_reused)
KERNEL(64, fault_copy_lands_on_top)(float* out, const float* x) { reused_tile(out, x, WAIT_AFTER_USE); }
EXPORT_KERNEL(fault_copy_lands_on_top)
KERNEL(64, fault_copies_left_behind)(float* out, const float* x) { reused_tile(out, x, NO_WAIT); }
EXPORT_KERNEL(fault_copies_left_behind)

KERNEL(256, fault_one_past_the_end)(float* out, const float* x, int n) {
    for (int i = threadIdx.x; i <= n; i += blockDim.x) out[i] = x[i % n];
}
EXPORT_KERNEL(fault_one_past_the_end)

KERNEL(256, fault_last_forgotten)(float* out, const float* x, int n) {
    for (int i = threadIdx.x; i < n - 1; i += blockDim.x) out[i] = x[i];
}
EXPORT_KERNEL(fault_last_forgotten)

KERNEL(32, fault_shared_overrun)(float* out, const float* x) {
    DYNAMIC_SHARED(float, tile);
    tile[threadIdx.x + 1] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x + 1];
}
EXPORT_KERNEL(fault_shared_overrun)

KERNEL(32, fault_misaligned)(float* out, const float* x) { store16(out + 4 * threadIdx.x, load16(x + 4 * threadIdx.x + 1)); }
EXPORT_KERNEL(fault_misaligned)

// Blocks hand results to each other: works only in launch order.
KERNEL(32, fault_order_of_blocks)(float* out, const float* x) {
    if (threadIdx.x == 0) out[blockIdx.x] = (blockIdx.x ? out[blockIdx.x - 1] : 0.0f) + x[blockIdx.x];
}
EXPORT_KERNEL(fault_order_of_blocks)

// C (16 x 8) = A (16 x 16) B (16 x 8, row-major) on the tensor core's twin; bf16 bits come as unsigned shorts in pairs.
__device__ void tile_product(float* c, const bf16* a, const bf16* b, bool barrier) {
    SHARED(uint4, a_tile, 32);
    SHARED(uint4, b_tile, 16);
    const int l = threadIdx.x;
    a_tile[l] = load16(a + 8 * l);
    if (l < 16) b_tile[l] = load16(b + 8 * l);
    if (barrier) __syncwarp();
    uint32_t af[4], bf[2];
    ldmatrix_x4(af, a_tile + (l % 16) * 2 + l / 16);
    ldmatrix_x2_trans(bf, b_tile + l % 16);
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    mma_m16n8k16_bf16(d, af, bf);
    for (int i = 0; i < 4; ++i) c[(l / 4 + 8 * (i / 2)) * 8 + 2 * (l % 4) + i % 2] = d[i];
}
KERNEL(32, fault_none_mma)(float* c, const bf16* a, const bf16* b) { tile_product(c, a, b, true); }
EXPORT_KERNEL(fault_none_mma)
KERNEL(32, fault_mma_without_barrier)(float* c, const bf16* a, const bf16* b) { tile_product(c, a, b, false); }
EXPORT_KERNEL(fault_mma_without_barrier)
#endif
