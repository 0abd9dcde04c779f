//! Never answers: traps before a response is set.

#[hob_sdk::handler]
async fn trap() {
    panic!("this guest always traps");
}
