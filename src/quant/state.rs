//! The tensor of JSON that bitsandbytes puts beside a quantised one: `NAME.quant_state.bitsandbytes__nf4`.

use super::dynamic;
use super::nf4::BLOCK;
use super::precision::Precision;
use super::tensor::{Absmax, Nf4Tensor};
use serde_json::{Map, Value};

/// What it says.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The tensor's shape.
    pub shape: Vec<usize>,
    /// What it was made of.
    pub dtype: Precision,
    /// The mean of the magnitudes, where these are quantised too.
    pub nested_offset: Option<f32>,
}

/// The JSON's bytes, as Python writes them.
pub fn text(tensor: &Nf4Tensor) -> String {
    let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
    let dtype = tensor.dtype.name();
    let mut text = format!(
        "{{\"quant_type\": \"nf4\", \"blocksize\": {BLOCK}, \"dtype\": \"{dtype}\", \"shape\": [{}]",
        shape.join(", ")
    );
    if let Absmax::Nested { offset, .. } = &tensor.absmax {
        text += &format!(
            ", \"nested_blocksize\": {}, \"nested_dtype\": \"float32\", \"nested_offset\": {}",
            dynamic::BLOCK,
            python_float((*offset).into())
        );
    }
    text + "}"
}

/// A finite number as Python prints it.
fn python_float(x: f64) -> String {
    let shortest = format!("{x:e}");
    let len = shortest.split('e').next().map_or(1, |d| d.bytes().filter(u8::is_ascii_digit).count());
    // Of two numbers of the shortest length that are as near, Python takes the even one.
    let even = format!("{x:.*e}", len - 1);
    let scientific = if even.parse() == Ok(x) { even } else { shortest };
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let after = usize::try_from(len as i32 - 1 - exponent).unwrap_or(0).max(1);
    format!("{x:.after$}")
}

/// Reads it. Errors: what it lacks, and what is not supported, by name.
pub fn parse(bytes: &[u8]) -> Result<State, String> {
    let all: Map<String, Value> = serde_json::from_slice(bytes).map_err(|e| format!("is not JSON: {e}"))?;
    let get = |name: &str| all.get(name).unwrap_or(&Value::Null);
    let want = |name: &str, wanted: Value| match get(name) == &wanted {
        true => Ok(()),
        false => Err(format!("`{name}` is {}, and {wanted} alone is supported", get(name))),
    };
    want("quant_type", "nf4".into())?;
    want("blocksize", BLOCK.into())?;
    let dtype = get("dtype").as_str().and_then(Precision::named);
    let dtype = dtype.ok_or_else(|| format!("`dtype` is {}; supported: float32, bfloat16, float16", get("dtype")))?;
    let size = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    let shape = get("shape").as_array().and_then(|all| all.iter().map(size).collect());
    let shape = shape.ok_or_else(|| format!("`shape` is {}, expected a list of sizes", get("shape")))?;
    let nested_offset = match all.contains_key("nested_offset") || all.contains_key("nested_blocksize") {
        false => None,
        true => {
            want("nested_blocksize", dynamic::BLOCK.into())?;
            want("nested_dtype", "float32".into())?;
            let offset = get("nested_offset").as_f64().map(|x| x as f32).filter(|x| x.is_finite());
            Some(offset.ok_or_else(|| format!("`nested_offset` is {}, expected a number", get("nested_offset")))?)
        }
    };
    Ok(State { shape, dtype, nested_offset })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Dynamic;

    #[test]
    fn numbers_as_python_prints_them() {
        for (x, text) in [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (2.643193006515503, "2.643193006515503"),
            (1e-4, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-1.25e-38, "-1.25e-38"),
            (1e-100, "1e-100"),
            (123.5, "123.5"),
            (-0.5, "-0.5"),
            (f64::from(0.000_122_070_32_f32), "0.00012207032705191523"),
            (9007199254740993.0, "9007199254740992.0"),
        ] {
            assert_eq!(python_float(x), text);
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let values: Vec<f32> = (0..130).map(|i| (i as f32).sin()).collect();
        for double in [None, Some(&Dynamic::new())] {
            let tensor = Nf4Tensor::quantize(&values, &[10, 13], Precision::Bf16, double).unwrap();
            let state = parse(text(&tensor).as_bytes()).unwrap();
            assert_eq!((&state.shape[..], state.dtype), (&[10, 13][..], Precision::Bf16));
            assert_eq!(state.nested_offset.is_some(), double.is_some());
        }
        for (bad, why) in [
            (r#"{"quant_type": "fp4"}"#, "`quant_type` is \"fp4\", and \"nf4\" alone is supported"),
            (r#"{"quant_type": "nf4", "blocksize": 128}"#, "`blocksize` is 128, and 64 alone is supported"),
            (r#"{"quant_type": "nf4", "blocksize": 64}"#, "`dtype` is null; supported: float32, bfloat16, float16"),
            (
                r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [-1]}"#,
                "`shape` is [-1], expected a list of sizes",
            ),
            (
                r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [1], "nested_blocksize": 64}"#,
                "`nested_blocksize` is 64, and 256 alone is supported",
            ),
        ] {
            assert_eq!(parse(bad.as_bytes()).unwrap_err(), why);
        }
    }
}
