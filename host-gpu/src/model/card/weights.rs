//! The weights of a model on a card.

use crate::model::weights::{Layer, MatrixAt, Out, Weights};
use crate::ops::cuda::copies::Copies;
use crate::ops::cuda::matrix::DeviceMatrix;
use crate::ops::cuda::upload::{Cut, Follow, Raw, upload};
use crate::ops::cuda::{Buffer, CudaError, Device};
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

/// All tensors of a model on a card.
pub(crate) struct OnCard {
    /// Lives as long as it does, and is no other model's.
    pub(super) identity: Arc<()>,
    pub(super) embedding: DeviceMatrix,
    pub(super) layers: Vec<CardLayer>,
    pub(super) final_norm: Buffer<f32>,
    /// `None` where it is the embedding.
    pub(super) head: Option<DeviceMatrix>,
    pub(super) fine_head: bool,
    pub(super) rope_factors: Option<Vec<f32>>,
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
        let loaded = Self {
            identity: Arc::default(),
            embedding: matrix(&w.embedding)?,
            layers: w.layers.iter().map(layer).collect::<Result<_, _>>()?,
            final_norm: device.put(&w.final_norm)?,
            head: if w.head_is_embedding() { None } else { Some(matrix(&w.head)?) },
            fine_head: w.fine_head,
            rope_factors: w.rope_factors.clone(),
        };
        // Now, and not while the first to ask waits.
        loaded.matrices().try_for_each(|matrix| device.compile(&[matrix.module()]))?;
        // In the order of `matrices`, which has the embedding again where it is the head.
        let head = loaded.head.as_ref().map(|_| w.raw(&w.head));
        let raw = w.layers.iter().flat_map(matrices).map(|at| w.raw(at));
        let raw = raw.chain([w.raw(&w.embedding)]).chain(head);
        let pairs: Vec<(&DeviceMatrix, Raw<'_>)> = loaded.matrices().zip(raw).collect();
        let bytes = pairs.iter().map(|(_, raw)| raw.bytes.len() as u64).sum();
        let copy = copies.and_then(|(copies, digest)| Some((copies, digest, copies.of(digest, bytes)?)));
        let Some((copies, digest, copy)) = copy else {
            upload(device, &pairs, Cut::default(), None, follow)?;
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
        layers.flat_map(|l| [&l.q, &l.k, &l.v, &l.o.w, &l.gate, &l.up, &l.down.w]).chain([&self.embedding, self.head()])
    }

    pub(super) fn head(&self) -> &DeviceMatrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}
