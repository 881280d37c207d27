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
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with BF16, and AMX's bf16 tile products: a path of its own for these, AVX-512's for all else.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Level {
    /// The best level of this CPU.
    pub fn detect() -> Self {
        *Self::available().last().expect("the portable level is always there")
    }

    /// Every level that this CPU can run, worst first.
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
                    if has!("avx512bf16") && super::gemm::amx::usable() {
                        levels.push(Level(Isa::Amx));
                    }
                }
            }
        }
        levels
    }

    /// Part of the fingerprint: `amx`, `avx512`, `avx2`, or the target's architecture.
    pub fn name(self) -> &'static str {
        match self.0 {
            Isa::Portable => std::env::consts::ARCH,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => "amx",
        }
    }

    /// For people.
    pub fn label(self) -> &'static str {
        match self.0 {
            Isa::Portable => "no AVX2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => "AVX-512 and AMX",
        }
    }

    /// The level whose code runs where nothing is multiplied in bf16: AMX has nothing else to add.
    pub(super) fn without_amx(self) -> Self {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Isa::Amx {
            return Level(Isa::Avx512);
        }
        self
    }

    /// Whether this level includes products of bf16 pairs (AVX512_BF16 or AMX).
    pub fn has_bf16(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => std::arch::is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => true,
            _ => false,
        }
    }

    pub(super) fn isa(self) -> Isa {
        self.0
    }
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
                Isa::Avx512 | Isa::Amx => unsafe { avx512::<$S>($($arg),*) },
            }
        }
    };
}
pub(super) use simd_fn;
