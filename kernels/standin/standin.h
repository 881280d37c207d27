// What the stand-in libraries share. libcublasLt.so.13 and libnccl.so.2 link to libcuda.so.1 for these. README.md lists the switches.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#define STANDIN_EXPORT __attribute__((visibility("default")))
#define STANDIN_API extern "C" STANDIN_EXPORT

namespace standin {
// Bytes of device memory that a piece of work touches; checked when enqueued and again when run.
struct Range { uint64_t at; size_t bytes; const char* what; };
// Bytes of host memory that it reads or writes: they must stay until it has run.
struct HostRange { const void* at = nullptr; size_t bytes = 0; };
// `run` returns an empty string, or what went wrong on the "device".
struct Work {
    std::string name;
    std::vector<Range> ranges;
    std::function<std::string()> run;
    HostRange host = {};
    const void* module = nullptr;
    bool counts = false;  // a kernel or a product: one of those that STANDIN_LOSE counts
    std::function<bool()> ready = {};  // goes on as far as it can; whether it is over: what waits for another process
};

// Enqueues on a CUstream (or adds to its capture). 0, or a CUresult.
STANDIN_EXPORT int enqueue(void* stream, Work work);
// Whether [at, at + bytes) lies in one live device allocation.
STANDIN_EXPORT bool covered(uint64_t at, size_t bytes);
// Whether a context is current on this thread.
STANDIN_EXPORT bool has_context();
// Whether what is left at the end could have been given back.
STANDIN_EXPORT bool leaks_count();
// A switch of the environment; null where it is unset or empty.
STANDIN_EXPORT const char* setting(const char* name);
// Counts a call. The code that it must fail with by STANDIN_FAIL (`otherwise` where that names none), else 0.
STANDIN_EXPORT int called(const char* name, int otherwise);
// Something that the real libraries may well let pass, or answer badly, and that is a defect of the caller.
STANDIN_EXPORT void defect(const char* format, ...) __attribute__((format(printf, 1, 2)));
STANDIN_EXPORT void trace(const char* format, ...) __attribute__((format(printf, 1, 2)));
}  // namespace standin
