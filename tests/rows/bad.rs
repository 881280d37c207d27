//! Rows that cannot be used, and drops that are too many.

use super::pack_common::place::*;
use super::*;
use fusedpo::data::pack::{DropReason, OnBadRow};

#[test]
fn a_bad_row_is_counted_and_named() {
    let good = r#"{"prompt":"p","completion":"c"}"#;
    let rows = format!("{good}\n{{\"prompt\": \"p\",}}\n\n7\n{{\"nonsense\": 1}}\n{good}\n\u{feff}x\n");
    let place = Place::new();
    let mut o = place.options("rows.jsonl", rows);
    let report = run(&o);
    // Rows keep their numbers.
    assert_eq!(place.contents(&o.out, Split::Train), ["0.0 p>c</s>", "4.0 p>c</s>"]);
    let dropped = &report.dropped[&DropReason::Unusable];
    assert_eq!((report.rows_read, report.rows_kept, dropped.rows), (6, 2, 4));
    assert_eq!(dropped.first, ["rows.jsonl line 2", "rows.jsonl line 4", "rows.jsonl line 5", "rows.jsonl line 7"]);
    assert_eq!(report.unusable_rows[0], "rows.jsonl: line 2: malformed JSON at column 16: trailing comma");
    assert!(report.unusable_rows[2].starts_with("rows.jsonl: line 5: unknown row shape: found `nonsense`"));
    let printed = report.to_string();
    assert!(printed.contains("rows.jsonl: line 4: a row must be a JSON object, this one is a number\n"), "{printed}");
    assert!(printed.contains(
        "warning: 4 of 6 rows (66.7 %) are dropped: they cannot be used, the first for this: rows.jsonl: line 2"
    ));
    (o.on_bad_row, o.overwrite) = (OnBadRow::Stop, true);
    let e = pack(&o, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(e.ends_with("rows.jsonl: line 2: malformed JSON at column 16: trailing comma"), "{e}");
}

/// A file of nothing but bad rows is the wrong file; one without any left for other reasons is told of.
#[test]
fn a_file_of_bad_rows_is_refused() {
    let e = refused(&[json!({"nonsense": 1}), json!({"nonsense": 2})]);
    assert!(e.starts_with("none of its 2 rows can be used; line 1: unknown row shape: found `nonsense`"), "{e}");
    let place = Place::new();
    let mut o = place.options("good.jsonl", r#"{"prompt":"p","completion":"c"}"#);
    o.inputs.push(place.write("bad.jsonl", "{\"a\":1}\n{\"a\":1}\n"));
    let e = pack(&o, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(e.contains("bad.jsonl: none of its 2 rows can be used; line 1: "), "{e}");
    o.inputs[1] = place.write("equal.jsonl", r#"{"prompt":"p","chosen":"c","rejected":"c"}"#);
    let report = run(&o);
    assert!(report.warnings.iter().any(|w| w.ends_with("equal.jsonl is left")), "{:?}", report.warnings);
    // What is missing for rows of a kind ends the pack: it is no fault of the row.
    std::fs::write(place.model.join("tokenizer_config.json"), r#"{"eos_token":"</s>"}"#).unwrap();
    o.inputs[1] = place.write("chat.jsonl", lines(&[json!({"messages": [say("user", "q"), say("assistant", "a")]})]));
    o.overwrite = true;
    let e = pack(&o, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(
        e.ends_with("has no chat template; give one with `options.chat_template`, a file or chatml, zephyr or alpaca"),
        "{e}"
    );
}

/// One row in five may go without a word; then the warning says what would keep them.
#[test]
fn many_drops_are_a_warning() {
    let row = |n: usize| json!({"prompt": "p".repeat(n), "completion": "cc"});
    let told = |long: usize| {
        let place = Place::new();
        let rows: Vec<Value> = (0..10).map(|i| row(if i < long { 20 + i } else { 4 })).collect();
        let mut o = place.options("rows.jsonl", lines(&rows));
        o.max_length = 10;
        run(&o).warnings.into_iter().find(|w| w.contains("dropped"))
    };
    assert_eq!(told(2), None);
    assert_eq!(
        told(3).unwrap(),
        "3 of 10 rows (30.0 %) are dropped: their prompt alone fills `options.max_length` 10; `options.max_length` 25 keeps all \
         of them whole, 25 nine in ten (or see `options.truncation`)"
    );
}

/// Text and conversations in one pack are two formats.
#[test]
fn two_formats_are_a_warning() {
    let (_, report) = packed(&[
        json!({"prompt": "p", "completion": "c"}),
        json!({"messages": [say("user", "q"), say("assistant", "a")]}),
    ]);
    assert!(report.warnings.iter().any(|w| w.contains("1 rows are conversations and 1 are text as it stands")));
}

/// An element of an array that is no object is one bad row, whatever it is; what breaks the array ends the file.
#[test]
fn an_array_goes_on_behind_what_is_no_row() {
    let good = r#"{"prompt":"p","completion":"c"}"#;
    for odd in ["7", "-1.5e3", "null", "true", "NaN", r#""a \"],\\""#, r#"["]", {"a": [1]}, "\""]"#, "[]"] {
        let place = Place::new();
        let o = place.options("rows.json", format!("[{odd},\n{good}, {odd}\n,{good},{odd}]"));
        let report = run(&o);
        assert_eq!(place.contents(&o.out, Split::Train), ["1.0 p>c</s>", "3.0 p>c</s>"], "{odd}");
        assert_eq!(report.unusable_rows[1], "rows.json: line 2: an element of the array is not a JSON object", "{odd}");
    }
    for (broken, why) in [
        ("}", "line 1: an element of the array is not a JSON object"),
        ("\"a", "line 1: an element of the array is not a JSON object"),
        ("7 8", "line 1: malformed JSON: a comma or `]` must follow an element of the array"),
        ("[1", "line 2: malformed JSON: the file ends inside an object"),
    ] {
        let e = pack(&Place::new().options("rows.json", format!("[{good}, {broken}\n")), &mut |_| Ok(()))
            .unwrap_err()
            .to_string();
        assert!(e.ends_with(why), "{broken}: {e}");
    }
}
