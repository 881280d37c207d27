//! Tiles of AVX-512 that read `a` where it lies, a line after the other: for products so thin that packing would be most of
//! them. The order of operations is that of `flush::avx512`, and denormals count as 0.

use super::flush::{FLUSH, ask_for};
use std::arch::asm;
use std::arch::x86_64::*;

/// Rows of a tile.
pub(super) const ROWS: usize = 12;

/// `ROWS` rows of `$n` columns: a row of `b` is read by `$read`, and `$row` multiplies it by an element of a line of `a`.
macro_rules! tile {
    ($(#[$doc:meta])* $name:ident, $n:literal, [$($read:literal),*], $([$i:literal $at:literal $x:literal $([$v:literal $acc:tt $b:literal])*])*) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The CPU has AVX-512F. Readable: `units` elements at `a + i * a_line` for `i < ROWS`, the tile's columns at `b + u * b_step`
        /// for `u < units` and, unless it is null, at `base + i * base_ld`. Writable: as many at `c + i * c_ld`.
        #[target_feature(enable = "avx512f")]
        #[allow(clippy::too_many_arguments)]
        pub(super) unsafe fn $name(
            units: usize, a: *const f32, a_line: usize, b: *const f32, b_step: usize,
            c: *mut f32, c_ld: usize, base: *const f32, base_ld: usize,
        ) {
            const V: usize = $n / 16;
            ask_for(ROWS, $n, c, c_ld, base, base_ld);
            let mut acc = [[_mm512_setzero_ps(); V]; ROWS];
            let mut control = [0u32; 2];
            // SAFETY: reads are those of the contract; MXCSR is restored.
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
                        concat!("vbroadcastss ", $x, ", dword ptr [", $at, "]"),
                        $(concat!("vfmadd231ps ", $acc, ", ", $x, ", ", $b),)*
                    )*
                    "add {a0}, 4",
                    "add {a3}, 4",
                    "add {a6}, 4",
                    "add {a9}, 4",
                    "add {b}, {b_step}",
                    "dec {units}",
                    "jnz 2b",
                    "3:",
                    "ldmxcsr [{control}]",
                    control = in(reg) &raw mut control,
                    flush = out(reg) _,
                    bits = const FLUSH,
                    units = inout(reg) units => _,
                    a0 = inout(reg) a => _,
                    a3 = inout(reg) a.wrapping_add(3 * a_line) => _,
                    a6 = inout(reg) a.wrapping_add(6 * a_line) => _,
                    a9 = inout(reg) a.wrapping_add(9 * a_line) => _,
                    line = in(reg) 4 * a_line,
                    b = inout(reg) b => _,
                    b_step = in(reg) 4 * b_step,
                    $($(inout($acc) acc[$i][$v],)*)*
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                    options(nostack)
                );
                for (i, acc) in acc.iter().enumerate() {
                    for (v, t) in acc.iter().enumerate() {
                        let t = if base.is_null() { *t } else { _mm512_add_ps(_mm512_loadu_ps(base.add(i * base_ld + v * 16)), *t) };
                        _mm512_storeu_ps(c.add(i * c_ld + v * 16), t);
                    }
                }
            }
        }
    };
}

tile!(
    /// 32 columns.
    by_32, 32, ["vmovups zmm0, [{b}]", "vmovups zmm1, [{b} + 64]"],
    [0 "{a0}" "zmm2" [0 "zmm8" "zmm0"] [1 "zmm9" "zmm1"]]
    [1 "{a0} + {line}" "zmm3" [0 "zmm10" "zmm0"] [1 "zmm11" "zmm1"]]
    [2 "{a0} + 2 * {line}" "zmm4" [0 "zmm12" "zmm0"] [1 "zmm13" "zmm1"]]
    [3 "{a3}" "zmm5" [0 "zmm14" "zmm0"] [1 "zmm15" "zmm1"]]
    [4 "{a3} + {line}" "zmm2" [0 "zmm16" "zmm0"] [1 "zmm17" "zmm1"]]
    [5 "{a3} + 2 * {line}" "zmm3" [0 "zmm18" "zmm0"] [1 "zmm19" "zmm1"]]
    [6 "{a6}" "zmm4" [0 "zmm20" "zmm0"] [1 "zmm21" "zmm1"]]
    [7 "{a6} + {line}" "zmm5" [0 "zmm22" "zmm0"] [1 "zmm23" "zmm1"]]
    [8 "{a6} + 2 * {line}" "zmm2" [0 "zmm24" "zmm0"] [1 "zmm25" "zmm1"]]
    [9 "{a9}" "zmm3" [0 "zmm26" "zmm0"] [1 "zmm27" "zmm1"]]
    [10 "{a9} + {line}" "zmm4" [0 "zmm28" "zmm0"] [1 "zmm29" "zmm1"]]
    [11 "{a9} + 2 * {line}" "zmm5" [0 "zmm30" "zmm0"] [1 "zmm31" "zmm1"]]
);
tile!(
    /// 16 columns.
    by_16, 16, ["vmovups zmm0, [{b}]"],
    [0 "{a0}" "zmm2" [0 "zmm8" "zmm0"]]
    [1 "{a0} + {line}" "zmm3" [0 "zmm10" "zmm0"]]
    [2 "{a0} + 2 * {line}" "zmm4" [0 "zmm12" "zmm0"]]
    [3 "{a3}" "zmm5" [0 "zmm14" "zmm0"]]
    [4 "{a3} + {line}" "zmm2" [0 "zmm16" "zmm0"]]
    [5 "{a3} + 2 * {line}" "zmm3" [0 "zmm18" "zmm0"]]
    [6 "{a6}" "zmm4" [0 "zmm20" "zmm0"]]
    [7 "{a6} + {line}" "zmm5" [0 "zmm22" "zmm0"]]
    [8 "{a6} + 2 * {line}" "zmm2" [0 "zmm24" "zmm0"]]
    [9 "{a9}" "zmm3" [0 "zmm26" "zmm0"]]
    [10 "{a9} + {line}" "zmm4" [0 "zmm28" "zmm0"]]
    [11 "{a9} + 2 * {line}" "zmm5" [0 "zmm30" "zmm0"]]
);
