//! Where a prompt ends and its responses begin: TRL 1.16's rule, for any number of responses.
//!
//! Plain text: the EOS text is appended to every response that does not end with it; prompt and each prompt + response
//! are tokenised whole; the prompt keeps the tokens that all of them begin with. A token that merges across the boundary
//! thus leaves the prompt and is scored with the response. Conversations: the same, with the rendered template (the
//! prompt with its generation prompt) and no EOS added. Without a prompt column the prompt is what chosen and rejected
//! have in common: characters less one trailing space, or messages.

use super::cuts::common_prefix;
use super::tokenize::TextTokenizer;
use crate::choice;
use crate::data::input::{Body, Pairs, Prompt, Row, Shape, Text, Unusable, same_turn};
use sha2::{Digest, Sha256};

choice! {
    /// How a prompt is found in plain dialogues that have no prompt column.
    pub enum PromptBoundary: default Trl {
        /// TRL's: the common characters, less one trailing space.
        Trl = "trl",
        /// The DPO paper's code: up to and with the last common `\n\nAssistant:`.
        LastTurn = "last-turn",
    }
}

impl PromptBoundary {
    /// The code in a shard's header.
    pub fn code(self) -> u32 {
        match self {
            Self::Trl => 1,
            Self::LastTurn => 2,
        }
    }
}

/// The paper's marker of the assistant's turn in HH dialogues.
const LAST_TURN: &str = "\n\nAssistant:";

/// A response as ids.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenResponse {
    /// Place in its row.
    pub index: u32,
    /// Ids; at least one.
    pub tokens: Vec<u32>,
    /// Score.
    pub score: Option<f32>,
    /// Unpaired label.
    pub label: Option<bool>,
}

/// A row as ids.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRow {
    /// Ids of the prompt; empty where the response begins the text.
    pub prompt: Vec<u32>,
    /// Usable responses, in the row's order.
    pub responses: Vec<TokenResponse>,
    /// Index and reason of the others.
    pub unusable: Vec<(u32, Unusable)>,
    /// Which pairs the row makes.
    pub pairs: Pairs,
    /// The columns it was read from.
    pub shape: Shape,
    /// Whether the row came as messages.
    pub chat: bool,
    /// Whether it is plain text with a prompt.
    pub plain: bool,
    /// Whether the prompt was split off plain texts by a [`PromptBoundary`].
    pub split: bool,
    /// Whether the prompt says anything: rows with an empty prompt share nothing and stay apart.
    pub has_prompt: bool,
    /// Identity of the prompt as it was given, for the split into train and eval.
    pub prompt_key: [u8; 16],
    /// Tokens at the prompt's end that went to the responses because tokens merge or the template differs there.
    pub prompt_tokens_cut: usize,
    /// Whether every response text begins with the prompt text (it is then there twice).
    pub repeats_prompt: bool,
}

/// Why a row gave no ids.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// Dropped and counted: [`PromptBoundary::LastTurn`] found no common marker.
    NoLastTurn,
    /// The row cannot be used; the caller adds file and line.
    Error(String),
    /// No row of this kind can be used as things are set up: no EOS, no template.
    Setup(String),
}

impl<E: std::fmt::Display> From<E> for Refusal {
    fn from(e: E) -> Self {
        Refusal::Error(e.to_string())
    }
}

/// Tokenises a row.
pub fn tokenise(row: Row, tok: &TextTokenizer, boundary: PromptBoundary) -> Result<TokenRow, Refusal> {
    let Row { shape, prompt, responses, pairs, tools, template_kwargs, .. } = row;
    let mut out = TokenRow {
        prompt: Vec::new(),
        responses: Vec::with_capacity(responses.len()),
        unusable: Vec::new(),
        pairs,
        shape,
        chat: false,
        plain: false,
        split: false,
        has_prompt: true,
        prompt_key: [0; 16],
        prompt_tokens_cut: 0,
        repeats_prompt: false,
    };
    let mut texts = Vec::with_capacity(responses.len());
    for r in responses {
        match r.body {
            Body::Unusable(why) => out.unusable.push((r.index, why)),
            Body::Ids(tokens) => {
                out.responses.push(TokenResponse { index: r.index, tokens, score: r.score, label: r.label })
            }
            Body::Text(text) => {
                texts.push(text);
                out.responses.push(TokenResponse {
                    index: r.index,
                    tokens: Vec::new(),
                    score: r.score,
                    label: r.label,
                });
            }
        }
    }
    if let Prompt::Ids(ids) = prompt {
        out.has_prompt = ids.iter().any(|id| !tok.prefix().contains(id));
        out.prompt_key = key(b"ids", bytemuck::cast_slice(&ids));
        out.prompt = ids;
        return check_vocabulary(out, tok);
    }
    if texts.is_empty() {
        return Ok(out);
    }
    let mut implicit = false;
    let prompt = match prompt {
        Prompt::Text(prompt) => prompt,
        Prompt::Implicit if texts.len() < 2 => {
            out.responses.clear(); // the pair is dropped, and without it there is no telling the prompt
            return Ok(out);
        }
        Prompt::Implicit => {
            implicit = true;
            let prompt = extract_prompt(&mut texts, boundary)?;
            out.split = matches!(prompt, Text::Plain(_));
            prompt
        }
        Prompt::None | Prompt::Ids(_) => Text::Plain(String::new()),
    };
    let family = match &prompt {
        Text::Plain(prompt) => plain_family(prompt, &texts, tok, &mut out)?,
        Text::Chat(prompt) => {
            let template = tok.template.as_ref().ok_or_else(|| {
                Refusal::Setup(format!(
                    "the row is a conversation and {} has no chat template; give one with `options.chat_template`, a file or chatml, zephyr or alpaca",
                    tok.path.display()
                ))
            })?;
            out.chat = true;
            out.has_prompt = !prompt.is_empty();
            let mut family = vec![template.render(prompt, true, tools.as_ref(), &template_kwargs)?];
            for text in &texts {
                let Text::Chat(messages) = text else {
                    return Err("prompt and responses must both be messages".into());
                };
                let dialogue: Vec<_> = prompt.iter().chain(messages).cloned().collect();
                family.push(template.render(&dialogue, false, tools.as_ref(), &template_kwargs)?);
            }
            family
        }
    };
    // An implicit prompt may hold the answers' common first words; the dialogue before them is what must not be split.
    let given = family[0].as_str();
    let given =
        if implicit { given.rfind(LAST_TURN).map_or(given, |at| &given[..at + LAST_TURN.len()]) } else { given };
    out.prompt_key = key(if out.chat { b"chat" } else { b"text" }, given.as_bytes());
    let mut ids = tok.encode_family(&family, !out.chat)?.into_iter();
    let mut prompt = ids.next().unwrap_or_default();
    let rest: Vec<_> = ids.collect();
    let len = rest.iter().map(|full| common_prefix(&prompt, full)).min().unwrap_or(prompt.len());
    out.prompt_tokens_cut = prompt.len() - len;
    prompt.truncate(len);
    for (response, full) in out.responses.iter_mut().zip(rest) {
        response.tokens = full[len..].to_vec();
    }
    out.prompt = prompt;
    for r in out.responses.iter().filter(|r| r.tokens.is_empty()) {
        out.unusable.push((r.index, Unusable::Empty));
    }
    out.responses.retain(|r| !r.tokens.is_empty());
    Ok(out)
}

fn check_vocabulary(row: TokenRow, tok: &TextTokenizer) -> Result<TokenRow, Refusal> {
    let all = row.prompt.iter().chain(row.responses.iter().flat_map(|r| &r.tokens));
    match all.max() {
        Some(id) if *id >= tok.vocab_size => {
            Err(format!("token id {id} is outside the tokenizer's vocabulary of {}", tok.vocab_size).into())
        }
        _ => Ok(row),
    }
}

/// Prompt, then prompt + response + EOS for each response.
fn plain_family(prompt: &str, texts: &[Text], tok: &TextTokenizer, out: &mut TokenRow) -> Result<Vec<String>, Refusal> {
    let eos = tok.eos.as_ref().ok_or_else(|| {
        Refusal::Setup(format!(
            "{} names no EOS token, which plain text must end with; give `options.eos_token` TEXT",
            tok.path.display()
        ))
    })?;
    out.has_prompt = !prompt.is_empty();
    out.plain = out.has_prompt;
    let mut family = Vec::with_capacity(texts.len() + 1);
    family.push(prompt.to_owned());
    out.repeats_prompt = out.has_prompt;
    for text in texts {
        let Text::Plain(text) = text else { return Err("prompt and responses must both be strings".into()) };
        out.repeats_prompt &= text.starts_with(prompt);
        let eos = if text.ends_with(&eos.text) { "" } else { &eos.text };
        family.push([prompt, text, eos].concat());
    }
    Ok(family)
}

/// Splits the common beginning off `texts` (chosen, rejected) and returns it.
fn extract_prompt(texts: &mut [Text], boundary: PromptBoundary) -> Result<Text, Refusal> {
    let [first, second] = texts else { return Err("an implicit prompt needs `chosen` and `rejected`".into()) };
    match (first, second) {
        (Text::Plain(chosen), Text::Plain(rejected)) => {
            let at = match boundary {
                PromptBoundary::Trl => trl_prompt_len(chosen, rejected),
                PromptBoundary::LastTurn => last_turn_prompt_len(chosen, rejected).ok_or(Refusal::NoLastTurn)?,
            };
            let prompt = chosen[..at].to_owned();
            chosen.drain(..at);
            rejected.drain(..at);
            Ok(Text::Plain(prompt))
        }
        (Text::Chat(chosen), Text::Chat(rejected)) => {
            // As TRL: if one is the beginning of the other, its last message still belongs to the responses.
            let shorter = chosen.len().min(rejected.len());
            let shared = chosen.iter().zip(rejected.iter()).take_while(|(a, b)| same_turn(a, b)).count();
            let at = shared.min(shorter.saturating_sub(1));
            let rest = chosen.split_off(at);
            rejected.drain(..at);
            Ok(Text::Chat(std::mem::replace(chosen, rest)))
        }
        _ => Err("`chosen` and `rejected` must both be strings or both be message lists".into()),
    }
}

/// Bytes of TRL's implicit prompt: the common characters, less the space they end with. Where one text is the beginning
/// of the other, its last character stays with the response, so that no response is empty.
pub fn trl_prompt_len(chosen: &str, rejected: &str) -> usize {
    let common: usize =
        chosen.chars().zip(rejected.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    if common == chosen.len() || common == rejected.len() {
        return chosen[..common].char_indices().next_back().map_or(0, |(at, _)| at);
    }
    common - usize::from(chosen[..common].ends_with(' '))
}

/// Bytes up to and with the last `\n\nAssistant:` that both texts have at the same place, if there is one.
pub fn last_turn_prompt_len(chosen: &str, rejected: &str) -> Option<usize> {
    let mut common = common_prefix(chosen.as_bytes(), rejected.as_bytes());
    while !chosen.is_char_boundary(common) {
        common -= 1;
    }
    chosen[..common].rfind(LAST_TURN).map(|at| at + LAST_TURN.len())
}

fn key(kind: &[u8], text: &[u8]) -> [u8; 16] {
    let digest = Sha256::new().chain_update(kind).chain_update([0]).chain_update(text).finalize();
    std::array::from_fn(|i| digest[i])
}
