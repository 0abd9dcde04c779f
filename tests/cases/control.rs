//! The control API: its key, its errors, and that the data listener does not lead there.

use hob::api::ControlFile;
use hob_tests::{Hob, get};

fn control(hob: &Hob) -> ControlFile {
    serde_json::from_slice(&std::fs::read(hob.home.path().join("control.json")).unwrap()).unwrap()
}

#[test]
fn needs_its_key() {
    use std::os::unix::fs::PermissionsExt as _;
    let hob = Hob::start();
    let file = control(&hob);
    assert!(file.address.ip().is_loopback() && file.pid == hob.pid());
    let mode = std::fs::metadata(hob.home.path().join("control.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "only its owner may read the key");
    for path in ["/v1/functions", "/v1/status", "/nothing"] {
        let (status, body) = get(&format!("http://{}{path}", file.address));
        assert!(status == 401 && body.contains("unauthorized") && !body.contains(&file.key), "{body}");
        assert_eq!(get(&hob.url(path)).0, 404, "the data listener does not lead there");
    }
}

#[test]
fn says_what_is_wrong_with_a_call() {
    let hob = Hob::start();
    let file = control(&hob);
    let call = |method: &str, path: &str, body: &str| {
        let mut connection = hob_tests::Connection::open(file.address);
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            file.key,
            body.len()
        );
        connection.send(format!("{head}{body}").as_bytes());
        let status = connection.head().status;
        (status, connection.body())
    };
    for (method, path, body, status, said) in [
        ("GET", "/v1/nothing", "", 404, "no such call"),
        ("PUT", "/v1/components/sha256:12", "x", 400, "64 hexadecimal"),
        ("PUT", &format!("/v1/components/sha256:{}", "0".repeat(64)), "x", 400, "changed on the way"),
        ("PUT", "/v1/functions/x", "{", 400, "line 1"),
        ("PUT", "/v1/functions/x", "{\"component\":1}", 422, "component"),
        (
            "PUT",
            "/v1/functions/x",
            &format!("{{\"component\":\"sha256:{}\",\"config\":{{\"routes\":[{{\"path\":\"/x\"}}]}}}}", "0".repeat(64)),
            409,
            "upload it first",
        ),
        (
            "PUT",
            "/v1/functions/x",
            &format!("{{\"component\":\"sha256:{}\",\"rout\":1}}", "0".repeat(64)),
            422,
            "unknown field `rout`",
        ),
        ("DELETE", "/v1/functions/x", "", 404, "no function is called"),
        ("DELETE", "/v1/models/resident/x", "", 409, "hob models pull x"),
    ] {
        let (got, answer) = call(method, path, body);
        assert!(got == status && answer.contains(said), "{method} {path} {body}: {got} {answer}");
    }
}
