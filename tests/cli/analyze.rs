//! `fusedpo analyze`: planted faults are found, its list is what `pack --exclude` takes, and what it refuses.

use crate::cli_common;

use cli_common::*;
use serde_json::{Value, json};

/// Pairs of two kinds of response, of which `flipped` rows have it the wrong way round: what the model learns from the others tells
/// them apart.
fn planted(flipped: &[usize]) -> Vec<Value> {
    let row = |i: usize| {
        let (good, bad) = (format!(" w10 w11{}", words(i, 1)), format!(" w20 w21{}", words(i + 7, 2)));
        let (chosen, rejected) = if flipped.contains(&i) { (bad, good) } else { (good, bad) };
        let (prompt, source) = (format!("w{}{}", 3 + i % 94, words(i + 1, 2)), ["a", "b"][i % 2]);
        json!({"prompt": prompt, "chosen": chosen, "rejected": rejected, "source": source})
    };
    (0..90).map(row).collect()
}

fn cli(flipped: &[usize]) -> Cli {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &planted(flipped));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    cli.ok("dpo --model m --data d --out r --num-train-epochs 2 --batch-size 8 --learning-rate 3e-3 --device cpu");
    cli
}

#[test]
fn planted_flips_are_named_and_left_out() {
    let at = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as usize % 30;
    let flipped = [at, at + 30, at + 60];
    let cli = cli(&flipped);
    let found =
        cli.ok("analyze r --epoch 0 --json --exclude-out list.jsonl --by source --input rows.jsonl --show 3").json();
    let rows: Vec<u64> = cli.json_lines("list.jsonl").iter().map(|l| l["row"].as_u64().unwrap()).collect();
    // Whichever the run saw early it could not know yet.
    assert!(
        !rows.is_empty() && rows.iter().all(|row| flipped.contains(&(*row as usize))),
        "{rows:?} of {flipped:?}: {found:#}"
    );
    let left_out = rows.len();
    assert_eq!(
        (&found["epoch"], &found["all"]["pairs"], &found["flipped"]["pairs"]),
        (&json!(0), &json!(90), &json!(left_out))
    );
    let named = found["flipped"]["examples"].as_array().unwrap();
    let source = planted(&flipped);
    for e in named {
        let row = e["row"].as_u64().unwrap() as usize;
        assert!(flipped.contains(&row) && e["gain"].as_f64().unwrap() < 0.0);
        assert_eq!(e["prompt"].as_str().unwrap().trim(), source[row]["prompt"].as_str().unwrap().trim());
    }
    // Every pair is in one slice of the column.
    let slices = found["slices"].as_array().unwrap();
    assert_eq!(slices.iter().map(|s| s["part"]["pairs"].as_u64().unwrap()).collect::<Vec<_>>(), [45, 45]);
    let text = cli.ok("analyze r --by source --input rows.jsonl").out;
    assert!(text.contains("likely flipped labels") && text.contains("hardest pairs, by loss"), "{text}");
    // Left out, and nothing else.
    let report = cli.ok("pack --tokenizer m --input rows.jsonl --out e --exclude list.jsonl --json").json();
    assert_eq!(
        (&report["dropped"]["excluded"]["rows"], &report["rows_kept"]),
        (&json!(left_out), &json!(90 - left_out))
    );
}

/// Without a reference a gain is a matter of lengths: nothing is named by it.
#[test]
fn a_loss_without_a_reference_names_no_label() {
    let cli = cli(&[29, 59, 89]);
    let args = "--num-train-epochs 2 --batch-size 8 --learning-rate 3e-3 --device cpu";
    cli.ok(&format!("dpo --model m --data d --out s --loss-type simpo {args}"));
    let found = cli.ok("analyze s --json").json();
    let none = |key: &str| found[key]["pairs"] == 0;
    assert!(found["reference"] == false && none("flipped") && none("displaced") && found["judged"] == 0, "{found:#}");
    assert!(found["hardest"]["pairs"] == 90, "{found:#}");
    let text = cli.ok("analyze s").out;
    assert!(
        text.contains("reads no reference") && !text.contains("likely flipped") && !text.contains("fell"),
        "{text}"
    );
    cli.bad("analyze s --exclude-out list.jsonl", 2, "--exclude-out: the run's loss reads no reference, so which labels are likely flipped cannot be said; leave it out");
    assert!(!cli.path("list.jsonl").exists());
    cli.ok("report s --out page.html");
    assert!(!cli.text("page.html").contains("ikely flipped") && cli.text("page.html").contains("The hardest pairs"));
}

/// A ledger decides nothing: a run goes on without the one that was taken away, and begins another.
#[test]
fn a_ledger_that_was_taken_away_is_begun_again() {
    let cli = Cli::with_data();
    let args = "dpo --model m --data d --batch-size 2 --lr-scheduler-type constant --save-steps 2 --device cpu --out r";
    cli.ok(&format!("{args} --max-steps 4"));
    let whole = cli.bytes("r/ledger.bin");
    std::fs::write(cli.path("r/ledger.bin"), b"nothing").unwrap();
    let ran = cli.run(&format!("{args} --max-steps 6 --resume auto"));
    assert!(ran.code == 2 && ran.err.contains("put back what was there, or take it away"), "{ran:?}");
    assert_eq!(cli.json_lines("r/metrics.jsonl").iter().filter(|row| row.get("loss").is_some()).count(), 4);
    std::fs::remove_file(cli.path("r/ledger.bin")).unwrap();
    cli.ok(&format!("{args} --max-steps 6 --resume auto"));
    let epoch = cli.ok("analyze r --json").json();
    assert_eq!(cli.bytes("r/ledger.bin").len(), 128 + (whole.len() - 128) / 2, "two steps of four: {epoch}");
}

#[test]
fn a_list_of_other_rows_is_refused() {
    let cli = cli(&[29, 59, 89]);
    cli.ok("analyze r --epoch 0 --exclude-out list.jsonl");
    assert!(!cli.json_lines("list.jsonl").is_empty());
    cli.write_rows("others.jsonl", &pairs(90));
    let ran = cli.run("pack --tokenizer m --input others.jsonl --out e --exclude list.jsonl");
    assert!(ran.code == 2 && ran.err.contains("list.jsonl: was made of other rows"), "{ran:?}");
    cli.write_rows("few.jsonl", &planted(&[29])[..3]);
    let ran = cli.run("pack --tokenizer m --input few.jsonl --out e --exclude list.jsonl");
    assert!(ran.code == 2 && ran.err.contains("and there are 3, counted from 0"), "{ran:?}");
    for (text, want) in [("{\"row\": 1}\n", "line 1: is no row to leave out"), ("nothing\n", "line 1: is no row")] {
        cli.write("bad.jsonl", text);
        let ran = cli.run("pack --tokenizer m --input rows.jsonl --out e --exclude bad.jsonl");
        assert!(ran.code == 2 && ran.err.contains(want), "{ran:?}");
    }
    assert!(!cli.path("e").exists());
    // An analysis that names nothing leaves nothing out, and the next command goes on.
    cli.write("bad.jsonl", "\n");
    let all = cli.ok("pack --tokenizer m --input rows.jsonl --out e --exclude bad.jsonl --json").json();
    assert_eq!(
        (&all["rows_kept"], &all["notes"][0]),
        (&90.into(), &"--exclude: the list names no row, and none is left out".into()),
        "{all}"
    );
    let refuse = |args: &str, want: &str| {
        let ran = cli.run(args);
        assert!(ran.code == 2 && ran.err.contains(want), "{args}: {ran:?}");
    };
    refuse("analyze r --by source", "--by: the shards keep no columns");
    refuse("analyze r --input rows.jsonl", "--input has no effect");
    refuse("analyze r --overwrite", "--overwrite has no effect");
    refuse("analyze r --epoch 7", "has no pair of epoch 7");
    refuse("analyze r --by nothing --input rows.jsonl", "no row has a column");
    refuse("analyze r --by source --input rows.jsonl rows.jsonl", "the data were packed from 90");
    // As many rows, and in another order, or other ones.
    let others = "has other rows than the data were packed from, or in another order";
    let mut turned = cli.json_lines("rows.jsonl");
    turned.rotate_left(1);
    cli.write_rows("turned.jsonl", &turned);
    refuse("analyze r --by source --input turned.jsonl", others);
    cli.write_rows("othersource.jsonl", &planted(&[28]));
    refuse("analyze r --by source --input othersource.jsonl", others);
    // Where nothing is known of them, that is said.
    let known = cli.ok("analyze r --by source --input rows.jsonl");
    assert!(!known.err.contains("they are taken to be"), "{known:?}");
    cli.edit_json("d/report.json", |r| r["rows_sha256"] = "".into());
    let old = cli.ok("analyze r --by source --input turned.jsonl");
    assert!(old.err.contains("nothing there says which rows it was packed from; they are taken to be"), "{old:?}");
    // Columns under other names: what they were read as is not known.
    let cells =
        |r: &Value| ["prompt", "chosen", "rejected", "source"].map(|key| r[key].as_str().unwrap().to_owned()).join(",");
    let lines: Vec<String> = cli.json_lines("rows.jsonl").iter().map(cells).collect();
    cli.write("named.csv", format!("prompt,good,bad,source\n{}\n", lines.join("\n")));
    cli.ok("pack --tokenizer m --input named.csv --map chosen=good,rejected=bad --out named");
    cli.ok("dpo --model m --data named --out n --max-steps 12 --batch-size 8 --learning-rate 1e-3 --device cpu");
    let named = cli.ok("analyze n --by source --input named.csv");
    assert!(named.err.contains("they are taken to be") && named.out.contains("source"), "{named:?}");
    refuse("analyze nowhere", "is not the folder of a run");
    refuse("analyze d", "is not the folder of a run");
    refuse("analyze r --exclude-out list.jsonl", "exist");
    cli.ok("pack --tokenizer m --input others.jsonl --out other");
    refuse("analyze r --data other", "is of other data than other");
}

/// The same two responses to the same prompt, this way round and that way.
#[test]
fn contradicting_duplicates_are_shown_two_and_two() {
    let cli = Cli::new();
    let mut rows = pairs(20);
    let turned = |row: &Value| json!({"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]});
    let contrary = turned(&rows[4]);
    rows.push(contrary);
    cli.write_rows("rows.jsonl", &rows);
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    cli.ok("dpo --model m --data d --out r --batch-size 4 --learning-rate 1e-3 --device cpu");
    let found = cli.ok("analyze r --json").json();
    let both: Vec<u64> =
        found["contradicting"]["examples"].as_array().unwrap().iter().map(|e| e["row"].as_u64().unwrap()).collect();
    assert!(both == [4, 20] || both == [20, 4], "{both:?}");
    assert!(
        found["contradicting"]["examples"][0]["gain"].as_f64()
            >= found["contradicting"]["examples"][1]["gain"].as_f64()
    );
    cli.ok("dpo --model m --data d --out off --ledger off --max-steps 1 --device cpu");
    let ran = cli.run("analyze off");
    assert!(ran.code == 2 && ran.err.contains("has no ledger.bin"), "{ran:?}");
}
