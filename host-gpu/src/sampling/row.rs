//! The logits of a row, as a draw looks at them: all of them, or what a card tells.

/// A logit by this much below the largest is not looked at, at a temperature of 1: e^-32 is 1.3e-14. All that is left out
/// comes to less than a millionth of a millionth for each token: nobody would see it drawn.
pub(crate) const NEGLIGIBLE: f32 = 32.0;

/// How far below the largest is looked for what is drawn, one after the other. Mostly it is among a few hundred tokens, and these
/// are sorted in a fraction of the time that all of a vocabulary takes.
pub(super) const DEPTHS: [f32; 4] = [3.0, NEAR_DEPTH, 12.0, NEGLIGIBLE];

/// A card tells what is so near. Mostly that is enough; where a vocabulary has a long tail, or a temperature is high, it is so less often.
const NEAR_DEPTH: f32 = 6.0;

/// How near it and the sums of a card's list are: see `ops::cuda`'s `shortlist`. A little more than is looked for, since a card rounds
/// products and sums together.
pub(crate) const NEAR: (f32, f32) = (NEAR_DEPTH + 0.01, NEGLIGIBLE);

/// A row of logits.
pub(super) trait Row {
    /// The largest.
    fn max(&self) -> f32;

    /// The first place of the largest.
    fn likeliest(&self) -> usize;

    /// The tokens whose logits are at least `floor`, and these, in any order; `None` if they are not all known.
    fn above(&self, floor: f32) -> Option<Vec<(u32, f32)>>;

    /// The sum of `e^((logit - max) / temperature)` over all that is not negligible at the temperature of the draw. `temperature` is that
    /// one, or 1.
    fn total(&self, temperature: f32) -> f64;
}

/// All of a row.
pub(super) struct Whole<'a> {
    logits: &'a [f32],
    max: f32,
}

impl<'a> Whole<'a> {
    pub(super) fn new(logits: &'a [f32]) -> Self {
        Self { logits, max: maximum(logits) }
    }

    /// Each token and its logit.
    pub(super) fn all(&self) -> Vec<(u32, f32)> {
        (0..).zip(self.logits.iter().copied()).collect()
    }
}

impl Row for Whole<'_> {
    fn max(&self) -> f32 {
        self.max
    }

    fn likeliest(&self) -> usize {
        self.logits.iter().position(|logit| *logit == self.max).unwrap_or(0)
    }

    fn above(&self, floor: f32) -> Option<Vec<(u32, f32)>> {
        Some((0..).zip(self.logits.iter().copied()).filter(|(_, logit)| *logit >= floor).collect())
    }

    fn total(&self, temperature: f32) -> f64 {
        let kept = self.logits.iter().filter(|logit| **logit >= self.max - NEGLIGIBLE * temperature.max(1.0));
        kept.map(|logit| f64::from((logit - self.max) / temperature).exp()).sum()
    }
}

/// What a card tells of a row: its largest logits, and sums over all of them.
pub(super) struct List<'a> {
    max: f32,
    likeliest: usize,
    /// All that are at least this are in the list.
    floor: f32,
    temperature: f32,
    /// At a temperature of 1, and at its own.
    totals: [f64; 2],
    ids: &'a [u32],
    /// As bits.
    logits: &'a [u32],
}

impl<'a> List<'a> {
    /// What `words` say, which were made for this temperature; `None` if there was no room for all that is near, or none is a number.
    pub(super) fn read(words: &'a [u32], temperature: f32) -> Option<Self> {
        let (head, rest) = words.split_at_checked(4)?;
        let (ids, logits) = rest.split_at(rest.len() / 2);
        let count = head[0] as usize;
        let (ids, logits) = (ids.get(..count)?, logits.get(..count)?);
        let totals = [head[1], head[2]].map(|bits| f64::from(f32::from_bits(bits)));
        if count == 0 || !totals.iter().all(|total| total.is_finite()) {
            return None;
        }
        let max = logits.iter().map(|bits| f32::from_bits(*bits)).fold(f32::NEG_INFINITY, f32::max);
        let floor = max - NEAR_DEPTH * temperature.max(1.0);
        Some(Self { max, likeliest: Self::likeliest_of(words), floor, temperature, totals, ids, logits })
    }

    /// The likeliest token, which is there in any case.
    pub(super) fn likeliest_of(words: &[u32]) -> usize {
        words[3] as usize
    }
}

impl Row for List<'_> {
    fn max(&self) -> f32 {
        self.max
    }

    fn likeliest(&self) -> usize {
        self.likeliest
    }

    fn above(&self, floor: f32) -> Option<Vec<(u32, f32)>> {
        if floor < self.floor {
            return None;
        }
        let all = self.ids.iter().zip(self.logits).map(|(id, bits)| (*id, f32::from_bits(*bits)));
        Some(all.filter(|(_, logit)| *logit >= floor).collect())
    }

    fn total(&self, temperature: f32) -> f64 {
        self.totals[usize::from(temperature == self.temperature)]
    }
}

/// The largest value. In sixteen lanes: one comparison need not wait for the one before.
fn maximum(logits: &[f32]) -> f32 {
    let (lanes, rest) = logits.as_chunks::<16>();
    let mut max = [f32::NEG_INFINITY; 16];
    for lane in lanes {
        for (max, logit) in max.iter_mut().zip(lane) {
            *max = if *logit > *max { *logit } else { *max };
        }
    }
    rest.iter().chain(&max).copied().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

/// The `n` largest of `kept`, largest first; equal ones by token, so that the order is always the same.
pub(super) fn largest(mut kept: Vec<(u32, f32)>, n: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if n < kept.len() {
        kept.select_nth_unstable_by(n, order);
        kept.truncate(n);
    }
    kept.sort_unstable_by(order);
    kept
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The list that a card would make, with room for `most`.
    pub(crate) fn list(logits: &[f32], temperature: f32, most: usize) -> Vec<u32> {
        let row = Whole::new(logits);
        let floor = row.max - NEAR.0 * temperature.max(1.0);
        let near: Vec<(u32, f32)> = row.above(floor).expect("all are known").into_iter().rev().collect();
        let sum = |t: f32| {
            let kept = logits.iter().filter(|logit| **logit >= row.max - NEAR.1 * temperature.max(1.0));
            (kept.map(|logit| f64::from((logit - row.max) / t).exp()).sum::<f64>() as f32).to_bits()
        };
        let mut words = vec![0; 4 + 2 * most];
        words[..4].copy_from_slice(&[near.len() as u32, sum(1.0), sum(temperature), row.likeliest() as u32]);
        for (at, (id, logit)) in near.into_iter().enumerate().take(most) {
            (words[4 + at], words[4 + most + at]) = (id, logit.to_bits());
        }
        words
    }

    #[test]
    fn a_list_knows_what_it_does_not_know() {
        let logits: Vec<f32> = (0..20).map(|n| n as f32).collect();
        let words = list(&logits, 1.0, 8);
        let known = List::read(&words, 1.0).unwrap();
        assert_eq!((known.max(), known.likeliest()), (19.0, 19));
        assert_eq!(
            largest(known.above(15.0).unwrap(), 9),
            [(19, 19.0), (18, 18.0), (17, 17.0), (16, 16.0), (15, 15.0)]
        );
        assert!(known.above(13.0).is_some() && known.above(12.0).is_none());
        assert!(List::read(&list(&logits, 1.0, 5), 1.0).is_none(), "there was no room for seven");
        assert!(List::read(&list(&[f32::NAN; 4], 1.0, 5), 1.0).is_none());
        assert!(List::read(&[], 1.0).is_none());
        let warm = list(&logits, 2.0, 16);
        let warm = List::read(&warm, 2.0).unwrap();
        assert!(warm.above(7.0).is_some());
        for t in [1.0, 2.0] {
            assert!((warm.total(t) / Whole::new(&logits).total(t) - 1.0).abs() < 1e-6, "{t}");
        }
    }
}
