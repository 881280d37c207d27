// Loss.      Per response: sums of logp, entropy and hits over its predictions. Per pair (w, l) with
//            h = (logp_w - ref_w) - (logp_l - ref_l):  sigmoid  -(1-e) ln s(beta h) - e ln s(-beta h),   hinge  max(0, 1 - beta h),
//            ipo  (w/|w| - l/|l| - 1/(2 beta))^2 on per-token means.   coef[n] = scale * sum over the pairs of prediction n's response of
//            weight * dL/dlogp.   sft: coef = -scale, a response's own loss -logp.
// Source     src/loss/mod.rs, formula by formula: DPO eq. 7 (arXiv 2305.18290), RSO (2309.06657), IPO eq. 17 (2310.12036).
// Shapes     coef, logp, entropy, hit (predictions of the chunk) f32   responses (responses, 4)   pairs_out (pairs, 3) f64
//            groups (groups, 4): first and end response, first and end pair   spans (responses, 2): first and end prediction
//            pairs (pairs, 2): chosen, rejected   ref_logp (responses), weight (pairs) f64.   Indices count in the micro-batch;
//            first_*: where the chunk starts in it.
// Launch     grid = groups of the chunk, block = 128: responses by warp, then pairs by thread, then coefficients by warp.
// Traffic    16 bytes a prediction: nothing beside the head.
// Order      lane-strided sums in f64 and a butterfly; pairs in order. No atomics.
// Limits     the pairs of a group join responses of the group: checked when the batch is loaded.
// Reference  src/backend/cpu/loss.rs.   Tried: not yet measured on a GPU.
#include "common.cuh"

#ifdef STORAGE_F32
enum LossType { SIGMOID, HINGE, IPO, SFT };

struct PairLoss { double loss, d_chosen, d_rejected; };

__device__ double log_sigmoid(double x) { return fmin(x, 0.0) - log1p(exp(-fabs(x))); }
__device__ double sigmoid_of(double x) {
    const double e = exp(-fabs(x));
    return (x >= 0.0 ? 1.0 : e) / (1.0 + e);
}

// w, l: log-ratios to the reference.
__device__ PairLoss pair_loss(int type, double beta, double smoothing, double w, double l, double w_len, double l_len) {
    if (type == IPO) {
        const double gap = w / w_len - l / l_len - 1.0 / (2.0 * beta);
        return PairLoss{gap * gap, 2.0 * gap / w_len, -2.0 * gap / l_len};
    }
    const double m = beta * (w - l);
    if (type == HINGE) {
        const double slack = 1.0 - m, d = slack > 0.0 ? -beta : 0.0;
        return PairLoss{slack > 0.0 || slack != slack ? slack : 0.0, d, -d};
    }
    const double d = beta * (smoothing * sigmoid_of(m) - (1.0 - smoothing) * sigmoid_of(-m));
    return PairLoss{-(1.0 - smoothing) * log_sigmoid(m) - smoothing * log_sigmoid(-m), d, -d};
}

KERNEL(128, loss)(float* __restrict__ coef, double* responses, double* __restrict__ pairs_out, const float* __restrict__ logp,
                  const float* __restrict__ entropy, const float* __restrict__ hit, const unsigned* __restrict__ groups,
                  const unsigned* __restrict__ spans, const unsigned* __restrict__ pairs, const double* __restrict__ ref_logp,
                  const double* __restrict__ weight, int first_response, int first_prediction, int first_pair, int type,
                  double beta, double smoothing, double scale) {
    const unsigned* group = groups + 4 * blockIdx.x;
    const int begin = group[0], end = group[1], pair_begin = group[2], pair_end = group[3];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int r = begin + warp; r < end; r += warps) {
        double sums[3] = {0.0, 0.0, 0.0};
        for (int n = int(spans[2 * r]) - first_prediction + lane; n < int(spans[2 * r + 1]) - first_prediction; n += 32) {
            sums[0] += logp[n];
            sums[1] += entropy[n];
            sums[2] += hit[n];
        }
#pragma unroll
        for (int i = 0; i < 3; ++i) sums[i] = warp_sum(sums[i]);
        double* out = responses + 4 * (r - first_response);
        if (lane < 3) out[lane] = lane == 0 ? sums[0] : lane == 1 ? sums[1] : sums[2];
        if (lane == 3) out[3] = type == SFT ? -sums[0] : 0.0;
    }
    __syncthreads();
    auto ratio = [&](int r) { return responses[4 * (r - first_response)] - ref_logp[r]; };
    auto evaluate = [&](int p) {
        const int w = pairs[2 * p], l = pairs[2 * p + 1];
        return pair_loss(type, beta, smoothing, ratio(w), ratio(l), double(spans[2 * w + 1] - spans[2 * w]),
                         double(spans[2 * l + 1] - spans[2 * l]));
    };
    for (int p = pair_begin + int(threadIdx.x); p < pair_end; p += blockDim.x) {
        double* out = pairs_out + 3 * (p - first_pair);
        out[0] = type == SFT ? 0.0 : evaluate(p).loss;
        out[1] = type == SFT ? 0.0 : beta * ratio(pairs[2 * p]);
        out[2] = type == SFT ? 0.0 : beta * ratio(pairs[2 * p + 1]);
    }
    for (int r = begin + warp; r < end; r += warps) {
        double d = type == SFT ? -1.0 : 0.0;
        if (type != SFT)
            for (int p = pair_begin; p < pair_end; ++p) {
                if (int(pairs[2 * p]) == r) d += weight[p] * evaluate(p).d_chosen;
                if (int(pairs[2 * p + 1]) == r) d += weight[p] * evaluate(p).d_rejected;
            }
        for (int n = int(spans[2 * r]) - first_prediction + lane; n < int(spans[2 * r + 1]) - first_prediction; n += 32)
            coef[n] = float(scale * d);
    }
}
EXPORT_KERNEL(loss)
#endif
