//! Generation: prompts packed through the ordinary forward pass, then one row a sequence against a key/value cache.
//!
//! Sequences live in cache slots `0..live`; a finished one gives its slot to the last, so the batch stays dense, and
//! waiting sequences come in when half of the slots are free. What a sequence draws depends on its own number and the seed only.
//!
//! Drafts of the weights, read in a fraction of the time, guess some tokens, and one pass of the weights themselves over all of
//! those says which they would have drawn: the first that differs and what follows it is thrown away. A row has the
//! same bits in any company, and a draw is a function of its logits and the seed, so the result is what it is without guesses.

use super::acts::Workspace;
use super::cache::Cache;
use super::forward::{attend, forward_with, weight};
use super::load::Model;
use super::packed::{PackedWeights, Packs};
use super::room::{Buffers, GenerateOptions, Room, buffers, guesses};
use super::sample::{pick, sample};
use super::sequence::{Generated, Live, check, decode_batch, luck, prompt_batch};
use crate::backend::{AttentionDecode, Backend, Float, Logits, LogitsPacked};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;

/// Most new tokens: far beyond any use, and small enough to be counted with.
pub const MAX_NEW_TOKENS: usize = 1 << 20;

/// Continues every prompt `num_return_sequences` times: one inner list a prompt, in order.
///
/// Errors: [`Error::Usage`] for options out of range, an empty prompt (nothing to continue), a token outside the
/// vocabulary, or a prompt that with `max_new_tokens` exceeds the positions that the model was loaded for;
/// [`Error::Training`] where the model computes no finite numbers.
///
/// ```
/// use fusedpo::backend::cpu::Cpu;
/// use fusedpo::model::{GenerateOptions, Model, ModelConfig, generate};
///
/// # let json = serde_json::json!({
/// #     "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 50,
/// #     "num_attention_heads": 4, "max_position_embeddings": 64,
/// # });
/// # let config = ModelConfig::parse("config.json".as_ref(), json.as_object().unwrap())?;
/// let be = Cpu::<f32>::new()?;
/// let model = Model::random(&be, config, 1, 64)?;
/// let options = GenerateOptions {
///     max_new_tokens: 5,
///     temperature: 0.0,
///     top_p: 1.0,
///     num_return_sequences: 1,
///     seed: 42,
///     eos_token_ids: model.config.eos_token_ids.clone(), // none: all five tokens are drawn
///     cache_bytes: 1 << 20,
///     pack_weights: true,
/// };
/// let all = generate(&be, &model, &[vec![1, 7, 9], vec![3]], &options)?;
/// let continued = &all[1][0];
/// assert_eq!((continued.tokens.len(), continued.logps.len(), continued.finished), (5, 5, false));
///
/// // A prompt is continued alone as it is in company.
/// assert_eq!(generate(&be, &model, &[vec![3]], &options)?[0], all[1]);
/// # Ok::<(), fusedpo::Error>(())
/// ```
pub fn generate<B: Backend>(
    be: &B,
    model: &Model<B>,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
) -> Result<Vec<Vec<Generated>>> {
    generate_while(be, model, prompts, options, &mut || Ok(true))
}

/// [`generate`] as long as `goes_on`, which is asked after every token, or those that were guessed together. Errors: [`Error::Training`] where it does not.
pub fn generate_while<B: Backend>(
    be: &B,
    model: &Model<B>,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    goes_on: &mut dyn FnMut() -> Result<bool>,
) -> Result<Vec<Vec<Generated>>> {
    generate_some(be, model, (prompts, 0), options, goes_on)
}

/// [`generate_while`] of some of several prompts, of which the first is the one after `before` others: what it draws, and what
/// an error calls it, is as of all together.
pub fn generate_some<B: Backend>(
    be: &B,
    model: &Model<B>,
    (prompts, before): (&[Vec<u32>], usize),
    options: &GenerateOptions,
    goes_on: &mut dyn FnMut() -> Result<bool>,
) -> Result<Vec<Vec<Generated>>> {
    check(model, (prompts, before), options)?;
    if prompts.is_empty() {
        return Ok(Vec::new());
    }
    let mut g = Generator::new(be, model, (prompts, before), options)?;
    while g.next < g.out.len() || !g.live.is_empty() {
        if g.live.len() <= g.slots / 2 {
            while g.next < g.out.len() && g.live.len() < g.slots {
                g.admit()?;
            }
        }
        if !g.live.is_empty() {
            g.step()?;
        }
        if !goes_on()? {
            return Err(Error::stopped("stopped while generating; nothing was written"));
        }
    }
    let mut all = g.out.into_iter();
    Ok(prompts.iter().map(|_| all.by_ref().take(options.num_return_sequences).collect()).collect())
}

/// Tokens that are guessed before it is said that most guesses are wrong.
const TRIED: usize = 32;

/// Checks what [`generate`] would check, and allocates on `counting` what it would allocate.
pub fn counted<B: Backend>(counting: &B, model: &Model<B>, prompts: &[Vec<u32>], o: &GenerateOptions) -> Result<Room> {
    check(model, (prompts, 0), o)?;
    buffers(counting, model, prompts, o).map(|b| b.room)
}

struct Generator<'a, B: Backend> {
    be: &'a B,
    model: &'a Model<B>,
    prompts: &'a [Vec<u32>],
    /// Prompts of others, before these.
    before: usize,
    o: &'a GenerateOptions,
    ws: Workspace<B>,
    cache: Cache<B>,
    packed: Option<PackedWeights<B>>,
    drafts: Option<PackedWeights<B>>,
    /// How many tokens were guessed, and how many of them rightly; nothing where none are.
    guessed: Option<[usize; 2]>,
    slots: usize,
    live: Vec<Live>,
    /// First sequence that has not come in.
    next: usize,
    out: Vec<Generated>,
    logits: Vec<B::Acc>,
}

impl<'a, B: Backend> Generator<'a, B> {
    fn new(
        be: &'a B,
        model: &'a Model<B>,
        (prompts, before): (&'a [Vec<u32>], usize),
        o: &'a GenerateOptions,
    ) -> Result<Self> {
        let Buffers { room, mut ws, cache, mut packed, mut drafts } = buffers(be, model, prompts, o)?;
        for weights in [&mut packed, &mut drafts].into_iter().flatten() {
            weights.fill(be, model, &mut ws.acts.dense)?;
        }
        let guessed = drafts.as_ref().map(|_| [0, 0]);
        Ok(Self {
            be,
            model,
            prompts,
            before,
            o,
            ws,
            cache,
            packed,
            drafts,
            guessed,
            slots: room.sequences,
            live: Vec::with_capacity(room.sequences),
            next: 0,
            out: vec![Generated::default(); prompts.len() * o.num_return_sequences],
            logits: vec![B::Acc::from_f64(0.0); room.rows * model.config.vocab_size],
        })
    }

    /// Brings in waiting sequences, as many as slots and the token budget of one prefill allow: computes their prompts
    /// once each, fills their slots, draws their first tokens.
    fn admit(&mut self) -> Result<()> {
        let k = self.o.num_return_sequences;
        let mut groups: Vec<Range<usize>> = Vec::new();
        let (mut free, mut tokens) = (self.slots - self.live.len(), 0);
        while self.next < self.out.len() && free > 0 {
            let prompt = self.next / k;
            tokens += self.prompts[prompt].len();
            if tokens > self.ws.capacity.slots {
                break;
            }
            let end = (self.next + free).min((prompt + 1) * k);
            free -= end - self.next;
            groups.push(self.next..end);
            self.next = end;
        }
        let prompts: Vec<&[u32]> = groups.iter().map(|g| self.prompts[g.start / k].as_slice()).collect();
        self.ws.load_batch(self.be, &prompt_batch(&prompts)?)?;
        let stores = self.stores(&groups, &prompts);
        let (model, cache) = (self.model, &mut self.cache);
        let packs = Packs::few(self.packed.as_ref());
        forward_with(self.be, model, packs, &mut self.ws, |be, l, layer, batch, rows| {
            stores.iter().try_for_each(|dst| cache.store(be, model, l, layer, dst))?;
            attend(be, model, layer, batch, rows)
        })?;
        for g in &groups {
            let cached = self.prompts[g.start / k].len();
            self.live.extend(g.clone().map(|sequence| Live { sequence, cached, last: 0 }));
        }
        let first = self.live.len() - groups.iter().map(Range::len).sum::<usize>();
        let rows: Vec<usize> = groups.iter().enumerate().flat_map(|(row, g)| g.clone().map(move |_| row)).collect();
        self.logits(false)?;
        self.draw(first, &rows, &[])
    }

    /// Cache rows of the packed prompts' rows: one list for each copy of a prompt, as every sequence owns its slot.
    fn stores(&self, groups: &[Range<usize>], prompts: &[&[u32]]) -> Vec<Vec<u32>> {
        let copies = groups.iter().map(Range::len).max().unwrap_or(0);
        let mut stores = vec![vec![u32::MAX; self.ws.rows]; copies];
        let (mut slot, mut row) = (self.live.len(), 0);
        for (group, prompt) in groups.iter().zip(prompts) {
            for store in &mut stores[..group.len()] {
                let at = slot * self.cache.stride;
                store[row..row + prompt.len()].iter_mut().zip(at..).for_each(|(dst, at)| *dst = at as u32);
                slot += 1;
            }
            row += prompt.len();
        }
        stores
    }

    /// One more token for every live sequence, or several.
    fn step(&mut self) -> Result<()> {
        let n = self.live.len();
        let mut tokens = vec![self.live.iter().map(|x| x.last).collect::<Vec<_>>()];
        for j in 0..self.worth_guessing() {
            self.pass(&tokens[j..], j, true)?;
            self.logits(true)?;
            let (o, out, logits) = (self.o, &self.out, self.logits.par_chunks_exact(self.model.config.vocab_size));
            let before = self.before;
            let guess = |(x, z): (&Live, &[B::Acc])| pick(z, o.temperature, o.top_p, luck((o, before), out, x, j));
            tokens.push(self.live.par_iter().zip(logits).map(guess).collect());
        }
        self.pass(&tokens, 0, false)?;
        self.live.iter_mut().for_each(|x| x.cached += 1);
        self.logits(false)?;
        self.draw(0, &(0..n).collect::<Vec<_>>(), &tokens[1..])
    }

    /// How many tokens to guess: none beyond the last that any sequence may have, and none where most guesses are wrong.
    fn worth_guessing(&self) -> usize {
        let Some([guessed, right]) = self.guessed else { return 0 };
        if guessed >= TRIED && 2 * right < guessed {
            return 0;
        }
        let left = |x: &Live| self.o.max_new_tokens - self.out[x.sequence].tokens.len() - 1;
        guesses(self.live.len()).min(self.live.iter().map(left).min().unwrap_or(0))
    }

    /// Hidden states of `tokens`, for each live sequence one that is `first` after its last, then one a further, and so on: in the
    /// cache each sees those before it.
    fn pass(&mut self, tokens: &[Vec<u32>], first: usize, guess: bool) -> Result<()> {
        self.ws.load_batch(self.be, &decode_batch(&self.live, tokens, first)?)?;
        let (a, stride, n) = (self.model.config.attn_shape(), self.cache.stride, self.live.len());
        let places = (0..tokens.len()).flat_map(|j| self.live.iter().enumerate().map(move |(s, x)| (s, x, j)));
        let mut dst: Vec<u32> = places.map(|(s, x, j)| (s * stride + x.cached + first + j) as u32).collect();
        dst.resize(self.ws.rows, u32::MAX);
        let lens = |j: usize| self.live.iter().map(move |x| (x.cached + first + j + 1) as u32).collect();
        let lens: Vec<Vec<u32>> = (0..tokens.len()).map(lens).collect();
        let (model, cache) = (self.model, &mut self.cache);
        let packs = Packs::few(if guess { self.drafts.as_ref() } else { self.packed.as_ref() });
        forward_with(self.be, model, packs, &mut self.ws, |be, l, layer, _, _| {
            cache.store(be, model, l, layer, &dst)?;
            let [k, v] = &cache.layers[l];
            lens.iter().enumerate().try_for_each(|(j, lens)| {
                be.attention_decode(AttentionDecode {
                    out: be.view_mut(&mut layer.attn, j * n * a.q_width()..(j + 1) * n * a.q_width()),
                    qkv: be.view(&layer.qkv, j * n * a.qkv_width()..(j + 1) * n * a.qkv_width()),
                    k: be.view(k, 0..be.len(k)),
                    v: be.view(v, 0..be.len(v)),
                    lens,
                    stride,
                    shape: a,
                })
            })
        })
    }

    /// Logits of the hidden states.
    fn logits(&mut self, guess: bool) -> Result<()> {
        let (c, be, n) = (&self.model.config, self.be, self.ws.predictions);
        let logits = be.view_mut(&mut self.ws.logits, 0..n * c.vocab_size);
        let x = be.view(&self.ws.hidden, 0..n * c.hidden_size);
        let packs = Packs::few(if guess { self.drafts.as_ref() } else { self.packed.as_ref() });
        match packs.find(|w| &w.head) {
            Some(w) => be.logits_packed(LogitsPacked { logits, x, w })?,
            None => {
                let w = weight(be, self.model, &self.model.table.head);
                be.logits_few(Logits { logits, x, w, dim: c.hidden_size })?;
            }
        }
        be.download(&mut self.logits[..n * c.vocab_size], be.view(&self.ws.logits, 0..n * c.vocab_size))
    }

    /// Draws the next token of sequences `first..`, each from row `rows[i]` of the logits, and as long as `guesses` has what was
    /// drawn, which is in the cache by then, the one after it from the row that is a row a sequence further. Those that end leave.
    fn draw(&mut self, first: usize, rows: &[usize], guesses: &[Vec<u32>]) -> Result<()> {
        let (o, n, vocab) = (self.o, self.live.len(), self.model.config.vocab_size);
        let (out, logits, before) = (&self.out, &self.logits, self.before);
        let draws = self.live[first..].par_iter().zip(rows).map(|(x, row)| {
            let draw = |j: usize| {
                let z = &logits[(row + j * n) * vocab..][..vocab];
                sample(z, o.temperature, o.top_p, luck((o, before), out, x, j))
            };
            (0..=guesses.len()).into_par_iter().map(draw).collect()
        });
        let draws: Vec<Vec<(u32, f64)>> = draws.collect();
        for (i, (x, draws)) in self.live[first..].iter_mut().zip(draws).enumerate() {
            let out = &mut self.out[x.sequence];
            for (j, (token, logp)) in draws.into_iter().enumerate() {
                // Of numbers that are none, the token would be an accident.
                if !logp.is_finite() {
                    let prompt = before + x.sequence / o.num_return_sequences + 1;
                    let after = out.tokens.len();
                    return Err(Error::Training(format!(
                        "prompt {prompt}: after {after} new tokens the model computes no finite numbers; check its config.json, \
                         and whether the download is whole"
                    )));
                }
                x.last = token;
                out.tokens.push(token);
                out.logps.push(logp);
                out.finished = o.eos_token_ids.contains(&token);
                let right = guesses.get(j).is_some_and(|g| g[i] == token);
                if let Some([guessed, rightly]) = &mut self.guessed {
                    *guessed += usize::from(j < guesses.len());
                    *rightly += usize::from(right);
                }
                if out.finished || !right {
                    break;
                }
                x.cached += 1;
            }
        }
        self.retire(first)
    }

    /// Takes out the sequences among `first..` that have ended.
    fn retire(&mut self, first: usize) -> Result<()> {
        for slot in (first..self.live.len()).rev() {
            let out = &self.out[self.live[slot].sequence];
            if !out.finished && out.tokens.len() < self.o.max_new_tokens {
                continue;
            }
            let last = self.live.len() - 1;
            if slot < last {
                self.cache.copy_slot(self.be, last, slot, self.live[last].cached)?;
            }
            self.live.swap_remove(slot);
        }
        Ok(())
    }
}
