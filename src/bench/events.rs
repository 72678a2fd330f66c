//! Reads server-sent events, as they arrive.

use std::io::{self, BufRead};

/// A line longer than this is no chunk of a chat completion.
const LONGEST_LINE: usize = 1 << 20;

/// One event's `data`, or that the stream has ended properly.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Data(String),
    /// `[DONE]`.
    Done,
}

/// Takes events from the lines of a response body.
pub struct EventReader<R> {
    lines: R,
    line: Vec<u8>,
}

impl<R: BufRead> EventReader<R> {
    pub fn new(lines: R) -> Self {
        Self {
            lines,
            line: Vec::new(),
        }
    }

    /// The next event; `None` at the end of the body. Comments and fields other than `data` are passed over.
    ///
    /// # Errors
    /// When the body cannot be read, a line does not end or is not UTF-8.
    pub fn next(&mut self) -> io::Result<Option<Event>> {
        let mut data: Option<String> = None;
        loop {
            if !self.read_line()? {
                return Ok(data.map(event));
            }
            let line = std::str::from_utf8(&self.line)
                .map_err(|_| invalid("the stream is not UTF-8"))?
                .trim_end_matches(['\r', '\n']);
            match (line.strip_prefix("data:"), &mut data) {
                (Some(value), data) => {
                    let value = value.strip_prefix(' ').unwrap_or(value);
                    match data {
                        Some(data) if data.len() + value.len() < LONGEST_LINE => {
                            data.push('\n');
                            data.push_str(value);
                        }
                        Some(_) => return Err(invalid("an event of the stream does not end")),
                        None => *data = Some(value.to_owned()),
                    }
                }
                (None, Some(_)) if line.is_empty() => return Ok(data.map(event)),
                _ => {}
            }
        }
    }

    /// Whether there was a line.
    fn read_line(&mut self) -> io::Result<bool> {
        self.line.clear();
        loop {
            let available = match self.lines.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                return Ok(!self.line.is_empty());
            }
            let (taken, ended) = match available.iter().position(|&byte| byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (available.len(), false),
            };
            self.line.extend_from_slice(&available[..taken]);
            self.lines.consume(taken);
            if ended {
                return Ok(true);
            }
            if self.line.len() > LONGEST_LINE {
                return Err(invalid("a line of the stream does not end"));
            }
        }
    }
}

fn event(data: String) -> Event {
    if data == "[DONE]" {
        Event::Done
    } else {
        Event::Data(data)
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn events(text: &[u8], buffer: usize) -> io::Result<Vec<Event>> {
        let mut reader = EventReader::new(BufReader::with_capacity(buffer, text));
        let mut events = Vec::new();
        while let Some(event) = reader.next()? {
            events.push(event);
        }
        Ok(events)
    }

    #[test]
    fn events_come_whole_whatever_the_pieces() {
        let wire = b": ping\r\nevent: x\r\ndata: {\"a\":1}\r\n\r\n\n\ndata:two\ndata: lines\n\nid: 7\n\ndata: [DONE]\n\n";
        let expected = [
            Event::Data("{\"a\":1}".to_owned()),
            Event::Data("two\nlines".to_owned()),
            Event::Done,
        ];
        for buffer in [1, 2, 7, 4096] {
            assert_eq!(
                events(wire, buffer).unwrap(),
                expected,
                "buffers of {buffer}"
            );
        }
    }

    #[test]
    fn a_last_event_without_an_empty_line_counts() {
        let expected = [Event::Data("cut".to_owned())];
        assert_eq!(events(b"data: cut", 16).unwrap(), expected);
    }

    #[test]
    fn what_does_not_end_is_refused() {
        let endless = vec![b'x'; LONGEST_LINE + 10];
        assert!(
            events(&endless, 4096)
                .unwrap_err()
                .to_string()
                .contains("does not end")
        );
        let many = b"data: 0123456789\n".repeat(LONGEST_LINE / 10);
        assert!(
            events(&many, 4096)
                .unwrap_err()
                .to_string()
                .contains("does not end")
        );
        assert!(events(b"data: \xff\n\n", 4096).is_err());
    }
}
