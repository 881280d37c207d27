//! The kernels in this binary, as build.rs compiled them.

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Whether there is machine code for a GPU of this compute capability; else the driver compiles PTX for it.
pub(super) fn has_code_for(capability: (i32, i32)) -> bool {
    TARGETS.iter().any(|target| runs_on(target, capability))
}

/// Whether one of `targets` serves such a GPU: machine code, or PTX that the driver compiles.
pub(super) fn serves(targets: &[&str], capability: (i32, i32)) -> bool {
    let compiled = |ptx: &str| ptx.parse::<i32>().is_ok_and(|n| (n / 10, n % 10) <= capability);
    targets.iter().any(|t| runs_on(t, capability) || t.strip_prefix("ptx").is_some_and(compiled))
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
        let all = ["80", "90a", "ptx80"];
        assert!([(8, 0), (9, 0), (9, 1), (12, 1)].iter().all(|c| serves(&all, *c)) && !serves(&all, (7, 5)));
        assert!(!serves(&all[..2], (10, 0)) && !serves(&["90a"], (8, 0)) && !serves(&["ptx90"], (8, 9)));
    }
}
