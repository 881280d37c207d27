//! Keyed sidecars: found again, refused for another key or any damage, pruned.

use crate::shards;

use fusedpo::data::shard::{Dataset, Split};
use fusedpo::data::sidecar::{Kept, Keyed, RefKey, keyed_path, prune};
use shards::{Own, meta, write};
use std::path::Path;
use std::time::Duration;

fn open_data(dir: &Path, sizes: &[usize]) -> Dataset {
    let response = |i: u32| (vec![i, 2], None, None, 0, i);
    let group = || Own { prompt: vec![1], responses: (0..2).map(response).collect(), pairs: vec![(0, 1, 1.0)] };
    for (i, &n) in sizes.iter().enumerate() {
        let groups: Vec<Own> = (0..n).map(|_| group()).collect();
        write(&dir.join(format!("train-{i:05}.pref")), &meta(3000), &groups);
    }
    Dataset::open(dir, Split::Train).unwrap()
}

fn key() -> RefKey {
    RefKey { model_sha256: [3; 32], fingerprint: "cpu f32 avx512 T=2048".into() }
}

fn value(a: u64, b: u64) -> f64 {
    -((a * 31 + b) as f64 + 0.1).sqrt()
}

fn refused(data: &Dataset) -> String {
    let e = Keyed::open(data, None, &key(), Kept::Heads).unwrap_err().to_string();
    assert!(!e.contains('\n'), "{e}");
    e
}

#[test]
fn values_are_found_again_in_any_order_of_setting() {
    let dir = tempfile::tempdir().unwrap();
    let data = open_data(dir.path(), &[3, 2]);
    // More than two blocks; keys that cross shards and go beyond 32 bits.
    let keys: Vec<(u64, u64)> = (0..9001u64).map(|i| (i * 7919 % 9001, (i % 3) << 40)).collect();
    let mut s = Keyed::open(&data, None, &key(), Kept::Heads).unwrap();
    assert!(s.is_empty() && s.notes().is_empty());
    keys.iter().for_each(|&(a, b)| s.set(a, b, value(a, b)));
    s.flush().unwrap();
    s.set(1 << 50, 0, -1.0); // never flushed
    assert!(!s.flush_if_due(Duration::from_secs(3600)).unwrap());
    drop(s);
    let mut s = Keyed::open(&data, None, &key(), Kept::Heads).unwrap();
    assert_eq!((s.len(), s.found()), (9001, 9001));
    assert!(keys.iter().all(|&(a, b)| s.get(a, b).map(f64::to_bits) == Some(value(a, b).to_bits())));
    assert!(!s.has(1 << 50, 0) && !s.has(0, 1));
    // Another kind, key or order of shards does not see them.
    assert!(Keyed::open(&data, None, &key(), Kept::Mismatched).unwrap().is_empty());
    let other = RefKey { model_sha256: [4; 32], ..key() };
    let o = Keyed::open(&data, None, &other, Kept::Heads).unwrap();
    assert!(o.is_empty() && o.notes().len() == 1 && o.notes()[0].contains("made by another model"), "{:?}", o.notes());
    // What is no number is not kept, and said.
    s.set(5, 5, f64::NAN);
    s.set(6, 6, -6.0);
    let e = s.flush().unwrap_err().to_string();
    assert!(e.contains("(5, 5)") && e.contains("NaN"), "{e}");
    let s = Keyed::open(&data, None, &key(), Kept::Heads).unwrap();
    assert!(s.has(6, 6) && !s.has(5, 5));
    assert!(std::fs::read_dir(dir.path()).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().contains("tmp")));
}

/// Any bit of the file that is another, any byte that is missing or too many.
#[test]
fn damage_anywhere_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let data = open_data(dir.path(), &[2]);
    let mut s = Keyed::open(&data, None, &key(), Kept::Heads).unwrap();
    (0..20).for_each(|i| s.set(i, i, value(i, i)));
    s.flush().unwrap();
    let path = keyed_path(&data, None, &key(), Kept::Heads).unwrap();
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(whole.len(), 384 + 20 * 24 + 8);
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).unwrap();
        let e = refused(&data);
        assert!(e.contains(&*path.to_string_lossy()) && e.contains("delete it"), "byte {at}: {e}");
    }
    for len in [0, 1, 383, 384, 385, whole.len() - 1] {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(refused(&data).contains("delete it"), "{len}");
    }
    std::fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert!(refused(&data).contains("bytes long"));
    // A whole file under another one's name.
    std::fs::write(&path, &whole).unwrap();
    let other = RefKey { fingerprint: "cpu f64".into(), ..key() };
    std::fs::rename(&path, keyed_path(&data, None, &other, Kept::Heads).unwrap()).unwrap();
    let e = Keyed::open(&data, None, &other, Kept::Heads).unwrap_err().to_string();
    assert!(e.contains("computed another way"), "{e}");
    std::fs::rename(
        keyed_path(&data, None, &other, Kept::Heads).unwrap(),
        keyed_path(&data, None, &key(), Kept::Mismatched).unwrap(),
    )
    .unwrap();
    let e = Keyed::open(&data, None, &key(), Kept::Mismatched).unwrap_err().to_string();
    assert!(e.contains("other values than its name says"), "{e}");
}

#[test]
fn pruning_takes_those_that_nobody_would_read() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let data = open_data(dir.path(), &[2, 1]);
    let other = RefKey { model_sha256: [4; 32], ..key() };
    for cache in [None, Some(cache.path())] {
        let kinds =
            [(&key(), Kept::Heads), (&key(), Kept::Mismatched), (&other, Kept::Heads), (&other, Kept::Mismatched)];
        for (key, kept) in kinds {
            Keyed::open(&data, cache, key, kept).unwrap();
        }
        let folder = cache.unwrap_or(dir.path());
        std::fs::write(folder.join("train-00000.pref.heads-0123456789abcdef"), "damaged").unwrap();
        std::fs::write(folder.join("train-00000.pref.heads-notes"), "mine").unwrap();
        let pruned = prune(&data, cache, &key()).unwrap();
        assert_eq!((pruned.removed, pruned.kept, pruned.bytes), (3, 2, 2 * 384 + 7));
        for (key, kept) in kinds {
            let there = keyed_path(&data, cache, key, kept).unwrap().exists();
            assert_eq!(there, key.model_sha256 == [3; 32], "{kept:?}");
        }
        assert!(folder.join("train-00000.pref.heads-notes").exists());
    }
}
