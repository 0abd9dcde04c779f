//! Calls that no honest program makes; prints the number that each is answered with.

use std::collections::BTreeMap;

#[link(wasm_import_module = "wasi_ephemeral_nn")]
unsafe extern "C" {
    fn load(builders: u32, len: u32, encoding: u32, target: u32, out: u32) -> u32;
    fn load_by_name(name: u32, len: u32, out: u32) -> u32;
    fn init_execution_context(graph: u32, out: u32) -> u32;
    fn set_input(context: u32, index: u32, tensor: u32) -> u32;
    fn compute(context: u32) -> u32;
    fn get_output(context: u32, index: u32, to: u32, most: u32, written: u32) -> u32;
}

/// A tensor as it lies in memory.
#[repr(C)]
struct Tensor {
    dimensions: u32,
    rank: u32,
    ty: u8,
    data: u32,
    len: u32,
}

/// A place that no memory of this program reaches.
const FAR: u32 = u32::MAX - 8;

fn at<T: ?Sized>(value: &T) -> u32 {
    std::ptr::from_ref(value).cast::<u8>() as usize as u32
}

pub fn run() {
    let mut out = 0_u32;
    let name = "default";
    let dimensions = [5_u32];
    let text = "hello";
    let good = Tensor { dimensions: at(&dimensions), rank: 1, ty: 3, data: at(text), len: 5 };
    let mut said = BTreeMap::new();
    // SAFETY: the host reads and writes this program's memory only where it is told to, which the answers below show;
    // nothing that is told here overlaps what the compiler relies on but `out` and `buffer`, which are only printed.
    unsafe {
        let mut say = |what: &'static str, code: u32| {
            said.insert(what, code);
        };
        let into = &raw mut out as usize as u32;
        say("load", load(FAR, u32::MAX, 0, 0, FAR));
        say("name far", load_by_name(FAR, 4, into));
        say("name wraps", load_by_name(16, u32::MAX, into));
        say("name not text", load_by_name(at(&[0xff_u8; 4]), 4, into));
        say("name unknown", load_by_name(at("no-such-model"), 13, into));
        say("name without a place", load_by_name(at(name), 7, FAR));
        say("graph unknown", init_execution_context(0, into));
        say("name", load_by_name(at(name), 7, into));
        say("graph huge", init_execution_context(u32::MAX, into));
        say("context unknown", set_input(0, 0, at(&good)));
        say("context without a place", init_execution_context(0, u32::MAX));
        say("context", init_execution_context(0, into));
        say("tensor far", set_input(0, 0, FAR));
        say("tensor wraps", set_input(0, 0, at(&Tensor { len: u32::MAX, ..good })));
        say("dimensions far", set_input(0, 0, at(&Tensor { dimensions: FAR, ..good })));
        say("dimensions wrap", set_input(0, 0, at(&Tensor { rank: 1 << 30, ..good })));
        say("type unknown", set_input(0, 0, at(&Tensor { ty: 99, ..good })));
        say("index unknown", set_input(0, 7, at(&good)));
        say("computed nothing", compute(0));
        let mut buffer = [0_u8; 4];
        let to = &raw mut buffer as usize as u32;
        say("output before", get_output(0, 0, to, 4, into));
        say("shape wrong", set_input(0, 0, at(&Tensor { len: 4, ..good })));
        say("shape wrong computed", compute(0));
        say("good", set_input(0, 0, at(&good)));
        say("context huge", compute(u32::MAX));
        say("computed", compute(0));
        say("output far", get_output(0, 0, FAR, 4096, into));
        say("output wraps", get_output(0, 0, to, u32::MAX, into));
        say("output without a place", get_output(0, 0, to, 4, FAR));
        say("output small", get_output(0, 1, to, 4, into));
        say("output unknown", get_output(0, 9, to, 4, into));
        let mut contexts = 1_u32;
        let last = loop {
            match init_execution_context(0, into) {
                0 => contexts += 1,
                code => break code,
            }
        };
        say("contexts", last);
        say("contexts held", contexts);
        // 8 MiB in each of them: more than an instance may hold.
        let large = vec![b' '; 8 << 20];
        let large = Tensor { data: at(large.as_slice()), len: 8 << 20, ..good };
        let codes: Vec<u32> = (0..10).map(|context| set_input(context, 1, at(&large))).collect();
        say("hoarded", codes.iter().filter(|code| **code == 0).count() as u32);
        say("hoarded too much", codes[9]);
    }
    for (what, code) in said {
        println!("{what}: {code}");
    }
}
