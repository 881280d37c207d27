// Loss.      Per response: sums of logp, entropy and hits over its predictions. Per pair: value and derivatives of one of the
//            losses of losses.cuh. coef[n] = scale * sum over the pairs of prediction n's response of weight * dL/dlogp, and
//            what a loss gives single responses. A launch a loss of a sum: the first writes, the others add.
// Source     src/loss/, formula by formula.
// Shapes     coef, logp, entropy, hit, log_sum_p2 (predictions of the chunk) f32   responses (responses, 6) f64
//            pairs_out (pairs, 8) f64: src/backend/ops/loss.rs says what   groups (groups, 4): first and end response, first
//            and end pair   spans (responses, 2): first and end prediction   pairs (pairs, 2): chosen, rejected
//            response_in (responses, 3) f64: reference logp, score, given   pair_in (pairs, 5) f64: weight, the reference's
//            sums over shared tokens (2), given (2).   Indices count in the micro-batch; first_*: where the chunk starts in it.
// Launch     grid = groups of the chunk, block = 128: responses by warp, then pairs by thread, then coefficients by warp.
// Traffic    16 bytes a prediction: nothing beside the head.
// Order      lane-strided sums in f64 and a butterfly; pairs in order. No atomics.
// Limits     the pairs of a group join responses of the group: checked when the batch is loaded.
// Reference  src/backend/cpu/loss.rs.   Measured: docs/results/2026-11-26-h100.md.
#include "common.cuh"

#ifdef STORAGE_F32
#include "losses.cuh"

// Beside the losses: the coefficients that the batch was given, or statistics alone.
enum OtherKind { GIVEN = -1, NOTHING = -2 };
enum Flags { FIRST = 1, WEIGHTED = 2, SHARED_TOKENS = 4, ALONE = 8, MEAN_REWARD = 16 };
enum ResponseStat { LOGP, ENTROPY, HITS, OWN_LOSS, ALIGNMENT, LOG_SUM, RESPONSE_STATS };
enum PairStat { LOSS, REWARD_CHOSEN, REWARD_REJECTED, TOKEN_LOSS, HEAD_CHOSEN, HEAD_REJECTED, D_CHOSEN, D_REJECTED, PAIR_STATS };

KERNEL(128, loss)(float* __restrict__ coef, double* responses, double* pairs_out, const float* __restrict__ logp,
                  const float* __restrict__ entropy, const float* __restrict__ hit, const float* __restrict__ log_sum_p2,
                  const unsigned* __restrict__ groups, const unsigned* __restrict__ spans, const unsigned* __restrict__ pairs,
                  const double* __restrict__ response_in, const double* __restrict__ pair_in, int first_response,
                  int first_prediction, int first_pair, int kind, int flags, double p0, double p1, double p2, double p3,
                  double weight, double scale, int divergence, double f_alpha, double ld_alpha, double reward) {
    const unsigned* group = groups + 4 * blockIdx.x;
    const int begin = group[0], end = group[1], pair_begin = group[2], pair_end = group[3];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const double params[4] = {p0, p1, p2, p3};
    auto first = [&](int r) { return int(spans[2 * r]) - first_prediction; };
    auto length = [&](int r) { return int(spans[2 * r + 1] - spans[2 * r]); };
    auto of_response = [&](int r) { return responses + RESPONSE_STATS * (r - first_response); };
    auto of_pair = [&](int p) { return pairs_out + PAIR_STATS * (p - first_pair); };
    auto shared = [&](int p) {
        const int w = length(pairs[2 * p]), l = length(pairs[2 * p + 1]);
        return w < l ? w : l;
    };

    if (flags & FIRST) {
        for (int r = begin + warp; r < end; r += warps) {
            double sums[4] = {0.0, 0.0, 0.0, 0.0};
            for (int n = first(r) + lane; n < first(r) + length(r); n += 32) {
                sums[0] += logp[n];
                sums[1] += entropy[n];
                sums[2] += hit[n];
                if (flags & WEIGHTED) sums[3] += double(logp[n]) - double(log_sum_p2[n]);
            }
#pragma unroll
            for (int i = 0; i < 3; ++i) sums[i] = warp_sum(sums[i]);
            if (flags & WEIGHTED) sums[3] = warp_sum(sums[3]);
            double* out = of_response(r);
            if (lane < 3) out[lane] = lane == 0 ? sums[0] : lane == 1 ? sums[1] : sums[2];
            if (lane == OWN_LOSS || lane == LOG_SUM) out[lane] = 0.0;
            if (lane == ALIGNMENT) out[lane] = sums[3];
        }
        for (int p = pair_begin + warp; flags & SHARED_TOKENS && p < pair_end; p += warps) {
            double heads[2] = {0.0, 0.0};
            for (int i = 0; i < 2; ++i) {
                const int r = pairs[2 * p + i];
                for (int n = first(r) + lane; n < first(r) + shared(p); n += 32) heads[i] += logp[n];
                heads[i] = warp_sum(heads[i]);
            }
            double* out = of_pair(p);
            if (lane == HEAD_CHOSEN || lane == HEAD_REJECTED) out[lane] = lane == HEAD_CHOSEN ? heads[0] : heads[1];
        }
        __syncthreads();
    }

    auto ratio = [&](int r) { return of_response(r)[LOGP] - response_in[3 * r]; };
    // With LD-DPO tokens beyond the shorter response count less.
    auto seen = [&](int p, bool less) {
        const int w = pairs[2 * p], l = pairs[2 * p + 1];
        const double *out = of_pair(p), *in = pair_in + 5 * p;
        auto of = [&](double sum, double head) { return less ? head + ld_alpha * (sum - head) : sum; };
        return Pair{of(of_response(w)[LOGP], out[HEAD_CHOSEN]), of(of_response(l)[LOGP], out[HEAD_REJECTED]),
                    of(response_in[3 * w], in[1]),              of(response_in[3 * l], in[2]),
                    double(length(w)),                          double(length(l)),
                    response_in[3 * w + 1],                     response_in[3 * l + 1]};
    };
    auto evaluate = [&](const Pair& x) {
        if (kind == KIND_sft) return PairLoss{-x.chosen, -1.0, 0.0};
        if (divergence == REVERSE_KL) return pair_loss(kind, params, x);
        const Power w = reward_of(divergence, f_alpha, x.ratio_chosen()), l = reward_of(divergence, f_alpha, x.ratio_rejected());
        PairLoss got = pair_loss(kind, params,
                                 Pair{w.value, l.value, 0.0, 0.0, x.chosen_len, x.rejected_len, x.chosen_score, x.rejected_score});
        got.d_chosen *= w.slope;
        got.d_rejected *= l.slope;
        return got;
    };
    const bool of_pairs = kind >= 0 && !(flags & ALONE) && kind != KIND_plackett_luce;
    for (int p = pair_begin + int(threadIdx.x); p < pair_end; p += blockDim.x) {
        double* out = of_pair(p);
        if (flags & FIRST) {
            out[LOSS] = out[TOKEN_LOSS] = 0.0;
            if (!(flags & SHARED_TOKENS)) out[HEAD_CHOSEN] = out[HEAD_REJECTED] = 0.0;
            const Pair x = seen(p, flags & SHARED_TOKENS);
            out[REWARD_CHOSEN] = reward * x.ratio_chosen() / (flags & MEAN_REWARD ? x.chosen_len : 1.0);
            out[REWARD_REJECTED] = reward * x.ratio_rejected() / (flags & MEAN_REWARD ? x.rejected_len : 1.0);
        }
        double d[2] = {0.0, 0.0};
        if (kind == GIVEN) {
            d[0] = pair_in[5 * p + 3];
            d[1] = pair_in[5 * p + 4];
        } else if (of_pairs) {
            const Pair x = seen(p, flags & SHARED_TOKENS && kind != KIND_sft);
            const PairLoss got = evaluate(x);
            double by = 1.0;
            if (flags & WEIGHTED)
                by = exp(of_response(pairs[2 * p])[ALIGNMENT] / x.chosen_len) *
                     exp(of_response(pairs[2 * p + 1])[ALIGNMENT] / x.rejected_len);
            out[kind == KIND_sft ? TOKEN_LOSS : LOSS] += weight * by * got.loss;
            d[0] = pair_in[5 * p] * by * got.d_chosen;
            d[1] = pair_in[5 * p] * by * got.d_rejected;
        }
        out[D_CHOSEN] = d[0];
        out[D_REJECTED] = d[1];
    }
    if (kind == KIND_sft && flags & ALONE)
        for (int r = begin + int(threadIdx.x); r < end; r += blockDim.x) of_response(r)[OWN_LOSS] = -of_response(r)[LOGP];
    if (kind == KIND_plackett_luce)
        for (int r = begin + int(threadIdx.x); r < end; r += blockDim.x) {
            // Log of the sum over r and all that it is preferred to, from its largest term.
            const double mine = p0 * ratio(r);
            double top = mine, sum = 0.0;
            bool any = false;
            for (int p = pair_begin; p < pair_end; ++p)
                if (int(pairs[2 * p]) == r) {
                    any = true;
                    top = fmax(top, p0 * ratio(pairs[2 * p + 1]));
                }
            for (int p = pair_begin; p < pair_end; ++p)
                if (int(pairs[2 * p]) == r) sum += exp(p0 * ratio(pairs[2 * p + 1]) - top);
            double* out = of_response(r);
            out[LOG_SUM] = top + log(sum + exp(mine - top));
            if (any) out[OWN_LOSS] += weight * (out[LOG_SUM] - mine);
        }
    __syncthreads();

    for (int r = begin + warp; r < end; r += warps) {
        double d = 0.0;
        if (kind == KIND_sft && flags & ALONE) d = -1.0;
        if (kind == GIVEN) d = response_in[3 * r + 2];
        const bool less = flags & SHARED_TOKENS && kind != KIND_sft && kind != KIND_plackett_luce;
        bool chosen = false;
        for (int p = pair_begin; p < pair_end; ++p) {
            const bool w = int(pairs[2 * p]) == r, l = int(pairs[2 * p + 1]) == r;
            if (!less && w) d += of_pair(p)[D_CHOSEN];
            if (!less && l) d += of_pair(p)[D_REJECTED];
            if (kind == KIND_plackett_luce && l) d += p0 * exp(p0 * ratio(r) - of_response(pairs[2 * p])[LOG_SUM]);
            chosen |= w;
        }
        if (kind == KIND_plackett_luce && chosen) d += p0 * (exp(p0 * ratio(r) - of_response(r)[LOG_SUM]) - 1.0);
        for (int t = lane; t < length(r); t += 32) {
            double mine = d;
            for (int p = pair_begin; less && p < pair_end; ++p) {
                const double by = t < shared(p) ? 1.0 : ld_alpha;
                if (int(pairs[2 * p]) == r) mine += by * of_pair(p)[D_CHOSEN];
                if (int(pairs[2 * p + 1]) == r) mine += by * of_pair(p)[D_REJECTED];
            }
            const int n = first(r) + t;
            coef[n] = (flags & FIRST ? 0.0f : coef[n]) + float(scale * mine);
        }
    }
    if (kind == KIND_plackett_luce) {
        __syncthreads();
        for (int r = begin + int(threadIdx.x); r < end; r += blockDim.x) of_response(r)[LOG_SUM] = 0.0;
    }
}
EXPORT_KERNEL(loss)
#endif
