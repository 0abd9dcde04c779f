//! The weights of a model on a card.

use super::split::NextCard;
use crate::model::weights::{Layer, MatrixAt, Out, Weights};
use crate::ops::cuda::copies::Copies;
use crate::ops::cuda::matrix::DeviceMatrix;
use crate::ops::cuda::upload::{Cut, Follow, Raw, upload};
use crate::ops::cuda::{Buffer, CudaError, Device};
use std::ops::Range;
use std::sync::Arc;

/// What brings a result back to the residual stream.
pub(super) struct CardOut {
    pub(super) w: DeviceMatrix,
    pub(super) bias: Option<Buffer<f32>>,
    pub(super) norm: Option<Buffer<f32>>,
}

pub(super) struct CardLayer {
    pub(super) attn_norm: Buffer<f32>,
    pub(super) q: DeviceMatrix,
    pub(super) k: DeviceMatrix,
    pub(super) v: DeviceMatrix,
    pub(super) qkv_bias: Option<Buffer<f32>>,
    pub(super) head_norms: Option<[Buffer<f32>; 2]>,
    pub(super) o: CardOut,
    pub(super) ff_norm: Buffer<f32>,
    pub(super) gate: DeviceMatrix,
    pub(super) up: DeviceMatrix,
    pub(super) down: CardOut,
}

fn gate(layer: &Layer) -> &MatrixAt {
    layer.gate.as_ref().expect("what generates has gates")
}

/// Those of a layer, in the order of [`OnCard::matrices`].
fn matrices(l: &Layer) -> [&MatrixAt; 7] {
    [&l.q, &l.k, &l.v, &l.o.w, gate(l), &l.up, &l.down.w]
}

/// What makes logits of the residual stream.
pub(super) struct Ends {
    pub(super) norm: Buffer<f32>,
    /// `None` where it is the embedding, which is there.
    head: Option<DeviceMatrix>,
}

/// All tensors of a model on a card, or of those of its layers that one of several cards has.
pub(crate) struct OnCard {
    /// Lives as long as it does, and is no other model's.
    pub(super) identity: Arc<()>,
    /// The number of the first of its layers.
    pub(super) first: usize,
    /// Where the model begins.
    pub(super) embedding: Option<DeviceMatrix>,
    pub(super) layers: Vec<CardLayer>,
    /// Where it ends.
    pub(super) ends: Option<Ends>,
    pub(super) fine_head: bool,
    pub(super) rope_factors: Option<Vec<f32>>,
    /// Where it goes on.
    pub(super) next: Option<Box<NextCard>>,
}

impl OnCard {
    /// Copies weights to the card; `follow` is told how far it is, and says whether to go on. Of `copies` it takes, or makes, the one of
    /// this digest, if there are such and there is room.
    ///
    /// # Errors
    /// `NoMemory`, `File`, `Stopped`
    pub(crate) fn load(
        device: &Device,
        w: &Weights,
        copies: Option<(&Arc<Copies>, &str)>,
        follow: Follow<'_>,
    ) -> Result<Self, CudaError> {
        Self::load_part(device, w, 0..w.layers.len(), copies, follow)
    }

    /// The same for some of the layers, and for what comes before the first and after the last.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub(super) fn load_part(
        device: &Device,
        w: &Weights,
        layers: Range<usize>,
        copies: Option<(&Arc<Copies>, &str)>,
        follow: Follow<'_>,
    ) -> Result<Self, CudaError> {
        // Beside what computes.
        let device = &device.beside()?;
        let matrix = |at: &MatrixAt| DeviceMatrix::empty(device, &w.matrix(at));
        let vector = |v: &Option<Vec<f32>>| v.as_ref().map(|v| device.put(v)).transpose();
        let out = |out: &Out| -> Result<CardOut, CudaError> {
            Ok(CardOut { w: matrix(&out.w)?, bias: vector(&out.bias)?, norm: vector(&out.norm)? })
        };
        let layer = |layer: &Layer| -> Result<CardLayer, CudaError> {
            let Layer { attn_norm, q, k, v, qkv_bias, head_norms, o, ff_norm, up, down, .. } = layer;
            Ok(CardLayer {
                attn_norm: device.put(attn_norm)?,
                q: matrix(q)?,
                k: matrix(k)?,
                v: matrix(v)?,
                qkv_bias: vector(qkv_bias)?,
                head_norms: match head_norms {
                    Some([q, k]) => Some([device.put(q)?, device.put(k)?]),
                    None => None,
                },
                o: out(o)?,
                ff_norm: device.put(ff_norm)?,
                gate: matrix(gate(layer))?,
                up: matrix(up)?,
                down: out(down)?,
            })
        };
        let (begins, ends) = (layers.start == 0, layers.end == w.layers.len());
        // A head that is the embedding is there once, on a card that has both ends.
        let head = (!w.head_is_embedding() || !begins).then_some(&w.head).filter(|_| ends);
        let loaded = Self {
            identity: Arc::default(),
            first: layers.start,
            embedding: begins.then(|| matrix(&w.embedding)).transpose()?,
            layers: w.layers[layers.clone()].iter().map(layer).collect::<Result<_, _>>()?,
            ends: match ends {
                true => Some(Ends { norm: device.put(&w.final_norm)?, head: head.map(matrix).transpose()? }),
                false => None,
            },
            fine_head: w.fine_head,
            rope_factors: w.rope_factors.clone(),
            next: None,
        };
        // Now, and not while the first to ask waits.
        loaded.matrices().try_for_each(|matrix| device.compile(&[matrix.module()]))?;
        // In the order of `matrices`.
        let raw = w.layers[layers].iter().flat_map(matrices).chain(begins.then_some(&w.embedding)).chain(head);
        let pairs: Vec<(&DeviceMatrix, Raw<'_>)> = loaded.matrices().zip(raw.map(|at| w.raw(at))).collect();
        let bytes = pairs.iter().map(|(_, raw)| raw.bytes.len() as u64).sum();
        let copy = copies.and_then(|(copies, digest)| Some((copies, digest, copies.of(digest, bytes)?)));
        let Some((copies, digest, copy)) = copy else {
            upload(device, &pairs, Cut::default(), None, follow)?;
            drop(pairs);
            return Ok(loaded);
        };
        let uploaded = upload(device, &pairs, Cut::default(), Some(&copy), follow);
        drop(copy);
        copies.note(digest, uploaded.is_ok());
        match uploaded {
            // A model is worth more than its copy.
            Err(CudaError::NoLocked { needed }) => {
                tracing::warn!(digest, needed, "no memory can be locked for a copy; the model is loaded without one");
                upload(device, &pairs, Cut::default(), None, follow)?;
            }
            uploaded => uploaded?,
        }
        drop(pairs);
        Ok(loaded)
    }

    fn matrices(&self) -> impl Iterator<Item = &DeviceMatrix> {
        let layers = self.layers.iter();
        let layers = layers.flat_map(|l| [&l.q, &l.k, &l.v, &l.o.w, &l.gate, &l.up, &l.down.w]);
        layers.chain(&self.embedding).chain(self.ends.iter().filter_map(|ends| ends.head.as_ref()))
    }

    /// What makes logits.
    ///
    /// # Panics
    /// If the card has neither a head nor the embedding.
    pub(super) fn head<'a>(&'a self, ends: &'a Ends) -> &'a DeviceMatrix {
        ends.head.as_ref().or(self.embedding.as_ref()).expect("a card with the end of a model has its head")
    }

    /// Whether other cards have some of it.
    pub(crate) fn is_split(&self) -> bool {
        self.next.is_some()
    }
}
