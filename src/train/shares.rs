//! Which rank updates which parameters, and keeps what the optimiser remembers of them (ZeRO-1, arXiv 1910.02054).
//!
//! Parameters are updated by places: neighbours in both arenas, or single tensors where moments have blocks of their own. A
//! place is cut into blocks of [`BLOCK`] elements. As many of them in a row as travel at once are a bucket, and every rank has a
//! part of each bucket, whole blocks. What blocks there are depends on the model and the optimiser alone: a gradient's norm is
//! added up block by block, whoever has which.

use crate::backend::code8;
use crate::comm::World;
use crate::model::ParamTable;
use crate::model::params::{self, ParamSpec, Run};
use std::ops::Range;

/// Elements of a block: whole blocks of 8-bit moments, and little beside a bucket.
pub const BLOCK: usize = 1 << 14;

/// Most blocks of a bucket, 16 MiB in single precision; one a rank where there are more ranks.
pub(super) const BUCKET: usize = 256;

/// At least as many buckets as this there are of a model that has the blocks: some travel while the gradients of others are computed.
const BUCKETS: usize = 16;

/// Elements to which the parts that a rank has of a place are aligned in its buffers, as places are in the arenas.
const ALIGN: usize = params::ALIGN;

/// Parameters that are updated together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// In the arena of weights.
    pub at: Range<usize>,
    /// In the trained arena.
    pub grad: Range<usize>,
    /// Whether weight decay applies: matrices, not vectors.
    pub decay: bool,
    /// Their scales, where 8-bit moments have some.
    pub scales: Range<usize>,
}

impl Place {
    /// Its numbers of `kind`.
    fn of(&self, kind: Kind) -> &Range<usize> {
        match kind {
            Kind::Elements => &self.grad,
            Kind::Scales => &self.scales,
        }
    }
}

/// A [`Place`], or what a rank has of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it is.
    pub place: Place,
    /// Its blocks among all.
    pub blocks: Range<usize>,
    /// Where it begins in what this rank keeps of moments and masters, and of scales.
    pub held: [usize; 2],
}

/// What is laid out among the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An element a parameter, in the layout of the trained arena.
    Elements,
    /// A scale a block of 8-bit moments.
    Scales,
}

/// All places, and which rank has which blocks.
#[derive(Clone, Debug)]
pub struct Shares {
    world: World,
    places: Vec<Place>,
    /// The first block of each place, and behind them how many there are.
    firsts: Vec<usize>,
    /// Blocks of a bucket.
    bucket: usize,
    /// What this rank has, in order.
    own: Vec<Piece>,
    /// What it keeps of each [`Kind`].
    held: [usize; 2],
}

impl Shares {
    /// Of what trains in `table`, by the ranks of `world`. `coded`: moments have blocks of 8 bits, a tensor's own.
    pub fn new(table: &ParamTable, coded: bool, world: World) -> Self {
        let places = places(table, coded);
        let blocks: usize = places.iter().map(|place| place.grad.len().div_ceil(BLOCK)).sum();
        Self::in_buckets(table, places, world, (blocks / BUCKETS).min(BUCKET).max(world.size))
    }

    fn in_buckets(table: &ParamTable, places: Vec<Place>, world: World, bucket: usize) -> Self {
        let mut firsts = vec![0];
        for place in &places {
            firsts.push(firsts[firsts.len() - 1] + place.grad.len().div_ceil(BLOCK));
        }
        // One process keeps all of it, in the layout of the trained arena, and hands nothing to anybody.
        let all = world.size == 1;
        let bucket = if all { firsts[places.len()].max(1) } else { bucket };
        let mut this = Self { world, places, firsts, bucket, own: Vec::new(), held: [0; 2] };
        let mut held = [0; 2];
        let mut own: Vec<Piece> = this.buckets().flat_map(|k| this.pieces(this.part(k, world.rank))).collect();
        for piece in &mut own {
            let Place { grad, scales, .. } = &piece.place;
            piece.held = if all { [grad.start, scales.start] } else { held };
            held = [(held[0] + grad.len()).next_multiple_of(ALIGN), held[1] + scales.len()];
        }
        let scales = this.places.last().map_or(0, |place| place.scales.end);
        this.held = if all { [table.trained_len, scales] } else { held };
        this.own = own;
        this
    }

    /// Blocks in all.
    pub fn blocks(&self) -> usize {
        self.firsts[self.places.len()]
    }

    /// The buckets, by number.
    pub fn buckets(&self) -> Range<usize> {
        0..self.blocks().div_ceil(self.bucket)
    }

    /// The blocks of bucket `k`.
    pub fn bucket(&self, k: usize) -> Range<usize> {
        k * self.bucket..((k + 1) * self.bucket).min(self.blocks())
    }

    /// The blocks of bucket `k` that `rank` has.
    pub fn part(&self, k: usize, rank: usize) -> Range<usize> {
        let place = self.world.place_of(rank);
        self.parts(k, &(place..place + 1))
    }

    /// The blocks of bucket `k` at `places` of its parts ([`World::place_of`]).
    pub fn parts(&self, k: usize, places: &Range<usize>) -> Range<usize> {
        let bucket = self.bucket(k);
        let at = |place: usize| bucket.start + place * bucket.len() / self.world.size;
        at(places.start)..at(places.end)
    }

    /// What this rank has, in order.
    pub fn own(&self) -> &[Piece] {
        &self.own
    }

    /// What this rank has of bucket `k`.
    pub fn own_of(&self, k: usize) -> &[Piece] {
        let part = self.part(k, self.world.rank);
        let from = self.own.partition_point(|piece| piece.blocks.end <= part.start);
        let upto = self.own.partition_point(|piece| piece.blocks.start < part.end);
        &self.own[from..upto.max(from)]
    }

    /// How much of `kind` this rank keeps.
    pub fn held(&self, kind: Kind) -> usize {
        self.held[kind as usize]
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.world.size
    }

    /// Whether others keep some of it.
    pub fn shared(&self) -> bool {
        self.size() > 1
    }

    /// `blocks`, cut where places end; where they are held is not said.
    pub fn pieces(&self, blocks: Range<usize>) -> Vec<Piece> {
        let first = self.firsts.partition_point(|first| *first <= blocks.start).saturating_sub(1);
        let mut all = Vec::new();
        for (place, at) in self.places[first.min(self.places.len())..].iter().zip(self.firsts[first..].windows(2)) {
            let of = at[0].max(blocks.start)..at[1].min(blocks.end);
            if at[0] >= blocks.end {
                break;
            }
            if of.is_empty() {
                continue;
            }
            let (from, upto) = ((of.start - at[0]) * BLOCK, ((of.end - at[0]) * BLOCK).min(place.grad.len()));
            let within = |range: &Range<usize>| range.start + from..range.start + upto;
            let scales = match place.scales.is_empty() {
                true => place.scales.clone(),
                false => place.scales.start + from / code8::BLOCK..place.scales.start + code8::blocks(upto),
            };
            let place = Place { at: within(&place.at), grad: within(&place.grad), scales, ..place.clone() };
            all.push(Piece { place, blocks: of, held: [0; 2] });
        }
        all
    }

    /// Who keeps the numbers `range` of `kind`, which are of parameters that train.
    pub fn spans(&self, kind: Kind, range: Range<usize>) -> Vec<(usize, Range<usize>)> {
        if !self.shared() {
            return vec![(0, range)];
        }
        let mut all: Vec<(usize, Range<usize>)> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let p = self.places.partition_point(|place| place.of(kind).end <= at);
            let (of, each) = (self.places[p].of(kind), if kind == Kind::Scales { BLOCK / code8::BLOCK } else { BLOCK });
            let block = (at - of.start) / each;
            let end = (of.start + (block + 1) * each).min(of.end).min(range.end);
            let rank = self.rank_of(self.firsts[p] + block);
            match all.last_mut() {
                Some((before, span)) if *before == rank && span.end == at => span.end = end,
                _ => all.push((rank, at..end)),
            }
            at = end;
        }
        all
    }

    /// Who has `block`.
    fn rank_of(&self, block: usize) -> usize {
        let k = block / self.bucket;
        let parts = (0..self.world.size).map(|place| self.parts(k, &(place..place + 1)));
        self.world.rank_at(parts.take_while(|part| part.end <= block).count())
    }

    /// What this rank keeps of the numbers `range` of `kind`: which of them, and where.
    pub fn kept(&self, kind: Kind, range: &Range<usize>) -> Vec<(Range<usize>, usize)> {
        if !self.shared() {
            return vec![(range.clone(), range.start)];
        }
        let of = |piece: &Piece| piece.place.of(kind).clone();
        let from = self.own.partition_point(|piece| of(piece).end <= range.start);
        let near = self.own[from..].iter().take_while(|piece| of(piece).start < range.end);
        let cut = near.map(|piece| {
            let (all, held) = (of(piece), piece.held[kind as usize]);
            let part = all.start.max(range.start)..all.end.min(range.end);
            (part.clone(), held + part.start - all.start)
        });
        cut.filter(|(part, _)| !part.is_empty()).collect()
    }
}

/// Parameters in `pieces`.
pub fn length(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.place.grad.len()).sum()
}

/// Every parameter that trains, in order: neighbours in both arenas together, unless a tensor has blocks of its own.
fn places(table: &ParamTable, coded: bool) -> Vec<Place> {
    if !coded {
        let of = |run: &Run| Place { at: run.at.clone(), grad: run.grad.clone(), decay: run.decay, scales: 0..0 };
        return table.runs.iter().map(of).collect();
    }
    let mut end = 0;
    let of = |spec: &ParamSpec| {
        let scales = end..end + code8::blocks(spec.grad.len());
        end = scales.end;
        Place { at: spec.at.clone(), grad: spec.grad.clone(), decay: spec.decay, scales }
    };
    table.specs.iter().filter(|spec| spec.trains).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;

    /// Tensors of many sizes, some of them no whole blocks.
    fn table() -> ParamTable {
        let text = r#"{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 40,
            "intermediate_size": 1100, "num_hidden_layers": 3, "num_attention_heads": 5, "num_key_value_heads": 1,
            "vocab_size": 1021, "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "max_position_embeddings": 64}"#;
        let map = serde_json::from_str(text).unwrap();
        ParamTable::new(&ModelConfig::parse("config.json".as_ref(), &map).unwrap()).unwrap()
    }

    #[test]
    fn every_element_has_one_owner_whatever_is_asked_for() {
        let table = table();
        for (coded, size, beside, bucket) in [
            (false, 1, 1, 4),
            (true, 1, 1, 3),
            (false, 3, 3, 4),
            (true, 2, 1, 3),
            (true, 4, 2, 5),
            (false, 6, 3, 6),
            (false, 7, 1, 7),
        ] {
            let of = |rank| Shares::in_buckets(&table, places(&table, coded), World { rank, size, beside }, bucket);
            let all: Vec<Shares> = (0..size).map(of).collect();
            let mut owners = vec![usize::MAX; table.trained_len];
            for (rank, shares) in all.iter().enumerate() {
                let own: Vec<Piece> = shares.buckets().flat_map(|k| shares.own_of(k).to_vec()).collect();
                assert_eq!(own, shares.own(), "{coded} {size}: bucket by bucket, or at once");
                let mut ends = [0; 2];
                for Piece { place, held, .. } in &own {
                    assert_eq!(place.at.len(), place.grad.len());
                    let inside = |range: &Range<usize>| range.end <= table.trained_len;
                    assert!(inside(&place.grad) && held[0] >= ends[0] && held[1] == ends[1]);
                    ends = [held[0] + place.grad.len(), held[1] + place.scales.len()];
                    for at in place.grad.clone() {
                        assert_eq!(std::mem::replace(&mut owners[at], rank), usize::MAX, "{at} has two owners");
                    }
                }
                assert!(ends[0] <= shares.held(Kind::Elements) && ends[1] == shares.held(Kind::Scales));
            }
            for spec in &table.specs {
                let spans = all[0].spans(Kind::Elements, spec.grad.clone());
                assert_eq!(spans.first().map(|(_, of)| of.start), Some(spec.grad.start));
                assert!(spans.windows(2).all(|two| two[0].1.end == two[1].1.start));
                assert_eq!(spans.last().map(|(_, of)| of.end), Some(spec.grad.end));
                for (rank, span) in spans {
                    assert!(size == 1 || span.clone().all(|at| owners[at] == rank), "{}: {span:?}", spec.name);
                    let kept = all[rank].kept(Kind::Elements, &span);
                    assert_eq!(kept.iter().map(|(of, _)| of.len()).sum::<usize>(), span.len());
                }
            }
            if coded {
                scales(&table, &all);
            }
        }
    }

    /// A scale is kept by who has its elements.
    fn scales(table: &ParamTable, all: &[Shares]) {
        let mut first = 0;
        for spec in &table.specs {
            let n = code8::blocks(spec.grad.len());
            for (rank, span) in all[0].spans(Kind::Scales, first..first + n) {
                let at = |scale: usize| (spec.grad.start + (scale - first) * code8::BLOCK).min(spec.grad.end);
                let elements = at(span.start)..at(span.end);
                assert_eq!(all[0].spans(Kind::Elements, elements.clone()), [(rank, elements)], "{}", spec.name);
                let kept = all[rank].kept(Kind::Scales, &span);
                assert_eq!(kept.iter().map(|(of, _)| of.len()).sum::<usize>(), span.len());
            }
            first += n;
        }
        let held: usize = all.iter().map(|shares| shares.held(Kind::Scales)).sum();
        assert_eq!(held, first);
    }

    #[test]
    fn ranks_have_about_as_much_each() {
        let table = table();
        for size in [2, 3, 5] {
            let held = |rank| {
                Shares::in_buckets(&table, places(&table, false), World::of(rank, size), 256).held(Kind::Elements)
            };
            let all: Vec<usize> = (0..size).map(held).collect();
            let (least, most) = (all.iter().min().unwrap(), all.iter().max().unwrap());
            assert!(most - least <= 2 * BLOCK, "{all:?}");
        }
    }
}
