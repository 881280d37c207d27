//! Lengths of preference data that somebody means to train on, for plans made without the data.
//!
//! The tables beside this file were written by `scripts/length_table.py`; their first lines say of what.

use super::shard::format::Meta;
use super::shard::{NewGroup, NewPair, NewResponse, ShardWriter};
use crate::choice;
use crate::error::{Error, Result};
use crate::files::{ScratchFolder, scratch_folder};

choice! {
    /// Data whose lengths are known here.
    pub enum Lengths: default Ultrafeedback {
        /// HH-RLHF, harmless: dialogues with short answers.
        Hh = "hh",
        /// UltraFeedback: instructions with long answers.
        Ultrafeedback = "ultrafeedback",
        /// Reddit TL;DR: long posts with summaries.
        Tldr = "tldr",
    }
}

/// Most pairs that [`Lengths::shards`] makes: steps of more are planned as of so many.
const MOST_PAIRS: usize = 1 << 14;

impl Lengths {
    fn table(self) -> &'static str {
        match self {
            Self::Hh => include_str!("hh.csv"),
            Self::Ultrafeedback => include_str!("ultrafeedback.csv"),
            Self::Tldr => include_str!("tldr.csv"),
        }
    }

    /// What was counted, and how.
    pub fn source(self) -> &'static str {
        self.table().lines().next().unwrap_or_default().trim_start_matches("# ")
    }

    /// Tokens of prompt, chosen and rejected response of every pair, from short pairs to long ones; cut as `pack` does by
    /// default where a row has more than `max_length` (0: nowhere): the end of a response, and the whole pair where the prompt
    /// alone fills it.
    pub fn pairs(self, max_length: usize) -> Vec<[usize; 3]> {
        let rows = self.table().lines().skip(2).map(|line| {
            let mut lengths = line.split(',').map(|n| n.parse::<usize>().expect("a table of whole numbers"));
            [(); 3].map(|()| lengths.next().expect("three columns"))
        });
        let most = if max_length == 0 { usize::MAX } else { max_length };
        rows.filter(|[prompt, ..]| *prompt < most).map(|[p, a, b]| [p, a.min(most - p), b.min(most - p)]).collect()
    }

    /// Shards of pairs of such lengths, at least `pairs` of them, and of nothing but one token: in a folder that is gone when
    /// it is dropped. Every pair has scores.
    ///
    /// Errors: [`Error::Usage`] where `max_length` leaves no pair; [`Error::Io`].
    pub fn shards(self, max_length: usize, pairs: usize) -> Result<ScratchFolder> {
        let rows = self.pairs(max_length);
        if rows.is_empty() {
            return Err(Error::usage(format!(
                "`max_length` {max_length}: every prompt of `lengths` {self} fills it; give more"
            )));
        }
        let folder = scratch_folder()?;
        let meta = Meta {
            vocab_size: 1,
            eos_id: None,
            bos_rule: 0,
            tokenizer_sha256: [0; 32],
            template_sha256: [0; 32],
            max_length: u32::try_from(max_length).unwrap_or(0),
            truncation: 0,
            boundary: 0,
        };
        let mut shard = ShardWriter::create(&folder.path().join("train-00000.pref"), &meta)?;
        let longest = rows.iter().flatten().max().copied().unwrap_or(0);
        let tokens = vec![0; longest];
        let many = pairs.min(MOST_PAIRS).div_ceil(rows.len()).max(1) * rows.len();
        for (row, [prompt, chosen, rejected]) in rows.iter().cycle().take(many).enumerate() {
            let response = |len: usize, index: u32| NewResponse {
                tokens: &tokens[..len],
                score: Some(1.0 - index as f32),
                label: None,
                row: row as u64,
                index,
            };
            shard.push(&NewGroup {
                prompt: &tokens[..*prompt],
                responses: vec![response(*chosen, 0), response(*rejected, 1)],
                pairs: vec![NewPair { chosen: 0, rejected: 1, weight: 1.0 }],
            })?;
        }
        shard.finish()?;
        Ok(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::Choice;
    use crate::data::shard::{Dataset, Split};

    #[test]
    fn tables_are_whole_and_say_what_they_are_of() {
        for lengths in Lengths::ALL {
            let all = lengths.pairs(0);
            assert_eq!(all.len(), 256, "{lengths}");
            assert!(all.iter().flatten().all(|n| *n > 0) && lengths.source().contains(" 20"), "{lengths}");
            assert!(all.is_sorted_by_key(|row| row.iter().sum::<usize>()), "{lengths}");
        }
        // The largest of HH's pairs and of UltraFeedback's, as they were counted.
        let largest = |l: Lengths| l.pairs(0).last().unwrap().iter().sum::<usize>();
        assert_eq!((largest(Lengths::Hh), largest(Lengths::Ultrafeedback)), (1092, 2428));
    }

    #[test]
    fn rows_are_cut_as_pack_cuts_them() {
        let cut = Lengths::Ultrafeedback.pairs(300);
        assert!(cut.iter().all(|[p, a, b]| *p < 300 && p + a.max(b) <= 300 && *a.min(b) > 0));
        let whole = Lengths::Ultrafeedback.pairs(0);
        assert_eq!(cut.len(), whole.iter().filter(|row| row[0] < 300).count());
        assert!(Lengths::Tldr.shards(1, 1).unwrap_err().to_string().contains("`max_length` 1: every prompt"));
    }

    #[test]
    fn shards_have_those_lengths_and_enough_of_them() {
        let folder = Lengths::Hh.shards(512, 300).unwrap();
        let data = Dataset::open(folder.path(), Split::Train).unwrap();
        data.verify().unwrap();
        let rows = Lengths::Hh.pairs(512);
        assert_eq!((data.num_pairs() as usize, rows.len()), (2 * rows.len(), data.num_pairs() as usize / 2));
        for id in 0..data.num_groups() {
            let (g, row) = (data.group(id), rows[id as usize % rows.len()]);
            assert_eq!([g.prompt().len(), g.response(0).tokens.len(), g.response(1).tokens.len()], row);
        }
        assert_eq!(data.longest_row(), rows.iter().map(|[p, a, b]| p + a.max(b)).max().unwrap());
    }
}
