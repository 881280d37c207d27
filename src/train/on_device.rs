//! Gradients of lanes that are added up, and weights that are handed out, where the devices of ranks reach each other: nothing of them
//! goes by the host.
//!
//! The numbers that are added, and their order, are those of [`super::exchange`], which goes by the host.

use super::shares::{BLOCK, BUCKET, Piece, Shares, length};
use super::team::{Ranks, Team};
use crate::backend::{Add, Backend, Exchange};
use crate::comm::tree::halves;
use crate::error::Result;
use std::ops::Range;

/// Where what goes out and what comes in lies: a bucket at a time, each after the one before in the device's own order.
pub(super) struct OnDevice<B: Backend> {
    send: B::Buf<B::Acc>,
    receive: B::Buf<B::Acc>,
    /// A sum for each level of the tree.
    sums: Vec<B::Buf<B::Acc>>,
}

/// Levels of a tree over `lanes`, its leaves among them.
fn levels(lanes: usize) -> usize {
    lanes.next_power_of_two().trailing_zeros() as usize + 1
}

impl<B: Backend> OnDevice<B> {
    /// Room for gradients of `len` elements; none where the devices do not reach each other.
    pub fn new(be: &B, len: usize, ranks: Ranks) -> Result<Option<Self>> {
        let size = ranks.world.size;
        if size == 1 || be.joined().is_none() {
            return Ok(None);
        }
        const NAME: &str = "gradients of other ranks";
        let of = ranks.nodes();
        let blocks = BUCKET.max(size);
        let (bucket, part) = ((blocks * BLOCK).min(len), (blocks.div_ceil(size) * BLOCK).min(len));
        let all: usize = of.iter().map(Vec::len).sum();
        Ok(Some(Self {
            send: be.zeros(NAME, bucket * of[ranks.world.rank].len())?,
            receive: be.zeros(NAME, part * all)?,
            sums: (0..levels(ranks.lanes)).map(|_| be.zeros(NAME, part)).collect::<Result<_>>()?,
        }))
    }

    /// Makes `grads`, where this rank's share of them is, the sum over all lanes; they are the last of this rank's nodes, after
    /// `others`.
    pub fn sum(
        &mut self,
        be: &B,
        team: &Team<'_>,
        shares: &Shares,
        others: &[B::Buf<B::Acc>],
        grads: &mut B::Buf<B::Acc>,
    ) -> Result<()> {
        const WHAT: &str = "add up gradients";
        let (ranks, own) = (team.ranks(), team.world().rank);
        let of = ranks.nodes();
        let places = of.concat();
        for k in shares.buckets() {
            let parts: Vec<Vec<Piece>> = (0..of.len()).map(|rank| shares.pieces(shares.part(k, rank))).collect();
            let mut at = 0;
            for part in &parts {
                for node in others.iter().chain([&*grads]) {
                    for Piece { place, .. } in part {
                        let to = be.view_mut(&mut self.send, at..at + place.grad.len());
                        be.copy(to, be.view(node, place.grad.clone()))?;
                        at += place.grad.len();
                    }
                }
            }
            let n = length(&parts[own]);
            let to: Vec<usize> = parts.iter().map(|part| of[own].len() * length(part)).collect();
            let from: Vec<usize> = of.iter().map(|nodes| nodes.len() * n).collect();
            let receive = be.view_mut(&mut self.receive, 0..from.iter().sum());
            let op = Exchange { send: be.view(&self.send, 0..at), to: &to, receive, from: &from };
            be.exchange(team.comm, op, WHAT)?;
            finish(be, &(0..ranks.lanes), &places, (&self.receive, n), &mut self.sums)?;
            let mut at = 0;
            for Piece { place, .. } in &parts[own] {
                let sum = be.view(&self.sums[0], at..at + place.grad.len());
                be.copy(be.view_mut(grads, place.grad.clone()), sum)?;
                at += place.grad.len();
            }
        }
        be.exchanged(team.comm, WHAT)
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
    let (sum, rest) = sums.split_first_mut().expect("a sum a level");
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
        let blocks = BUCKET.max(size);
        let part = (blocks.div_ceil(size) * BLOCK).min(len);
        let room = |n: usize| be.zeros("weights of other ranks", n);
        Ok(Some(Self { send: room(part * size)?, receive: room((blocks * BLOCK).min(len))? }))
    }

    /// This rank's part of bucket `k` is what it is to be. All of it is under way when this comes back.
    pub fn add(
        &mut self,
        be: &B,
        team: &Team<'_>,
        (shares, k): (&Shares, usize),
        weights: &mut B::Buf<B::Act>,
    ) -> Result<()> {
        let (size, own) = (team.size(), shares.own_of(k));
        let mut at = 0;
        for Piece { place, .. } in (0..size).flat_map(|_| own) {
            let to = be.view_mut(&mut self.send, at..at + place.at.len());
            be.copy(to, be.view(weights, place.at.clone()))?;
            at += place.at.len();
        }
        let to = vec![length(own); size];
        let from: Vec<usize> = (0..size).map(|rank| length(&shares.pieces(shares.part(k, rank)))).collect();
        let receive = be.view_mut(&mut self.receive, 0..from.iter().sum());
        let op = Exchange { send: be.view(&self.send, 0..at), to: &to, receive, from: &from };
        be.exchange(team.comm, op, "hand out weights")?;
        let mut at = 0;
        for Piece { place, .. } in shares.pieces(shares.bucket(k)) {
            let came = be.view(&self.receive, at..at + place.at.len());
            be.copy(be.view_mut(weights, place.at.clone()), came)?;
            at += place.at.len();
        }
        Ok(())
    }

    /// Waits until all weights are what they are to be.
    pub fn end(&self, be: &B, team: &Team<'_>) -> Result<()> {
        be.exchanged(team.comm, "hand out weights")
    }
}
