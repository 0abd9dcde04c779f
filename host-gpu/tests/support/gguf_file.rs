//! Writes GGUF files that hold metadata and no tensors.

/// The metadata in the order in which it was given; a key that is given again replaces the first.
#[derive(Default)]
pub struct GgufFile(Vec<(String, Vec<u8>)>);

impl GgufFile {
    pub fn text(self, key: &str, value: &str) -> Self {
        self.entry(key, 8, &string(value))
    }

    pub fn flag(self, key: &str, value: bool) -> Self {
        self.entry(key, 7, &[u8::from(value)])
    }

    pub fn number(self, key: &str, value: u64) -> Self {
        self.entry(key, 10, &value.to_le_bytes())
    }

    pub fn texts(self, key: &str, values: &[impl AsRef<str>]) -> Self {
        self.array(key, 8, values.iter().map(|value| string(value.as_ref())))
    }

    pub fn floats(self, key: &str, values: &[f32]) -> Self {
        self.array(key, 6, values.iter().map(|value| value.to_le_bytes().to_vec()))
    }

    pub fn ints(self, key: &str, values: &[i32]) -> Self {
        self.array(key, 5, values.iter().map(|value| value.to_le_bytes().to_vec()))
    }

    pub fn without(mut self, key: &str) -> Self {
        self.0.retain(|(other, _)| other != key);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.extend((self.0.len() as u64).to_le_bytes());
        self.0.iter().for_each(|(_, entry)| bytes.extend(entry));
        bytes
    }

    fn array(self, key: &str, kind: u32, values: impl ExactSizeIterator<Item = Vec<u8>>) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.for_each(|value| bytes.extend(value));
        self.entry(key, 9, &bytes)
    }

    fn entry(self, key: &str, kind: u32, value: &[u8]) -> Self {
        let entry = [string(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat();
        let mut file = self.without(key);
        file.0.push((key.to_owned(), entry));
        file
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}
