//! Text files in every wrapping: CSV and TSV, gzip and zstd, JSON in one object; and files of kinds that are not accepted.

use crate::pack_common;

use fusedpo::data::input::{FieldMap, Reading, open};
use fusedpo::data::pack::pack;
use pack_common::place::{Place, check_rows};
use serde_json::{Value, json};

/// Rows of a file with their lines, or what is wrong.
fn read(name: &str, bytes: impl AsRef<[u8]>) -> Result<Vec<(u64, Value)>, String> {
    let place = Place::new();
    let path = place.write(name, bytes);
    let short = |e: fusedpo::error::Error| e.to_string().replace(&format!("{}: ", path.display()), "");
    let rows = open(&path, Reading::default()).map_err(short)?;
    rows.map(|row| {
        let row = row.map_err(short)?;
        Ok((row.place.line, Value::Object(row.fields().map_err(short)?)))
    })
    .collect()
}

fn values(name: &str, bytes: impl AsRef<[u8]>) -> Vec<Value> {
    read(name, bytes).unwrap().into_iter().map(|(_, row)| row).collect()
}

#[test]
fn a_table_is_read_as_rfc_4180_says() {
    let text = "\u{feff}prompt,chosen,rejected\r\n\"a \"\"b\"\", c\r\nd\",é,\r\n\r\n q , \"x\",y\n,,z";
    let want = [
        (2, json!({"prompt": "a \"b\", c\r\nd", "chosen": "é", "rejected": null})),
        (5, json!({"prompt": " q ", "chosen": " \"x\"", "rejected": "y"})),
        (6, json!({"prompt": null, "chosen": null, "rejected": "z"})),
    ];
    for name in ["a.csv", "A.CSV", "no-name-that-says-so"] {
        assert_eq!(read(name, text).unwrap(), want, "{name}");
        assert_eq!(read(name, format!("{text}\n")).unwrap(), want, "{name}");
    }
    let zst = zstd::stream::encode_all(text.as_bytes(), 3).unwrap();
    assert_eq!(read("a.csv.zst", &zst).unwrap(), want);
    assert_eq!(
        values("a.tsv", "prompt\tcompletion\n\"a\tb\"\tc,d\n"),
        [json!({"prompt": "a\tb", "completion": "c,d"})]
    );
    // A spreadsheet of much of Europe writes semicolons.
    assert_eq!(values("a.csv", "prompt;completion\na,b;c\n"), [json!({"prompt": "a,b", "completion": "c"})]);
    assert_eq!(values("a.csv", "prompt,completion"), [] as [Value; 0]);
    assert_eq!(values("a.csv", ""), [] as [Value; 0]);
    // pandas' index has no name.
    assert_eq!(values("a.csv", ",text\n0,t\n"), [json!({"": "0", "text": "t"})]);
    check_rows("a.csv", "prompt,chosen,rejected\nq,a,b\n", &["0.0 q>a</s>", "0.1 q>b</s>", "pair 0>1 1"]);
}

#[test]
fn cells_hold_what_their_columns_do() {
    let message = json!([{"role": "user", "content": "it's"}, {"role": "assistant", "content": "a\n"}]);
    let python = r#"[{'role': 'user', 'content': ""it's""}, {'role': 'assistant', 'content': 'a\n'}]"#;
    let text = format!(
        "messages,prompt,weight,label,scores,tools\n\"{}\",[1] not a list,1e-1,True,\"[1, 0.5]\",\n\"{python}\",\"{}\",2,0,\"(1, 2)\",\"[{{}}]\"\n",
        message.to_string().replace('"', "\"\""),
        "[{'role': 'user', 'content': 'q'}]"
    );
    let want = [
        json!({"messages": message, "prompt": "[1] not a list", "weight": 0.1, "label": true, "scores": [1, 0.5], "tools": null}),
        json!({"messages": message, "prompt": [{"role": "user", "content": "q"}], "weight": 2, "label": 0, "scores": [1, 2], "tools": [{}]}),
    ];
    assert_eq!(values("a.csv", text), want);
    for (text, why) in [
        ("text,label\n\"a\nb\",1\nt", "line 4: 1 cells in a table of 2 columns; "),
        ("text\na,b", "line 2: 2 cells in a table of 1 columns; "),
        ("text\na\n\"b\nc", "line 3: the table ends within a quoted cell; a quote (\") is open"),
        ("text,text\na,b", "line 1: two columns are named `text`; "),
    ] {
        let got = read("a.csv", text).unwrap_err();
        assert!(got.contains(why), "{got}");
    }
    // What cannot be read is wrong where it is used.
    for (text, why) in [
        ("messages\n\"[{'role': 'user'}\n {'role': 'x'}]\"", "no list in JSON ("),
        ("prompt,chosen,rejected\nq,\"[{'role': ...}]\",b", "json.dumps writes JSON"),
        ("prompt,chosen,rejected,weight\nq,a,b,much", "much"),
        ("prompt,completion,label\nq,a,maybe", "maybe"),
    ] {
        assert!(values("a.csv", text)[0].to_string().contains(why), "{text}");
        let place = Place::new();
        let got = pack(&place.options("a.csv", text), &mut |_| Ok(())).map(|report| report.rows_kept);
        // A label that is no verdict is a column of another kind.
        assert!(got.is_err() || text.contains("label"), "{text}");
    }
    let want = [json!({"text": "t", "label": "positive"}), json!({"text": "t", "label": 1})];
    assert_eq!(values("a.csv", "text,label\nt,positive\nt,1.0"), want);
    let got = read("a.csv", b"text\nok\nfianc\xe9\n").unwrap_err();
    assert!(got.starts_with("line 3: not UTF-8"), "{got}");
    let place = Place::new();
    let mut o = place.options("a.csv", "question,answer\nq,a\n");
    o.map = FieldMap::parse("prompt=question,completion=answer").unwrap();
    assert_eq!(pack(&o, &mut |_| Ok(())).unwrap().rows_kept, 1);
}

#[test]
fn json_is_never_taken_for_a_table() {
    let row = json!({"prompt": "p,chosen;x", "completion": "c"});
    for name in ["a.csv", "a.tsv", "a.jsonl", "a"] {
        assert_eq!(values(name, format!("\n{row}\n{row}\n")), [row.clone(), row.clone()], "{name}");
        assert_eq!(values(name, format!(" [{row}]")), std::slice::from_ref(&row), "{name}");
    }
    let zst = zstd::stream::encode_all(format!("{row}\n").as_bytes(), 3).unwrap();
    assert_eq!(values("a.jsonl.zst", &zst), [row]);
    assert_eq!(
        read("a.jsonl.zst", &zst[..zst.len() - 3]).unwrap_err(),
        "damaged zstd stream near line 1 (incomplete frame); fetch the file again"
    );
}

#[test]
fn a_list_in_an_object_is_its_rows() {
    let row = json!({"text": "t"});
    for text in [
        format!("{{\"data\": [{row}, {row}]}}"),
        format!("{{\n  \"data\": [\n    {{\n      \"text\": \"t\"\n    }},\n    {row}\n  ]\n}}\n"),
        format!(" {{ \"a\\\"b\" : [{row},{row}] }} \n\n"),
    ] {
        assert_eq!(values("a.json", &text), [row.clone(), row.clone()], "{text}");
    }
    assert_eq!(values("a.json", "{\"data\": []}"), [] as [Value; 0]);
    // Rows that begin with a list that nobody uses, and rows that are one that somebody does.
    let first = json!({"evals": [{"x": 1}], "text": "t"});
    assert_eq!(values("a.jsonl", format!("{first}\n{first}\n")), [first.clone(), first]);
    let only = json!({"messages": [{"role": "user", "content": "q"}]});
    assert_eq!(values("a.jsonl", format!("{only}\n")), [only]);
    assert_eq!(
        read("a.json", "{\n \"data\": [\n  {\"text\": \"t\"}\n ],\n \"version\": 1\n}").unwrap_err(),
        "line 4: more in the object beside its list `data`; take the list out: `jq -c '.[\"data\"][]'`"
    );
    for text in ["{\n  \"text\": \"t\"\n}\n", "{\"text\":\n  \"a\",\n \"b\": 1}\n{\n}"] {
        let got = read("a.json", text).unwrap_err();
        assert!(got.starts_with("line 1: "), "{got}");
    }
    assert_eq!(
        read("a.json", "\n{\n  \"text\": \"t\"\n}\n").unwrap_err(),
        "line 2: an object of several lines; JSONL has one whole object a line, and `jq -c .` writes it so"
    );
}

#[test]
fn kinds_that_are_not_accepted_are_named_with_what_to_do() {
    let at = |at: usize, what: &[u8]| [vec![b'a'; at], what.to_vec()].concat();
    for (bytes, why) in [
        (b"ARROW1\0\0".to_vec(), "is Arrow (`datasets` saves it), which is not read; give it written as Parquet by"),
        (b"\xff\xff\xff\xff\x88\x02\0\0".to_vec(), "is Arrow (`datasets` saves it)"),
        (b"\xff\xfe{\0".to_vec(), "is UTF-16; convert it to UTF-8"),
        (b"{\0\"\0".to_vec(), "is UTF-16; convert it to UTF-8"),
        (b"PK\x03\x04".to_vec(), "is a zip archive; unpack it: accepted are JSONL"),
        (b"\xfd7zXZ\0".to_vec(), "is xz-compressed; unpack it"),
        (b"BZh91AY".to_vec(), "is bzip2-compressed; unpack it"),
        (b"\x04\x22\x4d\x18".to_vec(), "is lz4-compressed"),
        (at(257, b"ustar"), "is a tar archive; unpack it"),
        (b"Obj\x01".to_vec(), "is Avro; accepted are JSONL"),
        (b"\x80\x04\x95".to_vec(), "is a Python pickle, which may run any program where it is read; "),
        (b"SQLite format 3\0".to_vec(), "is an SQLite database"),
        (
            b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
            "is a pointer of Git LFS in place of the file; fetch the file itself",
        ),
        (b"\n<!DOCTYPE html>\n".to_vec(), "is a web page in place of the file"),
        (b"PAR1aaaaaaaaaaaaPARE".to_vec(), "it is encrypted; write it without"),
    ] {
        let got = read("a.bin", &bytes).unwrap_err();
        assert!(got.contains(why), "{got}");
    }
    let place = Place::new();
    let folder = |names: &[&str]| {
        let folder = tempfile::tempdir_in(place.dir.path()).unwrap().keep();
        for name in names {
            std::fs::write(folder.join(name), "{}").unwrap();
        }
        open(&folder, Reading::default()).map(|_| ()).unwrap_err().to_string()
    };
    assert!(
        folder(&["dataset_info.json", "state.json"]).contains(
            "is what save_to_disk of `datasets` writes (Arrow), which is not read; give it written as Parquet"
        )
    );
    assert!(folder(&["dataset_dict.json"]).contains("save_to_disk"));
    assert!(folder(&["a.jsonl"]).contains("is a folder; give the files in it (accepted are"));
}
