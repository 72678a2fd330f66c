//! Fixed worker threads that share the tiles of one job at a time.
//!
//! The caller works too. A dispatch allocates nothing and waits for no thread that has not joined
//! the job: a worker that wakes too late finds the job closed. Idle workers spin for some
//! microseconds, so that the many small jobs of one step follow each other quickly, and then park.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::KernelError;

/// Threads that compute the tiles of a job together with the caller.
///
/// Tiles are numbered by the caller, so what a tile computes never depends on the number of
/// threads; only which thread computes it does.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: one job at a time, callers from several threads queue here.
    dispatch: Mutex<()>,
}

/// What the caller and the workers share.
struct Shared {
    /// `generation << 17 | open << 16 | workers inside the job`.
    state: AtomicU64,
    /// Of each range the next tile that nobody has taken; one range a thread.
    next: Box<[Next]>,
    /// Written by the caller while no worker is inside and the job is closed.
    job: UnsafeCell<Job>,
    stop: AtomicBool,
    /// One flag a worker: it has parked, or is about to.
    asleep: Box<[AtomicBool]>,
    /// The first panic of the current job.
    panic: Mutex<Option<String>>,
}

// SAFETY: `job` is written only while the state is closed with no worker inside, and read only by
// workers that entered an open state; the state's release/acquire order makes the write visible.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` is used only under the protocol above.
unsafe impl Send for Shared {}

/// On a cache line of its own: threads that count in their own ranges are not in each other's way.
#[derive(Default)]
#[repr(align(64))]
struct Next(AtomicUsize);

#[derive(Clone, Copy)]
struct Job {
    call: unsafe fn(*const (), usize, usize),
    data: *const (),
    tiles: usize,
    /// In how many equal ranges tiles are handed out: one, or as many as there are threads.
    ranges: usize,
}

impl Job {
    /// The first tile of a range, or the end of the one before.
    fn start(&self, range: usize) -> usize {
        range * self.tiles / self.ranges
    }
}

const OPEN: u64 = 1 << 16;
const INSIDE: u64 = OPEN - 1;
const GENERATION: u64 = 1 << 17;
const SPIN: Duration = Duration::from_micros(50);

thread_local! {
    /// Set while this thread computes tiles: a job started from inside a job runs on this thread alone.
    static IN_JOB: Cell<bool> = const { Cell::new(false) };
}

impl ThreadPool {
    /// A pool of `threads` threads, the caller being one of them. At least 1, at most 1,024.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn new(threads: usize) -> Result<Self, KernelError> {
        let helpers = threads.clamp(1, 1024) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: (0..=helpers).map(|_| Next::default()).collect(),
            job: UnsafeCell::new(Job {
                call: call_nothing,
                data: std::ptr::null(),
                tiles: 0,
                ranges: 1,
            }),
            stop: AtomicBool::new(false),
            asleep: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
        });
        let mut pool = Self {
            shared,
            workers: Vec::with_capacity(helpers),
            dispatch: Mutex::new(()),
        };
        for index in 0..helpers {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("kernel-{}", index + 1))
                .spawn(move || work(&shared, index))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// The number of threads that compute, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// The number of physical cores that this process may use: hyperthreads share the vector units,
    /// so more threads than this only get in each other's way.
    pub fn physical_cores() -> usize {
        let usable = std::thread::available_parallelism().map_or(1, usize::from);
        let mut cores = std::collections::BTreeSet::new();
        let Ok(entries) = std::fs::read_dir("/sys/devices/system/cpu") else {
            return usable;
        };
        for entry in entries.flatten() {
            let topology = entry.path().join("topology");
            let read = |name| std::fs::read_to_string(topology.join(name)).ok();
            if let (Some(package), Some(core)) = (read("physical_package_id"), read("core_id")) {
                cores.insert((package, core));
            }
        }
        if cores.is_empty() {
            usable
        } else {
            usable.min(cores.len())
        }
    }

    /// Calls `job(thread, tile)` once for every tile below `tiles`, on all threads, and returns when
    /// all are done. `thread` is below [`Self::threads`] and no two tiles run with the same one at a time.
    ///
    /// # Errors
    /// [`KernelError::JobPanicked`] when a tile panicked; some of the other tiles may not have run.
    pub fn run<F: Fn(usize, usize) + Sync>(&self, tiles: usize, job: F) -> Result<(), KernelError> {
        self.run_with_ranges(1, tiles, job)
    }

    /// On all threads, tiles being handed out in so many ranges; with none, on this thread alone.
    fn run_with_ranges<F: Fn(usize, usize) + Sync>(
        &self,
        ranges: usize,
        tiles: usize,
        job: F,
    ) -> Result<(), KernelError> {
        if tiles == 0 {
            return Ok(());
        }
        if ranges == 0 || tiles == 1 || self.workers.is_empty() || IN_JOB.get() {
            return self.run_alone(tiles, &job);
        }
        let _dispatch = lock(&self.dispatch);
        let shared = &*self.shared;
        let job = Job {
            call: call_closure::<F>,
            data: (&raw const job).cast(),
            tiles,
            ranges,
        };
        // SAFETY: the dispatch lock is held and the last job was closed and left by all workers.
        unsafe { *shared.job.get() = job };
        for (range, next) in shared.next.iter().enumerate().take(ranges) {
            next.0.store(job.start(range), Ordering::Relaxed);
        }
        let generation = shared.state.load(Ordering::Relaxed) & !(OPEN | INSIDE);
        // Sequentially consistent against `asleep`: either a worker that is about to park sees the
        // open state, or this thread sees its flag and unparks it.
        shared
            .state
            .store(generation.wrapping_add(GENERATION) | OPEN, Ordering::SeqCst);
        for (worker, asleep) in self.workers.iter().zip(&shared.asleep).take(tiles - 1) {
            if asleep.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        take_tiles(shared, 0);
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins < 4096 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        match lock(&shared.panic).take() {
            None => Ok(()),
            Some(message) => Err(KernelError::JobPanicked(message)),
        }
    }

    /// [`Self::run`] if the job is worth waking other threads for, else on this thread alone.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_if<F: Fn(usize, usize) + Sync>(
        &self,
        worth: bool,
        tiles: usize,
        job: F,
    ) -> Result<(), KernelError> {
        self.run_with_ranges(usize::from(worth), tiles, job)
    }

    /// As [`Self::run_if`]. A thread's tiles follow each other, until it takes over some of another one's: for tiles that
    /// lie beside each other in memory, so that each can ask for the next one's in time.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_neighbours_if<F: Fn(usize, usize) + Sync>(
        &self,
        worth: bool,
        tiles: usize,
        job: F,
    ) -> Result<(), KernelError> {
        let ranges = if worth { self.threads() } else { 0 };
        self.run_with_ranges(ranges, tiles, job)
    }

    fn run_alone(&self, tiles: usize, job: &dyn Fn(usize, usize)) -> Result<(), KernelError> {
        // The caller's thread number is free: nested jobs run on one thread, with scratch of their own.
        catch_unwind(AssertUnwindSafe(|| {
            (0..tiles).for_each(|tile| job(0, tile))
        }))
        .map_err(|panic| KernelError::JobPanicked(panic_text(&*panic)))
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker cannot panic outside a job, and a job's panic is caught.
            let _ = worker.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The placeholder job of a pool that has not run yet.
unsafe fn call_nothing(_: *const (), _: usize, _: usize) {}

/// # Safety
/// `data` points to a live `F`.
unsafe fn call_closure<F: Fn(usize, usize) + Sync>(data: *const (), thread: usize, tile: usize) {
    // SAFETY: promised by the caller; `F` is `Sync`, so sharing it among threads is sound.
    unsafe { (*data.cast::<F>())(thread, tile) }
}

/// Takes tiles of the open job until none is left. Runs only between entering and leaving it.
fn take_tiles(shared: &Shared, thread: usize) {
    // SAFETY: the caller has entered the job (or is its dispatcher), so nobody writes it now.
    let job = unsafe { *shared.job.get() };
    IN_JOB.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        for range in (0..job.ranges).map(|range| (thread + range) % job.ranges) {
            let end = job.start(range + 1);
            loop {
                let tile = shared.next[range].0.fetch_add(1, Ordering::Relaxed);
                if tile >= end {
                    break;
                }
                // SAFETY: the dispatcher keeps the closure alive until all have left the job.
                unsafe { (job.call)(job.data, thread, tile) };
            }
        }
    }));
    IN_JOB.set(false);
    if let Err(panic) = outcome {
        // No thread needs to start another tile of a job that has failed.
        for next in &shared.next {
            next.0.store(job.tiles, Ordering::Relaxed);
        }
        lock(&shared.panic).get_or_insert_with(|| panic_text(&*panic));
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "of unknown type".to_owned()
    }
}

/// A worker's life: join every job that is open, spin a little, park.
fn work(shared: &Shared, index: usize) {
    let mut last_generation = 0;
    let mut idle_since: Option<Instant> = None;
    loop {
        let state = shared.state.load(Ordering::SeqCst);
        let generation = state & !(OPEN | INSIDE);
        if state & OPEN != 0 && generation != last_generation {
            let entered = shared.state.compare_exchange(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if entered.is_ok() {
                take_tiles(shared, index + 1);
                shared.state.fetch_sub(1, Ordering::AcqRel);
                last_generation = generation;
                idle_since = None;
            }
            continue;
        }
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let since = *idle_since.get_or_insert_with(Instant::now);
        if since.elapsed() < SPIN {
            for _ in 0..32 {
                std::hint::spin_loop();
            }
            continue;
        }
        shared.asleep[index].store(true, Ordering::SeqCst);
        let state = shared.state.load(Ordering::SeqCst);
        let nothing_new = state & OPEN == 0 || state & !(OPEN | INSIDE) == last_generation;
        if nothing_new && !shared.stop.load(Ordering::SeqCst) {
            std::thread::park();
        }
        shared.asleep[index].store(false, Ordering::SeqCst);
        idle_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = ThreadPool::new(threads).unwrap();
            for tiles in [0, 1, 2, 7, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..tiles).map(|_| AtomicUsize::new(0)).collect();
                let count = |thread: usize, tile: usize| {
                    assert!(thread < threads);
                    counts[tile].fetch_add(1, Ordering::Relaxed);
                };
                let all_are = |expected: usize| {
                    counts
                        .iter()
                        .all(|count| count.load(Ordering::Relaxed) == expected)
                };
                pool.run(tiles, count).unwrap();
                assert!(all_are(1));
                pool.run_neighbours_if(true, tiles, count).unwrap();
                assert!(all_are(2));
            }
        }
    }

    #[test]
    fn many_small_jobs_in_a_row() {
        let pool = ThreadPool::new(4).unwrap();
        let total = AtomicUsize::new(0);
        for _ in 0..20_000 {
            pool.run(5, |_, tile| {
                total.fetch_add(tile, Ordering::Relaxed);
            })
            .unwrap();
        }
        assert_eq!(total.load(Ordering::Relaxed), 20_000 * 10);
    }

    #[test]
    fn parked_workers_wake_up() {
        let pool = ThreadPool::new(3).unwrap();
        for _ in 0..5 {
            while !pool
                .shared
                .asleep
                .iter()
                .all(|flag| flag.load(Ordering::SeqCst))
            {
                std::thread::yield_now();
            }
            // Two tiles that wait for each other need two threads at once.
            let barrier = std::sync::Barrier::new(2);
            pool.run(2, |_, _| {
                barrier.wait();
            })
            .unwrap();
        }
    }

    #[test]
    fn neighbours_begin_at_different_ranges() {
        let pool = ThreadPool::new(2).unwrap();
        let firsts = Mutex::new(std::collections::BTreeMap::new());
        let barrier = std::sync::Barrier::new(2);
        pool.run_neighbours_if(true, 6, |thread, tile| {
            let mut is_first = false;
            lock(&firsts).entry(thread).or_insert_with(|| {
                is_first = true;
                tile
            });
            // So neither thread can take the other's tiles before that one has begun.
            if is_first {
                barrier.wait();
            }
        })
        .unwrap();
        let firsts = firsts.into_inner().unwrap();
        assert_eq!(firsts.into_iter().collect::<Vec<_>>(), [(0, 0), (1, 3)]);
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_goes_on() {
        for threads in [1, 4] {
            let pool = ThreadPool::new(threads).unwrap();
            for bad in [0, 3, 63] {
                let job = |_: usize, tile: usize| assert!(tile != bad, "tile {tile} is bad");
                for result in [pool.run(64, job), pool.run_neighbours_if(true, 64, job)] {
                    let message = result.unwrap_err().to_string();
                    assert!(message.contains(&format!("tile {bad} is bad")), "{message}");
                }
                pool.run(64, |_, _| {}).unwrap();
            }
        }
    }

    #[test]
    fn a_job_inside_a_job_runs_on_its_own_thread() {
        let pool = ThreadPool::new(3).unwrap();
        let total = AtomicUsize::new(0);
        pool.run(8, |_, _| {
            pool.run(10, |_, tile| {
                total.fetch_add(tile, Ordering::Relaxed);
            })
            .unwrap();
        })
        .unwrap();
        assert_eq!(total.load(Ordering::Relaxed), 8 * 45);
    }

    #[test]
    fn callers_on_several_threads_queue() {
        let pool = ThreadPool::new(2).unwrap();
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(7, |_, tile| {
                            total.fetch_add(tile, Ordering::Relaxed);
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 4 * 200 * 21);
    }
}
