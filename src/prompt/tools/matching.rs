//! Text up to a mark, as it comes.

/// Finds the first place where one of some marks is complete, and holds back only what may be the
/// beginning of one.
#[derive(Debug, Clone, Default)]
pub(in crate::prompt) struct Until {
    held: String,
}

impl Until {
    /// Takes the next character: gives the characters that are certainly before a mark, in order, and
    /// the index of the mark that is now complete.
    pub(in crate::prompt) fn step(
        &mut self,
        character: char,
        marks: &[&str],
        mut before: impl FnMut(char),
    ) -> Option<usize> {
        self.held.push(character);
        let mut passed = 0;
        let found = loop {
            let held = &self.held[passed..];
            if held.is_empty() {
                break None;
            }
            if let Some(index) = marks.iter().position(|mark| *mark == held) {
                passed = self.held.len();
                break Some(index);
            }
            if marks.iter().any(|mark| mark.starts_with(held)) {
                break None;
            }
            let first = held.chars().next().unwrap_or_default();
            passed += first.len_utf8();
            before(first);
        };
        self.held.drain(..passed);
        found
    }

    /// Nothing is held back.
    pub(in crate::prompt) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// What is held back.
    pub(in crate::prompt) fn take(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_that_overlap_themselves_are_found() {
        let split = |text: &'static str, marks: &[&str]| {
            let (mut until, mut before) = (Until::default(), String::new());
            for (position, character) in text.char_indices() {
                let found = until.step(character, marks, |character| before.push(character));
                if let Some(index) = found {
                    return (
                        before,
                        Some(index),
                        &text[position + character.len_utf8()..],
                    );
                }
            }
            (before + &until.take(), None, "")
        };
        assert_eq!(split("aa```b", &["```"]), ("aa".into(), Some(0), "b"));
        assert_eq!(split("ababac", &["abac"]), ("ab".into(), Some(0), ""));
        assert_eq!(split("<</a>", &["</b>", "</a>"]), ("<".into(), Some(1), ""));
        assert_eq!(split("<</", &["</b>"]), ("<</".into(), None, ""));
    }
}
