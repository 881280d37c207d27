//! What ranks hand each other of a step, and of what they keep: parts of gradients to who adds them up, updated weights to all,
//! pieces of moments to rank 0. A bucket at a time ([`Shares`]): what is packed to travel is memory.

use super::shares::{Piece, Shares, length};
use super::state::{Part, State};
use super::team::{Ranks, Team};
use crate::backend::{Backend, Device, Storage};
use crate::comm::tree::finish;
use crate::comm::{Parts, Staging};
use crate::error::{Error, Result};
use crate::model;
use std::ops::Range;

/// Gradients, in the layout of the trained arena.
type Sums<B> = <B as Device>::Buf<<B as Device>::Acc>;

/// Where numbers lie that travel: it stays from step to step.
#[derive(Default)]
pub(super) struct Packed {
    send: Staging,
    receive: Staging,
}

/// Most bytes that are packed of gradients, and of weights, on their way out and in.
pub(super) fn packed<B: Backend>(shares: &Shares, ranks: Ranks) -> [usize; 2] {
    let size = ranks.world.size;
    if size == 1 {
        return [0; 2];
    }
    let bucket = shares.buckets().map(|k| length(&shares.pieces(shares.bucket(k)))).max().unwrap_or(0);
    let (part, nodes) = (bucket.div_ceil(size), ranks.nodes());
    let all: usize = nodes.iter().map(Vec::len).sum();
    let gradients = bucket * nodes[ranks.world.rank].len() + part * all;
    [gradients * size_of::<B::Acc>(), (bucket + part) * size_of::<B::Act>()]
}

/// Makes `grads`, where this rank's share of them is, the sum over the nodes of all ranks; they are the last of its own, after `others`.
pub(super) fn sum_gradients<B: Backend>(
    be: &B,
    team: &Team<'_>,
    shares: &Shares,
    (others, grads): (&[Sums<B>], &mut Sums<B>),
    Packed { send, receive }: &mut Packed,
) -> Result<()> {
    let (own, width, nodes) = (team.world().rank, size_of::<B::Acc>(), team.ranks().nodes());
    for k in shares.buckets() {
        let parts: Vec<Vec<Piece>> = (0..nodes.len()).map(|rank| shares.pieces(shares.part(k, rank))).collect();
        let to: Vec<usize> = parts.iter().map(|part| nodes[own].len() * length(part) * width).collect();
        let n = length(&parts[own]);
        let from: Vec<usize> = nodes.iter().map(|nodes| nodes.len() * n * width).collect();
        send.resize(to.iter().sum());
        let mut room = send.numbers_mut::<B::Acc>();
        for part in &parts {
            for node in others.iter().chain([&*grads]) {
                room = pack(be, node, part.iter().map(|piece| &piece.place.grad), room)?;
            }
        }
        let parcels = Parts { send: &mut *send, to: &to, receive: &mut *receive, from: &from };
        team.comm.exchange(parcels, "add up gradients")?;
        // What was sent is not needed any more: its memory takes the sums.
        send.resize(n * width);
        finish(team.lanes, &nodes.concat(), receive.numbers::<B::Acc>(), send.numbers_mut());
        unpack(be, parts[own].iter().map(|piece| &piece.place.grad), send.numbers::<B::Acc>(), grads)?;
    }
    Ok(())
}

/// Hands all ranks this one's part of bucket `k` of the weights, and takes the others' parts.
pub(super) fn hand_out<B: Backend>(
    be: &B,
    team: &Team<'_>,
    (shares, k): (&Shares, usize),
    weights: &mut B::Buf<B::Act>,
    Packed { send, receive }: &mut Packed,
) -> Result<()> {
    if !shares.shared() {
        return Ok(());
    }
    let (own, width) = (shares.own_of(k), size_of::<B::Act>());
    send.resize(length(own) * width);
    pack(be, weights, own.iter().map(|piece| &piece.place.at), send.numbers_mut::<B::Act>())?;
    team.comm.share((&mut *send, &mut *receive), &lengths(shares, k, (team.size(), width)), "hand out weights")?;
    let pieces = shares.pieces(shares.bucket(k));
    unpack(be, pieces.iter().map(|piece| &piece.place.at), receive.numbers::<B::Act>(), weights)
}

/// Bytes of each rank's part of bucket `k`, of `size` ranks and numbers of `width` bytes.
fn lengths(shares: &Shares, k: usize, (size, width): (usize, usize)) -> Vec<usize> {
    (0..size).map(|rank| length(&shares.pieces(shares.part(k, rank))) * width).collect()
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

/// Makes `numbers`, of which every rank has those of its own blocks, whole on all.
pub(super) fn complete<B: Backend>(be: &B, team: &Team<'_>, shares: &Shares, numbers: &mut B::Buf<f64>) -> Result<()> {
    if !shares.shared() {
        return Ok(());
    }
    let of = |rank: usize| shares.buckets().map(move |k| shares.part(k, rank));
    let bytes = |rank: usize| of(rank).map(|part| part.len()).sum::<usize>() * size_of::<f64>();
    let (world, Packed { mut send, mut receive }) = (team.world(), Packed::default());
    send.resize(bytes(world.rank));
    pack(be, numbers, of(world.rank).collect::<Vec<_>>().iter(), send.numbers_mut::<f64>())?;
    let lengths: Vec<usize> = (0..world.size).map(bytes).collect();
    team.comm.share((&mut send, &mut receive), &lengths, "hear of the gradients' norm")?;
    let parts: Vec<_> = (0..world.size).flat_map(of).collect();
    unpack(be, parts.iter(), receive.numbers::<f64>(), numbers)
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
    let lengths: Vec<usize> = (0..world.size).map(of).collect();
    let mut of_all = Packed { send: Staging::of(&mine), ..Packed::default() };
    to_first(team, &mut of_all, &lengths, "collect what the ranks have of a checkpoint")?;
    if !world.is_first() {
        to.extend(mine);
        return Ok(());
    }
    let mut at: Vec<usize> = lengths.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n))).collect();
    for (rank, span) in spans {
        let end = at[rank] + span.len() * width;
        to.extend_from_slice(&of_all.receive.bytes()[at[rank]..end]);
        at[rank] = end;
    }
    Ok(())
}

/// Hands what each rank has packed, of `lengths` by rank, to rank 0.
fn to_first(team: &Team<'_>, Packed { send, receive }: &mut Packed, lengths: &[usize], what: &str) -> Result<()> {
    let none = vec![0; lengths.len()];
    let mut to = none.clone();
    to[0] = lengths[team.world().rank];
    let from = if team.is_first() { lengths } else { &none };
    team.comm.exchange(Parts { send, to: &to, receive, from }, what)
}

/// The master weights of all ranks, in the place of rank 0's gradients, which are not needed any more. Every rank calls this.
pub(super) fn whole_master<B: Backend>(be: &B, state: &mut State<B>, team: &Team<'_>) -> Result<()> {
    let Some(master) = state.master.as_ref().filter(|_| state.shares.shared()) else { return Ok(()) };
    let Some(model::Sums::Full(all)) = state.grads.as_mut().map(|grads| &mut grads.sums) else { return Ok(()) };
    let (shares, width, mut packed) = (&state.shares, size_of::<B::Acc>(), Packed::default());
    for k in shares.buckets() {
        let own = shares.own_of(k);
        packed.send.resize(length(own) * width);
        let held: Vec<_> = own.iter().map(|piece| piece.held[0]..piece.held[0] + piece.place.grad.len()).collect();
        pack(be, master, held.iter(), packed.send.numbers_mut::<B::Acc>())?;
        to_first(team, &mut packed, &lengths(shares, k, (team.size(), width)), "collect master weights")?;
        if team.is_first() {
            let pieces = shares.pieces(shares.bucket(k));
            unpack(be, pieces.iter().map(|piece| &piece.place.grad), packed.receive.numbers::<B::Acc>(), all)?;
        }
    }
    Ok(())
}
