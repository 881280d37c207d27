//! Run-time SIMD dispatch: one body, compiled once per instruction set, chosen by what the CPU reports.

/// An instruction set that the running CPU was seen to have: only [`Level::detect`] and [`Level::available`] make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(Isa);

/// Instruction sets with a code path of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// What the compilation target guarantees (SSE2, NEON, ...).
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL; bf16 products by rounding, then f32's multiply-adds.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with AVX512_BF16's products of bf16 pairs; its own for all else.
    #[cfg(target_arch = "x86_64")]
    Avx512Pairs,
    /// AVX-512 with BF16, and AMX's bf16 tiles: for products in bf16, and for those of f32 of many rows, as sums of parts;
    /// AVX-512's for all else.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Level {
    /// The best level of this CPU. Its vendor decides between two ways to multiply bf16, so that the same machine always
    /// computes the same bits: AMD (Zen 4 and later) multiplies pairs at twice the rate of f32, Intel at half of it (Sapphire
    /// and Granite Rapids, where AMX is hidden: 87 and 178 GFLOP/s a core), and of others nothing is known.
    pub fn detect() -> Self {
        let best = *Self::available().last().expect("the portable level is always there");
        #[cfg(target_arch = "x86_64")]
        if best.0 == Isa::Avx512Pairs && !pairs_are_fast(vendor()) {
            return Level(Isa::Avx512);
        }
        best
    }

    /// Every level that this CPU can run.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut levels = vec![Level(Isa::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") {
                levels.push(Level(Isa::Avx2));
                if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                    levels.push(Level(Isa::Avx512));
                    if has!("avx512bf16") {
                        levels.push(Level(Isa::Avx512Pairs));
                        if super::gemm::amx::usable() {
                            levels.push(Level(Isa::Amx));
                        }
                    }
                }
            }
        }
        levels
    }

    /// Part of the fingerprint where `f64` is multiplied: `avx512`, `avx2`, or the target's architecture.
    pub fn name(self) -> &'static str {
        match self.0 {
            Isa::Portable => std::env::consts::ARCH,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Pairs | Isa::Amx => "avx512",
        }
    }

    /// Whether `f32` is multiplied as sums of three bf16 numbers, on AMX tiles.
    pub fn multiplies_parts(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Isa::Amx;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// As [`Level::name`] where `f32` is multiplied.
    pub fn f32(self) -> &'static str {
        if self.multiplies_parts() { "amx" } else { self.name() }
    }

    /// As [`Level::name`] where bf16 is multiplied, and for people how, and why so.
    pub fn bf16(self) -> Option<(&'static str, &'static str)> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if std::arch::is_x86_feature_detected!("avx512bf16") => Some((
                "avx512fma",
                "rounded to bf16, then f32 multiply-adds: no AMX here, and this CPU's products of bf16 pairs (AVX512_BF16) are \
                 not known to be faster",
            )),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Some((
                "avx512fma",
                "rounded to bf16, then f32 multiply-adds: neither AMX nor AVX512_BF16 here; no faster than f32",
            )),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Pairs => {
                Some(("avx512", "AVX512_BF16's products of pairs, at twice the rate of f32 on this CPU"))
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Some(("amx", "AMX tiles")),
            _ => None,
        }
    }

    /// For people.
    pub fn label(self) -> &'static str {
        match self.0 {
            Isa::Portable => "no AVX2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Pairs => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => "AVX-512 and AMX",
        }
    }

    /// Whether this level multiplies bf16.
    pub fn has_bf16(self) -> bool {
        self.bf16().is_some()
    }

    pub(super) fn isa(self) -> Isa {
        self.0
    }
}

/// The CPU's maker, as it spells itself.
#[cfg(target_arch = "x86_64")]
fn vendor() -> [u8; 12] {
    let id = std::arch::x86_64::__cpuid(0);
    let mut name = [0; 12];
    for (part, word) in name.chunks_exact_mut(4).zip([id.ebx, id.edx, id.ecx]) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    name
}

/// Whether AVX512_BF16 is faster than f32's multiply-adds on a maker's CPUs.
#[cfg(target_arch = "x86_64")]
fn pairs_are_fast(vendor: [u8; 12]) -> bool {
    &vendor == b"AuthenticAMD"
}

/// Asks memory for what is at `p`, which need not exist.
#[inline(always)]
pub(super) fn ask_for<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Compiles a generic function once per [`Level`]; the level becomes the first argument. The body is inlined into
/// each copy, so everything that it calls in a hot loop must be `#[inline(always)]`.
macro_rules! simd_fn {
    ($(#[$doc:meta])* $vis:vis fn $name:ident<$S:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        #[allow(unsafe_code)] // the level was detected
        $vis fn $name<$S: crate::backend::cpu::scalar::Scalar>(level: crate::backend::cpu::simd::Level, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$S: crate::backend::cpu::scalar::Scalar>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<$S: crate::backend::cpu::scalar::Scalar>($($arg: $ty),*) $(-> $ret)? { body::<$S>($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512<$S: crate::backend::cpu::scalar::Scalar>($($arg: $ty),*) $(-> $ret)? { body::<$S>($($arg),*) }
            use crate::backend::cpu::simd::Isa;
            match level.isa() {
                Isa::Portable => body::<$S>($($arg),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: a Level of this kind exists only where `Level::available` saw AVX2 and FMA.
                Isa::Avx2 => unsafe { avx2::<$S>($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: a Level of this kind exists only where `Level::available` saw these features.
                Isa::Avx512 | Isa::Avx512Pairs | Isa::Amx => unsafe { avx512::<$S>($($arg),*) },
            }
        }
    };
}
pub(super) use simd_fn;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_maker_decides_between_pairs_and_multiply_adds() {
        assert!(pairs_are_fast(*b"AuthenticAMD"));
        assert!(!pairs_are_fast(*b"GenuineIntel") && !pairs_are_fast([0; 12]));
        // Pairs are a level of their own, chosen on AMD alone; tiles beat both.
        let (all, best) = (Level::available(), Level::detect());
        assert!(all.contains(&best));
        match all.last().unwrap().0 {
            Isa::Avx512Pairs => assert_eq!(best.0 == Isa::Avx512Pairs, pairs_are_fast(vendor())),
            last => assert_eq!(best.0, last),
        }
        let names: Vec<_> = all.iter().filter_map(|l| l.bf16()).map(|(name, _)| name).collect();
        assert!(
            names.iter().all(|n| names.iter().filter(|m| m == &n).count() == 1),
            "bits of each are its own: {names:?}"
        );
    }
}
