//! The smallest function: one line of text for every request.

use hob_sdk::handler;

#[handler]
async fn hello() -> &'static str {
    "hello from hob\n"
}
