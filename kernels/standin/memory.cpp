// Device and page-locked memory, and copies. Every allocation ends at a guard page, lies between fences of known bytes, and is
// never given out again; device memory is unreadable to the host while it is the host's turn (not with STANDIN_EAGER).
#include "state.h"

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

using namespace standin;

namespace {
constexpr size_t kPage = 4096, kAlign = 256;

void protect_all(int mode) {
    for (auto& [_, a] : state().allocations)
        if (a.live && !a.host) mprotect(a.pages, a.mapped, mode);
}

uint64_t take(size_t bytes, bool host) {
    State& s = state();
    size_t data = (bytes + kAlign - 1) / kAlign * kAlign, mapped = (data + kPage - 1) / kPage * kPage;
    void* p = mmap(nullptr, mapped + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return 0;
    char* pages = static_cast<char*>(p) + kPage;
    mprotect(pages, mapped, PROT_READ | PROT_WRITE);
    memset(pages, 0xff, mapped);  // NaN in every type
    uint64_t at = reinterpret_cast<uint64_t>(pages + mapped - data);  // its end at a guard page
    if (!host && !s.running && !eager()) mprotect(pages, mapped, PROT_NONE);
    s.allocations[at] = {at, bytes, pages, mapped, host, true};
    if (!host) s.peak = std::max(s.peak, s.used += bytes);
    return at;
}

void give(Allocation& a) {
    mprotect(a.pages, a.mapped, PROT_NONE);
    madvise(a.pages, a.mapped, MADV_DONTNEED);
    a.live = false;
    if (!a.host) state().used -= a.bytes;
}

bool untouched(const char* from, const char* to) {
    unsigned char all = 0xff;
    for (; from < to; ++from) all &= static_cast<unsigned char>(*from);
    return all == 0xff;
}

struct sigaction before;
void on_fault(int, siginfo_t* info, void*) {
    State& s = state();
    uint64_t at = reinterpret_cast<uint64_t>(info->si_addr);
    for (auto& [_, a] : s.allocations) {
        uint64_t low = reinterpret_cast<uint64_t>(a.pages) - kPage, high = low + a.mapped + 2 * kPage;
        if (at < low || at >= high) continue;
        const char* how = !a.live ? "freed" : at < a.at || at >= a.at + a.bytes ? "outside of" : "live";
        char text[400];
        int n = snprintf(text, sizeof text, "stand-in: DEFECT: %s touched %s %s memory at %#lx (allocation of %zu bytes at %#lx)\n",
                         s.running ? s.running_what.c_str() : "the host", how, a.host ? "page-locked" : "device", at, a.bytes, a.at);
        if (write(fileno(log_file()), text, size_t(n)) < 0 || write(2, text, size_t(n)) < 0) {}
        _exit(139);
    }
    sigaction(SIGSEGV, &before, nullptr);  // somebody else's: comes again
}
}  // namespace

namespace standin {
// The allocation that `at` lies in, or at whose end it is.
Allocation* holder(uint64_t at) {
    auto& all = state().allocations;
    auto i = all.upper_bound(at);
    if (i == all.begin()) return nullptr;
    Allocation& a = (--i)->second;
    return at <= a.at + a.bytes ? &a : nullptr;
}

string reach(const Range& r) {
    if (!r.at && !r.bytes) return "";
    Allocation* a = holder(r.at);
    char text[200];
    if (!a) snprintf(text, sizeof text, "%s: %#lx is no device memory", r.what, r.at);
    else if (!a->live) snprintf(text, sizeof text, "%s: %#lx was freed", r.what, r.at);
    else if (a->host) snprintf(text, sizeof text, "%s: %#lx is host memory", r.what, r.at);
    else if (r.at + r.bytes > a->at + a->bytes)
        snprintf(text, sizeof text, "%s: %zu bytes from %#lx, %zu past the end", r.what, r.bytes, r.at, size_t(r.at + r.bytes - a->at - a->bytes));
    else return "";
    return text;
}

string check_fences() {
    for (auto& [_, a] : state().allocations) {
        if (!a.live || a.host) continue;
        if (!untouched(a.pages, reinterpret_cast<char*>(a.at)) || !untouched(reinterpret_cast<char*>(a.at + a.bytes), a.pages + a.mapped))
            return "wrote outside an allocation of " + std::to_string(a.bytes) + " bytes";
    }
    return "";
}

DeviceMode::DeviceMode() { if (state().running++ == 0 && !eager()) protect_all(PROT_READ | PROT_WRITE); }
DeviceMode::~DeviceMode() { if (--state().running == 0 && !eager()) protect_all(PROT_NONE); }

void watch_faults() {
    struct sigaction a {};
    a.sa_sigaction = on_fault;
    a.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &a, &before);
}
bool covered(uint64_t at, size_t bytes) {
    LOCK;
    return reach({at, bytes, ""}).empty();
}
}  // namespace standin

STANDIN_API CUresult cuMemAlloc_v2(CUdeviceptr* p, size_t bytes) {
    ENTER(true);
    if (int e = unsafe_in_capture("cuMemAlloc")) return CUresult(e);
    if (!bytes) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "cuMemAlloc of nothing"));
    size_t total = env("STANDIN_MEMORY") ? strtoull(env("STANDIN_MEMORY"), nullptr, 0) : size_t(4) << 30;
    if (state().used + bytes > total || !(*p = take(bytes, false))) return CUDA_ERROR_OUT_OF_MEMORY;
    return CUDA_SUCCESS;
}
STANDIN_API CUresult cuMemFree_v2(CUdeviceptr p) {
    ENTER(true);
    if (int e = unsafe_in_capture("cuMemFree")) return CUresult(e);
    if (!p) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "cuMemFree of nothing"));
    auto i = state().allocations.find(p);
    if (i == state().allocations.end() || !i->second.live || i->second.host) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "cuMemFree of %#llx, which is none, or freed", p));
    if (int e = drain_all()) return CUresult(e);
    return give(i->second), CUDA_SUCCESS;
}
STANDIN_API CUresult cuMemHostAlloc(void** p, size_t bytes, unsigned flags) {
    ENTER(true);
    if (int e = unsafe_in_capture("cuMemHostAlloc")) return CUresult(e);
    if (!bytes || flags & ~7u) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "cuMemHostAlloc of %zu bytes, flags %#x", bytes, flags));
    uint64_t at = take(bytes, true);
    return at ? (*p = reinterpret_cast<void*>(at), CUDA_SUCCESS) : CUDA_ERROR_OUT_OF_MEMORY;
}
STANDIN_API CUresult cuMemFreeHost(void* p) {
    ENTER(true);
    if (int e = unsafe_in_capture("cuMemFreeHost")) return CUresult(e);
    State& s = state();
    auto i = s.allocations.find(reinterpret_cast<uint64_t>(p));
    if (i == s.allocations.end() || !i->second.live || !i->second.host) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "cuMemFreeHost of what is none"));
    auto inside = [&](const HostRange& h) {
        uint64_t at = reinterpret_cast<uint64_t>(h.at);
        return h.bytes && at < i->second.at + i->second.bytes && i->second.at < at + h.bytes;
    };
    for (auto& [_, stream] : s.streams.all)
        for (auto& item : stream->queue)
            if (inside(item.work.host)) defect("page-locked memory freed under a %s", item.work.name.c_str());
    return give(i->second), CUDA_SUCCESS;
}

namespace {
// Page-locked memory that holds the range; null: pageable. Crossing an end is an error of the caller.
const Allocation* pinned(const void* p, size_t bytes, string& why) {
    Allocation* a = holder(reinterpret_cast<uint64_t>(p));
    if (!a || !a->host) {
        if (a) why = "a device address given as the host's";
        return nullptr;
    }
    if (!a->live) why = "page-locked memory that was freed";
    else if (reinterpret_cast<uint64_t>(p) + bytes > a->at + a->bytes) why = "past the end of page-locked memory";
    return a;
}

// What is at `from` now, or nothing where the host has given it back.
string look(const void* from, size_t bytes) {
    string now(bytes, 0);
    iovec to{&now[0], bytes}, source{const_cast<void*>(from), bytes};
    return process_vm_readv(getpid(), &to, 1, &source, 1, 0) == ssize_t(bytes) ? now : "";
}
}  // namespace

STANDIN_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    ENTER(true);
    string why;
    const Allocation* locked = pinned(from, bytes, why);
    if (!why.empty()) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "copy to the device: %s", why.c_str()));
    auto was = std::make_shared<string>(static_cast<const char*>(from), bytes);
    auto* target = reinterpret_cast<void*>(to);
    // Pageable memory is staged by the call, but where the device can read it itself.
    bool late = locked || env("STANDIN_PAGEABLE");
    Work w{"copy to the device", {{to, bytes, "target"}}, [=]() -> string {
        if (late && look(from, bytes) != *was) defect("%s memory changed before it was copied to the device", locked ? "page-locked" : "pageable");
        return memcpy(target, was->data(), bytes), "";
    }};
    if (locked) w.host = {from, bytes};
    ++state().copies;
    return CUresult(enqueue_item(stream, {std::move(w)}));
}
STANDIN_API CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER(true);
    string why;
    const Allocation* locked = pinned(to, bytes, why);
    if (!why.empty()) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "copy to the host: %s", why.c_str()));
    ++state().copies;
    Work w{"copy to the host", {{from, bytes, "source"}}, [=]() -> string { return memcpy(to, reinterpret_cast<void*>(from), bytes), ""; }};
    if (locked) w.host = {to, bytes};
    int e = enqueue_item(stream, {std::move(w)});
    Stream* s = state().streams.find(stream);
    if (!e && !eager() && s && !s->capturing) memset(to, 0xff, bytes);  // undefined until somebody has waited
    return CUresult(e);
}
STANDIN_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER(true);
    ++state().copies;
    if (to < from + bytes && from < to + bytes) defect("copy on the device between ranges that overlap");
    return CUresult(enqueue_item(stream, {{"copy on the device", {{to, bytes, "target"}, {from, bytes, "source"}}, [=]() -> string {
        return memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes), "";
    }}}));
}
STANDIN_API CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char v, size_t bytes, CUstream stream) {
    ENTER(true);
    return CUresult(enqueue_item(stream, {{"memset", {{at, bytes, "target"}}, [=]() -> string {
        return memset(reinterpret_cast<void*>(at), v, bytes), "";
    }}}));
}
