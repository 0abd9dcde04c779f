//! A plugin: called with typed arguments, not with requests.

mod bindings {
    #![allow(missing_docs, clippy::all)]
    wit_bindgen::generate!({ path: "wit", world: "plugin" });
}

use std::sync::atomic::{AtomicU32, Ordering};

struct Plugin;

impl bindings::exports::test::plugin::work::Guest for Plugin {
    fn shout(text: String) -> String {
        text.to_uppercase()
    }

    fn spin() {
        loop {
            std::hint::black_box(0);
        }
    }

    fn hold(mib: u32) -> bool {
        Vec::<u8>::new().try_reserve_exact((mib as usize) << 20).is_ok()
    }

    #[allow(clippy::print_stdout)]
    fn fail(why: String) {
        println!("this goes wrong: {why}");
        std::process::abort();
    }

    fn count() -> u32 {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        CALLS.fetch_add(1, Ordering::Relaxed) + 1
    }
}

bindings::export!(Plugin with_types_in bindings);
