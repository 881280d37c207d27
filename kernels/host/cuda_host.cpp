// The scheduler behind cuda_host.h.
#include "cuda_host.h"

#include <cstdarg>
#include <cstdio>
#include <memory>
#include <numeric>
#include <sys/mman.h>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#endif

namespace cuda_host {
__thread Fiber* self = nullptr;
__thread Block block;
const Kernel* kernels = nullptr;

namespace {
constexpr size_t kStack = 128 << 10;        // address space; pages that are never touched cost nothing
// Stacks begin at different places of their pages: were all a power of two apart, their tops would share one line's worth of every
// cache, and each switch would miss.
constexpr size_t kColours = 128, kColour = 5 * 64;
constexpr size_t kMapping = kStack + kColours * kColour;
constexpr uint64_t kCanary = 0x5afe57acc0ffee11ull;
constexpr size_t kGuard = 64;               // bytes of NaN behind dynamic shared memory
constexpr size_t kStaticShared = 1 << 20;   // all SHARED() arrays of the program together

struct State {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    std::vector<char> dynamic, fixed;
    void* scheduler = nullptr;
    struct { unsigned begin, lanes, left, lane, step; } round = {};  // of the warp that runs: which lanes are still to have their turn
    void (*body)(void*) = nullptr;
    void* arg = nullptr;
    const char* kernel = "";
    uint64_t rng = 1;
    bool failed = false;
    char message[512];
#if !defined(__x86_64__)
    ucontext_t scheduler_context;
    std::vector<ucontext_t> contexts;
#endif
    ~State() { for (auto& f : fibers) munmap(f->mapping, kMapping); }
};
__thread State* state = nullptr;  // from its first launch on
size_t static_shared_used = 0;

uint64_t random_bits() {  // xorshift64*
    uint64_t& x = state->rng;
    x ^= x >> 12; x ^= x << 25; x ^= x >> 27;
    return x * 0x2545F4914F6CDD1Dull;
}
}  // namespace

// ---- switching stacks -----------------------------------------------------------------------------------------------
#if defined(__x86_64__)
// Saves the callee-saved registers on this stack, parks its pointer in *from and goes on at `to` (System V ABI).
extern "C" void cuda_host_switch(void** from, void* to);
asm(R"(
.text
.type cuda_host_switch, @function
cuda_host_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi); movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
.size cuda_host_switch, .-cuda_host_switch
)");
static void go(Fiber* from, Fiber* to) {
    void** park = from ? &from->stack_pointer : &state->scheduler;
    if (to) self = to;
    cuda_host_switch(park, to ? to->stack_pointer : state->scheduler);
}
#else
static void go(Fiber* from, Fiber* to) {
    auto context = [](Fiber* f) { return f ? static_cast<ucontext_t*>(f->stack_pointer) : &state->scheduler_context; };
    if (to) self = to;
    swapcontext(context(from), context(to));
}
#endif

static void land(Fiber& f, unsigned i);

// The lane of the warp whose turn is next; null: all have had it, or the launch has failed.
static Fiber* next_lane() {
    auto& r = state->round;
    while (r.left && !state->failed) {
        Fiber& f = *state->fibers[r.begin + r.lane];
        --r.left;
        if ((r.lane += r.step) >= r.lanes) r.lane -= r.lanes;
        if (f.wait != Wait::None) continue;
        if (f.num_copies && random_bits() >> 61 == 0) land(f, unsigned(random_bits() >> 32) % f.num_copies);
        return &f;
    }
    return nullptr;
}
// Straight to the next lane, or to the scheduler (null) behind the last.
static void leave() { go(self, next_lane()); }

void pause(Wait kind, Site site) {
    Fiber& f = *self;
    f.wait = kind;
    f.site = site;
    ++(kind == Wait::Warp ? f.warp->at_warp : f.warp->at_block);
    leave();
}

// Keeps the message and never comes back: the launch ends, and what the fibers hold is trivial.
void fail(const char* format, ...) {
    va_list args;
    va_start(args, format);
    std::vsnprintf(state->message, sizeof state->message, format, args);
    va_end(args);
    state->failed = true;
    for (;;) leave();
}

static void entry() {
    state->body(state->arg);
    // Nobody knows when they land, nor what shared memory then holds.
    const Fiber& f = *self;
    if (f.num_copies) fail("thread (%u,%u,%u) returns with asynchronous copies in flight (%u)", f.tid.x, f.tid.y, f.tid.z, f.num_copies);
    self->wait = Wait::Done;
    ++self->warp->done;
    for (;;) leave();
}

static void prepare(Fiber& f, unsigned index) {
    const dim3& d = block.dim;
    f.tid = {index % d.x, index / d.x % d.y, index / (d.x * d.y)};
    f.warp = &state->warps[index / kWarp];
    f.lane = index % kWarp;
    f.phase = 0;
    f.wait = Wait::None;
    f.num_copies = f.open_group = 0;
    std::memcpy(f.stack, &kCanary, sizeof kCanary);
#if defined(__x86_64__)
    auto* sp = reinterpret_cast<void**>(f.stack + kStack) - 1;  // a call leaves the stack 8 bytes off 16
    *--sp = reinterpret_cast<void*>(&entry);
    f.stack_pointer = sp - 6;
#else
    ucontext_t& c = state->contexts[index];
    getcontext(&c);
    c.uc_stack = {f.stack, 0, kStack};
    c.uc_link = nullptr;
    makecontext(&c, entry, 0);
    f.stack_pointer = &c;
#endif
}

// ---- barriers -------------------------------------------------------------------------------------------------------
static const char* name_of(Wait w) {
    return w == Wait::Block ? "__syncthreads" : w == Wait::Warp ? "a warp operation" : w == Wait::Done ? "return" : "nothing";
}

static bool divergent(const Fiber& a, const Fiber& b) {
    if (a.wait == b.wait && a.site.line == b.site.line && a.site.file == b.site.file) return false;
    auto where = [](const Fiber& f, char* out, size_t n) {
        if (f.wait == Wait::Done) std::snprintf(out, n, "has returned");
        else std::snprintf(out, n, "waits at %s, %s:%d", name_of(f.wait), f.site.file, f.site.line);
    };
    char one[160], two[160];
    where(a, one, sizeof one);
    where(b, two, sizeof two);
    std::snprintf(state->message, sizeof state->message, "divergent barrier: thread (%u,%u,%u) %s, thread (%u,%u,%u) %s",
                  a.tid.x, a.tid.y, a.tid.z, one, b.tid.x, b.tid.y, b.tid.z, two);
    state->failed = true;
    return true;
}

// Releases fibers begin..end, which all wait; fails where they do not wait at the same place.
static bool release(unsigned begin, unsigned end) {
    for (unsigned i = begin + 1; i < end; ++i)
        if (divergent(*state->fibers[begin], *state->fibers[i])) return false;
    for (unsigned i = begin; i < end; ++i) state->fibers[i]->wait = Wait::None;
    return true;
}

static void run_lanes(unsigned begin, unsigned lanes) {
    unsigned start = unsigned(random_bits() >> 32) % lanes, step = random_bits() >> 63 ? 1 : lanes - 1;
    state->round = {begin, lanes, lanes, start, step};
    if (Fiber* first = next_lane()) go(nullptr, first);
}

// One turn of a warp: its lanes run until all wait or are done. Behind an operation of the warp it mostly goes straight on, so that
// some warps are far ahead of others: were each operation the end of a turn, it would be as good as a barrier of the block, and
// one that is missing behind it would not be missed. False: the launch has failed.
static bool take_turn(unsigned begin, Warp& warp) {
    for (bool on = warp.at_block + warp.done < warp.lanes; on;) {
        run_lanes(begin, warp.lanes);
        if (state->failed) return false;
        on = warp.at_warp && random_bits() >> 61;
        // Every lane now waits or is done. A warp whose lanes do not agree can never go on.
        if (warp.at_warp && !release(begin, begin + warp.lanes)) return false;
        warp.at_warp = 0;
    }
    return true;
}

static void run_block(unsigned threads) {
    unsigned warps = (threads + kWarp - 1) / kWarp;
    if (state->warps.size() < warps) state->warps.resize(warps);
    for (unsigned w = 0; w < warps; ++w) state->warps[w].begin();
    for (unsigned i = 0; i < threads; ++i) prepare(*state->fibers[i], i), ++state->fibers[i]->warp->lanes;
    std::vector<unsigned> order(warps);
    std::iota(order.begin(), order.end(), 0u);
    for (unsigned finished = 0, waiting = 0;;) {
        for (unsigned i = warps; i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);
        finished = waiting = 0;
        for (unsigned w : order) {
            Warp& warp = state->warps[w];
            if (!take_turn(w * kWarp, warp)) return;
            finished += warp.done;
            waiting += warp.at_block;
        }
        if (finished == threads) return;
        if (finished + waiting == threads) {
            if (!release(0, threads)) return;
            for (unsigned w : order) state->warps[w].at_block = 0;
        }
    }
}

const char* run_grid(const Kernel* k, dim3 grid, dim3 dim, size_t shared, void (*body)(void*), void* arg, uint64_t seed) {
    static thread_local State of_this_thread;
    state = &of_this_thread;
    size_t threads = size_t(dim.x) * dim.y * dim.z, blocks = size_t(grid.x) * grid.y * grid.z;
    if (threads > k->max_threads) {
        std::snprintf(state->message, sizeof state->message, "%zu threads a block, compiled for at most %u", threads, k->max_threads);
        return state->message;
    }
    while (state->fibers.size() < threads) {
        auto f = std::make_unique<Fiber>();
        f->mapping = static_cast<char*>(mmap(nullptr, kMapping, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (f->mapping == MAP_FAILED) return "out of memory for fiber stacks";
        f->stack = f->mapping + state->fibers.size() % kColours * kColour;
        state->fibers.push_back(std::move(f));
    }
#if !defined(__x86_64__)
    state->contexts.resize(state->fibers.size());
#endif
    state->body = body;
    state->arg = arg;
    state->failed = false;
    state->rng = seed * 0x9E3779B97F4A7C15ull + 0x1234567;
    state->fixed.resize(kStaticShared);
    state->dynamic.resize(shared + kGuard + 128);
    block.grid = grid;
    block.dim = dim;
    block.fixed = state->fixed.data();
    block.dynamic = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(state->dynamic.data()) + 127) & ~uintptr_t(127));
    block.dynamic_bytes = shared;
    std::vector<size_t> order(blocks);
    std::iota(order.begin(), order.end(), size_t(0));
    if (seed)
        for (size_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);
    for (size_t b : order) {
        block.idx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / (size_t(grid.x) * grid.y))};
        std::memset(block.fixed, 0xff, static_shared_used);
        std::memset(block.dynamic, 0xff, shared + kGuard);
        ASAN_POISON_MEMORY_REGION(block.dynamic + shared, kGuard);
        run_block(unsigned(threads));
        ASAN_UNPOISON_MEMORY_REGION(block.dynamic + shared, kGuard);
        for (size_t i = 0; i < kGuard && !state->failed; ++i)
            if (block.dynamic[shared + i] != char(0xff)) {
                std::snprintf(state->message, sizeof state->message, "writes past its %zu bytes of dynamic shared memory", shared);
                state->failed = true;
            }
        for (size_t i = 0; i < threads && !state->failed; ++i)
            if (std::memcmp(state->fibers[i]->stack, &kCanary, sizeof kCanary)) {
                std::snprintf(state->message, sizeof state->message, "a thread needs more than %zu bytes of stack on the host", kStack);
                state->failed = true;
            }
        if (state->failed) return state->message;
    }
    return nullptr;
}

// ---- shared memory and asynchronous copies --------------------------------------------------------------------------
size_t reserve_static_shared(size_t bytes) {  // once per declaration, under the lock of a function-local static
    static size_t next = 0;
    size_t at = __atomic_fetch_add(&next, (bytes + 127) & ~size_t(127), __ATOMIC_RELAXED);
    if (at + bytes > kStaticShared) fail("more than %zu bytes of SHARED arrays in the program", kStaticShared);
    __atomic_store_n(&static_shared_used, __atomic_load_n(&next, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
    // The block that meets a declaration first has not been filled there yet.
    std::memset(block.fixed + at, 0xff, bytes);
    return at;
}

void check_shared(const char* what, const void* p, unsigned bytes, unsigned align) {
    expect_aligned(what, p, align);
    auto* c = static_cast<const char*>(p);
    bool dynamic = c >= block.dynamic && c + bytes <= block.dynamic + block.dynamic_bytes;
    bool fixed = c >= block.fixed && c + bytes <= block.fixed + static_shared_used;
    if (!dynamic && !fixed) fail("%s: address %p is outside the block's shared memory", what, p);
}

// The bytes land when they are waited for, or before: one copy in eight times that a thread goes on. Until then the destination
// holds NaN. So a reader that did not wait sees it, as does one that still needed what was there before; and what is written
// there meanwhile is lost.
void cp_async(void* shared, const void* global, unsigned bytes) {
    check_shared("cp.async", shared, 16, 16);
    expect_aligned("cp.async source", global, 16);
    Fiber& f = *self;
    if (f.num_copies == sizeof f.copies / sizeof f.copies[0]) fail("cp.async: too many copies of one thread in flight");
    f.copies[f.num_copies++] = {shared, global, bytes, f.open_group};
    std::memset(shared, 0xff, 16);
}
void cp_async_commit() { ++self->open_group; }
static void write(const Copy& c) {
    std::memset(c.to, 0, 16);  // bytes < 16: the rest becomes zero, as the instruction's src-size does
    std::memcpy(c.to, c.from, c.bytes);
}
// Copy `i` of those in flight, out of turn: copies are not ordered among each other.
static void land(Fiber& f, unsigned i) {
    write(f.copies[i]);
    std::memmove(f.copies + i, f.copies + i + 1, (--f.num_copies - i) * sizeof(Copy));
}
void cp_async_wait(unsigned newest) {
    Fiber& f = *self;
    unsigned upto = f.open_group > newest ? f.open_group - newest : 0, n = 0;
    while (n < f.num_copies && f.copies[n].group < upto) write(f.copies[n++]);
    f.num_copies -= n;
    std::memmove(f.copies, f.copies + n, f.num_copies * sizeof(Copy));
}
}  // namespace cuda_host

extern "C" {
struct HostKernel {
    const char* name;
    const char* signature;
    const void* kernel;
};
// Kernel number `i` of the program, in no particular order; a null name past the last.
HostKernel fusedpo_host_kernel(size_t i) {
    const cuda_host::Kernel* k = cuda_host::kernels;
    while (k && i--) k = k->next;
    return k ? HostKernel{k->name, k->signature, k} : HostKernel{nullptr, nullptr, nullptr};
}
// Runs it; null, or why it failed (valid until the thread's next launch).
const char* fusedpo_host_launch(const void* kernel, const unsigned* grid, const unsigned* block, size_t shared, void** args, uint64_t seed) {
    auto* k = static_cast<const cuda_host::Kernel*>(kernel);
    return k->launch(k, grid, block, shared, args, seed);
}
}
