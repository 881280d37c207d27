//! How a run goes: what its steps come to of late, for whoever looks on, and what its end is to be warned of. Nothing here
//! changes a bit.

use super::metrics::{Totals, wilson_95};
use super::report::Numbers;
use super::samples::Habits;
use crate::units::decimals;
use std::collections::VecDeque;
use std::fmt;

/// How much of the mean stays from step to step: twenty steps make two thirds of it.
const STAYS: f64 = 0.95;
/// Most steps of the beginning that are compared with as many of the end.
const WINDOW: usize = 50;
/// Standard errors that a difference is, at least, where it is more than noise.
const SURE: f64 = 3.0;
/// A loss that rose by this share of itself, and by this much, rose: of one that is next to nothing, a share is nothing.
const ROSE: (f64, f64) = (0.05, 0.005);
/// Nats a token that the log-probs of chosen responses may fall: e times less likely, each of their tokens.
const FALL: f64 = 1.0;
/// Share of training pairs in the right order beyond which there is little to learn from them.
const SATURATED: f64 = 0.99;
/// Fewest held-out pairs that an accuracy is compared with.
const MANY: u64 = 30;
/// Fewest continuations that say something.
const FEW: usize = 4;
/// Share of continuations that lost their end, or of tokens said again, that is more than a few.
const LOST: f64 = 0.25;
/// How many times as long continuations are that grew.
const GREW: f64 = 1.5;

/// An exponential mean without the pull of a beginning at 0 (Kingma & Ba 2015, section 3).
#[derive(Clone, Copy, Debug, Default)]
struct Smooth {
    sum: f64,
    weight: f64,
}

impl Smooth {
    /// Takes the mean `x` of `n` units. What is not a number is left out.
    fn add(&mut self, x: f64, n: f64) {
        if x.is_finite() && n > 0.0 {
            self.sum = STAYS * self.sum + (1.0 - STAYS) * n * x;
            self.weight = STAYS * self.weight + (1.0 - STAYS) * n;
        }
    }

    fn mean(&self) -> f64 {
        self.sum / self.weight
    }
}

/// The first and the last values of a series, and how much it jumps from one to the next.
#[derive(Clone, Debug, Default)]
struct Ends {
    first: Vec<f64>,
    last: VecDeque<f64>,
    jumps: f64,
    all: u64,
}

/// What the ends of a series come to.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Change {
    first: f64,
    last: f64,
    /// Values in each.
    of: usize,
    /// Standard error of the difference.
    error: f64,
    /// The very first, where every value of the end is more than three times as large.
    beyond: Option<f64>,
}

impl Ends {
    /// Takes a value; one that is no number is left out.
    fn add(&mut self, x: f64) {
        if !x.is_finite() {
            return;
        }
        self.jumps += self.last.back().map_or(0.0, |before| (x - before).powi(2));
        if self.first.len() < WINDOW {
            self.first.push(x);
        }
        if self.last.len() == WINDOW {
            self.last.pop_front();
        }
        self.last.push_back(x);
        self.all += 1;
    }

    /// The first against the last fifth, at most [`WINDOW`] values of each; `None` for fewer than two.
    fn change(&self) -> Option<Change> {
        if self.all < 2 {
            return None;
        }
        let n = (self.all as usize / 5).clamp(1, WINDOW);
        let (first, last) = (&self.first[..n], self.last.range(self.last.len() - n..));
        let start = self.first[0];
        let beyond = last.clone().all(|x| *x > 3.0 * start.abs().max(0.01)).then_some(start);
        // Two neighbours differ by the noise of both, whatever the way they go together.
        let noise = self.jumps / (2.0 * (self.all - 1) as f64);
        let mean = |sum: f64| sum / n as f64;
        Some(Change {
            first: mean(first.iter().sum()),
            last: mean(last.sum()),
            of: n,
            error: (2.0 * noise / n as f64).sqrt(),
            beyond,
        })
    }
}

/// What the steps of a run have come to.
#[derive(Clone, Debug, Default)]
pub struct Trend {
    loss: Smooth,
    accuracy: Smooth,
    margin: Smooth,
    hits: Smooth,
    kl: Smooth,
    speed: Smooth,
    losses: Ends,
    /// Log-probs of chosen responses, a token.
    chosen: Ends,
    /// Those of rejected ones, a response.
    rejected: Ends,
    /// Shares of pairs in the right order.
    orders: Ends,
    /// Held-out losses, at each evaluation of this call.
    held_out: Vec<(u64, f64)>,
    /// How the policy's continuations are now, and the reference's, or the policy's at first.
    habits: Vec<Habits>,
    first_habits: Option<Habits>,
}

impl Trend {
    /// Takes a step.
    pub fn add(&mut self, numbers: &Numbers<'_>) {
        let t = numbers.totals;
        let units = if t.pairs > 0 { t.pairs } else { t.responses } as f64;
        let pairs = t.pairs as f64;
        self.loss.add(t.mean_loss(), units);
        self.losses.add(t.mean_loss());
        self.accuracy.add(t.accuracy(), pairs);
        self.margin.add((t.reward_chosen - t.reward_rejected) / pairs, pairs);
        self.hits.add(t.hits / t.chosen_tokens as f64, t.chosen_tokens as f64);
        self.kl.add(t.kl().unwrap_or(f64::NAN), 1.0);
        self.speed.add(t.tokens as f64 / numbers.seconds, numbers.seconds);
        if t.pairs > 0 {
            self.chosen.add(t.logp_chosen / t.chosen_tokens as f64);
            self.rejected.add(t.logp_rejected / pairs);
            self.orders.add(t.accuracy());
        }
    }

    /// Takes the held-out numbers after `step` steps.
    pub fn evaluated(&mut self, step: u64, t: &Totals) {
        self.held_out.push((step, t.mean_loss()));
    }

    /// Takes how continuations are: the policy's, and where there is one the reference's.
    pub fn sampled(&mut self, habits: Vec<Habits>) {
        if !habits.is_empty() {
            self.first_habits.get_or_insert(habits[0]);
            self.habits = habits;
        }
    }

    /// What a run that ends should be warned of; each cause once. `rate` is its learning rate, `held_out` its first and last
    /// evaluation.
    pub fn warnings(&self, rate: f64, held_out: Option<&(Totals, Totals)>) -> Vec<String> {
        if let Some(why) = self.losses.change().and_then(|c| rose(&c, rate)) {
            return vec![why];
        }
        let both = self.rejected.change().is_some_and(|c| c.first - c.last > SURE * c.error);
        let fell = self.chosen.change().and_then(|c| fell(&c, rate, both));
        let forgot = held_out.and_then(|(first, last)| by_heart(first, last)).or_else(|| turned(&self.held_out));
        let sure = self.orders.change().zip(held_out).and_then(|(c, (_, last))| saturated(&c, last));
        let against = self.habits.get(1).or(self.first_habits.as_ref());
        let wrote = self.habits.first().zip(against).map(|(is, was)| drifted(is, was, self.habits.len() > 1));
        fell.into_iter().chain(forgot).chain(sure).chain(wrote.into_iter().flatten()).collect()
    }
}

/// What to say of a training loss that went the wrong way.
fn rose(c: &Change, rate: f64) -> Option<String> {
    let by = c.last - c.first;
    let end = format!("{} in the last {}", short(c.last), steps(c.of));
    let what = match c.beyond {
        Some(start) => format!("diverged: {} in the first step, {end}", short(start)),
        None if by > SURE * c.error && is_rise(c.first, c.last) => {
            format!("rose: {} in the first {}, {end}", short(c.first), steps(c.of))
        }
        None => return None,
    };
    Some(format!(
        "the loss {what}; lower `options.learning_rate` ({rate:e}), or warm it up with `options.warmup_ratio`"
    ))
}

/// What to say of chosen responses that the model has unlearned.
fn fell(c: &Change, rate: f64, both: bool) -> Option<String> {
    let by = c.first - c.last;
    (by > FALL && by > SURE * c.error).then(|| {
        let [first, last] = [c.first, c.last].map(|x| decimals(x, 2));
        format!(
            "chosen responses became unlikely, too: {first} nats a token in the first {}, {last} in the last{}; lower \
             `options.learning_rate` ({rate:e}), raise `options.beta`, or take a loss that keeps them likely (`options.loss_type` dpop, rpo)",
            steps(c.of),
            if both { " (likelihood displacement: rejected ones fell as well, and what is likely now is in neither)" } else { "" }
        )
    })
}

fn is_rise(from: f64, to: f64) -> bool {
    to - from > (ROSE.0 * from.abs()).max(ROSE.1)
}

/// What to say of a held-out loss that went down and came up again.
fn turned(all: &[(u64, f64)]) -> Option<String> {
    let (&(step, least), &(last, is)) = (all.iter().min_by(|a, b| a.1.total_cmp(&b.1))?, all.last()?);
    (step < last && is_rise(least, is)).then(|| {
        let [least, is] = [least, is].map(short);
        format!(
            "the held-out loss turned: {least} after step {step}, {is} at the end; take fewer steps, or keep the best model with \
             `options.load_best_model_at_end`"
        )
    })
}

/// What to say of pairs that are nearly all in the right order, where held-out ones are not.
fn saturated(c: &Change, held_out: &Totals) -> Option<String> {
    let below = wilson_95(held_out.accuracy(), held_out.pairs)[1];
    (c.last >= SATURATED && c.of > 1 && held_out.pairs >= MANY && below < c.last).then(|| {
        format!(
            "{:.0} % of the training pairs are in the right order over the last {}, and {:.0} % of the held-out ones (at most {:.0} \
             %, 95 %): more steps teach these pairs by heart",
            100.0 * c.last,
            steps(c.of),
            100.0 * held_out.accuracy(),
            100.0 * below
        )
    })
}

/// What to say of continuations that grew, repeat themselves or do not end any more.
fn drifted(is: &Habits, was: &Habits, of_reference: bool) -> Vec<String> {
    let than = if of_reference { "the reference's" } else { "at first" };
    let see = match of_reference {
        true => "see samples.jsonl; lower `options.learning_rate`, or raise `options.beta`",
        false => "see samples.jsonl; lower `options.learning_rate`",
    };
    let mut all = Vec::new();
    if is.n < FEW {
        return all;
    }
    if is.finished + LOST < was.finished {
        let [is, was] = [is, was].map(|h| 100.0 * h.finished);
        all.push(format!("continuations lose their end: {is:.0} % have one, {than} {was:.0} %; {see}"));
    } else if is.tokens > GREW * was.tokens {
        all.push(format!("continuations grew: {:.0} tokens, {than} {:.0}; {see}", is.tokens, was.tokens));
    }
    if is.repeated > was.repeated + LOST {
        let [is, was] = [is, was].map(|h| 100.0 * h.repeated);
        all.push(format!(
            "continuations repeat themselves: {is:.0} % of their fours of tokens, {than} {was:.0} %; {see}"
        ));
    }
    all
}

/// What to say of a held-out loss that went the wrong way where the training loss did not.
fn by_heart(first: &Totals, last: &Totals) -> Option<String> {
    let [was, is] = [first, last].map(Totals::mean_loss);
    (is_rise(was, is)).then(|| {
        let [was, is] = [was, is].map(short);
        format!(
            "the held-out loss rose from {was} to {is}, the training loss did not: the model learns its rows by heart; fewer \
             `options.num_train_epochs`, or a lower `options.learning_rate`"
        )
    })
}

fn steps(n: usize) -> String {
    if n == 1 { "step".into() } else { format!("{n} steps") }
}

fn short(x: f64) -> String {
    if x.abs() < 1e6 { decimals(x, 4) } else { format!("{x:.3e}") }
}

/// What stands beside the progress of the steps: means of late, not the last step's numbers.
impl fmt::Display for Trend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "loss {} ", short(self.loss.mean()))?;
        if self.accuracy.weight > 0.0 {
            write!(f, "acc {:.2} margin {}", self.accuracy.mean(), decimals(self.margin.mean(), 3))?;
        } else if self.kl.weight > 0.0 {
            write!(f, "kl {:.3}", self.kl.mean())?;
        } else {
            write!(f, "token acc {:.3}", self.hits.mean())?;
        }
        write!(f, " {:.0} tokens/s", self.speed.mean())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(pairs: u64, loss: f64, correct: f64) -> Totals {
        let n = pairs as f64;
        Totals {
            pairs,
            weight: n,
            loss: n * loss,
            correct,
            reward_chosen: 0.5 * n,
            chosen_tokens: 10 * pairs,
            tokens: 100,
            ..Totals::default()
        }
    }

    fn trend(steps: impl IntoIterator<Item = Totals>) -> Trend {
        let mut trend = Trend::default();
        for totals in steps {
            let (step, epochs, norm, lr, tokens, seconds) = (1, 0.0, 1.0, 1.0, 1, 0.5);
            trend.add(&Numbers { step, epochs, totals: &totals, norm, lr, tokens, seconds, memory: None });
        }
        trend
    }

    #[test]
    fn means_are_of_the_steps_so_far_and_no_last_batch_decides() {
        assert_eq!(trend([step(8, 0.7, 8.0)]).to_string(), "loss 0.7000 acc 1.00 margin 0.500 200 tokens/s");
        // By hand: 0.05 (0.95^2 8 0.6 + 0.95 8 0.5 + 1 0.1) over 0.05 (0.95^2 8 + 0.95 8 + 1).
        let said = trend([step(8, 0.6, 6.0), step(8, 0.5, 8.0), step(1, 0.1, 0.0)]).to_string();
        let (over, loss) = (7.22 + 7.6 + 1.0, 7.22 * 0.6 + 7.6 * 0.5 + 0.1);
        assert!(said.starts_with(&format!("loss {:.4} acc {:.2} ", loss / over, (7.22 * 0.75 + 7.6) / over)), "{said}");
        // A step that was skipped is no number, and takes none away.
        assert!(trend([step(8, 0.6, 6.0), step(8, f64::NAN, 8.0)]).to_string().starts_with("loss 0.6000 "));
        assert_eq!(trend([step(1, 123456789.0, 0.0)]).to_string(), "loss 1.235e8 acc 0.00 margin 0.500 200 tokens/s");
    }

    /// Losses around `at(i)`, each half a tenth off, up and down in an order that does not repeat.
    fn losses(n: usize, at: impl Fn(f64) -> f64) -> Trend {
        trend((0..n).map(|i| step(8, at(i as f64) + if i * i % 7 < 3 { 0.05 } else { -0.05 }, 4.0)))
    }

    #[test]
    fn a_loss_that_rises_is_told_and_noise_is_not() {
        let said = |t: &Trend| t.warnings(1e2, None).concat();
        for n in [2, 3, 10, 40, 1000] {
            assert_eq!(said(&losses(n, |_| 0.69)), "", "{n}");
            assert_eq!(said(&losses(n, |i| 0.69 - 0.3 * i / n as f64)), "", "{n}");
        }
        let risen = said(&losses(1000, |i| 0.69 + i / 2e3));
        assert!(risen.starts_with("the loss rose: 0.7"), "{risen}");
        assert!(
            risen.contains(" in the first 50 steps, 1.1") && risen.contains("lower `options.learning_rate` (1e2)"),
            "{risen}"
        );
        for n in [2, 3, 10, 40] {
            let t = losses(n, |i| 0.69 + if i > 0.0 { 1e5 * (1.5 + i.sin()) } else { 0.0 });
            assert!(said(&t).starts_with("the loss diverged: 0.7"), "{n}: {}", said(&t));
        }
        // Nothing of one step, of steps that were all skipped, of none.
        assert_eq!(said(&losses(1, |_| 5.0)) + &said(&losses(9, |_| f64::NAN)) + &said(&losses(0, |_| 0.0)), "");
    }

    #[test]
    fn chosen_responses_that_are_unlearned_and_rows_learned_by_heart_are_told() {
        let falls = |by: f64| {
            let fall = |i: u32| {
                let t = step(8, 0.69 - f64::from(i) / 200.0, 8.0);
                Totals { logp_chosen: -80.0 * (2.0 + by * f64::from(i) / 19.0), ..t }
            };
            trend((0..20).map(fall))
        };
        assert_eq!(falls(1.0).warnings(1e-6, None), [""; 0]);
        let told = falls(2.0).warnings(1e-6, None);
        assert!(
            told.len() == 1 && told[0].starts_with("chosen responses became unlikely, too: -2.16 nats a token"),
            "{told:?}"
        );
        let displaced = |falls: f64| {
            let both = |i: u32| {
                let t = step(8, 0.69 - f64::from(i) / 200.0, 8.0);
                let at = f64::from(i) / 19.0;
                Totals { logp_chosen: -80.0 * (2.0 + 2.0 * at), logp_rejected: -80.0 * (2.0 + falls * at), ..t }
            };
            trend((0..20).map(both)).warnings(1e-6, None).concat()
        };
        assert!(displaced(3.0).contains("likelihood displacement") && !displaced(0.0).contains("displacement"));
        let held_out = |loss: f64| (step(8, std::f64::consts::LN_2, 4.0), step(8, loss, 6.0));
        assert_eq!(falls(0.0).warnings(1e-6, Some(&held_out(0.72))), [""; 0]);
        let told = falls(0.0).warnings(1e-6, Some(&held_out(0.8)));
        assert!(told.len() == 1 && told[0].starts_with("the held-out loss rose from 0.6931 to 0.8000,"), "{told:?}");
    }

    #[test]
    fn held_out_numbers_that_turn_and_pairs_known_by_heart_are_told() {
        let mut t = trend((0..20).map(|_| step(8, 0.3, 8.0)));
        for (at, loss) in [(0, 0.7), (10, 0.5), (20, 0.52)] {
            t.evaluated(at, &step(100, loss, 60.0));
        }
        assert_eq!(t.warnings(1e-6, None), [""; 0]);
        t.evaluated(30, &step(100, 0.6, 60.0));
        let told = t.warnings(1e-6, None).concat();
        assert!(told.starts_with("the held-out loss turned: 0.5000 after step 10, 0.6000 at the end;"), "{told}");
        // Of next to nothing, twice as much is as little.
        let mut t = trend((0..20).map(|_| step(8, 0.3, 8.0)));
        for (at, loss) in [(0, 0.7), (10, 4e-7), (20, 8e-7)] {
            t.evaluated(at, &step(100, loss, 100.0));
        }
        assert_eq!(t.warnings(1e-6, None), [""; 0]);
        let held_out = |right: f64| Some((step(100, 0.7, 50.0), step(100, 0.6, right)));
        let told = trend((0..20).map(|_| step(8, 0.3, 8.0))).warnings(1e-6, held_out(70.0).as_ref()).concat();
        assert!(
            told.starts_with("100 % of the training pairs are in the right order over the last 4 steps, and 70 %"),
            "{told}"
        );
        assert_eq!(trend((0..20).map(|_| step(8, 0.3, 8.0))).warnings(1e-6, held_out(100.0).as_ref()), [""; 0]);
        assert_eq!(trend((0..20).map(|_| step(8, 0.3, 7.0))).warnings(1e-6, held_out(70.0).as_ref()), [""; 0]);
    }

    #[test]
    fn continuations_that_drift_are_told() {
        let was = Habits { n: 8, tokens: 20.0, finished: 0.9, repeated: 0.1 };
        let said = |is: Habits| {
            let mut t = Trend::default();
            t.sampled(vec![was, was]);
            t.sampled(vec![is, was]);
            t.warnings(1e-6, None)
        };
        assert_eq!(said(was), [""; 0]);
        assert_eq!(said(Habits { n: 8, tokens: 29.0, finished: 0.7, repeated: 0.3 }), [""; 0]);
        assert!(
            said(Habits { tokens: 31.0, ..was })
                .concat()
                .starts_with("continuations grew: 31 tokens, the reference's 20;")
        );
        let told = said(Habits { n: 8, tokens: 64.0, finished: 0.2, repeated: 0.9 });
        assert!(told.len() == 2 && told[0].starts_with("continuations lose their end: 20 % have one"), "{told:?}");
        assert!(told[1].starts_with("continuations repeat themselves: 90 %"), "{told:?}");
        // Without a reference it is what the policy wrote at first that counts.
        let mut t = Trend::default();
        t.sampled(vec![was]);
        t.sampled(vec![Habits { tokens: 40.0, ..was }]);
        assert!(t.warnings(1e-6, None).concat().contains("continuations grew: 40 tokens, at first 20;"));
        // Of a few nothing is said.
        t.sampled(vec![Habits { tokens: 99.0, n: 3, ..was }]);
        assert_eq!(t.warnings(1e-6, None), [""; 0]);
    }
}
