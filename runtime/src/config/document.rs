//! Reads a TOML document key by key, and gathers every mistake with its line before anyone acts on it.

use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Something wrong in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The line it is on, counted from one.
    pub line: usize,
    /// What is wrong, and the way out.
    pub text: String,
}

/// All that is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes {
    /// The document, as it is shown.
    pub file: String,
    /// In the order of lines; at least one.
    pub list: Vec<Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.list.as_slice() {
            [one] => write!(f, "{}, line {}: {}", self.file, one.line, one.text),
            many => {
                write!(f, "{} has {} mistakes:", self.file, many.len())?;
                many.iter().try_for_each(|mistake| write!(f, "\n  line {}: {}", mistake.line, mistake.text))
            }
        }
    }
}

impl std::error::Error for Mistakes {}

/// A value of the document and where it stands.
pub type Value<'i> = Spanned<DeValue<'i>>;

/// A document being read.
pub struct Document<'i> {
    text: &'i str,
    mistakes: Vec<Mistake>,
}

impl<'i> Document<'i> {
    /// Parses `text`; what the parser could not read is a mistake like any other.
    pub fn parse(text: &'i str) -> (Self, DeTable<'i>) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut document = Self { text, mistakes: Vec::new() };
        for error in errors {
            document.mistake(&error.span().unwrap_or(0..0), error.message().trim());
        }
        (document, table.into_inner())
    }

    /// Notes a mistake at `span`.
    pub fn mistake(&mut self, span: &Range<usize>, text: impl fmt::Display) {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        self.mistakes.push(Mistake { line, text: text.to_string() });
    }

    /// Whether something is wrong so far.
    pub fn has_mistakes(&self) -> bool {
        !self.mistakes.is_empty()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// All that was noted, if anything was.
    pub fn finish(mut self, file: &str) -> Result<(), Mistakes> {
        self.mistakes.sort_by_key(|mistake| mistake.line);
        if self.mistakes.is_empty() { Ok(()) } else { Err(Mistakes { file: file.to_owned(), list: self.mistakes }) }
    }

    /// Refuses the keys of `table` that are not in `known`. `place` is the table's name, empty at the top.
    pub fn known(&mut self, table: &DeTable<'_>, place: &str, known: &[&str]) {
        for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let near = nearest(key.get_ref(), known)
                .map_or_else(|| format!("known are {}", known.join(", ")), |near| format!("did you mean `{near}`?"));
            let place = if place.is_empty() { String::new() } else { format!(" in `{place}`") };
            self.mistake(&key.span(), format!("`{}`{place} is unknown; {near}", key.get_ref()));
        }
    }

    /// The text of a value.
    pub fn string(&mut self, value: &Value<'_>, name: &str) -> Option<String> {
        let text = value.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            self.not_a(value, name, "a text, as in \"...\"");
        }
        text
    }

    /// A value that is parsed from a text.
    pub fn parsed<T>(&mut self, value: &Value<'_>, name: &str) -> Option<T>
    where
        T: std::str::FromStr,
        T::Err: fmt::Display,
    {
        let text = self.string(value, name)?;
        match text.parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.mistake(&value.span(), error);
                None
            }
        }
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, value: &Value<'_>, name: &str) -> Option<bool> {
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            self.not_a(value, name, "true or false");
        }
        boolean
    }

    /// A whole number, not negative.
    pub fn number(&mut self, value: &Value<'_>, name: &str) -> Option<u64> {
        let number = value.get_ref().as_integer().and_then(|number| {
            let digits = number.as_str().replace('_', "");
            u64::from_str_radix(digits.trim_start_matches('+'), number.radix()).ok()
        });
        if number.is_none() {
            self.not_a(value, name, "a whole number, as in 100");
        }
        number
    }

    /// A table.
    pub fn table<'v>(&mut self, value: &'v Value<'i>, name: &str) -> Option<&'v DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.not_a(value, name, &format!("a table, as in [{name}]"));
        }
        table
    }

    /// The elements of a list.
    pub fn list<'v>(&mut self, value: &'v Value<'i>, name: &str) -> Vec<&'v Value<'i>> {
        let list = value.get_ref().as_array();
        if list.is_none() {
            self.not_a(value, name, "a list, as in [\"...\"]");
        }
        list.into_iter().flat_map(|list| list.iter()).collect()
    }

    /// A list of values that are each parsed from a text.
    pub fn parsed_list<T>(&mut self, value: &Value<'i>, name: &str) -> Vec<T>
    where
        T: std::str::FromStr,
        T::Err: fmt::Display,
    {
        let list = self.list(value, name);
        list.into_iter().filter_map(|value| self.parsed(value, name)).collect()
    }

    fn not_a(&mut self, value: &Value<'_>, name: &str, wanted: &str) {
        let is = value.get_ref().type_str();
        self.mistake(&value.span(), format!("`{name}` is of type {is}; write {wanted}"));
    }
}

/// The known key that `key` was likely meant to be.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let lower = key.to_ascii_lowercase().replace('-', "_");
    let near = |known: &&str| distance(&lower, known);
    let best = known.iter().copied().min_by_key(near)?;
    let close = near(&best) <= 1 + best.len() / 4 || lower.len() >= 3 && best.starts_with(lower.as_str());
    close.then_some(best)
}

/// How many letters must be put in, taken out or changed to make one from the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in b.iter().enumerate() {
            let change = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_named() {
        let known = ["routes", "component", "limits", "wall_ms"];
        assert_eq!(nearest("route", &known), Some("routes"));
        assert_eq!(nearest("wall-ms", &known), Some("wall_ms"));
        assert_eq!(nearest("compnent", &known), Some("component"));
        assert_eq!(nearest("wall", &known), Some("wall_ms"));
        assert_eq!(nearest("zebra", &known), None);
    }

    #[test]
    fn syntax_errors_have_lines_too() {
        let (document, _) = Document::parse("a = 1\nb = = 2\nc = 3\nd = \"open\n");
        let mistakes = document.finish("hob.toml").unwrap_err();
        assert!(mistakes.list.iter().any(|mistake| mistake.line == 2), "{mistakes}");
        assert!(mistakes.list.iter().any(|mistake| mistake.line == 4), "{mistakes}");
    }
}
