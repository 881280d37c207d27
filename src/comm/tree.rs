//! Sums in an order that does not depend on how many ranks there are.
//!
//! What is added up is cut into lanes. They are the leaves of one binary tree, which splits a range of lanes after the largest
//! power of two below its length; a sum is the sum of its left half and its right half. Rank r of W has the lanes from r V / W
//! up to (r + 1) V / W. It adds up the largest nodes that lie within its own lanes; their parts go to the part's owner, who
//! adds up the rest of the tree. Whoever adds, the same numbers are added in the same order.

use bytemuck::Pod;
use rayon::prelude::*;
use std::ops::{AddAssign, Range};

/// The lanes of rank `rank` of `size`.
pub fn lanes_of(rank: usize, size: usize, lanes: usize) -> Range<usize> {
    rank * lanes / size..(rank + 1) * lanes / size
}

/// The halves of a node.
pub fn halves(node: &Range<usize>) -> [Range<usize>; 2] {
    let middle = node.start + (node.len().next_power_of_two() / 2);
    [node.start..middle, middle..node.end]
}

/// The largest nodes of the tree over `lanes` that lie within `within`, in order.
pub fn nodes(within: &Range<usize>, lanes: usize) -> Vec<Range<usize>> {
    fn walk(node: Range<usize>, within: &Range<usize>, out: &mut Vec<Range<usize>>) {
        if node.end <= within.start || within.end <= node.start {
            return;
        }
        if within.start <= node.start && node.end <= within.end {
            return out.push(node);
        }
        halves(&node).into_iter().for_each(|half| walk(half, within, out));
    }
    let mut out = Vec::new();
    walk(0..lanes, within, &mut out);
    out
}

/// The node whose halves are `left` and `right`, where the tree over `lanes` has one.
fn parent(left: &Range<usize>, right: &Range<usize>, lanes: usize) -> Option<Range<usize>> {
    let both = left.start..right.end;
    let mut node = 0..lanes;
    while node != both {
        let next = halves(&node).into_iter().find(|half| half.start <= both.start && both.end <= half.end)?;
        if next == node {
            return None;
        }
        node = next;
    }
    (halves(&node) == [left.clone(), right.clone()]).then_some(both)
}

/// The nodes that a rank has of a sum whose lanes come to it one after the other: as few as there can be.
#[derive(Clone, Debug)]
pub struct Stack {
    lanes: usize,
    nodes: Vec<Range<usize>>,
}

impl Stack {
    /// Of a tree over `lanes`, none yet.
    pub fn new(lanes: usize) -> Self {
        Self { lanes, nodes: Vec::new() }
    }

    /// The next lane is there, by itself.
    pub fn push(&mut self, lane: usize) {
        self.nodes.push(lane..lane + 1);
    }

    /// Makes one of the last two where they are halves of a node; whether they were.
    pub fn join(&mut self) -> bool {
        let [.., left, right] = &self.nodes[..] else { return false };
        let Some(both) = parent(left, right, self.lanes) else { return false };
        self.nodes.truncate(self.nodes.len() - 2);
        self.nodes.push(both);
        true
    }

    /// What there is, in order.
    pub fn nodes(&self) -> &[Range<usize>] {
        &self.nodes
    }

    /// Has none again.
    pub fn clear(&mut self) {
        self.nodes.clear();
    }

    /// The most nodes that a rank with the lanes `own` has at once.
    pub fn most(own: &Range<usize>, lanes: usize) -> usize {
        let (mut stack, mut most) = (Self::new(lanes), 0);
        for lane in own.clone() {
            stack.push(lane);
            most = most.max(stack.nodes.len());
            while stack.join() {}
        }
        most
    }
}

/// Numbers that are added up at a time.
const CHUNK: usize = 1 << 14;

/// `out` = the sums of the node `root`, from the number `first` on, `all` holding the numbers of `nodes`, which make it up, one node
/// after the other.
pub fn finish<T: Pod + AddAssign + Send + Sync>(
    root: &Range<usize>,
    (nodes, all): (&[Range<usize>], &[T]),
    first: usize,
    out: &mut [T],
) {
    let of = Whole { nodes, all, len: all.len() / nodes.len() };
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(i, out)| of.add_up(root, first + i * CHUNK, out));
}

/// What a sum is finished from.
struct Whole<'a, T> {
    nodes: &'a [Range<usize>],
    all: &'a [T],
    /// Numbers of a node.
    len: usize,
}

impl<T: Pod + AddAssign> Whole<'_, T> {
    /// `out` = the sums of `node`, of the numbers from `at` on.
    fn add_up(&self, node: &Range<usize>, at: usize, out: &mut [T]) {
        if let Some(i) = self.nodes.iter().position(|own| own == node) {
            return out.copy_from_slice(&self.all[i * self.len + at..][..out.len()]);
        }
        let [left, right] = halves(node);
        self.add_up(&left, at, out);
        let mut other = vec![T::zeroed(); out.len()];
        self.add_up(&right, at, &mut other);
        out.iter_mut().zip(other).for_each(|(to, from)| *to += from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_is_in_one_node_of_one_rank() {
        for lanes in 1..40 {
            for size in 1..=lanes {
                let all = (0..size).flat_map(|rank| nodes(&lanes_of(rank, size, lanes), lanes));
                let end = all.fold(0, |next, node| {
                    assert_eq!(node.start, next);
                    node.end
                });
                assert_eq!(end, lanes);
            }
        }
        assert_eq!(nodes(&(1..4), 4), [1..2, 2..4]);
        assert_eq!(nodes(&(4..8), 12).iter().map(|n| (n.start, n.end)).collect::<Vec<_>>(), [(4, 8)]);
    }

    /// The sum by definition, from the root.
    fn defined(node: Range<usize>, lanes: &[f32]) -> f32 {
        if node.len() == 1 {
            return lanes[node.start];
        }
        let [left, right] = halves(&node);
        defined(left, lanes) + defined(right, lanes)
    }

    #[test]
    fn a_sum_is_that_of_the_tree_whoever_has_which_lanes() {
        for lanes in 1..20 {
            let value = |i: usize| (i as f32 * 1.7).sin() * 10f32.powi(i as i32 % 9 - 4);
            let rows: Vec<Vec<f32>> =
                (0..lanes).map(|lane| (0..CHUNK + 3).map(|e| value(lane + 31 * e)).collect()).collect();
            for size in 1..=lanes {
                let (mut all, mut places) = (Vec::new(), Vec::new());
                for own in (0..size).map(|rank| lanes_of(rank, size, lanes)) {
                    let (mut stack, mut held): (_, Vec<Vec<f32>>) = (Stack::new(lanes), Vec::new());
                    for lane in own.clone() {
                        stack.push(lane);
                        held.push(rows[lane].clone());
                        assert!(stack.nodes().len() <= Stack::most(&own, lanes));
                        while stack.join() {
                            let right = held.pop().unwrap();
                            held.last_mut().unwrap().iter_mut().zip(right).for_each(|(to, from)| *to += from);
                        }
                    }
                    assert_eq!(stack.nodes(), nodes(&own, lanes));
                    places.extend(stack.nodes().iter().cloned());
                    all.extend(held.concat());
                }
                let mut out = vec![f32::NAN; CHUNK + 3];
                finish(&(0..lanes), (&places, &all), 0, &mut out);
                for (e, out) in out.iter().enumerate() {
                    let column: Vec<f32> = rows.iter().map(|row| row[e]).collect();
                    assert_eq!(out.to_bits(), defined(0..lanes, &column).to_bits(), "{lanes} lanes, {size} ranks, {e}");
                }
            }
        }
    }
}
