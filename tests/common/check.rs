//! Comparisons that NaN cannot pass.

/// Largest absolute difference; infinite where either is not finite.
fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths");
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, |m, d| {
        if d <= m {
            m
        } else if d.is_nan() {
            f64::INFINITY
        } else {
            d
        }
    })
}

/// Why `got` does not agree with `want`, or nothing: every element within `rel * |want| + rel * 0.05 * max |want| + floor`.
pub fn disagreement(name: &str, got: &[f64], want: &[f64], rel: f64, floor: f64) -> Option<String> {
    if got.len() != want.len() {
        return Some(format!("{name}: {} elements, want {}", got.len(), want.len()));
    }
    let floor = floor + 0.05 * rel * want.iter().fold(0.0f64, |m, w| m.max(w.abs())) + 1e-30;
    let good = |(g, w): (&f64, &f64)| (g - w).abs() <= rel * w.abs() + floor; // false for NaN
    let i = got.iter().zip(want).position(|p| !good(p))?;
    Some(format!("{name}[{i}]: got {}, want {}", got[i], want[i]))
}

/// Panics where [`disagreement`] finds any.
#[track_caller]
pub fn assert_close(name: &str, got: &[f64], want: &[f64], rel: f64, floor: f64) {
    if let Some(why) = disagreement(name, got, want, rel, floor) {
        panic!("{why} (relative tolerance {rel:e})");
    }
}

/// The bf16 rule: the kernel's error against f64 is at most twice that of a plain bf16 implementation, plus the rounding
/// of the largest output (a plain implementation can be right by luck).
#[track_caller]
pub fn assert_bf16_rule(name: &str, got: &[f64], plain: &[f64], want: &[f64], floor: f64) {
    let (error, allowed) = (distance(got, want), distance(plain, want));
    assert!(allowed.is_finite(), "{name}: the plain implementation itself failed");
    let ulp = want.iter().fold(0.0f64, |m, w| m.max(w.abs())) / 256.0;
    assert!(
        error <= 2.0 * allowed + ulp / 2.0 + floor,
        "{name}: error {error:e}, a plain bf16 implementation's is {allowed:e}"
    );
}
