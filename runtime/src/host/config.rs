//! `wasi:config`: what the function was configured with, its secrets among it. Two drafts of one interface.

use wasmtime::Result;
use wasmtime::component::{HasData, Linker};

use super::State;
use crate::instance::Granted;

mod bindings {
    wasmtime::component::bindgen!({ path: "../wit/wasi-config", world: "imports", imports: { default: trappable } });
}
mod draft {
    wasmtime::component::bindgen!({ path: "../wit/wasi-config-draft", world: "imports", imports: { default: trappable } });
}
use bindings::wasi::config::store as current;
use draft::wasi::config::store as older;

/// The host's side, borrowed for one call.
pub struct View<'a>(&'a Granted);

struct HasConfig;

impl HasData for HasConfig {
    type Data<'a> = View<'a>;
}

/// Links both.
pub fn link(linker: &mut Linker<State>) -> Result<()> {
    current::add_to_linker::<_, HasConfig>(linker, view)?;
    older::add_to_linker::<_, HasConfig>(linker, view)
}

fn view(state: &mut State) -> View<'_> {
    View(&state.granted)
}

impl View<'_> {
    fn one(&self, key: &str) -> Option<String> {
        self.0.config.get(key).cloned()
    }

    fn all(&self) -> Vec<(String, String)> {
        self.0.config.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

impl current::Host for View<'_> {
    fn get(&mut self, key: String) -> Result<Result<Option<String>, current::Error>> {
        Ok(Ok(self.one(&key)))
    }

    fn get_all(&mut self) -> Result<Result<Vec<(String, String)>, current::Error>> {
        Ok(Ok(self.all()))
    }
}

impl older::Host for View<'_> {
    fn get(&mut self, key: String) -> Result<Result<Option<String>, older::Error>> {
        Ok(Ok(self.one(&key)))
    }

    fn get_all(&mut self) -> Result<Result<Vec<(String, String)>, older::Error>> {
        Ok(Ok(self.all()))
    }
}
