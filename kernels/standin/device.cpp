// Start, device and context.
#include "state.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

using namespace standin;

namespace {
char context_object;
int gpus() { return env("STANDIN_GPUS") ? atoi(env("STANDIN_GPUS")) : 1; }
bool none(int device) { return device < 0 || device >= gpus(); }
CUcontext the_context() { return reinterpret_cast<CUcontext>(&context_object); }
}  // namespace

STANDIN_API CUresult cuInit(unsigned flags) {
    LOCK;
    begin();
    if (int e = called("cuInit", CUDA_ERROR_NO_DEVICE)) return CUresult(e);
    return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
STANDIN_API CUresult cuDriverGetVersion(int* v) {
    LOCK;
    if (int e = called("cuDriverGetVersion", CUDA_ERROR_INVALID_VALUE)) return CUresult(e);
    return *v = env("STANDIN_DRIVER") ? atoi(env("STANDIN_DRIVER")) : 13000, CUDA_SUCCESS;
}
STANDIN_API CUresult cuGetErrorString(CUresult e, const char** s) {
    switch (int(e)) {
        case 0: *s = "no error"; break;
        case 1: *s = "invalid argument"; break;
        case 2: *s = "out of memory"; break;
        case 3: *s = "initialization error"; break;
        case 46: *s = "CUDA-capable device(s) is/are busy or unavailable"; break;
        case 100: *s = "no CUDA-capable device is detected"; break;
        case 201: *s = "invalid device context"; break;
        case 209: *s = "no kernel image is available for execution on the device"; break;
        case 214: *s = "uncorrectable ECC error encountered"; break;
        case 400: *s = "invalid resource handle"; break;
        case 500: *s = "named symbol not found"; break;
        case 700: *s = "an illegal memory access was encountered"; break;
        case 719: *s = "unspecified launch failure"; break;
        case 900: *s = "operation not permitted when stream is capturing"; break;
        case 999: *s = "unknown error"; break;
        default: *s = "an error of the stand-in"; break;
    }
    return CUDA_SUCCESS;
}
STANDIN_API CUresult cuGetErrorName(CUresult, const char** s) { return *s = "CUDA_ERROR", CUDA_SUCCESS; }
STANDIN_API CUresult cuDeviceGetCount(int* n) {
    ENTER(false);
    return *n = gpus(), CUDA_SUCCESS;
}
STANDIN_API CUresult cuDeviceGet(CUdevice* d, int ordinal) {
    ENTER(false);
    return none(ordinal) ? CUDA_ERROR_INVALID_DEVICE : (*d = ordinal, CUDA_SUCCESS);
}
STANDIN_API CUresult cuDeviceGetName(char* name, int n, CUdevice d) {
    ENTER(false);
    if (none(d)) return CUresult(fail(CUDA_ERROR_INVALID_DEVICE, "the name of device %d", d));
    return snprintf(name, size_t(n), "Stand-in %u.%u", capability() / 10, capability() % 10), CUDA_SUCCESS;
}
STANDIN_API CUresult cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice d) {
    ENTER(false);
    if (none(d)) return CUresult(fail(CUDA_ERROR_INVALID_DEVICE, "an attribute of device %d", d));
    switch (a) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *v = int(capability() / 10); break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *v = int(capability() % 10); break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *v = most_shared(); break;
        case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: *v = 1; break;
        case CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS: *v = env("STANDIN_PAGEABLE") != nullptr; break;
        default: return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "device attribute %d, of which the stand-in knows nothing", int(a)));
    }
    return CUDA_SUCCESS;
}
STANDIN_API CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice d) {
    ENTER(false);
    if (none(d)) return CUresult(fail(CUDA_ERROR_INVALID_DEVICE, "a context of device %d", d));
    if (state().retained && state().device != d) defect("a second device is used, %d beside %d", d, state().device);
    state().device = d;
    ++state().retained;
    return *c = the_context(), CUDA_SUCCESS;
}
STANDIN_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) {
    LOCK;
    int e = enter(__func__, false);
    if (!state().retained) return CUresult(fail(CUDA_ERROR_INVALID_CONTEXT, "the context was released more often than retained"));
    --state().retained;  // and if it was made to fail: nobody could do more
    return CUresult(e);
}
STANDIN_API CUresult cuCtxGetCurrent(CUcontext* c) {
    ENTER(false);
    return *c = current ? the_context() : nullptr, CUDA_SUCCESS;
}
STANDIN_API CUresult cuCtxSetCurrent(CUcontext c) {
    ENTER(false);
    if (c && (c != the_context() || !state().retained)) return CUresult(fail(CUDA_ERROR_INVALID_CONTEXT, "cuCtxSetCurrent: a dead context"));
    return current = c != nullptr, CUDA_SUCCESS;
}
STANDIN_API CUresult cuCtxSynchronize() {
    ENTER(true);
    if (int e = unsafe_in_capture("cuCtxSynchronize")) return CUresult(e);
    return CUresult(drain_all());
}
STANDIN_API CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER(true);
    *total = env("STANDIN_MEMORY") ? strtoull(env("STANDIN_MEMORY"), nullptr, 0) : size_t(4) << 30;
    *free = *total - std::min(state().used, *total);
    return CUDA_SUCCESS;
}
