//! What ranks hand each other of a step, and of what they keep: parts of gradients to who adds them up, updated weights to all,
//! pieces of moments to rank 0. A bucket at a time ([`Shares`]): what is packed to travel is memory.

use super::carrier::{Packed, Parcel, ROOM};
use super::levels::{self, Level, levels};
use super::places::{BLOCK, length};
use super::shares::Shares;
use super::state::{Part, State};
use super::team::{Ranks, Team};
use crate::backend::{Backend, Device, Storage};
use crate::comm::tree::finish;
use crate::comm::{Comm, Parts, Staging};
use crate::error::{Error, Result};
use crate::model;
use bytemuck::Pod;
use std::ops::{AddAssign, Range};

/// Gradients, in the layout of the trained arena.
type Sums<B> = <B as Device>::Buf<<B as Device>::Acc>;

/// Most bytes that are packed of gradients, and of weights, on their way out and in.
pub(super) fn packed<B: Backend>(shares: &Shares, ranks: Ranks) -> [usize; 2] {
    let levels = levels(ranks);
    let bucket = shares.buckets().map(|k| length(shares.pieces(shares.bucket(k)))).max().unwrap_or(0);
    let part = (shares.bucket(0).len().div_ceil(ranks.world.size) * BLOCK).min(bucket);
    let buckets = ROOM.min(shares.buckets().len());
    let [out, into, _] = levels::room(&levels, part);
    // Of several levels what comes is what goes on.
    let weights = [0, bucket + part, 2 * bucket][levels.len()];
    [buckets * (out + into) * size_of::<B::Acc>(), buckets * weights * size_of::<B::Act>()]
}

/// Numbers of gradients or weights at each place of bucket `k`.
fn parts(shares: &Shares, k: usize) -> Vec<usize> {
    (0..shares.size()).map(|place| length(shares.pieces(shares.parts(k, &(place..place + 1))))).collect()
}

/// Bucket `k` of the gradients of this rank's `nodes`, on its way to the first of `levels`.
pub(super) fn pack_gradients<B: Backend>(
    be: &B,
    levels: &[Level],
    (shares, k): (&Shares, usize),
    nodes: &[&Sums<B>],
    mut packed: Packed,
) -> Result<Parcel> {
    packed.send.resize(nodes.len() * length(shares.pieces(shares.bucket(k))) * size_of::<B::Acc>());
    let mut room = packed.send.numbers_mut::<B::Acc>();
    for region in &levels[0].regions {
        let pieces = shares.pieces(shares.parts(k, region));
        for node in nodes {
            room = pack(be, node, pieces.clone().map(|piece| piece.place.grad), room)?;
        }
    }
    Ok(Parcel { bucket: k, packed, parts: parts(shares, k) })
}

/// Hands a bucket's gradients to who adds them up, level by level; the sums of this rank's part are in the place of what went out then.
pub(super) fn add_up<Acc: Pod + AddAssign + Send + Sync>(
    comm: &dyn Comm,
    levels: &[Level],
    Parcel { packed: Packed { send, receive }, parts, .. }: &mut Parcel,
) -> Result<()> {
    let (size, width) = (comm.world().size, size_of::<Acc>());
    let span = |places: &Range<usize>| parts[places.clone()].iter().sum::<usize>();
    for (i, level) in levels.iter().enumerate() {
        let (own, mine) = (level.region(), level.nodes[level.own].len());
        let to = level.by_rank(size, level.regions.iter().map(|region| mine * span(region) * width));
        let from = level.by_rank(size, level.nodes.iter().map(|nodes| nodes.len() * span(own) * width));
        comm.exchange(Parts { send: &mut *send, to: &to, receive: &mut *receive, from: &from }, "add up gradients")?;
        send.resize(level.sums.len() * span(own) * width);
        let (mut room, nodes, all) = (send.numbers_mut::<Acc>(), level.nodes.concat(), receive.numbers::<Acc>());
        let next = levels.get(i + 1).map_or(std::slice::from_ref(own), |next| &next.regions);
        for (region, sum) in next.iter().flat_map(|region| level.sums.iter().map(move |sum| (region, sum))) {
            let (now, rest) = room.split_at_mut(span(region));
            finish(sum, (&nodes, all), span(&(own.start..region.start)), now);
            room = rest;
        }
    }
    Ok(())
}

/// Writes the sums of this rank's part of a bucket to `grads`.
pub(super) fn unpack_gradients<B: Backend>(
    be: &B,
    shares: &Shares,
    Parcel { bucket, packed, .. }: &Parcel,
    grads: &mut Sums<B>,
) -> Result<()> {
    unpack(
        be,
        shares.own_of(*bucket).iter().map(|piece| piece.place.grad.clone()),
        packed.send.numbers::<B::Acc>(),
        grads,
    )
}

/// This rank's part of bucket `k` of the weights, on its way to all.
pub(super) fn pack_weights<B: Backend>(
    be: &B,
    (shares, k): (&Shares, usize),
    weights: &B::Buf<B::Act>,
    mut packed: Packed,
) -> Result<Parcel> {
    let own = shares.own_of(k);
    packed.send.resize(length(own) * size_of::<B::Act>());
    pack(be, weights, own.iter().map(|piece| piece.place.at.clone()), packed.send.numbers_mut::<B::Act>())?;
    Ok(Parcel { bucket: k, packed, parts: parts(shares, k) })
}

/// Hands a part of a bucket's weights, of numbers of `width` bytes, to all, and takes the others' parts, level by level.
pub(super) fn hand_out(
    comm: &dyn Comm,
    (levels, width): (&[Level], usize),
    Parcel { packed: Packed { send, receive }, parts, .. }: &mut Parcel,
) -> Result<()> {
    const WHAT: &str = "hand out weights";
    let size = comm.world().size;
    let span = |places: &Range<usize>| parts[places.clone()].iter().sum::<usize>() * width;
    for (i, level) in levels.iter().rev().enumerate() {
        if i > 0 {
            std::mem::swap(send, receive);
        }
        let from = level.by_rank(size, level.regions.iter().map(span));
        if level.circle.len() == size {
            comm.share((&mut *send, &mut *receive), &from, WHAT)?;
            continue;
        }
        let n = span(level.region());
        send.resize(n * level.circle.len());
        (1..level.circle.len()).for_each(|i| send.bytes_mut().copy_within(0..n, i * n));
        let to = level.by_rank(size, level.circle.iter().map(|_| n));
        comm.exchange(Parts { send: &mut *send, to: &to, receive: &mut *receive, from: &from }, WHAT)?;
    }
    Ok(())
}

/// Writes all of a bucket's weights to `weights`.
pub(super) fn unpack_weights<B: Backend>(
    be: &B,
    shares: &Shares,
    Parcel { bucket, packed, .. }: &Parcel,
    weights: &mut B::Buf<B::Act>,
) -> Result<()> {
    let pieces = shares.pieces(shares.bucket(*bucket));
    unpack(be, pieces.map(|piece| piece.place.at), packed.receive.numbers::<B::Act>(), weights)
}

/// Bytes of each rank's part of bucket `k`, of numbers of `width` bytes.
fn lengths(shares: &Shares, k: usize, width: usize) -> Vec<usize> {
    (0..shares.size()).map(|rank| length(shares.pieces(shares.part(k, rank))) * width).collect()
}

/// Writes the elements `ranges` of `from` to the beginning of `to`; gives what is behind them.
fn pack<'t, B: Backend, T: Storage>(
    be: &B,
    from: &B::Buf<T>,
    ranges: impl Iterator<Item = Range<usize>>,
    mut to: &'t mut [T],
) -> Result<&'t mut [T]> {
    for range in ranges {
        let (now, rest) = to.split_at_mut(range.len());
        be.download(now, be.view(from, range))?;
        to = rest;
    }
    Ok(to)
}

/// Overwrites the elements `ranges` of `to` with the first of `from`.
fn unpack<B: Backend, T: Storage>(
    be: &B,
    ranges: impl Iterator<Item = Range<usize>>,
    mut from: &[T],
    to: &mut B::Buf<T>,
) -> Result<()> {
    for range in ranges {
        let (now, rest) = from.split_at(range.len());
        be.upload(be.view_mut(to, range), now)?;
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
    pack(be, numbers, of(world.rank), send.numbers_mut::<f64>())?;
    let lengths: Vec<usize> = (0..world.size).map(bytes).collect();
    team.comm.share((&mut send, &mut receive), &lengths, "hear of the gradients' norm")?;
    // Put in order here: they are eight bytes each, and many.
    let (mut all, mut from) = (vec![0.0; shares.blocks()], receive.numbers::<f64>());
    for part in (0..world.size).flat_map(of) {
        let (now, rest) = from.split_at(part.len());
        all[part].copy_from_slice(now);
        from = rest;
    }
    be.upload(be.view_mut(numbers, 0..all.len()), &all)
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
    let mut lengths = vec![0; world.size];
    spans.iter().for_each(|(rank, of)| lengths[*rank] += of.len() * width);
    if lengths[world.rank] != mine.len() {
        return Err(Error::Training(format!("{part:?}: {} bytes of a share of {}", mine.len(), lengths[world.rank])));
    }
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
        let held = own.iter().map(|piece| piece.held[0]..piece.held[0] + piece.place.grad.len());
        pack(be, master, held, packed.send.numbers_mut::<B::Acc>())?;
        to_first(team, &mut packed, &lengths(shares, k, width), "collect master weights")?;
        if team.is_first() {
            let pieces = (0..team.size()).flat_map(|rank| shares.pieces(shares.part(k, rank)));
            unpack(be, pieces.map(|piece| piece.place.grad), packed.receive.numbers::<B::Acc>(), all)?;
        }
    }
    Ok(())
}
