//! `quantization_config`: NF4 of bitsandbytes, as transformers writes it. Every other kind is refused by name.

use crate::error::Result;
use crate::model::json::{Fields, short};
use crate::model::quantized::{Quantized, Skipped};
use serde_json::Value;

/// How the weights are stored. Fields that are left out have transformers' defaults.
pub(super) fn of(f: &Fields) -> Result<(Option<Quantized>, Skipped)> {
    const NAME: &str = "quantization_config";
    let Some(map) = f.object(NAME)? else { return Ok((None, Skipped::default())) };
    let q = f.inside(NAME, map);
    let either = |name: &str, private: &str| Ok(q.flag(name)? || q.flag(private)?);
    let four = either("load_in_4bit", "_load_in_4bit")?;
    let eight = either("load_in_8bit", "_load_in_8bit")?;
    let said = |name: &str| q.get(name).map(|v| v.as_str().map_or_else(|| short(v), str::to_owned));
    let method = said("quant_method").or((four || eight).then(|| "bitsandbytes".into()));
    match method.as_deref() {
        Some("bitsandbytes") => {}
        other => {
            let other = other.unwrap_or("not given");
            return Err(q.bad(format!(
                "`quant_method` is {other}: bitsandbytes with NF4 alone is supported; use the f32, f16 or bf16 model, and `options.quantize`"
            )));
        }
    }
    if eight {
        return Err(
            q.bad("`load_in_8bit`: weights in 8 bits (llm_int8) are not supported; use the f32, f16 or bf16 model")
        );
    }
    if !four {
        return Err(q.bad("`load_in_4bit` and `load_in_8bit` are not true, so that nothing is quantized; leave it out"));
    }
    let only = |name: &str, default: &str, wanted: &str| match said(name).unwrap_or(default.into()) {
        value if value == wanted => Ok(()),
        value => Err(q.bad(format!("`{name}` {value} is not supported; supported: {wanted}"))),
    };
    only("bnb_4bit_quant_type", "fp4", "nf4")?;
    only("bnb_4bit_quant_storage", "uint8", "uint8")?;
    let skip = "llm_int8_skip_modules";
    let not_names =
        || q.bad(format!("`{skip}` is {}, expected names of modules", short(q.get(skip).unwrap_or(&Value::Null))));
    let keys: Option<Vec<&str>> = match q.get(skip) {
        // The head alone, which is never in four bits here.
        None => Some(Vec::new()),
        Some(names) => names.as_array().and_then(|names| names.iter().map(Value::as_str).collect()),
    };
    let skipped = Skipped::new(keys.ok_or_else(not_names)?);
    let skipped = skipped.map_err(|why| q.bad(format!("`{skip}` has {why}")))?;
    Ok((Some(Quantized { double: q.flag("bnb_4bit_use_double_quant")? }), skipped))
}

/// What transformers writes of them.
pub(crate) fn json(quantized: Quantized) -> Value {
    serde_json::json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": quantized.double,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    })
}
