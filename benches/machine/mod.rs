//! What this machine can do, measured in the same run as what is compared with it.
#![allow(dead_code)] // each bench uses its own part

use std::hint::black_box;
use std::time::Instant;

/// Threads that measure: those of the pool.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// The best of a few tries of `f`, in seconds.
pub fn best(tries: usize, mut f: impl FnMut()) -> f64 {
    let one = |_| {
        let begun = Instant::now();
        f();
        begun.elapsed().as_secs_f64()
    };
    (0..tries).map(one).fold(f64::INFINITY, f64::min)
}

/// Chains of fused multiply-adds that do not wait for each other: enough to hide their latency on every CPU.
const CHAINS: usize = 12;

#[cfg(target_arch = "x86_64")]
macro_rules! chains {
    ($name:ident, $feature:literal, $set:ident, $fma:ident, $first:ident) => {
        /// `rounds` multiply-adds in each of the chains; a number that depends on all of them.
        #[target_feature(enable = $feature)]
        unsafe fn $name(rounds: usize) -> f32 {
            use std::arch::x86_64::*;
            let (a, b) = ($set(black_box(0.999)), $set(black_box(0.001)));
            let mut sums = [$set(1.0); CHAINS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = $fma(a, *sum, b);
                }
            }
            sums.into_iter().map(|s| $first(s)).sum()
        }
    };
}
#[cfg(target_arch = "x86_64")]
chains!(chains_512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps, _mm512_cvtss_f32);
#[cfg(target_arch = "x86_64")]
chains!(chains_256, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps, _mm256_cvtss_f32);

/// f32 GFLOP/s of fused multiply-adds in registers on every thread at once: no program can be faster. `None` where this
/// bench has no loop for the CPU.
pub fn fma_peak() -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    {
        let (run, width): (unsafe fn(usize) -> f32, usize) = if is_x86_feature_detected!("avx512f") {
            (chains_512, 16)
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            (chains_256, 8)
        } else {
            return None;
        };
        const ROUNDS: usize = 10_000_000;
        let seconds = best(3, || {
            rayon::broadcast(|_| {
                // SAFETY: the features were detected just now.
                black_box(unsafe { run(black_box(ROUNDS)) })
            });
        });
        Some((2 * width * CHAINS * ROUNDS * threads()) as f64 / seconds / 1e9)
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// GB/s of a copy by every thread between buffers that no cache holds, bytes read and bytes written counted.
pub fn copy_bandwidth() -> f64 {
    use rayon::prelude::*;
    const BYTES: usize = 256 << 20;
    let (from, mut to) = (vec![1u8; BYTES], vec![2u8; BYTES]);
    let part = BYTES.div_ceil(threads());
    let seconds = best(4, || {
        to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
        black_box(&mut to);
    });
    2.0 * BYTES as f64 / seconds / 1e9
}
