//! A folder to pack in, and what packing made of it.

use super::tiny_model;
use fusedpo::data::pack::{PackOptions, PackReport, pack};
use fusedpo::data::shard::{Dataset, Split};
use fusedpo::data::text::{TextTokenizer, TokenizerOptions};
use std::path::{Path, PathBuf};

/// A fresh folder with the tiny model in it.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub model: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(dir.path(), false);
        Self { dir, model }
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn options(&self, name: &str, bytes: impl AsRef<[u8]>) -> PackOptions {
        PackOptions::new(&self.model, vec![self.write(name, bytes)], self.dir.path().join("out"))
    }

    /// What the shards say, one line a response: prompt>response, score, label; then the pairs.
    pub fn contents(&self, out: &Path, split: Split) -> Vec<String> {
        let tok = TextTokenizer::load(&self.model, &TokenizerOptions::default()).unwrap();
        let data = Dataset::open(out, split).unwrap();
        data.verify().unwrap();
        let mut lines = Vec::new();
        for g in (0..data.num_groups()).map(|id| data.group(id)) {
            let text = |ids: Vec<u32>| tok.decode(&ids, false).unwrap();
            for r in g.responses() {
                let score = r.score.map_or(String::new(), |s| format!(" score {s}"));
                let label = r.label.map_or(String::new(), |l| format!(" label {l}"));
                lines.push(format!(
                    "{}.{} {}>{}{score}{label}",
                    r.row,
                    r.index,
                    text(g.prompt().to_vec()),
                    text(r.tokens.to_vec())
                ));
            }
            lines.extend(g.pairs().map(|p| format!("pair {}>{} {}", p.chosen, p.rejected, p.weight)));
        }
        lines
    }
}

pub fn run(o: &PackOptions) -> PackReport {
    pack(o, &mut |_| Ok(())).unwrap()
}

pub fn check_rows(name: &str, bytes: impl AsRef<[u8]>, want: &[&str]) -> PackReport {
    let place = Place::new();
    let o = place.options(name, bytes);
    let report = run(&o);
    assert_eq!(place.contents(&o.out, Split::Train), want, "{name}");
    report
}

/// A Parquet file with string columns `prompt` and `completion` and a list column `tags` that is ignored.
pub fn parquet(rows: &[(&str, &str)]) -> Vec<u8> {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    let schema = "message rows { REQUIRED BINARY prompt (STRING); OPTIONAL BINARY completion (STRING);
        OPTIONAL GROUP tags (LIST) { REPEATED GROUP list { OPTIONAL BINARY element (STRING); } } }";
    let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Default::default()).unwrap();
    let mut group = file.next_row_group().unwrap();
    let texts = |get: fn(&(&str, &str)) -> String| {
        rows.iter().map(|r| ByteArray::from(get(r).into_bytes())).collect::<Vec<_>>()
    };
    let n = rows.len();
    let tags: Vec<ByteArray> = (0..2 * n).map(|i| ByteArray::from(format!("t{i}").into_bytes())).collect();
    let columns = [
        (texts(|r| r.0.to_owned()), None, None),
        (texts(|r| r.1.to_owned()), Some(vec![1; n]), None),
        (tags, Some(vec![3; 2 * n]), Some([0, 1].repeat(n))),
    ];
    for (values, def, rep) in columns {
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, def.as_deref(), rep.as_deref()).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    file.close().unwrap();
    bytes
}
