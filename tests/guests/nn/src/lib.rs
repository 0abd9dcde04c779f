//! Calls wasi-nn in the way that `?do=` names and gives the outputs, or the error's code, as JSON.

mod bindings {
    #![allow(missing_docs, clippy::all)]
    wit_bindgen::generate!({ path: "../../../wit/wasi-nn", world: "ml", generate_all });
}

use bindings::wasi::nn::errors::Error;
use bindings::wasi::nn::graph::{ExecutionTarget, Graph, GraphEncoding, load, load_by_name};
use bindings::wasi::nn::tensor::{Tensor, TensorType};
use hob_sdk::json::{Value, json};
use hob_sdk::{Json, Query, handler};
use std::collections::BTreeMap;

#[handler]
async fn nn(Query(query): Query<BTreeMap<String, String>>) -> Json<Value> {
    let get = |name: &str, default: &'static str| query.get(name).cloned().unwrap_or(default.into());
    Json(match run(&get("do", "ok"), &get("model", "smollm2:135m"), &get("text", "The capital of France is")) {
        Ok(outputs) => json!({ "outputs": outputs }),
        Err(error) => json!({ "code": format!("{:?}", error.code()), "data": error.data() }),
    })
}

fn run(what: &str, model: &str, text: &str) -> Result<BTreeMap<String, String>, Error> {
    let options = r#"{"n-predict":16,"temp":0}"#;
    let prompt = ("0".to_string(), tensor(text, TensorType::U8));
    match what {
        "missing-tensor" => compute(load_by_name(model)?, vec![]),
        "wrong-type" => compute(load_by_name(model)?, vec![("0".into(), tensor(text, TensorType::Fp32))]),
        "wrong-options" => {
            compute(load_by_name(model)?, vec![prompt, ("1".into(), tensor("not JSON", TensorType::U8))])
        }
        "load-bytes" => compute(load(&[b"GGUF".to_vec()], GraphEncoding::Ggml, ExecutionTarget::Cpu)?, vec![prompt]),
        // Ten times 8 MiB, held at once: more than an instance may.
        "hoard" => {
            let held: Vec<Tensor> = (0..10).map(|_| tensor(&" ".repeat(8 << 20), TensorType::U8)).collect();
            Ok(BTreeMap::from([("held".into(), held.len().to_string())]))
        }
        "unknown-model" => compute(load_by_name("no-such-model")?, vec![prompt]),
        _ => compute(load_by_name(model)?, vec![prompt, ("1".into(), tensor(options, TensorType::U8))]),
    }
}

fn tensor(text: &str, kind: TensorType) -> Tensor {
    Tensor::new(&[text.len() as u32], kind, text.as_bytes())
}

fn compute(graph: Graph, inputs: Vec<(String, Tensor)>) -> Result<BTreeMap<String, String>, Error> {
    let outputs = graph.init_execution_context()?.compute(inputs)?;
    let shown = |tensor: &Tensor| match tensor.ty() {
        TensorType::Fp32 => {
            let data = tensor.data();
            let row: Vec<f32> = data.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
            json!({ "dimensions": tensor.dimensions(), "row": row }).to_string()
        }
        _ => String::from_utf8_lossy(&tensor.data()).into_owned(),
    };
    Ok(outputs.into_iter().map(|(name, tensor)| (name, shown(&tensor))).collect())
}
