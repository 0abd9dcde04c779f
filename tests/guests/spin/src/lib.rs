//! Never answers: loops without end, and without a call to the host.

#[hob_sdk::handler]
async fn spin() {
    let mut turns = 0u64;
    loop {
        turns = std::hint::black_box(turns).wrapping_add(1);
    }
}
