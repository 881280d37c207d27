//! Shards: round trips, damage of every kind, and the Python twin.

use crate::shards;

use fusedpo::data::plan::{Objective, PlanOptions, Planner};
use fusedpo::data::shard::format::{
    GROUPS, GroupRecord, HEADER_LEN, Header, Meta, PAIRS, PairRecord, RESPONSES, ResponseRecord, TOKENS,
};
use fusedpo::data::shard::{Dataset, ShardWriter, Split};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use sha2::Digest;
use shards::{Own, meta, own_group, write};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_was_written_is_read(wide in any::<bool>(), groups in prop::collection::vec(own_group(3000), 0..9), cut in 0usize..9) {
        let dir = tempfile::tempdir().unwrap();
        let meta = meta(if wide { 70_000 } else { 3000 });
        let cut = cut.min(groups.len());
        write(&dir.path().join("train-00000.pref"), &meta, &groups[..cut]);
        write(&dir.path().join("train-00001.pref"), &meta, &groups[cut..]);
        let data = Dataset::open(dir.path(), Split::Train).unwrap();
        data.verify().unwrap();
        prop_assert_eq!(data.meta(), &meta);
        prop_assert_eq!(data.num_groups(), groups.len() as u64);
        let (mut responses, mut pairs, mut tokens) = (0, 0, 0);
        for (id, own) in groups.iter().enumerate() {
            let g = data.try_group(id as u64).unwrap();
            prop_assert_eq!(g.prompt().to_vec(), own.prompt.clone());
            tokens += own.prompt.len();
            for (r, (t, score, label, row, index)) in g.responses().zip(&own.responses) {
                prop_assert_eq!(r.id, responses);
                prop_assert_eq!(&r.tokens.to_vec(), t);
                prop_assert_eq!(r.tokens.iter().collect::<Vec<_>>(), t.clone());
                prop_assert_eq!((r.score, r.label, r.row, r.index), (*score, *label, *row, *index));
                prop_assert_eq!(data.response_row(r.id), Some(*row));
                responses += 1;
                tokens += t.len();
            }
            prop_assert_eq!(g.num_pairs(), own.pairs.len());
            for (p, &(c, r, w)) in g.pairs().zip(&own.pairs) {
                prop_assert_eq!((p.id, p.chosen as u32, p.rejected as u32, p.weight), (pairs, c, r, w));
                pairs += 1;
            }
        }
        prop_assert_eq!((data.num_responses(), data.num_pairs(), data.num_tokens()), (responses, pairs, tokens as u64));
    }
}

/// The first error of opening and verifying the file, on one line; `None`: it is sound.
fn fault(path: &Path) -> Option<String> {
    let e = Dataset::open(path, Split::Train).and_then(|d| d.verify()).err()?.to_string();
    assert!(e.starts_with(&path.display().to_string()) && !e.contains('\n'), "{e}");
    Some(e)
}

/// Two small groups; an odd number of 2-byte tokens, so that there is padding.
fn example() -> Vec<Own> {
    let first = Own {
        prompt: vec![5, 6, 7],
        responses: vec![(vec![8, 2], Some(1.5), None, 0, 0), (vec![9, 9, 2], None, Some(true), 0, 1)],
        pairs: vec![(0, 1, 1.0)],
    };
    let second = Own {
        prompt: vec![],
        responses: vec![(vec![11], None, None, 1, 0), (vec![12, 2], None, None, 1, 1), (vec![4], None, None, 1, 2)],
        pairs: vec![(1, 0, 0.5), (1, 2, 2.0)],
    };
    vec![first, second, Own { prompt: vec![1], responses: vec![(vec![3], None, None, 2, 0)], pairs: vec![] }]
}

fn example_file() -> (tempfile::TempDir, std::path::PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train-00000.pref");
    write(&path, &meta(100), &example());
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(fault(&path), None);
    (dir, path, bytes)
}

#[test]
fn every_flipped_byte_is_refused() {
    let (_dir, path, good) = example_file();
    for at in 0..good.len() {
        for flip in [1u8, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            std::fs::write(&path, &bad).unwrap();
            assert!(fault(&path).is_some(), "byte {at} ^ {flip:#x}");
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    let (_dir, path, good) = example_file();
    for len in 0..good.len() {
        std::fs::write(&path, &good[..len]).unwrap();
        let e = fault(&path).expect("refused");
        assert!(e.contains("not a preference shard") || e.contains("cut short"), "{len}: {e}");
    }
    std::fs::write(&path, [&good[..], &[0]].concat()).unwrap();
    assert!(fault(&path).unwrap().contains("too long"));
}

/// A copy of `good` with its header changed and, unless the change is to go unsealed, its checksums made right.
fn with_header(good: &[u8], change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut bad = good.to_vec();
    let mut h: Header = bytemuck::pod_read_unaligned(&bad[..HEADER_LEN]);
    change(&mut h);
    h.seal();
    bad[..HEADER_LEN].copy_from_slice(bytemuck::bytes_of(&h));
    bad
}

#[test]
fn each_malformed_header_field_is_named() {
    let (_dir, path, good) = example_file();
    type Change = fn(&mut Header);
    let cases: &[(Change, &str)] = &[
        (|h| h.magic[0] = 0, "not a preference shard"),
        (|h| h.version = 2, "format version 2"),
        (|h| h.header_len = 400, "header_len is 400"),
        (|h| h.token_width = 4, "token_width is 4"),
        (|h| h.token_width = 0, "token_width is 0"),
        (|h| h.vocab_size = 0, "vocab_size is 0"),
        (|h| h.vocab_size = 70_000, "token_width is 2, vocab_size 70000 asks for 4"),
        (|h| h.eos_id = 100, "eos_id 100 is not below"),
        (|h| h.num_sections = 5, "num_sections is 5"),
        (|h| h.num_groups += 1, "section groups lies"),
        (|h| h.num_groups = u64::MAX, "cannot be"),
        (|h| h.num_responses += 1, "section responses lies"),
        (|h| h.num_responses = u64::MAX, "cannot be"),
        (|h| h.num_pairs += 1, "section pairs lies"),
        (|h| h.num_pairs = u64::MAX, "overflow"),
        (|h| h.num_pairs = u64::MAX / 12, "overflow"),
        (|h| h.num_tokens -= 1, "section tokens lies"),
        (|h| h.num_tokens = u64::MAX, "overflow"),
        (|h| h.sections[0].offset += 8, "section tokens lies at 392"),
        (|h| h.sections[1].offset -= 8, "section groups lies"),
        (|h| h.sections[2].length -= 32, "section responses lies"),
        (|h| h.sections[3].offset = u64::MAX - 3, "section pairs lies"),
        (|h| h.sections[2].reserved = 1, "reserved"),
        (|h| h.reserved[26] = 1, "reserved"),
        (|h| h.sections[0].crc32 ^= 1, "section tokens is damaged"),
        (|h| h.sections[3].crc32 ^= 1, "section pairs is damaged"),
        (|h| h.content_sha256[0] ^= 1, "SHA-256"),
        (|h| h.max_length += 1, "SHA-256"),
        (|h| h.tokenizer_sha256[31] ^= 1, "SHA-256"),
    ];
    for (i, (change, want)) in cases.iter().enumerate() {
        std::fs::write(&path, with_header(&good, change)).unwrap();
        let e = fault(&path).unwrap_or_else(|| panic!("case {i}: accepted"));
        assert!(e.contains(want), "case {i}: {e}");
    }
    let mut bad = good.clone();
    bad[HEADER_LEN - 1] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    assert!(fault(&path).unwrap().contains("header is damaged"));
    let pad = HEADER_LEN + 2 * 14;
    assert_eq!((good[pad], good.len()), (0, HEADER_LEN + 32 + 3 * 40 + 6 * 32 + 3 * 12));
    bad = good.clone();
    bad[pad] = 1;
    std::fs::write(&path, &bad).unwrap();
    assert!(fault(&path).unwrap().contains("padding"));
}

/// A copy of `good` with record `i` of a section changed and every checksum made right: only the records are wrong.
fn with_record<R: bytemuck::Pod>(good: &[u8], section: usize, i: usize, change: impl FnOnce(&mut R)) -> Vec<u8> {
    let mut bad = good.to_vec();
    let h: Header = bytemuck::pod_read_unaligned(&bad[..HEADER_LEN]);
    let at = h.sections[section].offset as usize + i * size_of::<R>();
    let mut record: R = bytemuck::pod_read_unaligned(&bad[at..at + size_of::<R>()]);
    change(&mut record);
    bad[at..at + size_of::<R>()].copy_from_slice(bytemuck::bytes_of(&record));
    let range = |s: usize| h.sections[s].offset as usize..(h.sections[s].offset + h.sections[s].length) as usize;
    let mut sha = sha2::Sha256::new();
    (0..4).for_each(|s| sha.update(&bad[range(s)]));
    sha.update(&bad[..144]);
    let crcs: Vec<u32> = (0..4).map(|s| crc32fast::hash(&bad[range(s)])).collect();
    with_header(&bad, |h| {
        (0..4).for_each(|s| h.sections[s].crc32 = crcs[s]);
        h.content_sha256 = sha.finalize().into();
    })
}

#[test]
fn each_malformed_record_is_named() {
    let (_dir, path, good) = example_file();
    type G = GroupRecord;
    type R = ResponseRecord;
    type P = PairRecord;
    let cases = [
        (with_record(&good, GROUPS, 0, |g: &mut G| g.token_start = 1), "group 0 is damaged: its tokens 1..9"),
        (with_record(&good, GROUPS, 1, |g: &mut G| g.first_response += 1), "group 0 is damaged: its responses 0..2"),
        (with_record(&good, GROUPS, 2, |g: &mut G| g.num_pairs = 1), "group 2 is damaged: its pairs 3..4"),
        (with_record(&good, GROUPS, 2, |g: &mut G| g.token_start = u64::MAX), "group 1 is damaged: its tokens 8..12"),
        (with_record(&good, GROUPS, 2, |g: &mut G| g.first_pair = u64::MAX), "group 1 is damaged: its pairs"),
        (with_record(&good, GROUPS, 2, |g: &mut G| g.num_responses = 0), "group 2 is damaged: its responses"),
        (with_record(&good, GROUPS, 0, |g: &mut G| g.prompt_len = 2), "response 0 starts at token 3, not 2"),
        (with_record(&good, GROUPS, 0, |g: &mut G| g.prompt_len = u32::MAX), "response 0 starts at token 3"),
        (with_record(&good, RESPONSES, 0, |r: &mut R| r.num_tokens = 1), "response 1 starts at token 5, not 4"),
        (with_record(&good, RESPONSES, 4, |r: &mut R| r.num_tokens = 0), "response 2 is empty"),
        (with_record(&good, RESPONSES, 5, |r: &mut R| r.num_tokens = 2), "responses end at token 15, not 14"),
        (with_record(&good, RESPONSES, 0, |r: &mut R| r.flags = 8), "flags 0x8"),
        (with_record(&good, RESPONSES, 0, |r: &mut R| r.flags = 4), "flags 0x4"),
        (with_record(&good, RESPONSES, 0, |r: &mut R| r.score = f32::NAN), "score NaN"),
        (with_record(&good, RESPONSES, 2, |r: &mut R| r.score = 1.0), "score 1"),
        (with_record(&good, RESPONSES, 2, |r: &mut R| r.score = -0.0), "score -0"),
        (with_record(&good, PAIRS, 1, |p: &mut P| p.chosen = 3), "group 1 is damaged: pair 0: (3, 0) is outside"),
        (with_record(&good, PAIRS, 0, |p: &mut P| p.rejected = u32::MAX), "is outside of its group's 2 responses"),
        (with_record(&good, PAIRS, 2, |p: &mut P| p.rejected = 1), "pair 1: chosen and rejected are both response 1"),
        (with_record(&good, PAIRS, 0, |p: &mut P| p.weight = 0.0), "weight 0"),
        (with_record(&good, PAIRS, 0, |p: &mut P| p.weight = f32::INFINITY), "weight inf"),
        (with_record(&good, PAIRS, 0, |p: &mut P| p.weight = f32::NAN), "weight NaN"),
        (with_record(&good, TOKENS, 13, |t: &mut u16| *t = 100), "token 13 has id 100, the vocabulary ends at 100"),
    ];
    for (i, (bytes, want)) in cases.iter().enumerate() {
        std::fs::write(&path, bytes).unwrap();
        let e = fault(&path).unwrap_or_else(|| panic!("case {i}: accepted"));
        assert!(e.contains(want), "case {i}: {e}");
        // The planner and try_group meet damaged records with an error too, whoever forgot to verify.
        let data = Dataset::open(&path, Split::Train).unwrap();
        if i + 1 < cases.len() {
            assert!((0..3).any(|g| data.try_group(g).is_err()), "case {i}");
            let o =
                PlanOptions { objective: Objective::Score, batch_size: 1, token_budget: None, seed: 0, shuffle: false };
            assert!(Planner::new(&data, &o).is_err(), "case {i}");
        }
    }
}

#[test]
fn the_writer_refuses_what_a_shard_cannot_hold_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train-00000.pref");
    let mut w = ShardWriter::create(&path, &meta(100)).unwrap();
    type Change = fn(&mut Own);
    let cases: &[(Change, &str)] = &[
        (|g| g.responses.clear(), "has no response"),
        (|g| g.responses[1].0.clear(), "response 1 is empty"),
        (|g| g.prompt[0] = 100, "prompt has token id 100"),
        (|g| g.responses[0].0[1] = u32::MAX, "response 0 has token id 4294967295"),
        (|g| g.responses[0].1 = Some(f32::NAN), "score"),
        (|g| g.pairs[0].1 = 2, "outside"),
        (|g| g.pairs[0].1 = 0, "both response 0"),
        (|g| g.pairs[0].2 = -1.0, "weight -1"),
    ];
    for (change, want) in cases {
        let mut g = example().remove(0);
        change(&mut g);
        let e = w.push(&g.view()).unwrap_err().to_string();
        assert!(e.contains(want) && e.contains("group 0") && !e.contains('\n'), "{e}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "one temporary file, no shard");
    // Still usable, as nothing of the refused groups was written.
    example().iter().for_each(|g| w.push(&g.view()).unwrap());
    let summary = w.finish().unwrap();
    assert_eq!((summary.groups, summary.responses, summary.pairs, summary.tokens), (3, 6, 3, 14));
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!((summary.bytes, bytes.clone()), (bytes.len() as u64, example_file().2), "a pure function of the input");
    let mut w = ShardWriter::create(&path, &meta(100)).unwrap();
    w.push(&example()[0].view()).unwrap();
    drop(w);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "an abandoned writer leaves the old shard");
    let bad = Meta { eos_id: Some(100), ..meta(100) };
    assert!(ShardWriter::create(&path, &bad).unwrap_err().to_string().contains("eos_id 100"));
    let nowhere = ShardWriter::create(&dir.path().join("none/a.pref"), &meta(100)).unwrap_err().to_string();
    assert!(nowhere.contains("cannot create"), "{nowhere}");
}

#[test]
fn folders_that_are_no_data_set_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = |p: &Path, s| Dataset::open(p, s).map(|_| ()).unwrap_err().to_string();
    assert!(open(&dir.path().join("none"), Split::Train).contains("does not exist"));
    assert!(open(dir.path(), Split::Train).contains("has no shard train-*.pref: give a folder"));
    write(&dir.path().join("eval-00000.pref"), &meta(100), &example());
    assert!(open(dir.path(), Split::Train).contains("it has shards of another split"));
    assert!(!Dataset::has_split(dir.path(), Split::Train) && Dataset::has_split(dir.path(), Split::Eval));
    let file = dir.path().join("eval-00000.pref");
    assert!(!Dataset::has_split(&file, Split::Train) && Dataset::has_split(&file, Split::Eval));
    assert_eq!(Dataset::open(&file, Split::Train).unwrap().num_groups(), 3);
    std::fs::create_dir(dir.path().join("train-00000.pref")).unwrap();
    assert!(open(dir.path(), Split::Train).contains("not a regular file"));
    type Change = fn(&mut Meta);
    let changes: [(Change, &str); 8] = [
        (|m| m.vocab_size = 101, "vocab_size is 101, not 100"),
        (|m| m.eos_id = None, "eos_id is None"),
        (|m| m.bos_rule = 9, "bos_rule is 9"),
        (|m| m.tokenizer_sha256 = [8; 32], "tokenizer_sha256 is 0808"),
        (|m| m.template_sha256 = [8; 32], "template_sha256 is 0808"),
        (|m| m.max_length = 2, "max_length is 2"),
        (|m| m.truncation = 9, "truncation is 9"),
        (|m| m.boundary = 9, "boundary is 9"),
    ];
    for (change, want) in changes {
        let mut other = meta(100);
        change(&mut other);
        write(&dir.path().join("eval-00001.pref"), &other, &example());
        let e = open(dir.path(), Split::Eval);
        assert!(e.contains(want) && e.contains("eval-00001.pref") && e.contains("does not belong"), "{e}");
    }
}

#[test]
fn a_shard_that_changes_under_a_run_is_noticed() {
    let (_dir, path, good) = example_file();
    let data = Dataset::open(&path, Split::Train).unwrap();
    data.check_unchanged().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(400).unwrap();
    let e = data.check_unchanged().unwrap_err().to_string();
    assert!(e.contains("was changed while in use"), "{e}");
    assert!(data.verify().is_err());
    // Of the same length, at another time.
    std::fs::write(&path, &good).unwrap();
    let data = Dataset::open(&path, Split::Train).unwrap();
    assert_eq!(data.longest_row(), 3 + 3, "a prompt with the longest of its responses");
    let before = file.metadata().unwrap().modified().unwrap();
    file.set_modified(before + std::time::Duration::from_secs(2)).unwrap();
    let e = data.check_unchanged().unwrap_err().to_string();
    assert!(e.contains("was changed while in use"), "{e}");
    // Replaced by a rename, the mapped file is the old one, whole.
    std::fs::write(&path, &good).unwrap();
    let data = Dataset::open(&path, Split::Train).unwrap();
    write(&path, &meta(100), &[]);
    data.verify().unwrap();
}

#[test]
fn an_empty_shard_is_a_shard() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("train-00000.pref"), &meta(100), &[]);
    let data = Dataset::open(dir.path(), Split::Train).unwrap();
    data.verify().unwrap();
    assert_eq!((data.num_groups(), data.num_tokens()), (0, 0));
    assert!(data.try_group(0).is_err());
}

/// Python with numpy, if there is one: `$FUSEDPO_PYTHON`, else `python3`.
fn python() -> Option<String> {
    let exe = std::env::var("FUSEDPO_PYTHON").unwrap_or_else(|_| "python3".into());
    let works =
        Command::new(&exe).args(["-c", "import numpy"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    works.then_some(exe)
}

fn run_twin(python: &str, args: &[&str], input: &str) -> (bool, String) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/shards.py");
    let mut child = Command::new(python)
        .args(["-B", script])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

#[test]
fn the_python_twin_writes_and_reads_the_same_bytes() {
    let Some(python) = python() else {
        println!("skipped: comparison with scripts/shards.py (no python3 with numpy; FUSEDPO_PYTHON names one)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("ours.pref"), dir.path().join("theirs.pref"));
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let random = prop::collection::vec(own_group(100), 40).new_tree(&mut runner).unwrap().current();
    for (vocab, groups) in [(100, example()), (100, vec![]), (100, random.clone()), (70_000, random)] {
        write(&ours, &meta(vocab), &groups);
        let (ok, lines) = run_twin(&python, &["show", ours.to_str().unwrap()], "");
        assert!(ok && lines.lines().count() == groups.len() + 1, "{lines}");
        let (ok, said) = run_twin(&python, &["write", theirs.to_str().unwrap()], &lines);
        assert!(ok, "{said}");
        assert_eq!(std::fs::read(&ours).unwrap(), std::fs::read(&theirs).unwrap());
        let (ok, said) = run_twin(&python, &["verify", theirs.to_str().unwrap()], "");
        assert!(ok && said.contains("sound"), "{said}");
    }
}

#[test]
fn a_full_disk_is_one_clear_error() {
    // Needs a small file system: mount -t tmpfs -o size=1m tmpfs DIR.
    let Some(dir) = std::env::var_os("FUSEDPO_SMALL_DISK").map(std::path::PathBuf::from) else {
        println!("skipped: a full disk (FUSEDPO_SMALL_DISK, a folder on a file system of 1 MB, is not set)");
        return;
    };
    let path = dir.join("train-00000.pref");
    let mut w = ShardWriter::create(&path, &meta(100)).unwrap();
    let long = Own { prompt: vec![7; 40_000], ..example().remove(0) };
    let mut pushed = (0..).map(|_| w.push(&long.view()));
    let e = pushed.find_map(Result::err).unwrap().to_string();
    assert!(e.contains("train-00000.pref: cannot write: No space left on device"), "{e}");
    drop(pushed);
    assert!(w.push(&long.view()).unwrap_err().to_string().contains("earlier error"));
    assert!(w.finish().unwrap_err().to_string().contains("earlier error"));
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn opening_ten_million_pairs_reads_headers_alone() {
    let (dir, path, good) = example_file();
    // A file of holes: its records are wrong, which nobody notices who reads the header alone.
    let counts = [6_000_000_000, 10_000_000, 20_000_000, 10_000_000];
    let sections = fusedpo::data::shard::format::layout(2, counts).unwrap();
    let header = with_header(&good, |h| {
        [h.num_tokens, h.num_groups, h.num_responses, h.num_pairs] = counts;
        h.sections.iter_mut().zip(sections).for_each(|(s, (offset, length))| (s.offset, s.length) = (offset, length));
    });
    std::fs::write(&path, &header[..HEADER_LEN]).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    if file.set_len(sections[3].0 + sections[3].1).is_err() {
        println!("skipped: a shard of 13 GB (the file system has no sparse files)");
        return;
    }
    let begun = std::time::Instant::now();
    let data = Dataset::open(dir.path(), Split::Train).unwrap();
    assert!(begun.elapsed() < std::time::Duration::from_millis(100), "{:?}", begun.elapsed());
    assert_eq!(data.num_pairs(), 10_000_000);
}
