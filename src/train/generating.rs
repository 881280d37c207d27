//! Continuations by all ranks: each continues its share of the prompts, and all hear all of them.

use super::team::Team;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::{GenerateOptions, Generated, Model, generate_some};
use std::time::{Duration, Instant};

/// How often a rank that generates looks after the others.
const LOOK: Duration = Duration::from_millis(500);

/// What a rank's share came to: the first byte of what it tells.
const DONE: u8 = 0;
const STOPPED: u8 = 1;
const NOT_FINITE: u8 = 2;

/// Continues every prompt `num_return_sequences` times, as [`generate_while`](crate::model::generate_while) does; the ranks of `team`,
/// each of which calls this with the same, share the prompts, and what each prompt draws does not depend on who they are.
///
/// Errors: where `goes_on` ends it on one rank, [`Error::Stopped`] on all; where the model computes no finite numbers,
/// [`Error::Training`] on all, of the first prompt that it is so of.
pub fn generate_by<B: Backend>(
    team: Team<'_>,
    be: &B,
    model: &Model<B>,
    (prompts, options): (&[Vec<u32>], &GenerateOptions),
    goes_on: &mut dyn FnMut() -> Result<bool>,
) -> Result<Vec<Vec<Generated>>> {
    let own = team.share(prompts.len());
    let mut looked = Instant::now();
    let goes_on = &mut || {
        // Whoever fails meanwhile ends this one too, and not when its share is done.
        if team.size() > 1 && looked.elapsed() > LOOK {
            team.comm.look("generate")?;
            looked = Instant::now();
        }
        goes_on()
    };
    let done = generate_some(be, model, (&prompts[own.clone()], own.start), options, goes_on);
    if team.size() == 1 {
        return done;
    }
    let mine = match done {
        Ok(all) => encoded(&all),
        Err(Error::Stopped(why)) => said(STOPPED, &why),
        Err(Error::Training(why)) => said(NOT_FINITE, &why),
        Err(e) => return Err(e),
    };
    // However long they take: shares differ by hours where there are many prompts.
    team.comm.barrier("wait for what the others generate")?;
    let all = team.comm.gather(&mine, "hear what the others generated")?;
    let text = |said: &Vec<u8>| String::from_utf8_lossy(&said[1..]).into_owned();
    let of = |kind: u8| all.iter().find(|said| said.first() == Some(&kind)).map(text);
    if let Some(why) = of(STOPPED) {
        return Err(Error::stopped(why));
    }
    if let Some(why) = of(NOT_FINITE) {
        return Err(Error::Training(why));
    }
    let mut sequences = Vec::with_capacity(prompts.len() * options.num_return_sequences);
    for (rank, said) in all.iter().enumerate() {
        let damaged = || Error::Device(format!("what rank {rank} generated arrived damaged"));
        let mut rest = said.get(1..).ok_or_else(damaged)?;
        while !rest.is_empty() {
            sequences.push(decoded(&mut rest).ok_or_else(damaged)?);
        }
    }
    if sequences.len() != prompts.len() * options.num_return_sequences {
        let (got, want) = (sequences.len(), prompts.len() * options.num_return_sequences);
        return Err(Error::Device(format!(
            "the ranks generated {got} continuations in place of {want}: do all have the same prompts?"
        )));
    }
    let mut sequences = sequences.into_iter();
    Ok(prompts.iter().map(|_| sequences.by_ref().take(options.num_return_sequences).collect()).collect())
}

/// The prompts that rank 0 has.
pub fn prompts_of_first(team: Team<'_>, mine: Vec<Vec<u32>>) -> Result<Vec<Vec<u32>>> {
    if team.size() == 1 {
        return Ok(mine);
    }
    let numbers = mine.iter().flat_map(|prompt| std::iter::once(prompt.len() as u32).chain(prompt.iter().copied()));
    let mut bytes: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
    team.comm.broadcast(&mut bytes, "hear the prompts")?;
    let mut numbers = bytes.as_chunks().0.iter().map(|x| u32::from_le_bytes(*x));
    let mut all = Vec::new();
    while let Some(n) = numbers.next() {
        all.push(numbers.by_ref().take(n as usize).collect());
    }
    Ok(all)
}

fn said(kind: u8, why: &str) -> Vec<u8> {
    [&[kind], why.as_bytes()].concat()
}

/// Of each sequence how many tokens there are, whether it is finished, tokens, log-probs.
fn encoded(all: &[Vec<Generated>]) -> Vec<u8> {
    let mut bytes = vec![DONE];
    for one in all.iter().flatten() {
        bytes.extend((one.tokens.len() as u64).to_le_bytes());
        bytes.push(one.finished.into());
        one.tokens.iter().for_each(|token| bytes.extend(token.to_le_bytes()));
        one.logps.iter().for_each(|logp| bytes.extend(logp.to_le_bytes()));
    }
    bytes
}

/// The next sequence of `rest`, which is behind it afterwards.
fn decoded(rest: &mut &[u8]) -> Option<Generated> {
    let mut take = |n: usize| {
        let (part, after) = rest.split_at_checked(n)?;
        *rest = after;
        Some(part)
    };
    let n = usize::try_from(u64::from_le_bytes(take(8)?.try_into().ok()?)).ok()?;
    let finished = take(1)?[0] != 0;
    let (tokens, logps) = (take(n.checked_mul(4)?)?, take(n.checked_mul(8)?)?);
    Some(Generated {
        tokens: tokens.as_chunks().0.iter().map(|x| u32::from_le_bytes(*x)).collect(),
        logps: logps.as_chunks().0.iter().map(|x| f64::from_le_bytes(*x)).collect(),
        finished,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_arrives_to_the_bit() {
        let of = |n: usize, finished| Generated {
            tokens: (0..n as u32).map(|i| i * 77_777).collect(),
            logps: (0..n).map(|i| -(i as f64).exp() / 3.0).collect(),
            finished,
        };
        let all = vec![vec![of(3, true), of(0, false)], vec![of(1, false), of(200, true)]];
        let bytes = encoded(&all);
        let mut rest = &bytes[1..];
        for one in all.iter().flatten() {
            assert_eq!(decoded(&mut rest).as_ref(), Some(one));
        }
        assert!(rest.is_empty());
        assert_eq!(decoded(&mut &bytes[1..bytes.len() - 1000]).unwrap(), all[0][0]);
        assert_eq!(decoded(&mut &bytes[1..30]), None);
    }
}
