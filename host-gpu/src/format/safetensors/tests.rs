//! Small files made in memory, then damaged in every way that a file can be.

use super::*;

fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![7; data]].concat()
}

const SOUND: &str = r#"{"__metadata__":{"format":"pt"},
"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},
"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]},
"c":{"dtype":"I64","shape":[1],"data_offsets":[16,24]} }  "#;

fn refused(header: &str, data: usize) -> String {
    parse(&file(header, data)).expect_err("this file is not sound").to_string()
}

#[test]
fn a_sound_file_is_read() {
    let file = file(SOUND, 24);
    let tensors = parse(&file).unwrap();
    let (a, b, c) = (&tensors["a"], &tensors["b"], &tensors["c"]);
    assert_eq!((a.dims.as_slice(), a.row.name, a.bytes.len()), (&[3, 2][..], "BF16", 12));
    assert_eq!((b.dims.as_slice(), b.elements(), b.bytes.start), (&[][..], 1, a.bytes.end));
    assert_eq!((c.row.name, c.row.quant, c.bytes.end), ("I64", None, file.len()));
    assert_eq!(tensors.len(), 3);
}

#[test]
fn a_file_cut_anywhere_is_refused_with_its_length() {
    let file = file(SOUND, 24);
    for len in 0..file.len() {
        match parse(&file[..len]) {
            Err(FormatError::Truncated { len: said, .. }) => assert_eq!(said, len as u64),
            other => panic!("cut to {len} of {} bytes: {other:?}", file.len()),
        }
    }
}

#[test]
fn a_file_with_any_byte_changed_does_not_panic() {
    let file = file(SOUND, 24);
    for at in 0..file.len() {
        for change in [0x01, 0x10, 0x80, 0xff] {
            let mut file = file.clone();
            file[at] ^= change;
            if let Ok(tensors) = parse(&file) {
                assert!(tensors.values().all(|tensor| tensor.bytes.end <= file.len()));
            }
        }
    }
}

#[test]
fn a_header_beyond_the_file_or_the_limit_is_refused_unread() {
    assert!(matches!(parse(&(1u64 << 60).to_le_bytes()), Err(FormatError::Corrupt { offset: 0, .. })));
    let longer = [&99_000_000u64.to_le_bytes()[..], b"{}"].concat();
    assert!(matches!(parse(&longer), Err(FormatError::Truncated { offset: 8, needed: 99_000_000, len: 10, .. })));
}

#[test]
fn corrupt_entries_are_named_with_their_place() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let f32 = |shape, offsets| one("F32", shape, offsets);
    let twice = r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let shared = r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"u":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    for (header, said) in [
        (f32("[2]", "[0,4]"), "tensor `t` at byte"),
        (f32("[1]", "[4,0]"), "need 4 bytes"),
        (f32("[4294967296,4294967296]", "[0,4]"), "overflows"),
        (f32("[4611686018427387904]", "[0,4]"), "overflows"),
        (f32("[-1]", "[0,4]"), "header at byte"),
        (f32("[1]", "[0,4,8]"), "header at byte"),
        (f32("[3]", "[0,12]"), "needs 12 bytes"),
        (f32("[1]", "[18446744073709551611,18446744073709551615]"), "tensor `t`"),
        (f32("[1]", "[4,8]"), "does not start at"),
        (one("F33", "[1]", "[0,4]"), "of type \"F33\""),
        (r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}"#.into(), "unknown field `x`"),
        (r#"{"t":{"dtype":"F32","shape":[1]}}"#.into(), "data_offsets"),
        (twice.into(), "appears twice"),
        (shared.into(), "does not start at"),
        (f32("[1]", "[0,4]"), "4 bytes belong to no tensor"),
        ("[]".into(), "an object with tensors by name"),
        ("{".into(), "header at byte"),
        (format!(r#"{{"__metadata__":{}"#, "[".repeat(10_000)), "header at byte"),
    ] {
        let error = refused(&header, 8);
        assert!(error.contains(said), "{header}: {error}");
    }
}

#[test]
fn an_index_names_files_of_its_own_folder_only() {
    let folder = tempfile::tempdir().unwrap();
    let open = |index: &str| {
        std::fs::write(folder.path().join(INDEX), index).unwrap();
        Safetensors::open(folder.path()).map(|s| s.tensors.len()).map_err(|e| e.to_string())
    };
    let entry = |name: &str| format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
    std::fs::write(folder.path().join("x-1.safetensors"), file(&entry("a"), 4)).unwrap();
    std::fs::write(folder.path().join("x-2.safetensors"), file(&entry("b"), 4)).unwrap();
    let both = r#"{"metadata":{"total_size":8},"weight_map":{"a":"x-1.safetensors","b":"x-2.safetensors"}}"#;
    assert_eq!(open(both), Ok(2));
    for (index, said) in [
        (r#"{"weight_map":{"a":"../x-1.safetensors"}}"#, "no name of a .safetensors file"),
        (r#"{"weight_map":{"a":"/etc/passwd"}}"#, "no name of a .safetensors file"),
        (r#"{"weight_map":{"a":"x-3.safetensors"}}"#, "x-3.safetensors is missing"),
        (r#"{"weight_map":{"a":"x-1.safetensors","b":"x-1.safetensors"}}"#, "x-1.safetensors has no tensor `b`"),
        (r#"{"weight_map":{"a":"x-1.safetensors","c":"x-2.safetensors"}}"#, "x-2.safetensors has tensor `b`"),
        (r#"{"weight_map":{"a":"x-1.safetensors","a":"x-1.safetensors"}}"#, "appears twice"),
        (r#"{"weight_map":7}"#, "at byte"),
        ("{}", "`weight_map` is missing"),
    ] {
        let error = open(index).unwrap_err();
        assert!(error.contains(said), "{index}: {error}");
    }
    std::fs::remove_file(folder.path().join(INDEX)).unwrap();
    let error = Safetensors::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("neither"), "{error}");
}
