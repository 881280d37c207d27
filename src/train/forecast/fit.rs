//! The token budget that is recommended, by a rule that gives the same one each time: what it decides are bits.
//!
//! Of budgets on a ladder, as far as they fit into memory, the smallest whose predicted throughput is within [`NEAR`] of the best
//! one's. Predicted with fixed ceilings ([`Device::ceilings`](crate::backend::Device::ceilings)), and not with what was measured a moment ago.
//! Where memory decides, what is free does; the ladder's rungs are far apart, so that little more or less of it changes nothing.

use super::asked;
use super::run::{Cut, MOST, Opened, Run};
use crate::backend::Backend;
use crate::backend::metered::Ceilings;
use crate::comm::World;
use crate::error::{Error, Result};
use crate::files::{self, MOST_TEXT};
use crate::observe::{Event, Observe};
use crate::train::options::TrainOptions;
use crate::train::team::{Ranks, Team};
use crate::units;
use std::path::Path;

/// Steps whose work is looked at.
const STEPS: u64 = 4;
/// What a larger budget must gain to be worth its memory.
const NEAR: f64 = 0.03;
/// The ladder's first rung; the next are half as much again, and twice.
const FIRST: usize = 512;
/// The recommended budget of the run of `run`, with `free` bytes for it; `None` where not even the least fits.
pub(super) fn recommended<B: Backend>(run: &Run<'_, B>, free: Option<usize>, by: &Ceilings) -> Result<Option<usize>> {
    let least = run.budgets.least();
    let mut paces: Vec<(usize, f64)> = Vec::new();
    for slots in std::iter::once(least).chain(rungs().filter(|rung| *rung > least)) {
        if let Some(free) = free
            && !fits(run, slots, free)?
        {
            break;
        }
        let cut = Cut::at(run.c, run.opened, slots)?;
        let asked = asked::steps(run, &cut, run.plan(slots, free)?.purpose, STEPS)?;
        let seconds: f64 = asked.work.iter().map(|work| by.seconds(work)).sum();
        paces.push((slots, asked.tokens as f64 / seconds.max(1e-12)));
        // In a larger one every step is one micro-batch, as it is in this one.
        if asked.largest_step <= slots as u64 {
            break;
        }
    }
    let best = paces.iter().map(|(_, pace)| *pace).fold(0.0, f64::max);
    // The least that the data allow is no rung: it is taken where nothing else fits.
    let rung = |at: usize| at > 0 || paces.len() == 1;
    let near = paces.iter().enumerate().find(|(at, (_, pace))| rung(*at) && *pace >= (1.0 - NEAR) * best);
    Ok(near.or(paces.iter().enumerate().next_back()).map(|(_, (slots, _))| *slots))
}

/// 512, 768, 1024, 1536, ...
fn rungs() -> impl Iterator<Item = usize> {
    (0..).flat_map(|k| [FIRST << k, (FIRST << k) + (FIRST << k) / 2]).take_while(|rung| *rung <= MOST)
}

/// Whether steps of `slots` fit, and the reference's pass before them.
fn fits<B: Backend>(run: &Run<'_, B>, slots: usize, free: usize) -> Result<bool> {
    if run.needed(slots)? > free {
        return Ok(false);
    }
    Ok(run.scoring(slots)?.is_none_or(|needed| needed <= free))
}

/// `c` with the recommended budget in place of the wish for it, which is told. Errors: no budget fits.
///
/// Of several ranks the first decides, with the memory of the rank that has least: those of a machine share its memory.
pub fn fitted<B: Backend>(be: &B, c: &TrainOptions, team: Team<'_>, observe: &mut dyn Observe) -> Result<TrainOptions> {
    let free = least_free(be, team)?;
    let slots = if team.is_first() { Some(decided(be, c, free, team.ranks())?) } else { None };
    let mut said = slots.map_or_else(Vec::new, |slots| (slots as u64).to_le_bytes().to_vec());
    team.comm.broadcast(&mut said, "hear the token budget")?;
    let slots = said.as_chunks().0.first().map_or(0, |said| u64::from_le_bytes(*said) as usize);
    observe.tell(&Event::Note(&format!("token budget {slots}, as `options.fit` asks for the recommended one")))?;
    Ok(with_budget(c, slots))
}

/// What each rank has for itself at least, where the system tells.
fn least_free<B: Backend>(be: &B, team: Team<'_>) -> Result<Option<usize>> {
    let free = be.memory()?.map(|memory| memory.free);
    if team.size() == 1 {
        return Ok(free);
    }
    // A device's memory is one rank's.
    let machine = if B::OWN_MEMORY { team.comm.world().rank.to_string() } else { machine() };
    let mine = format!("{} {machine}", free.map_or_else(|| "?".to_owned(), |free| free.to_string()));
    let all = team.comm.gather(mine.as_bytes(), "hear how much memory there is")?;
    let all: Vec<String> = all.iter().map(|said| String::from_utf8_lossy(said).into_owned()).collect();
    let each = all.iter().filter_map(|said| {
        let (free, machine) = said.split_once(' ')?;
        let sharing = all.iter().filter(|other| other.split_once(' ').is_some_and(|(_, on)| on == machine)).count();
        Some(free.parse::<usize>().ok()? / sharing.max(1))
    });
    Ok(each.min())
}

/// The machine's name.
fn machine() -> String {
    files::read_text(Path::new("/proc/sys/kernel/hostname"), MOST_TEXT).unwrap_or_default().trim().to_owned()
}

fn decided<B: Backend>(be: &B, c: &TrainOptions, free: Option<usize>, ranks: Ranks) -> Result<usize> {
    let opened = Opened::of(be, c, (&c.files.data, false))?;
    let cut = Cut::of(c, &opened)?;
    // The last has as many lanes as any.
    let world = World { rank: ranks.world.size - 1, ..ranks.world };
    let run = Run { ranks: Ranks { world, ..ranks }, ..Run::new(be, c, &opened, &cut)? };
    let Some(slots) = recommended(&run, free, &be.ceilings())? else {
        let (least, free) = (run.budgets.least(), units::bytes(free.unwrap_or(0)));
        let needed = run.needed(least)?.max(run.scoring(least)?.unwrap_or(0));
        return Err(Error::Device(format!(
            "out of memory: `fit` finds no token budget: the least that these data allow, {least}, needs {}, {free} are free; \
             `fusedpo plan` says which options would fit",
            units::bytes(needed)
        )));
    };
    Ok(slots)
}

/// `c` with `slots` in place of the wish for a budget.
pub(super) fn with_budget(c: &TrainOptions, slots: usize) -> TrainOptions {
    let mut c = c.clone();
    (c.data.fit, c.data.token_budget) = (false, Some(slots));
    c
}
