//! Splits a GGUF file into shards by hand, as llama.cpp's tool does: the first has the metadata.

/// Where things stand in a whole file.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        self.at += n;
        &self.file[self.at - n..self.at]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn skip_text(&mut self) {
        let len = self.u64() as usize;
        self.take(len);
    }

    fn skip_value(&mut self, kind: u32) {
        match kind {
            0 | 1 | 7 => drop(self.take(1)),
            2 | 3 => drop(self.take(2)),
            4..=6 => drop(self.take(4)),
            8 => self.skip_text(),
            9 => {
                let (kind, count) = (self.u32(), self.u64());
                (0..count).for_each(|_| self.skip_value(kind));
            }
            _ => drop(self.take(8)),
        }
    }
}

/// A tensor: its entry up to the offset, and its data.
struct Tensor {
    entry: Vec<u8>,
    data: Vec<u8>,
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&(name.len() as u64).to_le_bytes(), name.as_bytes(), &kind.to_le_bytes(), value].concat()
}

/// The files of `count` shards; the first has no tensors, the others share them in order.
pub fn split(file: &[u8], count: u16) -> Vec<Vec<u8>> {
    let mut r = Reader { file, at: 8 };
    let (tensor_count, key_count) = (r.u64(), r.u64());
    let metadata_from = r.at;
    for _ in 0..key_count {
        r.skip_text();
        let kind = r.u32();
        r.skip_value(kind);
    }
    let metadata = &file[metadata_from..r.at];
    let mut entries = Vec::new();
    for _ in 0..tensor_count {
        let from = r.at;
        r.skip_text();
        let dims = r.u32();
        r.take(8 * dims as usize + 4);
        entries.push((file[from..r.at].to_vec(), r.u64() as usize));
    }
    let data = r.at.next_multiple_of(32);
    let ends = entries.iter().skip(1).map(|(_, offset)| *offset).chain([file.len() - data]).collect::<Vec<_>>();
    let tensor =
        |((entry, from), to): ((Vec<u8>, usize), usize)| Tensor { entry, data: file[data + from..data + to].to_vec() };
    let tensors: Vec<Tensor> = entries.into_iter().zip(ends).map(tensor).collect();
    let each = tensors.len().div_ceil(usize::from(count) - 1);
    let mut shards = vec![shard(metadata, key_count, 0, count, tensors.len(), &[])];
    shards.extend(tensors.chunks(each).zip(1..).map(|(part, n)| shard(&[], 0, n, count, tensors.len(), part)));
    assert_eq!(shards.len(), usize::from(count));
    shards
}

fn shard(metadata: &[u8], keys: u64, number: u16, count: u16, all: usize, tensors: &[Tensor]) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((keys + 3).to_le_bytes());
    file.extend(metadata);
    file.extend(key("split.no", 2, &number.to_le_bytes()));
    file.extend(key("split.count", 2, &count.to_le_bytes()));
    file.extend(key("split.tensors.count", 5, &(all as i32).to_le_bytes()));
    let mut data = Vec::new();
    for tensor in tensors {
        file.extend(&tensor.entry);
        file.extend((data.len() as u64).to_le_bytes());
        data.extend(&tensor.data);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    file
}
