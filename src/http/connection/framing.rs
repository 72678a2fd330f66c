//! Follows the responses on one connection, byte by byte, to know where in them the next byte falls.

/// Heads longer than this are not followed (ours are a few hundred bytes).
const LONGEST_HEAD: usize = 64 * 1024;

/// Where the next byte to be written falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It is the first of a response.
    BeforeHead,
    /// It is the first of a chunk-size line.
    BetweenChunks,
    /// Anywhere else.
    Inside,
}

/// The state of the response that is being written.
#[derive(Debug)]
pub struct ResponseFraming {
    state: State,
}

#[derive(Debug)]
enum State {
    /// In a head; its bytes so far.
    Head(Vec<u8>),
    /// In a chunk-size line.
    ChunkSize { size: u64, digits: u32 },
    /// In a chunk and the line end after it.
    ChunkData { remaining: u64 },
    /// In the line end after the last chunk.
    LastLine { remaining: u8 },
    /// In a body of known length.
    Fixed { remaining: u64 },
    /// In a body that ends with the connection, or in something that is not followed.
    Unknown,
}

impl ResponseFraming {
    pub fn new() -> Self {
        Self {
            state: State::Head(Vec::new()),
        }
    }

    pub fn place(&self) -> Place {
        match &self.state {
            State::Head(head) if head.is_empty() => Place::BeforeHead,
            State::ChunkSize { digits: 0, .. } => Place::BetweenChunks,
            _ => Place::Inside,
        }
    }

    /// Takes the next bytes of the connection; returns how many responses (other than `1xx`) they complete.
    pub fn accept(&mut self, mut bytes: &[u8]) -> usize {
        let mut completed = 0;
        while let Some((&byte, rest)) = bytes.split_first() {
            match &mut self.state {
                State::Head(head) => {
                    head.push(byte);
                    bytes = rest;
                    if head.ends_with(b"\r\n\r\n") {
                        let (state, complete) = after_head(head);
                        self.state = state;
                        completed += usize::from(complete);
                    } else if head.len() > LONGEST_HEAD {
                        self.state = State::Unknown;
                    }
                }
                State::ChunkSize { size, digits } => {
                    bytes = rest;
                    match (byte as char).to_digit(16) {
                        Some(digit) => {
                            *size = (*size << 4) | u64::from(digit);
                            *digits += 1;
                        }
                        None if byte == b'\r' => {}
                        None if byte == b'\n' && *size == 0 => {
                            self.state = State::LastLine { remaining: 2 }
                        }
                        None if byte == b'\n' => {
                            self.state = State::ChunkData {
                                remaining: *size + 2,
                            }
                        }
                        None => self.state = State::Unknown,
                    }
                }
                State::ChunkData { remaining } => {
                    let taken = skip(&mut bytes, remaining);
                    debug_assert!(taken > 0);
                    if *remaining == 0 {
                        self.state = State::ChunkSize { size: 0, digits: 0 };
                    }
                }
                State::LastLine { remaining } => {
                    bytes = rest;
                    *remaining -= 1;
                    if *remaining == 0 {
                        self.state = State::Head(Vec::new());
                        completed += 1;
                    }
                }
                State::Fixed { remaining } => {
                    skip(&mut bytes, remaining);
                    if *remaining == 0 {
                        self.state = State::Head(Vec::new());
                        completed += 1;
                    }
                }
                State::Unknown => return completed,
            }
        }
        completed
    }
}

/// Drops up to `remaining` bytes from the front; returns how many.
fn skip(bytes: &mut &[u8], remaining: &mut u64) -> u64 {
    let taken = (bytes.len() as u64).min(*remaining);
    *bytes = &bytes[taken as usize..];
    *remaining -= taken;
    taken
}

/// What follows a head, and whether it completes a response.
fn after_head(head: &[u8]) -> (State, bool) {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let mut lines = text.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .unwrap_or_default();
    let mut chunked = false;
    let mut length = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        match name {
            "transfer-encoding" => chunked = value.trim() == "chunked",
            "content-length" => length = value.trim().parse().ok(),
            _ => {}
        }
    }
    let next = || State::Head(Vec::new());
    match (status, length) {
        (status, _) if status.starts_with('1') => (next(), false),
        ("204" | "304", _) => (next(), true),
        _ if chunked => (State::ChunkSize { size: 0, digits: 0 }, false),
        (_, Some(0)) => (next(), true),
        (_, Some(remaining)) => (State::Fixed { remaining }, false),
        (_, None) => (State::Unknown, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n00A\r\n0123456789\r\n0\r\n\r\n";
    const FIXED: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc";
    const EMPTY: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";
    const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

    #[test]
    fn counts_responses_at_any_split() {
        let wire = [CONTINUE, CHUNKED, FIXED, EMPTY, FIXED, CHUNKED].concat();
        for size in [1, 2, 3, 7, wire.len()] {
            let mut framing = ResponseFraming::new();
            let completed: usize = wire.chunks(size).map(|piece| framing.accept(piece)).sum();
            assert_eq!(completed, 5, "pieces of {size}");
            assert_eq!(framing.place(), Place::BeforeHead);
        }
    }

    #[test]
    fn knows_the_places() {
        let mut framing = ResponseFraming::new();
        let body = CHUNKED.iter().position(|&byte| byte == b'5').unwrap();
        framing.accept(&CHUNKED[..body]);
        assert_eq!(framing.place(), Place::BetweenChunks);
        framing.accept(b"5");
        assert_eq!(framing.place(), Place::Inside);
        framing.accept(b"\r\nhello\r");
        assert_eq!(framing.place(), Place::Inside);
        framing.accept(b"\n");
        assert_eq!(framing.place(), Place::BetweenChunks);
    }

    #[test]
    fn a_body_without_length_is_never_probed() {
        let mut framing = ResponseFraming::new();
        framing.accept(b"HTTP/1.0 200 OK\r\n\r\n");
        assert_eq!(framing.place(), Place::Inside);
        assert_eq!(
            framing.accept(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
            0
        );
    }
}
