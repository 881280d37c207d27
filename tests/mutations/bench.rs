//! Good files of every kind, to be damaged.

use super::runs::Run;
use fusedpo::backend::cpu::Cpu;
use fusedpo::data::pack::{PackOptions, pack};
use fusedpo::data::shard::{Dataset, Split};
use fusedpo::data::sidecar::{self, RefKey, Sidecars};
use serde_json::{Value, json};
use std::cell::OnceCell;
use std::path::{Path, PathBuf};

/// The good files.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub be: Cpu<f32>,
    /// Shards of both token widths.
    pub shards: [Vec<u8>; 2],
    pub sidecar: Vec<u8>,
    pub rows: Vec<Value>,
    pub parquet: Vec<u8>,
    /// Parquet of other types.
    pub tables: Vec<Vec<u8>>,
    run: OnceCell<Run>,
}

pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama")
}

pub fn key() -> RefKey {
    RefKey { model_sha256: [3; 32], fingerprint: "cpu".into() }
}

/// Rows of every shape.
pub fn rows() -> Vec<Value> {
    vec![
        json!({"prompt": "w3 w4", "chosen": " w5 w6", "rejected": " w7", "weight": 2.0}),
        json!({"prompt": "w3 w4", "chosen": " w5", "rejected": " w6 w7 w8"}),
        json!({"chosen": "\n\nHuman: w3\n\nAssistant: w4", "rejected": "\n\nHuman: w3\n\nAssistant: w5 w6"}),
        json!({"prompt": "w9", "responses": [" w3", " w4", " w5"], "scores": [1, 0.5, -2]}),
        json!({"prompt": "w10", "completion": " w11", "label": true}),
        json!({"text": "w12 w13"}),
        json!({"prompt_ids": [3, 4], "chosen_ids": [5, 6, 2], "rejected_ids": [7, 2]}),
        json!({"prompt_ids": [], "responses_ids": [[5], [6, 2]], "scores": [true, false]}),
        json!({"prompt": [{"role": "user", "content": "w3"}], "chosen": [{"role": "assistant", "content": "w4"}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "w5"}]}],
            "tools": [{"name": "f"}], "chat_template_kwargs": {"a": 1}}),
        json!({"messages": [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]}),
        json!({"conversations": [{"from": "human", "value": "w3"}, {"from": "gpt", "value": "w4"}], "system": "w5",
            "tools": "[{\"name\": \"f\"}]"}),
        json!({"conversations": [{"from": "human", "value": "w3"}], "chosen": {"from": "gpt", "value": "w4"},
            "rejected": [{"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"}]}),
        json!({"instruction": "w3", "input": "w4", "output": ["w5", "w6"], "history": [["w7", "w8"]], "system": "w9"}),
        json!({"input": {"messages": [{"role": "user", "content": "w3"}], "tools": [], "parallel_tool_calls": true},
            "preferred_output": [{"role": "assistant", "content": "w4"}],
            "non_preferred_output": [{"role": "assistant", "content": "w5"}]}),
        json!({"instruction": "w3", "generations": ["w4", "w5"], "ratings": [4, 2.5]}),
        json!({"question": "w3", "response_j": "w4", "response_k": "w5", "weight": 0.5}),
        json!({"prompt": "w3", "chosen": [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}],
            "rejected": [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w5"}]}),
    ]
}

/// Rows of other shapes.
pub fn shapes() -> Vec<Value> {
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    vec![
        json!({"conversations": [turn("system", "w9"), turn("human", "w3"), turn("gpt", "w4"), turn("human", "w5"), turn("gpt", "w6")]}),
        json!({"conversations": [turn("human", "w3")], "chosen": turn("gpt", "w4"), "rejected": turn("gpt", "w5 w6")}),
        json!({"instruction": "w3", "input": "w4", "output": "w5", "system": "w9", "history": [["w6", "w7"]]}),
        json!({"instruction": "w3", "chosen": "w4", "rejected": "w5"}),
        json!({"input": {"messages": [message("user", "w3")], "tools": [], "parallel_tool_calls": true},
            "preferred_output": [message("assistant", "w4")], "non_preferred_output": [message("assistant", "w5")]}),
        json!({"messages": [message("system", "w9"), message("user", "w3"), {"role": "assistant", "content": "w4", "weight": 0},
            message("user", "w5"), message("assistant", "w6")]}),
        json!({"system": "w9", "question": "w3", "chosen": "w4", "rejected": "w5", "score_chosen": 8.5, "score_rejected": 1}),
        json!({"prompt": "w3", "chosen": [message("user", "w3"), message("assistant", "w4")],
            "rejected": [message("user", "w3"), message("assistant", "w5")], "messages": null, "label": null}),
        json!({"prompt": "w3", "responses": ["w4", "w5", null], "scores": [1, null, 2], "metadata": {"a": [1, 2]}}),
        json!({"prompt": [message("user", "w3")], "completion": [message("assistant", "w4")], "label": false}),
        json!({"chosen": [message("user", "w3"), message("assistant", "w4")], "rejected": [message("user", "w3"),
            message("assistant", "w5")], "chosen_rating": 5, "rejected_rating": 2}),
        json!({"query": "w3", "response": "w4", "rejected_response": "w5", "history": []}),
        json!({"instruction": "w3", "generations": ["w4", "w5"], "ratings": [4.0, 1.0]}),
        json!({"context": [{"text": "w3", "role": "user"}], "text": "w12", "weight": 0.5}),
    ]
}

pub fn lines(rows: &[Value]) -> String {
    rows.iter().map(|r| format!("{r}\n")).collect()
}

/// Three columns of text.
fn parquet_file() -> Vec<u8> {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
    let schema =
        "message m { required binary prompt (UTF8); required binary chosen (UTF8); required binary rejected (UTF8); }";
    let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, schema, WriterProperties::builder().build().into()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for column in ["w3 w", " w1", " w2"] {
        let values: Vec<ByteArray> = (3..9).map(|i| format!("{column}{i}").into_bytes().into()).collect();
        let mut w = group.next_column().unwrap().unwrap();
        w.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        w.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    out
}

pub const TEMPLATE: &str = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}w3 {% endif %}";

impl Bench {
    pub fn new() -> Bench {
        // In memory where there is a place for it: every packed shard is synced to disk.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let rows = rows();
        let bench = Bench {
            dir,
            be: Cpu::<f32>::new().unwrap(),
            shards: Default::default(),
            sidecar: Vec::new(),
            rows,
            parquet: parquet_file(),
            tables: super::tables::all(),
            run: OnceCell::new(),
        };
        bench.restore_model();
        bench.write("rows.jsonl", lines(&bench.rows));
        pack(&bench.options("rows.jsonl", "good"), &mut |_| Ok(())).unwrap();
        let narrow = std::fs::read(bench.path("good/train-00000.pref")).unwrap();
        let wide = widened(&bench, &narrow);
        std::fs::create_dir(bench.path("d")).unwrap();
        bench.write("d/train-00000.pref", &narrow);
        let data = Dataset::open(&bench.path("d"), Split::Train).unwrap();
        let mut s = Sidecars::open(&data, None, &key()).unwrap();
        (0..data.num_responses() - 2).for_each(|i| s.set(i, -(i as f64) - 0.5));
        s.flush().unwrap();
        let sidecar = std::fs::read(sidecar::path(&data.shards()[0], None, &key())).unwrap();
        Bench { shards: [narrow, wide], sidecar, ..bench }
    }

    /// A run to go on with, made when it is first asked for: the model is whole then.
    pub fn run(&self) -> &Run {
        self.run.get_or_init(|| Run::new(self))
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }
    pub fn restore_model(&self) {
        let _ = std::fs::create_dir(self.path("m"));
        let _ = std::fs::remove_dir_all(self.path("m/additional_chat_templates"));
        for entry in std::fs::read_dir(self.path("m")).unwrap().flatten() {
            let _ = std::fs::remove_file(entry.path());
        }
        for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            self.write(&format!("m/{name}"), std::fs::read(golden().join(name)).unwrap());
        }
        self.write("m/chat_template.jinja", TEMPLATE);
    }
    pub fn options(&self, input: &str, out: &str) -> PackOptions {
        PackOptions::new(self.path("m"), vec![self.path(input)], self.path(out))
    }
}

/// The same shard with tokens of four bytes.
fn widened(bench: &Bench, narrow: &[u8]) -> Vec<u8> {
    use fusedpo::data::shard::{NewGroup, NewPair, NewResponse, ShardWriter};
    let path = bench.path("narrow.pref");
    std::fs::write(&path, narrow).unwrap();
    let data = Dataset::open(&path, Split::Train).unwrap();
    let meta = fusedpo::data::shard::format::Meta { vocab_size: 70_000, ..data.meta().clone() };
    let wide = bench.path("wide.pref");
    let mut w = ShardWriter::create(&wide, &meta).unwrap();
    for g in (0..data.num_groups()).map(|i| data.group(i)) {
        let (prompt, tokens) = (g.prompt().to_vec(), g.responses().map(|r| r.tokens.to_vec()).collect::<Vec<_>>());
        let one = |(r, t): (fusedpo::data::shard::Response<'_>, _)| {
            let tokens: &Vec<u32> = t;
            NewResponse { tokens, score: r.score, label: r.label, row: r.row, index: r.index }
        };
        let responses = g.responses().zip(&tokens).map(one).collect();
        let pair = |p: fusedpo::data::shard::Pair| NewPair {
            chosen: p.chosen as u32,
            rejected: p.rejected as u32,
            weight: p.weight,
        };
        w.push(&NewGroup { prompt: &prompt, responses, pairs: g.pairs().map(pair).collect() }).unwrap();
    }
    w.finish().unwrap();
    std::fs::read(wide).unwrap()
}
