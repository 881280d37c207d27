//! Gradients of lanes that are added up, and weights that are handed out, where the devices of ranks reach each other: nothing of them
//! goes by the host.
//!
//! The numbers that are added, and their order, are those of [`super::exchange`], which goes by the host.

use super::levels::{self, Level};
use super::places::{BLOCK, length};
use super::shares::{BUCKET, Shares};
use super::team::{Ranks, Team};
use crate::backend::{Add, Backend, Exchange, Storage};
use crate::comm::tree::halves;
use crate::error::Result;
use std::ops::Range;

/// Where what goes out and what comes in lies: a bucket at a time, each after the one before in the device's own order.
pub(super) struct OnDevice<B: Backend> {
    send: B::Buf<B::Acc>,
    receive: B::Buf<B::Acc>,
    /// A sum for each height of the tree.
    sums: Vec<B::Buf<B::Acc>>,
}

const ADD_UP: &str = "add up gradients";

const HAND_OUT: &str = "hand out weights";

/// Heights of a tree over `lanes`, its leaves among them.
fn heights(lanes: usize) -> usize {
    lanes.next_power_of_two().trailing_zeros() as usize + 1
}

/// The most elements of a part of a bucket, where `len` train.
fn part(len: usize, size: usize) -> usize {
    (BUCKET.max(size).div_ceil(size) * BLOCK).min(len)
}

/// Copies the elements of `pieces` that `of` gives to `to`, from `at` on; gives where they end.
fn pack<B: Backend, T: Storage>(
    be: &B,
    to: &mut B::Buf<T>,
    mut at: usize,
    (from, pieces): (&B::Buf<T>, impl Iterator<Item = Range<usize>>),
) -> Result<usize> {
    for piece in pieces {
        let end = at + piece.len();
        be.copy(be.view_mut(to, at..end), be.view(from, piece))?;
        at = end;
    }
    Ok(at)
}

/// Copies the first elements of `from` to `pieces` of `to`.
fn unpack<B: Backend, T: Storage>(
    be: &B,
    from: &B::Buf<T>,
    (to, pieces): (&mut B::Buf<T>, impl Iterator<Item = Range<usize>>),
) -> Result<()> {
    let mut at = 0;
    for piece in pieces {
        let end = at + piece.len();
        be.copy(be.view_mut(to, piece), be.view(from, at..end))?;
        at = end;
    }
    Ok(())
}

impl<B: Backend> OnDevice<B> {
    /// Room for gradients of `len` elements; none where the devices do not reach each other.
    pub fn new(be: &B, len: usize, ranks: Ranks) -> Result<Option<Self>> {
        let size = ranks.world.size;
        if size == 1 || be.joined().is_none() {
            return Ok(None);
        }
        const NAME: &str = "gradients of other ranks";
        let [out, into, region] = levels::room(&levels::levels(ranks), part(len, size));
        Ok(Some(Self {
            send: be.zeros(NAME, out)?,
            receive: be.zeros(NAME, into)?,
            sums: (0..heights(ranks.lanes)).map(|_| be.zeros(NAME, region)).collect::<Result<_>>()?,
        }))
    }

    /// Makes bucket `k` of `grads`, where this rank's part of it is, the sum over all lanes; they are the last of this rank's nodes,
    /// after `others`.
    pub fn sum(
        &mut self,
        be: &B,
        team: &Team<'_>,
        (levels, shares, k): (&[Level], &Shares, usize),
        others: &[B::Buf<B::Acc>],
        grads: &mut B::Buf<B::Acc>,
    ) -> Result<()> {
        let size = team.size();
        let span = |places: &Range<usize>| length(shares.pieces(shares.parts(k, places)));
        let mut at = 0;
        for region in &levels[0].regions {
            let pieces = shares.pieces(shares.parts(k, region));
            for node in others.iter().chain([&*grads]) {
                at = pack(be, &mut self.send, at, (node, pieces.clone().map(|piece| piece.place.grad)))?;
            }
        }
        for (i, level) in levels.iter().enumerate() {
            let (n, mine, nodes) = (span(level.region()), level.nodes[level.own].len(), level.nodes.concat());
            let to = level.by_rank(size, level.regions.iter().map(|region| mine * span(region)));
            let from = level.by_rank(size, level.nodes.iter().map(|nodes| nodes.len() * n));
            let receive = be.view_mut(&mut self.receive, 0..from.iter().sum());
            let op = Exchange { send: be.view(&self.send, 0..to.iter().sum()), to: &to, receive, from: &from };
            be.exchange(team.comm, op, ADD_UP)?;
            for (j, sum) in level.sums.iter().enumerate() {
                finish(be, sum, &nodes, (&self.receive, n), &mut self.sums)?;
                let Some(next) = levels.get(i + 1) else { continue };
                // By region, and then by sum: so they go on.
                let mut before = 0;
                for region in &next.regions {
                    let (of, at) = (span(region), span(&(next.regions[0].start..region.start)));
                    let to = before * level.sums.len() + j * of;
                    be.copy(be.view_mut(&mut self.send, to..to + of), be.view(&self.sums[0], at..at + of))?;
                    before += of;
                }
            }
        }
        unpack(be, &self.sums[0], (grads, shares.own_of(k).iter().map(|piece| piece.place.grad.clone())))
    }

    /// Waits until all buckets are what they are to be.
    pub fn end(&self, be: &B, team: &Team<'_>) -> Result<()> {
        be.rejoin()?;
        be.exchanged(team.comm, ADD_UP)
    }
}

/// Makes the first of `sums` the sum of `node`, `all` holding `n` numbers of each of `places`, one after the other.
fn finish<B: Backend>(
    be: &B,
    node: &Range<usize>,
    places: &[Range<usize>],
    (all, n): (&B::Buf<B::Acc>, usize),
    sums: &mut [B::Buf<B::Acc>],
) -> Result<()> {
    let place = |node: &Range<usize>| places.iter().position(|place| place == node).map(|i| i * n..(i + 1) * n);
    if let Some(at) = place(node) {
        return be.copy(be.view_mut(&mut sums[0], 0..n), be.view(all, at));
    }
    let [left, right] = halves(node);
    finish(be, &left, places, (all, n), sums)?;
    if let Some(at) = place(&right) {
        return be.add(Add { to: be.view_mut(&mut sums[0], 0..n), from: be.view(all, at) });
    }
    let (sum, rest) = sums.split_first_mut().expect("a sum a height");
    finish(be, &right, places, (all, n), rest)?;
    be.add(Add { to: be.view_mut(sum, 0..n), from: be.view(&rest[0], 0..n) })
}

/// Weights that their ranks have updated, on their way to all.
pub(super) struct Handed<B: Backend> {
    send: B::Buf<B::Act>,
    receive: B::Buf<B::Act>,
}

impl<B: Backend> Handed<B> {
    /// Room for them, of `len` that train; none where the devices do not reach each other.
    pub fn new(be: &B, len: usize, ranks: Ranks) -> Result<Option<Self>> {
        let size = ranks.world.size;
        if size == 1 || be.joined().is_none() {
            return Ok(None);
        }
        let room = || be.zeros("weights of other ranks", part(len, size) * size);
        Ok(Some(Self { send: room()?, receive: room()? }))
    }

    /// This rank's part of bucket `k` is what it is to be, and goes to all.
    pub fn add(
        &mut self,
        be: &B,
        team: &Team<'_>,
        (levels, shares, k): (&[Level], &Shares, usize),
        weights: &mut B::Buf<B::Act>,
    ) -> Result<()> {
        let size = team.size();
        for level in levels.iter().rev() {
            let pieces = |places: &Range<usize>| shares.pieces(shares.parts(k, places));
            let (mine, mut at) = (pieces(level.region()), 0);
            for _ in &level.circle {
                at = pack(be, &mut self.send, at, (weights, mine.clone().map(|piece| piece.place.at)))?;
            }
            let n = length(mine);
            let to = level.by_rank(size, level.circle.iter().map(|_| n));
            let from = level.by_rank(size, level.regions.iter().map(|region| length(pieces(region))));
            let receive = be.view_mut(&mut self.receive, 0..from.iter().sum());
            be.exchange(
                team.comm,
                Exchange { send: be.view(&self.send, 0..at), to: &to, receive, from: &from },
                HAND_OUT,
            )?;
            let all = level.regions.iter().flat_map(pieces);
            unpack(be, &self.receive, (weights, all.map(|piece| piece.place.at)))?;
        }
        Ok(())
    }

    /// Waits until all weights are what they are to be.
    pub fn end(&self, be: &B, team: &Team<'_>) -> Result<()> {
        be.rejoin()?;
        be.exchanged(team.comm, HAND_OUT)
    }
}
