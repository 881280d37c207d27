// Streams, events and graphs. Work runs when somebody waits, not before (at once with STANDIN_EAGER).
#include "state.h"

#include <chrono>
#include <cstdlib>
#include <unistd.h>

using namespace standin;

namespace {
string run(const Work& w) {
    State& s = state();
    for (auto& r : w.ranges)
        if (string why = reach(r); !why.empty()) return why;
    s.running_what = w.name;
    string why = w.run ? w.run() : "";
    return why.empty() ? check_fences() : why;
}

// STANDIN_LOSE=N or N:CODE: the Nth kernel or product loses the device.
int loses() {
    const char* n = env("STANDIN_LOSE");
    if (!n) return 0;
    char* end;
    if (strtoul(n, &end, 10) != state().ran) return 0;
    return *end == ':' ? atoi(end + 1) : CUDA_ERROR_LAUNCH_FAILED;
}

// Runs what `e` marks on its stream; false: that has to wait.
bool reaches(Event& e, uint64_t number, bool waits) {
    Stream* s = state().streams.find(e.stream);
    if (s && e.reached < number) drain(*s, &e, number, waits);
    return !s || e.reached >= number;
}

// STANDIN_SIDE_FIRST: what is beside a stream runs as early as it may, and otherwise as late.
void side_first(const Stream* than) {
    if (!env("STANDIN_SIDE_FIRST")) return;
    for (auto& [_, s] : state().streams.all)
        if (s.get() != than) drain(*s, nullptr, 0, false);
}

double now() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
}  // namespace

namespace standin {
int drain(Stream& s, const Event* until, uint64_t number, bool waits) {
    DeviceMode device;
    State& all = state();
    while (!s.queue.empty() && !all.sticky && !(until && until->reached >= number)) {
        if (auto& ready = s.queue.front().work.ready; ready && !ready()) {
            if (!waits) break;
            usleep(50);
            continue;
        }
        if (auto& mark = s.queue.front().awaits; mark.event) {
            Event* e = all.events.find(mark.event);
            if (e && !reaches(*e, mark.number, waits) && !waits) break;
        }
        Item item = std::move(s.queue.front());
        s.queue.pop_front();
        if (item.awaits.event) continue;
        if (item.mark.event) {
            if (Event* e = all.events.find(item.mark.event)) e->reached = item.mark.number, e->at = now();
            continue;
        }
        if (item.work.counts) {
            ++all.ran;
            if (int code = loses()) {
                all.sticky = code;
                break;
            }
        }
        if (string why = run(item.work); !why.empty()) fail(CUDA_ERROR_LAUNCH_FAILED, "%s: %s", item.work.name.c_str(), why.c_str());
    }
    return all.sticky;
}

int drain_all() {
    for (auto& [_, s] : state().streams.all) drain(*s, nullptr, 0);
    return state().sticky;
}

Stream* capture_of_this_thread() {
    for (auto& [_, s] : state().streams.all)
        if (s->capturing && s->capturer == std::this_thread::get_id()) return s.get();
    return nullptr;
}

int unsafe_in_capture(const char* call) {
    Stream* s = capture_of_this_thread();
    if (!s) return 0;
    s->invalidated = true;
    return fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s while this thread records", call);
}

int enqueue_item(void* handle, Item item) {
    Stream* s = state().streams.find(handle);
    const char* name = item.work.name.c_str();
    if (!s) return fail(handle ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE, "%s on %s", name, handle ? "a dead stream" : "the null stream, beside those there are");
    for (auto& r : item.work.ranges)
        if (string why = reach(r); !why.empty()) return fail(CUDA_ERROR_INVALID_VALUE, "%s: %s", name, why.c_str());
    if (s->capturing) {
        if (s->capturer != std::this_thread::get_id()) defect("%s: recorded by a thread that did not begin the recording", name);
        if (s->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        if (item.mark.event || item.awaits.event) return fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "an event recorded into a graph");
        if (item.work.host.bytes) return fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s recorded into a graph", name);
        s->graph.work.push_back(std::move(item.work));
        return 0;
    }
    s->queue.push_back(std::move(item));
    return eager() ? drain(*s, nullptr, 0) : 0;
}

int enqueue(void* stream, Work work) {
    LOCK;
    State& s = state();
    if (s.sticky) return s.sticky;
    if (!current) return fail(CUDA_ERROR_INVALID_CONTEXT, "%s: no context is current on this thread", work.name.c_str());
    ++s.products;
    return enqueue_item(stream, {std::move(work)});
}
}  // namespace standin

STANDIN_API CUresult cuStreamCreate(CUstream* s, unsigned flags) {
    ENTER(true);
    if (flags > 1) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "a stream with flags %u", flags));
    return *s = static_cast<CUstream>(state().streams.add(std::make_unique<Stream>())), CUDA_SUCCESS;
}
STANDIN_API CUresult cuStreamDestroy_v2(CUstream s) {
    ENTER(true);
    Stream* found = state().streams.find(s);
    if (!found) return CUresult(fail(CUDA_ERROR_INVALID_HANDLE, "a stream destroyed twice"));
    if (found->capturing) defect("a stream destroyed while it records");
    int e = drain(*found, nullptr, 0);
    return state().streams.remove(s), CUresult(e);
}
STANDIN_API CUresult cuStreamSynchronize(CUstream s) {
    LOCK;
    int code = enter(__func__, true);
    ++state().waits;
    Stream* found = state().streams.find(s);
    // A wait that tells of a failure has waited: what was enqueued does not run behind its caller's back.
    if (code && found && !found->capturing) drain(*found, nullptr, 0);
    if (code) return CUresult(code);
    if (!found) return CUresult(fail(CUDA_ERROR_INVALID_HANDLE, "wait for a dead stream"));
    if (found->capturing) return found->invalidated = true, CUresult(fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "wait for a stream that records"));
    side_first(found);
    return CUresult(drain(*found, nullptr, 0));
}
STANDIN_API CUresult cuEventCreate(CUevent* e, unsigned flags) {
    ENTER(true);
    if (flags & ~3u) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "an event with flags %u", flags));
    return *e = static_cast<CUevent>(state().events.add(std::make_unique<Event>(Event{!(flags & CU_EVENT_DISABLE_TIMING)}))), CUDA_SUCCESS;
}
STANDIN_API CUresult cuEventDestroy_v2(CUevent e) {
    ENTER(true);
    return state().events.remove(e) ? CUDA_SUCCESS : CUresult(fail(CUDA_ERROR_INVALID_HANDLE, "an event destroyed twice"));
}
STANDIN_API CUresult cuEventRecord(CUevent e, CUstream s) {
    ENTER(true);
    Event* found = state().events.find(e);
    if (!found) return CUresult(fail(CUDA_ERROR_INVALID_HANDLE, "a dead event recorded"));
    Item item;
    item.work.name = "event";
    item.mark = {e, ++found->recorded};
    found->stream = s;
    return CUresult(enqueue_item(s, std::move(item)));
}
STANDIN_API CUresult cuStreamWaitEvent(CUstream s, CUevent e, unsigned flags) {
    ENTER(true);
    Event* found = state().events.find(e);
    if (!found || flags) return CUresult(fail(CUDA_ERROR_INVALID_HANDLE, "a stream waits for a dead event, or with flags %u", flags));
    if (!found->recorded) return CUDA_SUCCESS;
    Item item;
    item.work.name = "wait for an event";
    item.awaits = {e, found->recorded};
    return CUresult(enqueue_item(s, std::move(item)));
}
STANDIN_API CUresult cuEventSynchronize(CUevent e) {
    LOCK;
    int code = enter(__func__, true);
    ++state().waits;
    if (code && !capture_of_this_thread()) drain_all();
    if (code) return CUresult(code);
    if (int bad = unsafe_in_capture("cuEventSynchronize")) return CUresult(bad);
    Event* found = state().events.find(e);
    if (!found) return CUresult(fail(CUDA_ERROR_INVALID_HANDLE, "wait for a dead event"));
    side_first(state().streams.find(found->stream));
    reaches(*found, found->recorded, true);
    return CUresult(state().sticky);
}
STANDIN_API CUresult cuEventQuery(CUevent e) {
    ENTER(true);
    if (int bad = unsafe_in_capture("cuEventQuery")) return CUresult(bad);
    Event* found = state().events.find(e);
    if (!found) return CUresult(fail(CUDA_ERROR_INVALID_HANDLE, "a dead event is asked for"));
    // A device works while nobody waits.
    side_first(state().streams.find(found->stream));
    reaches(*found, found->recorded, false);
    if (state().sticky) return CUresult(state().sticky);
    return found->reached < found->recorded ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}
STANDIN_API CUresult cuEventElapsedTime_v2(float* ms, CUevent a, CUevent b) {
    ENTER(true);
    Event *x = state().events.find(a), *y = state().events.find(b);
    if (!x || !y || !x->timing || !y->timing || !x->recorded || !y->recorded) return CUresult(fail(CUDA_ERROR_INVALID_HANDLE, "time between events that keep none"));
    if (x->reached < x->recorded || y->reached < y->recorded) return CUDA_ERROR_NOT_READY;
    return *ms = float(y->at - x->at), CUDA_SUCCESS;
}

STANDIN_API CUresult cuStreamBeginCapture_v2(CUstream s, CUstreamCaptureMode mode) {
    ENTER(true);
    Stream* found = state().streams.find(s);
    if (!found || unsigned(mode) > 2) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "a recording on a dead stream, or of mode %d", int(mode)));
    if (found->capturing) return CUresult(fail(CUDA_ERROR_ILLEGAL_STATE, "begins to record twice"));
    found->capturing = true;
    found->invalidated = false;
    found->graph = {};
    found->capturer = std::this_thread::get_id();
    return CUDA_SUCCESS;
}
STANDIN_API CUresult cuStreamEndCapture(CUstream s, CUgraph* g) {
    LOCK;
    int code = enter(__func__, true);
    if (Stream* f = code ? state().streams.find(s) : nullptr) f->capturing = false;  // whatever it says, it is over
    if (code) return CUresult(code);
    Stream* found = state().streams.find(s);
    if (!found || !found->capturing) return CUresult(fail(CUDA_ERROR_ILLEGAL_STATE, "ends a recording that was not begun"));
    if (found->capturer != std::this_thread::get_id()) return CUresult(fail(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "a recording ended by another thread"));
    found->capturing = false;
    *g = nullptr;
    if (found->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    return *g = static_cast<CUgraph>(state().graphs.add(std::make_unique<Graph>(std::move(found->graph)))), CUDA_SUCCESS;
}
STANDIN_API CUresult cuStreamIsCapturing(CUstream s, CUstreamCaptureStatus* status) {
    ENTER(true);
    Stream* found = state().streams.find(s);
    if (!found) return CUresult(fail(CUDA_ERROR_INVALID_HANDLE, "a dead stream is asked whether it records"));
    *status = !found->capturing    ? CU_STREAM_CAPTURE_STATUS_NONE
              : found->invalidated ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                   : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}
STANDIN_API CUresult cuGraphInstantiateWithFlags(CUgraphExec* x, CUgraph g, unsigned long long flags) {
    ENTER(true);
    Graph* found = state().graphs.find(g);
    if (!found || flags) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "a dead graph, or flags %llu", flags));
    trace("graph of %zu nodes", found->work.size());
    return *x = static_cast<CUgraphExec>(state().execs.add(std::make_unique<Graph>(*found))), CUDA_SUCCESS;
}
STANDIN_API CUresult cuGraphUpload(CUgraphExec x, CUstream s) {
    ENTER(true);
    if (int e = unsafe_in_capture("cuGraphUpload")) return CUresult(e);
    return state().execs.find(x) && state().streams.find(s) ? CUDA_SUCCESS : CUresult(fail(CUDA_ERROR_INVALID_VALUE, "upload of a dead graph"));
}
STANDIN_API CUresult cuGraphLaunch(CUgraphExec x, CUstream s) {
    ENTER(true);
    Graph* found = state().execs.find(x);
    if (!found) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "launch of a dead graph"));
    if (capture_of_this_thread()) return CUresult(fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a graph launched into a recording"));
    ++state().replays;
    for (auto& w : found->work)
        if (int e = enqueue_item(s, {w})) return CUresult(e);
    return CUDA_SUCCESS;
}
STANDIN_API CUresult cuGraphExecDestroy(CUgraphExec x) {
    ENTER(false);
    return state().execs.remove(x) ? CUDA_SUCCESS : CUresult(fail(CUDA_ERROR_INVALID_VALUE, "a graph destroyed twice"));
}
STANDIN_API CUresult cuGraphDestroy(CUgraph g) {
    ENTER(false);
    return state().graphs.remove(g) ? CUDA_SUCCESS : CUresult(fail(CUDA_ERROR_INVALID_VALUE, "a graph destroyed twice"));
}
