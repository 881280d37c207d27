//! Four bits a number: sixteen quantiles of the normal distribution, times a block's largest magnitude.

use super::precision::Precision;

/// Numbers of a block.
pub const BLOCK: usize = 64;

/// What the codes stand for, as a share of the block's largest magnitude: appendix E of the paper.
pub const CODE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Half-way from one code to the next: what is beyond has the next.
pub const BOUNDS: [f32; 15] = {
    let (mut bounds, mut i) = ([0.0; 15], 0);
    while i < 15 {
        bounds[i] = (CODE[i] + CODE[i + 1]) / 2.0;
        i += 1;
    }
    bounds
};

/// Least magnitude that numbers are divided by: bitsandbytes'. It is also what an incomplete block of zeros keeps.
pub const LEAST: f32 = 1e-38;

/// Blocks of so many numbers.
pub fn blocks(len: usize) -> usize {
    len.div_ceil(BLOCK)
}

/// The code of a share of the largest magnitude.
#[inline(always)]
pub fn code(share: f32) -> u8 {
    BOUNDS.iter().map(|bound| u8::from(share > *bound)).sum()
}

/// Appends the codes of `values`, two a byte, and each block's magnitude. Only the last values of a tensor may be no whole
/// blocks; half a byte that is left over holds the code of 0.
pub fn quantize(values: &[f32], codes: &mut Vec<u8>, absmax: &mut Vec<f32>) {
    for block in values.chunks(BLOCK) {
        let largest = block.iter().fold(0f32, |m, v| m.max(v.abs()));
        let divisor = largest.max(LEAST);
        let mut shares = [0f32; BLOCK];
        if block.len() == BLOCK {
            let inverse = 1.0 / divisor;
            shares.iter_mut().zip(block).for_each(|(s, v)| *s = (v * inverse).clamp(-1.0, 1.0));
            absmax.push(largest);
        } else {
            // As bitsandbytes has it: the quotient, and the least magnitude for none.
            shares.iter_mut().zip(block).for_each(|(s, v)| *s = (v / divisor).clamp(-1.0, 1.0));
            absmax.push(divisor);
        }
        let bytes = shares.chunks_exact(2).map(|two| code(two[0]) << 4 | code(two[1]));
        codes.extend(bytes.take(block.len().div_ceil(2)));
    }
}

/// The sixteen numbers that a block of magnitude `absmax` can hold.
#[inline(always)]
pub fn levels(absmax: f32, round: Precision) -> [f32; 16] {
    CODE.map(|code| round.round(code * absmax))
}

/// `out.len()` numbers from the start of a block on.
pub fn dequantize(codes: &[u8], absmax: &[f32], round: Precision, out: &mut [f32]) {
    for ((out, codes), absmax) in out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK / 2)).zip(absmax) {
        let levels = levels(*absmax, round);
        for (two, byte) in out.chunks_mut(2).zip(codes) {
            two[0] = levels[usize::from(byte >> 4)];
            if let Some(second) = two.get_mut(1) {
                *second = levels[usize::from(byte & 15)];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_the_nearest_code() {
        for (i, c) in CODE.iter().enumerate() {
            assert_eq!(usize::from(code(*c)), i);
        }
        for (i, bound) in BOUNDS.iter().enumerate() {
            assert_eq!((usize::from(code(*bound)), usize::from(code(bound.next_up()))), (i, i + 1));
        }
        // Of zeros nothing is left, and of numbers that are their own levels everything.
        let values: Vec<f32> = (0..70).map(|i| CODE[i * 7 % 16] * 3.0).collect();
        for len in [1, 2, 63, 64, 65, 70] {
            let (mut codes, mut absmax, mut back) = (Vec::new(), Vec::new(), vec![f32::NAN; len]);
            quantize(&values[..len], &mut codes, &mut absmax);
            assert_eq!((codes.len(), absmax.len()), (len.div_ceil(2), blocks(len)));
            dequantize(&codes, &absmax, Precision::F32, &mut back);
            if len > 63 {
                assert_eq!(back[..64], values[..64]);
            }
            let zeros = vec![0.0; len];
            let (mut codes, mut absmax) = (Vec::new(), Vec::new());
            quantize(&zeros, &mut codes, &mut absmax);
            dequantize(&codes, &absmax, Precision::Bf16, &mut back);
            assert_eq!(back, zeros);
        }
    }
}
