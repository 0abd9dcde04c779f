//! The data directory: restarts, deaths, and those who may not use it.

use hob_tests::{Hob, component, get, refused};

#[test]
fn functions_survive_a_restart_without_compiling_again() {
    let mut hob = Hob::start();
    hob.deploy("hello", &[]);
    assert!(hob.terminate());
    // The upload is not needed any more while its compiled form fits the engine.
    let compiled = hob.home.path().join("compiled");
    let stamp = || {
        std::fs::read_dir(&compiled)
            .unwrap()
            .flatten()
            .flat_map(|engine| std::fs::read_dir(engine.path()).unwrap().flatten())
            .map(|file| file.metadata().unwrap().modified().unwrap())
            .max()
            .unwrap()
    };
    let before = stamp();
    hob.restart();
    assert_eq!(get(&hob.url("/hello")).0, 200);
    assert_eq!(stamp(), before, "nothing was compiled");
}

#[test]
fn a_damaged_component_breaks_its_own_function_only() {
    let mut hob = Hob::start();
    hob.deploy("hello", &[]);
    hob.deploy("guest-echo", &[]);
    let file = component("hello");
    let digest = hob::digest::Digest::of(&std::fs::read(&file).unwrap());
    assert!(hob.terminate());
    let data = hob::DataDir::open(Some(hob.home.path())).unwrap();
    std::fs::remove_dir_all(hob.home.path().join("compiled")).unwrap();
    std::fs::write(data.component(&digest), b"\0asm\x0d\0\x01\0torn").unwrap();
    hob.restart();
    assert_eq!(get(&hob.url("/guest-echo")).0, 200);
    let (status, body) = get(&hob.url("/hello"));
    assert!(status == 500 && body.contains("deploy it again"), "{body}");
    assert!(hob.ok(&["list"]).contains("does not compile"));
    hob.deploy("hello", &[]);
    assert_eq!(get(&hob.url("/hello")).0, 200, "deploying it again mends it");
}

#[test]
fn one_server_for_a_directory() {
    let hob = Hob::start();
    let error = hob.refused(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(error.contains("another hob serves from"), "{error}");
    assert!(hob.ok(&["list"]).contains("no function"), "the first is not disturbed");
}

#[test]
fn a_directory_that_cannot_be_written_is_said() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    for place in [file.as_path(), &file.join("below"), std::path::Path::new("/proc/hob")] {
        let error = refused(home.path(), &["--data", place.to_str().unwrap(), "models", "list"]);
        assert!(error.contains("not writable") && error.contains("--data"), "{error}");
    }
}
