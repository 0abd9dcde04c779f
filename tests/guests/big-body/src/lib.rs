//! Sends 64 MiB, a MiB at a time; each byte is the number of its MiB.

use hob_sdk::{Body, Response, handler};

#[handler]
async fn big_body() -> Response {
    Response::new(Body::produce(async |out| {
        for number in 0..64u8 {
            out.write(vec![number; 1 << 20]).await?;
        }
        Ok(())
    }))
}
