//! Which model is in memory, who uses it, and who waits for which: the manager's decisions without
//! its actor, so that they are tested alone.
//!
//! One model is in memory at a time. A request for it gets it at once, unless one for another model
//! waits: then it queues behind, so that a busy model cannot keep another out for ever. When the last
//! lease ends, the model whose turn it is comes in, and all that wait for it get it together, so that
//! two models in turn cost one swap a batch, not one a request.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::catalogue::ModelIndex;

/// The state of the one place in memory. `W` is what a waiting requester is answered with.
#[derive(Debug)]
pub struct Occupancy<W> {
    place: Place,
    waiting: VecDeque<(ModelIndex, W)>,
    /// The longest that `waiting` may get.
    limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Empty,
    Loading(ModelIndex),
    Loaded {
        model: ModelIndex,
        /// Requests that use it; it is not unloaded before they are done.
        leases: usize,
        /// When the last lease ended, or the model was loaded.
        since: Instant,
        /// Its engine has died: nobody gets it any more, and it goes when the last lease ends.
        broken: bool,
    },
    Unloading(ModelIndex),
}

/// What the manager must do now, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<W> {
    /// Answer with a lease of the model in memory; the lease is counted already.
    Grant(W),
    Load(ModelIndex),
    Unload(ModelIndex),
}

impl<W> Occupancy<W> {
    /// Nothing in memory; at most `limit` requesters may wait.
    pub fn new(limit: usize) -> Self {
        Occupancy {
            place: Place::Empty,
            waiting: VecDeque::new(),
            limit,
        }
    }

    /// The state of the place.
    pub fn place(&self) -> Place {
        self.place
    }

    /// A requester wants `model`.
    ///
    /// # Errors
    /// Gives the requester back when too many wait already.
    pub fn acquire(
        &mut self,
        model: ModelIndex,
        requester: W,
        now: Instant,
    ) -> Result<Vec<Command<W>>, W> {
        if self.waiting.len() >= self.limit {
            return Err(requester);
        }
        self.waiting.push_back((model, requester));
        Ok(self.advance(now))
    }

    /// Loads `model` into the empty place without anybody asking: at start.
    pub fn preload(&mut self, model: ModelIndex) -> Vec<Command<W>> {
        debug_assert_eq!(self.place, Place::Empty);
        self.place = Place::Loading(model);
        vec![Command::Load(model)]
    }

    /// The model that was loading is ready: all that wait for it get it.
    pub fn loaded(&mut self, now: Instant) -> Vec<Command<W>> {
        let Place::Loading(model) = self.place else {
            return Vec::new();
        };
        let mut commands = Vec::new();
        for (wanted, requester) in std::mem::take(&mut self.waiting) {
            if wanted == model {
                commands.push(Command::Grant(requester));
            } else {
                self.waiting.push_back((wanted, requester));
            }
        }
        self.place = Place::Loaded {
            model,
            leases: commands.len(),
            since: now,
            broken: false,
        };
        commands.extend(self.advance(now));
        commands
    }

    /// The model that was loading could not be: all that wait for it are given back, to be told. A
    /// later request tries again.
    pub fn load_failed(&mut self, now: Instant) -> (Vec<W>, Vec<Command<W>>) {
        let Place::Loading(model) = self.place else {
            return (Vec::new(), Vec::new());
        };
        self.place = Place::Empty;
        let mut refused = Vec::new();
        for (wanted, requester) in std::mem::take(&mut self.waiting) {
            if wanted == model {
                refused.push(requester);
            } else {
                self.waiting.push_back((wanted, requester));
            }
        }
        (refused, self.advance(now))
    }

    /// The model that was unloading is gone from memory.
    pub fn unloaded(&mut self, now: Instant) -> Vec<Command<W>> {
        self.place = Place::Empty;
        self.advance(now)
    }

    /// A lease ended.
    pub fn released(&mut self, now: Instant) -> Vec<Command<W>> {
        if let Place::Loaded { leases, since, .. } = &mut self.place {
            *leases = leases.saturating_sub(1);
            *since = now;
        }
        self.advance(now)
    }

    /// Unloads a model that nobody has used for `limit`. Otherwise says when to look again, if there
    /// is a model that may become idle.
    pub fn unload_if_idle(
        &mut self,
        limit: Duration,
        now: Instant,
    ) -> Result<Vec<Command<W>>, Option<Duration>> {
        match self.place {
            Place::Loaded {
                model,
                leases: 0,
                since,
                ..
            } => {
                let idle = now.saturating_duration_since(since);
                match limit.checked_sub(idle).filter(|left| !left.is_zero()) {
                    Some(left) => Err(Some(left)),
                    None => {
                        self.place = Place::Unloading(model);
                        Ok(vec![Command::Unload(model)])
                    }
                }
            }
            Place::Loaded { .. } => Err(Some(limit)),
            _ => Err(None),
        }
    }

    /// The engine of the model in memory has died: the model is unloaded when its requests have ended,
    /// and loaded anew when one is wanted.
    pub fn broke(&mut self, now: Instant) -> Vec<Command<W>> {
        if let Place::Loaded { broken, .. } = &mut self.place {
            *broken = true;
        }
        self.advance(now)
    }

    /// Gives back all that wait, when the server drains.
    pub fn refuse_all(&mut self) -> Vec<W> {
        self.waiting
            .drain(..)
            .map(|(_, requester)| requester)
            .collect()
    }

    /// Requests that use the model in memory.
    pub fn leases(&self) -> usize {
        match self.place {
            Place::Loaded { leases, .. } => leases,
            _ => 0,
        }
    }

    /// Does what the place and the queue's head allow.
    fn advance(&mut self, now: Instant) -> Vec<Command<W>> {
        let mut commands = Vec::new();
        loop {
            let wanted = self.waiting.front().map(|(wanted, _)| *wanted);
            match (&mut self.place, wanted) {
                (
                    Place::Loaded {
                        model,
                        leases,
                        since,
                        broken: false,
                    },
                    Some(wanted),
                ) if *model == wanted => {
                    *leases += 1;
                    *since = now;
                    commands.extend(
                        self.waiting
                            .pop_front()
                            .map(|(_, requester)| Command::Grant(requester)),
                    );
                }
                (
                    Place::Loaded {
                        model,
                        leases: 0,
                        broken,
                        ..
                    },
                    wanted,
                ) if *broken || wanted.is_some() => {
                    let model = *model;
                    self.place = Place::Unloading(model);
                    commands.push(Command::Unload(model));
                }
                (Place::Empty, Some(wanted)) => {
                    self.place = Place::Loading(wanted);
                    commands.push(Command::Load(wanted));
                }
                _ => return commands,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::model_manager::catalogue::Catalogue;
    use crate::config::{Config, NamedValue};
    use Command::{Grant, Load, Unload};

    /// Two models, A and B.
    fn models() -> (ModelIndex, ModelIndex) {
        let config = Config {
            model: "a".into(),
            models: ["a", "b"]
                .map(|id| NamedValue {
                    name: id.into(),
                    value: format!("org/{id}"),
                })
                .into(),
            allow_swap: true,
            ..Config::default()
        };
        let catalogue = Catalogue::new(&config).unwrap();
        (
            catalogue.resolve("a").unwrap(),
            catalogue.resolve("b").unwrap(),
        )
    }

    fn with_loaded(model: ModelIndex, now: Instant) -> Occupancy<u32> {
        let mut occupancy = Occupancy::new(4);
        assert_eq!(occupancy.preload(model), [Load(model)]);
        assert_eq!(occupancy.loaded(now), []);
        occupancy
    }

    #[test]
    fn requests_for_the_loaded_model_are_granted_at_once() {
        let (a, _) = models();
        let now = Instant::now();
        let mut occupancy = with_loaded(a, now);
        assert_eq!(occupancy.acquire(a, 1, now), Ok(vec![Grant(1)]));
        assert_eq!(occupancy.acquire(a, 2, now), Ok(vec![Grant(2)]));
        assert_eq!(occupancy.leases(), 2);
    }

    #[test]
    fn requests_during_the_load_are_granted_when_it_is_done() {
        let (a, _) = models();
        let now = Instant::now();
        let mut occupancy = Occupancy::new(4);
        assert_eq!(occupancy.acquire(a, 1, now), Ok(vec![Load(a)]));
        assert_eq!(occupancy.acquire(a, 2, now), Ok(vec![]));
        assert_eq!(occupancy.loaded(now), [Grant(1), Grant(2)]);
    }

    #[test]
    fn a_swap_waits_for_running_requests_and_later_ones_wait_for_the_swap() {
        let (a, b) = models();
        let now = Instant::now();
        let mut occupancy = with_loaded(a, now);
        assert_eq!(occupancy.acquire(a, 1, now), Ok(vec![Grant(1)]));
        assert_eq!(occupancy.acquire(b, 2, now), Ok(vec![]));
        assert_eq!(
            occupancy.acquire(a, 3, now),
            Ok(vec![]),
            "it would keep B out"
        );
        assert_eq!(occupancy.acquire(b, 4, now), Ok(vec![]));
        assert_eq!(occupancy.released(now), [Unload(a)]);
        assert_eq!(occupancy.unloaded(now), [Load(b)]);
        assert_eq!(
            occupancy.loaded(now),
            [Grant(2), Grant(4)],
            "the whole batch of B"
        );
        assert_eq!(occupancy.released(now), []);
        assert_eq!(occupancy.released(now), [Unload(b)]);
        assert_eq!(occupancy.unloaded(now), [Load(a)]);
        assert_eq!(occupancy.loaded(now), [Grant(3)]);
    }

    #[test]
    fn the_queue_is_bounded() {
        let (a, _) = models();
        let now = Instant::now();
        let mut occupancy = Occupancy::new(2);
        assert!(occupancy.acquire(a, 1, now).is_ok());
        assert!(occupancy.acquire(a, 2, now).is_ok());
        assert_eq!(occupancy.acquire(a, 3, now), Err(3));
    }

    #[test]
    fn a_failed_load_is_told_and_tried_again() {
        let (a, b) = models();
        let now = Instant::now();
        let mut occupancy = Occupancy::new(4);
        assert_eq!(occupancy.acquire(a, 1, now), Ok(vec![Load(a)]));
        assert_eq!(occupancy.acquire(b, 2, now), Ok(vec![]));
        assert_eq!(occupancy.load_failed(now), (vec![1], vec![Load(b)]));
        assert_eq!(occupancy.loaded(now), [Grant(2)]);
        assert_eq!(occupancy.acquire(a, 3, now), Ok(vec![]));
        assert_eq!(occupancy.released(now), [Unload(b)]);
        assert_eq!(
            occupancy.unloaded(now),
            [Load(a)],
            "the next request tries again"
        );
    }

    #[test]
    fn an_idle_model_is_unloaded_and_comes_back_on_request() {
        let (a, _) = models();
        let start = Instant::now();
        let limit = Duration::from_secs(60);
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut occupancy = with_loaded(a, start);
        assert_eq!(
            occupancy.unload_if_idle(limit, later(20)),
            Err(Some(Duration::from_secs(40)))
        );
        assert_eq!(occupancy.acquire(a, 1, later(50)), Ok(vec![Grant(1)]));
        assert_eq!(
            occupancy.unload_if_idle(limit, later(500)),
            Err(Some(limit)),
            "in use"
        );
        assert_eq!(occupancy.released(later(500)), []);
        assert_eq!(
            occupancy.unload_if_idle(limit, later(560)),
            Ok(vec![Unload(a)])
        );
        assert_eq!(
            occupancy.acquire(a, 2, later(560)),
            Ok(vec![]),
            "not while it leaves"
        );
        assert_eq!(occupancy.unloaded(later(561)), [Load(a)]);
        assert_eq!(occupancy.loaded(later(562)), [Grant(2)]);
    }

    #[test]
    fn a_model_whose_engine_died_is_loaded_anew() {
        let (a, _) = models();
        let now = Instant::now();
        let mut occupancy = with_loaded(a, now);
        assert_eq!(occupancy.acquire(a, 1, now), Ok(vec![Grant(1)]));
        assert_eq!(occupancy.broke(now), []);
        assert_eq!(
            occupancy.acquire(a, 2, now),
            Ok(vec![]),
            "not the broken one"
        );
        assert_eq!(occupancy.released(now), [Unload(a)]);
        assert_eq!(occupancy.unloaded(now), [Load(a)]);
        assert_eq!(occupancy.loaded(now), [Grant(2)]);
    }
}
