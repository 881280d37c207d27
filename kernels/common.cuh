// What every kernel uses: the storage type, export, 16-byte accesses, reductions, tensor-core and async-copy helpers.
//
// A file is compiled once per storage type: `T` is bf16 (-DSTORAGE_BF16) or float, and `KERNEL(256, swiglu_fwd)` names
// swiglu_fwd_bf16 or swiglu_fwd_f32. It is compiled by nvcc for GPUs and by the host's C++ compiler for tests
// (host/cuda_host.h). kernels/README.md has the conventions.
#pragma once
#ifdef __CUDACC__
#include <stdint.h>
#define SHARED(type, name, count) __shared__ type name[count]
#define DYNAMIC_SHARED(type, name)                          \
    extern __shared__ __align__(128) unsigned char name##_[]; \
    type* const name = reinterpret_cast<type*>(name##_)
#define LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define EXPORT_KERNEL(name)
#else
#include "host/cuda_host.h"
// The same place for all threads of a block and for every call: an offset drawn once per declaration.
#define SHARED(type, name, count)                                                                                   \
    type* const name = reinterpret_cast<type*>(cuda_host::block.fixed + [] {                                        \
        static const size_t at = cuda_host::reserve_static_shared(sizeof(type) * (count));                          \
        return at;                                                                                                  \
    }())
#define DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(cuda_host::block.dynamic)
#define LAUNCH_BOUNDS(threads, blocks)
#define EXPORT_KERNEL(name) EXPORT_KERNEL_(EXPORTED(name))
#define EXPORT_KERNEL_(name) EXPORT_KERNEL__(name)
#define EXPORT_KERNEL__(name) static cuda_host::Registration registration_##name(#name, &name, max_threads_##name);
#endif

// ---- storage types --------------------------------------------------------------------------------------------------
struct alignas(2) bf16 { uint16_t bits; };

#ifdef STORAGE_BF16
typedef bf16 T;
#define EXPORTED(name) name##_bf16
#else
typedef float T;
#define EXPORTED(name) name##_f32
#define STORAGE_F32 1  // kernels that do not depend on T are written inside #ifdef STORAGE_F32
#endif
#ifndef __CUDACC__
template <> struct cuda_host::TypeName<bf16> { static constexpr const char* value = "bf16"; };
#endif

// KERNEL(256, op)(parameters) { ... } EXPORT_KERNEL(op): a kernel for at most 256 threads a block. The bound asks for one
// block a multiprocessor only, so that ptxas never spills to fit more. DENSE_KERNEL(256, blocks, op): registers few enough for
// `blocks` of that many threads on one, where the load on memory needs them.
#define KERNEL(threads, name) KERNEL_(threads, 1, EXPORTED(name))
#define DENSE_KERNEL(threads, blocks, name) KERNEL_(threads, blocks, EXPORTED(name))
#define KERNEL_(threads, blocks, name) KERNEL__(threads, blocks, name)
#define KERNEL__(threads, blocks, name) \
    enum : unsigned { max_threads_##name = threads }; \
    extern "C" __global__ void LAUNCH_BOUNDS(threads, blocks) name

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }

// Two floats to bf16, nearest even; `lo` goes to the lower address.
__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi) {
#ifdef __CUDACC__
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
#else
    auto one = [](float f) -> uint32_t {
        uint32_t u = __float_as_uint(f);
        if (f != f) return 0x7fff;
        return (u + 0x7fff + (u >> 16 & 1)) >> 16;
    };
    return one(lo) | one(hi) << 16;
#endif
}
__device__ __forceinline__ void from_float(float f, float& out) { out = f; }
__device__ __forceinline__ void from_float(float f, bf16& out) { out.bits = uint16_t(pack_bf16(f, 0.0f)); }
// f as it will be read back from storage of type S.
template <class S> __device__ __forceinline__ float rounded(float f) {
    S s;
    from_float(f, s);
    return to_float(s);
}

// ---- 16-byte accesses -----------------------------------------------------------------------------------------------
__device__ __forceinline__ uint4 load16(const void* p) {
#ifndef __CUDACC__
    cuda_host::expect_aligned("16-byte load", p, 16);
#endif
    return *reinterpret_cast<const uint4*>(p);
}
__device__ __forceinline__ void store16(void* p, uint4 v) {
#ifndef __CUDACC__
    cuda_host::expect_aligned("16-byte store", p, 16);
#endif
    *reinterpret_cast<uint4*>(p) = v;
}

__device__ __forceinline__ uint2 load8(const void* p) {
#ifndef __CUDACC__
    cuda_host::expect_aligned("8-byte load", p, 8);
#endif
    return *reinterpret_cast<const uint2*>(p);
}

// Loads and stores of what is not read again soon: the first lines of L2 to go.
__device__ __forceinline__ uint4 load16_streaming(const void* p) {
#ifdef __CUDACC__
    return __ldcs(reinterpret_cast<const uint4*>(p));
#else
    return load16(p);
#endif
}
__device__ __forceinline__ uint2 load8_streaming(const void* p) {
#ifdef __CUDACC__
    return __ldcs(reinterpret_cast<const uint2*>(p));
#else
    return load8(p);
#endif
}
__device__ __forceinline__ void store16_streaming(void* p, uint4 v) {
#ifdef __CUDACC__
    __stcs(reinterpret_cast<uint4*>(p), v);
#else
    store16(p, v);
#endif
}
__device__ __forceinline__ void store8_streaming(void* p, uint2 v) {
#ifdef __CUDACC__
    __stcs(reinterpret_cast<uint2*>(p), v);
#else
    cuda_host::expect_aligned("8-byte store", p, 8);
    *reinterpret_cast<uint2*>(p) = v;
#endif
}

// As many elements of S as 16 bytes hold.
template <class S> struct PackSize { enum { value = 16 / sizeof(S) }; };
#define PACK(S) int(PackSize<S>::value)

template <int N> struct Floats {
    float f[N];
    __device__ __forceinline__ float& operator[](int i) { return f[i]; }
    __device__ __forceinline__ const float& operator[](int i) const { return f[i]; }
};

__device__ __forceinline__ void unpack(uint4 v, Floats<4>& out) {
    out[0] = __uint_as_float(v.x);
    out[1] = __uint_as_float(v.y);
    out[2] = __uint_as_float(v.z);
    out[3] = __uint_as_float(v.w);
}
__device__ __forceinline__ void unpack(uint4 v, Floats<8>& out) {
    const uint32_t u[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        out[2 * i] = __uint_as_float(u[i] << 16);
        out[2 * i + 1] = __uint_as_float(u[i] & 0xffff0000u);
    }
}
__device__ __forceinline__ uint4 packed(const Floats<4>& f) {
    return uint4{__float_as_uint(f[0]), __float_as_uint(f[1]), __float_as_uint(f[2]), __float_as_uint(f[3])};
}
__device__ __forceinline__ uint4 packed(const Floats<8>& f) {
    return uint4{pack_bf16(f[0], f[1]), pack_bf16(f[2], f[3]), pack_bf16(f[4], f[5]), pack_bf16(f[6], f[7])};
}

__device__ __forceinline__ bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Which of the two ways rows are read: `whole` where every pack of every row is whole and aligned (widths that are multiples of a
// pack, as all models have), else element by element. Kernels are written once, as a lambda over Yes or No, so that the
// common way has no branch between its loads.
struct Yes { static constexpr bool value = true; constexpr operator bool() const { return true; } };
struct No { static constexpr bool value = false; constexpr operator bool() const { return false; } };
template <class F, class... P>
__device__ __forceinline__ void if_whole(long long width, const F& body, const P*... pointers) {
    const bool aligned = ((uintptr_t(0) | ... | reinterpret_cast<uintptr_t>(pointers)) % 16) == 0;
    if (width % PACK(T) == 0 && aligned) body(Yes());
    else body(No());
}

// The pack at p, of which the first `live` elements exist (any number; the others read as 0; all or none where WHOLE).
template <bool WHOLE, class S> __device__ __forceinline__ Floats<PACK(S)> load_pack(const S* p, int live) {
    Floats<PACK(S)> out;
    if constexpr (WHOLE) {
        uint4 v{0, 0, 0, 0};
        if (live > 0) v = load16(p);
        unpack(v, out);
    } else {
#pragma unroll
        for (int i = 0; i < PACK(S); ++i) out[i] = i < live ? to_float(p[i]) : 0.0f;
    }
    return out;
}
// A pack on its way: as it lies in memory, so that one asked for early takes few registers until it is needed.
template <bool WHOLE, class S> struct Coming {
    uint4 raw;
    __device__ __forceinline__ void load(const S* p, int live) {
        raw = uint4{0, 0, 0, 0};
        if (live > 0) raw = load16(p);
    }
    __device__ __forceinline__ Floats<PACK(S)> get() const {
        Floats<PACK(S)> out;
        unpack(raw, out);
        return out;
    }
};
template <class S> struct Coming<false, S> {
    Floats<PACK(S)> floats;
    __device__ __forceinline__ void load(const S* p, int live) { floats = load_pack<false>(p, live); }
    __device__ __forceinline__ Floats<PACK(S)> get() const { return floats; }
};
template <bool WHOLE, class S> __device__ __forceinline__ void store_pack(S* p, const Floats<PACK(S)>& f, int live) {
    if constexpr (WHOLE) {
        if (live > 0) store16(p, packed(f));
    } else {
#pragma unroll
        for (int i = 0; i < PACK(S); ++i)
            if (i < live) from_float(f[i], p[i]);
    }
}
// As many floats as a pack of T has elements (two 16-byte accesses beside a pack of bf16).
template <bool WHOLE> __device__ __forceinline__ Floats<PACK(T)> load_floats(const float* p, int live) {
    Floats<PACK(T)> out;
#pragma unroll
    for (int h = 0; h < PACK(T); h += 4) {
        const Floats<4> part = load_pack<WHOLE>(p + h, live - h);
#pragma unroll
        for (int i = 0; i < 4; ++i) out[h + i] = part[i];
    }
    return out;
}
// A pack of gradients, in f32 or, beside bf16 weights, in bf16.
template <bool WHOLE> __device__ __forceinline__ Floats<PACK(T)> load_gradient(const float* p, int live) {
    return load_floats<WHOLE>(p, live);
}
#ifdef STORAGE_BF16
template <bool WHOLE> __device__ __forceinline__ Floats<PACK(T)> load_gradient(const bf16* p, int live) {
    return load_pack<WHOLE>(p, live);
}
#endif
template <bool WHOLE> __device__ __forceinline__ void store_floats(float* p, const Floats<PACK(T)>& f, int live) {
#pragma unroll
    for (int h = 0; h < PACK(T); h += 4) {
        Floats<4> part;
#pragma unroll
        for (int i = 0; i < 4; ++i) part[i] = f[h + i];
        store_pack<WHOLE>(p + h, part, live - h);
    }
}

// ---- reductions, in a fixed order -----------------------------------------------------------------------------------
constexpr unsigned FULL = 0xffffffffu;
constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;

// Butterflies: every lane gets the same bits. `width` lanes (a power of two) make a group.
template <class V> __device__ __forceinline__ V warp_sum(V v, int width = 32) {
#pragma unroll
    for (int d = 16; d; d >>= 1) {
        V other = __shfl_xor_sync(FULL, v, d);
        if (d < width) v += other;
    }
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int d = 16; d; d >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL, v, d));
    return v;
}
// Sum over the block's x dimension (whole warps), each y on its own; all threads get it. `part` holds one V per warp of
// the block. Two barriers, so that `part` can be used again at once. Every thread of the block must call.
template <class V> __device__ __forceinline__ V block_sum_x(V v, V* part) {
    const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
    v = warp_sum(v);
    V* mine = part + threadIdx.y * warps;
    if (threadIdx.x % 32 == 0) mine[warp] = v;
    __syncthreads();
    V sum = mine[0];
    for (int w = 1; w < warps; ++w) sum += mine[w];
    __syncthreads();
    return sum;
}

// 2^x and log2(x) to about 2 ulp, by the special function unit.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}
__device__ __forceinline__ float fast_log2(float x) {
#ifdef __CUDACC__
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return log2f(x);
#endif
}

// a / b to 2 ulp for 2^-126 <= |b| <= 2^126, 0 for a larger finite or infinite b and finite a: one reciprocal, no branch.
__device__ __forceinline__ float fast_divide(float a, float b) {
#ifdef __CUDACC__
    float y;
    asm("div.approx.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
#else
    return a / b;
#endif
}

// ---- tensor cores and asynchronous copies (sm_80) -------------------------------------------------------------------
// d += a b: a 16x16 row-major, b 16x8 column-major, both bf16; d 16x8 float. One whole warp. Fragments as in the PTX ISA
// ("Matrix Fragments for mma.m16n8k16 with floating point type"; read against it element by element, a_2j and a_2j+1 in
// register j, the lower in the lower half):
// lane = 4 * group + t;  a[i]: row group + 8 * (i & 1), columns 2t + 8 * (i >> 1) and the next;  b[i]: rows 2t + 8i and
// the next of column group;  d[i]: row group + 8 * (i >> 1), column 2t + (i & 1).
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    using cuda_host::Mail;
    if (cuda_host::self->warp->lanes != 32) cuda_host::fail("mma.sync in a warp of %u lanes", cuda_host::self->warp->lanes);
    Mail mine{{a[0], a[1], a[2], a[3], b[0], b[1], 0, 0}};
    unsigned set = cuda_host::meet(mine, cuda_host::Site{"mma", 0}, [](Mail* mail, Mail* result) {
        float A[16][16], B[16][8], D[16][8] = {};
        auto two = [](uint32_t u, float& lo, float& hi) { lo = __uint_as_float(u << 16); hi = __uint_as_float(u & 0xffff0000u); };
        for (int lane = 0; lane < 32; ++lane) {
            int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 4; ++i) {
                int row = g + 8 * (i & 1), col = 2 * t + 8 * (i >> 1);
                two(mail[lane].r[i], A[row][col], A[row][col + 1]);
            }
            for (int i = 0; i < 2; ++i) two(mail[lane].r[4 + i], B[2 * t + 8 * i][g], B[2 * t + 8 * i + 1][g]);
        }
        for (int i = 0; i < 16; ++i)
            for (int k = 0; k < 16; ++k)
                for (int j = 0; j < 8; ++j) D[i][j] += A[i][k] * B[k][j];
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i) result[lane].r[i] = __float_as_uint(D[lane / 4 + 8 * (i >> 1)][2 * (lane % 4) + (i & 1)]);
    });
    for (int i = 0; i < 4; ++i) d[i] += __uint_as_float(cuda_host::self->warp->result[set][cuda_host::self->lane].r[i]);
#endif
}

#ifndef __CUDACC__
// Lane l brings the 16-byte row l % 8 of matrix l / 8, read when that lane arrives: rows that other lanes write later
// are missed, as a barrier is needed for those.
template <bool Trans, int N> inline void ldmatrix_on_host(uint32_t (&r)[N], const void* row) {
    using cuda_host::Mail;
    if (cuda_host::self->warp->lanes != 32) cuda_host::fail("ldmatrix in a warp of %u lanes", cuda_host::self->warp->lanes);
    Mail mine{};
    if (int(cuda_host::self->lane) < 8 * N) {
        cuda_host::check_shared("ldmatrix", row, 16, 16);
        std::memcpy(mine.r, row, 16);
    }
    unsigned set = cuda_host::meet(mine, cuda_host::Site{"ldmatrix", N + 8 * Trans}, [](Mail* mail, Mail* result) {
        auto at = [&](int m, int i, int j) -> uint32_t { return mail[8 * m + i].r[j / 2] >> 16 * (j % 2) & 0xffff; };
        for (int lane = 0; lane < 32; ++lane)
            for (int m = 0; m < N; ++m) {
                int i = lane / 4, j = lane % 4 * 2;
                result[lane].r[m] = Trans ? at(m, j, i) | at(m, j + 1, i) << 16 : at(m, i, j) | at(m, i, j + 1) << 16;
            }
    });
    std::memcpy(r, cuda_host::self->warp->result[set][cuda_host::self->lane].r, sizeof r);
}
#endif
// Four 8x8 bf16 matrices from shared memory: lane l gives the address of row l % 8 of matrix l / 8; r[m] receives elements
// (lane / 4, 2 * (lane % 4)) and the next of matrix m; _trans: of its transpose.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(uint32_t(__cvta_generic_to_shared(row))) : "memory");
#else
    ldmatrix_on_host<false>(r, row);
#endif
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(uint32_t(__cvta_generic_to_shared(row))) : "memory");
#else
    ldmatrix_on_host<true>(r, row);
#endif
}
// Two matrices: lanes 0-15 give the addresses.
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(uint32_t(__cvta_generic_to_shared(row))) : "memory");
#else
    ldmatrix_on_host<false>(r, row);
#endif
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(uint32_t(__cvta_generic_to_shared(row))) : "memory");
#else
    ldmatrix_on_host<true>(r, row);
#endif
}

// 16 bytes from global to shared memory, past the registers and L1. They land when their group has been waited for, and
// other threads see them after a barrier behind that wait. `live` false: zeros, and the source is not read.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool live = true) {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(uint32_t(__cvta_generic_to_shared(shared))), "l"(global), "r"(live ? 16 : 0) : "memory");
#else
    cuda_host::cp_async(shared, global, live ? 16 : 0);
#endif
}
// Closes a group of copies.
__device__ __forceinline__ void cp_async_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    cuda_host::cp_async_commit();
#endif
}
// Waits until at most the N newest groups of this thread are in flight.
template <int N> __device__ __forceinline__ void cp_async_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
#else
    cuda_host::cp_async_wait(N);
#endif
}
