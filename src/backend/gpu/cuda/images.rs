//! The kernels in this binary, as build.rs compiled them.

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// A sum over the images: other code of kernels, other bits.
pub(super) fn sum() -> u32 {
    let mut sum = crc32fast::Hasher::new();
    FATBINS.iter().for_each(|image| sum.update(image));
    sum.finalize()
}
