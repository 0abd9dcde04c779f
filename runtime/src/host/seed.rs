//! `wasi:random/insecure-seed`: what standard libraries hash with. Asked once by most guests, as they start.

use std::hash::{BuildHasher as _, RandomState};

use wasmtime::Result;
use wasmtime::component::{HasData, Linker};
use wasmtime_wasi::p2::bindings::random::insecure_seed::{self, Host};

use super::State;

/// The host's side, which has no state.
pub struct Seed;

impl HasData for Seed {
    type Data<'a> = Seed;
}

/// Links it in place of the stock one, which makes all of an instance's sources of chance for it.
///
/// # Errors
/// None in practice: shadowing is allowed meanwhile.
pub fn link(linker: &mut Linker<State>) -> Result<()> {
    linker.allow_shadowing(true);
    insecure_seed::add_to_linker::<_, Seed>(linker, |_| Seed)?;
    linker.allow_shadowing(false);
    Ok(())
}

impl Host for Seed {
    fn insecure_seed(&mut self) -> Result<(u64, u64)> {
        // The keys of the standard library's maps are random for each thread, and others each time.
        let keys = RandomState::new();
        Ok((keys.hash_one(0), keys.hash_one(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_instance_has_a_seed_of_its_own() {
        let seeds: std::collections::HashSet<_> =
            (0..1000).flat_map(|_| <[u64; 2]>::from(Seed.insecure_seed().unwrap())).collect();
        assert_eq!(seeds.len(), 2000);
    }
}
