//! A converter: preference pairs from a format of one's own, here a line `prompt TAB chosen TAB rejected`, into a shard.
//!
//! `cargo run --release --example write_shard [MODEL PAIRS.tsv FOLDER]` writes FOLDER/train-00000.pref, which `fusedpo dpo
//! --model MODEL --data FOLDER` reads; without arguments, pairs of its own become a shard in a folder that goes again.
//!
//! `fusedpo pack` does this for JSONL and Parquet. A converter of its own is for data that lie elsewhere, or come tokenised.

mod tiny;

use fusedpo::data::shard::format::Meta;
use fusedpo::data::shard::{Dataset, NewGroup, NewPair, NewResponse, ShardSummary, ShardWriter, Split};
use fusedpo::data::text::{TextTokenizer, TokenizerOptions};
use fusedpo::files::scratch_folder;
use fusedpo::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    tiny::exit("write_shard", run(&arguments))
}

fn run(arguments: &[PathBuf]) -> Result<()> {
    let folder = scratch_folder()?;
    let [model, rows, out] = match arguments {
        [] => {
            let own = ["model", "pairs.tsv", "shards"].map(|name| folder.path().join(name));
            tiny::write_model(&own[0])?;
            fusedpo::files::write(&own[1], tiny::PAIRS.as_bytes())?;
            own
        }
        [model, rows, out] => [model, rows, out].map(PathBuf::clone),
        _ => return Err(Error::usage("give a model directory, a file of pairs and a folder, or nothing")),
    };
    std::fs::create_dir_all(&out).map_err(Error::io(&out, "create"))?;
    let written = convert(&model, &rows, &out.join("train-00000.pref"))?;
    println!(
        "{}: {} pairs, {} tokens, {} bytes",
        written.path.file_name().unwrap_or_default().display(),
        written.pairs,
        written.tokens,
        written.bytes
    );

    // What any reader does before it trusts a shard: every checksum, record and token.
    let data = Dataset::open(&out, Split::Train)?;
    data.verify()?;
    let group = data.group(0);
    let [prompt, chosen] = [group.prompt().to_vec(), group.response(0).tokens.to_vec()];
    println!("verified; the first prompt is {prompt:?}, its chosen response {chosen:?}");
    Ok(())
}

/// Writes the pairs of `rows` to the shard `out`; the file appears whole or not at all.
fn convert(model: &Path, rows: &Path, out: &Path) -> Result<ShardSummary> {
    let tokenizer = TextTokenizer::load(model, &TokenizerOptions::default())?;
    let eos = tokenizer.eos.as_ref().ok_or_else(|| Error::file(model, "the tokenizer names no EOS token"))?.id;
    let meta = Meta {
        vocab_size: tokenizer.vocab_size,
        eos_id: Some(eos),
        bos_rule: 0,
        // A run refuses a model whose tokenizer.json has another hash.
        tokenizer_sha256: tokenizer.sha256,
        template_sha256: [0; 32],
        max_length: 0,
        truncation: 0,
        boundary: 0,
    };
    let mut shard = ShardWriter::create(out, &meta)?;
    let text = std::fs::read_to_string(rows).map_err(Error::io(rows, "read"))?;
    for (row, line) in text.lines().enumerate() {
        let columns: Vec<&str> = line.split('\t').collect();
        let [prompt, chosen, rejected] = columns[..] else {
            return Err(Error::file(
                rows,
                format!("line {}: expected three columns, found {}", row + 1, columns.len()),
            ));
        };
        // The prompt begins as text does under this tokenizer (BOS), and a response ends with EOS.
        let prompt = [tokenizer.prefix().to_vec(), tokenizer.encode_bare(prompt)?].concat();
        let mut responses = Vec::new();
        for text in [chosen, rejected] {
            let mut tokens = tokenizer.encode_bare(text)?;
            tokens.push(eos);
            responses.push(tokens);
        }
        let response = |i: usize| NewResponse {
            tokens: &responses[i],
            score: None,
            label: None,
            row: row as u64,
            index: i as u32,
        };
        shard.push(&NewGroup {
            prompt: &prompt,
            responses: vec![response(0), response(1)],
            pairs: vec![NewPair { chosen: 0, rejected: 1, weight: 1.0 }],
        })?;
    }
    shard.finish()
}
