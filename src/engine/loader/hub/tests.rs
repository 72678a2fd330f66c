//! The hub client against a small server on this machine that speaks the hub's routes.

mod server;

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use super::{DownloadProgress, HubError, HubOptions, HubToken, Silent};
use crate::engine::loader::{FileLocation, LoadError, ModelFiles, ModelSource, load, resolve};
use server::{Behaviour, TestHub};

const REPOSITORY: &str = "org/tiny";
const CHECKPOINT: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
];

fn fixture(name: &str) -> Vec<u8> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/reference");
    std::fs::read(Path::new(root).join(name)).expect("the fixture")
}

fn checkpoint() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = CHECKPOINT
        .iter()
        .map(|file| ((*file).to_owned(), fixture(&format!("qwen2/{file}"))))
        .collect();
    files.push(("README.md".to_owned(), b"not needed".to_vec()));
    files
}

fn options(hub: &TestHub, cache: &Path) -> HubOptions {
    HubOptions {
        endpoint: hub.endpoint(),
        offline: false,
        attempts: 2,
        retry_pause: Duration::ZERO,
        response_timeout: Duration::from_secs(10),
        stall_timeout: Duration::from_secs(10),
        ..HubOptions::offline(cache.to_path_buf())
    }
}

fn fetch(options: &HubOptions) -> Result<ModelFiles, LoadError> {
    fetch_revision(options, None)
}

fn fetch_revision(options: &HubOptions, revision: Option<&str>) -> Result<ModelFiles, LoadError> {
    let source = ModelSource::Hub {
        repository: REPOSITORY.to_owned(),
        revision: revision.map(str::to_owned),
    };
    resolve(&source, options, &Silent)
}

fn hub_error(result: Result<ModelFiles, LoadError>) -> HubError {
    match result {
        Err(LoadError::Hub(error)) => error,
        other => panic!("not an error of the hub: {other:?}"),
    }
}

#[test]
fn a_model_is_downloaded_once_and_loads() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let hub = TestHub::start(REPOSITORY, checkpoint(), Behaviour::default());
    let files = fetch(&options(&hub, cache.path())).expect("a download");
    assert_eq!(files.id, REPOSITORY);
    assert_eq!(load(&files).expect("a valid model").config.layers, 2);
    assert!(
        hub.requests()
            .iter()
            .all(|request| !request.contains("README"))
    );
    let FileLocation::Directory(folder) = &files.location else {
        panic!("{files:?}")
    };
    assert!(folder.ends_with(format!("models--org--tiny/snapshots/{}", server::COMMIT)));

    let before = hub.requests().len();
    fetch(&options(&hub, cache.path())).expect("the cached model");
    let after = hub.requests();
    assert_eq!(
        after.len(),
        before + 1,
        "only the revision is asked for: {:?}",
        &after[before..]
    );
}

#[test]
fn the_cache_serves_without_the_hub() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let hub = TestHub::start(REPOSITORY, checkpoint(), Behaviour::default());
    let mut options = options(&hub, cache.path());
    let missing = HubOptions {
        offline: true,
        ..options.clone()
    };
    let message = hub_error(fetch(&missing)).to_string();
    assert!(
        message.contains("HF_HUB_OFFLINE") && message.contains(REPOSITORY),
        "{message}"
    );

    fetch(&options).expect("a download");
    drop(hub);
    let unreachable = fetch(&options).expect("the cached model");
    assert!(load(&unreachable).is_ok());
    options.offline = true;
    assert!(load(&fetch(&options).expect("the cached model")).is_ok());
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let hub = TestHub::start(REPOSITORY, checkpoint(), Behaviour::default());
    let options = options(&hub, cache.path());
    drop(hub);
    let error = hub_error(fetch(&options));
    assert!(matches!(error, HubError::Unreachable { .. }));
    assert!(error.to_string().contains(&options.endpoint), "{error}");
}

#[test]
fn an_interrupted_file_is_resumed_where_it_broke_off() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let cut = Behaviour {
        cut: Some(("model.safetensors", 70_000)),
        refuse_after_cut: true,
        ..Behaviour::default()
    };
    let hub = TestHub::start(REPOSITORY, checkpoint(), cut);
    let first = options(&hub, cache.path());
    let error = hub_error(fetch(&first));
    let message = error.to_string();
    let HubError::Interrupted {
        received, total, ..
    } = error
    else {
        panic!("{error}")
    };
    assert!(
        received > 0
            && received <= 70_000
            && total == fixture("qwen2/model.safetensors").len() as u64
    );
    assert!(
        message.contains("model.safetensors") && message.contains("go on from there"),
        "{message}"
    );

    hub.set(Behaviour::default());
    let progress = Recorder::default();
    let source = ModelSource::Hub {
        repository: REPOSITORY.to_owned(),
        revision: None,
    };
    let files = resolve(&source, &first, &progress).expect("the rest");
    assert!(load(&files).is_ok());
    assert!(
        hub.requests()
            .iter()
            .any(|request| request.contains(&format!("bytes={received}-")))
    );
    let begun = progress.0.into_inner().expect("no panic");
    assert_eq!(
        begun,
        [("model.safetensors".to_owned(), total, received)],
        "only the broken file, from where it was"
    );
}

/// Notes what begins.
#[derive(Default)]
struct Recorder(Mutex<Vec<(String, u64, u64)>>);

impl DownloadProgress for Recorder {
    fn begin(&self, file: &str, total: u64, present: u64) {
        self.0
            .lock()
            .expect("no panic")
            .push((file.to_owned(), total, present));
    }
    fn advance(&self, _bytes: u64) {}
    fn finish(&self, _file: &str) {}
}

#[test]
fn a_connection_that_breaks_once_is_repaired_within_the_download() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let cut = Behaviour {
        cut: Some(("model.safetensors", 50_000)),
        ..Behaviour::default()
    };
    let hub = TestHub::start(REPOSITORY, checkpoint(), cut);
    assert!(load(&fetch(&options(&hub, cache.path())).expect("a download")).is_ok());
}

#[test]
fn a_server_that_cannot_resume_sends_the_file_again() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let cut = Behaviour {
        cut: Some(("model.safetensors", 50_000)),
        ignore_ranges: true,
        ..Behaviour::default()
    };
    let hub = TestHub::start(REPOSITORY, checkpoint(), cut);
    assert!(load(&fetch(&options(&hub, cache.path())).expect("a download")).is_ok());
}

#[test]
fn a_server_that_stalls_is_left_and_tried_again() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let stall = Behaviour {
        stall: Some(("model.safetensors", 50_000)),
        ..Behaviour::default()
    };
    let hub = TestHub::start(REPOSITORY, checkpoint(), stall);
    let options = HubOptions {
        stall_timeout: Duration::from_millis(50),
        ..options(&hub, cache.path())
    };
    assert!(load(&fetch(&options).expect("a download")).is_ok());
}

#[test]
fn two_at_once_download_each_file_once() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let hub = TestHub::start(REPOSITORY, checkpoint(), Behaviour::default());
    let options = options(&hub, cache.path());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                load(&fetch(&options).expect("a download"))
                    .map(|_| ())
                    .expect("a valid model")
            });
        }
    });
    for file in CHECKPOINT {
        let request = format!("GET /{REPOSITORY}/resolve/{}/{file}", server::COMMIT);
        let count = hub
            .requests()
            .iter()
            .filter(|line| line.starts_with(&request))
            .count();
        assert_eq!(count, 1, "{file}");
    }
}

#[test]
fn gated_repositories_ask_for_a_token_and_take_it() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let gated = Behaviour {
        token: Some("hf_right"),
        ..Behaviour::default()
    };
    let hub = TestHub::start(REPOSITORY, checkpoint(), gated);
    let mut options = options(&hub, cache.path());
    for token in [None, Some(HubToken::new("hf_wrong"))] {
        options.token = token;
        let error = hub_error(fetch(&options));
        assert!(
            matches!(error, HubError::Refused { status: 401, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("HF_TOKEN") && !error.to_string().contains("hf_wrong"));
    }
    options.token = Some(HubToken::new("hf_right"));
    assert!(load(&fetch(&options).expect("a download")).is_ok());
}

#[test]
fn what_does_not_exist_is_named() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let hub = TestHub::start("org/other", checkpoint(), Behaviour::default());
    let error = hub_error(fetch(&options(&hub, cache.path())));
    assert!(
        matches!(error, HubError::NoRepository { .. }) && error.to_string().contains(REPOSITORY),
        "{error}"
    );

    let hub = TestHub::start(
        REPOSITORY,
        checkpoint(),
        Behaviour {
            lost: Some("tokenizer.json"),
            ..Behaviour::default()
        },
    );
    let error = hub_error(fetch(&options(&hub, cache.path())));
    assert!(
        matches!(error, HubError::NoFile { .. }) && error.to_string().contains("tokenizer.json"),
        "{error}"
    );

    let hub = TestHub::start(
        REPOSITORY,
        vec![("pytorch_model.bin".to_owned(), vec![0; 10])],
        Behaviour::default(),
    );
    let error = hub_error(fetch(&options(&hub, cache.path())));
    assert!(matches!(error, HubError::NoWeights { .. }), "{error}");
}

#[test]
fn a_server_error_is_tried_again_and_then_named() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let hub = TestHub::start(
        REPOSITORY,
        checkpoint(),
        Behaviour {
            failing: Some("config.json"),
            ..Behaviour::default()
        },
    );
    let error = hub_error(fetch(&options(&hub, cache.path())));
    assert!(
        matches!(error, HubError::Interrupted { .. }) && error.to_string().contains("503"),
        "{error}"
    );
    let tries = hub
        .requests()
        .iter()
        .filter(|request| request.contains("config.json"))
        .count();
    assert_eq!(tries, 2);
}

#[test]
fn nonsense_from_the_hub_is_an_error() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    for answer in [
        "",
        "<html>",
        "[]",
        "{\"sha\": \"../../etc\", \"siblings\": []}",
        "{\"sha\": \"0123456789\"}",
    ] {
        let hub = TestHub::start(
            REPOSITORY,
            checkpoint(),
            Behaviour {
                info: Some(answer),
                ..Behaviour::default()
            },
        );
        let error = hub_error(fetch(&options(&hub, cache.path())));
        assert!(
            matches!(error, HubError::BadAnswer { .. }),
            "{answer}: {error}"
        );
    }
    let hub = TestHub::start(
        REPOSITORY,
        checkpoint(),
        Behaviour {
            etag: Some("../../x"),
            ..Behaviour::default()
        },
    );
    let error = hub_error(fetch(&options(&hub, cache.path())));
    assert!(matches!(error, HubError::BadAnswer { .. }), "{error}");
}

#[test]
fn large_files_may_live_on_another_server() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let hub = TestHub::start(
        REPOSITORY,
        checkpoint(),
        Behaviour {
            redirect: true,
            ..Behaviour::default()
        },
    );
    assert!(load(&fetch(&options(&hub, cache.path())).expect("a download")).is_ok());
    assert!(
        hub.requests()
            .iter()
            .any(|request| request.contains("/cdn/"))
    );
}

#[test]
fn a_repository_of_one_gguf_file_is_a_model() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let gguf = vec![(
        "tiny-Q8_0.gguf".to_owned(),
        fixture("llama3/model-q8_0.gguf"),
    )];
    let hub = TestHub::start(REPOSITORY, gguf, Behaviour::default());
    let mut options = options(&hub, cache.path());
    assert!(load(&fetch(&options).expect("a download")).is_ok());
    options.offline = true;
    assert!(load(&fetch(&options).expect("the cached model")).is_ok());
}

#[test]
fn a_revision_may_be_a_commit_or_a_branch_with_a_slash() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let hub = TestHub::start(REPOSITORY, checkpoint(), Behaviour::default());
    let mut options = options(&hub, cache.path());
    fetch_revision(&options, Some("refs/pr/1")).expect("a download");
    assert!(hub.requests()[0].contains("/revision/refs%2Fpr%2F1"));
    options.offline = true;
    fetch_revision(&options, Some("refs/pr/1")).expect("the cached branch");
    fetch_revision(&options, Some(server::COMMIT)).expect("the cached commit");
    assert!(fetch(&options).is_err(), "main was never fetched");
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("not-a-folder");
    std::fs::write(&file, b"x").expect("a writable folder");
    let hub = TestHub::start(REPOSITORY, checkpoint(), Behaviour::default());
    let error = hub_error(fetch(&options(&hub, &file.join("hub"))));
    assert!(
        matches!(error, HubError::Disk { .. }) && error.to_string().contains("not-a-folder"),
        "{error}"
    );
}
