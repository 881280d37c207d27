//! The `f32` tiles of AVX-512 and AVX2, written out as one block of instructions, so that denormals count as 0 in them:
//! the control register says so for the length of a block and is what it was at its end. Rust knows no other setting
//! between two instructions of its own, and a product of denormals takes a CPU ten to a hundred times as long.
//!
//! The order of operations is that of the generic tile. Rows of `b` are asked for some units ahead, and the lines of the
//! output before the first unit: hardware guesses neither in time.

use std::arch::asm;
use std::arch::x86_64::*;

/// MXCSR's "flush to zero" and "denormals are zeros".
pub(super) const FLUSH: u32 = 0x8040;
/// Units that rows of `b` are asked for ahead, and where they lie far apart in memory.
const AHEAD: usize = 8;
const FAR_AHEAD: usize = 32;
/// Elements from a row of `b` to the next, and rows, from which on it is the latter. Chosen by the latency of the third cache,
/// not measured by itself.
const FAR: [usize; 2] = [128, 256];

/// Asks for the lines of a tile, which need not exist.
#[inline(always)]
pub(super) fn ask_for(rows: usize, width: usize, c: *mut f32, c_ld: usize, base: *const f32, base_ld: usize) {
    for i in 0..rows {
        for at in (0..width).step_by(16) {
            // SAFETY: a prefetch reads nothing, whatever the address.
            unsafe {
                _mm_prefetch::<_MM_HINT_ET0>(c.wrapping_add(i * c_ld + at).cast());
                if !base.is_null() && !std::ptr::eq(base, c) {
                    _mm_prefetch::<_MM_HINT_T0>(base.wrapping_add(i * base_ld + at).cast());
                }
            }
        }
    }
}

/// A tile of two registers a row. A row of `b` is read by `$read` into the registers `$b0` and `$b1`; `$x` are registers that
/// hold an element of `a`, taken in turn; `$more` are the other registers that the block uses.
macro_rules! tile {
    (
        $(#[$doc:meta])* $name:ident, $feature:literal, $n:literal, [$set:ident, $load:ident, $add:ident, $store:ident],
        $b:ty, [$b0:literal, $b1:literal], [$($read:literal),*], $([$i:literal $lo:tt $hi:tt $x:literal])*, { $($more:tt)* }
    ) => {
        $(#[$doc])*
        #[target_feature(enable = $feature)]
        #[allow(clippy::too_many_arguments)]
        pub(super) unsafe fn $name(
            units: usize, a: *const f32, a_step: usize, b: *const $b, b_step: usize,
            c: *mut f32, c_ld: usize, base: *const f32, base_ld: usize,
        ) {
            const ROWS: usize = [$($i),*].len();
            ask_for(ROWS, 2 * $n, c, c_ld, base, base_ld);
            let far = b_step >= FAR[0] && units >= FAR[1];
            let mut acc = [[$set(0.0); 2]; ROWS];
            // The control register as it was, and as the block has it.
            let mut control = [0u32; 2];
            // SAFETY: reads stay below ROWS, two registers and `units`, which the caller's contract covers; MXCSR is restored.
            unsafe {
                asm!(
                    "stmxcsr [{control}]",
                    "mov {flush:e}, [{control}]",
                    "or {flush:e}, {bits}",
                    "mov [{control} + 4], {flush:e}",
                    "ldmxcsr [{control} + 4]",
                    "test {units}, {units}",
                    "jz 3f",
                    "2:",
                    $($read,)*
                    $(
                        concat!("vbroadcastss ", $x, ", dword ptr [{a} + 4 * ", $i, "]"),
                        concat!("vfmadd231ps ", $lo, ", ", $x, ", ", $b0),
                        concat!("vfmadd231ps ", $hi, ", ", $x, ", ", $b1),
                    )*
                    "add {a}, {a_step}",
                    "add {b}, {b_step}",
                    "dec {units}",
                    "jnz 2b",
                    "3:",
                    "ldmxcsr [{control}]",
                    control = in(reg) &raw mut control,
                    flush = out(reg) _,
                    bits = const FLUSH,
                    units = inout(reg) units => _,
                    a = inout(reg) a => _,
                    b = inout(reg) b => _,
                    a_step = in(reg) 4 * a_step,
                    b_step = in(reg) 4 * b_step,
                    ahead = in(reg) 4 * b_step * if far { FAR_AHEAD } else { AHEAD },
                    $(inout($lo) acc[$i][0], inout($hi) acc[$i][1],)*
                    $($more)*
                    options(nostack)
                );
                for (i, acc) in acc.iter().enumerate() {
                    for (v, t) in acc.iter().enumerate() {
                        let t = if base.is_null() { *t } else { $add($load(base.add(i * base_ld + v * $n)), *t) };
                        $store(c.add(i * c_ld + v * $n), t);
                    }
                }
            }
        }
    };
}

macro_rules! tile512 {
    ($(#[$doc:meta])* $name:ident, $b:ty, [$($read:literal),*], { $($more:tt)* }, $($row:tt)*) => {
        tile!(
            $(#[$doc])* $name, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", 16,
            [_mm512_set1_ps, _mm512_loadu_ps, _mm512_add_ps, _mm512_storeu_ps],
            $b, ["zmm0", "zmm1"], [$($read),*], $($row)*,
            {
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                $($more)*
            }
        );
    };
}
/// A tile of 12 rows, and one of the first 4.
macro_rules! tiles512 {
    ($(#[$doc:meta])* $name:ident, $low:ident, $b:ty, $read:tt, $more:tt) => {
        tile512!(
            $(#[$doc])* $name, $b, $read, $more,
            [0 "zmm8" "zmm9" "zmm2"] [1 "zmm10" "zmm11" "zmm3"] [2 "zmm12" "zmm13" "zmm4"] [3 "zmm14" "zmm15" "zmm5"]
            [4 "zmm16" "zmm17" "zmm2"] [5 "zmm18" "zmm19" "zmm3"] [6 "zmm20" "zmm21" "zmm4"] [7 "zmm22" "zmm23" "zmm5"]
            [8 "zmm24" "zmm25" "zmm2"] [9 "zmm26" "zmm27" "zmm3"] [10 "zmm28" "zmm29" "zmm4"] [11 "zmm30" "zmm31" "zmm5"]
        );
        tile512!(
            $(#[$doc])* $low, $b, $read, $more,
            [0 "zmm8" "zmm9" "zmm2"] [1 "zmm10" "zmm11" "zmm3"] [2 "zmm12" "zmm13" "zmm4"] [3 "zmm14" "zmm15" "zmm5"]
        );
    };
}
tiles512!(
    /// AVX-512. See `Kernel::tile`.
    avx512, avx512_low, f32,
    [
        "vmovups zmm0, [{b}]",
        "vmovups zmm1, [{b} + 64]",
        "prefetcht0 [{b} + {ahead}]",
        "prefetcht0 [{b} + {ahead} + 64]"
    ],
    {}
);
tiles512!(
    /// AVX-512, `b` in words of two bf16: column `j` of a panel in the low half, `j + 16` in the high one.
    avx512_bf16, avx512_bf16_low, u32,
    [
        "vmovdqu32 zmm1, [{b}]",
        "prefetcht0 [{b} + 2 * {ahead}]",
        "vpslld zmm0, zmm1, 16",
        "vpandd zmm1, zmm1, zmm6"
    ],
    { in("zmm6") _mm512_set1_epi32(0xffff_0000_u32 as i32), }
);
tiles512!(
    /// AVX-512, `b` in f16, two columns a word in order.
    avx512_f16, avx512_f16_low, u32,
    ["vcvtph2ps zmm0, [{b}]", "vcvtph2ps zmm1, [{b} + 32]", "prefetcht0 [{b} + 2 * {ahead}]"],
    {}
);

tiles512!(
    /// AVX-512, `b` in whole numbers of eight bits, four columns a word in order.
    avx512_int8, avx512_int8_low, u32,
    [
        "vpmovsxbd zmm0, [{b}]",
        "vpmovsxbd zmm1, [{b} + 16]",
        "prefetcht0 [{b} + 4 * {ahead}]",
        "vcvtdq2ps zmm0, zmm0",
        "vcvtdq2ps zmm1, zmm1"
    ],
    {}
);

macro_rules! tile256 {
    ($(#[$doc:meta])* $name:ident, $($row:tt)*) => {
        tile!(
            $(#[$doc])* $name, "avx2,fma", 8, [_mm256_set1_ps, _mm256_loadu_ps, _mm256_add_ps, _mm256_storeu_ps],
            f32, ["ymm0", "ymm1"],
            ["vmovups ymm0, [{b}]", "vmovups ymm1, [{b} + 32]", "prefetcht0 [{b} + {ahead}]"],
            $($row)*, { out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, }
        );
    };
}
tile256!(
    /// AVX2. See `Kernel::tile`.
    avx2,
    [0 "ymm4" "ymm5" "ymm2"] [1 "ymm6" "ymm7" "ymm3"] [2 "ymm8" "ymm9" "ymm2"] [3 "ymm10" "ymm11" "ymm3"]
    [4 "ymm12" "ymm13" "ymm2"] [5 "ymm14" "ymm15" "ymm3"]
);
tile256!(
    /// AVX2, 4 rows.
    avx2_low,
    [0 "ymm4" "ymm5" "ymm2"] [1 "ymm6" "ymm7" "ymm3"] [2 "ymm8" "ymm9" "ymm2"] [3 "ymm10" "ymm11" "ymm3"]
);
