//! Bytes of tokens to whole characters.

/// Collects the bytes of tokens and gives whole characters only.
#[derive(Debug, Default)]
pub struct Utf8 {
    held: Vec<u8>,
}

impl Utf8 {
    /// The buffer to which the next token's bytes are appended.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.held
    }

    /// What is complete. Bytes that can never become a character turn into U+FFFD.
    pub fn take(&mut self) -> String {
        let mut text = String::new();
        let mut used = 0;
        for chunk in self.held.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let bad = chunk.invalid();
            if bad.is_empty() || (used + bad.len() == self.held.len() && may_grow(bad)) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            used += bad.len();
        }
        self.held.drain(..used);
        text
    }

    /// What is left when nothing more comes.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

/// Whether more bytes could make `bytes` a character.
fn may_grow(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_come_whole_wherever_the_bytes_are_cut() {
        let text = "aé€🦀\u{fffd}z";
        for size in 1..5 {
            let mut utf8 = Utf8::default();
            let mut got = String::new();
            for part in text.as_bytes().chunks(size) {
                utf8.buffer().extend_from_slice(part);
                got.push_str(&utf8.take());
            }
            assert_eq!(got + &utf8.finish(), text);
        }
    }

    #[test]
    fn bytes_that_are_no_text_become_replacements() {
        let mut utf8 = Utf8::default();
        utf8.buffer().extend_from_slice(b"a\xffb\xe2\x82");
        assert_eq!(utf8.take(), "a\u{fffd}b");
        assert_eq!(utf8.finish(), "\u{fffd}");
    }

    #[test]
    fn any_bytes_cut_anywhere_give_what_they_give_whole() {
        let mut seed = 3u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        // Leading, following and impossible bytes, and whole characters.
        let parts: [&[u8]; 12] = [
            b"a",
            b"\x80",
            b"\xbf",
            b"\xc3",
            b"\xe2",
            b"\xe2\x82",
            b"\xed\xa0",
            b"\xf0\x9f",
            b"\xf8",
            "é".as_bytes(),
            "€".as_bytes(),
            "🦀".as_bytes(),
        ];
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..6).flat_map(|_| parts[random(parts.len())].to_vec()).collect();
            let (mut utf8, mut got, mut at) = (Utf8::default(), String::new(), 0);
            while at < bytes.len() {
                let to = bytes.len().min(at + random(4));
                utf8.buffer().extend_from_slice(&bytes[at..to]);
                let piece = utf8.take();
                // What is held back is the beginning of one character, so never more than three bytes.
                assert!(utf8.held.len() < 4 && (utf8.held.is_empty() || may_grow(&utf8.held)));
                got.push_str(&piece);
                at = to;
            }
            assert_eq!(got + &utf8.finish(), String::from_utf8_lossy(&bytes), "{bytes:x?}");
        }
    }
}
