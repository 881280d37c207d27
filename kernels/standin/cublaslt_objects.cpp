// Handles, descriptors, preferences, and the algorithms that the heuristic proposes.
#include "cublaslt.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

using namespace lt;
using standin::defect;

namespace lt {
State& state() {
    static State& s = *new State;
    return s;
}
Status no(Status s, const char* format, ...) {
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return defect("cublasLt: %s -> status %d", text, int(s)), s;
}
uint64_t types_of(const Operands& x) {
    return uint64_t(x.a->type) | uint64_t(x.b->type) << 8 | uint64_t(x.c->type) << 16 | uint64_t(x.d->type) << 24;
}
uint64_t flags_of(const Operands& x) { return uint64_t(x.o->ops[0] | x.o->ops[1] << 1) | uint64_t(x.o->epilogue) << 8; }

bool operands(Operands& x, void* o, void* a, void* b, void* c, void* d) {
    State& s = state();
    x = {find(s.descs, o, "descriptor"), find(s.layouts, a, "layout"), find(s.layouts, b, "layout"), find(s.layouts, c, "layout"), find(s.layouts, d, "layout")};
    return x.o && x.a && x.b && x.c && x.d;
}

Status examine(const Operands& x, Problem& p) {
    const Desc& o = *x.o;
    if (o.compute != CUBLAS_COMPUTE_32F || o.scale != CUDA_R_32F) return no(CUBLAS_STATUS_NOT_SUPPORTED, "compute type %d, scale type %d", o.compute, o.scale);
    bool full = x.a->type == CUDA_R_32F && x.d->type == CUDA_R_32F;
    bool brain = x.a->type == CUDA_R_16BF && (x.d->type == CUDA_R_16BF || x.d->type == CUDA_R_32F);
    if (x.a->type != x.b->type || x.c->type != x.d->type || !(full || brain)) return no(CUBLAS_STATUS_NOT_SUPPORTED, "types %d %d %d %d", x.a->type, x.b->type, x.c->type, x.d->type);
    for (auto* l : {x.a, x.b, x.c, x.d})
        if (!l->rows || !l->cols || l->ld < int64_t(l->rows)) return no(CUBLAS_STATUS_INVALID_VALUE, "%lu x %lu with leading dimension %ld", l->rows, l->cols, l->ld);
    bool ta = o.ops[0] == CUBLAS_OP_T, tb = o.ops[1] == CUBLAS_OP_T;
    p = {ta ? x.a->cols : x.a->rows, tb ? x.b->rows : x.b->cols, ta ? x.a->rows : x.a->cols};
    if ((tb ? x.b->cols : x.b->rows) != p.k || x.d->rows != p.m || x.d->cols != p.n || x.c->rows != p.m || x.c->cols != p.n)
        return no(CUBLAS_STATUS_INVALID_VALUE, "shapes that do not fit");
    if (x.c->ld != x.d->ld) return no(CUBLAS_STATUS_INVALID_VALUE, "C and D differ in their leading dimension");
    bool gradient = o.epilogue == CUBLASLT_EPILOGUE_BGRADA || o.epilogue == CUBLASLT_EPILOGUE_BGRADB;
    if (o.epilogue != CUBLASLT_EPILOGUE_DEFAULT && o.epilogue != CUBLASLT_EPILOGUE_BIAS && !gradient) return no(CUBLAS_STATUS_NOT_SUPPORTED, "epilogue %u", o.epilogue);
    // "BIAS_DATA_TYPE: the same as the matrix D" where unset; F32 products take F32, BF16 products BF16 or F32.
    int32_t bias = o.bias_type < 0 ? x.d->type : o.bias_type;
    if (bias != CUDA_R_32F && !(brain && bias == CUDA_R_16BF)) return no(CUBLAS_STATUS_NOT_SUPPORTED, "a bias of type %d", bias);
    return CUBLAS_STATUS_SUCCESS;
}
}  // namespace lt

STANDIN_API size_t cublasLtGetVersion(void) { return getenv("STANDIN_CUBLASLT") ? size_t(atol(getenv("STANDIN_CUBLASLT"))) : 130001; }

/// Descriptors that are there when no call can be under way are there for ever.
static void none_left() {
    size_t left = state().descs.size() + state().layouts.size() + state().preferences.size();
    if (left) defect("cublasLt: %zu descriptors were never destroyed", left);
}

STANDIN_API Status cublasLtCreate(void** h) {
    LT_ENTER;
    if (!standin::has_context()) defect("cublasLtCreate without a current context: it would take device 0's");
    static bool watched = !atexit([] {
        if (size_t n = state().handles.size(); n && standin::leaks_count()) defect("cublasLt: %zu handles are left at the end", n);
        none_left();
    });
    if (!watched) return CUBLAS_STATUS_ALLOC_FAILED;
    return state().handles.insert(*h = new char).second ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}
STANDIN_API Status cublasLtDestroy(void* h) {
    LT_LOCK;
    int code = standin::called("cublasLtDestroy", CUBLAS_STATUS_INTERNAL_ERROR);
    if (!state().handles.erase(h)) return no(CUBLAS_STATUS_INVALID_VALUE, "a handle destroyed twice");
    // They belong to no handle: where another is alive, they may be those of a call that it is in.
    if (state().handles.empty()) none_left();
    return Status(code);
}

STANDIN_API Status cublasLtMatrixLayoutCreate(void** l, int32_t t, uint64_t rows, uint64_t cols, int64_t ld) {
    LT_ENTER;
    auto o = std::make_unique<Layout>(Layout{t, rows, cols, ld});
    *l = o.get();
    return state().layouts[*l] = std::move(o), CUBLAS_STATUS_SUCCESS;
}
STANDIN_API Status cublasLtMatrixLayoutDestroy(void* l) {
    LT_LOCK;
    int code = standin::called("cublasLtMatrixLayoutDestroy", CUBLAS_STATUS_INTERNAL_ERROR);
    return state().layouts.erase(l) ? Status(code) : no(CUBLAS_STATUS_INVALID_VALUE, "a layout destroyed twice");
}
STANDIN_API Status cublasLtMatmulDescCreate(void** d, int32_t compute, int32_t scale) {
    LT_ENTER;
    auto o = std::make_unique<Desc>(Desc{compute, scale});
    *d = o.get();
    return state().descs[*d] = std::move(o), CUBLAS_STATUS_SUCCESS;
}
STANDIN_API Status cublasLtMatmulDescDestroy(void* d) {
    LT_LOCK;
    int code = standin::called("cublasLtMatmulDescDestroy", CUBLAS_STATUS_INTERNAL_ERROR);
    return state().descs.erase(d) ? Status(code) : no(CUBLAS_STATUS_INVALID_VALUE, "a descriptor destroyed twice");
}
STANDIN_API Status cublasLtMatmulDescSetAttribute(void* d, int32_t a, const void* v, size_t n) {
    LT_ENTER;
    Desc* o = find(state().descs, d, "descriptor");
    if (!o || !v) return no(CUBLAS_STATUS_INVALID_VALUE, "attribute %d of nothing", a);
    auto set = [&](auto& to) {
        if (n != sizeof to) return no(CUBLAS_STATUS_INVALID_VALUE, "attribute %d in %zu bytes", a, n);
        return memcpy(&to, v, n), CUBLAS_STATUS_SUCCESS;
    };
    switch (a) {
        case CUBLASLT_MATMUL_DESC_TRANSA: case CUBLASLT_MATMUL_DESC_TRANSB: case CUBLASLT_MATMUL_DESC_TRANSC: {
            int32_t& op = o->ops[a - CUBLASLT_MATMUL_DESC_TRANSA];
            Status s = set(op);
            return s == CUBLAS_STATUS_SUCCESS && uint32_t(op) > 1 ? no(CUBLAS_STATUS_INVALID_VALUE, "operation %d", op) : s;
        }
        case CUBLASLT_MATMUL_DESC_EPILOGUE: return set(o->epilogue);
        case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return set(o->bias);
        case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return set(o->bias_type);
        default: return no(CUBLAS_STATUS_INVALID_VALUE, "attribute %d of a descriptor", a);
    }
}

STANDIN_API Status cublasLtMatmulPreferenceCreate(void** p) {
    LT_ENTER;
    auto o = std::make_unique<Preference>();
    *p = o.get();
    return state().preferences[*p] = std::move(o), CUBLAS_STATUS_SUCCESS;
}
STANDIN_API Status cublasLtMatmulPreferenceDestroy(void* p) {
    LT_LOCK;
    int code = standin::called("cublasLtMatmulPreferenceDestroy", CUBLAS_STATUS_INTERNAL_ERROR);
    return state().preferences.erase(p) ? Status(code) : no(CUBLAS_STATUS_INVALID_VALUE, "a preference destroyed twice");
}
STANDIN_API Status cublasLtMatmulPreferenceSetAttribute(void* p, int32_t a, const void* v, size_t n) {
    LT_ENTER;
    Preference* o = find(state().preferences, p, "preference");
    if (!o || !v) return no(CUBLAS_STATUS_INVALID_VALUE, "preference %d of nothing", a);
    auto set = [&](auto& to) {
        if (n != sizeof to) return no(CUBLAS_STATUS_INVALID_VALUE, "preference %d in %zu bytes", a, n);
        return memcpy(&to, v, n), CUBLAS_STATUS_SUCCESS;
    };
    switch (a) {
        case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return set(o->workspace);
        case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: return set(o->reductions);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return set(o->align[0]);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return set(o->align[1]);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return set(o->align[2]);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return set(o->align[3]);
        default: return no(CUBLAS_STATUS_INVALID_VALUE, "preference %d", a);
    }
}

STANDIN_API Status cublasLtMatmulAlgoGetHeuristic(void* h, void* o, void* a, void* b, void* c, void* d, void* preference, int wanted, Result out[], int* count) {
    LT_ENTER;
    Operands x;
    Preference* pref = find(state().preferences, preference, "preference");
    if (!state().handles.count(h) || wanted < 1 || !pref || !operands(x, o, a, b, c, d)) return no(CUBLAS_STATUS_INVALID_VALUE, "the heuristic of nothing");
    Problem p;
    if (Status bad = examine(x, p); bad != CUBLAS_STATUS_SUCCESS) return bad;
    uint64_t align = *std::min_element(pref->align, pref->align + 4), types = types_of(x), flags = flags_of(x);
    int n = 0;
    auto add = [&](Chosen y, Status s) {
        if (n == wanted || (s == CUBLAS_STATUS_SUCCESS && !takes(y, p)) || y.workspace > pref->workspace) return;
        if (y.splits > 1 && !(pref->reductions & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)) return;
        memset(&out[n], 0xff, sizeof out[n]);
        memcpy(&out[n].algo, &y, sizeof y);
        out[n].workspaceSize = y.workspace, out[n].state = s, out[n].wavesCount = 1;
        ++n;
    };
    // Every algorithm needs all the alignment that was promised (256 where nothing was said).
    // Best first: a split sum; one for multiples of 8 rows alone; one that came to nothing; one for everything; and, where a test
    // asks for it, one that is said to run and does not.
    if (p.k >= 64) add({kMagic, 1, 4, 4 * p.m * p.n * 4, align, 1, types, flags}, CUBLAS_STATUS_SUCCESS);
    add({kMagic, 2, 1, 0, align, 8, types, flags}, CUBLAS_STATUS_SUCCESS);
    add({0, 0, 0, 0, 0, 1, 0, 0}, CUBLAS_STATUS_NOT_SUPPORTED);
    if (!getenv("STANDIN_NO_ALGORITHM_FOR_ALL")) add({kMagic, 3, 1, 0, align, 1, types, flags}, CUBLAS_STATUS_SUCCESS);
    if (getenv("STANDIN_FALSE_ALGORITHM")) add({kMagic, 4, 1, 0, align, 1, types, flags}, CUBLAS_STATUS_SUCCESS);
    *count = n;
    return n ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
STANDIN_API Status cublasLtMatmulAlgoCheck(void* h, void* o, void* a, void* b, void* c, void* d, const Algorithm* algo, Result* out) {
    LT_ENTER;
    Operands x;
    if (!state().handles.count(h) || !algo || !out || !operands(x, o, a, b, c, d)) return no(CUBLAS_STATUS_INVALID_VALUE, "a check of nothing");
    Chosen y;
    memcpy(&y, algo, sizeof y);
    Problem p;
    if (Status bad = examine(x, p); bad != CUBLAS_STATUS_SUCCESS) return bad;
    if (y.magic != kMagic || y.types != types_of(x) || y.flags != flags_of(x)) return CUBLAS_STATUS_INVALID_VALUE;
    if (!takes(y, p)) return CUBLAS_STATUS_NOT_SUPPORTED;
    out->workspaceSize = workspace_of(y, p);  // "algo field is never updated"; the state is left alone too
    return CUBLAS_STATUS_SUCCESS;
}
STANDIN_API Status cublasLtMatmulAlgoConfigGetAttribute(const Algorithm* algo, int32_t a, void* v, size_t n, size_t* written) {
    LT_ENTER;
    Chosen x;
    memcpy(&x, algo, sizeof x);
    if (x.magic != kMagic || n != 4) return no(CUBLAS_STATUS_INVALID_VALUE, "attribute of no algorithm, or in %zu bytes", n);
    int32_t value = 0;
    if (a == CUBLASLT_ALGO_CONFIG_SPLITK_NUM) value = int32_t(x.splits);
    else if (a == CUBLASLT_ALGO_CONFIG_ID) value = int32_t(x.id);
    else return no(CUBLAS_STATUS_INVALID_VALUE, "attribute %d of an algorithm", a);
    memcpy(v, &value, 4);
    if (written) *written = 4;
    return CUBLAS_STATUS_SUCCESS;
}
