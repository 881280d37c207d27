//! Which lane of a step computes what.
//!
//! A step's gradient is summed up lane by lane, and then over the lanes in a fixed order: processes share the lanes among
//! themselves, and whoever has which, the sum is the same. What is put together here depends on the number of lanes alone.

use super::pieces::best_fit_decreasing;
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// Micro-batches of `room` slots for what needs `sizes`: the lane of each, lanes ascending, and its members, as
/// [`best_fit_decreasing`] makes them of a lane's. The largest goes first, the first among equals, to the lane that has least, the
/// first among those: no lane is far above the others.
pub(super) fn bins(sizes: &[u64], room: u64, lanes: usize) -> Vec<(usize, Vec<usize>)> {
    if lanes == 1 {
        return best_fit_decreasing(sizes, room).into_iter().map(|bin| (0, bin)).collect();
    }
    let mut by_size: Vec<usize> = (0..sizes.len()).collect();
    by_size.sort_by_key(|&i| (Reverse(sizes[i]), i));
    let mut loads: BTreeSet<(u64, usize)> = (0..lanes).map(|lane| (0, lane)).collect();
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); lanes];
    for i in by_size {
        let Some((load, lane)) = loads.pop_first() else { break };
        members[lane].push(i);
        loads.insert((load + sizes[i], lane));
    }
    let of_lane = |(lane, mut own): (usize, Vec<usize>)| {
        own.sort_unstable();
        let of: Vec<u64> = own.iter().map(|&i| sizes[i]).collect();
        let bins = best_fit_decreasing(&of, room);
        bins.into_iter().map(move |bin| (lane, bin.into_iter().map(|i| own[i]).collect()))
    };
    members.into_iter().enumerate().flat_map(of_lane).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lane_is_the_plan_without_lanes() {
        let sizes = [5, 6, 4, 1];
        let plain: Vec<(usize, Vec<usize>)> = best_fit_decreasing(&sizes, 10).into_iter().map(|bin| (0, bin)).collect();
        assert_eq!(bins(&sizes, 10, 1), plain);
    }

    #[test]
    fn the_largest_go_to_the_lanes_that_have_least() {
        assert_eq!(bins(&[5, 6, 4, 1], 10, 2), [(0, vec![1, 3]), (1, vec![0, 2])]);
        // A lane may have more than one, or none.
        assert_eq!(bins(&[9, 9, 9], 10, 2), [(0, vec![0]), (0, vec![2]), (1, vec![1])]);
        assert_eq!(bins(&[3], 10, 3), [(0, vec![0])]);
    }
}
