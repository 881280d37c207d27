//! Among whom gradients are added up, and weights handed out: all ranks at once, or first those of a machine and then those of the
//! same number on each, so that of what a machine has each number crosses the network once.
//!
//! The lanes of a machine follow each other, so it adds up nodes of the one tree: the sums are the same either way.

use super::team::Ranks;
use crate::comm::World;
use crate::comm::tree::{lanes_of, nodes};
use std::ops::Range;

/// Ranks that exchange something, in order. Each has a region of what this rank comes to the level with, and they add up as many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Level {
    /// Whom.
    pub circle: Vec<usize>,
    /// Which of them this rank is.
    pub own: usize,
    /// What becomes of each: places of a bucket's parts ([`World::place_of`]), one after the other.
    pub regions: Vec<Range<usize>>,
    /// The nodes of the tree that each comes with.
    pub nodes: Vec<Vec<Range<usize>>>,
    /// The nodes that are made of them.
    pub sums: Vec<Range<usize>>,
}

impl Level {
    /// Where this rank's region is.
    pub fn region(&self) -> &Range<usize> {
        &self.regions[self.own]
    }

    /// Lengths by rank, of `size`, from those by member of the circle.
    pub fn by_rank(&self, size: usize, lengths: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let mut all = vec![0; size];
        self.circle.iter().zip(lengths).for_each(|(rank, n)| all[*rank] = n);
        all
    }
}

/// The levels by which gradients come to their owners; weights go the same way back. None of one process.
pub(super) fn levels(ranks: Ranks) -> Vec<Level> {
    let (World { rank, size, beside }, lanes, all) = (ranks.world, ranks.lanes, ranks.nodes());
    let (machines, whole) = (ranks.world.machines(), std::iter::once(0..lanes).collect());
    if size == 1 {
        return Vec::new();
    }
    if machines == 1 {
        let regions = (0..size).map(|place| place..place + 1).collect();
        return vec![Level { circle: (0..size).collect(), own: rank, regions, nodes: all, sums: whole }];
    }
    let (machine, number) = (rank / beside, rank % beside);
    let of_machine = |machine: usize| nodes(&lanes_of(machine, machines, lanes), lanes);
    let neighbours = machine * beside..(machine + 1) * beside;
    let near = Level {
        own: number,
        regions: (0..beside).map(|number| number * machines..(number + 1) * machines).collect(),
        nodes: all[neighbours.clone()].to_vec(),
        circle: neighbours.collect(),
        sums: of_machine(machine),
    };
    let far = Level {
        own: machine,
        circle: (0..machines).map(|machine| machine * beside + number).collect(),
        regions: near.region().clone().map(|place| place..place + 1).collect(),
        nodes: (0..machines).map(of_machine).collect(),
        sums: whole,
    };
    vec![near, far]
}

/// The most numbers that one level sends, receives and has a region of, of a bucket whose parts have up to `part`.
pub(super) fn room(levels: &[Level], part: usize) -> [usize; 3] {
    let mut most = [0; 3];
    for level in levels {
        let places: usize = level.regions.iter().map(Range::len).sum();
        let nodes: usize = level.nodes.iter().map(Vec::len).sum();
        let region = level.region().len() * part;
        let of = [places * part * level.nodes[level.own].len(), region * nodes, region];
        most.iter_mut().zip(of).for_each(|(most, n)| *most = n.max(*most));
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_added_up_by_its_owner_from_all_lanes() {
        for (size, beside) in [(2, 1), (3, 3), (4, 2), (6, 3), (6, 2), (12, 4), (5, 1)] {
            for lanes in size..size + 7 {
                let of = |rank| levels(Ranks { world: World { rank, size, beside }, lanes });
                let all: Vec<Vec<Level>> = (0..size).map(of).collect();
                for (rank, levels) in all.iter().enumerate() {
                    let world = World { rank, size, beside };
                    let last = levels.last().unwrap();
                    assert_eq!(*last.region(), world.place_of(rank)..world.place_of(rank) + 1);
                    assert!(last.sums.iter().eq([&(0..lanes)]) && world.rank_at(world.place_of(rank)) == rank);
                    assert_eq!(levels.len(), if size > beside && beside > 1 { 2 } else { 1 });
                    let mut before = 0..size;
                    for (i, level) in levels.iter().enumerate() {
                        assert_eq!(level.circle[level.own], rank);
                        assert!(level.circle.is_sorted());
                        let ends = [level.regions[0].start, level.regions.last().unwrap().end];
                        assert_eq!(ends, [before.start, before.end]);
                        assert!(level.regions.windows(2).all(|two| two[0].end == two[1].start));
                        for (m, other) in level.circle.iter().enumerate() {
                            let theirs = &all[*other][i];
                            assert_eq!((&theirs.circle, &theirs.regions), (&level.circle, &level.regions));
                            assert_eq!((theirs.own, &theirs.nodes), (m, &level.nodes));
                        }
                        // What comes makes up the sums, and those are what the next level begins with.
                        let came: usize = level.nodes.concat().iter().map(Range::len).sum();
                        assert_eq!(came, level.sums.iter().map(Range::len).sum::<usize>());
                        if let Some(next) = levels.get(i + 1) {
                            assert_eq!(next.nodes[next.own], level.sums);
                        }
                        before = level.region().clone();
                    }
                }
            }
        }
    }
}
