// The losses of src/loss/, each under the name of its file: value and derivatives of a pair by the policy's two sums, in f64.
// p: the loss's hyper-parameters in the order of its row's `options`.
#pragma once

// Every loss in the order of src/loss/mod.rs. PAIR: one that sees a pair, with a function here; ELSE: one that is written out
// in loss.cu (sft, plackett_luce), or whose coefficients the host gives (those of a whole step).
#define LOSS_TABLE(PAIR, ELSE) \
    PAIR(sigmoid)              \
    PAIR(robust)               \
    PAIR(hinge)                \
    PAIR(ipo)                  \
    PAIR(ipo_sum)              \
    PAIR(exo_pair)             \
    PAIR(nca_pair)             \
    PAIR(bco_pair)             \
    PAIR(sppo_hard)            \
    PAIR(apo_zero)             \
    PAIR(apo_down)             \
    PAIR(discopop)             \
    PAIR(sigmoid_norm)         \
    PAIR(rpo)                  \
    PAIR(dpop)                 \
    PAIR(odpo)                 \
    PAIR(soft_label)           \
    PAIR(rdpo)                 \
    PAIR(simpo)                \
    PAIR(alphapo)              \
    PAIR(cpo)                  \
    PAIR(orpo)                 \
    PAIR(slic)                 \
    PAIR(unlikelihood)         \
    ELSE(sft)                  \
    ELSE(plackett_luce)        \
    ELSE(aot)                  \
    ELSE(aot_unpaired)         \
    ELSE(beta_dpo)             \
    ELSE(kto)

// What a formula sees of a pair: sums over completion tokens, lengths, scores (NaN where the data have none).
struct Pair {
    double chosen, rejected, ref_chosen, ref_rejected, chosen_len, rejected_len, chosen_score, rejected_score;
    __device__ double ratio_chosen() const { return chosen - ref_chosen; }
    __device__ double ratio_rejected() const { return rejected - ref_rejected; }
    __device__ double margin() const { return ratio_chosen() - ratio_rejected(); }
    __device__ double mean_chosen() const { return chosen / chosen_len; }
    __device__ double mean_rejected() const { return rejected / rejected_len; }
};

struct PairLoss { double loss, d_chosen, d_rejected; };

__device__ inline double log_sigmoid(double x) { return fmin(x, 0.0) - log1p(exp(-fabs(x))); }
__device__ inline double sigmoid_of(double x) {
    const double e = exp(-fabs(x));
    return (x >= 0.0 ? 1.0 : e) / (1.0 + e);
}
// exp(x), and exp(x) - 1 without cancellation, for x up to 80, with the derivative: 0 beyond.
struct Power { double value, slope; };
__device__ inline Power capped_exp(double x) {
    const double e = exp(x > 80.0 ? 80.0 : x);  // NaN stays NaN
    return Power{e, x > 80.0 ? 0.0 : e};
}
__device__ inline Power capped_expm1(double x) {
    return x > 80.0 ? Power{expm1(80.0), 0.0} : Power{expm1(x), exp(x)};
}
// The logistic loss of a margin whose label is flipped with probability e, times by: d is d/dm times by.
__device__ inline PairLoss logistic(double m, double e, double by) {
    const double d = by * (e * sigmoid_of(m) - (1.0 - e) * sigmoid_of(-m));
    return PairLoss{-(1.0 - e) * log_sigmoid(m) - e * log_sigmoid(-m), d, -d};
}

// ---- one function a loss --------------------------------------------------------------------------------------------
__device__ inline PairLoss loss_sigmoid(const double* p, const Pair& x) { return logistic(p[0] * x.margin(), p[1], p[0]); }

__device__ inline PairLoss loss_robust(const double* p, const Pair& x) {
    const double m = p[0] * x.margin(), e = p[1], by = 1.0 - 2.0 * e;
    const double d = p[0] * ((-(1.0 - e) * sigmoid_of(-m) - e * sigmoid_of(m)) / by);
    return PairLoss{(-(1.0 - e) * log_sigmoid(m) + e * log_sigmoid(-m)) / by, d, -d};
}

__device__ inline PairLoss loss_hinge(const double* p, const Pair& x) {
    const double slack = 1.0 - p[0] * x.margin(), d = slack <= 0.0 ? 0.0 : -p[0];  // NaN stays NaN
    return PairLoss{slack <= 0.0 ? 0.0 : slack, d, -d};
}

__device__ inline PairLoss loss_ipo(const double* p, const Pair& x) {
    const double gap = x.ratio_chosen() / x.chosen_len - x.ratio_rejected() / x.rejected_len - 1.0 / (2.0 * p[0]);
    return PairLoss{gap * gap, 2.0 * gap / x.chosen_len, -2.0 * gap / x.rejected_len};
}

__device__ inline PairLoss loss_ipo_sum(const double* p, const Pair& x) {
    const double gap = x.margin() - 1.0 / (2.0 * p[0]);
    return PairLoss{gap * gap, 2.0 * gap, -2.0 * gap};
}

__device__ inline PairLoss loss_exo_pair(const double* p, const Pair& x) {
    const double m = p[0] * x.margin(), q = sigmoid_of(m), r = sigmoid_of(-m);
    const double to_chosen = log_sigmoid(m) - log1p(-p[1]), to_rejected = log_sigmoid(-m) - log(p[1]);
    const double d = p[0] * (q * r * (to_chosen - to_rejected));
    return PairLoss{q * to_chosen + r * to_rejected, d, -d};
}

__device__ inline PairLoss loss_nca_pair(const double* p, const Pair& x) {
    const double w = p[0] * x.ratio_chosen(), l = p[0] * x.ratio_rejected();
    return PairLoss{-log_sigmoid(w) - 0.5 * log_sigmoid(-w) - 0.5 * log_sigmoid(-l),
                    p[0] * (0.5 * sigmoid_of(w) - sigmoid_of(-w)), p[0] * (0.5 * sigmoid_of(l))};
}

__device__ inline PairLoss loss_bco_pair(const double* p, const Pair& x) {
    const double w = p[0] * x.ratio_chosen(), l = p[0] * x.ratio_rejected();
    return PairLoss{-log_sigmoid(w) - log_sigmoid(-l), -p[0] * sigmoid_of(-w), p[0] * sigmoid_of(l)};
}

__device__ inline PairLoss loss_sppo_hard(const double* p, const Pair& x) {
    const double to = 0.5 / p[0], w = x.ratio_chosen() - to, l = x.ratio_rejected() + to;
    return PairLoss{w * w + l * l, 2.0 * w, 2.0 * l};
}

__device__ inline PairLoss loss_apo_zero(const double* p, const Pair& x) {
    const double w = p[0] * x.ratio_chosen(), l = p[0] * x.ratio_rejected();
    return PairLoss{sigmoid_of(-w) + sigmoid_of(l), -p[0] * sigmoid_of(w) * sigmoid_of(-w),
                    p[0] * sigmoid_of(l) * sigmoid_of(-l)};
}

__device__ inline PairLoss loss_apo_down(const double* p, const Pair& x) {
    const double w = p[0] * x.ratio_chosen(), m = p[0] * x.margin();
    const double by_chosen = p[0] * sigmoid_of(w) * sigmoid_of(-w), by_margin = p[0] * sigmoid_of(m) * sigmoid_of(-m);
    return PairLoss{sigmoid_of(w) + sigmoid_of(-m), by_chosen - by_margin, by_margin};
}

__device__ inline PairLoss loss_discopop(const double* p, const Pair& x) {
    const double m = p[0] * x.margin(), q = sigmoid_of(m / p[1]), rest = sigmoid_of(-m / p[1]);
    const Power both = capped_exp(log_sigmoid(m / p[1]) - m);
    const double logistic = rest * (q / p[1] * log_sigmoid(m) - sigmoid_of(-m));
    const double d = p[0] * (logistic + both.slope * (rest / p[1] - 1.0));
    return PairLoss{both.value - rest * log_sigmoid(m), d, -d};
}

__device__ inline PairLoss loss_sigmoid_norm(const double* p, const Pair& x) {
    const double gap = x.ratio_chosen() / x.chosen_len - x.ratio_rejected() / x.rejected_len;
    const PairLoss got = logistic(p[0] * gap, 0.0, p[0]);
    return PairLoss{got.loss, got.d_chosen / x.chosen_len, got.d_rejected / x.rejected_len};
}

__device__ inline PairLoss loss_rpo(const double* p, const Pair& x) {
    const PairLoss got = logistic(p[0] * x.margin(), 0.0, p[0]);
    return PairLoss{got.loss - p[1] * x.mean_chosen(), got.d_chosen - p[1] / x.chosen_len, got.d_rejected};
}

__device__ inline PairLoss loss_dpop(const double* p, const Pair& x) {
    const double below = -x.ratio_chosen();  // NaN stays NaN
    const PairLoss got = logistic(p[0] * (x.margin() - (below <= 0.0 ? 0.0 : p[1] * below)), 0.0, p[0]);
    return PairLoss{got.loss, got.d_chosen * (below <= 0.0 ? 1.0 : 1.0 + p[1]), got.d_rejected};
}

__device__ inline PairLoss loss_odpo(const double* p, const Pair& x) {
    const double by = x.chosen_score - x.rejected_score;
    const double offset = p[1] == 0.0 ? 0.0 : by <= 0.0 ? -double(INFINITY) : p[1] * log(by);
    const double m = p[0] * x.margin() - offset, d = -p[0] * sigmoid_of(-m);
    return PairLoss{-log_sigmoid(m), d, -d};
}

__device__ inline PairLoss loss_soft_label(const double* p, const Pair& x) {
    const double m = p[0] * x.margin(), log_odds = p[1] * (x.chosen_score - x.rejected_score);
    const double q = sigmoid_of(log_odds), rest = sigmoid_of(-log_odds);
    const double d = p[0] * (rest * sigmoid_of(m) - q * sigmoid_of(-m));
    return PairLoss{-q * log_sigmoid(m) - rest * log_sigmoid(-m), d, -d};
}

__device__ inline PairLoss loss_rdpo(const double* p, const Pair& x) {
    return logistic(p[0] * x.margin() + p[1] * (x.chosen_len - x.rejected_len), 0.0, p[0]);
}

__device__ inline PairLoss loss_simpo(const double* p, const Pair& x) {
    const PairLoss got = logistic(p[0] * (x.mean_chosen() - x.mean_rejected()) - p[1], p[2], p[0]);
    return PairLoss{got.loss, got.d_chosen / x.chosen_len, got.d_rejected / x.rejected_len};
}

// AlphaPO's reward of a mean log-prob.
__device__ inline Power power_reward(double alpha, double mean) {
    const Power power = capped_expm1(-alpha * mean);
    return Power{-power.value / alpha, power.slope};
}

__device__ inline PairLoss loss_alphapo(const double* p, const Pair& x) {
    const Power w = power_reward(p[2], x.mean_chosen()), l = power_reward(p[2], x.mean_rejected());
    const PairLoss got = logistic(p[0] * (w.value - l.value) - p[1], p[3], p[0]);
    return PairLoss{got.loss, got.d_chosen * w.slope / x.chosen_len, got.d_rejected * l.slope / x.rejected_len};
}

__device__ inline PairLoss loss_cpo(const double* p, const Pair& x) {
    const PairLoss got = logistic(p[0] * (x.chosen - x.rejected), p[1], p[0]);
    return PairLoss{got.loss - p[2] * x.mean_chosen(), got.d_chosen - p[2] / x.chosen_len, got.d_rejected};
}

// Log odds of a probability's logarithm; certainty is a probability of 1 - 1e-12.
__device__ inline Power log_odds(double x) {
    const double rest = -expm1(x);
    return rest < 1e-12 ? Power{x - log(1e-12), 1.0} : Power{x - log(rest), 1.0 / rest};
}

__device__ inline PairLoss loss_orpo(const double* p, const Pair& x) {
    const Power w = log_odds(x.mean_chosen()), l = log_odds(x.mean_rejected());
    const double d = p[0] * sigmoid_of(l.value - w.value);
    return PairLoss{-x.mean_chosen() - p[0] * log_sigmoid(w.value - l.value), (-1.0 - d * w.slope) / x.chosen_len,
                    d * l.slope / x.rejected_len};
}

__device__ inline PairLoss loss_slic(const double* p, const Pair& x) {
    const double slack = p[0] - x.chosen + x.rejected, by = slack <= 0.0 ? 0.0 : 1.0;  // NaN stays NaN
    return PairLoss{(slack <= 0.0 ? 0.0 : slack) - p[1] * x.chosen, -by - p[1], by};
}

__device__ inline PairLoss loss_unlikelihood(const double* p, const Pair& x) {
    return PairLoss{p[0] * x.rejected - x.chosen, -1.0, p[0]};
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

__device__ inline Power reward_of(int divergence, double alpha, double d) {
    if (divergence == JS_DIVERGENCE) return Power{0.69314718055994530942 + log_sigmoid(d), sigmoid_of(-d)};
    if (divergence == REVERSE_KL || (divergence == ALPHA_DIVERGENCE && fabs(alpha - 1.0) < 1e-6)) return Power{d, 1.0};
    const Power power = capped_expm1(divergence == FORWARD_KL ? -d : (alpha - 1.0) * d);
    return Power{divergence == FORWARD_KL ? -power.value : power.value / (alpha - 1.0), power.slope};
}
