//! How long ranks wait for each other, and how a wait looks whether it is over.

use crate::error::{Error, Result};
use std::time::{Duration, Instant};

/// Names how long ranks are waited for, in seconds.
pub const TIMEOUT: &str = "FUSEDPO_COMM_TIMEOUT";

/// Longer than a checkpoint of a large model takes.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Outside of a step so many times as long: a day, unless somebody says otherwise. A rank may fetch, read, save or generate meanwhile.
const OUTSIDE: u32 = 48;

/// All are started together: who is not there by then does not come, however patient the ranks are later.
pub(super) const JOINING: Duration = Duration::from_secs(300);

/// Looks before a wait begins to sleep between them: about as long as a short exchange takes. Where ranks compute on all cores, every
/// look more is taken from what is waited for.
const EAGER: u32 = 500;

/// After those so many sleeps as short as the system has them, some 50 microseconds each: about as long as a bucket takes.
const SHORT: u32 = 400;

/// How long ranks are waited for. Errors: what was asked for is no time.
pub(super) fn patience(env: &dyn Fn(&str) -> Option<String>) -> Result<Duration> {
    let Some(text) = env(TIMEOUT) else { return Ok(PATIENCE) };
    let seconds = text.parse::<f64>().ok().filter(|s| *s > 0.0);
    let patience = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
    patience.ok_or_else(|| Error::usage(format!("{TIMEOUT}={text} in the environment: give seconds, more than 0")))
}

/// How long ranks wait, outside of a step, that wait for `patience` within one.
pub(super) fn outside(patience: Duration) -> Duration {
    patience.saturating_mul(OUTSIDE)
}

/// A wait for other ranks.
pub(super) struct Wait<'a> {
    what: &'a str,
    patience: Option<Duration>,
    begun: Instant,
    looks: u32,
}

impl<'a> Wait<'a> {
    /// To do `what`; without `patience` for ever.
    pub(super) fn new(what: &'a str, patience: Option<Duration>) -> Self {
        Self { what, patience, begun: Instant::now(), looks: 0 }
    }

    /// Between one look and the next. Errors: it has lasted too long, by `who`, as in "rank 3 is".
    pub(super) fn on(&mut self, who: impl FnOnce() -> String) -> Result<()> {
        self.looks = self.looks.saturating_add(1);
        match self.looks {
            n if n < EAGER => std::thread::yield_now(),
            n if n < EAGER + SHORT => std::thread::sleep(Duration::from_micros(1)),
            _ => std::thread::sleep(Duration::from_micros(200)),
        }
        let waited = || self.begun.elapsed();
        match self.patience.filter(|patience| self.looks.is_multiple_of(64) && waited() > *patience) {
            Some(_) => Err(Error::Device(format!(
                "waited {:.0} s to {}: {} lost or stuck ({TIMEOUT} is how long ranks are waited for)",
                waited().as_secs_f64(),
                self.what,
                who()
            ))),
            None => Ok(()),
        }
    }

    /// Something came: the wait begins anew, and the next look is at once.
    pub(super) fn moved(&mut self) {
        (self.begun, self.looks) = (Instant::now(), 0);
    }
}
