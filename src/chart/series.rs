//! Values over steps, however many, in a fixed amount of memory.

/// What neighbouring values came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// Step of the first.
    pub first: f64,
    /// Of the last.
    pub last: f64,
    /// Their sum.
    pub sum: f64,
    /// How many they are.
    pub count: u64,
    /// Step and value of the least.
    pub low: (f64, f64),
    /// Of the largest.
    pub high: (f64, f64),
    /// Whether a value that is no number came just before.
    pub after_gap: bool,
}

impl Bucket {
    /// The mean of its values.
    pub fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// The middle of its steps.
    pub fn middle(&self) -> f64 {
        (self.first + self.last) / 2.0
    }

    fn take(&mut self, o: &Bucket) {
        (self.last, self.sum, self.count) = (o.last, self.sum + o.sum, self.count + o.count);
        if o.low.1 < self.low.1 {
            self.low = o.low;
        }
        if o.high.1 > self.high.1 {
            self.high = o.high;
        }
    }
}

/// Values over steps. Up to a limit each is kept; from then on neighbours share a bucket, and as many more whenever the buckets are
/// full again. Extremes and counts stay exact.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    most: usize,
    width: u64,
    buckets: Vec<Bucket>,
    gap: bool,
    /// Step and value of the first number.
    pub first: Option<(f64, f64)>,
    /// Of the last.
    pub last: Option<(f64, f64)>,
    /// Values that are no finite numbers, and the step of the first.
    pub lost: (u64, f64),
    /// Steps of some of them, the first ones.
    pub lost_at: Vec<f64>,
    /// Values whose step was not after the one before: they are left out.
    pub backward: u64,
    at: f64,
}

/// Steps without a number whose place is kept.
const LOST_KEPT: usize = 200;

impl Series {
    /// Of at most `most` buckets; at least two are kept.
    pub fn new(most: usize) -> Self {
        Self {
            most: most.max(2) & !1,
            width: 1,
            buckets: Vec::new(),
            gap: false,
            first: None,
            last: None,
            lost: (0, f64::NAN),
            lost_at: Vec::new(),
            backward: 0,
            at: f64::NEG_INFINITY,
        }
    }

    /// Adds the value of a later step; what is no finite number is counted, and leaves a gap.
    pub fn add(&mut self, step: f64, value: f64) {
        if !(step > self.at && step.is_finite()) {
            self.backward += 1;
            return;
        }
        self.at = step;
        if !value.is_finite() {
            if self.lost.0 == 0 {
                self.lost.1 = step;
            }
            if self.lost_at.len() < LOST_KEPT {
                self.lost_at.push(step);
            }
            self.lost.0 += 1;
            self.gap = true;
            return;
        }
        self.first.get_or_insert((step, value));
        self.last = Some((step, value));
        let at = (step, value);
        let after_gap = std::mem::take(&mut self.gap);
        let one = Bucket { first: step, last: step, sum: value, count: 1, low: at, high: at, after_gap };
        match self.buckets.last_mut() {
            Some(bucket) if bucket.count < self.width => bucket.take(&one),
            _ => {
                if self.buckets.len() == self.most {
                    self.halve();
                }
                // Half as many are full, so the new one begins a bucket.
                self.buckets.push(one);
            }
        }
    }

    fn halve(&mut self) {
        for i in 0..self.buckets.len() / 2 {
            let mut both = self.buckets[2 * i];
            both.take(&self.buckets[2 * i + 1]);
            self.buckets[i] = both;
        }
        self.buckets.truncate(self.buckets.len() / 2);
        self.width *= 2;
    }

    /// The buckets, in order of steps.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Values in a bucket, but the last.
    pub fn width(&self) -> u64 {
        self.width
    }

    /// Whether there is no number in it.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Step and value of the least.
    pub fn low(&self) -> Option<(f64, f64)> {
        self.buckets.iter().map(|b| b.low).reduce(|a, b| if b.1 < a.1 { b } else { a })
    }

    /// Step and value of the largest.
    pub fn high(&self) -> Option<(f64, f64)> {
        self.buckets.iter().map(|b| b.high).reduce(|a, b| if b.1 > a.1 { b } else { a })
    }
}

/// Means of a neighbourhood that reaches `reach` steps both ways: a value `d` steps away has the weight `exp(-d / reach)`. It does not lag
/// behind, as a running mean does. `reach` 0: the buckets' own means. A mean outside of `within` counts as its nearer end, so that one value
/// that no picture shows does not bend a line that it does.
pub fn smoothed(buckets: &[Bucket], reach: f64, within: Option<(f64, f64)>) -> Vec<f64> {
    let own = |b: &Bucket| {
        let mean = within.map_or(b.mean(), |(low, high)| b.mean().clamp(low, high));
        (mean * b.count as f64, b.count as f64)
    };
    if reach.is_nan() || reach <= 0.0 {
        return buckets.iter().map(Bucket::mean).collect();
    }
    let decay = |a: &Bucket, b: &Bucket| (-(b.middle() - a.middle()).abs() / reach).exp();
    let pass = |order: &mut dyn Iterator<Item = &Bucket>| {
        let (mut sums, mut before, mut so_far) = (Vec::new(), None, (0.0, 0.0));
        for b in order {
            let d = before.map_or(0.0, |a| decay(a, b));
            let (sum, weight) = own(b);
            so_far = (sum + d * so_far.0, weight + d * so_far.1);
            sums.push(so_far);
            before = Some(b);
        }
        sums
    };
    let forward = pass(&mut buckets.iter());
    let backward = pass(&mut buckets.iter().rev());
    let all = forward.iter().zip(backward.iter().rev()).zip(buckets);
    all.map(|((f, b), bucket)| {
        let (sum, weight) = own(bucket);
        (f.0 + b.0 - sum) / (f.1 + b.1 - weight)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever their number: nothing is lost, extremes are exact with their steps, and the buckets are few and in order.
        #[test]
        fn buckets_keep_sums_and_extremes(
            values in prop::collection::vec(prop::option::weighted(0.95, -1e6f64..1e6), 0..700),
            most in 0usize..40,
        ) {
            let mut series = Series::new(most);
            let mut step = 0.0;
            let all: Vec<(f64, f64)> = values.iter().enumerate().map(|(i, v)| {
                step += 1.0 + (i % 3) as f64;
                (step, v.unwrap_or(f64::NAN))
            }).collect();
            all.iter().for_each(|(x, y)| series.add(*x, *y));
            let finite: Vec<(f64, f64)> = all.iter().copied().filter(|(_, y)| y.is_finite()).collect();
            let buckets = series.buckets();
            prop_assert!(buckets.len() <= (most.max(2) & !1));
            prop_assert_eq!(buckets.iter().map(|b| b.count).sum::<u64>() as usize, finite.len());
            prop_assert_eq!(series.lost.0 as usize, all.len() - finite.len());
            prop_assert!(buckets.windows(2).all(|w| w[0].last < w[1].first));
            prop_assert!(buckets.iter().rev().skip(1).all(|b| b.count == series.width()));
            let (sum, want): (f64, f64) = (buckets.iter().map(|b| b.sum).sum(), finite.iter().map(|p| p.1).sum());
            prop_assert!((sum - want).abs() <= 1e-6 * (1.0 + want.abs()));
            let extreme = |better: fn(f64, f64) -> bool| finite.iter().copied().reduce(|a, b| if better(b.1, a.1) { b } else { a });
            prop_assert_eq!(series.low(), extreme(|a, b| a < b));
            prop_assert_eq!(series.high(), extreme(|a, b| a > b));
            prop_assert_eq!((series.first, series.last), (finite.first().copied(), finite.last().copied()));
        }

        /// Against the sum over all pairs of buckets.
        #[test]
        fn smoothing_is_a_weighted_mean(values in prop::collection::vec(-10f64..10.0, 1..60), reach in 0.1f64..30.0, most in 4usize..40) {
            let mut series = Series::new(most);
            values.iter().enumerate().for_each(|(i, v)| series.add(i as f64 + 1.0, *v));
            let b = series.buckets();
            for (got, at) in smoothed(b, reach, None).into_iter().zip(b) {
                let weight = |o: &Bucket| (-(o.middle() - at.middle()).abs() / reach).exp();
                let sum: f64 = b.iter().map(|o| weight(o) * o.sum).sum();
                let all: f64 = b.iter().map(|o| weight(o) * o.count as f64).sum();
                prop_assert!((got - sum / all).abs() <= 1e-9 * (1.0 + got.abs()), "{got} {}", sum / all);
            }
        }
    }

    #[test]
    fn steps_that_go_back_are_counted_and_left_out() {
        let mut series = Series::new(8);
        let all = [(1.0, 5.0), (2.0, f64::NAN), (2.0, 3.0), (1.0, 9.0), (f64::NAN, 1.0), (3.0, 4.0)];
        all.into_iter().for_each(|(x, y)| series.add(x, y));
        assert_eq!((series.backward, series.lost, series.high()), (3, (1, 2.0), Some((1.0, 5.0))));
        assert_eq!(series.buckets().iter().map(|b| b.after_gap).collect::<Vec<_>>(), [false, true]);
    }
}
