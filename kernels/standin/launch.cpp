// Modules, functions and launches. Kernels run through kernels/host, by name; what a launch is allowed is read from the cubin.
#include "state.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

using namespace standin;

STANDIN_API CUresult cuModuleLoadData(CUmodule* m, const void* image) {
    ENTER(true);
    if (int e = unsafe_in_capture("cuModuleLoadData")) return CUresult(e);
    auto module = std::make_unique<Module>();
    module->image = fatbin::read(static_cast<const char*>(image), capability());
    if (module->image.none) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    if (!module->image.error.empty()) return CUresult(fail(CUDA_ERROR_NO_BINARY_FOR_GPU, "a module: %s", module->image.error.c_str()));
    return *m = static_cast<CUmodule>(state().modules.add(std::move(module))), CUDA_SUCCESS;
}
STANDIN_API CUresult cuModuleUnload(CUmodule m) {
    ENTER(true);
    if (int e = unsafe_in_capture("cuModuleUnload")) return CUresult(e);
    for (auto& [_, s] : state().streams.all)
        for (auto& item : s->queue)
            if (item.work.module == m) defect("a module unloaded while %s waits", item.work.name.c_str());
    for (auto i = state().functions.all.begin(); i != state().functions.all.end();)
        if (auto here = i++; here->second->module == m) state().functions.remove(here->first);
    return state().modules.remove(m) ? CUDA_SUCCESS : CUresult(fail(CUDA_ERROR_INVALID_HANDLE, "a module unloaded twice"));
}

namespace {
// Sizes of parameters as the host's compiler declares them: `bf16*,const bf16*,i32`.
std::vector<uint32_t> sizes_of(const char* signature) {
    std::vector<uint32_t> sizes;
    while (*signature) {
        const char* end = strchr(signature, ',');
        string type(signature, end ? size_t(end - signature) : strlen(signature));
        sizes.push_back(type.back() == '*' || type == "i64" || type == "f64" ? 8 : 4);
        signature += type.size() + (end ? 1 : 0);
    }
    return sizes;
}
}  // namespace

STANDIN_API CUresult cuModuleGetFunction(CUfunction* f, CUmodule m, const char* name) {
    ENTER(true);
    Module* module = state().modules.find(m);
    if (!module) return CUresult(fail(CUDA_ERROR_INVALID_HANDLE, "a function of a dead module"));
    auto k = module->image.kernels.find(name);
    if (k == module->image.kernels.end()) return CUDA_ERROR_NOT_FOUND;
    if (capture_of_this_thread()) defect("%s is looked up (and may be loaded) for the first time in a recording", name);
    auto function = std::make_unique<Function>();
    function->name = name;
    function->module = m;
    function->k = k->second;
    function->asked = false;
    function->dynamic = kDefaultShared - int(k->second.static_shared);
    for (size_t i = 0; (function->host = fusedpo_host_kernel(i)).name && function->host.name != string(name); ++i) {}
    if (!function->host.name) return CUresult(fail(CUDA_ERROR_NOT_FOUND, "%s is in the fatbin, but not among the kernels for the host", name));
    if (sizes_of(function->host.signature) != k->second.params)
        defect("%s: nvcc's parameters differ from the host compiler's (%s; %zu of them)", name, function->host.signature, k->second.params.size());
    return *f = static_cast<CUfunction>(state().functions.add(std::move(function))), CUDA_SUCCESS;
}
STANDIN_API CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction f) {
    ENTER(true);
    Function* function = state().functions.find(f);
    if (!function) return CUresult(fail(CUDA_ERROR_INVALID_HANDLE, "an attribute of a dead function"));
    switch (a) {
        case CU_FUNC_ATTRIBUTE_NUM_REGS: *v = int(function->k.registers); break;
        case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *v = int(function->k.static_shared); break;
        default: return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "attribute %d of a function, of which the stand-in knows nothing", int(a)));
    }
    return CUDA_SUCCESS;
}
STANDIN_API CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) {
    ENTER(true);
    Function* function = state().functions.find(f);
    if (function && a == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) {
        if (v < -1 || v > 100) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "%s: a carve-out of %d per cent", function->name.c_str(), v));
        return function->carve_out = v, CUDA_SUCCESS;
    }
    if (!function || a != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "attribute %d of a function, or of a dead one", int(a)));
    if (v < 0 || v + int(function->k.static_shared) > most_shared()) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "%s: %d bytes of shared memory beside %u", function->name.c_str(), v, function->k.static_shared));
    function->asked = true;
    return function->dynamic = v, CUDA_SUCCESS;
}

namespace {
struct Launch { std::vector<uint64_t> values; unsigned grid[3], block[3]; size_t shared; const void* kernel; uint64_t seed; };

// Blocks of plenty of shared memory: as many as registers allow must fit into what was asked for, where a multiprocessor has that much.
void check_carve_out(const Function& f, uint64_t threads, unsigned shared) {
    if (shared < 16u << 10) return;
    uint64_t warps = (threads + 31) / 32, blocks = std::min(65536 / ((f.k.registers + 7) / 8 * 8 * 32 * warps), 64 / warps);
    uint64_t block = shared + f.k.static_shared + 1024, all = uint64_t(most_shared()) + 1024;
    uint64_t wanted = std::min(blocks, all / block) * block;
    if (f.carve_out < 0) defect("%s: %u bytes of shared memory a block, and no carve-out preferred", f.name.c_str(), shared);
    else if (uint64_t(f.carve_out) * all < 100 * wanted)
        defect("%s: a carve-out of %d per cent is less than the %lu bytes of its blocks", f.name.c_str(), f.carve_out, wanted);
}

int check_launch(const Function& f, const unsigned* g, const unsigned* b, unsigned shared) {
    const char* name = f.name.c_str();
    uint64_t threads = uint64_t(b[0]) * b[1] * b[2];
    if (!g[0] || !g[1] || !g[2] || g[0] > 0x7fffffffu || g[1] > 65535 || g[2] > 65535)
        return fail(CUDA_ERROR_INVALID_VALUE, "%s: grid %u %u %u", name, g[0], g[1], g[2]);
    if (!threads || b[0] > 1024 || b[1] > 1024 || b[2] > 64 || threads > 1024 || threads > f.k.max_threads)
        return fail(CUDA_ERROR_INVALID_VALUE, "%s: %lu threads, compiled for %u", name, threads, f.k.max_threads);
    if ((f.k.registers + 7) / 8 * 8 * ((threads + 31) / 32 * 32) > 65536)
        return fail(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "%s: %u registers by %lu threads", name, f.k.registers, threads);
    // What a kernel has unasked is 48 KiB less what is static: a number that changes with its source.
    if (shared && !f.asked) defect("%s: %u bytes of dynamic shared memory that nobody asked for", name, shared);
    check_carve_out(f, threads, shared);
    if (int64_t(shared) > f.dynamic)
        return fail(CUDA_ERROR_INVALID_VALUE, "%s: %u bytes of dynamic shared memory, allowed %d (%u are static)", name, shared, f.dynamic, f.k.static_shared);
    return 0;
}
}  // namespace

STANDIN_API CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                    unsigned shared, CUstream stream, void** params, void** extra) {
    ENTER(true);
    Function* function = state().functions.find(f);
    if (!function) return CUresult(fail(CUDA_ERROR_INVALID_HANDLE, "launch of a dead function"));
    trace("launch of %s", function->name.c_str());
    auto launch = std::make_shared<Launch>(Launch{{}, {gx, gy, gz}, {bx, by, bz}, shared, function->host.kernel, 0});
    if (int e = check_launch(*function, launch->grid, launch->block, shared)) return CUresult(e);
    if (extra) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "%s: extra", function->name.c_str()));
    const auto& sizes = function->k.params;
    launch->values.resize(sizes.size());
    Work w{function->name, {}, {}, {}, function->module, true};
    const char* type = function->host.signature;
    for (size_t i = 0; i < sizes.size(); ++i) {
        memcpy(&launch->values[i], params[i], sizes[i]);
        const char* end = strchr(type, ',');
        if ((end ? end : type + strlen(type))[-1] == '*') w.ranges.push_back({launch->values[i], 0, "argument"});
        type = end ? end + 1 : type + strlen(type);
    }
    State& s = state();
    ++s.launches;
    ++s.by_name[function->name];
    launch->seed = env("STANDIN_SEED") ? strtoull(env("STANDIN_SEED"), nullptr, 0) << 32 ^ s.launches : 0;
    w.run = [launch]() -> string {
        std::vector<void*> args;
        for (auto& v : launch->values) args.push_back(&v);
        const char* why = fusedpo_host_launch(launch->kernel, launch->grid, launch->block, launch->shared, args.data(), launch->seed);
        return why ? why : "";
    };
    return CUresult(enqueue_item(stream, {std::move(w)}));
}
