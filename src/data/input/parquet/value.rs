//! What a column's values are as JSON. Dates and times are their text, as Python writes them.

use super::room::{Room, Trouble};
use crate::data::input::calendar;
use parquet::basic::{ConvertedType, LogicalType, TimeUnit, Type as Physical};
use parquet::schema::types::ColumnDescriptor;
use serde_json::{Number, Value};

/// A value as it is stored.
pub enum Raw<'a> {
    Bool(bool),
    Int(i64),
    Int96(&'a [u32]),
    Float(f64),
    Bytes(&'a [u8]),
}

/// What a column's values mean.
#[derive(Debug, PartialEq)]
pub enum Kind {
    Plain,
    /// Unsigned, of so many bits.
    Unsigned(u32),
    /// Strings by the schema, or binary data, which may be strings.
    Text,
    Decimal(i32),
    Date,
    /// Since midnight, so many a second.
    Time(i64),
    /// Since 1970, so many a second; whether it is in UTC.
    Timestamp(i64, bool),
    Half,
    Uuid,
    /// None that JSON has: a noun.
    Strange(&'static str),
}

impl Kind {
    /// Of a column.
    pub fn of(column: &ColumnDescriptor) -> Self {
        let per_second = |unit: &TimeUnit| match unit {
            TimeUnit::MILLIS => 1_000,
            TimeUnit::MICROS => 1_000_000,
            TimeUnit::NANOS => 1_000_000_000,
        };
        let physical = column.physical_type();
        match column.logical_type_ref() {
            Some(LogicalType::String | LogicalType::Enum | LogicalType::Json) => return Self::Text,
            Some(LogicalType::Decimal(_)) => return Self::Decimal(column.type_scale()),
            Some(LogicalType::Date) => return Self::Date,
            Some(LogicalType::Time(t)) => return Self::Time(per_second(&t.unit)),
            Some(LogicalType::Timestamp(t)) => return Self::Timestamp(per_second(&t.unit), t.is_adjusted_to_u_t_c),
            Some(LogicalType::Integer(i)) if !i.is_signed => return Self::Unsigned(i.bit_width as u32),
            Some(LogicalType::Uuid) => return Self::Uuid,
            Some(LogicalType::Float16) => return Self::Half,
            Some(LogicalType::Bson) => return Self::Strange("BSON"),
            Some(LogicalType::Variant(_)) => return Self::Strange("a variant"),
            Some(LogicalType::Geometry(_) | LogicalType::Geography(_)) => return Self::Strange("a geometry"),
            _ => {}
        }
        match column.converted_type() {
            ConvertedType::DECIMAL => Self::Decimal(column.type_scale()),
            ConvertedType::DATE => Self::Date,
            ConvertedType::TIME_MILLIS => Self::Time(1_000),
            ConvertedType::TIME_MICROS => Self::Time(1_000_000),
            ConvertedType::TIMESTAMP_MILLIS => Self::Timestamp(1_000, true),
            ConvertedType::TIMESTAMP_MICROS => Self::Timestamp(1_000_000, true),
            ConvertedType::UINT_8 => Self::Unsigned(8),
            ConvertedType::UINT_16 => Self::Unsigned(16),
            ConvertedType::UINT_32 => Self::Unsigned(32),
            ConvertedType::UINT_64 => Self::Unsigned(64),
            ConvertedType::INTERVAL => Self::Strange("an interval"),
            ConvertedType::BSON => Self::Strange("BSON"),
            _ if matches!(physical, Physical::BYTE_ARRAY | Physical::FIXED_LEN_BYTE_ARRAY) => Self::Text,
            _ => Self::Plain,
        }
    }
}

/// The JSON value of `raw`.
pub fn json(kind: &Kind, raw: Raw<'_>, room: &mut Room) -> Result<Value, Trouble> {
    let strange = |what: &str| Trouble::Strange(what.to_owned());
    let text = |text: Option<String>, what: &str| text.map(Value::String).ok_or_else(|| strange(what));
    match (kind, raw) {
        (Kind::Strange(what), _) => Err(strange(what)),
        (Kind::Plain, Raw::Bool(x)) => Ok(x.into()),
        (Kind::Plain, Raw::Int(x)) => Ok(x.into()),
        (Kind::Plain, Raw::Float(x)) => float(x),
        (Kind::Unsigned(bits), Raw::Int(x)) => Ok((x as u64 & (u64::MAX >> (64 - bits.clamp(&1, &64)))).into()),
        (Kind::Text, Raw::Bytes(bytes)) => {
            room.take(bytes.len())?;
            match std::str::from_utf8(bytes) {
                Ok(text) => Ok(text.into()),
                Err(_) => Err(strange("binary data that is not UTF-8")),
            }
        }
        (Kind::Decimal(scale), Raw::Int(x)) => Ok(decimal(i128::from(x), *scale)),
        (Kind::Decimal(scale), Raw::Bytes(bytes)) => match big_endian(bytes) {
            Some(x) => Ok(decimal(x, *scale)),
            None => Err(strange("a decimal number of more than 38 digits")),
        },
        (Kind::Date, Raw::Int(days)) => text(calendar::date(days), "a date beyond the calendar"),
        (Kind::Time(per), Raw::Int(x)) => text(calendar::time(x, *per), "a time beyond the day"),
        (Kind::Timestamp(per, utc), Raw::Int(x)) => {
            text(calendar::timestamp(x, *per, if *utc { "+00:00" } else { "" }), "a time beyond the calendar")
        }
        (_, Raw::Int96([low, high, day])) => {
            // Nanoseconds of the day, and the Julian day.
            let (nanos, days) = (u64::from(*high) << 32 | u64::from(*low), i64::from(*day) - 2_440_588);
            let date = calendar::date(days);
            let time = i64::try_from(nanos).ok().and_then(|n| calendar::time(n, 1_000_000_000));
            text(date.zip(time).map(|(date, time)| format!("{date} {time}")), "a time beyond the calendar")
        }
        (Kind::Half, Raw::Bytes([low, high])) => float(half::f16::from_le_bytes([*low, *high]).into()),
        (Kind::Uuid, Raw::Bytes(bytes)) if bytes.len() == 16 => {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            let part = |from, to| &hex[from..to];
            let parts = [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)];
            Ok(parts.join("-").into())
        }
        _ => Err(strange("a value of an unknown type")),
    }
}

/// The JSON value of a floating-point number.
pub fn float(x: f64) -> Result<Value, Trouble> {
    let what = if x.is_nan() { "NaN" } else { "an infinite number" };
    Number::from_f64(x).map(Value::Number).ok_or_else(|| Trouble::Strange(what.to_owned()))
}

/// A two's complement number, the highest byte first.
fn big_endian(bytes: &[u8]) -> Option<i128> {
    let (head, tail) = bytes.split_at(bytes.len().saturating_sub(16));
    let sign = if bytes.first().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
    let mut out = [sign; 16];
    out[16 - tail.len()..].copy_from_slice(tail);
    let x = i128::from_be_bytes(out);
    (head.iter().all(|b| *b == sign) && (x < 0) == (sign != 0)).then_some(x)
}

/// `x` over ten to the `scale`: a whole number as one, another as the nearest that floating point has.
pub fn decimal(x: i128, scale: i32) -> Value {
    let whole = (scale <= 0).then(|| 10i128.checked_pow(scale.unsigned_abs())?.checked_mul(x)).flatten();
    match whole.map(i64::try_from) {
        Some(Ok(x)) => x.into(),
        _ => format!("{x}e{}", -i64::from(scale)).parse::<f64>().ok().and_then(Number::from_f64).into(),
    }
}
