//! `wasi:logging`: messages with a level, to the host's log, under the invocation that they came from.

use wasmtime::Result;
use wasmtime::component::{HasSelf, Linker};

use super::State;

mod bindings {
    wasmtime::component::bindgen!({ path: "../wit/wasi-logging", world: "imports", imports: { default: trappable } });
}
use bindings::wasi::logging::logging::{self as wit, Level};

/// Links it.
pub fn link(linker: &mut Linker<State>) -> Result<()> {
    wit::add_to_linker::<_, HasSelf<State>>(linker, |state| state)
}

impl wit::Host for State {
    fn log(&mut self, level: Level, context: String, message: String) -> Result<()> {
        let Some(message) = self.printing.admit(message) else { return Ok(()) };
        let (function, id) = (&self.invocation.function, &self.invocation.id);
        let kept = format!("{} {context}: {message}", name(level));
        self.invocation.print("log", kept.replace('\n', " "));
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(target: "hob::guest", %function, %id, stream = "log", context, "{message}")
            };
        }
        match level {
            Level::Trace => event!(trace),
            Level::Debug => event!(debug),
            Level::Info => event!(info),
            Level::Warn => event!(warn),
            Level::Error | Level::Critical => event!(error),
        }
        Ok(())
    }
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Trace => "trace",
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
        Level::Critical => "critical",
    }
}
