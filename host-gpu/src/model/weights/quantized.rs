//! Matrices of floats that become blocks in memory as a model is loaded.

use super::{MatrixAt, Place, Weights, is_float};
use crate::format::FormatError;
use crate::format::quant::Quant;
use crate::format::quantize::{Quantize, quantize};
use std::collections::HashMap;
use std::sync::Arc;

impl Weights {
    /// Replaces matrices of floats by quantised ones in memory, on `threads` threads, and lets go of the
    /// files if nothing is left in them; `done` is told how many of the files' bytes were read, of how many. Where it says `false`,
    /// it stops, and the weights are of no use.
    ///
    /// # Errors
    /// `Corrupt` for a matrix with weights that no block can hold.
    pub fn quantize(
        &mut self,
        to: Quantize,
        threads: usize,
        done: impl Fn(u64, u64) -> bool,
    ) -> Result<(), FormatError> {
        let tied = self.head.is(&self.embedding);
        let mut made = std::mem::take(&mut self.made);
        let mut replaced: HashMap<usize, MatrixAt> = HashMap::new();
        let (mut read, total) = (0, self.matrices().iter().map(|(at, _)| at.bytes.len() as u64).sum());
        for (n, (at, ends)) in self.matrices().into_iter().enumerate() {
            let to = to.of(ends);
            if is_float(at.quant) {
                let bytes = self.blocks(at, to, threads)?;
                let place = Place::Made(made.len());
                replaced.insert(n, MatrixAt { quant: to, place, bytes: 0..bytes.len(), pieces: Arc::default(), ..*at });
                made.push(bytes);
            }
            read += at.bytes.len() as u64;
            if !done(read, total) {
                return Ok(());
            }
        }
        for (n, at) in self.matrices_mut().into_iter().enumerate() {
            if let Some(quantized) = replaced.remove(&n) {
                *at = quantized;
            }
        }
        if tied {
            self.head = self.embedding.clone();
        }
        self.made = made;
        if self.matrices().iter().all(|(at, _)| matches!(at.place, Place::Made(_))) {
            self.files = Arc::new([]);
        }
        Ok(())
    }

    /// The blocks of one matrix.
    fn blocks(&self, at: &MatrixAt, to: Quant, threads: usize) -> Result<Vec<u8>, FormatError> {
        let matrix = self.matrix(at);
        let row = |quant: Quant| at.cols / quant.row().weights * quant.row().bytes;
        let rows = at.rows.div_ceil(threads.max(1));
        let mut bytes = vec![0; at.rows * row(to)];
        let sound = std::thread::scope(|scope| {
            let parts = matrix.bytes.chunks(rows * row(at.quant)).zip(bytes.chunks_mut(rows * row(to)));
            let threads: Vec<_> =
                parts.map(|(from, out)| scope.spawn(move || quantize(at.quant, from, to, out).is_ok())).collect();
            threads.into_iter().all(|thread| thread.join().expect("rows are whole blocks"))
        });
        let corrupt = || FormatError::Corrupt {
            what: format!("a matrix of {} by {}", at.rows, at.cols),
            offset: at.bytes.start as u64,
            problem: "it has weights that are no numbers or too large to be quantised".into(),
        };
        sound.then_some(bytes).ok_or_else(corrupt)
    }

    /// As `matrices`, in the same order.
    fn matrices_mut(&mut self) -> Vec<&mut MatrixAt> {
        let head = Some(&mut self.head).filter(|head| !head.is(&self.embedding));
        let inner = self.layers.iter_mut();
        let inner = inner.flat_map(|l| {
            let both = [Some(&mut l.q), Some(&mut l.k), Some(&mut l.v), Some(&mut l.o.w)];
            both.into_iter().chain([l.gate.as_mut(), Some(&mut l.up), Some(&mut l.down.w)]).flatten()
        });
        inner.chain([&mut self.embedding]).chain(head).collect()
    }
}
