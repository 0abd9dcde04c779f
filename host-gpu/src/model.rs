//! A model: what its file says, its weights, its tokenizer, and the handle a caller holds.
//!
//! [`Model`] is a lease: while one lives, the weights stay. What a model computes is in
//! `forward`; when it computes is the engine's business.

use crate::ask::{Ask, Conversation, Message, Prompt, Refusal, TokenId};
use crate::embedding::Embedding;
use crate::engine::{Engine, Farewell, Submission};
use crate::form::{Form, Forms, Guide};
use crate::format::FormatError;
use crate::format::quantize::Quantize;
use crate::kv::KvType;
use crate::measure;
use crate::ops::cpu::CodePath;
use crate::ops::cuda::copies::Copies;
use crate::ops::cuda::{CudaError, Device};
use crate::residency::{JoinError, Lease, Loading};
use crate::schedule::RESERVE_TOKENS;
use crate::terms::Terms;
use crate::tokens::Tokens;
use card::{OnCard, Split};
use config::Config;
use opened::Opened;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use template::Template;
use tokenizer::Tokenizer;
use weights::Weights;

pub mod architecture;
pub(crate) mod card;
pub mod checkpoint;
pub mod config;
pub(crate) mod encoder;
mod fallback;
pub(crate) mod forward;
mod opened;
mod score;
pub mod template;
pub mod tokenizer;
pub mod weights;

pub use config::{Memory, ModelInfo};
pub use score::Scores;

/// The chat template of the model at `path`, if its file has one.
///
/// # Errors
/// If it is no sound GGUF file or checkpoint.
pub fn chat_template(path: &Path) -> Result<Option<String>, FormatError> {
    Ok(Opened::open(path)?.template())
}

/// Where a model's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSource {
    /// What people call it.
    pub name: String,
    /// A GGUF file, any shard of one, or a folder with a checkpoint as Hugging Face has them: `config.json`,
    /// `tokenizer.json` and safetensors. What it leads to is never changed while a lease lives.
    pub path: PathBuf,
    /// What it is: two sources of one digest are one model. Whoever stored the file verified it.
    pub digest: String,
}

/// Reads what `path` says about itself; touches no weights.
///
/// # Errors
/// If it is no sound GGUF file or checkpoint.
pub fn inspect(path: &Path) -> Result<ModelInfo, FormatError> {
    Opened::open(path)?.info()
}

/// What an engine has for each of its models.
#[derive(Clone)]
pub(crate) struct Room {
    pub(crate) kv_type: KvType,
    /// Bytes of a KV page.
    pub(crate) page_bytes: usize,
    /// Tokens of the largest step, and how many of these give logits.
    pub(crate) step: (usize, usize),
    /// The card that is to have it.
    pub(crate) card: Option<Device>,
    /// Copies of what is on cards.
    pub(crate) copies: Option<Arc<Copies>>,
    /// Other cards that may have some of it, if it fits on none.
    pub(crate) split: Option<Split>,
}

/// About what a tokenizer takes for each entry of a vocabulary: its text, its place in tables, and merges.
const VOCABULARY_ENTRY: u64 = 96;

/// A model in memory.
pub(crate) struct Loaded {
    name: String,
    info: ModelInfo,
    pub(crate) key: u64,
    pub(crate) config: Config,
    pub(crate) weights: Weights,
    /// The weights on the card, if one computes.
    pub(crate) card: Option<OnCard>,
    pub(crate) tokenizer: Tokenizer,
    template_source: Option<String>,
    /// Compiled when first used: many callers bring raw prompts.
    template: OnceLock<Result<Template, Refusal>>,
    /// Made when an answer is first to have a form.
    forms: OnceLock<Result<Forms, Refusal>>,
    pub(crate) page_tokens: usize,
    /// Whether somebody has seen to [`Loaded::settle`].
    settled: AtomicBool,
    /// The last to go.
    pub(crate) farewell: Option<Farewell>,
}

impl Loaded {
    /// Loads the model that `source` names; `key` tells it from all others of this engine. Matrices of floats
    /// are quantised on as many threads as the machine has, if `quantize` says to what.
    pub(crate) fn load(
        source: &ModelSource,
        key: u64,
        room: &Room,
        quantize: Option<Quantize>,
        loading: &Loading<'_>,
    ) -> Result<Self, JoinError> {
        let name = source.name.clone();
        let format = |source| JoinError::Format { name: name.clone(), source };
        let opened = Opened::open(&source.path).map_err(format)?;
        let config = opened.config().map_err(format)?;
        let mut info = opened.info().map_err(format)?;
        let page_tokens = config.kv_shape().page_tokens(room.kv_type, room.page_bytes);
        if page_tokens == 0 {
            let (needed, page) = (config.kv_shape().token_bytes(room.kv_type) as u64, room.page_bytes as u64);
            return Err(JoinError::KvPage { name, needed, page });
        }
        let on_card = |source| JoinError::Card { name: name.clone(), source };
        let needed = match &room.card {
            None => config.memory().activations(step_of(&config, room.step)),
            Some(_) => card::step_bytes(&config, room.step),
        };
        if config.architecture.encoder && room.card.is_some() {
            let what = "models that embed; start an engine on the processor for them".into();
            return Err(on_card(CudaError::Shape { what }));
        }
        if room.card.is_some() {
            card::check(&config, room.kv_type, room.page_bytes).map_err(on_card)?;
        } else if let Some(available) = measure::available_memory().filter(|available| *available < needed) {
            return Err(JoinError::Activations { name, needed, available });
        }
        // Maps files; what it allocates are norms and biases.
        let mut weights = opened.weights(&config).map_err(format)?;
        let vocabulary = VOCABULARY_ENTRY * config.vocab as u64;
        let portions = match (loading.reserve(weights.bytes_as(quantize) + vocabulary + needed), &room.split) {
            (Err(error @ JoinError::NoRoom { retry_after: None, .. }), Some(split)) => {
                let what = (&weights, &config, quantize);
                Some((split, split.reserve(source, what, (room.step, vocabulary), loading)?.ok_or(error)?))
            }
            (reserved, _) => {
                reserved?;
                None
            }
        };
        let (ready, tokenizer) = std::thread::scope(|scope| {
            // The weights come from the disk while the vocabulary is built.
            let ready = scope.spawn(|| bring(&mut weights, &opened, (quantize, room.card.is_some()), loading));
            let tokenizer = opened.tokenizer();
            (ready.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), tokenizer)
        });
        ready.map_err(format)?;
        let tokenizer = tokenizer.map_err(format)?;
        if !loading.is_wanted() {
            return Err(JoinError::Stopped { name });
        }
        info.weight_bytes = weights.bytes();
        info.quantization = weights.main_type().into();
        let card = match &room.card {
            None => None,
            Some(device) => {
                let follow = |done, total| loading.at(done, total);
                let copies = room.copies.as_ref().map(|copies| (copies, source.digest.as_str()));
                let loaded = match portions {
                    None => OnCard::load(device, &weights, copies, &follow),
                    Some((split, portions)) => split.load(device, &weights, portions, &follow),
                };
                Some(loaded.map_err(on_card)?)
            }
        };
        let (template, forms) = (OnceLock::new(), OnceLock::new());
        let (template_source, settled) = (opened.template(), AtomicBool::new(false));
        Ok(Self {
            name,
            info,
            key,
            config,
            weights,
            card,
            tokenizer,
            template_source,
            template,
            forms,
            page_tokens,
            settled,
            farewell: None,
        })
    }

    /// Sees to it that weights are read fast from now on; for who has answered somebody and expects to go on.
    pub(crate) fn settle(&self) {
        if !self.settled.swap(true, Ordering::Relaxed) {
            self.weights.move_to_huge_pages();
        }
    }

    pub(crate) fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn template(&self) -> Result<&Template, Refusal> {
        let compile = || match &self.template_source {
            Some(source) => Template::new(source, &self.tokenizer),
            None => match fallback::for_vocabulary(|mark| self.tokenizer.find_special(mark)) {
                Some(source) => Template::new(source, &self.tokenizer),
                None => Err(Refusal::Invalid(format!("model {} has no chat template; give a raw prompt", self.name))),
            },
        };
        self.template.get_or_init(compile).as_ref().map_err(Clone::clone)
    }

    fn forms(&self) -> Result<&Forms, Refusal> {
        let make = || Forms::new(&self.tokenizer, self.config.vocab);
        self.forms.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    fn write(&self, conversation: Conversation) -> Result<Written, Refusal> {
        let pieces = self.template()?.pieces(conversation, self.tokenizer.special_texts())?;
        let tokens = self.tokenizer.encode_spans(&template::spans(&pieces.list));
        Ok(Written { tokens, begins_thought: pieces.begins_thought })
    }

    fn prompt_tokens(&self, prompt: Prompt) -> Result<Vec<TokenId>, Refusal> {
        match prompt {
            Prompt::Raw(text) => Ok(self.tokenizer.encode(&text, true)),
            Prompt::Chat(messages) => self.prompt_tokens(Prompt::Conversation(Box::new(messages.into()))),
            Prompt::Conversation(conversation) => Ok(self.write(*conversation)?.tokens),
            Prompt::Tokens(ids) => match ids.iter().find(|id| id.0 as usize >= self.config.vocab) {
                Some(TokenId(id)) => Err(Refusal::Invalid(format!(
                    "token {id} is not in the vocabulary of {}; tokenise with this model",
                    self.config.vocab
                ))),
                None => Ok(ids),
            },
        }
    }
}

/// The largest step of a model, in tokens and in tokens that give logits, where that of an engine is `step`: an encoder takes
/// whole texts.
pub(crate) fn step_of(c: &Config, step: (usize, usize)) -> (usize, usize) {
    if c.architecture.encoder { (step.0.max(c.context), 0) } else { step }
}

/// Brings weights into memory, as they are in the files or quantised.
fn bring(
    weights: &mut Weights,
    opened: &Opened,
    (to, for_card): (Option<Quantize>, bool),
    loading: &Loading<'_>,
) -> Result<(), FormatError> {
    let at = |done, total| loading.at(done, total);
    match to {
        Some(to) => weights.quantize(to, std::thread::available_parallelism().map_or(1, usize::from), at),
        // What goes to a card is read on its way.
        None if for_card => Ok(()),
        None => {
            opened.populate(at);
            Ok(())
        }
    }
}

/// A conversation as a model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The prompt.
    pub tokens: Vec<TokenId>,
    /// It ends where a thought begins: the answer begins within one.
    pub begins_thought: bool,
}

/// A lease on a resident model.
#[derive(Clone)]
pub struct Model {
    engine: Engine,
    name: Arc<str>,
    loaded: Lease<Loaded>,
    /// Whether prefixes are shared by all accounts.
    shared: bool,
}

/// The scope of those who share prefixes with all others.
const EVERYBODY: u64 = u64::MAX;

impl Model {
    pub(crate) fn new(engine: Engine, name: &str, loaded: Lease<Loaded>) -> Self {
        Self { engine, name: name.into(), loaded, shared: false }
    }

    /// The same, but for who shares prefixes: if `shared`, what is generated through this handle finds the KV of all others that are
    /// shared so, whatever their account, and they find its own. By the time it takes, and by the count of cached tokens, each then
    /// learns which prefixes others have sent.
    pub fn sharing_prefixes(self, shared: bool) -> Self {
        Self { shared, ..self }
    }

    /// The name under which it was joined.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its file says.
    pub fn info(&self) -> &ModelInfo {
        self.loaded.info()
    }

    /// The tokens that end an answer, each once or more.
    pub fn end_tokens(&self) -> &[TokenId] {
        self.loaded.tokenizer.ends()
    }

    /// Whether its weights are where they are read fastest: they begin to move there with its first token, if the engine
    /// is configured so.
    pub fn is_settled(&self) -> bool {
        self.loaded.weights.is_settled() || !self.engine.config().moves_weights()
    }

    /// Which instructions compute it.
    pub fn code_path(&self) -> CodePath {
        self.engine.code_path()
    }

    /// The tokens of `text`; `special` says whether special tokens in it are recognised.
    pub fn tokenize(&self, text: &str, special: bool) -> Vec<TokenId> {
        self.loaded.tokenizer.encode(text, special)
    }

    /// The text of `ids`, special tokens as the file has them. Bytes that are no text become U+FFFD.
    pub fn detokenize(&self, ids: &[TokenId]) -> String {
        self.loaded.tokenizer.decode(ids)
    }

    /// The prompt that the model's chat template makes of `messages`, for people to read.
    ///
    /// Generating from the messages is not the same as generating from this text: there, special
    /// tokens inside a message mean nothing.
    ///
    /// # Errors
    /// `Invalid` if there is no template or it refuses the messages.
    pub fn render(&self, messages: &[Message]) -> Result<String, Refusal> {
        self.loaded.template()?.render(&messages.to_vec().into())
    }

    /// Writes a conversation down as the model reads it; [`Prompt::Tokens`] takes that.
    ///
    /// # Errors
    /// As [`Model::render`].
    pub fn write(&self, conversation: Conversation) -> Result<Written, Refusal> {
        self.loaded.write(conversation)
    }

    /// The chat template that its file carries, if it does.
    pub fn template_source(&self) -> Option<&str> {
        self.loaded.template_source.as_deref()
    }

    /// Whether it has a chat template, of its own or one that its vocabulary tells.
    pub fn can_chat(&self) -> bool {
        self.loaded.template().is_ok()
    }

    /// How it writes what is not for people to read: its thoughts and its calls of tools.
    pub fn marks(&self) -> template::Marks {
        template::Marks::of(self.loaded.template_source.as_deref())
    }

    /// The bytes of one token; of a special one its text in the file.
    pub fn token_bytes(&self, id: TokenId) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.loaded.tokenizer.decode_to(id, &mut bytes);
        bytes
    }

    /// The tokens that `prompt` becomes.
    ///
    /// # Errors
    /// As [`Model::render`]; `Invalid` for tokens that are not in the vocabulary.
    pub fn prompt_tokens(&self, prompt: Prompt) -> Result<Vec<TokenId>, Refusal> {
        self.loaded.prompt_tokens(prompt)
    }

    /// Starts generating. Renders and tokenises on the calling thread, then queues the sequence.
    ///
    /// # Errors
    /// `Invalid` and `TooLong` are final; `Busy` says when to retry.
    pub fn generate(&self, ask: Ask) -> Result<Tokens, Refusal> {
        self.generate_on(ask, Terms::default())
    }

    /// The same on terms.
    ///
    /// # Errors
    /// Those of [`Model::generate`], and what the budget says.
    pub fn generate_on(&self, mut ask: Ask, terms: Terms) -> Result<Tokens, Refusal> {
        self.check(&ask)?;
        let prompt = std::mem::replace(&mut ask.prompt, Prompt::Tokens(Vec::new()));
        let (prompt, guide) = self.prepare(prompt, ask.form.take().as_ref())?;
        self.queue(prompt, guide, ask, terms)
    }

    /// Starts several answers to the same prompt, held to the same form: both are read once, and those of the asks do not
    /// count. Where one is refused, those before it have been started.
    pub fn generate_all(
        &self,
        prompt: Prompt,
        form: Option<&Form>,
        asks: Vec<(Ask, Terms)>,
    ) -> (Vec<Tokens>, Result<(), Refusal>) {
        let mut all = Vec::with_capacity(asks.len());
        let started = asks.iter().try_for_each(|(ask, _)| self.check(ask)).and_then(|()| {
            let (prompt, guide) = self.prepare(prompt, form)?;
            for (ask, terms) in asks {
                all.push(self.queue(prompt.clone(), guide.as_ref().map(Guide::fresh), ask, terms)?);
            }
            Ok(())
        });
        (all, started)
    }

    fn check(&self, ask: &Ask) -> Result<(), Refusal> {
        if !self.generates() {
            return Err(Refusal::Invalid(format!("model {} gives embeddings and generates nothing", self.name)));
        }
        ask.check(self.loaded.config.vocab)?;
        if ask.max_tokens == Some(0) {
            return Err(Refusal::Invalid("max_tokens is 0; give 1 or more".into()));
        }
        if ask.stop.iter().any(String::is_empty) {
            return Err(Refusal::Invalid("a stop text is empty; leave it out".into()));
        }
        Ok(())
    }

    /// The tokens of a prompt that fits, and a form that can be.
    fn prepare(&self, prompt: Prompt, form: Option<&Form>) -> Result<(Vec<TokenId>, Option<Guide>), Refusal> {
        let guide = form.map(|form| self.loaded.forms()?.compile(form)).transpose()?;
        let prompt = self.loaded.prompt_tokens(prompt)?;
        if prompt.is_empty() {
            return Err(Refusal::Invalid("the prompt is empty; give at least one token".into()));
        }
        let most = self.most_tokens();
        if prompt.len() >= most {
            let needed = u32::try_from(prompt.len() + 1).unwrap_or(u32::MAX);
            return Err(Refusal::TooLong { needed, available: most as u32 });
        }
        Ok((prompt, guide))
    }

    /// Most tokens of a sequence.
    fn most_tokens(&self) -> usize {
        (self.engine.total_pages() * self.loaded.page_tokens).min(self.loaded.config.context)
    }

    fn queue(&self, prompt: Vec<TokenId>, guide: Option<Guide>, ask: Ask, mut terms: Terms) -> Result<Tokens, Refusal> {
        if let Some(budget) = &mut terms.budget {
            let more = ask.max_tokens.map_or(usize::MAX, |max| max as usize).min(RESERVE_TOKENS);
            let pages = self.most_tokens().min(prompt.len() + more).div_ceil(self.loaded.page_tokens) as u64;
            budget.open(prompt.len() as u32, pages * self.engine.config().kv_page_bytes)?;
        }
        let scope = if self.shared { EVERYBODY } else { ask.account };
        self.engine.submit(Submission { loaded: self.loaded.clone(), prompt, scope, ask, terms, guide, embeds: false })
    }

    /// The tokens of a text that is to be embedded, with those that go around it; special tokens in it mean nothing. If `cut`,
    /// what the context has no room for is left away.
    pub fn embedding_tokens(&self, text: &str, cut: bool) -> Vec<TokenId> {
        let mut ids = self.loaded.tokenizer.encode(text, false);
        if cut {
            self.loaded.tokenizer.cut(&mut ids, self.most_tokens());
        }
        ids
    }

    /// Starts computing what the text of `tokens` means: see [`Embedding`]. One longer than the context is refused.
    ///
    /// # Errors
    /// As [`Model::generate_on`].
    pub fn embed_on(&self, tokens: Vec<TokenId>, account: u64, mut terms: Terms) -> Result<Embedding, Refusal> {
        if self.loaded.card.as_ref().is_some_and(OnCard::is_split) {
            let why = "a model on several cards gives no embeddings; use one that fits on one".into();
            return Err(Refusal::Invalid(why));
        }
        let prompt = self.loaded.prompt_tokens(Prompt::Tokens(tokens))?;
        if prompt.is_empty() {
            return Err(Refusal::Invalid("the text is empty; give at least one token".into()));
        }
        let most = self.most_tokens();
        if prompt.len() > most {
            let needed = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
            return Err(Refusal::TooLong { needed, available: most as u32 });
        }
        if let Some(budget) = &mut terms.budget {
            let pages = prompt.len().div_ceil(self.loaded.page_tokens) as u64;
            budget.open(prompt.len() as u32, pages * self.engine.config().kv_page_bytes)?;
        }
        let ask = Ask { max_tokens: Some(0), account, ..Ask::new(Prompt::Tokens(Vec::new())) };
        let scope = if self.shared { EVERYBODY } else { account };
        let (loaded, guide) = (self.loaded.clone(), None);
        let submission = Submission { loaded, prompt, scope, ask, terms, guide, embeds: true };
        self.engine.submit(submission).map(Embedding::new)
    }

    /// Whether it generates; if not, it only embeds.
    pub fn generates(&self) -> bool {
        !self.loaded.config.architecture.encoder
    }

    /// The log-probabilities of what follows each of `tokens`, for evaluation and tests.
    ///
    /// Runs the code that generates, on the calling thread and threads of its own, beside the engine's batch
    /// and with KV of its own; `chunk` tokens at a time.
    ///
    /// # Errors
    /// `TooLong` beyond the model's context, `Invalid` for an empty list or unknown tokens.
    pub fn score(&self, tokens: &[TokenId], chunk: usize) -> Result<Scores, Refusal> {
        if !self.generates() {
            return Err(Refusal::Invalid(format!("model {} gives embeddings and no probabilities", self.name)));
        }
        if let (Some(device), Some(weights)) = (self.engine.card(), &self.loaded.card) {
            return score::score_on_card(&self.loaded, (device, weights), self.engine.kv_type(), tokens, chunk);
        }
        score::score(&self.loaded, self.engine.cpu(), self.engine.kv_type(), self.engine.threads(), tokens, chunk)
    }
}
