// Runs CUDA kernels on the host, one fiber per CUDA thread, so that the same .cu is checked where there is no GPU.
//
// Blocks run one after another on the calling thread, in an order drawn from `seed`. Inside a block every CUDA thread
// is a fiber that runs until it reaches a barrier or returns; warps, and the lanes inside a warp, take turns in an
// order drawn from `seed` as well, and a warp whose lanes have met at a shuffle, mma or ldmatrix goes on with seven chances in
// eight before another has its turn. Shared memory starts out as NaN in every block, the destination of cp.async is NaN from
// then on until the bytes land: when they are waited for, or at a moment before that the seed draws. So code that lacks
// a barrier or a wait works for some seeds and fails for others: tests use several.
//
// Found here, and reported as an error of the launch:
//   - threads of a block (lanes of a warp) that wait at different barriers, or return while others wait;
//   - full-warp operations in a partial warp, and shuffles with a partial mask;
//   - cp.async, ldmatrix and 16-byte accesses at addresses that the hardware refuses, threads that return with copies in flight;
//   - writes past the end of dynamic shared memory, more threads than the kernel was compiled for, stack overflow.
// A launch's arguments are described by the kernel's own C++ parameter list (`signature`), which the caller compares.
//
// Not modelled: races between blocks, time, textures, partial masks, cooperative groups, wgmma and TMA (compile errors).
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
// Always: both storage types are linked into one program, and a template that reads `T` without naming it in its signature has
// one symbol there. Out of line, one of the two would run for both.
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))

struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

namespace cuda_host {
constexpr unsigned kWarp = 32;

// Where a thread waits. Two threads wait at the same barrier when file and line agree.
struct Site { const char* file; int line; };
#define CUDA_HOST_SITE cuda_host::Site{__builtin_FILE(), __builtin_LINE()}

enum class Wait : uint8_t { None, Block, Warp, Done };

// What a lane hands to the others in a warp operation; by value, as its stack moves on.
struct Mail { uint32_t r[8]; };

struct Warp {
    unsigned lanes = 0, at_warp = 0, at_block = 0, done = 0;  // lanes, and how many of them wait where
    unsigned arrived = 0;
    // Two sets in turn: a lane cannot be more than one operation ahead of another, so no second barrier is needed.
    Mail mail[2][kWarp], result[2][kWarp];
    void begin() { lanes = at_warp = at_block = done = arrived = 0; }  // mail is written before it is read
};

struct Copy { void* to; const void* from; unsigned bytes; unsigned group; };

// What each switch reads comes first, in one line of the cache.
struct alignas(64) Fiber {
    void* stack_pointer = nullptr;
    Site site{nullptr, 0};
    Warp* warp = nullptr;
    dim3 tid;
    unsigned lane = 0, phase = 0;
    Wait wait = Wait::None;
    unsigned num_copies = 0, open_group = 0;
    char *mapping = nullptr, *stack = nullptr;         // its pages, and where in them the stack ends
    Copy copies[256];                                  // cp.async in flight, oldest first
};

struct Block { dim3 grid, dim, idx; char* dynamic = nullptr; size_t dynamic_bytes = 0; char* fixed = nullptr; };

// Not thread_local, which a file that does not see the initial value reads through a function.
extern __thread Fiber* self;
extern __thread Block block;

void pause(Wait kind, Site site);
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
size_t reserve_static_shared(size_t bytes);
void check_shared(const char* what, const void* p, unsigned bytes, unsigned align);
void cp_async(void* shared, const void* global, unsigned bytes);
void cp_async_commit();
void cp_async_wait(unsigned newest_that_may_be_in_flight);

inline void expect_aligned(const char* what, const void* p, unsigned bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes) fail("%s: address %p is not %u-byte aligned", what, p, bytes);
}

// All lanes of the warp hand in `mine` and go on once all have; the last to arrive runs `last(mail, result)`.
// Returns the set that holds everybody's mail and results.
template <class T, class F> unsigned meet(const T& mine, Site site, F last) {
    static_assert(sizeof(T) <= sizeof(Mail), "too large for the mail");
    Fiber& f = *self;
    Warp& w = *f.warp;
    unsigned set = f.phase;
    f.phase ^= 1;
    std::memcpy(w.mail[set][f.lane].r, &mine, sizeof mine);
    if (++w.arrived == w.lanes) {
        w.arrived = 0;
        last(w.mail[set], w.result[set]);
    }
    pause(Wait::Warp, site);
    return set;
}

template <class T> T exchange(unsigned mask, T v, unsigned from, Site site) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "shuffle of at most 8 bytes");
    if (mask != 0xffffffffu) fail("%s:%d: shuffle with a partial mask", site.file, site.line);
    if (self->warp->lanes != kWarp) fail("%s:%d: full-mask shuffle in a warp of %u lanes", site.file, site.line, self->warp->lanes);
    unsigned set = meet(v, site, [](Mail*, Mail*) {});
    T out;
    std::memcpy(&out, self->warp->mail[set][from & 31].r, sizeof out);
    return out;
}

// ---- kernels and their arguments ------------------------------------------------------------------------------------
template <class T> struct TypeName;  // a parameter of another type is a compile error
template <> struct TypeName<float> { static constexpr const char* value = "f32"; };
template <> struct TypeName<double> { static constexpr const char* value = "f64"; };
template <> struct TypeName<int> { static constexpr const char* value = "i32"; };
template <> struct TypeName<unsigned> { static constexpr const char* value = "u32"; };
template <> struct TypeName<unsigned char> { static constexpr const char* value = "u8"; };
template <> struct TypeName<long long> { static constexpr const char* value = "i64"; };

template <class A> void append_type(char*& at) {
    using P = std::remove_pointer_t<A>;
    auto put = [&](const char* s) { while (*s) *at++ = *s++; };
    if (std::is_pointer<A>::value && std::is_const<P>::value) put("const ");
    put(TypeName<std::remove_const_t<P>>::value);
    if (std::is_pointer<A>::value) put("*");
    put(",");
}

struct Kernel {
    const char* name;
    char signature[512];
    unsigned max_threads;
    const char* (*launch)(const Kernel*, const unsigned* grid, const unsigned* block, size_t shared, void** args, uint64_t seed);
    void (*function)();
    const Kernel* next;
};
extern const Kernel* kernels;  // every EXPORT_KERNEL of the program

const char* run_grid(const Kernel* k, dim3 grid, dim3 block, size_t shared, void (*body)(void*), void* arg, uint64_t seed);

template <class... A, size_t... I>
const char* launch_with(const Kernel* k, dim3 g, dim3 b, size_t shared, void** args, uint64_t seed, std::index_sequence<I...>) {
    auto f = reinterpret_cast<void (*)(A...)>(k->function);
    auto call = [&] { f(*static_cast<std::remove_reference_t<A>*>(args[I])...); };
    return run_grid(k, g, b, shared, [](void* p) { (*static_cast<decltype(call)*>(p))(); }, &call, seed);
}

struct Registration {
    Kernel kernel;
    template <class... A> Registration(const char* name, void (*f)(A...), unsigned max_threads) {
        kernel.name = name;
        char* at = kernel.signature;
        (append_type<A>(at), ...);
        *(at == kernel.signature ? at : at - 1) = 0;
        kernel.max_threads = max_threads;
        kernel.function = reinterpret_cast<void (*)()>(f);
        kernel.launch = [](const Kernel* k, const unsigned* g, const unsigned* b, size_t s, void** a, uint64_t seed) {
            return launch_with<A...>(k, {g[0], g[1], g[2]}, {b[0], b[1], b[2]}, s, a, seed, std::index_sequence_for<A...>{});
        };
        kernel.next = kernels;
        kernels = &kernel;
    }
};
}  // namespace cuda_host

#define threadIdx (cuda_host::self->tid)
#define blockIdx (cuda_host::block.idx)
#define blockDim (cuda_host::block.dim)
#define gridDim (cuda_host::block.grid)

inline void __syncthreads(cuda_host::Site s = CUDA_HOST_SITE) { cuda_host::pause(cuda_host::Wait::Block, s); }
inline void __syncwarp(cuda_host::Site s = CUDA_HOST_SITE) { cuda_host::pause(cuda_host::Wait::Warp, s); }
template <class T> T __shfl_xor_sync(unsigned mask, T v, int bits, cuda_host::Site s = CUDA_HOST_SITE) {
    return cuda_host::exchange(mask, v, cuda_host::self->lane ^ unsigned(bits), s);
}
template <class T> T __shfl_sync(unsigned mask, T v, int lane, cuda_host::Site s = CUDA_HOST_SITE) {
    return cuda_host::exchange(mask, v, unsigned(lane), s);
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __uint_as_float(unsigned u) { float f; std::memcpy(&f, &u, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned u; std::memcpy(&u, &f, 4); return u; }
