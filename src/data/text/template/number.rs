//! Python's arithmetic of numbers.

use super::fault::{Fault, Res, raise};
use super::value::Value;
use num_bigint::BigInt;
use num_traits::{Pow, Signed, ToPrimitive, Zero};

/// An operator of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`
    Div,
    /// `//`
    FloorDiv,
    /// `%`
    Mod,
    /// `**`
    Pow,
    /// `**` behind a constant: Python reads the source that Jinja2 writes for it, where `-2 ** n` is `-(2 ** n)`.
    ConstPow,
}

/// Bits of the greatest int that may be made: far more than the 4,300 digits that Python prints.
const MAX_BITS: u64 = 1 << 17;

impl Op {
    /// How it is written.
    pub fn sign(self) -> &'static str {
        match self {
            Op::Add => "+",
            Op::Sub => "-",
            Op::Mul => "*",
            Op::Div => "/",
            Op::FloorDiv => "//",
            Op::Mod => "%",
            Op::Pow | Op::ConstPow => "** or pow()",
        }
    }
}

/// `a op b`, where both are numbers.
pub fn arithmetic(op: Op, a: &Value, b: &Value) -> Option<Res<Value>> {
    if op == Op::ConstPow {
        let negative = match a {
            Value::Float(x) => x.is_sign_negative(),
            _ => a.as_index().is_some_and(|n| n < 0),
        };
        if !negative {
            return arithmetic(Op::Pow, a, b);
        }
        let positive = signed(true, a).ok()?;
        return Some(arithmetic(Op::Pow, &positive, b)?.and_then(|power| signed(true, &power)));
    }
    if let (Value::Int(a), Value::Int(b)) = (a, b) {
        let fast = match op {
            Op::Add => a.checked_add(*b),
            Op::Sub => a.checked_sub(*b),
            Op::Mul => a.checked_mul(*b),
            _ => None,
        };
        if let Some(n) = fast {
            return Some(Ok(Value::Int(n)));
        }
    }
    match (a, b) {
        (Value::Float(_), Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_))
        | (Value::Bool(_) | Value::Int(_) | Value::Big(_), Value::Float(_)) => Some(floats(op, a, b)),
        _ => Some(ints(op, &a.as_int()?, &b.as_int()?)),
    }
}

fn ints(op: Op, a: &BigInt, b: &BigInt) -> Res<Value> {
    let zero = || raise("ZeroDivisionError: division by zero");
    if a.bits().max(b.bits()) > MAX_BITS || op == Op::Mul && a.bits() + b.bits() > MAX_BITS {
        return Err(Fault::limit("the template makes a number of too many digits"));
    }
    Ok(Value::int(match op {
        Op::Add => a + b,
        Op::Sub => a - b,
        Op::Mul => a * b,
        Op::Div | Op::FloorDiv | Op::Mod if b.is_zero() => return zero(),
        Op::Div => return quotient(a, b).map(Value::Float),
        Op::FloorDiv => floor_div(a, b),
        Op::Mod => a - floor_div(a, b) * b,
        Op::Pow if b.is_negative() && a.is_zero() => return zero(),
        Op::Pow if b.is_negative() => return floats(op, &Value::Float(to_float(a)?), &Value::Float(to_float(b)?)),
        Op::Pow | Op::ConstPow => match b.to_u64() {
            Some(n) if a.bits() <= 1 || (a.bits() - 1).saturating_mul(n) <= MAX_BITS => power(a, b, n),
            _ if a.bits() <= 1 => power(a, b, 2 + u64::from(b.bit(0))),
            _ => return Err(Fault::limit("the template makes a number of too many digits")),
        },
    }))
}

fn power(a: &BigInt, b: &BigInt, n: u64) -> BigInt {
    // 0, 1 and -1 know only whether the exponent is zero or odd.
    let n = if a.bits() <= 1 && n > 3 { 2 + u64::from(b.bit(0)) } else { n };
    Pow::pow(a, n)
}

fn floor_div(a: &BigInt, b: &BigInt) -> BigInt {
    let (quotient, rest) = (a / b, a % b);
    if !rest.is_zero() && rest.is_negative() != b.is_negative() { quotient - 1 } else { quotient }
}

/// The nearest float to `a / b`.
fn quotient(a: &BigInt, b: &BigInt) -> Res<f64> {
    const EXACT: u64 = 53;
    if a.bits() <= EXACT && b.bits() <= EXACT {
        return Ok(to_float(a)? / to_float(b)?);
    }
    // As many quotient bits as a float keeps and more, and one that says whether something is left.
    let shift = 70 + b.bits() as i64 - a.bits() as i64;
    let (up, down) = if shift > 0 { (a.abs() << shift, b.abs()) } else { (a.abs(), b.abs() << -shift) };
    let whole = &up / &down;
    let sticky = BigInt::from(u8::from(!(up % down).is_zero()));
    let near = to_float(&((whole << 1) + sticky))?;
    let exponent = i32::try_from(-shift - 1).unwrap_or(i32::MIN);
    let size = near * 2f64.powi(exponent.clamp(-1000, 1000)) * 2f64.powi((exponent + 1000).min(0));
    if !size.is_finite() {
        return raise("OverflowError: integer division result too large for a float");
    }
    if size < 1e-290 && !a.is_zero() {
        return Err(Fault::refused("the quotient of integers of such different sizes"));
    }
    Ok(if a.is_negative() != b.is_negative() { -size } else { size })
}

/// `float(n)` of an int.
pub fn to_float(n: &BigInt) -> Res<f64> {
    match n.to_f64() {
        Some(x) if x.is_finite() => Ok(x),
        _ => raise("OverflowError: int too large to convert to float"),
    }
}

/// `float(value)` of a number.
pub fn as_float(value: &Value) -> Option<Res<f64>> {
    match value {
        Value::Float(x) => Some(Ok(*x)),
        Value::Int(n) => Some(Ok(*n as f64)),
        _ => value.as_int().map(|n| to_float(&n)),
    }
}

fn floats(op: Op, a: &Value, b: &Value) -> Res<Value> {
    let (Some(x), Some(y)) = (as_float(a), as_float(b)) else { return raise("not a number") };
    let (x, y) = (x?, y?);
    if matches!(op, Op::Div | Op::FloorDiv | Op::Mod) && y == 0.0 {
        return raise("ZeroDivisionError: float division by zero");
    }
    let out = match op {
        Op::Add => x + y,
        Op::Sub => x - y,
        Op::Mul => x * y,
        Op::Div => x / y,
        Op::FloorDiv => div_mod(x, y).0,
        Op::Mod => div_mod(x, y).1,
        Op::Pow if x == 0.0 && y < 0.0 => return raise("ZeroDivisionError: 0.0 cannot be raised to a negative power"),
        Op::Pow if x < 0.0 && y.is_finite() && y.fract() != 0.0 => return Err(Fault::refused("a complex number")),
        Op::Pow | Op::ConstPow => x.powf(y),
    };
    if !out.is_finite() && x.is_finite() && y.is_finite() {
        // Python raises for a power; else Jinja2 may fold it into source that Python cannot read.
        return match op {
            Op::Pow => raise("OverflowError: Numerical result out of range"),
            _ => Err(Fault::refused("a float beyond the greatest")),
        };
    }
    finite_or_infinite(out)
}

/// A float that is a number. NaN is refused: containers and sorting treat it by identity.
pub fn finite_or_infinite(x: f64) -> Res<Value> {
    if x.is_nan() { Err(Fault::refused("NaN")) } else { Ok(Value::Float(x)) }
}

/// `divmod` of floats, as CPython computes it.
fn div_mod(x: f64, y: f64) -> (f64, f64) {
    let mut rest = x % y;
    let mut div = (x - rest) / y;
    if rest != 0.0 {
        if (y < 0.0) != (rest < 0.0) {
            rest += y;
            div -= 1.0;
        }
    } else {
        rest = 0f64.copysign(y);
    }
    if div == 0.0 {
        return (0f64.copysign(x / y), rest);
    }
    let floor = div.floor();
    (if div - floor > 0.5 { floor + 1.0 } else { floor }, rest)
}

/// `-value` and `+value`.
pub fn signed(minus: bool, value: &Value) -> Res<Value> {
    match value {
        Value::Float(x) => Ok(Value::Float(if minus { -x } else { *x })),
        Value::Undefined(what) => raise(&**what),
        _ => match value.as_int() {
            Some(n) => Ok(Value::int(if minus { -n } else { n })),
            None => raise(format!(
                "TypeError: bad operand type for unary {}: '{}'",
                if minus { '-' } else { '+' },
                value.type_name()
            )),
        },
    }
}
