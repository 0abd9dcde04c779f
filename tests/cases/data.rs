//! The data directory: restarts, deaths, and those who may not use it.

use std::time::Instant;

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
fn a_killed_server_starts_again_with_all_that_was_acknowledged() {
    const ROUNDS: u32 = 24;
    let mut hob = Hob::start();
    let hello = component("hello").to_str().unwrap().to_owned();
    let started = Instant::now();
    hob.deploy("hello", &[]);
    let whole = started.elapsed();
    let mut acknowledged = vec!["hello".to_owned()];
    for round in 0..ROUNDS {
        // A deployment, with its compilation, is under way when the server dies; at another moment each time.
        std::fs::remove_dir_all(hob.home.path().join("compiled")).unwrap();
        let home = hob.home.path().to_owned();
        let (name, file) = (format!("f{round}"), hello.clone());
        let deployment = std::thread::spawn(move || {
            let output = hob_tests::hob(&home, &["deploy", &file, "--name", &name]);
            output.status.success().then_some(name)
        });
        if round + 1 < ROUNDS {
            std::thread::sleep(whole * 3 / 2 * round / ROUNDS);
            hob.kill();
            acknowledged.extend(deployment.join().unwrap());
        } else {
            // However slow the machine is, one is acknowledged just before the end.
            acknowledged.extend(deployment.join().unwrap());
            hob.kill();
        }
        hob.restart();
        let list = hob.ok(&["list"]);
        for name in &acknowledged {
            assert!(list.contains(name.as_str()), "{name} was acknowledged and is lost:\n{list}");
        }
        assert!(list.lines().skip(1).all(|line| line.ends_with("ready")), "{list}");
    }
    for name in &acknowledged {
        assert_eq!(get(&hob.url(&format!("/{name}"))).0, 200);
    }
    assert!(acknowledged.len() > 1, "some deployment was faster than the end");
    let lost = u32::try_from(acknowledged.len()).unwrap() - 1 < ROUNDS;
    assert!(lost, "some was not");
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
