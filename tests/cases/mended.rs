//! `hob models pull` when what is here, or there, is not what it was: damage that a pull mends, and servers that must not be
//! believed.

use hob::digest::Digest;
use hob::models::store::{Manifest, ModelStore};
use hob_tests::{Place, Registry, Shelf, Trouble, certificate, large, tiny};
use serde_json::json;

#[test]
fn a_blob_of_the_wrong_length_is_fetched_again() {
    let place = Place::new();
    let tiny = tiny();
    place.shelf.hub("acme/Tiny", &[("t-Q4_0.gguf", &tiny)]);
    let url = place.shelf.put("/t.gguf", &tiny);
    let url = format!("{url}#sha256={}", Digest::of(&tiny).hex());
    let args: [&[&str]; 3] = [&["hf:acme/Tiny"], &["tiny"], &[&url, "--as", "tiny"]];
    for args in args {
        place.pull("hf:acme/Tiny");
        for spoiled in [&tiny[..1000], &[&tiny[..], b"more"].concat(), b""] {
            std::fs::write(place.blob(&tiny), spoiled).unwrap();
            place.pull_with(args, &[]);
            assert_eq!(std::fs::read(place.blob(&tiny)).unwrap(), tiny, "{args:?}");
        }
        assert!(place.ok(&["models", "verify"]).contains("tiny is whole"));
    }
}

#[test]
fn a_model_that_was_made_from_another_is_got_again_with_its_own_words() {
    let place = Place::new();
    let tiny = tiny();
    place.shelf.hub("acme/Tiny", &[("t-Q4_0.gguf", &tiny)]);
    place.pull("hf:acme/Tiny");
    let store = ModelStore::new(hob::DataDir::open(Some(place.home.path())).unwrap());
    let parent = store.get(&"tiny".parse().unwrap()).unwrap();
    let mut pirate = Manifest { name: "pirate".parse().unwrap(), parent: Some(parent.name.clone()), ..parent };
    pirate.defaults.system = Some("Arr.".into());
    store.put(&pirate).unwrap();
    std::fs::remove_file(place.blob(&tiny)).unwrap();
    place.pull("pirate");
    assert_eq!(std::fs::read(place.blob(&tiny)).unwrap(), tiny);
    let again = store.get(&pirate.name).unwrap();
    assert_eq!((&again.defaults, &again.parent, &again.source), (&pirate.defaults, &pirate.parent, &pirate.source));
    let shown = place.ok(&["models", "show", "pirate"]);
    assert!(shown.contains("made from") && shown.contains("Arr.") && shown.contains("hf:acme/Tiny"), "{shown}");
    // Asked for by its place it is what is there.
    place.pull_with(&["hf:acme/Tiny", "--as", "mine"], &[]);
    assert_eq!(store.get(&"mine".parse().unwrap()).unwrap().parent, None);
}

#[test]
fn a_file_that_is_shorter_now_is_begun_anew() {
    let place = Place::new();
    let (tiny, large) = (tiny(), large());
    let url = place.shelf.put("/m.gguf", &large);
    place.shelf.trouble("/m.gguf", Trouble::Stall(12 << 20));
    let error = place.refused_with(&[&url, "--connections", "1"], &[("HOB_PULL_PATIENCE", "1")]);
    assert!(error.contains("pull again to go on"), "{error}");
    place.shelf.put("/m.gguf", &tiny);
    place.shelf.trouble("/m.gguf", Trouble::NoIfRange);
    assert!(place.pull(&url).contains(&Digest::of(&tiny).to_string()));
    assert_eq!(place.count("models/partial"), 0);
    // Where the digest is known, the shorter file is not what it must be.
    place.ok(&["models", "rm", "m"]);
    place.shelf.put("/m.gguf", &large);
    place.shelf.trouble("/m.gguf", Trouble::Stall(12 << 20));
    let exact = format!("{url}#sha256={}", Digest::of(&large).hex());
    place.refused_with(&[&exact, "--connections", "1"], &[("HOB_PULL_PATIENCE", "1")]);
    place.shelf.put("/m.gguf", &tiny);
    let error = place.refused(&exact);
    assert!(error.contains("is not what it should be"), "{error}");
    place.assert_empty();
    place.shelf.put("/m.gguf", &large);
    assert!(place.pull(&exact).contains("m is here"));
}

#[test]
fn texts_of_a_model_have_a_bound() {
    let place = Place::new();
    let (tiny, license) = (tiny(), vec![b'x'; 1 << 20]);
    let mut layers: Vec<(&str, &[u8])> = vec![("model", &tiny)];
    layers.extend([("license", &license[..]); 4]);
    place.shelf.ollama("library/wordy", "latest", &layers);
    assert!(place.pull("ollama:wordy").contains("wordy is here"));
    layers.push(("system", b"You are small."));
    place.shelf.ollama("library/wordy", "2", &layers);
    place.shelf.forget();
    let error = place.refused("ollama:wordy:2");
    assert!(error.contains("texts of more than 4194304 bytes"), "{error}");
    assert_eq!(place.names(), ["wordy"]);
}

#[test]
fn more_files_than_a_model_has_are_refused_and_not_left_out() {
    let place = Place::new();
    let names: Vec<_> = (0..4096).map(|n| format!("w{n}.safetensors")).collect();
    let map: serde_json::Map<_, _> = names.iter().map(|name| (name.clone(), name.as_str().into())).collect();
    let index = json!({ "weight_map": map }).to_string();
    let mut files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"w"[..])).collect();
    files.extend([
        ("config.json", &b"{}"[..]),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", index.as_bytes()),
    ]);
    place.shelf.hub("acme/Many", &files);
    let error = place.refused("hf:acme/Many");
    assert!(error.contains("has 4099 files, more than 4096"), "{error}");
    place.assert_empty();
}

#[test]
fn a_login_is_sent_to_the_registry_that_it_is_for_and_to_no_other() {
    let place = Place::new();
    // user:secret
    let registry = Registry::with_login("dXNlcjpzZWNyZXQ=");
    let other = Registry::with_login("dXNlcjpzZWNyZXQ=");
    let tiny = tiny();
    for registry in [&registry, &other] {
        let layer = json!({ "mediaType": "application/vnd.docker.ai.gguf.v3", "digest": registry.put_blob(&tiny), "size": tiny.len() });
        registry.put_manifest("ai/tiny:1", &json!({ "schemaVersion": 2, "layers": [layer] }));
    }
    let source = |registry: &Registry| format!("oci://{}/ai/tiny:1", registry.host);
    let login = [("HOB_REGISTRY_USER", "user"), ("HOB_REGISTRY_PASSWORD", "secret")];
    let theirs = [&login[..], &[("HOB_REGISTRY", registry.host.as_str())]].concat();
    let error = place.refused_with(&[&source(&registry)], &login);
    assert!(error.contains("were not sent") && error.contains(&format!("set it to {}", registry.host)), "{error}");
    let error = place.refused_with(&[&source(&other)], &theirs);
    assert!(error.contains(&format!("are for {}", registry.host)), "{error}");
    assert!(place.pull_with(&[&source(&registry)], &theirs).contains("tiny:1 is here"));
}

#[test]
fn an_index_on_the_web_leads_nowhere_in_the_clear() {
    let place = Place::new();
    let secure = Shelf::with_tls();
    let cert = certificate("ca.pem");
    let index = format!("{}/simple", secure.url);
    let variables = [("HOB_PYPI_INDEX", index.as_str()), ("SSL_CERT_FILE", cert.to_str().unwrap())];
    for (to, why) in [("http://far.example/x", "anybody could answer"), ("file:///etc/passwd", "no web address")] {
        let page = json!({ "files": [{ "filename": "p-1-py3-none-any.whl", "url": to }] });
        secure.put("/simple/p/", page.to_string().as_bytes());
        let error = place.refused_with(&["pypi:p==1#m"], &variables);
        assert!(error.contains(why), "{error}");
    }
}
