//! Small files made in memory, then damaged in every way that a file can be.

use super::*;

/// A file being written: metadata and tensors as bytes, their counts in front.
#[derive(Clone, Default)]
struct Writer {
    metadata: Vec<u8>,
    metadata_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

fn text(bytes: &mut Vec<u8>, text: &[u8]) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text);
}

impl Writer {
    fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        text(&mut self.metadata, key.as_bytes());
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.metadata_count += 1;
        self
    }

    fn text(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        text(&mut bytes, value.as_bytes());
        self.key(key, 8, &bytes)
    }

    fn array(self, key: &str, kind: u32, count: u64, elements: &[u8]) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(elements);
        self.key(key, 9, &bytes)
    }

    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        text(&mut self.tensors, name.as_bytes());
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| self.tensors.extend(dim.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    fn data(mut self, bytes: usize) -> Self {
        self.data = vec![7; bytes];
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.metadata_count.to_le_bytes());
        file.extend(&self.metadata);
        file.extend(&self.tensors);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&self.data);
        file
    }

    fn refused(&self) -> FormatError {
        Header::parse(&self.bytes()).expect_err("this file is not sound")
    }
}

const F32: u32 = 0;
const Q8_0: u32 = 8;
const Q4_K: u32 = 12;

/// One of everything.
fn sound() -> Writer {
    let mut words = Vec::new();
    ["one", "zwei", "três"].iter().for_each(|word| text(&mut words, word.as_bytes()));
    let numbers: Vec<u8> = [1_i32, -2, 3].iter().flat_map(|n| n.to_le_bytes()).collect();
    Writer::default()
        .text("general.architecture", "llama")
        .key("n", 4, &8_u32.to_le_bytes())
        .key("signed", 5, &(-8_i32).to_le_bytes())
        .key("f", 6, &0.5_f32.to_le_bytes())
        .key("yes", 7, &[1])
        .array("words", 8, 3, &words)
        .array("numbers", 5, 3, &numbers)
        .tensor("a", &[32, 2], Q8_0, 0)
        .tensor("b", &[3], F32, 96)
        .data(96 + 12)
}

#[test]
fn a_sound_file_is_read() {
    let file = sound().bytes();
    let header = Header::parse(&file).unwrap();
    assert_eq!(header.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!((header.number("n", 8).unwrap(), header.number("gone", 8).unwrap()), (Some(8), None));
    assert_eq!((header.float("f").unwrap(), header.flag("yes").unwrap()), (Some(0.5), Some(true)));
    assert_eq!(header.numbers("numbers").unwrap(), Some(&[1, -2, 3][..]));
    let words = header.texts("words").unwrap().unwrap();
    assert_eq!(&file[words[2].clone()], "três".as_bytes());
    let (a, b) = (&header.tensors["a"], &header.tensors["b"]);
    assert_eq!((a.elements(), a.bytes.len(), b.bytes.len()), (64, 68, 12));
    assert_eq!(b.bytes.end, file.len());
}

#[test]
fn values_of_another_kind_are_said() {
    let header = Header::parse(&sound().bytes()).unwrap();
    for error in [
        header.text("n").unwrap_err(),
        header.number("n", 7).unwrap_err(),
        header.number("signed", 7).unwrap_err(),
        header.number("f", 7).unwrap_err(),
        header.float("yes").unwrap_err(),
        header.flag("n").unwrap_err(),
        header.texts("numbers").unwrap_err(),
        header.numbers("words").unwrap_err(),
    ] {
        assert!(matches!(error, FormatError::Metadata { .. }), "{error}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused_with_its_length() {
    let file = sound().bytes();
    for len in 0..file.len() {
        match Header::parse(&file[..len]) {
            Err(FormatError::Truncated { len: said, .. }) => assert_eq!(said, len as u64),
            other => panic!("cut to {len} of {} bytes: {other:?}", file.len()),
        }
    }
}

#[test]
fn a_file_with_any_byte_changed_does_not_panic() {
    let file = sound().bytes();
    for at in 0..file.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut file = file.clone();
            file[at] ^= change;
            // Sound or not, every range that comes out lies in the file.
            if let Ok(header) = Header::parse(&file) {
                assert!(header.tensors.values().all(|tensor| tensor.bytes.end <= file.len()));
            }
        }
    }
}

#[test]
fn what_is_no_gguf_is_refused() {
    assert!(matches!(Header::parse(b"PK\x03\x04 a zip file"), Err(FormatError::NotGguf { .. })));
    let mut file = sound().bytes();
    file[4] = 1;
    assert!(matches!(Header::parse(&file), Err(FormatError::Version { found: 1 })));
}

#[test]
fn counts_beyond_the_file_allocate_nothing() {
    for at in [8, 16] {
        let mut file = sound().bytes();
        file[at..at + 8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
        assert!(matches!(Header::parse(&file), Err(FormatError::Truncated { .. })));
    }
    for kind in [0, 4, 8, 9, 12] {
        let error = Writer::default().array("x", kind, u64::MAX / 8, &[]).refused();
        assert!(matches!(error, FormatError::Truncated { .. }), "{error}");
    }
}

#[test]
fn corrupt_fields_are_named() {
    let nested = |depth: usize| -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..depth {
            bytes.extend(9_u32.to_le_bytes());
            bytes.extend(1_u64.to_le_bytes());
        }
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        bytes
    };
    let mut bad_text = Vec::new();
    text(&mut bad_text, b"\xff\xfe");
    for (file, said) in [
        (Writer::default().text("k", "a").text("k", "b"), "appears twice"),
        (Writer::default().key("k", 13, &[]), "value type 13"),
        (Writer::default().key("k", 7, &[2]), "a boolean is 2"),
        (Writer::default().key("k", 8, &bad_text), "not utf-8"),
        (Writer::default().array("k", 13, 0, &[]), "element type 13"),
        (Writer::default().key("k", 9, &nested(8)), "too deep"),
        (Writer::default().array("k", 10, 1, &u64::MAX.to_le_bytes()), "beyond 63 bits"),
        (Writer::default().key("general.alignment", 4, &3_u32.to_le_bytes()), "power of two"),
        (Writer::default().tensor("t", &[], F32, 0), "0 dimensions"),
        (Writer::default().tensor("t", &[1; 5], F32, 0), "5 dimensions"),
        (Writer::default().tensor("t", &[0], F32, 0), "zero"),
        (Writer::default().tensor("t", &[33], Q8_0, 0), "whole number of blocks"),
        (Writer::default().tensor("t", &[288], Q4_K, 0), "whole number of blocks"),
        (Writer::default().tensor("t", &[1 << 40, 1 << 40], F32, 0), "overflow"),
        (Writer::default().tensor("t", &[1 << 62], F32, 0), "overflows"),
        (Writer::default().tensor("t", &[1], F32, 4).data(64), "not aligned"),
        (Writer::default().tensor("t", &[1], 99, 0), "element type 99"),
        (Writer::default().tensor("t", &[1], F32, 0).tensor("t", &[1], F32, 0).data(4), "appears twice"),
        (Writer::default().tensor("t", &[1024], F32, 0).data(64), "tensor `t`"),
        (Writer::default().tensor("t", &[1], F32, u64::MAX - 31).data(64), "tensor `t`"),
    ] {
        let error = file.refused().to_string();
        assert!(error.contains(said), "{error}");
    }
}
