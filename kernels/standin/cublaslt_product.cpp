// Products, computed from the descriptors, on the host, in the order of the stream.
#include "cublaslt.h"

#include <algorithm>
#include <cmath>
#include <cstring>

using namespace lt;
using standin::defect;

namespace {
float read(const void* p, int32_t t, size_t i) {
    if (t == CUDA_R_32F) return static_cast<const float*>(p)[i];
    uint32_t u = uint32_t(static_cast<const uint16_t*>(p)[i]) << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
void write(void* p, int32_t t, size_t i, float v) {
    if (t == CUDA_R_32F) return void(static_cast<float*>(p)[i] = v);
    uint32_t u;
    memcpy(&u, &v, 4);
    static_cast<uint16_t*>(p)[i] = std::isnan(v) ? 0x7fc0 : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

// A product in waiting. Column-major, as the library counts: D (m x n) = op(A) (m x k) op(B) (k x n) + C.
struct Product {
    Problem p;
    Desc o;
    Layout a, b, c, d;
    const void *A, *B, *C;
    void *D, *workspace;
    size_t need;
    uint64_t splits;
    float alpha, beta;
    int32_t bias_type;

    float left(uint64_t r, uint64_t i) const { return read(A, a.type, o.ops[0] ? i + r * a.ld : r + i * a.ld); }
    float right(uint64_t i, uint64_t j) const { return read(B, b.type, o.ops[1] ? j + i * b.ld : i + j * b.ld); }

    // Sums in parts, one after another.
    void run() const {
        memset(workspace, 0xff, need);  // whoever kept something there has lost it
        std::vector<float> row(p.k), acc(p.n), part(p.n), all(p.k * p.n);
        for (uint64_t i = 0; i < p.k; ++i)
            for (uint64_t j = 0; j < p.n; ++j) all[i * p.n + j] = right(i, j);
        gradients(all);
        auto* bias = reinterpret_cast<const void*>(o.bias);
        uint64_t each = (p.k + splits - 1) / splits;
        for (uint64_t r = 0; r < p.m; ++r) {
            for (uint64_t i = 0; i < p.k; ++i) row[i] = left(r, i);
            std::fill(acc.begin(), acc.end(), 0.0f);
            for (uint64_t s = 0; s < splits; ++s) {
                std::fill(part.begin(), part.end(), 0.0f);
                for (uint64_t i = s * each; i < std::min(p.k, (s + 1) * each); ++i)
                    for (uint64_t j = 0; j < p.n; ++j) part[j] += row[i] * all[i * p.n + j];
                for (uint64_t j = 0; j < p.n; ++j) acc[j] += part[j];
            }
            for (uint64_t j = 0; j < p.n; ++j) {
                float v = alpha * acc[j];
                if (beta != 0) v += beta * read(C, c.type, r + j * c.ld);
                if (o.epilogue == CUBLASLT_EPILOGUE_BIAS) v += read(bias, bias_type, r);
                write(D, d.type, r + j * d.ld, v);
            }
        }
    }

    // BGRADA: the sums of op(A) over k, m of them; BGRADB: those of op(B), n of them.
    void gradients(const std::vector<float>& all) const {
        auto* to = reinterpret_cast<void*>(o.bias);
        if (o.epilogue == CUBLASLT_EPILOGUE_BGRADA)
            for (uint64_t r = 0; r < p.m; ++r) {
                float sum = 0;
                for (uint64_t i = 0; i < p.k; ++i) sum += left(r, i);
                write(to, bias_type, r, sum);
            }
        if (o.epilogue == CUBLASLT_EPILOGUE_BGRADB)
            for (uint64_t j = 0; j < p.n; ++j) {
                float sum = 0;
                for (uint64_t i = 0; i < p.k; ++i) sum += all[i * p.n + j];
                write(to, bias_type, j, sum);
            }
    }
};

uint64_t at(const void* q) { return reinterpret_cast<uint64_t>(q); }
size_t span(const Layout& l) { return ((l.cols - 1) * uint64_t(l.ld) + l.rows) * width(l.type); }

// Ranges that the product touches; what must not overlap, does not.
std::vector<standin::Range> ranges(const Product& q) {
    std::vector<standin::Range> all = {{at(q.A), span(q.a), "A"}, {at(q.B), span(q.b), "B"}, {at(q.D), span(q.d), "D"}};
    auto crosses = [&](uint64_t from, size_t bytes) { return from < at(q.D) + span(q.d) && at(q.D) < from + bytes; };
    if (q.C != q.D && q.beta != 0 && crosses(at(q.C), span(q.c))) defect("cublasLtMatmul: C overlaps D");
    if (crosses(at(q.A), span(q.a)) || crosses(at(q.B), span(q.b))) defect("cublasLtMatmul: an operand overlaps D");
    if (q.beta != 0) all.push_back({at(q.C), span(q.c), "C"});
    if (q.need) all.push_back({at(q.workspace), q.need, "workspace"});
    if (q.o.epilogue != CUBLASLT_EPILOGUE_DEFAULT) {
        size_t bytes = (q.o.epilogue == CUBLASLT_EPILOGUE_BGRADB ? q.p.n : q.p.m) * width(q.bias_type);
        if (!q.o.bias) defect("cublasLtMatmul: an epilogue with no bias");
        if (crosses(q.o.bias, bytes)) defect("cublasLtMatmul: the bias overlaps D");
        all.push_back({q.o.bias, bytes, "bias"});
    }
    return all;
}
}  // namespace

STANDIN_API Status cublasLtMatmul(void* h, void* o, const void* alpha, const void* A, void* a, const void* B, void* b, const void* beta,
        const void* C, void* c, void* D, void* d, const Algorithm* algo, void* workspace, size_t bytes, void* stream) {
    LT_ENTER;
    Operands x;
    if (!state().handles.count(h) || !alpha || !beta || !algo || !operands(x, o, a, b, c, d)) return no(CUBLAS_STATUS_INVALID_VALUE, "handle, scalars or algorithm");
    Problem p;
    if (Status bad = examine(x, p); bad != CUBLAS_STATUS_SUCCESS) return bad;
    Chosen y;
    memcpy(&y, algo, sizeof y);
    if (y.magic != kMagic || y.types != types_of(x) || y.flags != flags_of(x)) return no(CUBLAS_STATUS_INVALID_VALUE, "an algorithm of other descriptors");
    if (!takes(y, p)) return no(CUBLAS_STATUS_NOT_SUPPORTED, "the algorithm does not take %lu rows", p.n);
    if (y.id == 4) return CUBLAS_STATUS_NOT_SUPPORTED;
    size_t need = workspace_of(y, p);
    if (need > bytes) return no(CUBLAS_STATUS_INVALID_VALUE, "a workspace of %zu bytes where %zu are needed", bytes, need);
    if (bytes && (at(workspace) % 256 || !standin::covered(at(workspace), bytes))) return no(CUBLAS_STATUS_INVALID_VALUE, "workspace");
    for (const void* q : {A, B, C, static_cast<const void*>(D)})
        if (at(q) % y.align) return no(CUBLAS_STATUS_INVALID_VALUE, "an operand at %p is not aligned to %lu, as the algorithm was asked for", q, y.align);
    Product q{p, *x.o, *x.a, *x.b, *x.c, *x.d, A, B, C, D, workspace, need, y.splits, 0, 0, x.o->bias_type < 0 ? x.d->type : x.o->bias_type};
    memcpy(&q.alpha, alpha, 4), memcpy(&q.beta, beta, 4);  // the default pointer mode: host
    standin::Work w{"cublasLtMatmul", ranges(q), [q]() -> std::string { return q.run(), ""; }, {}, nullptr, true};
    return standin::enqueue(stream, std::move(w)) ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}
