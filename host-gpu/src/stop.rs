//! Stop texts across token borders: holds text back while it could still become one.

/// Watches the text of one sequence.
#[derive(Debug, Default)]
pub(crate) struct StopFilter {
    stops: Vec<String>,
    held: String,
}

impl StopFilter {
    /// `stops` are not empty texts.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Adds `text`; gives what is safe to emit, and whether a stop text was met.
    pub(crate) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        // The one that is complete first, however the text comes; of several the longest.
        let ends = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at)));
        if let Some((_, at)) = ends.min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when nothing more comes.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` that are the beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    let fits = |n: &usize| stop.is_char_boundary(*n) && text.ends_with(&stop[..*n]);
    (1..=longest).rev().find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_are_found_wherever_the_text_is_cut() {
        let (text, stops) = ("naïve END of ENDING##x", ["ENDI", "##"]);
        for size in 1..8 {
            let mut filter = StopFilter::new(stops.map(String::from).to_vec());
            let mut out = String::new();
            let chars: Vec<char> = text.chars().collect();
            let met = chars.chunks(size).any(|part| {
                let (safe, met) = filter.push(&part.iter().collect::<String>());
                out.push_str(&safe);
                met
            });
            assert!(met);
            assert_eq!(out, "naïve END of ");
        }
    }

    #[test]
    fn what_is_no_stop_after_all_comes_out() {
        let mut filter = StopFilter::new(vec!["abc".into()]);
        assert_eq!(filter.push("xab"), ("x".into(), false));
        assert_eq!(filter.push("d ab"), ("abd ".into(), false));
        assert_eq!(filter.finish(), "ab");
    }

    #[test]
    fn every_cut_of_a_text_gives_the_same() {
        let mut seed = 5u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        let mut met_some = 0;
        for _ in 0..300 {
            let mut word = |len: usize| (0..len).map(|_| ['a', 'b', 'é', '🦀'][random(4)]).collect::<String>();
            let text: Vec<char> = word(9).chars().collect();
            let stops = vec![word(2), word(3), word(4)];
            let whole: String = text.iter().collect();
            let ends = stops.iter().filter_map(|stop| whole.find(stop.as_str()).map(|at| (at + stop.len(), at)));
            let expected = ends.min().map(|(_, at)| &whole[..at]);
            met_some += usize::from(expected.is_some());
            for cuts in 0..1u32 << 8 {
                let mut filter = StopFilter::new(stops.clone());
                let (mut out, mut part, mut met) = (String::new(), String::new(), false);
                for (n, c) in text.iter().enumerate() {
                    part.push(*c);
                    if cuts >> n & 1 == 1 || n + 1 == text.len() {
                        let (safe, stopped) = filter.push(&std::mem::take(&mut part));
                        out.push_str(&safe);
                        met = stopped;
                    }
                    if met {
                        break;
                    }
                    let held = whole[out.len()..].strip_suffix(&text[n + 1..].iter().collect::<String>());
                    let begins = |held: &str| stops.iter().any(|stop| stop.starts_with(held));
                    assert!(!part.is_empty() || held.is_some_and(begins), "no more is held back than need be");
                }
                if !met {
                    out.push_str(&filter.finish());
                }
                assert_eq!((out.as_str(), met), (expected.unwrap_or(&whole), expected.is_some()), "{stops:?} {cuts:b}");
            }
        }
        assert!((50..250).contains(&met_some), "{met_some} of 300 texts have a stop");
    }
}
