//! Files that ask for more than they may: rows without end, decompression bombs, pipes.

use crate::pack_common;

use fusedpo::data::input::{Limits, Reading, open};
use fusedpo::data::pack::pack;
use pack_common::place::{Place, run};
use std::io::Write;

/// What packing `bytes` under `limits` says.
fn refused(name: &str, bytes: impl AsRef<[u8]>, limits: Limits) -> String {
    let place = Place::new();
    let mut o = place.options(name, bytes);
    o.limits = limits;
    let why = pack(&o, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(!o.out.exists(), "{name}: something is left behind");
    why.split_once(&format!("{name}: ")).unwrap_or_else(|| panic!("{why}")).1.to_owned()
}

fn gz(pieces: &[(&[u8], usize)]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for (piece, times) in pieces {
        for _ in 0..*times {
            out.write_all(piece).unwrap();
        }
    }
    out.finish().unwrap()
}

fn rows_of(bytes: u64) -> Limits {
    Limits { row_bytes: bytes, ..Limits::default() }
}

#[test]
fn a_row_may_be_as_long_as_allowed_and_no_longer() {
    let row = r#"{"prompt":"p","completion":"c"}"#;
    let n = row.len() as u64;
    let long =
        |line: u64| format!("line {line}: longer than {n} bytes; where that is meant, raise `options.max_row_bytes`");
    let longer = row.replace('c', "cc");
    for (name, head, between, tail) in [("a.jsonl", "", "\n", ""), ("a.json", "[", ",\n", "]")] {
        let place = Place::new();
        let mut o = place.options(name, format!("{head}{row}{between}{row}{tail}"));
        o.limits = rows_of(n);
        if name == "a.jsonl" {
            o.limits.row_bytes += 1; // the line's end
        }
        assert_eq!(run(&o).rows_read, 2, "{name}");
        assert_eq!(
            refused(name, format!("{head}{row}{between}{longer}{tail}"), rows_of(n)),
            long(if head.is_empty() { 1 } else { 2 })
        );
    }
    assert_eq!(refused("a.jsonl", format!("\n\n{longer}"), rows_of(n)), long(3));
    assert_eq!(
        refused("a.jsonl.gz", gz(&[(row.as_bytes(), 1), (b"\n", 1), (b" ", 1 << 20)]), rows_of(n + 1)),
        long(2).replace(&n.to_string(), &(n + 1).to_string())
    );
}

#[test]
fn a_file_that_becomes_hundreds_of_times_its_bytes_is_refused_where_it_does() {
    let (row, limits) = (br#"{"prompt":"p","completion":"c"}"#, Limits::default());
    let spaces = [b" ".repeat(1 << 20), b"\n".to_vec()].concat();
    let rows: Vec<u8> = [row.as_slice(), &spaces].concat();
    let why = refused("bomb.jsonl.gz", gz(&[(&rows, 70)]), limits);
    assert!(
        why.contains("as a decompression bomb's do; where that is meant, raise `options.max_expansion` (256)"),
        "{why}"
    );
    let line: u64 = why.strip_prefix("line ").unwrap().split(':').next().unwrap().parse().unwrap();
    assert!((60..=66).contains(&line), "{why}");
    let place = Place::new();
    let mut o = place.options("bomb.jsonl.gz", gz(&[(&rows, 70)]));
    o.limits.expansion = 2000;
    assert_eq!(run(&o).rows_read, 70);
}

/// Rows of two bytes are as much work as others, and blanks go by as slowly.
#[test]
fn rows_and_blanks_of_nothing_are_bombs_too() {
    let head: &[u8] = br#"{"prompt":"p","completion":"c"}"#;
    let (lines, list) = (b"{}\n".repeat(1 << 16), b"{},".repeat(1 << 16));
    let (blank, wide) = (b"\n".repeat(1 << 20), b" ".repeat(1 << 20));
    for (name, pieces) in [
        ("a.jsonl.gz", vec![(head, 1), (b"\n", 1), (lines.as_slice(), 16)]),
        ("a.json.gz", vec![(b"[", 1), (list.as_slice(), 16), (b"{}]", 1)]),
        ("b.jsonl.gz", vec![(head, 1), (b"\n", 1), (blank.as_slice(), 80)]),
        ("c.jsonl.gz", vec![(blank.as_slice(), 80), (head, 1)]),
        ("d.json.gz", vec![(b"[", 1), (wide.as_slice(), 80), (b"]", 1)]),
    ] {
        let why = refused(name, gz(&pieces), Limits::default());
        assert!(why.contains("as a decompression bomb's do"), "{name}: {why}");
    }
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_no_input() {
    let place = Place::new();
    let pipe = place.dir.path().join("pipe.jsonl");
    let path = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: a call with a valid string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    for (path, kind) in [(pipe.as_path(), "a pipe"), ("/dev/zero".as_ref(), "a device")] {
        let why = open(path, Reading::default()).map(|_| ()).unwrap_err().to_string();
        assert!(why.ends_with(&format!(": is {kind}, not a regular file; name a file")), "{why}");
    }
}
