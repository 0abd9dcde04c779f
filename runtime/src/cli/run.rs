//! `hob run`: a model's answer, or a command component.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use hob_gpu::{Ask, Event, Message, Prompt, Role, Sampling, Tokens};

use super::command::{self, CommandArgs};
use super::engine::EngineArgs;
use crate::data::DataDir;
use crate::models::Library;
use crate::models::store::ModelStore;
use crate::names::ModelRef;

#[derive(clap::Args)]
pub struct Args {
    /// A model (a name from `hob models list`, a .gguf file, or a folder with a safetensors checkpoint), or a command: a
    /// .wasm file
    #[arg(value_name = "MODEL|FILE.wasm")]
    what: String,
    /// What to ask the model
    prompt: Option<String>,
    /// Instructions that frame the answer
    #[arg(long)]
    system: Option<String>,
    /// Continue the prompt as it is, without the model's chat template
    #[arg(long, conflicts_with = "system")]
    raw: bool,
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_tokens: u32,
    /// 0 takes the likeliest token each time, up to 2 is more varied
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// The same seed gives the same text
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    command: CommandArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

pub fn run(data: DataDir, args: Args) -> anyhow::Result<()> {
    if args.what.ends_with(".wasm") {
        if args.prompt.is_some() {
            bail!("a command takes its arguments after `--`: hob run {} -- ARGS", args.what);
        }
        return command::run(data, Path::new(&args.what), args.command, args.engine);
    }
    let reference: ModelRef = args.what.parse()?;
    let prompt_text = args.prompt.clone().context("say what to ask the model: hob run MODEL PROMPT")?;
    let library = Library::new(ModelStore::new(data), args.engine.start()?);
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let model = library.join_ref(&reference).await?;
        let mut ask = Ask::new(prompt(&args, prompt_text, model.info().has_chat_template));
        ask.max_tokens = Some(args.max_tokens);
        ask.sampling = Sampling { temperature: args.temperature, seed: args.seed, ..Sampling::default() };
        let mut tokens = model.generate(ask)?;
        print(&mut tokens).await?;
        report(&tokens, &library);
        Ok(())
    })
}

fn prompt(args: &Args, text: String, chat: bool) -> Prompt {
    if args.raw || !chat {
        return Prompt::Raw(text);
    }
    let system = args.system.iter().map(|content| Message { role: Role::System, content: content.clone() });
    let user = Message { role: Role::User, content: text };
    Prompt::Chat(system.chain([user]).collect())
}

async fn print(tokens: &mut Tokens) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    loop {
        match tokens.next().await {
            Event::Text(text) => {
                out.write_all(text.as_bytes())?;
                out.flush()?;
            }
            Event::Finished(_) => break,
            Event::Busy { .. } => bail!("the engine is busy"),
            Event::Fault(why) => bail!("generation ended early: {why}"),
        }
    }
    Ok(writeln!(out)?)
}

fn report(tokens: &Tokens, library: &Library) {
    let (usage, timing) = (tokens.usage(), tokens.timing());
    let rate = |tokens: u32, time: std::time::Duration| f64::from(tokens) / time.as_secs_f64().max(1e-9);
    eprintln!(
        "\n{} prompt tokens at {:.0}/s, {} generated at {:.1}/s, first token after {:.0} ms ({})",
        usage.prompt_tokens,
        rate(usage.prompt_tokens, timing.prefill),
        usage.generated_tokens,
        rate(usage.generated_tokens.saturating_sub(1), timing.decode),
        timing.first_token.unwrap_or_default().as_secs_f64() * 1e3,
        library.engines().runs_on(),
    );
}
