//! bf16 products on AMX tiles: 16 x 16 sums of 32 products an instruction (TDPBF16PS, Intel SDM vol. 2; denormals count
//! as 0), many times what VDPBF16PS does. The instructions are written out, as the standard library does not offer them yet.

use super::flush::ask_for;
use super::kernel::Kernel;
use super::pack512;
use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Lines, and units, of a tile register.
pub(super) const TILE: usize = 16;

/// Whether the CPU has AMX with bf16 and the system lets this process use it.
pub fn usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| {
        if __get_cpuid_max(0).0 < 7 {
            return false;
        }
        let edx = __cpuid_count(7, 0).edx;
        let (has_bf16, has_tiles) = (edx >> 22 & 1 == 1, edx >> 24 & 1 == 1);
        has_bf16 && has_tiles && permitted()
    })
}

/// Linux gives tile registers to processes that ask for them.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: a system call that takes two numbers and touches no memory of ours.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM,
             in("rsi") XFEATURE_XTILEDATA, out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// Other systems: not asked for yet.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// What LDTILECFG reads: palette 1, every register 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config([u8; 64]);

const CONFIG: Config = {
    let mut c = [0; 64];
    c[0] = 1;
    let mut t = 0;
    while t < 8 {
        c[16 + 2 * t] = 64;
        c[48 + t] = TILE as u8;
        t += 1;
    }
    Config(c)
};
static TILES: Config = CONFIG;

/// `f32` matrices, operands rounded to bf16 while they are packed. A tile of the output is 2 x 2 registers, two more hold
/// `a` and two `b`. A panel of `a` is, for every 16 units, 32 lines of 16 units; one of `b`, for every unit, 32 lines.
pub(super) struct Bf16Amx;

impl Kernel for Bf16Amx {
    type S = f32;
    type P = u32;
    const MR: usize = 2 * TILE;
    const NR: usize = 2 * TILE;
    const K: usize = 2;
    const DEPTH: usize = TILE;
    const ASKS: bool = false;

    unsafe fn enter() {
        // SAFETY: reads 64 bytes of a valid configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const TILES, options(nostack, readonly)) }
    }
    unsafe fn leave() {
        // SAFETY: gives the registers back; none is in use.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }

    unsafe fn tile(
        units: usize,
        a: *const u32,
        _a_step: usize,
        b: *const u32,
        _b_step: usize,
        c: *mut f32,
        c_ld: usize,
        base: *const f32,
        base_ld: usize,
    ) {
        ask_for(2 * TILE, 2 * TILE, c, c_ld, base, base_ld);
        // SAFETY: loads stay in 32 rows of 32 elements of `base`, in whole panels of `a` and `b`, and stores in as many
        // rows of `c`, which the caller's contract covers; the tile registers belong to this thread.
        unsafe {
            if base.is_null() {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
            } else {
                asm!(
                    "tileloadd tmm0, [{p} + {ld}]",
                    "tileloadd tmm1, [{p} + {ld} + 64]",
                    "tileloadd tmm2, [{q} + {ld}]",
                    "tileloadd tmm3, [{q} + {ld} + 64]",
                    p = in(reg) base, q = in(reg) base.add(TILE * base_ld), ld = in(reg) 4 * base_ld,
                    options(nostack, readonly)
                );
            }
            asm!(
                "2:",
                "tileloadd tmm4, [{a} + {sa}]",
                "tileloadd tmm6, [{b} + {sb}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {sb} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a} + {sa} + 1024]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 2048",
                "add {b}, 2048",
                "dec {n}",
                "jnz 2b",
                a = inout(reg) a => _, b = inout(reg) b => _, n = inout(reg) units / TILE => _,
                sa = in(reg) 4 * TILE, sb = in(reg) 4 * Self::NR,
                options(nostack, readonly)
            );
            asm!(
                "tilestored [{p} + {ld}], tmm0",
                "tilestored [{p} + {ld} + 64], tmm1",
                "tilestored [{q} + {ld}], tmm2",
                "tilestored [{q} + {ld} + 64], tmm3",
                p = in(reg) c, q = in(reg) c.add(TILE * c_ld), ld = in(reg) 4 * c_ld,
                options(nostack)
            );
        }
    }

    /// The upper half of the tile.
    unsafe fn low_tile(
        units: usize,
        a: *const u32,
        _a_step: usize,
        b: *const u32,
        _b_step: usize,
        c: *mut f32,
        c_ld: usize,
        base: *const f32,
        base_ld: usize,
    ) {
        // SAFETY: as `tile`, with 16 rows.
        unsafe {
            if base.is_null() {
                asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
            } else {
                asm!(
                    "tileloadd tmm0, [{p} + {ld}]",
                    "tileloadd tmm1, [{p} + {ld} + 64]",
                    p = in(reg) base, ld = in(reg) 4 * base_ld,
                    options(nostack, readonly)
                );
            }
            asm!(
                "2:",
                "tileloadd tmm4, [{a} + {sa}]",
                "tileloadd tmm6, [{b} + {sb}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {sb} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {a}, 2048",
                "add {b}, 2048",
                "dec {n}",
                "jnz 2b",
                a = inout(reg) a => _, b = inout(reg) b => _, n = inout(reg) units / TILE => _,
                sa = in(reg) 4 * TILE, sb = in(reg) 4 * Self::NR,
                options(nostack, readonly)
            );
            asm!(
                "tilestored [{p} + {ld}], tmm0",
                "tilestored [{p} + {ld} + 64], tmm1",
                p = in(reg) c, ld = in(reg) 4 * c_ld,
                options(nostack)
            );
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn pack(dst: &mut [u32], panel: usize, src: *const f32, width: usize, line: usize, len: usize, step: usize) {
        let whole = panel * len.div_ceil(Self::K);
        dst[whole..].fill(0);
        // SAFETY: the caller's contract.
        unsafe { pack512::pack_bf16(&mut dst[..whole], panel, src, width, line, len, step) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn pack_a(dst: &mut [u32], src: *const f32, width: usize, line: usize, len: usize, step: usize) {
        // SAFETY: the caller's contract.
        unsafe { pack512::pack_bf16_by_line(dst, Self::MR, src, width, line, len, step) }
    }
}
