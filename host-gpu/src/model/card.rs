//! A model on an NVIDIA card: its weights, and the forward pass over a batch.
//!
//! The equations are those of `forward`, in the same order; operations are fused where a card gains from it: what joins the residual
//! stream is normed for the next product in the same launch. All that a step needs to know goes to the card in one copy, and
//! logits come back in one.
//!
//! A step of tokens of which each is its sequence's next one is launched as one graph, from the third of its shape on: the first
//! has kernels compiled and memory grown, the second is put together.

use super::config::Config;
use super::forward::{Part, flatten};
use crate::kv::{KvType, PageId};
use crate::ops::cuda::draw::Draw;
use crate::ops::cuda::matrix::{DeviceMatrix, Input};
use crate::ops::cuda::pages::{PageLayout, Scoring, Together, Tokens, Turn, part_len, splits};
use crate::ops::cuda::rows::{Forms, Joins};
use crate::ops::cuda::{Buffer, CudaError, Device, Mark, Pinned, View};
use bytemuck::Pod;
use std::ops::Range;
use std::sync::Arc;

mod graphs;
mod plan;
mod split;
mod weights;

use graphs::{Graphs, Next, Shape};
use plan::Plan;
pub(crate) use split::{OtherCard, Split};
use weights::CardOut;
pub(crate) use weights::OnCard;

/// Whether the kernels have what a model needs.
///
/// # Errors
/// `Shape`, with what they have.
pub(crate) fn check(c: &Config, kv_type: KvType, page_bytes: usize) -> Result<(), CudaError> {
    layout(c, kv_type, page_bytes).check()
}

/// Whether the kernels have such pages for any model.
///
/// # Errors
/// `Shape`, with what they have.
pub(crate) fn check_pages(kind: KvType, page_bytes: usize) -> Result<(), CudaError> {
    PageLayout { kind, layers: 0, kv_heads: 1, head_dim: 64, page_tokens: 1, page_bytes }.check()
}

/// Scratch of attention is reserved for a batch of sequences as long as this. What goes beyond comes from what is left to the driver.
const SCRATCH_CONTEXT: usize = 8192;

/// Bytes of the buffers for a step of so many tokens, of which some give logits.
pub(crate) fn step_bytes(c: &Config, (tokens, logits): (usize, usize)) -> u64 {
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let widest = c.width.max(q).max(c.ff);
    // An input is there as floats, bytes with their scales, and halves.
    let input = tokens.max(2 * logits) * widest * (4 + 1 + 1 + 2);
    let floats = tokens * (2 * c.width + q + 2 * kv + 2 * c.ff) + 2 * logits * c.vocab + logits * (1 + c.width);
    // Attention's scratch grows with the longest sequence; few are as long as a model allows.
    let longest = c.context.min(SCRATCH_CONTEXT);
    let part = part_len(logits, c.heads, splits(longest), c.head_dim).next_power_of_two();
    (input + 4 * (floats + part)) as u64
}

/// Bytes of what a step may give.
fn got_bytes(c: &Config, logits: usize) -> usize {
    logits * c.vocab * size_of::<f32>()
}

fn layout(c: &Config, kind: KvType, page_bytes: usize) -> PageLayout {
    let Config { layers, kv_heads, head_dim, .. } = *c;
    let page_tokens = c.kv_shape().page_tokens(kind, page_bytes);
    PageLayout { kind, layers, kv_heads, head_dim, page_tokens, page_bytes }
}

/// The pages of a card.
pub(crate) struct CardArena {
    memory: Buffer<u8>,
    page_bytes: usize,
    /// Whose data a page has, if it was ever written.
    owners: Vec<Option<u64>>,
}

impl CardArena {
    /// # Errors
    /// `NoMemory`
    pub(crate) fn new(device: &Device, pages: usize, page_bytes: usize) -> Result<Self, CudaError> {
        Ok(Self { memory: device.buffer(pages * page_bytes)?, page_bytes, owners: vec![None; pages] })
    }

    /// Makes `page` `account`'s, cleared if it was another's. Call before its first write.
    fn claim(&mut self, device: &Device, page: PageId, account: u64) -> Result<(), CudaError> {
        let owner = &mut self.owners[page as usize];
        let strange = owner.is_some_and(|owner| owner != account);
        *owner = Some(account);
        if strange {
            device.clear(self.memory.part(page as usize * self.page_bytes..(page as usize + 1) * self.page_bytes))?;
        }
        Ok(())
    }
}

/// The buffers of a step, kept for the next one; they grow to what the largest model needs.
struct Buffers {
    /// (tokens, width): the residual stream
    x: Buffer<f32>,
    /// (tokens, width): what joins it
    y: Buffer<f32>,
    /// (tokens, (heads + 2 * kv_heads) * head_dim)
    qkv: Buffer<f32>,
    /// (tokens, 2 * ff)
    gates: Buffer<f32>,
    /// (tokens, the widest)
    input: Input,
    /// What comes into the next product, of so many tokens and columns.
    input_size: (usize, usize),
    /// (tokens that need logits, and what is left of them; vocab)
    logits: Buffer<f32>,
    /// What a step must know.
    words: Buffer<u32>,
    /// Scratch of attention.
    part: Buffer<f32>,
    /// (tokens that need logits): what was drawn of each
    drawn: Buffer<u32>,
    /// (tokens that give embeddings, width)
    embeddings: Buffer<f32>,
}

/// What is wanted of a step's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wanted {
    /// All of them.
    Logits,
    /// The token that each part's [`Draw`] chooses: nothing else is copied from the card, and the next step may begin before anybody knows it.
    Drawn,
}

/// What a step gave, for each token that needs logits, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Given<'a> {
    /// (tokens, vocab)
    Logits(&'a [f32]),
    /// (tokens)
    Drawn(&'a [u32]),
}

/// A step that was begun, to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct Begun(usize);

/// What is between a step and the host.
struct Slot {
    /// What the card is to know, in memory that it copies from at full speed.
    words: Pinned,
    /// What it gave.
    got: Pinned,
    /// What that is, and how many words.
    wanted: Wanted,
    given: usize,
    /// The embeddings that it gave, and how many numbers.
    embeddings: Pinned,
    embedded: usize,
    /// The step on the next card, if the model goes on there.
    beyond: Option<Begun>,
    end: Mark,
}

impl Slot {
    fn new(device: &Device) -> Result<Self, CudaError> {
        let (words, got, embeddings) = (device.pinned(0)?, device.pinned(0)?, device.pinned(0)?);
        let (wanted, given, embedded, beyond, end) = (Wanted::Logits, 0, 0, None, device.mark()?);
        Ok(Self { words, got, wanted, given, embeddings, embedded, beyond, end })
    }
}

/// All that a step needs but weights: a card, its pages and buffers.
///
/// A second step may begin before the first has ended: the card does them in order.
pub(crate) struct OnCardState {
    device: Device,
    arena: CardArena,
    kv_type: KvType,
    buffers: Buffers,
    /// The words of the step, as they are put together.
    words: Vec<u32>,
    turns: Vec<[f32; 2]>,
    slots: [Slot; 2],
    /// Whose turn it is.
    next: usize,
    /// Whose step was begun last, and how many tokens it draws.
    drawn: Option<(Arc<()>, u32)>,
    graphs: Graphs,
}

/// Makes `buffer` at least so long. What was in it is then gone, and so are the graphs, which name it.
fn grow<T: Pod>(device: &Device, buffer: &mut Buffer<T>, len: usize, graphs: &mut Graphs) -> Result<(), CudaError> {
    if buffer.len() < len {
        graphs.clear();
        *buffer = device.buffer(0)?;
        *buffer = device.buffer(len)?;
    }
    Ok(())
}

impl OnCardState {
    /// # Errors
    /// `NoMemory`
    pub(crate) fn new(device: &Device, arena: CardArena, kv_type: KvType) -> Result<Self, CudaError> {
        device.compile(&PageLayout::modules(kv_type))?;
        let buffers = Buffers {
            x: device.buffer(0)?,
            y: device.buffer(0)?,
            qkv: device.buffer(0)?,
            gates: device.buffer(0)?,
            input: Input::new(device, 1, 32)?,
            input_size: (1, 32),
            logits: device.buffer(0)?,
            words: device.buffer(0)?,
            part: device.buffer(0)?,
            drawn: device.buffer(0)?,
            embeddings: device.buffer(0)?,
        };
        let (words, turns, slots) = (Vec::new(), Vec::new(), [Slot::new(device)?, Slot::new(device)?]);
        let graphs = Graphs::new(device)?;
        let device = device.clone();
        Ok(Self { device, arena, kv_type, buffers, words, turns, slots, next: 0, drawn: None, graphs })
    }

    /// Whether [`Self::reserve`] has nothing to do, so that what a step under way gives stays where it is.
    pub(crate) fn has_room(&self, c: &Config, (_, logits): (usize, usize)) -> bool {
        self.buffers.drawn.len() >= logits && self.slots.iter().all(|slot| slot.got.len() >= got_bytes(c, logits))
    }

    /// Room for steps of so many tokens, of which some give logits: smaller ones then allocate nothing but scratch of attention,
    /// which grows with the longest sequence.
    ///
    /// # Errors
    /// `NoMemory`
    pub(crate) fn reserve(&mut self, c: &Config, (tokens, logits): (usize, usize)) -> Result<(), CudaError> {
        let (device, b, graphs) = (&self.device, &mut self.buffers, &mut self.graphs);
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        grow(device, &mut b.x, tokens * c.width, graphs)?;
        grow(device, &mut b.y, tokens * c.width, graphs)?;
        grow(device, &mut b.qkv, tokens * (q + 2 * kv), graphs)?;
        grow(device, &mut b.gates, tokens * 2 * c.ff, graphs)?;
        grow(device, &mut b.logits, 2 * logits * c.vocab, graphs)?;
        grow(device, &mut b.drawn, logits, graphs)?;
        grow(device, &mut b.embeddings, logits * c.width, graphs)?;
        let bytes = got_bytes(c, logits);
        for slot in &mut self.slots {
            if slot.got.len() < bytes {
                slot.got = device.pinned(bytes)?;
            }
        }
        let wanted = (tokens.max(2 * logits), c.width.max(q).max(c.ff));
        let size = (b.input_size.0.max(wanted.0), b.input_size.1.max(wanted.1));
        if size != b.input_size {
            graphs.clear();
            b.input = Input::new(device, 1, 32)?;
            b.input_size = (1, 32);
            b.input = Input::new(device, size.0, size.1)?;
            b.input_size = size;
        }
        Ok(())
    }

    /// Begins to process `parts`, writing their keys and values to pages; what else there is to do can be done until [`Self::end`], which
    /// gives what is wanted of the logits asked for, in the order of the parts. One other step, at most, may be under way, and
    /// what that draws may be the last token of some parts.
    ///
    /// # Errors
    /// `Shape` for a model that the kernels do not have; what the driver says, after which the card is lost.
    pub(crate) fn begin(
        &mut self,
        c: &Config,
        m: &OnCard,
        parts: &[Part<'_>],
        of_logits: Wanted,
    ) -> Result<Begun, CudaError> {
        self.begin_with(c, m, parts, (of_logits, None))
    }

    /// The same on a card that goes on with the residual stream of another: (tokens, width).
    fn begin_with(
        &mut self,
        c: &Config,
        m: &OnCard,
        parts: &[Part<'_>],
        (of_logits, stream): (Wanted, Option<&[f32]>),
    ) -> Result<Begun, CudaError> {
        let slots = flatten(parts);
        let (n, wanted) = (slots.len(), parts.iter().map(|part| part.logits).sum::<usize>());
        self.reserve(c, (n, wanted))?;
        let layout = layout(c, self.kv_type, self.arena.page_bytes);
        layout.check()?;
        let plan = self.plan(c, m, &layout, parts, &slots)?;
        let part = part_len(plan.rows.len(), c.heads, plan.splits, c.head_dim);
        if part > self.buffers.part.len() {
            grow(&self.device, &mut self.buffers.part, part.next_power_of_two(), &mut self.graphs)?;
        }
        if let Some(stream) = stream {
            self.device.write(self.buffers.x.part(0..n * c.width), stream)?;
        }
        let follows = parts.iter().any(|part| part.follows.is_some());
        let embedded = plan.embeds.len() * c.width;
        if embedded > self.buffers.embeddings.len() {
            return Err(CudaError::Shape { what: format!("{} embeddings in a step", plan.embeds.len()) });
        }
        let work = Work { n, wanted, of_logits, follows, layout, plan };
        let shape = Shape { tokens: n, splits: work.plan.splits, wanted: of_logits, follows };
        // What differs between steps of one shape is in the words, and these stand where they stood.
        let next =
            if work.plan.rows.len() == n && wanted == n { self.graphs.next(&m.identity, shape) } else { Next::Launch };
        if next == Next::Capture {
            let graph = self.graphs.recorder().capture(|| self.launch(self.graphs.recorder(), c, m, &work));
            self.graphs.put(&m.identity, shape, graph);
        }
        #[expect(unsafe_code, reason = "what a graph names is known here alone")]
        // SAFETY: it names the weights of this model, and buffers at whose change graphs go.
        let replayed = next != Next::Launch && unsafe { self.graphs.replay(&self.device, &m.identity, shape)? };
        if !replayed {
            self.launch(&self.device, c, m, &work)?;
        }
        self.drawn = (of_logits == Wanted::Drawn).then(|| (m.identity.clone(), wanted as u32));
        let begun = Begun(self.next);
        self.next = 1 - self.next;
        let (b, slot) = (&self.buffers, &mut self.slots[begun.0]);
        slot.beyond = None;
        if let Some(next) = &m.next {
            slot.beyond = Some(next.begin(c, parts, of_logits, &self.device.get(b.x.part(0..n * c.width))?)?);
            return Ok(begun);
        }
        let (from, given) = match of_logits {
            Wanted::Drawn => (b.drawn.view(), wanted),
            Wanted::Logits => (b.logits.view().cast(), wanted * c.vocab),
        };
        (slot.wanted, slot.given, slot.embedded) = (of_logits, given, embedded);
        let bytes = embedded * size_of::<f32>();
        if slot.embeddings.len() < bytes {
            slot.embeddings = self.device.pinned(bytes.next_power_of_two())?;
        }
        #[expect(unsafe_code, reason = "who looks at it must wait")]
        // SAFETY: it is looked at after `end`, which waits; all live as long as this does, and memory is given back after the
        // work that uses it.
        unsafe {
            if given > 0 {
                self.device.fetch(from.part(0..given), &mut slot.got)?;
            }
            if embedded > 0 {
                self.device.fetch(b.embeddings.part(0..embedded), &mut slot.embeddings)?;
            }
        }
        slot.end.set(&self.device)?;
        Ok(begun)
    }

    /// Waits for a step of this model; gives what was wanted of it.
    ///
    /// # Errors
    /// What went wrong on the card, which is lost then.
    pub(crate) fn end(&mut self, m: &OnCard, step: Begun) -> Result<Given<'_>, CudaError> {
        let slot = &mut self.slots[step.0];
        match (&m.next, slot.beyond.take()) {
            (Some(next), Some(beyond)) => (slot.wanted, slot.given) = next.end(beyond, slot.got.bytes_mut()?)?,
            _ => self.device.wait_for(&slot.end)?,
        }
        let got = slot.got.bytes();
        Ok(match slot.wanted {
            Wanted::Logits => Given::Logits(&bytemuck::cast_slice(got)[..slot.given]),
            Wanted::Drawn => Given::Drawn(&bytemuck::cast_slice(got)[..slot.given]),
        })
    }

    /// The embeddings that a step gave which has ended: (parts that embed, width), in their order, of no particular length.
    pub(crate) fn embeddings(&self, step: Begun) -> &[f32] {
        let slot = &self.slots[step.0];
        &bytemuck::cast_slice(slot.embeddings.bytes())[..slot.embedded]
    }

    /// How many steps were launched as a graph.
    pub(crate) fn graph_steps(&self) -> u64 {
        self.graphs.steps()
    }

    /// Launches a step on the stream of `device`, up to what is wanted of it.
    fn launch(&self, device: &Device, c: &Config, m: &OnCard, work: &Work) -> Result<(), CudaError> {
        let Work { n, wanted, of_logits, follows, ref layout, ref plan } = *work;
        let b = &self.buffers;
        let words = |range: &Range<usize>| b.words.part(range.clone());
        let tokens = Tokens {
            arena: self.arena.memory.view(),
            positions: words(&plan.positions),
            table_at: words(&plan.table_at),
            tables: words(&plan.tables),
        };
        let q_width = c.heads * c.head_dim;
        let forms = |weights: &[&DeviceMatrix]| Forms {
            floats: weights.iter().any(|w| !w.takes_bytes()),
            bytes: weights.iter().any(|w| w.takes_bytes()),
        };
        let (x, y, qkv) = (b.x.part(0..n * c.width), b.y.part(0..n * c.width), b.qkv.view());

        // x = embedding[token], scaled; or what the card before has given
        if let Some(embedding) = &m.embedding {
            if follows {
                #[expect(unsafe_code, reason = "rows are numbers")]
                // SAFETY: they were checked when the words were put together.
                unsafe {
                    device.follow(words(&plan.ids), words(&plan.from), b.drawn.view())?;
                }
            }
            device.embed(embedding, words(&plan.ids), c.embedding_scale, x)?;
        }
        let mut last: Option<&CardOut> = None;
        for (number, layer) in (m.first..).zip(&m.layers) {
            // x += what the layer before gave;  q, k, v = W_q h, W_k h, W_v h  where  h = norm(x)
            let weights = [&layer.q, &layer.k, &layer.v];
            let to = (&b.input, forms(&weights));
            device.norm(x, last.map(|out| joins(y, out)), &layer.attn_norm, c.norm_eps, None, n, to)?;
            device.product(&weights, &b.input, n, qkv)?;

            // q, k are normed and turn with their position; k, v go to the pages
            let window = c.window_of(number);
            let turns = if window.is_some() && c.local_rope.is_some() { &plan.local_turns } else { &plan.turns };
            let how = Turn {
                bias: layer.qkv_bias.as_ref(),
                norms: layer.head_norms.as_ref().map(|[q, k]| [q, k]),
                turns: words(turns).cast(),
                pairs: c.rope_dims / 2,
                kind: c.architecture.pairs,
                eps: c.norm_eps,
            };
            device.turn(layout, number, &tokens, c.heads, qkv, &how)?;

            // y = W_o attention(q, k, v)
            let scoring = Scoring { heads: c.heads, scale: c.score_scale, cap: c.score_cap, window };
            let attended = b.input.floats.view();
            if !plan.rows.is_empty() {
                let (rows, part) = (words(&plan.rows), b.part.view());
                device.decode(layout, number, &tokens, rows, (qkv, &scoring), plan.splits, part, attended)?;
            }
            if !plan.first.is_empty() {
                let tiles = Together { first: words(&plan.first), count: words(&plan.count) };
                device.prefill(layout, number, &tokens, &tiles, (qkv, &scoring), attended)?;
            }
            if layer.o.w.takes_bytes() {
                device.quantise(attended, q_width, n, false, &b.input)?;
            }
            device.product(&[&layer.o.w], &b.input, n, y)?;

            // x += y;  y = W_down (act(W_gate h) * W_up h)  where  h = norm(x)
            let weights = [&layer.gate, &layer.up];
            let to = (&b.input, forms(&weights));
            device.norm(x, Some(joins(y, &layer.o)), &layer.ff_norm, c.norm_eps, None, n, to)?;
            device.product(&weights, &b.input, n, b.gates.view())?;
            let to = (&b.input, forms(&[&layer.down.w]));
            device.gate(b.gates.view(), c.ff, n, c.architecture.gate, to)?;
            device.product(&[&layer.down.w], &b.input, n, y)?;
            last = Some(&layer.down);
        }
        let Some(ends) = &m.ends else {
            // x += y, for the card that goes on; what is normed is nobody's
            let floats = (&b.input, Forms { floats: true, bytes: false });
            let norm = &m.layers[m.layers.len() - 1].attn_norm;
            return device.norm(x, last.map(|out| joins(y, out)), norm, c.norm_eps, None, n, floats);
        };
        // embedding = norm(x + y), for the tokens that give one
        let embeds = plan.embeds.len();
        if embeds > 0 {
            let floats = (&b.input, Forms { floats: true, bytes: false });
            let pick = Some(words(&plan.embeds));
            device.norm(x, last.map(|out| joins(y, out)), &ends.norm, c.norm_eps, pick, embeds, floats)?;
            let count = embeds * c.width;
            device.copy(b.input.floats.part(0..count), b.embeddings.part(0..count))?;
        }
        if wanted == 0 {
            return Ok(());
        }
        // logits = W_head norm(x + y), for the tokens that need them
        let head = m.head(ends);
        let fine = m.fine_head && head.takes_bytes();
        let to = (&b.input, if fine { Forms { floats: true, bytes: false } } else { forms(&[head]) });
        let pick = Some(words(&plan.pick));
        device.norm(x, last.map(|out| joins(y, out)), &ends.norm, c.norm_eps, pick, wanted, to)?;
        if fine {
            device.quantise(b.input.floats.view(), c.width, wanted, true, &b.input)?;
        }
        let all = if fine { 2 * wanted } else { wanted };
        device.product(&[head], &b.input, all, b.logits.view())?;
        let (whole, rest) = (0..wanted * c.vocab, wanted * c.vocab..2 * wanted * c.vocab);
        let logits = b.logits.part(whole);
        if fine || c.logit_cap.is_some() {
            device.finish_logits(logits, fine.then(|| b.logits.part(rest)), c.logit_cap)?;
        }
        if of_logits == Wanted::Drawn {
            let draws: View<'_, Draw> = words(&plan.draws).cast();
            device.draw((logits, c.vocab), draws, b.drawn.part(0..wanted))?;
        }
        Ok(())
    }
}

/// A step that is about to be launched.
struct Work {
    /// Its tokens.
    n: usize,
    /// How many of them give logits.
    wanted: usize,
    of_logits: Wanted,
    /// Whether the step before draws some of its tokens.
    follows: bool,
    layout: PageLayout,
    plan: Plan,
}

fn joins<'a>(y: View<'a, f32>, out: &'a CardOut) -> Joins<'a> {
    Joins { y, bias: out.bias.as_ref(), norm: out.norm.as_ref() }
}
