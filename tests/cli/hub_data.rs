//! Data sets of the hub's.

use crate::cli_common::pairs;
use crate::hub::{Place, paths};
use crate::hub_server::{COMMIT, OTHER};

#[test]
fn data_sets() {
    let p = Place::new();
    let parquet = |name: &str| std::fs::read(format!("{}/tests/formats/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let converted = "refs/convert/parquet";
    let lines = |from: usize| -> Vec<u8> {
        pairs(12)[from..from + 6].iter().map(|r| format!("{r}\n")).collect::<String>().into_bytes()
    };
    // Contents that are the same would come once.
    let tables = ["zstd", "gzip", "lz4", "snappy"].map(|codec| parquet(&format!("pyarrow-{codec}-1.parquet")));
    let names = ["default/test/0000", "default/train/0000", "default/train/0001", "more/partial-train/0000"];
    let names = names.map(|name| format!("{name}.parquet"));
    p.hub.put("datasets/org/rows", converted, OTHER, names.into_iter().zip(tables));
    let own = [("data/a.jsonl", lines(0)), ("data/b.jsonl", lines(6)), ("README.md", b"x".to_vec())];
    p.hub.put("datasets/org/rows", "main", COMMIT, own.clone().map(|(name, bytes)| (name.to_owned(), bytes)));
    p.hub.put("datasets/org/own", "main", COMMIT, own.map(|(name, bytes)| (name.to_owned(), bytes)));
    let pack = |input: &str, out: &str| format!("pack --tokenizer org/llama --input {input} --out {out}");

    // Files of its own: a pattern, a folder, one file; the same bytes as of files that are here.
    p.cli.write("rows.jsonl", [lines(0), lines(6)].concat());
    p.cli.ok("pack --tokenizer m --input rows.jsonl --out want");
    let want = p.cli.bytes("want/train-00000.pref");
    for (i, input) in ["hf://datasets/org/own@main/data/*.jsonl", "hf://datasets/org/own@main/data", "org/own@main"]
        .iter()
        .enumerate()
    {
        p.ok(&pack(input, &format!("own{i}")));
        assert_eq!(p.cli.bytes(&format!("own{i}/train-00000.pref")), want);
    }
    p.ok(&pack("hf://datasets/org/own/data/a.jsonl hf://datasets/org/own/data/b.jsonl", "two"));
    assert_eq!(p.cli.bytes("two/train-00000.pref"), want);
    assert!(p.files().iter().all(|f| !f.contains("README") && !f.contains("safetensors")), "{:?}", p.files());
    p.ok("generate --model m --max-new-tokens 1 --input hf://datasets/org/own/data/a.jsonl");

    // What the hub converted: `train` where nobody chose.
    p.hub.asked();
    let contents = |p: &Place| -> Vec<String> {
        let asked = p.hub.asked();
        let names =
            paths(&asked).into_iter().filter_map(|a| Some(a.split_once("/resolve/")?.1.split_once('/')?.1.to_owned()));
        names.filter(|n| n.ends_with(".parquet")).collect()
    };
    let run = |input: &str| {
        let _ = std::fs::remove_dir_all(p.cli.path("hf/hub/datasets--org--rows"));
        let ran = p.run(&format!("{} --on-bad-row drop", pack(input, "d")), &[]);
        (ran, contents(&p))
    };
    let train = ["default/train/0000.parquet", "default/train/0001.parquet"];
    let (ran, asked) = run("org/rows");
    assert_eq!(asked, train, "{ran:?}");
    let said = format!("hf://datasets/org/rows@{OTHER}: default/train is taken, of 2 configurations and 2 splits");
    assert!(ran.err.contains(&said), "{ran:?}");
    for (input, want) in [
        ("hf://datasets/org/rows/default/test", &["default/test/0000.parquet"][..]),
        ("hf://datasets/org/rows/test", &["default/test/0000.parquet"]),
        ("hf://datasets/org/rows/default", &train),
        ("hf://datasets/org/rows@~parquet/more/partial-train", &["more/partial-train/0000.parquet"]),
        (&format!("hf://datasets/org/rows@{OTHER}/default/train"), &train),
    ] {
        let (ran, asked) = run(input);
        assert_eq!(asked, want, "{input}: {ran:?}");
    }
    let of = format!("hf://datasets/org/rows@{converted}");
    for (input, code, want) in [
        ("hf://datasets/org/rows/none/train", 2, format!("{of}: has no configuration `none`: it has default, more")),
        ("hf://datasets/org/rows/default/none", 2, format!("{of}: `default` has no split `none`: it has test, train")),
        (
            "hf://datasets/org/rows/more/train",
            2,
            format!(
                "{of}: `more` has no split `train`: it has partial-train; partial-train is the beginning of it, as the hub converts no \
                 more: name that, or the data set's own files"
            ),
        ),
        ("hf://datasets/org/rows/more", 2, format!("{of}: has the splits partial-train: name one, as in .../more/partial-train")),
        (
            "org/own",
            2,
            "hf://datasets/org/own: the hub made no Parquet files of it; name files of its own, such as \
             hf://datasets/org/own@main/data/a.jsonl: it has data/a.jsonl, data/b.jsonl"
                .into(),
        ),
        (
            "hf://datasets/org/own@main/none.csv",
            2,
            "hf://datasets/org/own@main: has no rows `none.csv`, as a file, a folder or a pattern: it has data/a.jsonl, data/b.jsonl"
                .into(),
        ),
        (
            "org/none",
            2,
            format!(
                "{}: is no data set that 127.0.0.1 knows, and no path that is here; check the name, or it is private: then set HF_TOKEN",
                "hf://datasets/org/none@refs/convert/parquet"
            ),
        ),
        ("rows.jsonl.gz", 2, "rows.jsonl.gz: cannot open: No such file or directory (os error 2)".into()),
    ] {
        p.bad(&pack(input, "x"), &[], code, &want);
    }
}
