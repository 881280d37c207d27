//! Eight bits a number: bitsandbytes' signed dynamic type (Dettmers et al. 2022, arXiv 2110.02861), in which double
//! quantisation keeps the magnitudes of blocks.
//!
//! Which code a number has is looked up as bitsandbytes does on a CPU, and that is not always the nearest: -1 to 1 is cut into
//! 65536 steps, and all of a step have the code nearest to its middle. The mean is summed as torch does it on one thread with
//! AVX2: in eight lanes, in four rows, by cascades.

/// Numbers of a block.
pub const BLOCK: usize = 256;
/// Steps of the table less one.
const LAST: f32 = 65535.0;

/// The type: what its codes stand for, and the codes of all steps.
pub struct Dynamic {
    /// What the codes stand for, in order.
    pub map: [f32; 256],
    steps: Vec<u8>,
}

impl Default for Dynamic {
    fn default() -> Self {
        Self::new()
    }
}

impl Dynamic {
    /// Makes the tables.
    pub fn new() -> Self {
        let map = map();
        let code = |step: usize| {
            let at = -1.0 + 2.0 * step as f64 / f64::from(LAST);
            let above = map.partition_point(|m| f64::from(*m) <= at).clamp(1, 255);
            let (below, above_by) = (at - f64::from(map[above - 1]), f64::from(map[above]) - at);
            if above_by < below { above as u8 } else { above as u8 - 1 }
        };
        Self { map, steps: (0..=LAST as usize).map(code).collect() }
    }

    /// Codes of `values`, and the largest magnitude of every block.
    pub fn quantize(&self, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
        let (mut codes, mut absmax) = (Vec::with_capacity(values.len()), Vec::new());
        for block in values.chunks(BLOCK) {
            let largest = block.iter().fold(0f32, |m, v| m.max(v.abs()));
            absmax.push(largest);
            let inverse = 1.0 / largest;
            codes.extend(block.iter().map(|v| match largest == 0.0 {
                true => 0,
                false => self.code(v * inverse),
            }));
        }
        (codes, absmax)
    }

    /// The code of a share of the largest magnitude.
    fn code(&self, share: f32) -> u8 {
        let step = (share.clamp(-1.0, 1.0) + 1.0) * (LAST / 2.0) + 0.5;
        // A cast of what is no number gives 0.
        self.steps[step as usize]
    }
}

/// What the codes stand for: for every power of ten down to 1e-7 twice as many fractions, of both signs, 0 and 1.
fn map() -> [f32; 256] {
    let mut all = Vec::with_capacity(256);
    for i in 0..7 {
        let points = (1usize << i) + 1;
        // torch.linspace(0.1, 1, points): from both ends, with one rounding a point.
        let step = (1.0f32 - 0.1f32) / (points - 1) as f32;
        let point = |k: usize| match k < points / 2 {
            true => step.mul_add(k as f32, 0.1),
            false => (-step).mul_add((points - 1 - k) as f32, 1.0),
        };
        let scale = 10f64.powi(i - 6) as f32;
        for k in 0..points - 1 {
            let value = (point(k) + point(k + 1)) / 2.0 * scale;
            all.extend([value, -value]);
        }
    }
    all.extend([0.0, 1.0]);
    all.sort_unstable_by(f32::total_cmp);
    std::array::from_fn(|i| all[i])
}

/// The mean, in torch's order.
pub fn mean(values: &[f32]) -> f32 {
    let sum = if values.len() >= 8 { lanes::<8>(values) } else { lanes::<1>(values) };
    sum / values.len() as f32
}

/// Rows that are summed side by side.
const ROWS: usize = 4;
/// Levels of a cascade.
const LEVELS: usize = 4;

fn lanes<const L: usize>(values: &[f32]) -> f32 {
    let whole = values.len() / L;
    let (vectors, rest) = values.split_at(whole * L);
    let vector = |i: usize| &vectors[i * L..(i + 1) * L];
    let rows = whole / ROWS;
    let mut sums = cascade::<L>(rows, |i, row| vector(i * ROWS + row));
    for i in rows * ROWS..whole {
        add(&mut sums[0], vector(i));
    }
    for row in 1..ROWS {
        let other = sums[row];
        add(&mut sums[0], &other);
    }
    // In one lane what is left is none; else it is summed first.
    let mut sum = rest.iter().fold(0f32, |sum, v| sum + v);
    sums[0].iter().for_each(|lane| sum += lane);
    sum
}

fn add<const L: usize>(to: &mut [f32; L], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// Sums of `len` vectors a row: each so many are added up and passed to the level above.
fn cascade<'a, const L: usize>(len: usize, at: impl Fn(usize, usize) -> &'a [f32]) -> [[f32; L]; ROWS] {
    let log = len.max(1).next_power_of_two().trailing_zeros() as usize;
    let power = (log / LEVELS).max(4);
    let (step, mut levels) = (1usize << power, [[[0f32; L]; ROWS]; LEVELS]);
    let mut i = 0;
    while i + step <= len {
        for _ in 0..step {
            levels[0].iter_mut().enumerate().for_each(|(row, sum)| add(sum, at(i, row)));
            i += 1;
        }
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut levels[level - 1], [[0.0; L]; ROWS]);
            levels[level].iter_mut().zip(&below).for_each(|(sum, below)| add(sum, below));
            if i & (step - 1) << (level * power) != 0 {
                break;
            }
        }
    }
    for i in i..len {
        levels[0].iter_mut().enumerate().for_each(|(row, sum)| add(sum, at(i, row)));
    }
    let [mut sums, above @ ..] = levels;
    for level in &above {
        sums.iter_mut().zip(level).for_each(|(sum, above)| add(sum, above));
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_has_ends_and_a_middle() {
        let Dynamic { map, steps } = Dynamic::new();
        assert!(map.is_sorted() && map[127] == 0.0 && map[255] == 1.0 && map[0] == -0.992_968_74);
        assert_eq!((steps.len(), steps[0], steps[65535]), (65536, 0, 255));
    }

    #[test]
    fn a_mean_is_one() {
        for len in [1, 3, 7, 8, 9, 31, 32, 33, 1000, 70_001] {
            let values: Vec<f32> = (0..len).map(|i| (i % 13) as f32).collect();
            let exact = values.iter().map(|v| f64::from(*v)).sum::<f64>() / len as f64;
            assert!((f64::from(mean(&values)) - exact).abs() <= 1e-6 * exact, "{len}");
        }
    }

    #[test]
    fn numbers_too_small_to_divide_by() {
        let (codes, absmax) = Dynamic::new().quantize(&[0.0, 1e-45, -1e-45]);
        assert_eq!((&codes[1..], absmax[0]), (&[255, 0][..], 1e-45));
        assert_eq!(Dynamic::new().quantize(&[0.0; 300]), (vec![0; 300], vec![0.0; 2]));
    }
}
