//! What ranks hand each other of a step, and of what they keep: parts of gradients to who adds them up, updated weights to all,
//! pieces of moments to rank 0.
//!
//! Bytes travel a bucket at a time ([`Shares`]), and few buckets at once: what is packed for them is memory.

use super::shares::{Piece, Shares};
use super::state::{Part, State};
use super::team::{Ranks, Team};
use crate::backend::{Backend, Device, Storage};
use crate::comm::tree::{finish, lanes_of, nodes};
use crate::comm::{Parts, Pending, Staging, Transfer, Way};
use crate::error::{Error, Result};
use crate::model;
use std::collections::VecDeque;
use std::ops::Range;

/// Gradients, in the layout of the trained arena.
type Sums<B> = <B as Device>::Buf<<B as Device>::Acc>;

/// Buckets that are under way at once, at most.
const UNDER_WAY: usize = 3;

/// Bytes that a rank packs for others, and that come from them, at most; numbers of `width` bytes, `nodes` of which it has.
pub(super) fn packed(shares: &Shares, ranks: Ranks, width: usize) -> usize {
    let most = shares.buckets().map(|k| length(&shares.pieces(shares.bucket(k)))).max().unwrap_or(0);
    let size = ranks.world.size;
    if size == 1 {
        return 0;
    }
    let of = |rank| nodes(&lanes_of(rank, size, ranks.lanes), ranks.lanes).len();
    let all: usize = (0..size).map(of).sum();
    UNDER_WAY.min(shares.buckets().len()) * width * (most * of(ranks.world.rank) + most.div_ceil(size) * all)
}

/// Elements of `pieces`.
fn length(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.place.grad.len()).sum()
}

/// Sums of gradients on their way to who adds them up.
pub(super) struct Gathered<'a> {
    team: Team<'a>,
    /// The nodes of all ranks, in order, and how many each has.
    nodes: Vec<Range<usize>>,
    counts: Vec<usize>,
    under_way: VecDeque<(usize, Pending)>,
    spare: Vec<[Staging; 2]>,
}

impl<'a> Gathered<'a> {
    pub fn new(team: Team<'a>) -> Self {
        let (size, lanes) = (team.size(), team.lanes);
        let of: Vec<_> = (0..size).map(|rank| nodes(&lanes_of(rank, size, lanes), lanes)).collect();
        let counts = of.iter().map(Vec::len).collect();
        Self { team, nodes: of.concat(), counts, under_way: VecDeque::new(), spare: Vec::new() }
    }

    /// Sends bucket `k` of this rank's nodes, the last of which is `grads`, and takes what the others have of its own part.
    pub fn send<B: Backend>(
        &mut self,
        be: &B,
        shares: &Shares,
        k: usize,
        (others, grads): (&[Sums<B>], &mut Sums<B>),
    ) -> Result<()> {
        while self.under_way.len() >= UNDER_WAY {
            self.take(be, shares, grads)?;
        }
        let (world, width) = (self.team.world(), size_of::<B::Acc>());
        let [mut send, receive] = self.spare.pop().unwrap_or_default();
        let parts: Vec<Vec<Piece>> = (0..world.size).map(|rank| shares.pieces(shares.part(k, rank))).collect();
        let lengths: Vec<usize> = parts.iter().map(|part| length(part)).collect();
        let own = others.len() + 1;
        send.resize(own * lengths.iter().sum::<usize>() * width);
        let mut to = send.numbers_mut::<B::Acc>();
        for part in &parts {
            for node in others.iter().chain([&*grads]) {
                to = pack(be, node, part.iter().map(|piece| &piece.place.grad), to)?;
            }
        }
        let way = Way::Exchange {
            to: lengths.iter().map(|n| own * n * width).collect(),
            from: self.counts.iter().map(|count| count * lengths[world.rank] * width).collect(),
        };
        let pending = self.team.comm.begin(Transfer { send, receive, way }, "add up gradients")?;
        self.under_way.push_back((k, pending));
        Ok(())
    }

    /// Adds up this rank's part of what was sent first.
    fn take<B: Backend>(&mut self, be: &B, shares: &Shares, grads: &mut Sums<B>) -> Result<()> {
        let Some((k, pending)) = self.under_way.pop_front() else { return Ok(()) };
        let Transfer { mut send, receive, .. } = pending.wait()?;
        let own = shares.own_of(k);
        let n = length(own);
        // What was sent is not needed any more: its memory takes the sums.
        send.resize(send.bytes().len().max(n * size_of::<B::Acc>()));
        let sums = &mut send.numbers_mut::<B::Acc>()[..n];
        finish(self.team.lanes, &self.nodes, receive.numbers::<B::Acc>(), sums);
        unpack(be, own.iter().map(|piece| &piece.place.grad), sums, grads)?;
        self.spare.push([send, receive]);
        Ok(())
    }

    /// Waits for all that was sent.
    pub fn end<B: Backend>(&mut self, be: &B, shares: &Shares, grads: &mut Sums<B>) -> Result<()> {
        while !self.under_way.is_empty() {
            self.take(be, shares, grads)?;
        }
        Ok(())
    }
}

/// Writes the elements `ranges` of `from` to the beginning of `to`; gives what is behind them.
fn pack<'t, 'r, B: Backend, T: Storage>(
    be: &B,
    from: &B::Buf<T>,
    ranges: impl Iterator<Item = &'r Range<usize>>,
    mut to: &'t mut [T],
) -> Result<&'t mut [T]> {
    for range in ranges {
        let (now, rest) = to.split_at_mut(range.len());
        be.download(now, be.view(from, range.clone()))?;
        to = rest;
    }
    Ok(to)
}

/// Overwrites the elements `ranges` of `to` with the first of `from`.
fn unpack<'r, B: Backend, T: Storage>(
    be: &B,
    ranges: impl Iterator<Item = &'r Range<usize>>,
    mut from: &[T],
    to: &mut B::Buf<T>,
) -> Result<()> {
    for range in ranges {
        let (now, rest) = from.split_at(range.len());
        be.upload(be.view_mut(to, range.clone()), now)?;
        from = rest;
    }
    Ok(())
}

/// Weights that their ranks have updated, on their way to all.
pub(super) struct Handout<'a> {
    team: &'a Team<'a>,
    shares: &'a Shares,
    under_way: VecDeque<(usize, Pending)>,
    spare: Vec<[Staging; 2]>,
}

impl<'a> Handout<'a> {
    pub fn new(team: &'a Team<'a>, shares: &'a Shares) -> Self {
        Self { team, shares, under_way: VecDeque::new(), spare: Vec::new() }
    }

    /// This rank's part of bucket `k` is what it is to be.
    pub fn add<B: Backend>(&mut self, be: &B, k: usize, weights: &mut B::Buf<B::Act>) -> Result<()> {
        if !self.shares.shared() {
            return Ok(());
        }
        while self.under_way.len() >= UNDER_WAY {
            self.take(be, weights)?;
        }
        let [mut send, receive] = self.spare.pop().unwrap_or_default();
        let width = size_of::<B::Act>();
        let own = self.shares.own_of(k);
        send.resize(length(own) * width);
        pack(be, weights, own.iter().map(|piece| &piece.place.at), send.numbers_mut::<B::Act>())?;
        let of = |rank| length(&self.shares.pieces(self.shares.part(k, rank))) * width;
        let way = Way::Gather { lengths: (0..self.team.size()).map(of).collect() };
        self.under_way.push_back((k, self.team.comm.begin(Transfer { send, receive, way }, "hand out weights")?));
        Ok(())
    }

    fn take<B: Backend>(&mut self, be: &B, weights: &mut B::Buf<B::Act>) -> Result<()> {
        let Some((k, pending)) = self.under_way.pop_front() else { return Ok(()) };
        let Transfer { send, receive, .. } = pending.wait()?;
        let pieces = self.shares.pieces(self.shares.bucket(k));
        unpack(be, pieces.iter().map(|piece| &piece.place.at), receive.numbers::<B::Act>(), weights)?;
        self.spare.push([send, receive]);
        Ok(())
    }

    /// All weights are what they are to be.
    pub fn end<B: Backend>(mut self, be: &B, weights: &mut B::Buf<B::Act>) -> Result<()> {
        while !self.under_way.is_empty() {
            self.take(be, weights)?;
        }
        Ok(())
    }
}

/// Makes `numbers`, of which every rank has those of its own blocks, whole on all.
pub(super) fn complete<B: Backend>(be: &B, team: &Team<'_>, shares: &Shares, numbers: &mut B::Buf<f64>) -> Result<()> {
    if !shares.shared() {
        return Ok(());
    }
    let of = |rank: usize| shares.buckets().map(move |k| shares.part(k, rank));
    let length = |rank: usize| of(rank).map(|part| part.len()).sum::<usize>();
    let world = team.world();
    let mut send = Staging::default();
    send.resize(length(world.rank) * size_of::<f64>());
    pack(be, numbers, of(world.rank).collect::<Vec<_>>().iter(), send.numbers_mut::<f64>())?;
    let way = Way::Gather { lengths: (0..world.size).map(|rank| length(rank) * size_of::<f64>()).collect() };
    let transfer = Transfer { send, receive: Staging::default(), way };
    let all = team.comm.begin(transfer, "hear of the gradients' norm")?.wait()?;
    let parts: Vec<_> = (0..world.size).flat_map(of).collect();
    unpack(be, parts.iter(), all.receive.numbers::<f64>(), numbers)
}

/// Appends the elements `range` of `part` to `to`, as [`State::read`] would if this rank had all of them: on rank 0, and with
/// the help of all, each of which calls this. On the others `to` becomes what they have.
pub(super) fn collect<B: Backend>(
    be: &B,
    state: &State<B>,
    team: &Team<'_>,
    (part, width): (Part, usize),
    range: Range<usize>,
    to: &mut Vec<u8>,
) -> Result<()> {
    let (Some(kind), true) = (part.shared(), state.shares.shared()) else { return state.read(be, part, range, to) };
    let world = team.world();
    let mut mine = Vec::new();
    state.read(be, part, range.clone(), &mut mine)?;
    let spans = state.shares.spans(kind, range);
    let of = |rank: usize| spans.iter().filter(|(by, _)| *by == rank).map(|(_, of)| of.len() * width).sum::<usize>();
    if of(world.rank) != mine.len() {
        return Err(Error::Training(format!("{part:?}: {} bytes of a share of {}", mine.len(), of(world.rank))));
    }
    let (mut lengths, mut from) = (vec![0; world.size], vec![0; world.size]);
    lengths[0] = mine.len();
    if world.is_first() {
        from = (0..world.size).map(of).collect();
    }
    let (mut send, mut receive) = (Staging::of(&mine), Staging::default());
    let parts = Parts { send: &mut send, to: &lengths, receive: &mut receive, from: &from };
    team.comm.exchange(parts, "collect what the ranks have of a checkpoint")?;
    if !world.is_first() {
        to.extend(mine);
        return Ok(());
    }
    let mut at: Vec<usize> = from.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n))).collect();
    for (rank, span) in spans {
        let end = at[rank] + span.len() * width;
        to.extend_from_slice(&receive.bytes()[at[rank]..end]);
        at[rank] = end;
    }
    Ok(())
}

/// The master weights of all ranks, in the place of rank 0's gradients, which are not needed any more. Every rank calls this.
pub(super) fn whole_master<B: Backend>(be: &B, state: &mut State<B>, team: &Team<'_>) -> Result<()> {
    let Some(master) = state.master.as_ref().filter(|_| state.shares.shared()) else { return Ok(()) };
    let Some(model::Sums::Full(all)) = state.grads.as_mut().map(|grads| &mut grads.sums) else { return Ok(()) };
    let (shares, width) = (&state.shares, size_of::<B::Acc>());
    for k in shares.buckets() {
        let own = shares.own_of(k);
        let mut send = Staging::default();
        send.resize(length(own) * width);
        let held: Vec<_> = own.iter().map(|piece| piece.held[0]..piece.held[0] + piece.place.grad.len()).collect();
        pack(be, master, held.iter(), send.numbers_mut::<B::Acc>())?;
        let of = |rank| length(&shares.pieces(shares.part(k, rank))) * width;
        let way = Way::Gather { lengths: (0..team.size()).map(of).collect() };
        let transfer = Transfer { send, receive: Staging::default(), way };
        let received = team.comm.begin(transfer, "collect master weights")?.wait()?.receive;
        let pieces = shares.pieces(shares.bucket(k));
        unpack(be, pieces.iter().map(|piece| &piece.place.grad), received.numbers::<B::Acc>(), all)?;
    }
    Ok(())
}
