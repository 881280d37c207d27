// What the files of libcuda.so.1 share: every handle, the queue of every stream, and whether the device still works.
#pragma once
#include "standin.h"
#include "fatbin.h"

#include <cuda.h>  // NVIDIA's own declarations: a wrong prototype or number does not compile

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

extern "C" {
struct HostKernel { const char *name, *signature; const void* kernel; };
HostKernel fusedpo_host_kernel(size_t i);
const char* fusedpo_host_launch(const void*, const unsigned* grid, const unsigned* block, size_t shared, void** args, uint64_t seed);
}

namespace standin {
using std::string;

struct Allocation { uint64_t at; size_t bytes; char* pages; size_t mapped; bool host, live; };
// A place of a stream that an event waits for.
struct Mark { CUevent event = nullptr; uint64_t number = 0; };
struct Item { Work work; Mark mark = {}; Mark awaits = {}; };
struct Graph { std::vector<Work> work; };
struct Stream {
    std::deque<Item> queue;
    bool capturing = false, invalidated = false;
    std::thread::id capturer;
    Graph graph;
};
struct Event { bool timing; uint64_t recorded = 0, reached = 0; double at = 0; void* stream = nullptr; };
struct Module { fatbin::Image image; };
struct Function { string name; fatbin::Kernel k; HostKernel host; int dynamic; bool asked; const void* module; int carve_out = -1; };

// Every handle that is alive: anything else is an error, not a crash. A dead one's address is not given out again.
template <class T> struct Handles {
    std::map<void*, std::unique_ptr<T>> all;
    std::vector<std::unique_ptr<T>> dead;
    void* add(std::unique_ptr<T> t) { void* p = t.get(); all[p] = std::move(t); return p; }
    T* find(void* p) { auto i = all.find(p); return i == all.end() ? nullptr : i->second.get(); }
    bool remove(void* p) {
        auto i = all.find(p);
        if (i == all.end()) return false;
        *i->second = T{};
        dead.push_back(std::move(i->second));
        return all.erase(i), true;
    }
};

struct State {
    std::recursive_mutex mutex;
    std::map<uint64_t, Allocation> allocations;  // by address; freed ones stay, unreadable, and are never reused
    size_t used = 0, peak = 0;
    Handles<Stream> streams;
    Handles<Event> events;
    Handles<Module> modules;
    Handles<Function> functions;
    Handles<Graph> graphs, execs;
    bool started = false;
    int retained = 0, device = 0;
    int sticky = 0;               // once work has failed, everything does
    std::atomic<int> running{0};  // the "device" may touch its memory
    string running_what;
    unsigned long launches = 0, copies = 0, products = 0, replays = 0, waits = 0, defects = 0, ran = 0;
    std::map<string, unsigned long> by_name, calls;
    bool cannot_free = false;     // a call that gives something back, or that must come before one, has failed by STANDIN_FAIL
};
State& state();
extern thread_local bool current;  // the one context there is

inline const char* env(const char* name) { return setting(name); }
bool eager();
FILE* log_file();
// The device, as of its compute capability (STANDIN_CAPABILITY, 90 where unset).
unsigned capability();
int most_shared();
constexpr int kDefaultShared = 48 << 10;

// Reports a defect and returns `code`.
int fail(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));
// Every call: started, not failed, a context where it needs one. 0, or what it must return.
int enter(const char* call, bool context);
void begin();  // by cuInit: reports at exit, and on touching what must not be touched

// memory.cpp
string reach(const Range& r);  // why a range may not be touched, or nothing
Allocation* holder(uint64_t at);
string check_fences();
void watch_faults();
struct DeviceMode { DeviceMode(); ~DeviceMode(); };

// stream.cpp
int enqueue_item(void* stream, Item item);
// Up to `until`, where there is one. `waits`: for other processes too, as long as they take.
int drain(Stream& s, const Event* until, uint64_t number, bool waits = true);
int drain_all();
Stream* capture_of_this_thread();
int unsafe_in_capture(const char* call);  // of this thread: 0, or the error
}  // namespace standin

#define LOCK std::lock_guard<std::recursive_mutex> held(standin::state().mutex)
// As every call of the driver begins.
#define ENTER(context) LOCK; if (int code_ = standin::enter(__func__, context)) return CUresult(code_)
