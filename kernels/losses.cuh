// The losses of src/loss/, each under the name of its file: value and derivatives of a pair by the policy's two sums, in f64.
// p: the loss's hyper-parameters in the order of its row's `options`.
#pragma once

// Every loss in the order of src/loss/mod.rs. PAIR: one that sees a pair, with a function here; ELSE: one that is written out
// in loss.cu (sft, plackett_luce), or whose coefficients the host gives (those of a whole step).
#define LOSS_TABLE(PAIR, ELSE) \
    PAIR(sigmoid)              \
    PAIR(hinge)                \
    PAIR(ipo)                  \
    ELSE(sft)                  \
    PAIR(exo_pair)             \
    ELSE(plackett_luce)

// What a formula sees of a pair: sums over completion tokens, lengths, scores (NaN where the data have none).
struct Pair {
    double chosen, rejected, ref_chosen, ref_rejected, chosen_len, rejected_len, chosen_score, rejected_score;
    __device__ double ratio_chosen() const { return chosen - ref_chosen; }
    __device__ double ratio_rejected() const { return rejected - ref_rejected; }
    __device__ double margin() const { return ratio_chosen() - ratio_rejected(); }
};

struct PairLoss { double loss, d_chosen, d_rejected; };

__device__ inline double log_sigmoid(double x) { return fmin(x, 0.0) - log1p(exp(-fabs(x))); }
__device__ inline double sigmoid_of(double x) {
    const double e = exp(-fabs(x));
    return (x >= 0.0 ? 1.0 : e) / (1.0 + e);
}
// The logistic loss of a margin whose label is flipped with probability e, times by: d is d/dm times by.
__device__ inline PairLoss logistic(double m, double e, double by) {
    const double d = by * (e * sigmoid_of(m) - (1.0 - e) * sigmoid_of(-m));
    return PairLoss{-(1.0 - e) * log_sigmoid(m) - e * log_sigmoid(-m), d, -d};
}

// ---- one function a loss --------------------------------------------------------------------------------------------
__device__ inline PairLoss loss_sigmoid(const double* p, const Pair& x) { return logistic(p[0] * x.margin(), p[1], p[0]); }

__device__ inline PairLoss loss_hinge(const double* p, const Pair& x) {
    const double slack = 1.0 - p[0] * x.margin(), d = slack <= 0.0 ? 0.0 : -p[0];  // NaN stays NaN
    return PairLoss{slack <= 0.0 ? 0.0 : slack, d, -d};
}

__device__ inline PairLoss loss_ipo(const double* p, const Pair& x) {
    const double gap = x.ratio_chosen() / x.chosen_len - x.ratio_rejected() / x.rejected_len - 1.0 / (2.0 * p[0]);
    return PairLoss{gap * gap, 2.0 * gap / x.chosen_len, -2.0 * gap / x.rejected_len};
}

__device__ inline PairLoss loss_exo_pair(const double* p, const Pair& x) {
    const double m = p[0] * x.margin(), q = sigmoid_of(m), r = sigmoid_of(-m);
    const double to_chosen = log_sigmoid(m) - log1p(-p[1]), to_rejected = log_sigmoid(-m) - log(p[1]);
    const double d = p[0] * (q * r * (to_chosen - to_rejected));
    return PairLoss{q * to_chosen + r * to_rejected, d, -d};
}

// ---- the table ------------------------------------------------------------------------------------------------------
#define LOSS_KIND(name) KIND_##name,
enum LossKind { LOSS_TABLE(LOSS_KIND, LOSS_KIND) LOSSES };
#undef LOSS_KIND

__device__ inline PairLoss pair_loss(int kind, const double* p, const Pair& x) {
#define LOSS_CASE(name) \
    case KIND_##name: return loss_##name(p, x);
#define LOSS_NONE(name)
    switch (kind) {
        LOSS_TABLE(LOSS_CASE, LOSS_NONE)
        default: return PairLoss{0.0, 0.0, 0.0};
    }
#undef LOSS_CASE
#undef LOSS_NONE
}

// What a log-ratio d is worth under an f-divergence, and the derivative by it (src/loss/divergence.rs).
enum Divergence { REVERSE_KL, FORWARD_KL, JS_DIVERGENCE, ALPHA_DIVERGENCE };
struct Reward { double value, slope; };

__device__ inline Reward reward_of(int divergence, double alpha, double d) {
    const double x = divergence == FORWARD_KL ? -d : (alpha - 1.0) * d;
    const double e = exp(fmin(x, 80.0)), slope = x <= 80.0 ? e : 0.0;
    if (divergence == FORWARD_KL) return Reward{1.0 - e, slope};
    if (divergence == JS_DIVERGENCE) return Reward{0.69314718055994530942 + log_sigmoid(d), sigmoid_of(-d)};
    if (divergence == REVERSE_KL || fabs(alpha - 1.0) < 1e-6) return Reward{d, 1.0};
    return Reward{(e - 1.0) / (alpha - 1.0), slope};
}
