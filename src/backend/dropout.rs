//! What dropout draws from, and how: the same on every backend, and in `kernels/dropout.cu`, to the bit.

use super::rounding::{GOLDEN, draw, mix, splitmix};
use crate::batch::MicroBatch;
use crate::error::{Error, Result};

/// A number for every live row of `from`, in order, made of its draws: of the group, the response and the token's place in it, and
/// so the same however rows are packed. A prompt that responses share is one row, with one number.
pub(super) fn rows(from: &MicroBatch, draws: u64) -> impl Iterator<Item = u64> + '_ {
    from.groups().iter().flat_map(move |g| {
        let group = splitmix(draws ^ g.id);
        // The prompt has the first segment, unless it is empty.
        let prompt = (!g.prompt.is_empty()).then_some(0);
        let responses = from.responses()[g.responses.start as usize..g.responses.end as usize].iter();
        let ids = prompt.into_iter().chain(responses.map(|r| r.id + 1));
        let segments = &from.segments()[g.segments.start as usize..g.segments.end as usize];
        ids.zip(segments).flat_map(move |(id, segment)| {
            let of = splitmix(group ^ id);
            (0..segment.len).map(move |at| splitmix(of ^ u64::from(segment.prefix_len + at)))
        })
    })
}

/// The stream that column `i` of a row is draw `i` of, at `site`.
#[inline(always)]
pub(super) fn stream(row: u64, site: u32) -> u64 {
    let low = mix((row as u32).wrapping_add(site.wrapping_mul(GOLDEN)));
    u64::from(mix((row >> 32) as u32 ^ low)) << 32 | u64::from(low)
}

/// Whether column `i` of a row of `stream` is kept.
#[inline(always)]
pub(super) fn kept(stream: u64, i: u32, below: u32) -> bool {
    draw(stream, u64::from(i)) >= below
}

/// Draws below this are dropped, and what is kept is multiplied with. Errors: a share that is none.
pub(super) fn share(p: f64) -> Result<(u32, f64)> {
    match (0.0..1.0).contains(&p) {
        true => Ok(((p * 4_294_967_296.0).round().min(4_294_967_295.0) as u32, 1.0 / (1.0 - p))),
        false => Err(Error::usage(format!("dropout {p}: not a share from 0 on and below 1"))),
    }
}

/// The error of an op over a batch that draws nothing.
pub(super) fn no_draws(op: &'static str) -> Error {
    Error::usage(format!("{op}: the batch was loaded without draws, or has no room for them"))
}

/// What a step draws from, of a run's seed: nothing else of the run's is drawn so.
pub fn of_step(seed: u64, step: u64) -> u64 {
    splitmix(splitmix(seed ^ u64::from_le_bytes(*b"dropout\0")) ^ step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Builder;

    fn batch(groups: &[u64], pad: u32) -> MicroBatch {
        let mut b = Builder::default();
        for &g in groups {
            b.group(g, (0..pad + g as u32).map(|t| t + 1)).unwrap();
            b.response(2 * g, [5, 6]).unwrap();
            b.response(2 * g + 1, [7, 8, 9]).unwrap();
        }
        b.finish(64).unwrap()
    }

    /// A row's number is its own, and what lies beside it does not change it.
    #[test]
    fn a_row_has_its_number_wherever_it_is() {
        let (all, one) = (batch(&[0, 1, 2], 2), batch(&[1], 2));
        let (all, one): (Vec<u64>, Vec<u64>) = (rows(&all, 9).collect(), rows(&one, 9).collect());
        assert_eq!(all.len(), 2 + 3 + 4 + 3 * 5);
        assert_eq!(all[7..15], one);
        let mut distinct = all.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), all.len());
        assert!(rows(&batch(&[0, 1, 2], 2), 10).zip(&all).all(|(a, b)| a != *b), "another step");
        // Without a prompt, responses begin where it would have.
        let empty = batch(&[0], 0);
        assert_eq!(rows(&empty, 9).count(), 5);
    }

    /// Shares of what is dropped, and of what is dropped at two places at once, within five deviations.
    #[test]
    fn each_place_drops_its_share_by_itself() {
        const N: usize = 1 << 20;
        for p in [0.05, 0.5, 0.9] {
            let (below, scale) = share(p).unwrap();
            assert!((scale * (1.0 - p) - 1.0).abs() < 1e-15);
            let dropped = |row: u64, site: u32, i: u32| !kept(stream(row, site), i, below);
            let (dim, step) = (1024, of_step(42, 7));
            let row = |r: u64, step: u64| splitmix(step ^ r);
            let near = |what: &str, count: usize, share: f64| {
                let (mean, deviation) = (N as f64 * share, (N as f64 * share * (1.0 - share)).sqrt());
                assert!((count as f64 - mean).abs() < 5.0 * deviation, "{what} at {p}: {count}, mean {mean}");
            };
            let count = |f: &dyn Fn(u64, u32) -> bool| {
                (0..(N / dim) as u64).map(|r| (0..dim as u32).filter(|i| f(r, *i)).count()).sum::<usize>()
            };
            let at = |r: u64, i: u32| dropped(row(r, step), 3, i);
            near("alone", count(&at), p);
            near("next column", count(&|r, i| at(r, i) && at(r, i + 1)), p * p);
            near("next row", count(&|r, i| at(r, i) && at(r + 1, i)), p * p);
            near("next site", count(&|r, i| at(r, i) && dropped(row(r, step), 4, i)), p * p);
            near("next layer", count(&|r, i| at(r, i) && dropped(row(r, step), 10, i)), p * p);
            near("next step", count(&|r, i| at(r, i) && dropped(row(r, of_step(42, 8)), 3, i)), p * p);
            near("next seed", count(&|r, i| at(r, i) && dropped(row(r, of_step(43, 7)), 3, i)), p * p);
        }
    }

    #[test]
    fn a_share_is_below_one() {
        for bad in [1.0, 1.5, -0.1, f64::NAN, f64::INFINITY] {
            assert!(share(bad).is_err(), "{bad}");
        }
        assert_eq!(share(0.0).unwrap(), (0, 1.0));
        assert_eq!(share(0.5).unwrap(), (1 << 31, 2.0));
        assert_eq!(share(1.0 - 1e-12).unwrap().0, u32::MAX);
    }
}
