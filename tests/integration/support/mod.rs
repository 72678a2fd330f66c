//! What the stories in this folder share: a server in this process, and a client made of plain sockets.

mod answer;
mod http;
mod server;

pub use answer::Answer;
pub use http::{Event, EventStream, Response, exchange, open_request};
pub use server::TestServer;

use std::time::{Duration, Instant};

/// Longer than anything takes on a loaded machine; only a failing test waits for it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until the condition holds, and fails the test with `what` when it never does. No test depends
/// on how long this takes.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(
            began.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
