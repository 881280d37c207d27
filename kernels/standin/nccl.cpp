// libnccl.so.2: point-to-point transfers between processes whose "devices" are the host's memory. Ranks share a piece of memory named
// by the unique id, with a box for every ordered pair. As the real one it tells nobody that a rank is gone: a transfer that lacks
// its other side never ends, until it is aborted. README.md lists the switches.
#include "standin.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <fcntl.h>
#include <map>
#include <memory>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>
#include <vector>

using namespace standin;

namespace {
enum Result { kSuccess, kCudaError, kSystemError, kInternalError, kInvalidArgument, kInvalidUsage, kRemoteError, kInProgress };

constexpr size_t kBox = 1 << 16;
// What one rank has for another: at most one piece of one message at a time.
struct Box {
    std::atomic<uint32_t> full;
    uint32_t piece;
    uint64_t message, bytes;  // its number between the two, and all of its bytes
    char data[kBox];
};
struct Head { std::atomic<uint32_t> joined; uint32_t size; };
struct UniqueId { char name[64]; char pad[64]; };
struct Config { size_t size; unsigned magic, version; int blocking, undefined; };

struct Op { bool send; uint64_t at; size_t bytes; int peer; void* stream; };
struct Comm {
    int rank = 0, size = 0;
    char* memory = nullptr;
    size_t mapped = 0;
    bool joined = false, finalized = false;
    std::atomic<bool> aborted{false};
    int busy = 0;  // how often it is asked before a call is over
    uint64_t groups = 0;
    std::map<int, uint64_t> sent, received;  // messages begun, by peer
    Head& head() { return *reinterpret_cast<Head*>(memory); }
    Box& box(int from, int to) { return reinterpret_cast<Box*>(memory + 4096)[from * size + to]; }
};
// Messages of a group on their way.
struct Transfer {
    Comm* comm;
    struct Leg { Op op; uint64_t message; size_t done = 0; };
    std::deque<Leg> legs;
};

std::mutex mutex;
std::map<Comm*, std::unique_ptr<Comm>> alive;
std::deque<std::unique_ptr<Comm>> ended;  // never given back: what is on the device may look there
thread_local int depth = 0;
thread_local std::deque<std::pair<Comm*, Op>> group;
thread_local std::string last_error;

int fails(int code, const char* what) {
    last_error = what;
    return code;
}

// Of every call that has a communicator: 0, or what it must return.
int enter(const char* call, void* handle, Comm*& comm, bool ready) {
    comm = nullptr;
    if (int code = called(call, kInternalError)) return fails(code, "made to fail");
    std::lock_guard<std::mutex> held(mutex);
    auto found = alive.find(static_cast<Comm*>(handle));
    if (found == alive.end()) {
        defect("%s on a communicator that is none, or has ended", call);
        return fails(kInvalidArgument, "a dead communicator");
    }
    comm = found->second.get();
    if (ready && (!comm->joined || comm->busy || comm->finalized)) {
        defect("%s on a communicator that %s", call, !comm->joined ? "has not joined" : comm->busy ? "is still at the call before" : "was finalized");
        return fails(kInvalidUsage, "not ready");
    }
    return 0;
}

unsigned long number(const char* name) { return setting(name) ? strtoul(setting(name), nullptr, 10) : 0; }

// One piece further, where that can be. False: nothing moved.
bool step(Comm& c, Transfer::Leg& leg) {
    auto& op = leg.op;
    Box& box = op.send ? c.box(c.rank, op.peer) : c.box(op.peer, c.rank);
    if (bool(box.full.load(std::memory_order_acquire)) == op.send) return false;
    auto* at = reinterpret_cast<char*>(op.at) + leg.done;
    if (op.send) {
        box.piece = uint32_t(std::min(op.bytes - leg.done, kBox));
        box.message = leg.message, box.bytes = op.bytes;
        memcpy(box.data, at, box.piece);
    } else {
        if (box.message != leg.message) return defect("rank %d awaits message %lu of rank %d, and %lu is there", c.rank, leg.message, op.peer, box.message), false;
        if (box.bytes != op.bytes) {
            defect("rank %d awaits %zu bytes of rank %d, which sends %lu", c.rank, op.bytes, op.peer, box.bytes);
            return c.aborted = true;
        }
        memcpy(at, box.data, box.piece);
    }
    leg.done += box.piece;
    box.full.store(op.send, std::memory_order_release);
    return true;
}

// Whether the group is over. Messages between two ranks go in order.
bool progress(Transfer& t) {
    Comm& c = *t.comm;
    for (bool moved = true; moved && !c.aborted;) {
        moved = false;
        std::map<std::pair<int, bool>, bool> seen;
        for (auto& leg : t.legs) {
            if (leg.done == leg.op.bytes) continue;
            if (std::exchange(seen[{leg.op.peer, leg.op.send}], true)) continue;
            moved |= step(c, leg);
        }
    }
    for (auto& leg : t.legs)
        if (leg.done < leg.op.bytes && !c.aborted) return false;
    return true;
}

int enqueue_group() {
    auto ops = std::move(group);
    group.clear();
    std::map<std::pair<Comm*, void*>, std::shared_ptr<Transfer>> by_stream;
    std::map<std::pair<Comm*, void*>, std::vector<Range>> ranges;
    for (auto& [comm, op] : ops) {
        auto& t = by_stream[{comm, op.stream}];
        if (!t) t = std::make_shared<Transfer>(Transfer{comm, {}});
        t->legs.push_back({op, op.send ? ++comm->sent[op.peer] : ++comm->received[op.peer]});
        ranges[{comm, op.stream}].push_back({op.at, op.bytes, op.send ? "what is sent" : "what is received"});
    }
    for (auto& [key, t] : by_stream) {
        auto [comm, stream] = key;
        uint64_t n = ++comm->groups;
        bool sticks = n == number("STANDIN_NCCL_STICK"), dies = n == number("STANDIN_NCCL_DIE");
        Work work{"nccl", ranges[key], {}};
        work.ready = [t, sticks, dies] {
            if (sticks && !t->comm->aborted) return false;
            if (dies) step(*t->comm, t->legs.front()), raise(SIGKILL);
            return progress(*t);
        };
        if (int code = enqueue(stream, std::move(work))) return fails(kCudaError, code == 400 ? "a dead stream" : "CUDA failed");
        comm->busy = int(n % 3);
        if (comm->busy) return kInProgress;
    }
    return kSuccess;
}

int point(const char* call, bool send, uint64_t at, size_t count, int type, int peer, void* handle, void* stream) {
    Comm* c;
    if (int code = enter(call, handle, c, true)) return code;
    static const size_t width[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    if (!depth) return defect("%s outside of a group: with one on the other side it waits for ever", call), fails(kInvalidUsage, "outside of a group");
    if (type < 0 || type > 9 || peer < 0 || peer >= c->size || !count || peer == c->rank) {
        defect("%s of %zu elements of type %d, with rank %d of %d, by rank %d", call, count, type, peer, c->size, c->rank);
        return fails(kInvalidArgument, "an argument");
    }
    if (!covered(at, count * width[type])) {
        defect("%s of memory that is not the device's", call);
        return fails(kInvalidArgument, "no device memory");
    }
    group.push_back({c, {send, at, count * width[type], peer, stream}});
    return kSuccess;
}

void left() {
    std::lock_guard<std::mutex> held(mutex);
    if (!alive.empty() && leaks_count()) defect("%zu communicators are left at the end", alive.size());
}
}  // namespace

STANDIN_API int ncclGetVersion(int* v) {
    if (int code = called("ncclGetVersion", kInternalError)) return code;
    return *v = setting("STANDIN_NCCL") ? atoi(setting("STANDIN_NCCL")) : 23007, kSuccess;
}
STANDIN_API const char* ncclGetErrorString(int code) {
    static const char* const text[] = {"no error", "unhandled cuda error", "unhandled system error", "internal error", "invalid argument", "invalid usage", "remote process exited or there was a network error", "NCCL operation in progress"};
    return code >= 0 && code < 8 ? text[code] : "unknown result code";
}
STANDIN_API const char* ncclGetLastError(void*) { return last_error.c_str(); }
STANDIN_API int ncclGetUniqueId(UniqueId* id) {
    if (int code = called("ncclGetUniqueId", kSystemError)) return fails(code, "made to fail");
    memset(id, 0, sizeof *id);
    snprintf(id->name, sizeof id->name, "/fusedpo-nccl-%d-%lx", getpid(), long(time(nullptr)) ^ long(clock()));
    return kSuccess;
}
STANDIN_API int ncclCommInitRankConfig(void** out, int size, UniqueId id, int rank, Config* config) {
    *out = nullptr;
    if (int code = called("ncclCommInitRankConfig", kInternalError)) return fails(code, "made to fail");
    if (!has_context()) return fails(kCudaError, "no CUDA device is current");
    if (config->size != sizeof *config || config->magic != 0xcafebeef || config->version != 21400 || config->blocking != 0 || config->undefined != INT_MIN)
        return defect("a configuration of %zu bytes, version %u, blocking %d", config->size, config->version, config->blocking), kInvalidArgument;
    if (rank < 0 || rank >= size || size > 64) return fails(kInvalidArgument, "rank");
    auto c = std::make_unique<Comm>();
    c->rank = rank, c->size = size;
    c->mapped = 4096 + sizeof(Box) * size_t(size) * size_t(size);
    int fd = shm_open(id.name, O_CREAT | O_RDWR, 0600);
    if (fd < 0 || ftruncate(fd, off_t(c->mapped))) return fails(kSystemError, strerror(errno));
    void* p = mmap(nullptr, c->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (p == MAP_FAILED) return fails(kSystemError, strerror(errno));
    c->memory = static_cast<char*>(p);
    bool never = setting("STANDIN_NCCL_NEVER");
    // Whoever comes last takes the name away: those who are there need none.
    if (!never && c->head().joined.fetch_add(1) + 1 == uint32_t(size)) shm_unlink(id.name);
    c->busy = 2;
    std::lock_guard<std::mutex> held(mutex);
    static bool once = (atexit(left), true);
    (void)once;
    *out = c.get();
    alive[c.get()] = std::move(c);
    return kInProgress;
}
STANDIN_API int ncclCommGetAsyncError(void* handle, int* state) {
    Comm* c;
    if (int code = enter("ncclCommGetAsyncError", handle, c, false)) return code;
    if (const char* at = setting("STANDIN_NCCL_ASYNC"))  // GROUP:CODE
        if (c->groups >= strtoul(at, nullptr, 10)) return *state = strchr(at, ':') ? atoi(strchr(at, ':') + 1) : int(kRemoteError), last_error = "made to fail", kSuccess;
    if (!c->joined) c->joined = c->head().joined.load() == uint32_t(c->size) && !setting("STANDIN_NCCL_NEVER");
    if (c->joined && c->busy > 0) --c->busy;
    return *state = !c->joined || c->busy ? kInProgress : kSuccess, kSuccess;
}
STANDIN_API int ncclGroupStart() {
    if (int code = called("ncclGroupStart", kInternalError)) return fails(code, "made to fail");
    return ++depth, kSuccess;
}
STANDIN_API int ncclGroupEnd() {
    int code = called("ncclGroupEnd", kInternalError);
    if (!depth) return defect("a group ended that was not begun"), fails(kInvalidUsage, "no group");
    if (--depth) return code;
    if (code) return group.clear(), fails(code, "made to fail");
    return enqueue_group();
}
STANDIN_API int ncclSend(const void* at, size_t count, int type, int peer, void* comm, void* stream) {
    return point("ncclSend", true, reinterpret_cast<uint64_t>(at), count, type, peer, comm, stream);
}
STANDIN_API int ncclRecv(void* at, size_t count, int type, int peer, void* comm, void* stream) {
    return point("ncclRecv", false, reinterpret_cast<uint64_t>(at), count, type, peer, comm, stream);
}
STANDIN_API int ncclCommFinalize(void* handle) {
    Comm* c;
    if (int code = enter("ncclCommFinalize", handle, c, true)) return code;
    return c->finalized = true, c->busy = 1, kInProgress;
}

namespace {
int ends(const char* call, void* handle, bool orderly) {
    Comm* c;
    if (int code = enter(call, handle, c, false)) return code;
    if (orderly && (!c->finalized || c->busy)) defect("%s of a communicator that was not finalized, or not to the end", call);
    c->aborted = true;
    std::lock_guard<std::mutex> held(mutex);
    ended.push_back(std::move(alive[c]));
    return alive.erase(c), kSuccess;
}
}  // namespace

STANDIN_API int ncclCommDestroy(void* handle) { return ends("ncclCommDestroy", handle, true); }
STANDIN_API int ncclCommAbort(void* handle) {
    if (setting("STANDIN_NCCL_ABORT_HANGS")) for (;;) pause();
    return ends("ncclCommAbort", handle, false);
}
