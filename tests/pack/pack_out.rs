//! What `pack` writes: splits, the same bytes on any number of threads, shards, folders; and `inspect`.

use crate::pack_common;

use fusedpo::data::pack::{PackOptions, Progress, pack};
use fusedpo::data::shard::{InspectOptions, Split, inspect};
use fusedpo::error::Error;
use pack_common::place::*;
use std::collections::HashSet;

/// 300 rows over 100 prompts, some of which two rows write differently though their ids are the same.
fn many_rows() -> String {
    (0..300)
        .map(|i| format!("{{\"prompt\":\"prompt {}\",\"chosen\":\"the {i}\",\"rejected\":\"on {i}\"}}\n", i * 7 % 100))
        .collect()
}

#[test]
fn a_split_never_shares_a_prompt_and_does_not_depend_on_order() {
    let place = Place::new();
    let sides = |rows: &str, seed: u64| -> (HashSet<String>, HashSet<String>) {
        let mut o = place.options("rows.jsonl", rows);
        (o.eval_fraction, o.overwrite, o.seed) = (0.3, true, seed);
        let report = run(&o);
        assert_eq!(report.train.pairs + report.eval.pairs, 300);
        let prompts = |split| {
            place
                .contents(&o.out, split)
                .iter()
                .filter_map(|l| Some(l.split_once(' ')?.1.split_once('>')?.0.to_owned()))
                .filter(|p| p.starts_with("prompt"))
                .collect()
        };
        (prompts(Split::Train), prompts(Split::Eval))
    };
    let rows = many_rows();
    let (train, eval) = sides(&rows, 0);
    assert_eq!((train.len() + eval.len(), train.intersection(&eval).count()), (100, 0));
    assert!((15..=45).contains(&eval.len()), "{} of 100 prompts for 0.3", eval.len());
    let mut reversed: Vec<&str> = rows.lines().collect();
    reversed.reverse();
    assert_eq!(sides(&reversed.join("\n"), 0).1, eval, "the rows' order does not matter");
    assert_ne!(sides(&rows, 1).1, eval, "another seed, another split");
}

#[test]
fn the_same_bytes_on_any_number_of_threads_and_with_any_memory() {
    let place = Place::new();
    let mut bytes = Vec::new();
    for (threads, in_memory) in [(1, 1 << 20), (4, 1 << 20), (3, 100), (2, 0)] {
        let mut o = place.options("rows.jsonl", many_rows());
        (o.eval_fraction, o.memory, o.overwrite) = (0.2, in_memory, true);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&o));
        let mut files: Vec<_> = std::fs::read_dir(&o.out).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        bytes.push(files.iter().map(|f| (f.clone(), std::fs::read(f).unwrap())).collect::<Vec<_>>());
    }
    assert_eq!(bytes[0].len(), 5, "two shards, the report, the tokenizer and its configuration");
    assert!(bytes.iter().all(|b| *b == bytes[0]));
}

#[test]
fn large_data_are_split_into_shards() {
    let place = Place::new();
    let mut o = place.options("rows.jsonl", many_rows());
    run(&o);
    let one = place.contents(&o.out, Split::Train);
    (o.shard_bytes, o.overwrite) = (1000, true);
    let report = run(&o);
    assert!(report.train.shards > 3, "{} shards", report.train.shards);
    assert_eq!(place.contents(&o.out, Split::Train), one);
}

#[test]
fn an_output_folder_is_not_overwritten_by_accident() {
    let place = Place::new();
    let mut o = place.options("a.jsonl", r#"{"prompt":"p","completion":"c"}"#);
    let refused =
        |o: &PackOptions| pack(o, &mut |_| Ok(())).unwrap_err().to_string().split_once("out: ").unwrap().1.to_owned();
    std::fs::write(&o.out, "x").unwrap();
    assert_eq!(refused(&o), "exists and is not a folder; give another `options.out`");
    std::fs::remove_file(&o.out).unwrap();
    std::fs::create_dir(&o.out).unwrap();
    run(&o); // an empty folder is as good as none
    assert_eq!(
        refused(&o),
        "exists and is not empty; give another `options.out`, or `options.overwrite` to replace it"
    );
    o.overwrite = true;
    let sidecar = o.out.join("train-00000.pref.ref-0123456789abcdef");
    std::fs::write(&sidecar, "hours of work").unwrap();
    let report = run(&o);
    assert_eq!(std::fs::read_dir(&o.out).unwrap().count(), 5, "sidecars stay");
    assert_eq!(std::fs::read_to_string(sidecar).unwrap(), "hours of work");
    assert!(report.warnings.iter().any(|w| w.starts_with("1 reference sidecars of the replaced shards are kept")));
    // What lies there and is not pack's would be lost with the folder.
    for other in
        ["thesis.txt", "shards", "mine.pref", "a.pref.ref-0123456789abcdef", "train-00001.pref", "train-1.pref"]
    {
        let path = o.out.join(other);
        std::fs::create_dir(&path).unwrap();
        let want = format!(
            "holds {other}, which `options.overwrite` would remove; take it away, or give another `options.out`"
        );
        assert_eq!(refused(&o), want);
        std::fs::remove_dir(&path).unwrap();
        if other != "train-00001.pref" {
            std::fs::write(&path, "x").unwrap();
            assert_eq!(refused(&o), want);
            std::fs::remove_file(&path).unwrap();
        }
    }
    std::fs::remove_file(o.out.join("train-00000.pref")).unwrap();
    assert_eq!(
        refused(&o),
        "is not a folder of shards, `options.overwrite` leaves it alone; give another `options.out`"
    );
}

/// Whoever is told how far it is may end it, while rows are read or while shards are written; nothing is left behind.
#[test]
fn packing_ends_when_it_is_told_to() {
    let place = Place::new();
    let o = place.options("rows.jsonl", many_rows());
    let beside = || std::fs::read_dir(o.out.parent().unwrap()).unwrap().count();
    let (before, mut calls) = (beside(), Vec::new());
    for writing in [false, true] {
        let stop = |p: &Progress| match (p.written > 0) == writing {
            true => Err(Error::usage("told to")),
            false => Ok(()),
        };
        let ended = pack(&o, &mut |p| {
            calls.push(*p);
            stop(p)
        });
        assert_eq!(ended.unwrap_err().to_string(), "told to");
        assert_eq!((beside(), o.out.exists()), (before, false));
    }
    let last = calls.last().unwrap();
    assert_eq!((last.rows, last.bytes, last.written), (300, last.total_bytes, 64));
    assert!(last.tokens > 300 && calls[0].written == 0);
    run(&o);
}

#[test]
fn inspect_shows_tokens_and_refuses_another_tokenizer() {
    let place = Place::new();
    let o = place.options("a.jsonl", r#"{"prompt":"in the","chosen":" on\n","rejected":"é"}"#);
    run(&o);
    let text = inspect(&o.out, &InspectOptions { show: 1, verify: true }).unwrap();
    for part in [
        "every checksum and every token id is right",
        "group 0: prompt, 2 tokens\n    in| the\n",
        "response 0 (row 0, place 0): 4 tokens\n     |on|\\n|⟦</s>⟧\n",
        "response 1 (row 0, place 1): 3 tokens\n    ·|é|⟦</s>⟧\n",
        "pair: 0 preferred to 1\n",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    std::fs::write(
        o.out.join("tokenizer.json"),
        std::fs::read_to_string(place.model.join("tokenizer.json")).unwrap() + " ",
    )
    .unwrap();
    let error = inspect(&o.out, &InspectOptions { show: 1, verify: false }).unwrap_err().to_string();
    assert!(
        error.ends_with("is not the tokenizer of these shards; put theirs there, or remove it to see ids"),
        "{error}"
    );
    std::fs::remove_file(o.out.join("tokenizer.json")).unwrap();
    assert!(inspect(&o.out, &InspectOptions { show: 1, verify: false }).unwrap().contains("    262 261\n"));
}
