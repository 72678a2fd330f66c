//! Keeps log probabilities beside the text they belong to.
//!
//! A token's text may be held back: its characters are not whole yet, or it may be the beginning of a stop
//! string. Its log probability waits with it, and is dropped with it if a stop string swallows it.

use std::collections::VecDeque;

use crate::http::wire::TokenLogprob;

/// Log probabilities of one choice's tokens, on their way out.
#[derive(Debug, Default)]
pub struct LogprobQueue {
    waiting: VecDeque<Waiting>,
    /// Their text is out; they go with the next delta.
    ready: Vec<TokenLogprob>,
    /// Bytes of text that the detokenizer gave.
    produced: usize,
    /// The same in characters.
    characters: usize,
    /// Bytes of it that are certain to be before any stop string.
    released: usize,
}

#[derive(Debug)]
struct Waiting {
    token: TokenLogprob,
    /// Where its text begins.
    start: usize,
    /// Where it ends; None: the detokenizer waits for the rest of a character.
    end: Option<usize>,
}

impl LogprobQueue {
    /// `characters`: of the choice's text before its first token.
    pub fn new(characters: usize) -> Self {
        Self {
            characters,
            ..Self::default()
        }
    }

    /// Takes a token and the text that it made certain; sets the token's offset.
    pub fn push(&mut self, mut token: TokenLogprob, text: &str) {
        token.offset = self.characters;
        let start = self.produced;
        self.waiting.push_back(Waiting {
            token,
            start,
            end: None,
        });
        self.produce(text);
    }

    /// Text has come that no further token brought.
    pub fn produce(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.produced += text.len();
        self.characters += text.chars().count();
        let held = self.waiting.iter_mut().rev();
        for waiting in held.take_while(|waiting| waiting.end.is_none()) {
            waiting.end = Some(self.produced);
        }
    }

    /// So many more bytes of text are certain.
    pub fn release(&mut self, bytes: usize) {
        self.released += bytes;
        while let Some(waiting) = self.waiting.front()
            && waiting.end.is_some_and(|end| end <= self.released)
        {
            self.ready
                .extend(self.waiting.pop_front().map(|waiting| waiting.token));
        }
    }

    /// A stop string begins behind what was released: tokens that begin before it are told, too.
    pub fn stop(&mut self) {
        let released = self.released;
        let kept = std::mem::take(&mut self.waiting).into_iter();
        let kept = kept.take_while(|waiting| waiting.start < released);
        self.ready.extend(kept.map(|waiting| waiting.token));
    }

    /// There is no further text: all tokens are told.
    pub fn finish(&mut self) {
        let rest = std::mem::take(&mut self.waiting).into_iter();
        self.ready.extend(rest.map(|waiting| waiting.token));
    }

    /// Those whose text is out.
    pub fn take(&mut self) -> Vec<TokenLogprob> {
        std::mem::take(&mut self.ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> TokenLogprob {
        TokenLogprob {
            bytes: text.as_bytes().to_vec(),
            logprob: Some(-1.0),
            top: Vec::new(),
            offset: 0,
            echoed: false,
        }
    }

    fn names(tokens: Vec<TokenLogprob>) -> Vec<(String, usize)> {
        let name = |token: TokenLogprob| (String::from_utf8(token.bytes).unwrap(), token.offset);
        tokens.into_iter().map(name).collect()
    }

    fn named(name: &str, offset: usize) -> (String, usize) {
        (name.to_owned(), offset)
    }

    #[test]
    fn a_token_waits_for_its_text() {
        let mut queue = LogprobQueue::new(3);
        queue.push(token("ab"), "ab");
        queue.release(1);
        assert_eq!(names(queue.take()), []);
        queue.push(token("c"), "c");
        queue.release(2);
        assert_eq!(names(queue.take()), [named("ab", 3), named("c", 5)]);
    }

    #[test]
    fn parts_of_a_character_come_with_it() {
        let mut queue = LogprobQueue::new(0);
        queue.push(token("x"), "x");
        queue.push(token("1"), "");
        queue.push(token("2"), "");
        queue.release(1);
        assert_eq!(names(queue.take()), [named("x", 0)]);
        queue.push(token("3"), "é");
        queue.release(2);
        assert_eq!(
            names(queue.take()),
            [named("1", 1), named("2", 1), named("3", 1)]
        );
        queue.push(token("y"), "y");
        queue.finish();
        assert_eq!(names(queue.take()), [named("y", 2)]);
    }

    #[test]
    fn tokens_of_a_stop_string_are_dropped() {
        let mut queue = LogprobQueue::new(0);
        queue.push(token("a"), "a");
        queue.push(token("bEN"), "bEN");
        queue.push(token("D"), "D");
        // The stop string is END.
        queue.release(2);
        queue.stop();
        assert_eq!(names(queue.take()), [named("a", 0), named("bEN", 1)]);
    }
}
