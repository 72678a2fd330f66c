//! A compiled grammar, and one sequence's way through it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use super::workers::MaskWorkers;
use crate::ids::TokenId;

/// The tokens that may come next.
#[derive(Debug, Clone)]
pub struct TokenMask(SimpleVob);

impl TokenMask {
    pub(super) fn new(mask: SimpleVob) -> Self {
        Self(mask)
    }

    pub fn allows(&self, token: TokenId) -> bool {
        (token.0 as usize) < self.0.len() && self.0.is_allowed(token.0)
    }

    /// Sets the logits of all other tokens to minus infinity.
    pub fn apply(&self, logits: &mut [f32]) {
        const BITS: usize = u32::BITS as usize;
        let words = self.0.as_slice();
        for (index, chunk) in logits.chunks_mut(BITS).enumerate() {
            let word = words.get(index).copied().unwrap_or(0);
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in chunk.iter_mut().enumerate() {
                if word & (1 << bit) == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// Allowed tokens, in the order of ids.
    pub fn tokens(&self) -> impl Iterator<Item = TokenId> + '_ {
        self.0.iter().map(TokenId)
    }
}

/// A grammar compiled for one model's vocabulary. Shared by all sequences that follow it.
pub struct Grammar {
    /// At the beginning; sequences start from a copy.
    matcher: Mutex<Matcher>,
    first: Arc<TokenMask>,
    /// Sampling one of these ends the output.
    end_tokens: Arc<[TokenId]>,
    workers: Arc<MaskWorkers>,
    /// The hash of what it was compiled from.
    key: blake3::Hash,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Grammar").field(&self.key.to_hex()).finish()
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Grammar {
    /// A grammar whose first mask is known. `matcher` has not consumed anything.
    pub(super) fn new(
        matcher: Matcher,
        first: TokenMask,
        end_tokens: Arc<[TokenId]>,
        workers: Arc<MaskWorkers>,
        key: blake3::Hash,
    ) -> Self {
        Self {
            matcher: Mutex::new(matcher),
            first: Arc::new(first),
            end_tokens,
            workers,
            key,
        }
    }

    /// A copy that shares nothing, so that no sequence's masks can depend on another's.
    fn matcher(&self) -> Matcher {
        self.matcher
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .deep_clone()
    }
}

/// One sequence's place in a grammar. The mask of its next token is computed by another thread as soon as
/// the token before it is known, or, where none got round to it, by whoever asks for it.
#[derive(Debug)]
pub struct Constraint {
    grammar: Arc<Grammar>,
    slot: Arc<Slot>,
}

impl Constraint {
    /// At the beginning of the grammar.
    pub fn new(grammar: Arc<Grammar>) -> Self {
        let state = State::Ready {
            matcher: None,
            mask: Ok(Arc::clone(&grammar.first)),
        };
        let slot = Arc::new(Slot {
            grammar: Arc::clone(&grammar),
            state: Mutex::new(state),
            ready: Condvar::new(),
        });
        Self { grammar, slot }
    }

    /// The tokens that may come next. At the end of the grammar these are the model's end tokens.
    ///
    /// # Errors
    /// The grammar has become too complex to go on.
    pub fn allowed(&self) -> Result<Arc<TokenMask>, String> {
        self.slot.compute_if_due();
        let mut state = self.slot.lock();
        loop {
            match &*state {
                State::Ready { mask, .. } => return mask.clone(),
                // Queued again by nobody: `advance` takes the constraint mutably.
                State::Due { .. } | State::Computing => {
                    state = self
                        .slot
                        .ready
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Takes the token that was sampled, one that is allowed.
    pub fn advance(&mut self, token: TokenId) {
        if self.is_end(token) {
            return;
        }
        let mut state = self.slot.lock();
        if let State::Ready { matcher, mask } = &mut *state {
            if mask.is_err() {
                return;
            }
            let matcher = matcher.take();
            *state = State::Due { matcher, token };
            drop(state);
            self.grammar.workers.submit(&self.slot);
        }
    }

    /// Sampling this token ends the output.
    pub fn is_end(&self, token: TokenId) -> bool {
        self.grammar.end_tokens.contains(&token)
    }
}

/// What a constraint shares with the thread that computes its mask.
#[derive(Debug)]
pub(super) struct Slot {
    grammar: Arc<Grammar>,
    state: Mutex<State>,
    ready: Condvar,
}

enum State {
    /// The mask after the last token. The matcher is None until the first token.
    Ready {
        matcher: Option<Box<Matcher>>,
        mask: Result<Arc<TokenMask>, String>,
    },
    /// A token was sampled: the mask after it is wanted.
    Due {
        matcher: Option<Box<Matcher>>,
        token: TokenId,
    },
    Computing,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Ready { .. } => "Ready",
            State::Due { .. } => "Due",
            State::Computing => "Computing",
        })
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Computes the mask if it is wanted and nobody is at it.
    pub(super) fn compute_if_due(&self) {
        let mut state = self.lock();
        if !matches!(*state, State::Due { .. }) {
            return;
        }
        let State::Due { matcher, token } = std::mem::replace(&mut *state, State::Computing) else {
            return;
        };
        drop(state);
        // A panic must not leave anyone waiting.
        let computed = catch_unwind(AssertUnwindSafe(|| {
            let mut matcher = matcher.unwrap_or_else(|| Box::new(self.grammar.matcher()));
            let mask = matcher
                .consume_token(token.0)
                .and_then(|()| matcher.compute_mask_or_eos());
            (matcher, mask)
        }));
        let next = match computed {
            Ok((matcher, Ok(mask))) => State::Ready {
                matcher: Some(matcher),
                mask: Ok(Arc::new(TokenMask(mask))),
            },
            Ok((matcher, Err(error))) => State::Ready {
                mask: Err(too_complex(matcher.as_ref(), &error)),
                matcher: None,
            },
            Err(_) => State::Ready {
                matcher: None,
                mask: Err("the grammar could not be followed".to_owned()),
            },
        };
        *self.lock() = next;
        self.ready.notify_all();
    }
}

/// What a client may know of a matcher's failure: no states, no traces.
fn too_complex(matcher: &Matcher, error: &dyn fmt::Display) -> String {
    tracing::debug!(%error, "a grammar failed");
    format!(
        "the grammar became too complex to follow ({})",
        matcher.stop_reason()
    )
}
