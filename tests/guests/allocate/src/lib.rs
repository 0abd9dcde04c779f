//! Takes memory a MiB at a time and touches it, until the host refuses; says how many it got.

#[hob_sdk::handler]
async fn allocate() -> String {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut block = Vec::new();
        if block.try_reserve_exact(1 << 20).is_err() {
            return format!("{} MiB\n", taken.len());
        }
        block.resize(1 << 20, 1);
        taken.push(std::hint::black_box(block));
    }
}
