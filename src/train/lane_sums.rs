//! Where the gradients of lanes are added up, on the way to the sum over all of them.
//!
//! The last pass of a step's last lane tells which layers are behind it: buckets whose gradients are whole go at once, and are with
//! the others while the pass goes on. The host's go on a thread of their own ([`super::carrier`]), GPUs' beside what is enqueued.

use super::bucket_order::{Due, order};
use super::carrier::{Carrier, Ends, Packed};
use super::exchange;
use super::levels::{Level, levels};
use super::on_device::OnDevice;
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
    carrier: Option<Carrier>,
    /// Among whom they are added up.
    levels: Vec<Level>,
    /// The order in which buckets go, and how many of them are gone.
    order: Vec<Due>,
    gone: usize,
    /// How many of the nodes before the last lane's make one with it.
    joins: usize,
    /// Passes until the step's last, that one included; 0: nobody said.
    left: usize,
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
            carrier: None,
            levels: levels(ranks),
            order: Vec::new(),
            gone: 0,
            joins: 0,
            left: 0,
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

    /// What comes now is the last lane, by `passes`: as its gradients come to be whole they go to the other ranks.
    pub fn begin(&mut self, lane: usize, passes: usize, (table, shares): (&ParamTable, &Shares)) {
        if self.order.is_empty() {
            self.order = order(table, shares);
        }
        self.stack.push(lane);
        let n = self.stack.nodes().len();
        while self.stack.join() {}
        (self.joins, self.left, self.gone) = (n - self.stack.nodes().len(), passes, 0);
    }

    /// Begins the thread on which buckets travel, where they go by the host.
    pub fn carry<'s, 'a: 's>(&mut self, scope: &'s Scope<'s, '_>, team: Team<'a>) -> Result<Option<Ends<'a>>> {
        if self.on_device.is_some() {
            return Ok(None);
        }
        let (comm, levels) = (team.comm, self.levels.clone());
        let add_up = move |parcel: &mut _| exchange::add_up::<B::Acc>(comm, &levels, parcel);
        let (carrier, ends) = Carrier::start(scope, comm, std::mem::take(&mut self.room), add_up)?;
        self.carrier = Some(carrier);
        Ok(Some(ends))
    }

    /// Whether the pass that begins is the step's last.
    pub fn is_last(&mut self) -> bool {
        let last = self.left == 1;
        self.left = self.left.saturating_sub(1);
        last
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
        while let Some(due) = self.order.get(self.gone).filter(|due| due.after >= after) {
            let k = due.bucket;
            self.gone += 1;
            let Self { before, joins, on_device, carrier, levels, .. } = &mut *self;
            let (others, joined) = before.split_at(before.len() - *joins);
            let pieces = shares.pieces(shares.bucket(k));
            let join = |grads: &mut B::Buf<B::Acc>| {
                joined
                    .iter()
                    .rev()
                    .flat_map(|from| pieces.clone().map(move |piece| (from, piece.place.grad)))
                    .try_for_each(|(from, at)| {
                        be.add(Add { to: be.view_mut(grads, at.clone()), from: be.view(from, at) })
                    })
            };
            if let Some(on_device) = on_device {
                be.beside(|| {
                    join(grads)?;
                    on_device.sum(be, team, (levels, shares, k), others, grads)
                })?;
                continue;
            }
            let carrier = carrier.as_mut().expect("it was begun");
            join(grads)?;
            let packed = carrier.room(|parcel| exchange::unpack_gradients(be, shares, parcel, grads))?;
            let nodes: Vec<_> = others.iter().chain([&*grads]).collect();
            carrier.send(exchange::pack_gradients(be, levels, (shares, k), &nodes, packed)?)?;
        }
        Ok(())
    }

    /// Makes `grads`, where this rank's share of them is, the sum over all lanes, and has nothing from here on.
    pub fn end(&mut self, be: &B, team: &Team<'_>, shares: &Shares, grads: &mut B::Buf<B::Acc>) -> Result<()> {
        if shares.shared() {
            self.send(be, team, shares, grads, None)?;
        }
        if let Some(carrier) = self.carrier.take() {
            self.room = carrier.finish(|parcel| exchange::unpack_gradients(be, shares, parcel, grads))?;
        }
        if let Some(on_device) = &self.on_device {
            on_device.end(be, team)?;
        }
        (self.joins, self.left) = (0, 0);
        self.stack.clear();
        self.spare.append(&mut self.before);
        Ok(())
    }
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
