//! What is told, and what can be answered.

use crate::error::Result;
use serde_json::{Map, Value};
use std::fmt;
use std::path::Path;

/// What long work tells while it goes on. Plain numbers and text.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A line for people.
    Note(&'a str),
    /// A line for people: something may not be as they expect.
    Warning(&'a str),
    /// A task begins; the one before goes on after its end. `keeps`: what is done when it is stopped is kept.
    Begin {
        /// Its name, one word.
        task: &'a str,
        /// How many units it has.
        total: u64,
        /// Whether there is something to save from now on.
        keeps: bool,
    },
    /// The task that began last is so far.
    Progress {
        /// Units that are through.
        done: u64,
        /// What to say beside; formatted only where somebody reads it.
        beside: fmt::Arguments<'a>,
    },
    /// The task that began last ends.
    End,
    /// What is about to be taken, before it is.
    Memory {
        /// Name and bytes of every buffer, in order of allocation.
        parts: &'a [(String, usize)],
        /// What the device has, where it can tell.
        device: Option<InUse>,
    },
    /// The reference's log-probs of a split are there.
    Referenced {
        /// Responses of the split.
        responses: u64,
        /// Responses that were computed now; the others were found.
        computed: u64,
        /// Seconds it took.
        seconds: f64,
    },
    /// The steps of a run begin.
    RunBegins {
        /// `sft` or `dpo`.
        stage: &'a str,
        /// Steps it has.
        steps: u64,
        /// Its options, as in `config.toml`.
        options: &'a str,
    },
    /// The numbers of a step, under TRL's names; in order, though perhaps a step late.
    Step {
        /// From 1.
        step: u64,
        /// As in `metrics.jsonl`.
        row: &'a Map<String, Value>,
    },
    /// The numbers of an evaluation, under TRL's names.
    Evaluation {
        /// Steps taken before it.
        step: u64,
        /// As in `metrics.jsonl`.
        row: &'a Map<String, Value>,
    },
    /// A checkpoint was written.
    Checkpoint {
        /// Steps taken before it.
        step: u64,
        /// The folder.
        path: &'a Path,
        /// Bytes of its files.
        bytes: u64,
        /// Seconds it took.
        seconds: f64,
    },
    /// A model was written.
    Saved {
        /// The folder.
        path: &'a Path,
        /// Share of weights that training changed; NaN where the weights that it began with cannot be read any more.
        updated: f64,
        /// Share of weights that it changed in the precision of the files; likewise.
        changed: f64,
    },
    /// Between two units of work, with nothing to tell but that an answer is welcome.
    Tick,
}

/// Bytes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InUse {
    /// Taken already, by whatever.
    pub used: usize,
    /// Free.
    pub free: usize,
}

/// Whether work goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Flow {
    /// It does.
    On,
    /// It ends in order, and that is its end: a run finishes its step, evaluates and saves.
    Stop,
    /// It ends soon, to be gone on with another time: a run finishes its step and saves a checkpoint and the model, and what
    /// can be done again later is left undone.
    Pause,
}

/// Whoever follows long work. It may end it, and changes nothing else: the same run gives the same bits, whoever looks on.
pub trait Observe {
    /// Takes note of `event`. An error ends the work as an error of its own does.
    fn on(&mut self, event: &Event<'_>) -> Result<Flow>;

    /// [`Observe::on`] where the answer makes no difference: there is no work to end, or it ends anyway.
    fn tell(&mut self, event: &Event<'_>) -> Result<()> {
        self.on(event).map(drop)
    }
}

/// Nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observe for Silent {
    fn on(&mut self, _: &Event<'_>) -> Result<Flow> {
        Ok(Flow::On)
    }
}

/// Tells both; either may end it.
pub struct Both<'a>(pub &'a mut dyn Observe, pub &'a mut dyn Observe);

impl Observe for Both<'_> {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        let first = self.0.on(event)?;
        Ok(first.and(self.1.on(event)?))
    }
}

/// For work that is not left half done: tells `to` everything, goes on, and keeps its answer for later. Whoever answers
/// [`Flow::Pause`] cannot wait, and is not made to.
pub struct Later<'a> {
    to: &'a mut dyn Observe,
    flow: Flow,
}

impl<'a> Later<'a> {
    /// Nobody asked to stop yet.
    pub fn new(to: &'a mut dyn Observe) -> Self {
        Self { to, flow: Flow::On }
    }

    /// All that was answered.
    pub fn flow(&self) -> Flow {
        self.flow
    }
}

impl Observe for Later<'_> {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        self.flow = self.flow.and(self.to.on(event)?);
        Ok(if self.flow == Flow::Pause { Flow::Pause } else { Flow::On })
    }
}

impl Flow {
    /// The one that ends more: [`Flow::Pause`] where either is, else [`Flow::Stop`] where either is.
    pub fn and(self, other: Flow) -> Flow {
        match (self, other) {
            (Flow::Pause, _) | (_, Flow::Pause) => Flow::Pause,
            (Flow::Stop, _) | (_, Flow::Stop) => Flow::Stop,
            (Flow::On, Flow::On) => Flow::On,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_pauses_does_not_wait() {
        struct Pauses;
        impl Observe for Pauses {
            fn on(&mut self, _: &Event<'_>) -> Result<Flow> {
                Ok(Flow::Pause)
            }
        }
        assert_eq!(Later::new(&mut Pauses).on(&Event::Tick).unwrap(), Flow::Pause);
        let all = [Flow::On, Flow::Stop, Flow::Pause];
        let and = all.map(|a| all.map(|b| a.and(b)));
        assert_eq!(and, [all, [Flow::Stop, Flow::Stop, Flow::Pause], [Flow::Pause; 3]]);
    }

    /// Asks to stop at the second event, and once only.
    struct Second(u32);

    impl Observe for Second {
        fn on(&mut self, _: &Event<'_>) -> Result<Flow> {
            self.0 += 1;
            Ok(if self.0 == 2 { Flow::Stop } else { Flow::On })
        }
    }

    #[test]
    fn an_answer_is_kept_for_later() {
        let mut second = Second(0);
        let mut later = Later::new(&mut second);
        assert_eq!(later.on(&Event::Tick).unwrap(), Flow::On);
        assert_eq!(later.flow(), Flow::On);
        for _ in 0..2 {
            assert_eq!(later.on(&Event::Tick).unwrap(), Flow::On);
            assert_eq!(later.flow(), Flow::Stop);
        }
        assert_eq!(second.0, 3);
    }

    #[test]
    fn either_of_both_may_end_it() {
        for first in [true, false] {
            let (mut second, mut silent) = (Second(0), Silent);
            let mut both = if first { Both(&mut second, &mut silent) } else { Both(&mut silent, &mut second) };
            let answers = [(); 3].map(|()| both.on(&Event::Tick).unwrap());
            assert_eq!(answers, [Flow::On, Flow::Stop, Flow::On]);
        }
    }
}
