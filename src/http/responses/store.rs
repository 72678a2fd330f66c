//! The responses that clients may come back to, in memory and bounded.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use crate::actors::streamer::Interrupter;

/// A response that is complete, and what it takes to go on from it.
#[derive(Debug, Clone)]
pub struct StoredResponse {
    /// The object as the client got it.
    pub response: Value,
    /// The items that the client sent with the request, each with an id.
    pub input_items: Vec<Value>,
    /// The conversation up to and with this response, as chat messages, without `instructions`.
    pub messages: Vec<Value>,
}

impl StoredResponse {
    /// About how much memory it takes: its length as JSON text.
    fn bytes(&self) -> usize {
        let lists = self.input_items.iter().chain(&self.messages);
        lists
            .chain([&self.response])
            .map(|value| value.to_string().len())
            .sum()
    }
}

/// Bounds of a [`ResponseStore`].
#[derive(Debug, Clone, Copy)]
pub struct StoreLimits {
    /// Responses kept. 0: none is.
    pub entries: usize,
    /// Bytes of all of them together. A larger response is not kept.
    pub bytes: usize,
}

/// Shared by all workers. When it is full, those not used for the longest time go first.
#[derive(Debug, Clone)]
pub struct ResponseStore {
    limits: StoreLimits,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    kept: HashMap<String, Kept>,
    /// Ids by when they were last used.
    order: BTreeMap<u64, String>,
    clock: u64,
    bytes: usize,
    /// Bounded by the requests that may run and wait.
    running: HashMap<String, Running>,
}

#[derive(Debug)]
struct Kept {
    stored: Arc<StoredResponse>,
    bytes: usize,
    used: u64,
}

#[derive(Debug, Clone)]
struct Running {
    interrupter: Interrupter,
    /// The object as it was when the response began.
    response: Arc<Value>,
    ended: watch::Receiver<Option<Value>>,
}

/// A response that is being generated.
#[derive(Debug)]
pub struct RunningResponse {
    /// The object as it was when the response began.
    pub response: Arc<Value>,
    interrupter: Interrupter,
    ended: watch::Receiver<Option<Value>>,
}

impl RunningResponse {
    /// Ends it and gives the object that its client got. None: nobody waits for it any more.
    pub async fn cancel(mut self) -> Option<Value> {
        self.interrupter.interrupt();
        match self.ended.wait_for(Option::is_some).await {
            Ok(response) => response.clone(),
            Err(_) => None,
        }
    }
}

/// Held while a response is generated; dropping it takes it off the list.
#[derive(Debug)]
pub struct Registration {
    store: ResponseStore,
    id: String,
    end: watch::Sender<Option<Value>>,
}

impl Registration {
    /// The response is complete: those who cancelled it are told.
    pub fn complete(&self, response: &Value) {
        // Nobody may be waiting.
        let _ = self.end.send(Some(response.clone()));
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.store.state().running.remove(&self.id);
    }
}

impl ResponseStore {
    pub fn new(limits: StoreLimits) -> Self {
        Self {
            limits,
            state: Arc::default(),
        }
    }

    /// The state is consistent after each statement, so a panic elsewhere does not spoil it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a response, and drops those for which there is no more room.
    pub fn keep(&self, id: &str, stored: StoredResponse) {
        let bytes = stored.bytes();
        if self.limits.entries == 0 || bytes > self.limits.bytes {
            return;
        }
        let mut state = self.state();
        state.remove(id);
        while state.kept.len() >= self.limits.entries || state.bytes + bytes > self.limits.bytes {
            let Some((_, oldest)) = state.order.pop_first() else {
                break;
            };
            state.remove(&oldest);
        }
        let used = state.tick();
        state.order.insert(used, id.to_owned());
        state.bytes += bytes;
        let kept = Kept {
            stored: Arc::new(stored),
            bytes,
            used,
        };
        state.kept.insert(id.to_owned(), kept);
    }

    /// A response, which has been used thereby.
    pub fn get(&self, id: &str) -> Option<Arc<StoredResponse>> {
        let mut state = self.state();
        let now = state.tick();
        let kept = state.kept.get_mut(id)?;
        let before = std::mem::replace(&mut kept.used, now);
        let stored = Arc::clone(&kept.stored);
        state.order.remove(&before);
        state.order.insert(now, id.to_owned());
        Some(stored)
    }

    /// Forgets a response; true if it was there.
    pub fn delete(&self, id: &str) -> bool {
        self.state().remove(id)
    }

    /// The item with this id, of any response that is kept.
    pub fn item(&self, id: &str) -> Option<Value> {
        let state = self.state();
        let all = state.kept.values().flat_map(|kept| {
            let output = kept.stored.response["output"].as_array();
            kept.stored
                .input_items
                .iter()
                .chain(output.into_iter().flatten())
        });
        let mut found = all.filter(|item| item["id"] == id);
        found.next().cloned()
    }

    /// Notes that a response is being generated.
    pub fn register(&self, id: &str, response: Value, interrupter: Interrupter) -> Registration {
        let (end, ended) = watch::channel(None);
        let running = Running {
            interrupter,
            response: Arc::new(response),
            ended,
        };
        self.state().running.insert(id.to_owned(), running);
        Registration {
            store: self.clone(),
            id: id.to_owned(),
            end,
        }
    }

    /// A response that is being generated.
    pub fn running(&self, id: &str) -> Option<RunningResponse> {
        let running = self.state().running.get(id).cloned()?;
        Some(RunningResponse {
            response: running.response,
            interrupter: running.interrupter,
            ended: running.ended,
        })
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn remove(&mut self, id: &str) -> bool {
        match self.kept.remove(id) {
            Some(kept) => {
                self.order.remove(&kept.used);
                self.bytes -= kept.bytes;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stored(text: &str) -> StoredResponse {
        StoredResponse {
            response: json!({"output": [{"id": format!("msg_{text}")}]}),
            input_items: vec![json!({"id": format!("in_{text}")})],
            messages: Vec::new(),
        }
    }

    fn store(entries: usize, bytes: usize) -> ResponseStore {
        ResponseStore::new(StoreLimits { entries, bytes })
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let store = store(2, 10_000);
        store.keep("a", stored("a"));
        store.keep("b", stored("b"));
        assert!(store.get("a").is_some());
        store.keep("c", stored("c"));
        assert!(store.get("b").is_none());
        assert!(store.get("a").is_some() && store.get("c").is_some());
        assert!(store.delete("a") && !store.delete("a"));
        assert!(store.get("a").is_none());
    }

    #[test]
    fn bytes_are_bounded_and_counted_back() {
        let one = stored("a").bytes();
        let store = store(100, 2 * one + one / 2);
        for name in ["a", "b", "c", "d"] {
            store.keep(name, stored(name));
            store.keep(name, stored(name));
        }
        let kept = ["a", "b", "c", "d"].map(|name| store.get(name).is_some());
        assert_eq!(kept, [false, false, true, true]);
        assert_eq!(store.state().bytes, 2 * one);
        store.keep("big", stored(&"x".repeat(10 * one)));
        assert!(store.get("big").is_none(), "larger than all");
        assert!(store.get("d").is_some(), "and nothing went for it");
        store.delete("c");
        store.delete("d");
        let state = store.state();
        assert_eq!((state.bytes, state.order.len()), (0, 0));
    }

    #[test]
    fn nothing_is_kept_without_room() {
        let store = store(0, 10_000);
        store.keep("a", stored("a"));
        assert!(store.get("a").is_none());
    }

    #[test]
    fn items_are_found_by_their_ids() {
        let store = store(2, 10_000);
        store.keep("a", stored("a"));
        assert!(store.item("msg_a").is_some() && store.item("in_a").is_some());
        assert!(store.item("msg_b").is_none());
    }

    #[test]
    fn running_responses_are_listed_until_they_end() {
        let store = store(2, 10_000);
        let registration = store.register("r", json!({}), Interrupter::new(Vec::new()));
        assert!(store.running("r").is_some());
        drop(registration);
        assert!(store.running("r").is_none());
    }
}
