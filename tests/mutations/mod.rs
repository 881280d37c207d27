//! Mutations of bytes and of JSON, from a counter; and an allocator that knows the largest single request.

pub mod bench;
pub mod grammar;
pub mod models;
#[path = "../common/places.rs"]
mod places;
pub mod rows;
pub mod runner;
pub mod runs;
pub mod shards;
pub mod tables;
pub mod texts;
pub mod tokenizers;

use fusedpo::error::Error;
use places::{count, nth};
use serde_json::{Value, json};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Whether a mutated input was read, or refused; what is wrong otherwise.
pub type Verdict = Result<bool, String>;

/// A refusal, which must be one line.
pub fn refused(e: &Error) -> Verdict {
    let text = e.to_string();
    match text.contains('\n') || text.is_empty() {
        true => Err(format!("not one line: {text:?}")),
        false => Ok(false),
    }
}

/// The system's allocator, watched.
pub struct Watched;

/// Bytes of the largest request since it was last set to 0.
pub static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.realloc(at, layout, size) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Numbers from a seed (SplitMix64; Steele, Lea & Flood 2014).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    /// Below `n`, which is at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let at = self.below(len);
        at..(at + 1 + self.below(64)).min(len)
    }
}

const EXTREMES: [u64; 12] =
    [0, 1, 2, 0x7f, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 32, 1 << 40, i64::MAX as u64, u64::MAX];

/// One to three changes of `bytes`, all of them among its first `head` bytes half of the time.
pub fn bytes(rng: &mut Rng, bytes: &[u8], head: usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..1 + rng.below(3) {
        if out.is_empty() {
            break;
        }
        let reach = if rng.below(2) == 0 { head.min(out.len()) } else { out.len() };
        let at = rng.below(reach);
        match rng.below(9) {
            0 | 1 => out[at] ^= 1 << rng.below(8),
            2 => out[at] = *rng.pick(&[0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'[', b',', b'9', b'\n']),
            3 => out.truncate(at),
            4 => {
                let part = out[rng.range(out.len())].to_vec();
                out.splice(at..at, part);
            }
            5 => drop(out.drain(rng.range(out.len()))),
            6 => {
                // A little-endian field of 4 or 8 bytes.
                let width = if rng.below(2) == 0 { 4 } else { 8 };
                let at = at / 4 * 4;
                let near = [EXTREMES[rng.below(EXTREMES.len())], out.len() as u64, (at as u64).wrapping_sub(1)];
                let value = rng.pick(&near).to_le_bytes();
                let end = (at + width).min(out.len());
                out[at..end].copy_from_slice(&value[..end - at]);
            }
            7 => {
                let (a, b) = (rng.range(out.len()), rng.below(out.len()));
                let part = out[a].to_vec();
                let end = (b + part.len()).min(out.len());
                out[b..end].copy_from_slice(&part[..end - b]);
            }
            _ => out.extend((0..1 + rng.below(40)).map(|i| i as u8)),
        }
    }
    out
}

/// One to three changes of values, keys or their places.
pub fn json_value(rng: &mut Rng, value: &Value) -> Value {
    let mut out = value.clone();
    for _ in 0..1 + rng.below(3) {
        let n = count(&out);
        let (at, other) = (rng.below(n), rng.below(n));
        let taken = nth(&mut out, &mut { other }).map_or(Value::Null, |v| v.clone());
        let Some(spot) = nth(&mut out, &mut { at }) else { continue };
        match rng.below(4) {
            0 => *spot = taken,
            1 => match spot {
                Value::Object(map) if !map.is_empty() => {
                    let key = map.keys().nth(rng.below(map.len())).cloned().unwrap_or_default();
                    let value = map.shift_remove(&key).unwrap_or_default();
                    if rng.below(2) == 0 {
                        map.insert(format!("{key}x"), value);
                    }
                }
                Value::Array(list) if !list.is_empty() => drop(list.remove(rng.below(list.len()))),
                spot => *spot = extreme(rng),
            },
            _ => *spot = extreme(rng),
        }
    }
    out
}

fn extreme(rng: &mut Rng) -> Value {
    let numbers = [0.0, -1.0, 0.5, 1e-300, 1e308, -1e308];
    match rng.below(10) {
        0 => Value::Null,
        1 => json!(rng.below(2) == 0),
        2 => json!(*rng.pick(&EXTREMES)),
        3 => json!(-(rng.below(1 << 40) as i64)),
        4 => json!(*rng.pick(&numbers)),
        5 => json!(rng.below(300)),
        6 => json!(""),
        7 => json!("\u{0}\u{fffd}\u{1f600}</s>"),
        8 => json!([]),
        _ => json!({}),
    }
}
