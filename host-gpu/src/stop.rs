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
        let met = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = met {
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
}
