//! Superpositions: sets of weighted candidates, of which one is to become a branch's state.
//!
//! Floor 1: no clock and no randomness. The time is handed in, in milliseconds since 1970 as the shard
//! counts them, and a draw takes the number that decides it.
//!
//! Invariants
//! - a candidate is never taken out of a set nor changed, but for its weight; its number is its place.
//! - weights are finite and not negative, and so is their sum.
//! - every operation on weights is one that IEEE 754 rounds in one way only: the same set has the same
//!   weights, and draws the same candidate, on every machine.
//!
//! **Decay.** A weight `w` that was given at `s` is at `t` worth `w * 2^-((t - s) / h)`, with the half-life
//! `h`. It is computed so: `e = max(t - s, 0)`, `k = e / h` and `f = (e mod h) * 2^20 / h`, both rounded
//! down; the factor begins as `2^-k` (0 from `k` = 1,023 on), and for each bit of `f` that is set, from the
//! highest, is multiplied by a root: 2^-1/2 for bit 19, and for each bit below the square root of the one
//! before. Half-life 0 is no decay.
//!
//! **Draw.** SplitMix64: `z = seed + 0x9e3779b97f4a7c15`, `z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9`,
//! `z = (z ^ z >> 27) * 0x94d049bb133111eb`, `z ^= z >> 31`, all modulo 2^64; `u = (z >> 11) * 2^-53`. Weights
//! are taken as they were when the youngest of them was given, so that a draw is the same whenever it is
//! made. In the order of numbers their sums are built; the first candidate whose sum is above `u * total`
//! is drawn.

use crate::id::{BranchNo, ObjectId};

/// Candidates of one set.
pub const CANDIDATES_MAX: usize = 256;
/// Largest weight: sums stay far from what a number holds.
pub const WEIGHT_MAX: f64 = 1e15;
/// How long a set counts as observed after it was, in milliseconds: until then its weight does not end it.
pub const OBSERVED_MS: u64 = 1_000;

/// Bits of a fraction of a half-life that count.
const FRACTION_BITS: u32 = 20;

/// A weight or a bound that is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a weight is a number from 0 to 1e15, and so is a bound")]
pub struct BadWeight;

/// The set has as many candidates as one may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a superposition has at most {CANDIDATES_MAX} candidates")]
pub struct Full;

/// A weight: finite, from 0 to [`WEIGHT_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Weight(f64);

impl Weight {
    /// Checks a weight.
    ///
    /// # Errors
    /// [`BadWeight`] for what is not a number, infinite, negative or above [`WEIGHT_MAX`].
    pub fn new(weight: f64) -> Result<Self, BadWeight> {
        match (0.0..=WEIGHT_MAX).contains(&weight) {
            // Zero has two signs; one of them is enough.
            true => Ok(Self(weight.abs())),
            false => Err(BadWeight),
        }
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

/// When a set ends by itself, and how fast its weights decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// Time in which a weight falls to its half, in milliseconds; 0: weights don't decay.
    pub half_life_ms: u64,
    /// Time without observation after which the set ends, in milliseconds; 0: it does not.
    pub ttl_ms: u64,
    /// Total weight under which the set ends, once nobody observes it; 0: it does not.
    pub bound: Weight,
}

/// One candidate: a checkpoint and what it is worth.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The checkpoint.
    pub head: ObjectId,
    /// Its tree.
    pub tree: ObjectId,
    /// What whoever added it calls it; may be empty.
    pub label: Box<str>,
    /// What it was worth at `given_ms`.
    pub weight: Weight,
    /// When that was said.
    pub given_ms: u64,
}

/// A set of candidates.
#[derive(Clone, Debug, PartialEq)]
pub struct Superposition {
    /// Its name.
    pub name: Box<str>,
    /// The branch that a collapse moves if none is named.
    pub branch: BranchNo,
    /// What that branch pointed at when the set was made.
    pub origin: Option<ObjectId>,
    /// When it ends by itself.
    pub terms: Terms,
    observed_ms: u64,
    candidates: Vec<Candidate>,
}

impl Superposition {
    /// A set without candidates, observed at `now_ms`.
    #[must_use]
    pub fn new(
        name: &str,
        branch: BranchNo,
        origin: Option<ObjectId>,
        terms: Terms,
        now_ms: u64,
    ) -> Self {
        Self {
            name: name.into(),
            branch,
            origin,
            terms,
            observed_ms: now_ms,
            candidates: Vec::new(),
        }
    }

    /// The candidates, in the order of their numbers.
    #[must_use]
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// When it was observed last.
    #[must_use]
    pub fn observed_ms(&self) -> u64 {
        self.observed_ms
    }

    /// Notes that somebody looked; a clock that stands behind changes nothing.
    pub fn observe(&mut self, now_ms: u64) {
        self.observed_ms = self.observed_ms.max(now_ms);
    }

    /// Adds a candidate under the next number.
    ///
    /// # Errors
    /// [`Full`].
    pub fn add(&mut self, candidate: Candidate) -> Result<u32, Full> {
        if self.candidates.len() == CANDIDATES_MAX {
            return Err(Full);
        }
        self.candidates.push(candidate);
        Ok(self.candidates.len() as u32 - 1)
    }

    /// Gives a candidate another weight from `now_ms` on; whether there is such a candidate.
    pub fn reweigh(&mut self, no: u32, weight: Weight, now_ms: u64) -> bool {
        let candidate = self.candidates.get_mut(no as usize);
        candidate.is_some_and(|candidate| {
            (candidate.weight, candidate.given_ms) = (weight, now_ms);
            true
        })
    }

    /// What each candidate is worth at `now_ms`, in the order of their numbers.
    pub fn weights(&self, now_ms: u64) -> impl Iterator<Item = f64> {
        let mut decay = Decay::new(self.terms.half_life_ms);
        self.candidates.iter().map(move |candidate| {
            let elapsed = now_ms.saturating_sub(candidate.given_ms);
            candidate.weight.get() * decay.factor(elapsed)
        })
    }

    /// The sum of the weights, built in the order of their numbers.
    #[must_use]
    pub fn total(&self, now_ms: u64) -> f64 {
        // From 0, as a sum of nothing else is -0.
        self.weights(now_ms).fold(0.0, |sum, weight| sum + weight)
    }

    /// The candidate that a seed decides for; none where every weight is 0, or there is none.
    #[must_use]
    pub fn draw(&self, seed: u64) -> Option<u32> {
        let given = self.candidates.iter().map(|candidate| candidate.given_ms);
        let at_ms = given.max()?;
        let (mut weights, mut total) = ([0.0; CANDIDATES_MAX], 0.0);
        for (slot, weight) in weights.iter_mut().zip(self.weights(at_ms)) {
            *slot = weight;
            total += weight;
        }
        let point = unit(seed) * total;
        let (mut sum, mut last) = (0.0, None);
        for (no, weight) in (0..).zip(weights) {
            sum += weight;
            if weight > 0.0 {
                last = Some(no);
                if sum > point {
                    break;
                }
            }
        }
        last
    }

    /// Whether it has ended by itself at `now_ms`: its time to live has passed since it was observed, or
    /// its weight is under the bound and it has not been observed for [`OBSERVED_MS`]. One that has no
    /// candidate yet has no weight either: its time alone ends it.
    #[must_use]
    pub fn has_ended(&self, now_ms: u64) -> bool {
        let unobserved = now_ms.saturating_sub(self.observed_ms);
        let Terms { ttl_ms, bound, .. } = self.terms;
        (ttl_ms > 0 && unobserved >= ttl_ms)
            || (unobserved >= OBSERVED_MS
                && bound.get() > 0.0
                && !self.candidates.is_empty()
                && self.total(now_ms) < bound.get())
    }

    /// The earliest time at which it may end, if nobody observes or changes it: it has to be asked then, not
    /// before. `u64::MAX` is never.
    #[must_use]
    pub fn may_end_ms(&self) -> u64 {
        let by_time = match self.terms.ttl_ms {
            0 => u64::MAX,
            ttl_ms => self.observed_ms.saturating_add(ttl_ms),
        };
        let seen = self.observed_ms.saturating_add(OBSERVED_MS);
        by_time.min(self.falls_ms().max(seen))
    }

    /// About when the total weight falls under the bound: not later than it does, by the rounding of a
    /// logarithm.
    fn falls_ms(&self) -> u64 {
        let (bound, half_life) = (self.terms.bound.get(), self.terms.half_life_ms);
        let given = self.candidates.iter().map(|candidate| candidate.given_ms);
        let Some(at_ms) = given.max().filter(|_| bound > 0.0) else {
            return u64::MAX;
        };
        let total = self.total(at_ms);
        if total < bound {
            return 0;
        }
        if half_life == 0 {
            return u64::MAX;
        }
        let halvings = (total / bound).log2();
        // One in a million earlier: whoever asks too early asks again.
        let after = halvings * half_life as f64 * (1.0 - 1e-6);
        at_ms.saturating_add(after as u64)
    }
}

/// Factors of decay; the last one is kept, as weights are often given together.
struct Decay {
    half_life_ms: u64,
    roots: [f64; FRACTION_BITS as usize],
    last: (u64, f64),
}

impl Decay {
    fn new(half_life_ms: u64) -> Self {
        let mut roots = [0.0; FRACTION_BITS as usize];
        let mut root = 0.5f64;
        for slot in &mut roots {
            root = root.sqrt();
            *slot = root;
        }
        Self {
            half_life_ms,
            roots,
            last: (0, 1.0),
        }
    }

    /// What is left of 1 after so many milliseconds.
    fn factor(&mut self, elapsed_ms: u64) -> f64 {
        if self.half_life_ms == 0 || elapsed_ms == 0 {
            return 1.0;
        }
        if self.last.0 != elapsed_ms {
            self.last = (elapsed_ms, self.compute(elapsed_ms));
        }
        self.last.1
    }

    fn compute(&self, elapsed_ms: u64) -> f64 {
        let half_life_ms = self.half_life_ms;
        let halvings = elapsed_ms / half_life_ms;
        if halvings >= 1023 {
            return 0.0;
        }
        let rest = u128::from(elapsed_ms % half_life_ms) << FRACTION_BITS;
        let fraction = (rest / u128::from(half_life_ms)) as u32;
        // 2^-halvings, by its exponent.
        let mut factor = f64::from_bits((1023 - halvings) << 52);
        for (no, root) in (1..).zip(&self.roots) {
            if fraction >> (FRACTION_BITS - no) & 1 == 1 {
                factor *= root;
            }
        }
        factor
    }
}

/// A number in [0, 1) for a seed: one step of SplitMix64.
fn unit(seed: u64) -> f64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T: u64 = 1_700_000_000_000;

    fn terms(half_life_ms: u64, ttl_ms: u64, bound: f64) -> Terms {
        Terms {
            half_life_ms,
            ttl_ms,
            bound: Weight::new(bound).unwrap(),
        }
    }

    fn candidate(weight: f64, given_ms: u64) -> Candidate {
        let id = ObjectId::of_blob(&given_ms.to_le_bytes());
        Candidate {
            head: id,
            tree: id,
            label: "".into(),
            weight: Weight::new(weight).unwrap(),
            given_ms,
        }
    }

    fn set(terms: Terms, weights: &[f64]) -> Superposition {
        let mut set = Superposition::new("s", BranchNo(0), None, terms, T);
        for &weight in weights {
            set.add(candidate(weight, T)).unwrap();
        }
        set
    }

    #[test]
    fn numbers_that_are_no_weights_are_refused() {
        for bad in [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            -1.0,
            -f64::MIN_POSITIVE,
            WEIGHT_MAX * 1.0000001,
            f64::MAX,
        ] {
            assert_eq!(Weight::new(bad), Err(BadWeight), "{bad}");
        }
        for good in [0.0, f64::MIN_POSITIVE, 5e-324, 1.0, WEIGHT_MAX] {
            assert_eq!(Weight::new(good).map(Weight::get), Ok(good));
        }
        assert_eq!(Weight::new(-0.0).unwrap().get().to_bits(), 0);
    }

    #[test]
    fn a_weight_halves_with_each_half_life_and_ends_at_zero() {
        let halving = set(terms(1000, 0, 0.0), &[8.0]);
        let at = |after| halving.total(T + after);
        assert_eq!([at(0), at(1000), at(2000)], [8.0, 4.0, 2.0]);
        assert!((at(500) - 8.0 / 2f64.sqrt()).abs() < 1e-9, "{}", at(500));
        assert_eq!(at(1_022_000), 8.0 * f64::from_bits(1 << 52));
        assert_eq!(at(1_023_000), 0.0);
        assert_eq!(halving.total(u64::MAX), 0.0);
        assert_eq!(halving.total(0), 8.0, "a clock that went back adds nothing");
        let still = set(terms(0, 0, 0.0), &[8.0]);
        assert_eq!(still.total(u64::MAX), 8.0, "no half-life, no decay");
    }

    #[test]
    fn draws_are_pinned() {
        // The first numbers of SplitMix64 with seed 0 and 1234567 are published.
        assert_eq!(unit(0).to_bits(), 0x3fec_4415_072f_63b9);
        assert_eq!(unit(1_234_567), 0.350_079_542_021_408_1);
        let set = set(terms(1000, 0, 0.0), &[1.0, 0.0, 2.0, 4.0, 0.0]);
        let drawn: Vec<u32> = (0..16).map(|seed| set.draw(seed).unwrap()).collect();
        assert_eq!(drawn, [3, 3, 3, 0, 3, 2, 3, 2, 3, 3, 0, 2, 3, 3, 2, 3]);
    }

    #[test]
    fn a_draw_never_takes_what_weighs_nothing() {
        assert_eq!(set(terms(0, 0, 0.0), &[]).draw(7), None);
        assert_eq!(set(terms(0, 0, 0.0), &[0.0, 0.0]).draw(7), None);
        let set = set(terms(0, 0, 0.0), &[0.0, 5e-324, 0.0]);
        for seed in 0..1000 {
            assert_eq!(set.draw(seed), Some(1));
        }
    }

    #[test]
    fn draws_follow_the_weights() {
        let weights = [5.0, 1.0, 0.0, 3.0, 0.5, 0.5];
        let set = set(terms(60_000, 0, 0.0), &weights);
        let (rounds, total) = (100_000u64, 10.0);
        let mut counts = [0u64; 6];
        for seed in 0..rounds {
            counts[set.draw(seed).unwrap() as usize] += 1;
        }
        assert_eq!(counts[2], 0);
        let deviation = |no: usize| {
            let wanted = rounds as f64 * weights[no] / total;
            (counts[no] as f64 - wanted).powi(2) / wanted
        };
        let square: f64 = [0, 1, 3, 4, 5].into_iter().map(deviation).sum();
        // Four degrees of freedom: above 18.5 once in a thousand.
        assert!(square < 18.5, "{square}: {counts:?}");
    }

    #[test]
    fn the_odds_do_not_change_with_time_but_with_age() {
        let mut set = set(terms(1000, 0, 0.0), &[1.0]);
        let before: Vec<_> = (0..100).map(|seed| set.draw(seed)).collect();
        assert_eq!(before, vec![Some(0); 100]);
        set.add(candidate(1.0, T + 3000)).unwrap();
        // The older one is worth an eighth by now.
        let old = (0..9000).filter(|&seed| set.draw(seed) == Some(0)).count();
        assert!((900..1100).contains(&old), "{old}");
    }

    #[test]
    fn a_set_ends_by_its_time_or_by_its_weight_and_not_before() {
        let mut timed = set(terms(0, 5000, 0.0), &[1.0]);
        assert!(!timed.has_ended(T + 4999) && timed.has_ended(T + 5000));
        assert_eq!(timed.may_end_ms(), T + 5000);
        timed.observe(T + 4000);
        timed.observe(T);
        assert!(!timed.has_ended(T + 8999) && timed.has_ended(T + 9000));
        assert!(!timed.has_ended(0), "a clock that went back ends nothing");
        let mut weighed = set(terms(1000, 0, 1.0), &[4.0, 4.0]);
        assert!(!weighed.has_ended(T + 3000) && weighed.has_ended(T + 3001));
        let due = weighed.may_end_ms();
        assert!((T + 2990..=T + 3001).contains(&due), "{due}");
        weighed.observe(T + 2900);
        assert!(!weighed.has_ended(T + 3899) && weighed.has_ended(T + 3900));
        assert_eq!(weighed.may_end_ms(), T + 3900);
        weighed.reweigh(0, Weight::new(100.0).unwrap(), T + 3500);
        assert!(!weighed.has_ended(T + 9000) && weighed.has_ended(T + 11_000));
        weighed.reweigh(0, Weight::new(0.0).unwrap(), T + 3500);
        weighed.reweigh(1, Weight::new(0.0).unwrap(), T + 3500);
        assert!(weighed.has_ended(T + 3900));
        assert_eq!(weighed.may_end_ms(), T + 3900);
        assert!(!weighed.reweigh(2, Weight::new(0.0).unwrap(), T));
    }

    #[test]
    fn a_set_without_terms_or_candidates_stays() {
        let endless = set(terms(1, 0, 0.0), &[1.0]);
        assert!(!endless.has_ended(u64::MAX));
        assert_eq!(endless.may_end_ms(), u64::MAX);
        let empty = set(terms(1, 0, 1.0), &[]);
        assert!(!empty.has_ended(u64::MAX));
        assert_eq!(empty.may_end_ms(), u64::MAX);
        let still = set(terms(0, 0, 1.0), &[1.0]);
        assert_eq!(still.may_end_ms(), u64::MAX);
    }

    #[test]
    fn a_full_set_takes_no_more() {
        let mut set = set(terms(0, 0, 0.0), &[WEIGHT_MAX; CANDIDATES_MAX]);
        assert_eq!(set.add(candidate(1.0, T)), Err(Full));
        assert_eq!(set.candidates().len(), CANDIDATES_MAX);
        assert!(set.total(T).is_finite() && set.draw(3).is_some());
    }

    /// The same, said with powers and full copies.
    struct Naive {
        half_life: f64,
        weights: Vec<(f64, u64)>,
    }

    impl Naive {
        fn weights(&self, now: u64) -> Vec<f64> {
            let decayed = |&(weight, given): &(f64, u64)| {
                let elapsed = now.saturating_sub(given) as f64;
                match self.half_life == 0.0 {
                    true => weight,
                    false => weight * 0.5f64.powf(elapsed / self.half_life),
                }
            };
            self.weights.iter().map(decayed).collect()
        }

        /// The candidate a point falls on; none where that is a matter of rounding.
        fn at(&self, seed: u64) -> Option<Option<u32>> {
            let Some(youngest) = self.weights.iter().map(|&(_, given)| given).max() else {
                return Some(None);
            };
            let weights = self.weights(youngest);
            let total: f64 = weights.iter().sum();
            if total == 0.0 {
                return Some(None);
            }
            let point = unit(seed) * total;
            let mut from = 0.0;
            for (no, weight) in (0..).zip(&weights) {
                let to = from + weight;
                if (point - from).abs() < total * 1e-5 || (point - to).abs() < total * 1e-5 {
                    return None;
                }
                if (from..to).contains(&point) {
                    return Some(Some(no));
                }
                from = to;
            }
            None
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_naive_one(
            half_life in prop_oneof![Just(0u64), 1u64..100_000],
            ttl in prop_oneof![Just(0u64), 1u64..100_000],
            bound in prop_oneof![Just(0f64), 0.001f64..100.0],
            steps in proptest::collection::vec((0u8..4, 0u64..5_000, 0f64..50.0, any::<u64>()), 1..60),
        ) {
            let mut now = T;
            let mut set = Superposition::new("s", BranchNo(0), None, terms(half_life, ttl, bound), now);
            let mut naive = Naive { half_life: half_life as f64, weights: Vec::new() };
            let mut observed = now;
            for (what, passed, weight, seed) in steps {
                now += passed;
                match what {
                    0 => {
                        set.add(candidate(weight, now)).unwrap();
                        naive.weights.push((weight, now));
                    }
                    1 => {
                        let no = seed % (naive.weights.len() as u64 + 1);
                        let there = set.reweigh(no as u32, Weight::new(weight).unwrap(), now);
                        prop_assert_eq!(there, (no as usize) < naive.weights.len());
                        if there {
                            naive.weights[no as usize] = (weight, now);
                        }
                    }
                    2 => {
                        set.observe(now);
                        observed = now;
                    }
                    _ => {}
                }
                let wanted = naive.weights(now);
                for (weight, wanted) in set.weights(now).zip(&wanted) {
                    prop_assert!((weight - wanted).abs() <= wanted * 1e-5 + 1e-300);
                }
                let total: f64 = wanted.iter().sum();
                if (total - bound).abs() > bound * 1e-4 {
                    let unobserved = now - observed;
                    let ended = (ttl > 0 && unobserved >= ttl)
                        || (!wanted.is_empty() && total < bound && unobserved >= OBSERVED_MS);
                    prop_assert_eq!(set.has_ended(now), ended);
                }
                if set.has_ended(now) {
                    prop_assert!(set.may_end_ms() <= now, "what has ended was due");
                }
                if let Some(drawn) = naive.at(seed) {
                    prop_assert_eq!(set.draw(seed), drawn);
                }
            }
        }
    }
}
