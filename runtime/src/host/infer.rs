//! `hob:infer/models`: generation on resident models, as a stream that can be awaited and dropped.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use hob_gpu::{Ask, Event, Finish, Form, Message, Model, Penalties, Prompt, Refusal, Role, Sampling, Terms, Tokens};
use wasmtime::Result;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::{DynPollable, Pollable, subscribe};

use super::embed::{self, Text};
use super::{HasModels, MAX_CALL_BYTES, ModelView, Models, State, model_view};
use crate::budget::{Allowance, Purse};
use crate::models::JoinRefusal;
use crate::names::ModelName;
use crate::request::Invocation;

mod bindings {
    wasmtime::component::bindgen!({
        path: ["../wit/wasi-io", "../wit/hob-infer"],
        world: "hob:infer/guest",
        with: {
            "wasi:io": wasmtime_wasi_io::bindings::wasi::io,
            "hob:infer/models.model": super::Joined,
            "hob:infer/models.token-stream": super::TokenStream,
        },
        imports: {
            "hob:infer/models.[static]model.open": async | trappable,
            "hob:infer/models.[method]model.tokenize": async | trappable,
            "hob:infer/models.[method]model.embed": async | trappable,
            "hob:infer/models.[method]model.generate": async | trappable,
            default: trappable,
        },
    });
}
use bindings::hob::infer::models as wit;

/// Most stop strings in one request.
const MAX_STOPS: usize = 16;

/// A joined model: the guest's right to use it.
#[derive(Clone)]
pub struct Joined {
    pub(super) model: Model,
    pub(super) name: ModelName,
}

impl Joined {
    /// For who is no guest.
    pub(crate) fn new(model: Model, name: ModelName) -> Self {
        Self { model, name }
    }
}

/// A running generation. Dropping it cancels the sequence, and notes what it has used by then.
pub struct TokenStream {
    pub(crate) tokens: Tokens,
    /// Looked at by `ready`, not yet taken by `next`.
    peeked: Option<Event>,
    invocation: Arc<Invocation>,
}

impl TokenStream {
    pub(super) fn new(tokens: Tokens, invocation: Arc<Invocation>) -> Self {
        Self { tokens, peeked: None, invocation }
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        self.invocation.over(&self.tokens);
    }
}

#[async_trait]
impl Pollable for TokenStream {
    async fn ready(&mut self) {
        if self.peeked.is_none() {
            self.peeked = Some(self.tokens.next().await);
        }
    }
}

/// Links `hob:infer`.
pub fn link(linker: &mut Linker<State>) -> Result<()> {
    wit::add_to_linker::<_, HasModels>(linker, model_view)
}

impl Models {
    /// Joins a model that the function was granted, and notes how long it took.
    pub(super) async fn join(&self, name: &str, invocation: &Invocation) -> Result<Joined, JoinRefusal> {
        // Guests written for other wasi-nn hosts call the model they were started with `default`.
        let found = match name {
            "default" => self.names.first(),
            name => self.names.iter().find(|granted| granted.as_str() == name),
        };
        let Some(name) = found else { return Err(self.refuse(name)) };
        let started = std::time::Instant::now();
        let model = self.library.join(name).await?;
        invocation.mark(|marks| marks.join += started.elapsed());
        Ok(Joined { model, name: name.clone() })
    }

    fn refuse(&self, name: &str) -> JoinRefusal {
        let name: String = name.chars().take(140).collect();
        match name.parse::<ModelName>() {
            Ok(known) if self.library.has(&known) => JoinRefusal::NotGranted(name),
            _ => JoinRefusal::NotFound(name),
        }
    }
}

/// Text longer than this is tokenized on a thread of its own: a request's thread serves others meanwhile, and the
/// longest text that a guest can send takes seconds.
const INLINE_BYTES: usize = 16 << 10;

/// Does work that reads `bytes` of text, where it holds up nobody.
pub(crate) async fn beside<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    if bytes <= INLINE_BYTES {
        return Ok(work());
    }
    Ok(tokio::task::spawn_blocking(work).await?)
}

/// Starts a generation on behalf of an invocation.
pub(crate) async fn start(
    joined: &Joined,
    mut ask: Ask,
    invocation: &Arc<Invocation>,
    allowance: Option<&Arc<Allowance>>,
) -> Result<Result<Tokens, Refusal>> {
    ask.account = invocation.account;
    let terms = terms(joined, invocation, allowance);
    let bytes = bytes_to_read(&ask.prompt, ask.form.as_ref());
    let model = joined.model.clone();
    beside(bytes, move || model.generate_on(ask, terms)).await
}

/// The same for several answers to one prompt, held to one form. What was started before one is refused is on the
/// invocation's account all the same.
pub(crate) async fn start_all(
    joined: &Joined,
    prompt: Prompt,
    form: Option<Form>,
    asks: Vec<Ask>,
    invocation: &Arc<Invocation>,
    allowance: &Arc<Allowance>,
) -> Result<Result<Vec<TokenStream>, Refusal>> {
    let account = invocation.account;
    let with_terms = |ask| (Ask { account, ..ask }, terms(joined, invocation, Some(allowance)));
    let asks: Vec<_> = asks.into_iter().map(with_terms).collect();
    let bytes = bytes_to_read(&prompt, form.as_ref());
    let (model, invocation) = (joined.model.clone(), invocation.clone());
    beside(bytes, move || {
        let (all, started) = model.generate_all(prompt, form.as_ref(), asks);
        let all = all.into_iter().map(|tokens| TokenStream::new(tokens, invocation.clone())).collect();
        started.map(|()| all)
    })
    .await
}

/// On what terms a sequence of an invocation is computed.
pub(super) fn terms(joined: &Joined, invocation: &Arc<Invocation>, allowance: Option<&Arc<Allowance>>) -> Terms {
    let bill = invocation.bill(&joined.name);
    let Some(allowance) = allowance else { return Terms { bill, ..Terms::default() } };
    let asker = invocation.clone();
    let purse = Purse::new(allowance.clone(), invocation.taken.clone(), move |why| asker.print("host", why));
    allowance.terms(bill, purse, invocation.meter.deadline())
}

fn bytes_to_read(prompt: &Prompt, form: Option<&Form>) -> usize {
    match prompt {
        // A form is compiled first: that takes a while, however short the prompt.
        _ if form.is_some() => usize::MAX,
        Prompt::Chat(messages) => messages.iter().map(|message| message.content.len()).sum(),
        Prompt::Conversation(conversation) => conversation.bytes(),
        Prompt::Raw(text) => text.len(),
        Prompt::Tokens(_) => 0,
    }
}

impl wit::Host for ModelView<'_> {}

impl wit::HostModel for ModelView<'_> {
    async fn open(&mut self, name: String) -> Result<Result<Resource<Joined>, wit::Error>> {
        match self.models.join(&name, self.invocation).await {
            Ok(joined) => Ok(Ok(self.table.push(joined)?)),
            Err(refusal) => Ok(Err(refusal.into())),
        }
    }

    fn info(&mut self, model: Resource<Joined>) -> Result<wit::Info> {
        let joined = self.table.get(&model)?;
        let info = joined.model.info();
        Ok(wit::Info {
            name: joined.name.to_string(),
            context_tokens: info.context_tokens,
            chat: info.has_chat_template,
        })
    }

    async fn tokenize(&mut self, model: Resource<Joined>, text: String) -> Result<Result<Vec<u32>, wit::Error>> {
        if text.len() > MAX_CALL_BYTES {
            return Ok(Err(wit::Error::Invalid(format!(
                "text has {} bytes; at most {MAX_CALL_BYTES} are tokenized at once",
                text.len()
            ))));
        }
        let model = self.table.get(&model)?.model.clone();
        let ids = beside(text.len(), move || model.tokenize(&text, false)).await?;
        Ok(Ok(ids.into_iter().map(|id| id.0).collect()))
    }

    async fn embed(
        &mut self,
        model: Resource<Joined>,
        texts: Vec<String>,
    ) -> Result<Result<Vec<Vec<f32>>, wit::Error>> {
        let bytes: usize = texts.iter().map(String::len).sum();
        if bytes > MAX_CALL_BYTES {
            let why = format!("the texts have {bytes} bytes; at most {MAX_CALL_BYTES} are embedded at once");
            return Ok(Err(wit::Error::Invalid(why)));
        }
        let joined = self.table.get(&model)?.clone();
        let texts = texts.into_iter().map(Text::Words).collect();
        let rows = embed::embed(&joined, texts, false, self.invocation, self.models.allowance.as_ref()).await?;
        Ok(rows.map(|embedded| embedded.rows).map_err(Into::into))
    }

    async fn generate(
        &mut self,
        model: Resource<Joined>,
        prompt: wit::Prompt,
        options: wit::Options,
    ) -> Result<Result<Resource<TokenStream>, wit::Error>> {
        let ask = match ask(prompt, options) {
            Ok(ask) => ask,
            Err(why) => return Ok(Err(wit::Error::Invalid(why))),
        };
        let joined = self.table.get(&model)?.clone();
        match start(&joined, ask, self.invocation, self.models.allowance.as_ref()).await? {
            Ok(tokens) => Ok(Ok(self.table.push(TokenStream::new(tokens, self.invocation.clone()))?)),
            Err(refusal) => Ok(Err(refusal.into())),
        }
    }

    fn drop(&mut self, model: Resource<Joined>) -> Result<()> {
        self.table.delete(model)?;
        Ok(())
    }
}

impl wit::HostTokenStream for ModelView<'_> {
    fn subscribe(&mut self, stream: Resource<TokenStream>) -> Result<Resource<DynPollable>> {
        subscribe(self.table, stream)
    }

    fn next(&mut self, stream: Resource<TokenStream>) -> Result<Result<wit::Event, wit::Error>> {
        let stream = self.table.get_mut(&stream)?;
        let event = match stream.peeked.take() {
            Some(event) => event,
            // A look, not a wait: `subscribe` registers the waker that matters.
            None => match stream.tokens.poll_next(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(event) => event,
                Poll::Pending => return Ok(Ok(wit::Event::Pending)),
            },
        };
        self.invocation.saw(&event, &stream.tokens);
        Ok(match event {
            Event::Text(text) => Ok(wit::Event::Text(text)),
            Event::Finished(Finish::Stop) => Ok(wit::Event::Finished(wit::FinishReason::Stop)),
            Event::Finished(Finish::Length) => Ok(wit::Event::Finished(wit::FinishReason::Length)),
            Event::Finished(Finish::Budget) => Ok(wit::Event::Finished(wit::FinishReason::Budget)),
            Event::Busy { retry_after } => Err(wit::Error::Busy(busy(retry_after))),
            Event::Fault(why) => Err(wit::Error::Fault(why)),
        })
    }

    fn usage(&mut self, stream: Resource<TokenStream>) -> Result<wit::Usage> {
        let usage = self.table.get(&stream)?.tokens.usage();
        Ok(wit::Usage { prompt_tokens: usage.prompt_tokens, generated_tokens: usage.generated_tokens })
    }

    fn drop(&mut self, stream: Resource<TokenStream>) -> Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}

/// The guest's words as the engine's, or what is wrong with them. Ranges of sampling are the engine's to check.
fn ask(prompt: wit::Prompt, options: wit::Options) -> Result<Ask, String> {
    let mut ask = Ask::new(match prompt {
        wit::Prompt::Chat(messages) if messages.is_empty() => return Err("a chat needs at least one message".into()),
        wit::Prompt::Chat(messages) => Prompt::Chat(messages.into_iter().map(message).collect()),
        wit::Prompt::Raw(text) if text.is_empty() => return Err("a raw prompt must not be empty".into()),
        wit::Prompt::Raw(text) => Prompt::Raw(text),
    });
    if options.stop.len() > MAX_STOPS {
        return Err(format!("{} stop strings; at most {MAX_STOPS} are watched for", options.stop.len()));
    }
    let default = Sampling::default();
    ask.sampling = Sampling {
        temperature: options.temperature.unwrap_or(default.temperature),
        top_k: options.top_k.unwrap_or(default.top_k),
        top_p: options.top_p.unwrap_or(default.top_p),
        min_p: options.min_p.unwrap_or(default.min_p),
        seed: options.seed,
        penalties: Penalties {
            repetition: options.repetition_penalty.unwrap_or(default.penalties.repetition),
            presence: options.presence_penalty.unwrap_or(default.penalties.presence),
            frequency: options.frequency_penalty.unwrap_or(default.penalties.frequency),
        },
    };
    ask.max_tokens = options.max_tokens;
    ask.stop = options.stop;
    Ok(ask)
}

fn message(message: wit::Message) -> Message {
    let role = match message.role {
        wit::Role::System => Role::System,
        wit::Role::User => Role::User,
        wit::Role::Assistant => Role::Assistant,
    };
    Message { role, content: message.content }
}

impl From<Refusal> for wit::Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TooLong { needed, available } => Self::TooLong(wit::TooLong { needed, available }),
            Refusal::Busy { retry_after } => Self::Busy(busy(retry_after)),
            Refusal::Invalid(why) => Self::Invalid(why),
            Refusal::Fault(why) => Self::Fault(why),
        }
    }
}

impl From<JoinRefusal> for wit::Error {
    fn from(refusal: JoinRefusal) -> Self {
        match refusal {
            JoinRefusal::NotFound(name) => Self::NotFound(name),
            JoinRefusal::NotGranted(name) => Self::NotGranted(name),
            JoinRefusal::Busy(retry_after) => Self::Busy(busy(retry_after)),
            JoinRefusal::Fault(why) => Self::Fault(why),
        }
    }
}

fn busy(retry_after: std::time::Duration) -> wit::Busy {
    wit::Busy { retry_after_ms: u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX).max(1) }
}
