//! Many agents at once, each on a thread of its own.

use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::Instant;

use super::error::BenchError;

/// A request needs little stack, and there may be a thousand of them.
const STACK: usize = 512 * 1024;

/// Holds threads back until all are there.
#[derive(Default)]
struct Gate {
    /// `Some(false)` sends them home.
    open: Mutex<Option<bool>>,
    opened: Condvar,
}

impl Gate {
    fn set(&self, open: bool) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(open);
        self.opened.notify_all();
    }

    fn wait(&self) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = self.opened.wait_while(open, |open| open.is_none());
        *open.unwrap_or_else(PoisonError::into_inner) == Some(true)
    }
}

/// Starts `agent(number)` for each number below `count` at the same moment; returns that moment and what
/// they bring, in order.
///
/// # Errors
/// When the system gives no more threads; then no agent has started.
pub fn together<T: Send>(
    count: usize,
    agent: impl Fn(usize) -> T + Sync,
) -> Result<(Instant, Vec<T>), BenchError> {
    let gate = Gate::default();
    std::thread::scope(|scope| {
        let (agent, gate) = (&agent, &gate);
        let threads: io::Result<Vec<_>> = (0..count)
            .map(|number| spawn(scope, move || gate.wait().then(|| agent(number))))
            .collect();
        let threads = threads
            .inspect_err(|_| gate.set(false))
            .map_err(BenchError::Thread)?;
        let started = Instant::now();
        gate.set(true);
        Ok((started, threads.into_iter().filter_map(join).collect()))
    })
}

/// A thread of a scope, with a small stack.
pub fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new()
        .name("agent".to_owned())
        .stack_size(STACK)
        .spawn_scoped(scope, work)
}

/// A panic on the thread goes on here.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn all_run_at_once_and_answer_in_order() {
        // Passes only if all are there at the same time.
        let barrier = Barrier::new(20);
        let (_, numbers) = together(20, |number| {
            barrier.wait();
            number * number
        })
        .unwrap();
        assert_eq!(
            numbers,
            (0..20).map(|number| number * number).collect::<Vec<_>>()
        );
    }
}
