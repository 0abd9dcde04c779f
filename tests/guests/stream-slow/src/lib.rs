//! Sends `?n=` chunks, one every 20 ms: "1\n", "2\n", ... and "end\n" as the last.

use hob_sdk::serde::Deserialize;
use hob_sdk::{Body, Query, Response, handler, sleep};
use std::time::Duration;

#[derive(Deserialize)]
#[serde(crate = "hob_sdk::serde")]
struct Chunks {
    n: u32,
}

#[handler]
async fn stream_slow(Query(Chunks { n }): Query<Chunks>) -> Response {
    Response::new(Body::produce(async move |out| {
        for number in 1..n {
            out.write(format!("{number}\n")).await?;
            sleep(Duration::from_millis(20)).await;
        }
        out.write("end\n").await
    }))
}
