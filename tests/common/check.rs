//! Comparisons that NaN cannot pass, and arithmetic that rounds to bf16 after every operation.

use half::bf16;

/// A number that reference implementations compute with: `f64`, `f32`, or [`Plain`] bf16.
pub trait Real:
    Copy
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::iter::Sum
{
    /// Nearest value.
    fn of(x: f64) -> Self;
    /// Exact value.
    fn f64(self) -> f64;
    /// `f` of the number, rounded to its type.
    fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self::of(f(self.f64()))
    }
}

impl Real for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn f64(self) -> f64 {
        self
    }
}
impl Real for f32 {
    fn of(x: f64) -> Self {
        x as f32
    }
    fn f64(self) -> f64 {
        self.into()
    }
}

/// What a plain bf16 implementation computes: every result is rounded to bf16, sums are kept in f32.
#[derive(Clone, Copy)]
pub struct Plain(bf16);

macro_rules! plain_op {
    ($($op:ident $f:ident),*) => {$(
        impl std::ops::$op for Plain {
            type Output = Plain;
            fn $f(self, o: Plain) -> Plain {
                Plain(bf16::from_f32(std::ops::$op::$f(self.0.to_f32(), o.0.to_f32())))
            }
        }
    )*};
}
plain_op!(Add add, Sub sub, Mul mul, Div div);
impl std::ops::Neg for Plain {
    type Output = Plain;
    fn neg(self) -> Plain {
        Plain(-self.0)
    }
}
impl std::iter::Sum for Plain {
    fn sum<I: Iterator<Item = Plain>>(iter: I) -> Plain {
        Plain(bf16::from_f32(iter.map(|x| x.0.to_f32()).sum()))
    }
}
impl Real for Plain {
    fn of(x: f64) -> Self {
        Plain(bf16::from_f64(x))
    }
    fn f64(self) -> f64 {
        self.0.to_f64()
    }
}

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

/// Why `got` does not agree with `want`, or nothing: every element within `rel * |want| + rel * 0.05 * max |want|`.
pub fn disagreement(name: &str, got: &[f64], want: &[f64], rel: f64) -> Option<String> {
    if got.len() != want.len() {
        return Some(format!("{name}: {} elements, want {}", got.len(), want.len()));
    }
    let floor = 0.05 * rel * want.iter().fold(0.0f64, |m, w| m.max(w.abs())) + 1e-30;
    let good = |(g, w): (&f64, &f64)| (g - w).abs() <= rel * w.abs() + floor; // false for NaN
    let i = got.iter().zip(want).position(|p| !good(p))?;
    Some(format!("{name}[{i}]: got {}, want {}", got[i], want[i]))
}

/// Panics where [`disagreement`] finds any.
#[track_caller]
pub fn assert_close(name: &str, got: &[f64], want: &[f64], rel: f64) {
    if let Some(why) = disagreement(name, got, want, rel) {
        panic!("{why} (relative tolerance {rel:e})");
    }
}

/// The bf16 rule: the kernel's error against f64 is at most twice that of a plain bf16 implementation, plus the rounding
/// of the largest output (a plain implementation can be right by luck).
#[track_caller]
pub fn assert_bf16_rule(name: &str, got: &[f64], plain: &[f64], want: &[f64]) {
    let (error, allowed) = (distance(got, want), distance(plain, want));
    assert!(allowed.is_finite(), "{name}: the plain implementation itself failed");
    let ulp = want.iter().fold(0.0f64, |m, w| m.max(w.abs())) / 256.0;
    assert!(
        error <= 2.0 * allowed + ulp / 2.0,
        "{name}: error {error:e}, a plain bf16 implementation's is {allowed:e}"
    );
}
