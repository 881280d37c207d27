//! Sidecars: kept across crashes, refused for another key or any damage.

use crate::shards;

use fusedpo::data::shard::{Dataset, Split};
use fusedpo::data::sidecar::{RefKey, Sidecars, path};
use shards::{Own, meta, write};
use std::path::{Path, PathBuf};

fn groups(n: usize) -> Vec<Own> {
    let response = |i: u32| (vec![i, 2], None, None, 0, i);
    (0..n)
        .map(|_| Own { prompt: vec![1], responses: (0..3).map(response).collect(), pairs: vec![(0, 1, 1.0)] })
        .collect()
}

fn open_data(dir: &Path, sizes: &[usize]) -> Dataset {
    for (i, &n) in sizes.iter().enumerate() {
        write(&dir.join(format!("train-{i:05}.pref")), &meta(3000), &groups(n));
    }
    Dataset::open(dir, Split::Train).unwrap()
}

fn key() -> RefKey {
    RefKey { model_sha256: [3; 32], fingerprint: "cpu f32 avx512 T=2048".into() }
}

fn value(id: u64) -> f64 {
    -(id as f64 + 0.1).sqrt()
}

fn sidecar_files(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|p| p.to_string_lossy().contains(".pref.ref-"));
    all.sort();
    all
}

fn refused(data: &Dataset, k: &RefKey) -> String {
    let e = Sidecars::open(data, None, k).unwrap_err().to_string();
    assert!(!e.contains('\n'), "{e}");
    e
}

#[test]
fn a_pass_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    // 8192 responses a block: the first shard has three, the last with an odd number of bits.
    let data = open_data(dir.path(), &[5700, 0, 1, 40]);
    let n = data.num_responses();
    let mut s = Sidecars::open(&data, None, &key()).unwrap();
    assert_eq!(s.missing(), n);
    assert!((0..n).all(|i| s.get(i).is_none()));
    for i in (0..n).step_by(3) {
        s.set(i, value(i));
    }
    s.flush().unwrap();
    s.set(1, -77.0); // never flushed
    assert!(!s.flush_if_due(std::time::Duration::from_secs(3600)).unwrap());
    drop(s);
    let mut s = Sidecars::open(&data, None, &key()).unwrap();
    assert_eq!(s.missing(), n - n.div_ceil(3));
    assert!((0..n).all(|i| s.get(i) == (i % 3 == 0).then(|| value(i))), "f64 bits are kept, nothing else is filled");
    assert_eq!((s.get(n), s.get(u64::MAX)), (None, None));
    (0..n).for_each(|i| s.set(i, value(i)));
    assert_eq!(s.missing(), 0, "what was there already is not counted again");
    s.flush().unwrap();
    let s = Sidecars::open(&data, None, &key()).unwrap();
    assert_eq!(s.missing(), 0);
    assert!((0..n).all(|i| s.get(i) == Some(value(i))));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 8, "no temporary file stays");
}

/// What a long pass calls after every step.
#[test]
fn a_flush_that_is_due_is_made_and_costs_little() {
    use std::time::Duration;
    let dir = tempfile::tempdir().unwrap();
    let data = open_data(dir.path(), &[2]);
    let kept = |id: u64| Sidecars::open(&data, None, &key()).unwrap().get(id);
    let mut s = Sidecars::open(&data, None, &key()).unwrap();
    s.set(0, -1.5);
    assert!(!s.flush_if_due(Duration::from_secs(3600)).unwrap());
    assert_eq!(kept(0), None);
    assert!(s.flush_if_due(Duration::ZERO).unwrap());
    assert_eq!(kept(0), Some(-1.5));
    s.set(1, -2.5);
    assert!(!s.flush_if_due(Duration::from_secs(3600)).unwrap(), "the time counts from the last flush");
    // Not again before fifty times as long as a flush takes, whatever was asked. A test may be put to sleep: of many calls in
    // a row most come at once.
    let at_once = (0..50).filter(|_| s.flush_if_due(Duration::ZERO).unwrap()).count();
    assert!(at_once < 25, "{at_once} of 50 calls wrote");
    let begun = std::time::Instant::now();
    while !s.flush_if_due(Duration::from_millis(10)).unwrap() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never due again");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(kept(1), Some(-2.5));
}

#[test]
fn every_flipped_byte_and_every_length_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = open_data(dir.path(), &[5]);
    let mut s = Sidecars::open(&data, None, &key()).unwrap();
    (0..7).for_each(|i| s.set(i, value(i)));
    s.flush().unwrap();
    let file = path(&data.shards()[0], None, &key());
    assert_eq!(sidecar_files(dir.path()), std::slice::from_ref(&file));
    let good = std::fs::read(&file).unwrap();
    for at in 0..good.len() {
        for flip in [1u8, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            std::fs::write(&file, &bad).unwrap();
            assert!(refused(&data, &key()).contains("delete it"), "byte {at}");
        }
    }
    for len in 0..good.len() {
        std::fs::write(&file, &good[..len]).unwrap();
        assert!(refused(&data, &key()).contains("delete it"), "length {len}");
    }
    std::fs::write(&file, [&good[..], &[0]].concat()).unwrap();
    refused(&data, &key());
    std::fs::write(&file, &good).unwrap();
    assert_eq!(Sidecars::open(&data, None, &key()).unwrap().missing(), 8);
}

#[test]
fn another_key_is_another_file_and_the_reason_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let data = open_data(dir.path(), &[2]);
    let mut s = Sidecars::open(&data, None, &key()).unwrap();
    (0..6).for_each(|i| s.set(i, value(i)));
    s.flush().unwrap();
    let model = RefKey { model_sha256: [4; 32], ..key() };
    let other = Sidecars::open(&data, None, &model).unwrap();
    assert_eq!(other.missing(), 6);
    assert!(
        other.notes()[0].contains("another model (0303030303030303..., now 0404040404040404...)"),
        "{:?}",
        other.notes()
    );
    let numerics = RefKey { fingerprint: "cpu f32 avx2 T=2048".into(), ..key() };
    let other = Sidecars::open(&data, None, &numerics).unwrap();
    assert_eq!(other.missing(), 6);
    assert!(other.notes().iter().any(|n| n.contains("`cpu f32 avx512 T=2048`, now `cpu f32 avx2 T=2048`")));
    assert_eq!(Sidecars::open(&data, None, &key()).unwrap().missing(), 0, "each key keeps its own");
    // Under a name that is not its own, a sidecar is refused.
    std::fs::rename(path(&data.shards()[0], None, &key()), path(&data.shards()[0], None, &model)).unwrap();
    assert!(refused(&data, &model).contains("made by another model"));
    // The shard is packed again.
    let changed = open_data(dir.path(), &[3]);
    let s = Sidecars::open(&changed, None, &numerics).unwrap();
    assert_eq!(s.missing(), 9);
    assert!(s.notes().iter().any(|n| n.contains("another content of the shard")), "{:?}", s.notes());
    std::fs::copy(path(&data.shards()[0], None, &numerics), path(&changed.shards()[0], None, &numerics)).unwrap();
    assert!(refused(&changed, &numerics).contains("another content of the shard"));
    let long = RefKey { fingerprint: "x".repeat(257), ..key() };
    assert!(refused(&data, &long).contains("257 bytes"));
}

#[test]
fn a_cache_folder_is_made_and_used_alone() {
    let dir = tempfile::tempdir().unwrap();
    let data = open_data(dir.path(), &[2]);
    let cache = dir.path().join("a/cache");
    let mut s = Sidecars::open(&data, Some(&cache), &key()).unwrap();
    s.set(5, -1.5);
    s.flush().unwrap();
    assert_eq!((sidecar_files(dir.path()).len(), sidecar_files(&cache).len()), (0, 1));
    assert_eq!(Sidecars::open(&data, Some(&cache), &key()).unwrap().get(5), Some(-1.5));
    // A shard of the same name elsewhere has its own file in the same cache.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = open_data(elsewhere.path(), &[1]);
    assert_eq!(Sidecars::open(&other, Some(&cache), &key()).unwrap().missing(), 3);
    assert_eq!(sidecar_files(&cache).len(), 2);
    let e = Sidecars::open(&data, Some(&dir.path().join("train-00000.pref")), &key()).unwrap_err().to_string();
    assert!(e.contains("cannot create"), "{e}");
}

#[test]
fn a_value_that_is_not_finite_is_never_stored() {
    let dir = tempfile::tempdir().unwrap();
    let data = open_data(dir.path(), &[2]);
    let mut s = Sidecars::open(&data, None, &key()).unwrap();
    s.set(0, -2.0);
    s.set(4, f64::NAN);
    s.set(5, f64::NEG_INFINITY);
    let e = s.flush().unwrap_err().to_string();
    assert!(e.contains("response 4") && e.contains("NaN"), "{e}");
    let s = Sidecars::open(&data, None, &key()).unwrap();
    assert_eq!((s.get(0), s.get(4), s.get(5), s.missing()), (Some(-2.0), None, None, 5));
}

/// The child of the next test: sets and flushes until it is killed.
#[test]
fn flush_until_killed() {
    let Some(dir) = std::env::var_os("FUSEDPO_SIDECAR_CRASH") else { return };
    let data = Dataset::open(Path::new(&dir), Split::Train).unwrap();
    let mut s = Sidecars::open(&data, None, &key()).unwrap();
    for i in (0..data.num_responses()).cycle() {
        s.set(i, value(i));
        if i % 64 == 63 {
            s.flush().unwrap();
            std::fs::write(Path::new(&dir).join("flushed"), i.to_string()).unwrap();
        }
    }
}

#[test]
fn kill_9_at_any_point_loses_nothing_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let data = open_data(dir.path(), &[20_000]);
    let mut last = 0;
    for round in 0..12 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sidecar::flush_until_killed"])
            .env("FUSEDPO_SIDECAR_CRASH", dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(23 + 7 * round));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        let s = Sidecars::open(&data, None, &key()).unwrap();
        let flushed = std::fs::read_to_string(dir.path().join("flushed")).ok().and_then(|t| t.parse::<u64>().ok());
        (0..=flushed.unwrap_or(0).min(data.num_responses() - 1)).for_each(|i| {
            assert!(flushed.is_none() || s.get(i) == Some(value(i)), "round {round}: response {i} of {flushed:?}");
        });
        (0..data.num_responses()).for_each(|i| assert!(s.get(i).is_none_or(|v| v == value(i))));
        let filled = data.num_responses() - s.missing();
        assert!(filled >= last, "round {round}: {filled} < {last}");
        last = filled;
    }
    assert!(last > 0, "the child never flushed");
}

/// A header that contradicts itself, its checksum being right: what another program might write.
#[test]
fn each_header_that_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = open_data(dir.path(), &[5]);
    let mut s = Sidecars::open(&data, None, &key()).unwrap();
    (0..7).for_each(|i| s.set(i, value(i)));
    s.flush().unwrap();
    let file = path(&data.shards()[0], None, &key());
    let good = std::fs::read(&file).unwrap();
    let inconsistent = "the header is inconsistent";
    let bits = "its bitmap does not have as many bits as its header says";
    for (at, to, want) in [
        (12, 380, inconsistent),                     // header_len
        (24, 6, bits),                               // num_filled
        (24, 8, bits),                               // num_filled
        (24, 16, inconsistent),                      // num_filled, of 15
        (32, 4096, inconsistent),                    // block
        (36, 257, inconsistent),                     // fingerprint_len
        (36, 3, inconsistent),                       // fingerprint_len: text behind the text
        (356, 1, inconsistent),                      // fingerprint
        (376, 1, inconsistent),                      // reserved
        (8, 2, "is a sidecar of version 2"),         // version
        (16, 14, "bytes long, its header asks for"), // num_responses
    ] {
        let mut bad = good.clone();
        bad[at..at + 4].copy_from_slice(&u32::to_le_bytes(to));
        let crc = crc32fast::hash(&bad[..380]);
        bad[380..384].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&file, &bad).unwrap();
        let e = refused(&data, &key());
        assert!(e.contains(want) && e.contains("delete it"), "{to} at {at}: {e}");
    }
    // And a block: 15 values, their bits in 8 bytes, CRC-32. Its values must be those that the bits name, and numbers.
    let nan = f64::NAN.to_bits();
    for (at, to) in
        [(384 + 8 * 15, 0x80ff), (384 + 8 * 15, 1 << 63 | 0x7f), (384, nan), (384 + 8 * 9, 1.5f64.to_bits())]
    {
        let mut bad = good.clone();
        bad[at..at + 8].copy_from_slice(&u64::to_le_bytes(to));
        let crc = crc32fast::hash(&bad[384..512]);
        bad[512..516].copy_from_slice(&crc.to_le_bytes());
        let bits = u64::from_le_bytes(bad[504..512].try_into().unwrap()).count_ones();
        bad[24..28].copy_from_slice(&bits.to_le_bytes());
        let crc = crc32fast::hash(&bad[..380]);
        bad[380..384].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&file, &bad).unwrap();
        assert!(refused(&data, &key()).contains("block 0 is damaged"), "{to:#x} at {at}");
    }
    std::fs::write(&file, &good).unwrap();
    assert_eq!(Sidecars::open(&data, None, &key()).unwrap().missing(), 8);
}
