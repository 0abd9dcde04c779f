//! Names of models in several files: `x-00001-of-00003.gguf`.

use super::plan::MOST_FILES;

/// One of the files of a model.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shard<'a> {
    /// What all of them begin with.
    pub base: &'a str,
    /// Which one it is, from 1.
    pub number: u32,
    /// How many there are.
    pub count: u32,
    /// What all of them end with, with its dot.
    pub ending: &'a str,
}

/// What a file's name says; `None` if it says that it is the only one.
pub(crate) fn of(name: &str) -> Option<Shard<'_>> {
    let dot = name.rfind('.')?;
    let (stem, ending) = name.split_at(dot);
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (base, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|c| c.is_ascii_digit());
    if base.is_empty() || !digits(number) || !digits(count) {
        return None;
    }
    let (number, count) = (number.parse().ok()?, count.parse().ok()?);
    (number >= 1 && number <= count && count as usize <= MOST_FILES).then_some(Shard { base, number, count, ending })
}

impl Shard<'_> {
    /// The name of the file `number`.
    pub(crate) fn sibling(&self, number: u32) -> String {
        format!("{}-{number:05}-of-{:05}{}", self.base, self.count, self.ending)
    }

    /// The names of all of them, in order.
    pub(crate) fn all(&self) -> Vec<String> {
        (1..=self.count).map(|number| self.sibling(number)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_which_and_of_how_many() {
        let shard = of("m-q4-00002-of-00003.gguf").unwrap();
        assert_eq!((shard.base, shard.number, shard.count), ("m-q4", 2, 3));
        assert_eq!(shard.all(), ["m-q4-00001-of-00003.gguf", "m-q4-00002-of-00003.gguf", "m-q4-00003-of-00003.gguf"]);
        for one in ["m.gguf", "m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-1-of-3.gguf", "-00001-of-00001.gguf"]
        {
            assert_eq!(of(one), None, "{one}");
        }
        assert_eq!(of("m-00001-of-99999.gguf"), None, "so many files has nobody");
    }
}
