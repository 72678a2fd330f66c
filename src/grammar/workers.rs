//! Threads that compute masks beside the forward pass.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::Builder;

use super::constraint::Slot;

/// Masks that may wait. Whoever needs one that found no place computes it itself.
const QUEUE: usize = 1024;
const MOST_THREADS: usize = 8;

/// A few threads, started when the first mask is asked for, ended with the last handle.
#[derive(Debug, Default)]
pub(super) struct MaskWorkers {
    queue: OnceLock<SyncSender<Weak<Slot>>>,
}

impl MaskWorkers {
    /// Has the slot's next mask computed soon. Never blocks.
    pub(super) fn submit(&self, slot: &Arc<Slot>) {
        let queue = self.queue.get_or_init(start);
        // Full, or no thread could be started: the engine computes it when it needs it.
        let _ = queue.try_send(Arc::downgrade(slot));
    }
}

fn start() -> SyncSender<Weak<Slot>> {
    let (queue, jobs) = sync_channel(QUEUE);
    let jobs = Arc::new(Mutex::new(jobs));
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    for number in 0..(cores / 2).clamp(1, MOST_THREADS) {
        let jobs = Arc::clone(&jobs);
        let thread = Builder::new()
            .name(format!("mask-{number}"))
            .spawn(move || work(&jobs));
        if let Err(error) = thread {
            tracing::warn!(%error, "no thread for masks; the engine computes them");
        }
    }
    queue
}

fn work(jobs: &Mutex<Receiver<Weak<Slot>>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            // A sequence that has ended meanwhile needs no mask.
            Ok(slot) => {
                if let Some(slot) = slot.upgrade() {
                    slot.compute_if_due();
                }
            }
            Err(_) => return,
        }
    }
}
