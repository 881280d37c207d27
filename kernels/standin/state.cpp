// Switches, the log, defects, and what is left at the end.
#include "state.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace standin {
// Never destroyed: calls may come while the program ends.
State& state() {
    static State& s = *new State;
    return s;
}
thread_local bool current = false;

const char* setting(const char* name) {
    const char* v = getenv(name);
    return v && *v ? v : nullptr;
}
bool eager() {
    static bool on = env("STANDIN_EAGER");
    return on;
}
FILE* log_file() {
    static FILE* f = env("STANDIN_LOG") ? fopen(env("STANDIN_LOG"), "a") : stderr;
    return f ? f : stderr;
}
unsigned capability() {
    static unsigned c = env("STANDIN_CAPABILITY") ? unsigned(atoi(env("STANDIN_CAPABILITY"))) : 90;
    return c;
}
// "Maximum amount of shared memory per thread block" of the CUDA C programming guide.
int most_shared() {
    switch (capability()) {
        case 80: case 87: return 163 << 10;
        case 86: case 89: case 120: return 99 << 10;
        default: return 227 << 10;
    }
}

void defect(const char* format, ...) {
    LOCK;
    char text[800];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    ++state().defects;
    fprintf(log_file(), "stand-in: DEFECT: %s\n", text);
    fflush(log_file());
}
void trace(const char* format, ...) {
    static bool on = env("STANDIN_TRACE");
    if (!on) return;
    LOCK;
    va_list args;
    va_start(args, format);
    fputs("stand-in: ", log_file());
    vfprintf(log_file(), format, args);
    fputc('\n', log_file());
    va_end(args);
}
int fail(int code, const char* format, ...) {
    char text[600];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (code == CUDA_ERROR_LAUNCH_FAILED || code == CUDA_ERROR_ILLEGAL_ADDRESS) state().sticky = code;
    defect("%s -> error %d", text, code);
    return code;
}

int called(const char* name, int otherwise) {
    LOCK;
    unsigned long n = ++state().calls[name];
    trace("%s", name);
    const char* f = env("STANDIN_FAIL");  // CALL:N or CALL:N:CODE
    if (!f) return 0;
    const char* colon = strchr(f, ':');
    if (!colon || strncmp(f, name, size_t(colon - f)) || name[colon - f]) return 0;
    char* end;
    if (strtoul(colon + 1, &end, 10) != n) return 0;
    for (const char* part : {"Free", "Destroy", "Unload", "Release", "GetCurrent", "SetCurrent"}) state().cannot_free |= strstr(name, part) != nullptr;
    return *end == ':' ? atoi(end + 1) : otherwise;
}

int enter(const char* call, bool context) {
    if (int e = called(call, CUDA_ERROR_OUT_OF_MEMORY)) return e;
    State& s = state();
    if (!s.started) return fail(CUDA_ERROR_NOT_INITIALIZED, "%s before cuInit", call);
    if (s.sticky && context) return s.sticky;  // what only asks about the thread or a device still answers
    if (context && (!current || !s.retained)) return fail(CUDA_ERROR_INVALID_CONTEXT, "%s: no context is current on this thread", call);
    return 0;
}

// A device that is lost frees nothing.
bool leaks_count() { return !(state().sticky || state().cannot_free || env("STANDIN_LEAKS")); }

namespace {
void leaks(size_t device, size_t host) {
    State& s = state();
    if (!leaks_count()) return;
    struct { size_t n; const char* what; } all[] = {
        {device, "pieces of device memory"}, {host, "pieces of page-locked memory"}, {s.streams.all.size(), "streams"},
        {s.events.all.size(), "events"}, {s.modules.all.size(), "modules"}, {s.graphs.all.size(), "graphs"},
        {s.execs.all.size(), "executable graphs"}, {size_t(s.retained), "references to the context"},
    };
    for (auto& a : all)
        if (a.n) defect("%zu %s are left at the end", a.n, a.what);
}

void summary() {
    LOCK;
    State& s = state();
    size_t device = 0, host = 0;
    for (auto& [_, a] : s.allocations) (a.host ? host : device) += a.live;
    leaks(device, host);
    if (const char* name = env("STANDIN_COUNTS"))
        if (FILE* f = fopen(name, "w")) {
            for (auto& [call, n] : s.calls) fprintf(f, "%s %lu\n", call.c_str(), n);
            fprintf(f, "ran %lu\n", s.ran);
            fclose(f);
        }
    if (!env("STANDIN_LOG")) return;
    fprintf(log_file(), "stand-in: %lu launches of %zu kernels, %lu products, %lu copies, %lu replays, %lu waits; %zu KiB at most; "
            "left: %zu + %zu pieces of memory, %zu streams, %zu events, %zu modules, %zu graphs; device %d; defects: %lu\n",
            s.launches, s.by_name.size(), s.products, s.copies, s.replays, s.waits, s.peak >> 10, device, host,
            s.streams.all.size(), s.events.all.size(), s.modules.all.size(), s.execs.all.size(), s.device, s.defects);
    fflush(log_file());
}
}  // namespace

void begin() {
    if (state().started) return;
    state().started = true;
    atexit(summary);
    watch_faults();
}
bool has_context() { return current; }
}  // namespace standin
