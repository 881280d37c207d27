//! The kernels in this binary, as build.rs compiled them.

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Whether there is machine code for a GPU of this compute capability; else the driver compiles PTX for it.
pub(super) fn has_code_for(capability: (i32, i32)) -> bool {
    TARGETS.iter().any(|target| runs_on(target, capability))
}

/// Code for 8.0 runs on 8.x, code for 9.0a on 9.0 alone (CUDA programming guide, "Binary Compatibility").
fn runs_on(target: &str, (major, minor): (i32, i32)) -> bool {
    let (number, exactly) = target.strip_suffix('a').map_or((target, false), |n| (n, true));
    number.parse::<i32>().is_ok_and(|n| n / 10 == major && (n % 10 == minor || !exactly && n % 10 < minor))
}

/// A sum over the images: other code of kernels, other bits.
pub(super) fn sum() -> u32 {
    let mut sum = crc32fast::Hasher::new();
    FATBINS.iter().for_each(|image| sum.update(image));
    sum.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_on_its_own_major_version() {
        let runs = [
            ("80", vec![(8, 0), (8, 6), (8, 9)], vec![(7, 5), (9, 0), (12, 0)]),
            ("90a", vec![(9, 0)], vec![(8, 9), (9, 1), (10, 0)]),
            ("120", vec![(12, 0), (12, 1)], vec![(10, 0), (11, 0)]),
            ("ptx80", vec![], vec![(8, 0), (9, 0), (13, 0)]),
        ];
        for (target, on, not) in runs {
            assert!(on.iter().all(|c| runs_on(target, *c)) && !not.iter().any(|c| runs_on(target, *c)), "{target}");
        }
    }
}
