//! Sums in an order that does not depend on how many ranks there are.
//!
//! What is added up is cut into lanes. They are the leaves of one binary tree, which splits a range of lanes after the largest
//! power of two below its length; a sum is the sum of its left half and its right half. Rank r of W has the lanes from r V / W
//! up to (r + 1) V / W. It adds up the largest nodes that lie within its own lanes; their parts go to the part's owner, who
//! adds up the rest of the tree. Whoever adds, the same numbers are added in the same order.

use super::{Comm, Parts, Staging};
use crate::error::Result;
use bytemuck::Pod;
use std::ops::{AddAssign, Range};

/// Most bytes of a rank's gradient that travel at once.
const BUCKET: usize = 16 << 20;

/// The lanes of rank `rank` of `size`.
pub fn lanes_of(rank: usize, size: usize, lanes: usize) -> Range<usize> {
    rank * lanes / size..(rank + 1) * lanes / size
}

/// The halves of a node.
fn halves(node: &Range<usize>) -> [Range<usize>; 2] {
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

/// `to += from`.
pub fn add<T: Copy + AddAssign>(to: &mut [T], from: &[T]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += *from);
}

/// What a rank has of a sum over lanes: whole nodes, as few as there can be.
#[derive(Debug)]
pub struct Nodes<T> {
    lanes: usize,
    held: Vec<(Range<usize>, Vec<T>)>,
    spare: Vec<Vec<T>>,
}

impl<T: Pod + AddAssign> Nodes<T> {
    /// Of a tree over `lanes`, none yet.
    pub fn new(lanes: usize) -> Self {
        Self { lanes, held: Vec::new(), spare: Vec::new() }
    }

    /// The most buffers that a rank with the lanes `own` holds at once.
    pub fn most(own: &Range<usize>, lanes: usize) -> usize {
        let mut held: Vec<Range<usize>> = Vec::new();
        let mut most = 0;
        for lane in own.clone() {
            held.push(lane..lane + 1);
            most = most.max(held.len());
            while let Some(both) = last_two(&held, lanes) {
                held.truncate(held.len() - 2);
                held.push(both);
            }
        }
        most
    }

    /// Takes the numbers of the next lane, which `fill` writes into `len` of them. Lanes come in order.
    pub fn push(&mut self, lane: usize, len: usize, fill: impl FnOnce(&mut [T]) -> Result<()>) -> Result<()> {
        let mut numbers = self.spare.pop().unwrap_or_default();
        numbers.resize(len, T::zeroed());
        fill(&mut numbers)?;
        self.held.push((lane..lane + 1, numbers));
        while let [.., (left, _), (right, _)] = &self.held[..]
            && let Some(both) = parent(left, right, self.lanes)
        {
            let (Some((_, from)), Some((node, to))) = (self.held.pop(), self.held.last_mut()) else { break };
            add(to, &from);
            *node = both;
            self.spare.push(from);
        }
        Ok(())
    }

    /// Makes `out`, on every rank, the sum over all lanes, and holds nothing from here on. Every rank has pushed its own lanes
    /// ([`lanes_of`]), each as long as `out`.
    pub fn sum(&mut self, comm: &dyn Comm, out: &mut [T], what: &str) -> Result<()> {
        if comm.world().size == 1 {
            let (_, whole) = self.held.pop().expect("all lanes were pushed");
            out.copy_from_slice(&whole);
            self.spare.push(whole);
            return Ok(());
        }
        let step = (BUCKET / size_of::<T>()).max(1);
        let mut travels = Travels::new(comm, self.lanes);
        for at in (0..out.len()).step_by(step) {
            let end = (at + step).min(out.len());
            travels.bucket(comm, &self.held, at, &mut out[at..end], what)?;
        }
        self.spare.extend(self.held.drain(..).map(|(_, numbers)| numbers));
        Ok(())
    }
}

fn last_two(held: &[Range<usize>], lanes: usize) -> Option<Range<usize>> {
    let [.., left, right] = held else { return None };
    parent(left, right, lanes)
}

/// The way of a bucket: to its owners, and back to all.
struct Travels {
    lanes: usize,
    /// The nodes that each rank holds.
    nodes: Vec<Vec<Range<usize>>>,
    send: Staging,
    receive: Staging,
}

impl Travels {
    fn new(comm: &dyn Comm, lanes: usize) -> Self {
        let size = comm.world().size;
        let nodes = (0..size).map(|rank| nodes(&lanes_of(rank, size, lanes), lanes)).collect();
        Self { lanes, nodes, send: Staging::default(), receive: Staging::default() }
    }

    /// The sum of the elements from `at` on, as many as `out` has. Rank q adds up the q-th part of them.
    fn bucket<T: Pod + AddAssign>(
        &mut self,
        comm: &dyn Comm,
        held: &[(Range<usize>, Vec<T>)],
        at: usize,
        out: &mut [T],
        what: &str,
    ) -> Result<()> {
        let (rank, size, width) = (comm.world().rank, comm.world().size, size_of::<T>());
        let parts: Vec<Range<usize>> = (0..size).map(|q| lanes_of(q, size, out.len())).collect();
        let own = parts[rank].len();
        self.send.resize(held.len() * out.len() * width);
        let mut to = self.send.numbers_mut::<T>();
        for part in &parts {
            for (_, numbers) in held {
                let (now, rest) = to.split_at_mut(part.len());
                now.copy_from_slice(&numbers[at + part.start..at + part.end]);
                to = rest;
            }
        }
        let sent: Vec<usize> = parts.iter().map(|part| held.len() * part.len() * width).collect();
        let got: Vec<usize> = self.nodes.iter().map(|nodes| nodes.len() * own * width).collect();
        let Self { send, receive, .. } = self;
        comm.exchange(Parts { send, to: &sent, receive, from: &got }, what)?;
        // All nodes of all ranks, in order: those of rank 0 first.
        let places: Vec<Range<usize>> = self.nodes.iter().flatten().cloned().collect();
        let mut whole = vec![T::zeroed(); own];
        finish(&(0..self.lanes), &places, self.receive.numbers::<T>(), &mut whole);
        self.send.resize(size * own * width);
        self.send.numbers_mut::<T>().chunks_exact_mut(own.max(1)).for_each(|to| to.copy_from_slice(&whole));
        let (sent, got) = (vec![own * width; size], parts.iter().map(|part| part.len() * width).collect::<Vec<_>>());
        let Self { send, receive, .. } = self;
        comm.exchange(Parts { send, to: &sent, receive, from: &got }, what)?;
        out.copy_from_slice(self.receive.numbers());
        Ok(())
    }
}

/// The sum of `node`, `all` holding the numbers of `places` one after the other.
fn finish<T: Pod + AddAssign>(node: &Range<usize>, places: &[Range<usize>], all: &[T], out: &mut [T]) {
    let n = out.len();
    if let Some(i) = places.iter().position(|place| place == node) {
        return out.copy_from_slice(&all[i * n..(i + 1) * n]);
    }
    let [left, right] = halves(node);
    finish(&left, places, all, out);
    let mut other = vec![T::zeroed(); n];
    finish(&right, places, all, &mut other);
    add(out, &other);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::Alone;

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
    fn alone_the_sum_is_that_of_the_tree() {
        for lanes in 1..20 {
            let values: Vec<f32> = (0..lanes).map(|i| (i as f32 * 1.7).sin() * 10f32.powi(i as i32 % 9 - 4)).collect();
            let mut held = Nodes::new(lanes);
            for (lane, value) in values.iter().enumerate() {
                let fill = |to: &mut [f32]| {
                    to[0] = *value;
                    Ok(())
                };
                held.push(lane, 1, fill).unwrap();
                assert!(held.held.len() <= Nodes::<f32>::most(&(0..lanes), lanes));
            }
            let mut out = [0.0];
            held.sum(&Alone, &mut out, "add").unwrap();
            assert_eq!(out[0].to_bits(), defined(0..lanes, &values).to_bits(), "{lanes}");
        }
    }
}
