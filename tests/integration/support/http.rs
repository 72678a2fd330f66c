//! HTTP/1.1 over plain sockets, so that a test sees what is on the wire and can misbehave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::PATIENCE;

/// A whole response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// The `error` object of a refusal.
    pub fn error(&self) -> Value {
        self.json()["error"].clone()
    }
}

/// Sends a request on a connection of its own and reads the response to its end.
pub fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let socket = open_request(address, method, path, headers, body);
    let mut reader = BufReader::new(socket);
    let (status, headers) = read_head(&mut reader);
    let mut bytes = Vec::new();
    Body::of(reader, &headers)
        .read_to_end(&mut bytes)
        .expect("the body arrives");
    Response {
        status,
        headers,
        body: bytes,
    }
}

/// Sends a request and leaves the reading to the caller. A server that refuses a body may close before
/// it has read all, so that is no failure here.
pub fn open_request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> TcpStream {
    let mut socket = TcpStream::connect(address).expect("the server listens");
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout can be set");
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    head += "\r\n";
    socket.write_all(head.as_bytes()).expect("the head is sent");
    let _ = socket.write_all(body);
    socket
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `event:`, if it is named.
    pub name: Option<String>,
    pub data: String,
}

impl Event {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.data))
    }
}

/// A response that is read event by event. Dropping it closes the connection.
pub struct EventStream {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    lines: BufReader<Body>,
    socket: TcpStream,
}

impl EventStream {
    /// Reads the head of the response to a request that has been sent.
    pub fn new(socket: TcpStream) -> Self {
        let kept = socket.try_clone().expect("a second handle");
        let mut reader = BufReader::new(socket);
        let (status, headers) = read_head(&mut reader);
        EventStream {
            status,
            lines: BufReader::new(Body::of(reader, &headers)),
            headers,
            socket: kept,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// Closes the connection as a client that leaves does.
    pub fn leave(self) {
        // The server may have closed it already.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Events up to and without `[DONE]`, which must come.
    pub fn into_done(self) -> Vec<Event> {
        let mut events: Vec<Event> = self.collect();
        let last = events.pop().expect("a stream has events");
        assert_eq!(last.data, "[DONE]", "after {events:#?}");
        events
    }
}

impl Iterator for EventStream {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let (mut name, mut data) = (None, None::<String>);
        loop {
            let mut line = String::new();
            let length = self
                .lines
                .read_line(&mut line)
                .expect("whole lines of UTF-8");
            let line = line.trim_end_matches(['\r', '\n']);
            match line.split_once(':') {
                _ if length == 0 => {
                    assert!(data.is_none(), "the stream ends within an event");
                    return None;
                }
                None if line.is_empty() => {
                    if let Some(data) = data {
                        return Some(Event { name, data });
                    }
                }
                Some(("event", value)) => name = Some(value.trim_start().to_owned()),
                Some(("data", value)) => {
                    data = Some(value.strip_prefix(' ').unwrap_or(value).to_owned())
                }
                _ => panic!("a strict parser would not expect {line:?}"),
            }
        }
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = headers
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}

/// Status and headers.
fn read_head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a status line");
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.unwrap_or_else(|| panic!("{line:?} is no status line"));
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()))
            }
            None => return (status, headers),
        }
    }
}

/// A body in any of HTTP's framings.
enum Body {
    Chunked {
        reader: BufReader<TcpStream>,
        left: usize,
    },
    Rest(std::io::Take<BufReader<TcpStream>>),
    Ended,
}

impl Body {
    fn of(reader: BufReader<TcpStream>, headers: &[(String, String)]) -> Self {
        if header(headers, "transfer-encoding") == Some("chunked") {
            return Body::Chunked { reader, left: 0 };
        }
        let length =
            header(headers, "content-length").map(|length| length.parse().expect("a length"));
        Body::Rest(reader.take(length.unwrap_or(u64::MAX)))
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let (reader, left) = match self {
            Body::Chunked { reader, left } => (reader, left),
            Body::Rest(reader) => return reader.read(buffer),
            Body::Ended => return Ok(0),
        };
        if *left == 0 {
            let mut size = String::new();
            if reader.read_line(&mut size)? == 0 {
                // Cut off: a stream that failed ends without the last chunk.
                *self = Body::Ended;
                return Ok(0);
            }
            *left = usize::from_str_radix(size.trim(), 16).map_err(std::io::Error::other)?;
            if *left == 0 {
                *self = Body::Ended;
                return Ok(0);
            }
        }
        let wanted = buffer.len().min(*left);
        let got = reader.read(&mut buffer[..wanted])?;
        *left -= got;
        if *left == 0 {
            let mut end = String::new();
            reader.read_line(&mut end)?;
        }
        Ok(got)
    }
}
