//! The ranks that take a run's steps together: whose micro-batches are whose, and what they tell each other.
//!
//! Every rank has the whole plan, the outlines of all of a step's micro-batches, and the whole of the state; it has the tokens of its
//! own lanes, and computes what is of those. Numbers of the others' micro-batches are gathered, so that all ranks know the same of a
//! step, in the order of the plan, and decide alike.

use crate::backend::{PAIR_STATS, RESPONSE_STATS};
use crate::batch::{Batches, Outline};
use crate::comm::tree::{lanes_of, nodes};
use crate::comm::{Alone, Comm, World};
use crate::error::{Error, Result};
use crate::observe::Flow;
use std::ops::Range;

/// Micro-batches a rank that are computed before the ranks hear of each other, where no gradients are asked for.
const AT_ONCE: usize = 4;

/// Numbers of a micro-batch: of its responses, and of its pairs.
pub type Numbers = (Vec<f64>, Vec<f64>);

/// Which process of how many this is, and how many lanes they share: what a rank's memory depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranks {
    /// Which of how many.
    pub world: World,
    /// At least as many as there are ranks.
    pub lanes: usize,
}

impl Ranks {
    /// One process, one lane.
    pub const ALONE: Self = Ranks { world: World::ALONE, lanes: 1 };

    /// This rank's lanes.
    pub fn own_lanes(&self) -> Range<usize> {
        lanes_of(self.world.rank, self.world.size, self.lanes)
    }

    /// The nodes of the tree over the lanes that each rank has in the end, by rank.
    pub fn nodes(&self) -> Vec<Vec<Range<usize>>> {
        let size = self.world.size;
        (0..size).map(|rank| nodes(&lanes_of(rank, size, self.lanes), self.lanes)).collect()
    }
}

/// Ranks, and the lanes that they share.
#[derive(Clone, Copy)]
pub struct Team<'a> {
    /// How they hear of each other.
    pub comm: &'a dyn Comm,
    /// At least as many as there are ranks.
    pub lanes: usize,
}

impl Team<'static> {
    /// One process, and one lane: a step's gradient is summed up micro-batch by micro-batch.
    pub const ALONE: Self = Team { comm: &Alone, lanes: 1 };

    /// One process with all the lanes that options say; one where they say nothing.
    pub fn by_one(lanes: Option<usize>) -> Self {
        Team { lanes: lanes.unwrap_or(1), ..Self::ALONE }
    }
}

impl Team<'_> {
    /// Which of how many.
    pub fn world(&self) -> World {
        self.comm.world()
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.world().size
    }

    /// Whether this is the rank that writes.
    pub fn is_first(&self) -> bool {
        self.world().is_first()
    }

    /// Without how they hear of each other.
    pub fn ranks(&self) -> Ranks {
        Ranks { world: self.world(), lanes: self.lanes }
    }

    /// Whether `n` micro-batches, computed before the ranks hear of each other, are so many that few wait long for the others; of one
    /// process any are.
    pub fn is_enough(&self, n: usize) -> bool {
        n > 0 && (self.size() == 1 || n >= AT_ONCE * self.size())
    }

    /// What `f` gives, rank 0 being through with it before the others begin; `what` says what they are at meanwhile.
    pub fn first_then_all<T>(&self, what: &str, f: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.is_first() {
            self.comm.barrier(what)?;
            return f();
        }
        let done = f()?;
        self.comm.barrier(what)?;
        Ok(done)
    }

    /// Which of a step's micro-batches, whose outlines are in the order of their lanes, this rank trains on.
    pub fn own(&self, outlines: &[Outline]) -> Range<usize> {
        let lanes = self.ranks().own_lanes();
        let before = |lane: usize| outlines.partition_point(|of| of.lane() < lane);
        before(lanes.start)..before(lanes.end)
    }

    /// Which of `n` micro-batches, whose gradients nobody asks for, this rank computes.
    pub fn share(&self, n: usize) -> Range<usize> {
        let World { rank, size, .. } = self.world();
        lanes_of(rank, size, n)
    }

    /// The numbers of all `batches`, in order, where each rank has the `own` of those that are its own.
    pub fn numbers(&self, batches: &Batches, own: Vec<Numbers>) -> Result<Vec<Numbers>> {
        if self.size() == 1 {
            return Ok(own);
        }
        let mine: Vec<u8> = own.iter().flat_map(|(r, p)| r.iter().chain(p)).flat_map(|x| x.to_le_bytes()).collect();
        let all = self.comm.gather(&mine, "hear of a step's numbers")?.concat();
        let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let mut all = all.chunks_exact(8).map(number);
        let want: usize = batches.all().map(|of| lengths(of).iter().sum::<usize>()).sum();
        if all.len() != want {
            let got = all.len();
            return Err(Error::Device(format!(
                "the ranks brought {got} numbers of a step that has {want}: do all have the same data?"
            )));
        }
        let of = |outline: &Outline| {
            let [r, p] = lengths(outline).map(|n| all.by_ref().take(n).collect());
            (r, p)
        };
        Ok(batches.all().map(of).collect())
    }

    /// What rank 0 says.
    pub fn told(&self, said: bool) -> Result<bool> {
        if self.size() == 1 {
            return Ok(said);
        }
        let mut bytes = vec![said.into()];
        self.comm.broadcast(&mut bytes, "hear of a checkpoint")?;
        Ok(bytes == [1])
    }

    /// What all do next: what the rank asked for that asked for most, and where rank 0 says that a checkpoint is due.
    pub fn agree(&self, flow: Flow, due: bool) -> Result<(Flow, bool)> {
        if self.size() == 1 {
            return Ok((flow, due));
        }
        let asked = match flow {
            Flow::On => 0,
            Flow::Stop => 1,
            Flow::Pause => 2,
        };
        let all = self.comm.gather(&[asked, due.into()], "agree on what comes next")?;
        let most = all.iter().filter_map(|said| said.first().copied()).max();
        let flow = match most {
            Some(1) => Flow::Stop,
            Some(2..) => Flow::Pause,
            _ => Flow::On,
        };
        Ok((flow, all[0].get(1) == Some(&1)))
    }

    /// Refuses ranks that differ from rank 0 in anything of `mine`: its name, and its value in words.
    pub fn same(&self, mine: &[(&str, String)]) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let values: Vec<&String> = mine.iter().map(|(_, value)| value).collect();
        let text = serde_json::to_vec(&values).unwrap_or_default();
        let all = self.comm.gather(&text, "compare what the ranks were given")?;
        let values: Vec<Vec<String>> =
            all.iter().map(|said| serde_json::from_slice(said).unwrap_or_default()).collect();
        for (rank, said) in values.iter().enumerate() {
            let differs = mine.iter().enumerate().find(|(i, _)| said.get(*i) != values[0].get(*i));
            if let Some((i, (name, _))) = differs {
                let short =
                    |said: &[String]| said.get(i).map_or("?", String::as_str).chars().take(200).collect::<String>();
                return Err(Error::usage(format!(
                    "rank {rank} has another {name} than rank 0: `{}`, and rank 0 `{}`; all ranks must read the same files, with \
                     the same program on the same kind of processor",
                    short(said),
                    short(&values[0])
                )));
            }
        }
        Ok(())
    }
}

/// Numbers of the responses and of the pairs of a micro-batch.
fn lengths(of: &Outline) -> [usize; 2] {
    [of.responses().len() * RESPONSE_STATS, of.pairs().len() * PAIR_STATS]
}
