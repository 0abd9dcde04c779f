//! Makes the stand-in the driver of this process.

use super::cuda::{Flavour, stand_in};
use std::env;
use std::path::PathBuf;

/// Makes the stand-in this process's driver, unless a real card is asked for with `HOB_TEST_GPU=1`. `false` where there is neither.
#[expect(unsafe_code, reason = "loads a library that these tests have built")]
pub fn driver() -> bool {
    static LOADED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *LOADED.get_or_init(|| {
        if env::var_os("HOB_TEST_GPU").is_some() {
            return true;
        }
        let library = env::var_os("HOB_STAND_IN").map(PathBuf::from).or_else(|| stand_in(Flavour::Plain));
        let Some(library) = library else { return false };
        // SAFETY: the library is ours; it is never unloaded.
        std::mem::forget(unsafe { libloading::Library::new(&library) }.expect("the stand-in loads"));
        true
    })
}
