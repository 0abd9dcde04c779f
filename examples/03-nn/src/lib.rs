//! Text generation through plain wasi-nn: the body of a POST is the question, the answer is text.
//!
//! Nothing here is hob's own. The tensors follow the ggml guests of WasmEdge: input `0` is the prompt, input `1` the
//! options as JSON, output `0` the text and output `1` what was used as JSON; all of them bytes.

mod bindings {
    #![allow(missing_docs, clippy::all)]
    wit_bindgen::generate!({ path: "../../wit/wasi-nn", world: "ml", generate_all });
}

use bindings::wasi::nn::errors::{Error, ErrorCode};
use bindings::wasi::nn::graph::load_by_name;
use bindings::wasi::nn::tensor::{Tensor, TensorType};
use wstd::http::{Body, Request, Response, Result, StatusCode};

const MODEL: &str = "smollm2:135m";

#[wstd::http_server]
async fn main(mut request: Request<Body>) -> Result<Response<Body>> {
    let Ok(question) = request.body_mut().str_contents().await else {
        return answer(StatusCode::BAD_REQUEST, "the body is not text\n");
    };
    match generate(question) {
        Ok(text) => answer(StatusCode::OK, text),
        Err(error) => answer(status(error.code()), format!("{}\n", error.data())),
    }
}

fn generate(question: &str) -> std::result::Result<Vec<u8>, Error> {
    let prompt = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
    let options = serde_json::json!({ "n-predict": 256, "temp": 0.0 }).to_string();
    let context = load_by_name(MODEL)?.init_execution_context()?;
    let outputs = context.compute(vec![("0".into(), bytes(&prompt)), ("1".into(), bytes(&options))])?;
    Ok(outputs.into_iter().find(|(name, _)| name == "0").map(|(_, text)| text.data()).unwrap_or_default())
}

fn bytes(text: &str) -> Tensor {
    Tensor::new(&[text.len() as u32], TensorType::U8, text.as_bytes())
}

fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorCode::Security => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::Timeout => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn answer(status: StatusCode, text: impl Into<Body>) -> Result<Response<Body>> {
    Ok(Response::builder().status(status).header("content-type", "text/plain; charset=utf-8").body(text.into())?)
}
