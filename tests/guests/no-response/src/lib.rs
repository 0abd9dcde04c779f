//! Returns without setting a response.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

struct Component;

impl Guest for Component {
    fn handle(_request: IncomingRequest, _out: ResponseOutparam) {}
}

wasip2::http::proxy::export!(Component);
