//! Which rank updates which parameters, and keeps what the optimiser remembers of them (ZeRO-1, arXiv 1910.02054).
//!
//! Parameters are updated by places ([`super::places`]), each cut into blocks of [`BLOCK`] elements. As many of them in a row as travel
//! at once are a bucket, and every rank has a part of each bucket, whole blocks. What blocks there are depends on the model and the
//! optimiser alone: a gradient's norm is added up block by block, whoever has which.

use super::places::{BLOCK, Kind, Piece, Place, places};
use crate::backend::code8;
use crate::comm::World;
use crate::model::ParamTable;
use crate::model::params;
use std::ops::Range;

/// Most blocks of a bucket, 16 MiB in single precision; one a rank where there are more ranks.
pub(super) const BUCKET: usize = 256;

/// At least as many buckets as this there are of a model that has the blocks: some travel while the gradients of others are computed.
const BUCKETS: usize = 16;

/// Elements to which the parts that a rank has of a place are aligned in its buffers, as places are in the arenas.
const ALIGN: usize = params::ALIGN;

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
        let blocks: usize = places.iter().map(Place::blocks).sum();
        Self::in_buckets(table.trained_len, places, world, (blocks / BUCKETS).min(BUCKET).max(world.size))
    }

    fn in_buckets(len: usize, places: Vec<Place>, world: World, bucket: usize) -> Self {
        let mut firsts = vec![0];
        for place in &places {
            firsts.push(firsts[firsts.len() - 1] + place.blocks());
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
        this.held = if all { [len, scales] } else { held };
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
    pub fn pieces(&self, blocks: Range<usize>) -> impl Iterator<Item = Piece> + Clone {
        let (first, end) = (self.firsts.partition_point(|first| *first <= blocks.start) - 1, blocks.end);
        let near = self.places[first..].iter().zip(self.firsts[first..].windows(2));
        near.take_while(move |(_, at)| at[0] < end).filter_map(move |(place, at)| {
            let of = at[0].max(blocks.start)..at[1].min(blocks.end);
            let within = of.start - at[0]..of.end - at[0];
            (!of.is_empty()).then(|| Piece { place: place.cut(within), blocks: of, held: [0; 2] })
        })
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
        let bucket = self.bucket(block / self.bucket);
        // The last place whose part begins there or before: the most with `place * bucket.len() / size <= block - bucket.start`.
        let place = ((block - bucket.start + 1) * self.world.size - 1) / bucket.len();
        self.world.rank_at(place)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::plan::draw;
    use crate::model::ModelConfig;
    use crate::train::places::length;
    use std::time::Instant;

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
            let world = |rank| World { rank, size, beside };
            let of = |rank| Shares::in_buckets(table.trained_len, places(&table, coded), world(rank), bucket);
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
                Shares::in_buckets(table.trained_len, places(&table, false), World::of(rank, size), 256)
                    .held(Kind::Elements)
            };
            let all: Vec<usize> = (0..size).map(held).collect();
            let (least, most) = (all.iter().min().unwrap(), all.iter().max().unwrap());
            assert!(most - least <= 2 * BLOCK, "{all:?}");
        }
    }

    /// Places of random lengths, whole blocks now and then, with gaps between them in either arena.
    fn random_places(mut below: impl FnMut(usize) -> usize) -> Vec<Place> {
        let (mut at, mut grad, mut scale) = (0, 0, 0);
        let coded = below(2) == 1;
        let mut next = |_| {
            let len = if below(3) == 0 { (1 + below(5)) * BLOCK } else { 1 + below(5 * BLOCK) };
            (at, grad) = (at + below(9), grad + below(9));
            let scales = scale..scale + if coded { code8::blocks(len) } else { 0 };
            let place = Place { at: at..at + len, grad: grad..grad + len, decay: below(2) == 1, scales };
            (at, grad, scale) = (place.at.end, place.grad.end, place.scales.end);
            place
        };
        (0..12).map(&mut next).collect()
    }

    /// The blocks of a place.
    fn one_by_one(place: &Place) -> impl Iterator<Item = Place> {
        (0..place.grad.len()).step_by(BLOCK).map(|from| {
            let upto = (from + BLOCK).min(place.grad.len());
            let within = |of: &Range<usize>| of.start + from..of.start + upto;
            let scale = |at: usize| place.scales.end.min(place.scales.start + at.div_ceil(code8::BLOCK));
            let (at, grad, decay) = (within(&place.at), within(&place.grad), place.decay);
            Place { at, grad, decay, scales: scale(from)..scale(upto) }
        })
    }

    #[test]
    fn pieces_and_owners_are_those_of_block_by_block() {
        for seed in 0..300 {
            let mut counter = 0..;
            let mut below = |n: usize| (draw(seed, 0, counter.next().unwrap()) % n as u64) as usize;
            let places = random_places(&mut below);
            let (beside, machines) = (1 + below(4), 1 + below(5));
            let world = World { rank: 0, size: beside * machines, beside };
            let bucket = 1 + below(40);
            let shares = Shares::in_buckets(places[11].grad.end, places.clone(), world, bucket);
            let blocks: Vec<Place> = places.iter().flat_map(one_by_one).collect();
            assert_eq!(blocks.len(), shares.blocks());
            let mut all = 0..0;
            for (k, rank) in shares.buckets().flat_map(|k| (0..world.size).map(move |place| (k, world.rank_at(place))))
            {
                let part = shares.part(k, rank);
                assert!(part.start == all.end && part.end <= shares.bucket(k).end, "seed {seed}, bucket {k}");
                all.end = part.end;
                assert!(world.size == 1 || part.clone().all(|block| shares.rank_of(block) == rank), "seed {seed}");
                // Neighbours of one place are one piece.
                let mut want: Vec<Piece> = Vec::new();
                for (b, block) in part.clone().zip(&blocks[part.clone()]) {
                    let of = |at: usize| places.iter().position(|place| place.grad.contains(&at));
                    match want.last_mut() {
                        Some(Piece { place, blocks, .. }) if of(place.grad.start) == of(block.grad.start) => {
                            (place.at.end, place.grad.end) = (block.at.end, block.grad.end);
                            (place.scales.end, blocks.end) = (block.scales.end, b + 1);
                        }
                        _ => want.push(Piece { place: block.clone(), blocks: b..b + 1, held: [0; 2] }),
                    }
                }
                assert!(shares.pieces(part.clone()).eq(want.iter().cloned()), "seed {seed}, bucket {k}, rank {rank}");
                assert_eq!(length(shares.pieces(part)), length(&want));
            }
            assert_eq!(all.end, blocks.len());
        }
    }

    #[test]
    #[ignore = "a measurement: what counting every part costs in a step of 1,024 ranks at 7B"]
    fn how_long_counting_takes() {
        let text = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
            "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
            "vocab_size": 32000, "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "max_position_embeddings": 4096}"#;
        let map = serde_json::from_str(text).unwrap();
        let table = ParamTable::new(&ModelConfig::parse("config.json".as_ref(), &map).unwrap()).unwrap();
        for coded in [false, true] {
            let shares = Shares::new(&table, coded, World { rank: 0, size: 1024, beside: 8 });
            let all = || shares.buckets().flat_map(|k| (0..1024).map(move |place| (k, place..place + 1)));
            let (begun, lists) =
                (Instant::now(), all().map(|(k, part)| shares.pieces(shares.parts(k, &part)).collect()));
            let lists: usize = lists.map(|pieces: Vec<Piece>| length(&pieces)).sum();
            let (with, begun) = (begun.elapsed(), Instant::now());
            let counted: usize = all().map(|(k, part)| length(shares.pieces(shares.parts(k, &part)))).sum();
            println!("{coded}: {} parts, {with:?} with lists, {:?} without", all().count(), begun.elapsed());
            assert_eq!(lists, counted);
        }
    }
}
