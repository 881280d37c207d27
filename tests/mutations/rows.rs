//! Damaged rows, in every shape and format.

use super::bench::{Bench, TEMPLATE, lines, shapes};
use super::shards::plan_all;
use super::{Rng, Verdict, bytes, json_value, refused};
use fusedpo::data::pack::pack;
use fusedpo::data::shard::{Dataset, InspectOptions, Split, inspect};
use std::io::Write;

/// Rows as JSONL, as one array, gzipped, or as Parquet: refused with a line, or packed into shards that hold.
pub fn input(b: &Bench, rng: &mut Rng) -> Verdict {
    // As many as there were when the pinned inputs were found: `shape` has the others.
    let mut rows = vec![b.rows[rng.below(10)].clone(), b.rows[0].clone()];
    let text = match rng.below(3) {
        0 => bytes(rng, lines(&rows).as_bytes(), 200),
        _ => {
            rows[0] = json_value(rng, &rows[0]);
            lines(&rows).into_bytes()
        }
    };
    let content = match rng.below(6) {
        0 => bytes(rng, &b.parquet, b.parquet.len()),
        1 => bytes(rng, format!("[{},{}]", rows[0], rows[1]).as_bytes(), 200),
        2 => {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gz.write_all(&text).unwrap();
            let gz = gz.finish().unwrap();
            if rng.below(2) == 0 { gz } else { bytes(rng, &gz, 20) }
        }
        _ => text,
    };
    if rng.below(8) == 0 {
        b.write("m/chat_template.jinja", bytes(rng, TEMPLATE.as_bytes(), TEMPLATE.len()));
    }
    packed(b, "rows.jsonl", &content)
}

/// Packs a file: refused without anything left, or shards that hold.
pub fn packed(b: &Bench, name: &str, content: &[u8]) -> Verdict {
    b.write(name, content);
    let _ = std::fs::remove_dir_all(b.path("out"));
    let packed = pack(&b.options(name, "out"), &mut |_| Ok(()));
    if let Err(e) = packed {
        let left = b.path("out").exists();
        return if left { Err("a refused input left a folder".into()) } else { refused(&e) };
    }
    let data = Dataset::open(&b.path("out"), Split::Train).map_err(|e| e.to_string())?;
    data.verify().map_err(|e| format!("packed, but {e}"))?;
    plan_all(&data)?;
    inspect(&b.path("out"), &InspectOptions { show: 0, verify: true }).map_err(|e| format!("packed, but {e}"))?;
    // Showing needs a decoder, which may be damaged where encoding is sound.
    match inspect(&b.path("out"), &InspectOptions { show: 9, verify: false }) {
        Err(e) => refused(&e),
        Ok(_) => Ok(true),
    }
}

/// Rows in the shapes that people bring, damaged.
pub fn shape(b: &Bench, rng: &mut Rng) -> Verdict {
    let shapes = [shapes(), b.rows[10..].to_vec()].concat();
    let mut rows = vec![rng.pick(&shapes).clone(), rng.pick(&shapes).clone()];
    if rng.below(2) == 0 {
        // Columns of two shapes in one row.
        let other = rng.pick(&shapes).clone();
        for (key, value) in other.as_object().unwrap() {
            if rng.below(2) == 0 {
                rows[0][key] = value.clone();
            }
        }
    }
    let text = match rng.below(3) {
        0 => bytes(rng, lines(&rows).as_bytes(), 300),
        _ => {
            rows[0] = json_value(rng, &rows[0]);
            lines(&rows).into_bytes()
        }
    };
    packed(b, "rows.jsonl", &text)
}

/// Tables of text, one row of them quoted, with other endings and separators.
pub fn table(b: &Bench, rng: &mut Rng) -> Verdict {
    let (name, comma) = *rng.pick(&[("rows.csv", ","), ("rows.tsv", "\t"), ("rows.csv", ";")]);
    let end = *rng.pick(&["\n", "\r\n", "\r"]);
    let rows = [
        ["prompt", "chosen", "rejected", "score"],
        ["w3 w4", "\" w5, \"\"w6\"\"\nw7\"", " w7", "1.5"],
        ["w9", "", "\u{1f600}", "nan"],
        ["[1, 2]", "{\"a\": null}", "w8", ""],
    ];
    let text: String = rows.iter().map(|r| r.join(comma) + end).collect();
    let bad = bytes(rng, text.as_bytes(), text.len());
    packed(b, name, &if rng.below(3) == 0 { compressed(&bad) } else { bad })
}

/// Parquet of nested, optional and numeric columns.
pub fn parquet(b: &Bench, rng: &mut Rng) -> Verdict {
    let good = rng.pick(&b.tables);
    packed(b, "rows.parquet", &bytes(rng, good, good.len()))
}

fn compressed(text: &[u8]) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(text).unwrap();
    gz.finish().unwrap()
}
