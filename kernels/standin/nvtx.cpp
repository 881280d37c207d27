// A stand-in for libnvToolsExt.so.1: writes "push NAME" and "pop" to the file STANDIN_NVTX, ranges of one thread in order. A pop
// without its push, and what is still open at the end, is a DEFECT there.
#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace {
struct Log {
    std::mutex lock;
    FILE* file = nullptr;
    int open = 0;
    Log() {
        if (const char* path = getenv("STANDIN_NVTX")) file = fopen(path, "w");
    }
    ~Log() {
        if (!file) return;
        if (open != 0) fprintf(file, "DEFECT: %d ranges open at the end\n", open);
        fclose(file);
    }
} log_;
}  // namespace

extern "C" __attribute__((visibility("default"))) int nvtxRangePushA(const char* name) {
    std::lock_guard<std::mutex> held(log_.lock);
    if (log_.file) fprintf(log_.file, "push %s\n", name);
    return log_.open++;
}
extern "C" __attribute__((visibility("default"))) int nvtxRangePop() {
    std::lock_guard<std::mutex> held(log_.lock);
    if (log_.open == 0 && log_.file) fprintf(log_.file, "DEFECT: a pop without its push\n");
    else if (log_.file) fprintf(log_.file, "pop\n");
    return log_.open > 0 ? --log_.open : -2;
}
