//! What GPUs are sold as: rates by their makers' sheets, and the shares of them that a step is assumed to reach.
//!
//! Nothing here was measured but where it says so. Rates are of dense matrices in bf16 with sums in f32 (sheets print twice as
//! much, for sparse ones), and of f32 without tensor cores.

use crate::backend::metered::{Assumed, Ceilings};
use crate::choice;
use crate::choice::Choice;

choice! {
    /// A GPU by its name.
    pub enum GpuName: default H100 {
        /// A100, 40 GB, SXM or PCIe.
        A100Of40 = "a100-40gb",
        /// A100, 80 GB, SXM.
        A100 = "a100" | "a100-80gb",
        /// A10, 24 GB.
        A10 = "a10",
        /// RTX A6000, 48 GB.
        A6000 = "rtx-a6000",
        /// RTX 3090, 24 GB.
        Rtx3090 = "rtx-3090",
        /// RTX 4090, 24 GB.
        Rtx4090 = "rtx-4090",
        /// RTX 5090, 32 GB.
        Rtx5090 = "rtx-5090",
        /// L4, 24 GB.
        L4 = "l4",
        /// L40S, 48 GB.
        L40s = "l40s",
        /// H100, 80 GB, SXM.
        H100 = "h100" | "h100-sxm",
        /// H100, 80 GB, PCIe.
        H100Pcie = "h100-pcie",
        /// H200, 141 GB, SXM.
        H200 = "h200",
        /// B200, 180 GB.
        B200 = "b200",
    }
}

/// A GPU's sheet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sheet {
    /// For people.
    pub name: &'static str,
    /// Words that the driver's name of it has, all of them.
    driver: &'static [&'static str],
    /// FLOP/s of products in bf16.
    pub bf16: f64,
    /// FLOP/s of products in f32.
    pub f32: f64,
    /// Bytes of its memory a second.
    pub bandwidth: f64,
    /// Bytes of its memory.
    pub memory: usize,
    /// Multiprocessors.
    processors: f64,
    /// Shares of `bf16` that attention reaches, forward and backward.
    attention: [f64; 2],
}

/// Share of a sheet's rate that large products reach: the largest of an H100 SXM had 823 to 837 of 989 TFLOP/s
/// (docs/results/2026-11-26-h100.md); of other GPUs an assumption.
pub const PRODUCTS: f64 = 0.83;
/// Share of a sheet's bandwidth that ops reach: on that H100 a copy had 2,985 of 3,350 GB/s, ops that move bytes 2,170 to 3,070;
/// of other GPUs an assumption.
pub const BANDWIDTH: f64 = 0.80;
/// Share of a product's bytes that are not moved behind its multiplications: the products of that day take so much longer than
/// their multiplications alone, at widths of 576 to 2,048.
const EXPOSED: f64 = 0.28;
/// Numbers of a product's result that a multiprocessor computes at a time: an assumption.
const TILE: f64 = 128.0 * 256.0;
/// Seconds that no op takes less than: a launch, and the gap before the next.
const LAUNCH: f64 = 4e-6;
/// Attention of that H100, at 256 + 2 x 256 tokens and heads of 64: 203 and 148 TFLOP/s.
const HOPPER: [f64; 2] = [0.205, 0.15];
/// An assumption: these tensor cores are slower beside the rest of the chip, and are kept waiting less.
const OTHERS: [f64; 2] = [0.4, 0.3];

impl GpuName {
    /// Its sheet. Sources: NVIDIA's data sheets of the A100 (2021), A10, L4, L40S, H100, H200 and HGX B200, and the white papers of
    /// the GA102, AD102 and GB202 chips for the cards called RTX.
    pub fn sheet(self) -> Sheet {
        use GpuName::*;
        match self {
            A100Of40 => sheet("A100 40GB", &["A100", "40GB"], [312.0, 19.5, 1_555.0, 40.0, 108.0], OTHERS),
            A100 => sheet("A100 80GB", &["A100", "80GB"], [312.0, 19.5, 2_039.0, 80.0, 108.0], OTHERS),
            A10 => sheet("A10", &["A10"], [125.0, 31.2, 600.0, 24.0, 72.0], OTHERS),
            A6000 => sheet("RTX A6000", &["RTX", "A6000"], [154.8, 38.7, 768.0, 48.0, 84.0], OTHERS),
            Rtx3090 => sheet("RTX 3090", &["RTX", "3090"], [71.0, 35.6, 936.0, 24.0, 82.0], OTHERS),
            Rtx4090 => sheet("RTX 4090", &["RTX", "4090"], [165.2, 82.6, 1_008.0, 24.0, 128.0], OTHERS),
            Rtx5090 => sheet("RTX 5090", &["RTX", "5090"], [209.5, 104.8, 1_792.0, 32.0, 170.0], OTHERS),
            L4 => sheet("L4", &["L4"], [121.0, 30.3, 300.0, 24.0, 58.0], OTHERS),
            L40s => sheet("L40S", &["L40S"], [362.0, 91.6, 864.0, 48.0, 142.0], OTHERS),
            H100 => sheet("H100 SXM", &["H100", "HBM3"], [989.0, 67.0, 3_350.0, 80.0, 132.0], HOPPER),
            H100Pcie => sheet("H100 PCIe", &["H100", "PCIe"], [756.0, 51.0, 2_000.0, 80.0, 114.0], HOPPER),
            H200 => sheet("H200 SXM", &["H200"], [989.0, 67.0, 4_800.0, 141.0, 132.0], HOPPER),
            B200 => sheet("B200", &["B200"], [2_250.0, 80.0, 8_000.0, 180.0, 148.0], HOPPER),
        }
    }
}

impl GpuName {
    /// The GPU that the driver calls `name`, where it is known.
    pub fn of_driver(name: &str) -> Option<Self> {
        let words: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let is = |of: &Self| of.sheet().driver.iter().all(|word| words.contains(word));
        Self::ALL.iter().copied().filter(|_| !words.contains(&"Laptop")).find(is)
    }
}

impl Sheet {
    /// What a run is assumed to reach, its products in bf16 or in f32.
    pub fn assumed(&self, bf16: bool) -> Assumed {
        let products = if bf16 { self.bf16 } else { self.f32 };
        let ceilings = Ceilings {
            products: PRODUCTS * products,
            wave: TILE * self.processors,
            attention: self.attention.map(|share| share * products),
            bandwidth: BANDWIDTH * self.bandwidth,
            exposed: EXPOSED,
            least: LAUNCH,
        };
        Assumed { name: self.name, products, bandwidth: self.bandwidth, ceilings }
    }
}

/// Of TFLOP/s in bf16 and f32, GB/s, GB and multiprocessors.
const fn sheet(
    name: &'static str,
    driver: &'static [&'static str],
    [bf16, f32, bandwidth, memory, processors]: [f64; 5],
    attention: [f64; 2],
) -> Sheet {
    Sheet {
        name,
        driver,
        bf16: 1e12 * bf16,
        f32: 1e12 * f32,
        bandwidth: 1e9 * bandwidth,
        memory: (1e9 * memory) as usize,
        processors,
        attention,
    }
}

#[cfg(test)]
mod tests {
    use super::GpuName::{self, *};
    use crate::choice::Choice;

    #[test]
    fn drivers_names_are_known() {
        for (name, want) in [
            ("NVIDIA H100 80GB HBM3", Some(H100)),
            ("NVIDIA H100 PCIe", Some(H100Pcie)),
            ("NVIDIA A100-SXM4-80GB", Some(A100)),
            ("NVIDIA A100-PCIE-40GB", Some(A100Of40)),
            ("NVIDIA A10", Some(A10)),
            ("NVIDIA L4", Some(L4)),
            ("NVIDIA L40S", Some(L40s)),
            ("NVIDIA RTX A6000", Some(A6000)),
            ("NVIDIA GeForce RTX 4090", Some(Rtx4090)),
            ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
            ("Tesla T4", None),
        ] {
            assert_eq!(GpuName::of_driver(name), want, "{name}");
        }
    }

    /// A slip of a digit or a unit would stand out of these ranges.
    #[test]
    fn sheets_are_of_this_world() {
        for gpu in GpuName::ALL {
            let s = gpu.sheet();
            let ridge = s.bf16 / s.bandwidth;
            assert!((70e12..2.5e15).contains(&s.bf16) && s.f32 < s.bf16, "{s:?}");
            assert!((3e11..8.1e12).contains(&s.bandwidth) && (70.0..450.0).contains(&ridge), "{s:?}");
            assert!((24_000_000_000..=180_000_000_000).contains(&s.memory), "{s:?}");
        }
    }
}
