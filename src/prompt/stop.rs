//! Finding stop strings in streamed text.

/// Looks for any of a request's stop strings in text that arrives in pieces, and holds back what might
/// be the beginning of one.
///
/// It is meant for the model's raw text, before tool calls and reasoning are parsed out of it: a stop
/// string ends generation wherever the model writes it. The first stop string to be complete wins; of
/// several that end at the same character, the longest. The result does not depend on how the text is
/// cut into pieces. Each byte costs a constant time for each stop string (Knuth, Morris and Pratt).
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<StopString>,
    /// Text that may turn out to be the beginning of a stop string. Shorter than the longest of them.
    held: String,
    stopped: bool,
    /// The stop string that was found.
    found: Option<String>,
}

/// What became of a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that is certainly before any stop string.
    pub text: String,
    /// A stop string is complete. There is no further text; the stop string is not part of the text.
    pub stopped: bool,
}

#[derive(Debug, Clone)]
struct StopString {
    bytes: Vec<u8>,
    /// `borders[n]`: length of the longest proper prefix of `bytes[..n]` that is also its suffix.
    borders: Vec<usize>,
    /// How many bytes of `bytes` the text so far ends with.
    matched: usize,
}

impl StopString {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes().to_vec();
        let mut borders = vec![0; bytes.len() + 1];
        let mut border = 0;
        for length in 2..=bytes.len() {
            while border > 0 && bytes[border] != bytes[length - 1] {
                border = borders[border];
            }
            if bytes[border] == bytes[length - 1] {
                border += 1;
            }
            borders[length] = border;
        }
        StopString {
            bytes,
            borders,
            matched: 0,
        }
    }

    /// Takes the next byte of the text; true if the string is now complete.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.borders[self.matched];
        }
        if self.bytes[self.matched] == byte {
            self.matched += 1;
        }
        self.matched == self.bytes.len()
    }
}

impl StopMatcher {
    /// A matcher for these strings. Empty ones are ignored.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Self {
        let stops = stops
            .iter()
            .map(AsRef::as_ref)
            .filter(|stop| !stop.is_empty())
            .map(StopString::new)
            .collect();
        StopMatcher {
            stops,
            held: String::new(),
            stopped: false,
            found: None,
        }
    }

    /// The stop string that was found, if one was.
    pub fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }

    /// Takes the next piece of text. After a stop string was found, text is dropped.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.stopped {
            return StopOutcome {
                text: String::new(),
                stopped: true,
            };
        }
        let before = self.held.len();
        self.held.push_str(text);
        for position in before..self.held.len() {
            let byte = self.held.as_bytes()[position];
            let complete = self
                .stops
                .iter_mut()
                .filter_map(|stop| stop.step(byte).then_some(stop.bytes.len()))
                .max();
            if let Some(length) = complete {
                self.stopped = true;
                // A match of whole strings begins and ends on character borders.
                self.held.truncate(position + 1);
                self.found = Some(self.held.split_off(position + 1 - length));
                return StopOutcome {
                    text: std::mem::take(&mut self.held),
                    stopped: true,
                };
            }
        }
        let keep = self
            .stops
            .iter()
            .map(|stop| stop.matched)
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        StopOutcome {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    /// The output is complete: what was held back is ordinary text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: the stop string that is complete first, the longest of equals.
    fn naive(text: &str, stops: &[String]) -> (String, bool) {
        let found = stops
            .iter()
            .filter(|stop| !stop.is_empty())
            .filter_map(|stop| {
                text.find(stop.as_str())
                    .map(|start| (start + stop.len(), start))
            })
            .min();
        match found {
            Some((_, start)) => (text[..start].to_string(), true),
            None => (text.to_string(), false),
        }
    }

    fn streamed(pieces: &[&str], stops: &[String]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops);
        let mut text = String::new();
        for piece in pieces {
            let outcome = matcher.push(piece);
            text += &outcome.text;
            if outcome.stopped {
                assert_eq!(
                    matcher.push("more"),
                    StopOutcome {
                        text: String::new(),
                        stopped: true
                    }
                );
                assert_eq!(matcher.finish(), "");
                return (text, true);
            }
        }
        text += &matcher.finish();
        (text, false)
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop_string() {
        let mut matcher = StopMatcher::new(&["END", "\n\n"]);
        assert_eq!(matcher.push("the E").text, "the ");
        assert_eq!(matcher.push("NE").text, "EN");
        assert_eq!(matcher.push("x\n").text, "Ex");
        assert_eq!(matcher.push("y").text, "\ny");
        let outcome = matcher.push("z END and more");
        assert_eq!(
            outcome,
            StopOutcome {
                text: "z ".into(),
                stopped: true
            }
        );
    }

    #[test]
    fn without_stop_strings_text_passes_at_once() {
        let mut matcher = StopMatcher::new::<&str>(&[]);
        assert_eq!(matcher.push("any\u{1f600}").text, "any\u{1f600}");
        let mut matcher = StopMatcher::new(&[""]);
        assert_eq!(matcher.push("any").text, "any");
    }

    proptest! {
        #[test]
        fn equals_the_definition_at_any_split(
            text in "[abé🙂\n]{0,24}",
            stops in proptest::collection::vec("[abé🙂\n]{0,5}", 0..5),
            cuts in proptest::collection::vec(0usize..64, 0..8),
        ) {
            let mut cuts: Vec<usize> =
                cuts.into_iter().map(|cut| cut.min(text.len())).filter(|&cut| text.is_char_boundary(cut)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
            prop_assert_eq!(streamed(&pieces, &stops), naive(&text, &stops));
        }
    }
}
