//! The language of the demo: a context-free grammar of short reviews whose opinion phrases carry scores.
//!
//! The grammar does three things. It *generates* training texts; it *judges* a text's sentiment, as the mean score of the
//! opinion phrases found in it, so that the reward of a sample is known and not estimated; and it *recognises* its own
//! sentences, so that "the text falls apart" is a number. `reviews.cfg` is the grammar and says how it is written.

use crate::model::sample::uniform;
use std::collections::HashMap;
use std::ops::Range;

/// The shipped grammar.
const REVIEWS: &str = include_str!("reviews.cfg");
/// Opinions are scored from -MAX_SCORE to MAX_SCORE.
const MAX_SCORE: i32 = 3;
/// The section whose rules every topic shares.
const SHARED: &str = "*";

/// One place in an alternative.
#[derive(Clone, Debug)]
enum Item {
    /// A rule, by index.
    Rule(usize),
    /// Words; `score` where they are an opinion.
    Words { words: Vec<String>, score: Option<i32> },
}

/// A rule's alternatives.
type Rule = Vec<Vec<Item>>;

/// A context-free grammar without recursion, over words.
pub struct Grammar {
    rules: Vec<Rule>,
    roots: Vec<usize>,
    /// Opinion phrases, longest first.
    opinions: Vec<(Vec<String>, i32)>,
}

/// A text drawn from the grammar.
#[derive(Clone, Debug, PartialEq)]
pub struct Review {
    /// Its words; punctuation counts as words.
    pub words: Vec<String>,
    /// Scores of its opinions, in order.
    pub opinions: Vec<i32>,
}

/// A source of uniform numbers: draw `counter` of `stream` under `seed`.
#[derive(Clone, Debug)]
pub struct Draws {
    seed: u64,
    stream: u64,
    counter: u64,
}

impl Draws {
    /// The numbers of `stream`, from the first.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { seed, stream, counter: 0 }
    }

    /// A whole number in `range`, each as likely as the others.
    pub fn pick(&mut self, range: Range<usize>) -> usize {
        let u = uniform(self.seed, self.stream, self.counter);
        self.counter += 1;
        range.start + (u * range.len() as f64) as usize
    }
}

impl Grammar {
    /// The shipped grammar of reviews.
    pub fn reviews() -> Self {
        Self::parse(REVIEWS).expect("reviews.cfg is tested")
    }

    /// Reads a grammar written as `reviews.cfg` describes.
    fn parse(text: &str) -> Result<Self, String> {
        let sections = read_sections(text)?;
        let (shared, topics) = sections.split_first().ok_or("no section")?;
        if shared.0 != SHARED {
            return Err(format!("the first section is [{}], not [*]", shared.0));
        }
        let mut g = Self { rules: Vec::new(), roots: Vec::new(), opinions: Vec::new() };
        for topic in topics {
            let mut made = HashMap::new();
            let root = g.instantiate("review", &topic.1, &shared.1, &mut made)?;
            g.roots.push(root);
        }
        g.collect_opinions()?;
        Ok(g)
    }

    /// The rule `name` as topic `own` sees it; its index. `made`: those that exist, `None` while under construction.
    fn instantiate<'a>(
        &mut self,
        name: &'a str,
        own: &HashMap<&'a str, &'a str>,
        shared: &HashMap<&'a str, &'a str>,
        made: &mut HashMap<&'a str, Option<usize>>,
    ) -> Result<usize, String> {
        match made.get(name) {
            Some(Some(index)) => return Ok(*index),
            Some(None) => return Err(format!("rule `{name}` refers to itself")),
            None => made.insert(name, None),
        };
        let body = own.get(name).or_else(|| shared.get(name)).ok_or(format!("no rule `{name}`"))?;
        let mut rule = Rule::new();
        for alternative in body.split('|') {
            let mut items = Vec::new();
            for token in alternative.split_whitespace() {
                items.push(match token.strip_prefix('(').and_then(|t| t.strip_suffix(')')) {
                    Some(inner) => Item::Rule(self.instantiate(inner, own, shared, made)?),
                    None => terminal(token)?,
                });
            }
            rule.push(items);
        }
        self.rules.push(rule);
        made.insert(name, Some(self.rules.len() - 1));
        Ok(self.rules.len() - 1)
    }

    fn collect_opinions(&mut self) -> Result<(), String> {
        let mut all: HashMap<&Vec<String>, i32> = HashMap::new();
        for item in self.rules.iter().flatten().flatten() {
            if let Item::Words { words, score: Some(score) } = item
                && *all.entry(words).or_insert(*score) != *score
            {
                return Err(format!("`{}` has two scores", words.join("_")));
            }
        }
        self.opinions = all.into_iter().map(|(w, s)| (w.clone(), s)).collect();
        self.opinions.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
        Ok(())
    }

    /// Draws a review.
    pub fn generate(&self, draws: &mut Draws) -> Review {
        let mut review = Review { words: Vec::new(), opinions: Vec::new() };
        let root = self.roots[draws.pick(0..self.roots.len())];
        self.expand(root, draws, &mut review);
        review
    }

    fn expand(&self, rule: usize, draws: &mut Draws, out: &mut Review) {
        let alternatives = &self.rules[rule];
        for item in &alternatives[draws.pick(0..alternatives.len())] {
            match item {
                Item::Rule(r) => self.expand(*r, draws, out),
                Item::Words { words, score } => {
                    out.words.extend_from_slice(words);
                    out.opinions.extend(score);
                }
            }
        }
    }

    /// Every word, sorted.
    pub fn vocabulary(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for item in self.rules.iter().flatten().flatten() {
            if let Item::Words { words, .. } = item {
                all.extend_from_slice(words);
            }
        }
        all.sort();
        all.dedup();
        all
    }

    /// The opinion phrases in `words` with their scores, left to right, the longest at each place, none overlapping.
    pub fn opinions<S: AsRef<str>>(&self, words: &[S]) -> Vec<(&[String], i32)> {
        let (mut at, mut found) = (0, Vec::new());
        while at < words.len() {
            let here = &words[at..];
            let starts =
                |phrase: &[String]| phrase.len() <= here.len() && phrase.iter().zip(here).all(|(p, w)| p == w.as_ref());
            match self.opinions.iter().find(|(phrase, _)| starts(phrase)) {
                Some((phrase, score)) => {
                    found.push((phrase.as_slice(), *score));
                    at += phrase.len();
                }
                None => at += 1,
            }
        }
        found
    }

    /// The reward of a text: the mean score of its opinions over `MAX_SCORE`, in [-1, 1]; 0 without any.
    pub fn reward<S: AsRef<str>>(&self, words: &[S]) -> f64 {
        let found = self.opinions(words);
        let sum: i32 = found.iter().map(|(_, score)| score).sum();
        f64::from(sum) / f64::from(MAX_SCORE * found.len().max(1) as i32)
    }

    /// Whether the whole of `words` is a review of this grammar.
    pub fn derives<S: AsRef<str>>(&self, words: &[S]) -> bool {
        let mut memo = HashMap::new();
        self.roots.iter().any(|&root| self.ends(root, words, 0, &mut memo).contains(&words.len()))
    }

    /// Where `rule` can end when it begins at `from`: sorted, no duplicates.
    fn ends<S: AsRef<str>>(
        &self,
        rule: usize,
        words: &[S],
        from: usize,
        memo: &mut HashMap<(usize, usize), Vec<usize>>,
    ) -> Vec<usize> {
        if let Some(known) = memo.get(&(rule, from)) {
            return known.clone();
        }
        let mut all = Vec::new();
        for alternative in &self.rules[rule] {
            let mut at = vec![from];
            for item in alternative {
                at = at.iter().flat_map(|&p| self.step(item, words, p, memo)).collect();
                at.sort_unstable();
                at.dedup();
            }
            all.extend(at);
        }
        all.sort_unstable();
        all.dedup();
        memo.insert((rule, from), all.clone());
        all
    }

    fn step<S: AsRef<str>>(
        &self,
        item: &Item,
        words: &[S],
        at: usize,
        memo: &mut HashMap<(usize, usize), Vec<usize>>,
    ) -> Vec<usize> {
        match item {
            Item::Rule(r) => self.ends(*r, words, at, memo),
            Item::Words { words: want, .. } => {
                let got = words[at..].iter().take(want.len());
                let same = got.len() == want.len() && got.zip(want).all(|(g, w)| g.as_ref() == w);
                if same { vec![at + want.len()] } else { Vec::new() }
            }
        }
    }
}

/// A section's name and its rules, name to body.
type Section<'a> = (&'a str, HashMap<&'a str, &'a str>);

/// Cuts the file into sections and rules. A body keeps its line breaks: they separate words like spaces do.
fn read_sections(text: &str) -> Result<Vec<Section<'_>>, String> {
    let mut sections: Vec<Section<'_>> = Vec::new();
    let mut starts: Vec<(usize, &str)> = Vec::new();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        if !line.starts_with([' ', '#', '\n']) {
            starts.push((offset, line.trim_end()));
        }
        offset += line.len();
    }
    for (i, &(at, line)) in starts.iter().enumerate() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            sections.push((name, HashMap::new()));
            continue;
        }
        let end = starts.get(i + 1).map_or(text.len(), |s| s.0);
        let (name, body) = text[at..end].split_once(':').ok_or(format!("no colon in `{line}`"))?;
        let rules = &mut sections.last_mut().ok_or("a rule before the first section")?.1;
        if rules.insert(name, body.trim_end()).is_some() {
            return Err(format!("rule `{name}` is there twice in a section"));
        }
    }
    Ok(sections)
}

/// `some_words/-2`, or a plain word.
fn terminal(token: &str) -> Result<Item, String> {
    let (text, score) = match token.split_once('/') {
        None => (token, None),
        Some((text, score)) => {
            let score: i32 = score.parse().map_err(|_| format!("bad score in `{token}`"))?;
            if score == 0 || score.abs() > MAX_SCORE {
                return Err(format!("the score of `{token}` is not in -{MAX_SCORE}..{MAX_SCORE}, or is 0"));
            }
            (text, Some(score))
        }
    };
    Ok(Item::Words { words: text.split('_').map(str::to_owned).collect(), score })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::words::{join, split};

    fn scores<S: AsRef<str>>(g: &Grammar, words: &[S]) -> Vec<i32> {
        g.opinions(words).iter().map(|(_, score)| *score).collect()
    }

    fn some(n: u64) -> Vec<Review> {
        let g = Grammar::reviews();
        (0..n).map(|i| g.generate(&mut Draws::new(7, i))).collect()
    }

    #[test]
    fn every_review_parses_and_scores_as_it_was_built() {
        let g = Grammar::reviews();
        for r in some(3000) {
            assert!(g.derives(&r.words), "{}", join(&r.words));
            assert_eq!(scores(&g, &r.words), r.opinions, "{}", join(&r.words));
            assert_eq!(split(&join(&r.words)), r.words);
            let reward = g.reward(&r.words);
            assert!((-1.0..=1.0).contains(&reward), "{reward}");
            assert!((8..=48).contains(&r.words.len()), "{} words: {}", r.words.len(), join(&r.words));
        }
    }

    #[test]
    fn corrupted_reviews_do_not_parse() {
        let g = Grammar::reviews();
        let mut swapped = 0;
        for (i, r) in some(500).into_iter().enumerate() {
            let cut = &r.words[..r.words.len() - 1];
            assert!(!g.derives(cut), "without its full stop: {}", join(cut));
            let twice = [r.words.as_slice(), &r.words].concat();
            assert!(!g.derives(&twice), "twice: {}", join(&twice));
            let mut stutter = r.words.clone();
            stutter.insert(i % r.words.len(), r.words[i % r.words.len()].clone());
            assert!(!g.derives(&stutter), "stutter: {}", join(&stutter));
            let mut other = r.words.clone();
            other.swap(i % r.words.len(), (i + 1) % r.words.len());
            swapped += usize::from(other != r.words && g.derives(&other));
        }
        // "two sisters" and the like may swap into another review, but hardly ever do.
        assert!(swapped <= 5, "{swapped} of 500 reviews with two words swapped still parse");
        assert!(!g.derives::<&str>(&[]));
        assert!(!g.derives(&split("the film was great and the soup was great. five stars.")), "two topics");
        assert!(!g.derives(&split("luckily, the film was dull. five stars.")), "bad luck");
    }

    #[test]
    fn the_longest_opinion_wins() {
        let g = Grammar::reviews();
        assert_eq!(scores(&g, &split("the film was not good, the plot was good")), [-1, 1]);
        assert!((g.reward(&split("the film was superb, but the plot was bad.")) - 1.0 / 6.0).abs() < 1e-12);
        assert_eq!(g.reward(&split("the film was shown")), 0.0);
    }

    #[test]
    fn opinions_balance_and_texts_vary() {
        let g = Grammar::reviews();
        let reviews = some(4000);
        let mean = reviews.iter().map(|r| g.reward(&r.words)).sum::<f64>() / reviews.len() as f64;
        assert!(mean.abs() < 0.05, "mean reward {mean}");
        let mut texts: Vec<_> = reviews.iter().map(|r| &r.words).collect();
        texts.sort();
        texts.dedup();
        assert!(texts.len() > 3980, "{} different texts", texts.len());
        let words = g.vocabulary().len();
        assert!((350..=1000).contains(&words), "{words} words");
    }

    #[test]
    fn mistakes_in_a_grammar_are_named() {
        for (text, want) in [
            ("[*]\nreview: (x)\n[t]\n", "no rule `x`"),
            ("[*]\nreview: a (review)\n[t]\n", "refers to itself"),
            ("[*]\nreview: good/1 good/2\n[t]\n", "two scores"),
            ("[*]\nreview: good/9\n[t]\n", "-3..3"),
            ("[*]\nreview a\n[t]\n", "no colon"),
            ("review: a\n", "before the first section"),
            ("[*]\nreview: a\nreview: b\n[t]\n", "twice"),
        ] {
            let got = Grammar::parse(text).map(|_| ()).unwrap_err();
            assert!(got.contains(want), "{text:?}: {got}");
        }
    }
}
