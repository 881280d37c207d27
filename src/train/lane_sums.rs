//! Where the gradients of lanes are added up, on the way to the sum over all of them.
//!
//! The last pass of a step's last lane tells which layers are behind it: buckets whose gradients are whole go at once, and are with
//! the others while the pass goes on. The host's go on a thread of their own ([`super::carrier`]), GPUs' beside what is enqueued.

use super::bucket_order::{Due, order};
use super::carrier::{Carrier, Ends, Packed};
use super::exchange;
use super::levels::{Level, levels};
use super::on_device::OnDevice;
use super::places::Piece;
use super::shares::Shares;
use super::team::{Ranks, Team};
use crate::backend::{Add, Backend};
use crate::comm::tree::Stack;
use crate::error::{Error, Result};
use crate::model::{Gradients, ParamTable, Sums};
use std::thread::Scope;

/// Where the gradients of lanes are added up, beside where passes leave them.
pub(super) struct LaneSums<B: Backend> {
    /// What this rank has; the last of it are the gradients themselves.
    stack: Stack,
    /// The nodes before the last.
    before: Vec<B::Buf<B::Acc>>,
    spare: Vec<B::Buf<B::Acc>>,
    /// Where those of other ranks come, where the devices reach each other.
    on_device: Option<OnDevice<B>>,
    /// And where they do not.
    room: Vec<Packed>,
    /// Among whom they are added up.
    levels: Vec<Level>,
    /// The order in which buckets go.
    order: Vec<Due>,
    /// While that is under way.
    last: Option<LastLane>,
}

/// The last lane of a rank of several, whose buckets go to the others.
struct LastLane {
    /// How many of the nodes before make one with it.
    joins: usize,
    /// Passes until the step's last, that one included.
    left: usize,
    /// How many buckets are gone.
    gone: usize,
    /// Who takes them, where they go by the host.
    carrier: Option<Carrier>,
}

impl<B: Backend> LaneSums<B> {
    /// For gradients of `len` elements; none where there is one lane.
    pub fn new(be: &B, len: usize, ranks: Ranks) -> Result<Option<Self>> {
        if ranks.lanes == 1 {
            return Ok(None);
        }
        let copies = Stack::most(&ranks.own_lanes(), ranks.lanes).saturating_sub(1);
        Ok(Some(Self {
            stack: Stack::new(ranks.lanes),
            before: Vec::new(),
            spare: (0..copies).map(|_| be.zeros("gradients of lanes", len)).collect::<Result<_>>()?,
            on_device: OnDevice::new(be, len, ranks)?,
            room: Vec::new(),
            levels: levels(ranks),
            order: Vec::new(),
            last: None,
        }))
    }

    /// Keeps `grads` as they are, of the lanes before.
    pub fn set_aside(&mut self, be: &B, grads: &B::Buf<B::Acc>) -> Result<()> {
        if self.stack.nodes().is_empty() {
            return Ok(());
        }
        let mut to = self.spare.pop().expect("room for every node");
        be.copy(be.view_mut(&mut to, 0..be.len(grads)), be.view(grads, 0..be.len(grads)))?;
        self.before.push(to);
        Ok(())
    }

    /// Takes `grads` as those of `lane`, and adds to them what lies before, as far as the tree has it so.
    pub fn add(&mut self, be: &B, lane: usize, grads: &mut B::Buf<B::Acc>) -> Result<()> {
        self.stack.push(lane);
        while self.stack.join() {
            let from = self.before.pop().expect("a node a place of the stack");
            be.add(Add { to: be.view_mut(grads, 0..be.len(&from)), from: be.view(&from, 0..be.len(&from)) })?;
            self.spare.push(from);
        }
        Ok(())
    }

    /// What comes now is the last lane, by `passes`: as its gradients come to be whole they go to the other ranks. Gives what ends the
    /// thread on which they go by the host.
    pub fn begin<'s, 'a: 's>(
        &mut self,
        scope: &'s Scope<'s, '_>,
        team: Team<'a>,
        (lane, passes): (usize, usize),
        (table, shares): (&ParamTable, &Shares),
    ) -> Result<Option<Ends<'a>>> {
        if self.order.is_empty() {
            self.order = order(table, shares);
        }
        self.stack.push(lane);
        let n = self.stack.nodes().len();
        while self.stack.join() {}
        let last = LastLane { joins: n - self.stack.nodes().len(), left: passes, gone: 0, carrier: None };
        let last = self.last.insert(last);
        if self.on_device.is_some() {
            return Ok(None);
        }
        let (comm, levels) = (team.comm, self.levels.clone());
        let add_up = move |parcel: &mut _| exchange::add_up::<B::Acc>(comm, &levels, parcel);
        let (carrier, ends) = Carrier::start(scope, comm, std::mem::take(&mut self.room), add_up)?;
        last.carrier = Some(carrier);
        Ok(Some(ends))
    }

    /// Whether the pass that begins is the step's last.
    pub fn is_last(&mut self) -> bool {
        self.last.as_mut().is_some_and(|last| {
            last.left -= 1;
            last.left == 0
        })
    }

    /// Sends the buckets that are whole when the layer `after` and all above it are behind the pass; all, where it is through.
    pub fn send(
        &mut self,
        be: &B,
        team: &Team<'_>,
        shares: &Shares,
        grads: &mut B::Buf<B::Acc>,
        after: Option<usize>,
    ) -> Result<()> {
        let Self { before, on_device, levels, order, last: Some(last), .. } = self else { return Ok(()) };
        let (others, joined) = before.split_at(before.len() - last.joins);
        for &Due { bucket: k, .. } in order[last.gone..].iter().take_while(|due| due.after >= after) {
            last.gone += 1;
            if let Some(on_device) = on_device {
                be.beside(|| {
                    join(be, (shares, k), joined, grads)?;
                    on_device.sum(be, team, (levels, shares, k), others, grads)
                })?;
            } else if let Some(carrier) = &mut last.carrier {
                join(be, (shares, k), joined, grads)?;
                let packed = carrier.room(|parcel| exchange::unpack_gradients(be, shares, parcel, grads))?;
                let nodes: Vec<_> = others.iter().chain([&*grads]).collect();
                carrier.send(exchange::pack_gradients(be, levels, (shares, k), &nodes, packed)?)?;
            }
        }
        Ok(())
    }

    /// Makes `grads`, where this rank's share of them is, the sum over all lanes, and has nothing from here on.
    pub fn end(&mut self, be: &B, team: &Team<'_>, shares: &Shares, grads: &mut B::Buf<B::Acc>) -> Result<()> {
        self.send(be, team, shares, grads, None)?;
        if let Some(carrier) = self.last.take().and_then(|last| last.carrier) {
            self.room = carrier.finish(|parcel| exchange::unpack_gradients(be, shares, parcel, grads))?;
        }
        if let Some(on_device) = &self.on_device {
            on_device.end(be, team)?;
        }
        self.stack.clear();
        self.spare.append(&mut self.before);
        Ok(())
    }
}

/// Adds to bucket `k` of `grads` what is `joined` to it, the last first.
fn join<B: Backend>(
    be: &B,
    (shares, k): (&Shares, usize),
    joined: &[B::Buf<B::Acc>],
    grads: &mut B::Buf<B::Acc>,
) -> Result<()> {
    for from in joined.iter().rev() {
        for Piece { place, .. } in shares.pieces(shares.bucket(k)) {
            be.add(Add { to: be.view_mut(grads, place.grad.clone()), from: be.view(from, place.grad) })?;
        }
    }
    Ok(())
}

/// The gradients, all in accumulation precision.
pub(super) fn full<B: Backend>(grads: &mut Gradients<B>) -> Result<&mut B::Buf<B::Acc>> {
    match &mut grads.sums {
        Sums::Full(all) => Ok(all),
        Sums::Narrow { .. } => {
            Err(Error::usage("`gradient_dtype` bf16: gradients of several lanes are added up in f32; leave it out"))
        }
    }
}
