//! Where the gradients of lanes are added up, on the way to the sum over all of them.

use super::exchange::{Packed, sum_gradients};
use super::on_device::OnDevice;
use super::shares::Shares;
use super::team::{Ranks, Team};
use crate::backend::{Add, Backend};
use crate::comm::tree::Stack;
use crate::error::Result;

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
    packed: Packed,
}

impl<B: Backend> LaneSums<B> {
    /// For gradients of `len` elements; none where there is one lane.
    pub fn new(be: &B, len: usize, ranks: Ranks) -> Result<Option<Self>> {
        if ranks.lanes == 1 {
            return Ok(None);
        }
        let copies = Stack::most(&ranks.own_lanes(), ranks.lanes).saturating_sub(1);
        let spare = (0..copies).map(|_| be.zeros("gradients of lanes", len)).collect::<Result<_>>()?;
        let on_device = OnDevice::new(be, len, ranks)?;
        let (stack, packed) = (Stack::new(ranks.lanes), Packed::default());
        Ok(Some(Self { stack, before: Vec::new(), spare, on_device, packed }))
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

    /// Makes `grads`, where this rank's share of them is, the sum over all lanes, and has nothing from here on.
    pub fn end(&mut self, be: &B, team: &Team<'_>, shares: &Shares, grads: &mut B::Buf<B::Acc>) -> Result<()> {
        if let Some(on_device) = &mut self.on_device {
            on_device.sum(be, team, shares, &self.before, grads)?;
        } else if team.size() > 1 {
            sum_gradients(be, team, shares, (&self.before, grads), &mut self.packed)?;
        }
        self.stack.clear();
        self.spare.append(&mut self.before);
        Ok(())
    }
}
