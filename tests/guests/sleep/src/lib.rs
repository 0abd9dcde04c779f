//! Never answers: sleeps for an hour.

#[hob_sdk::handler]
async fn sleep() {
    hob_sdk::sleep(std::time::Duration::from_secs(3600)).await;
}
