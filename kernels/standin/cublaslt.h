// What the files of libcublasLt.so.13 share: the objects of its interface, and what an algorithm is here.
#pragma once
#include "cublaslt_names.h"
#include "standin.h"

#include <map>
#include <memory>
#include <mutex>
#include <set>

namespace lt {
struct Desc {
    int32_t compute, scale;
    int32_t ops[3] = {0, 0, 0};
    uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    uint64_t bias = 0;
    int32_t bias_type = -1;  // D's
};
struct Layout { int32_t type; uint64_t rows, cols; int64_t ld; };
struct Preference { uint64_t workspace = 0; uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK, align[4] = {256, 256, 256, 256}; };

struct State {
    std::mutex mutex;
    std::map<void*, std::unique_ptr<Desc>> descs;
    std::map<void*, std::unique_ptr<Layout>> layouts;
    std::map<void*, std::unique_ptr<Preference>> preferences;
    std::set<void*> handles;
};
State& state();

template <class M> auto find(M& all, void* p, const char* what) -> decltype(all.begin()->second.get()) {
    auto i = all.find(p);
    if (i != all.end()) return i->second.get();
    standin::defect("cublasLt: a %s that is none, or destroyed", what);
    return nullptr;
}

// What an algorithm's 64 bytes mean here: how many parts a sum is cut into, which rows it takes, what it was found for.
struct Chosen { uint64_t magic, id, splits, workspace, align, multiple, types, flags; };
static_assert(sizeof(Chosen) == sizeof(Algorithm), "64 bytes");
constexpr uint64_t kMagic = 0x7374616e64696e21;

struct Problem { uint64_t m, n, k; };
// The operands of a call, as descriptors.
struct Operands { Desc* o; Layout *a, *b, *c, *d; };

inline size_t width(int32_t t) { return t == CUDA_R_32F ? 4 : 2; }
// What an algorithm was found for: types, operations and epilogue.
uint64_t types_of(const Operands& x);
uint64_t flags_of(const Operands& x);
// Reports what is wrong with it, and how a product ends then.
Status no(Status s, const char* format, ...) __attribute__((format(printf, 2, 3)));
// The live objects; false where one is not.
bool operands(Operands& x, void* o, void* a, void* b, void* c, void* d);
// Checks them against the library's table for CUBLAS_COMPUTE_32F, and tells the shape.
Status examine(const Operands& x, Problem& p);
// Whether an algorithm takes that many rows (the columns, as this library counts).
inline bool takes(const Chosen& x, const Problem& p) { return p.n % x.multiple == 0; }
inline size_t workspace_of(const Chosen& x, const Problem& p) { return x.splits > 1 ? x.splits * p.m * p.n * 4 : 0; }
}  // namespace lt

#define LT_LOCK std::lock_guard<std::mutex> held(lt::state().mutex)
// As every call that can fail begins.
#define LT_ENTER \
    if (int code_ = standin::called(__func__, lt::CUBLAS_STATUS_INTERNAL_ERROR)) return lt::Status(code_); \
    LT_LOCK
