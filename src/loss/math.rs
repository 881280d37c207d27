//! What formulas are made of, and the derivatives of it.

/// Largest exponent: far beyond it, `exp` is not finite in f32.
const MOST_EXPONENT: f64 = 80.0;

/// `exp(x)` for `x` up to 80, and its derivative: 0 beyond.
pub fn capped_exp(x: f64) -> [f64; 2] {
    if x > MOST_EXPONENT { [MOST_EXPONENT.exp(), 0.0] } else { [x.exp(); 2] }
}

/// `exp(x) - 1` for `x` up to 80, without cancellation, and its derivative: 0 beyond.
pub fn capped_exp_m1(x: f64) -> [f64; 2] {
    if x > MOST_EXPONENT { [MOST_EXPONENT.exp_m1(), 0.0] } else { [x.exp_m1(), x.exp()] }
}

/// `log(1 / (1 + exp(-x)))` without overflow or cancellation.
pub fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// `1 / (1 + exp(-x))` without overflow.
pub fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

/// `-(1-e) log sigmoid(m) - e log sigmoid(-m)`, and its derivative by `m`: the logistic loss of a margin whose label is
/// flipped with probability `e`.
pub fn logistic(m: f64, e: f64) -> [f64; 2] {
    [-(1.0 - e) * log_sigmoid(m) - e * log_sigmoid(-m), e * sigmoid(m) - (1.0 - e) * sigmoid(-m)]
}
