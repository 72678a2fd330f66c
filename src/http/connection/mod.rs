//! A client's socket, watched: a client that has left is noticed while no bytes flow.
//!
//! actix-web drops a pending response only when reading or writing the socket fails. A client that closes
//! its socket first shows as an end of input, and so does one that has merely finished sending (a half
//! close) and still reads. The difference shows only when something is sent: a closed socket answers
//! with a reset. So after the end of input [`WatchedStream`] sends, byte by byte and ever more rarely, what
//! is going to be sent anyway: the beginning of the status line (`HTTP/1.`), or zeros in front of the next
//! chunk size, which are digits like any other. The bytes on the wire remain one valid response. When the
//! reset comes, the stream fails, actix-web drops the connection with the handler and the body on it, and
//! their owners cancel what was being computed.

mod framing;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::http::Method;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::error::ApiError;
use framing::{Place, ResponseFraming};

/// What every response of this server begins with, whatever its status.
const HEAD_START: &[u8] = b"HTTP/1.";
/// Zeros in front of one chunk size. Some parsers take no more than 16 digits.
const ZEROS_A_GAP: usize = 6;
/// First and longest delay between looking for a reset.
const CHECK_DELAYS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// First and longest delay between probes.
const PROBE_DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(32));

/// Counts open connections against a limit.
#[derive(Debug, Clone)]
pub struct ConnectionCount {
    open: Arc<AtomicUsize>,
    limit: usize,
}

/// Connections above the limit that are still told so, with a 503, before further ones are just closed.
const REFUSED_POLITELY: usize = 64;

impl ConnectionCount {
    pub fn new(limit: usize) -> Self {
        Self {
            open: Arc::default(),
            limit,
        }
    }

    /// Counts one more, unless there are so many that not even an error is answered.
    fn enter(&self) -> Option<ConnectionPlace> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let place = ConnectionPlace {
            count: self.clone(),
            over_limit: before >= self.limit,
        };
        (before < self.limit + REFUSED_POLITELY).then_some(place)
    }
}

/// One counted connection; leaves the count when dropped.
#[derive(Debug)]
struct ConnectionPlace {
    count: ConnectionCount,
    over_limit: bool,
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.count.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What requests know of the connection they came on, and tell it.
#[derive(Debug)]
pub struct Connection {
    over_limit: bool,
    /// Requests that handlers have begun and whose response is not yet written.
    owed: Cell<usize>,
    /// Where the next byte falls cannot be told: nothing is probed any more.
    opaque: Cell<bool>,
    close_after_response: Cell<bool>,
}

impl Connection {
    /// A handler begins: from now on a response is certain to come.
    pub fn begin(&self, method: &Method) {
        // A response to HEAD has a length and no body; pipelined requests overlap.
        if method == Method::HEAD || self.owed.get() > 0 {
            self.opaque.set(true);
        }
        self.owed.set(self.owed.get() + 1);
    }

    /// This connection is above the limit: only refusals are answered on it.
    pub fn is_over_limit(&self) -> bool {
        self.over_limit
    }

    /// The connection closes when the response that is being written is complete.
    pub fn close_after_response(&self) {
        self.close_after_response.set(true);
    }

    fn complete(&self, responses: usize) {
        self.owed.set(self.owed.get().saturating_sub(responses));
    }

    fn must_close(&self) -> bool {
        self.close_after_response.get() && self.owed.get() == 0
    }
}

/// A TCP stream that fails when its peer has left. See the module's text.
pub struct WatchedStream {
    io: TcpStream,
    framing: ResponseFraming,
    connection: Rc<Connection>,
    /// Bytes of [`HEAD_START`] that were sent ahead of the response.
    sent_ahead: usize,
    /// Set when the peer has finished sending.
    watch: Option<Watch>,
    /// How long a full socket may stay full, and the timer while it is.
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    substitute: Option<Substitute>,
    _place: ConnectionPlace,
}

/// When to look for a reset, and when to provoke one.
struct Watch {
    timer: Pin<Box<Sleep>>,
    check_delay: Duration,
    next_probe: Instant,
    probe_delay: Duration,
    zeros: usize,
}

impl Watch {
    fn new() -> Self {
        Self {
            timer: Box::pin(sleep(Duration::ZERO)),
            check_delay: CHECK_DELAYS.0,
            next_probe: Instant::now(),
            probe_delay: PROBE_DELAYS.0,
            zeros: 0,
        }
    }

    /// Sets the timer for the next look.
    fn schedule(&mut self) {
        let next = (Instant::now() + self.check_delay).min(self.next_probe);
        self.check_delay = (self.check_delay * 2).min(CHECK_DELAYS.1);
        self.timer.as_mut().reset(next);
    }

    fn probed(&mut self) {
        self.next_probe = Instant::now() + self.probe_delay;
        self.probe_delay = (self.probe_delay * 2).min(PROBE_DELAYS.1);
        self.check_delay = CHECK_DELAYS.0;
    }

    /// Bytes of the response went out: they provoke a reset as well as a probe does.
    fn written(&mut self) {
        self.zeros = 0;
        self.probe_delay = PROBE_DELAYS.0;
        self.probed();
        self.schedule();
    }
}

/// A response written in place of another.
struct Substitute {
    bytes: Vec<u8>,
    written: usize,
    /// Length of what it replaces.
    replaces: usize,
}

impl WatchedStream {
    /// Takes over an accepted socket. None when there are far too many connections.
    pub fn new(io: TcpStream, count: &ConnectionCount, write_timeout: Duration) -> Option<Self> {
        let place = count.enter()?;
        let connection = Rc::new(Connection {
            over_limit: place.over_limit,
            owed: Cell::new(0),
            opaque: Cell::new(false),
            close_after_response: Cell::new(false),
        });
        set_socket_options(&io);
        Some(Self {
            io,
            framing: ResponseFraming::new(),
            connection,
            sent_ahead: 0,
            watch: None,
            write_timeout,
            stalled: None,
            substitute: None,
            _place: place,
        })
    }

    /// For the requests on this connection.
    pub fn connection(&self) -> Rc<Connection> {
        Rc::clone(&self.connection)
    }

    /// Looks for a reset, and provokes one, when it is time.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Some(watch) = &mut self.watch {
            if watch.timer.as_mut().poll(cx).is_pending() {
                break;
            }
            if let Some(error) = self.io.take_error()? {
                return Err(error);
            }
            if watch.next_probe <= Instant::now() {
                watch.probed();
                self.probe(cx)?;
            }
            if let Some(watch) = &mut self.watch {
                watch.schedule();
            }
        }
        Ok(())
    }

    /// Sends one byte of what is to come, if it is known.
    fn probe(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        if self.connection.opaque.get()
            || self.connection.owed.get() == 0
            || self.substitute.is_some()
        {
            return Ok(());
        }
        let (byte, count) = match self.framing.place() {
            Place::BeforeHead => match HEAD_START.get(self.sent_ahead) {
                Some(&byte) => (byte, &mut self.sent_ahead),
                None => return Ok(()),
            },
            Place::BetweenChunks if watch.zeros < ZEROS_A_GAP => (b'0', &mut watch.zeros),
            _ => return Ok(()),
        };
        if write_byte(&mut self.io, cx, byte)? {
            *count += 1;
        }
        Ok(())
    }

    /// Notes bytes of a response as written.
    fn accepted(&mut self, bytes: &[u8], cx: &mut Context<'_>) {
        let completed = self.framing.accept(bytes);
        self.connection.complete(completed);
        if completed > 0 && self.connection.must_close() {
            // The end of input that poll_read now reports has to be asked for.
            cx.waker().wake_by_ref();
        }
    }

    fn poll_substitute(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while let Some(substitute) = &mut self.substitute {
            let rest = &substitute.bytes[substitute.written..];
            if rest.is_empty() {
                let replaces = substitute.replaces;
                self.substitute = None;
                return Poll::Ready(Ok(replaces));
            }
            match Pin::new(&mut self.io).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => substitute.written += written,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(0))
    }

    /// Fails when the socket has been full for too long.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let write_timeout = self.write_timeout;
        let timer = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(write_timeout)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Options that are wanted and not vital: a socket without them still works.
fn set_socket_options(io: &TcpStream) {
    let keep_alive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5));
    if let Err(error) = io.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    // A client whose machine or cable is gone sends no end of input at all.
    if let Err(error) = socket2::SockRef::from(io).set_tcp_keepalive(&keep_alive) {
        tracing::debug!(%error, "TCP keep-alive");
    }
}

/// Whether the byte was taken; not when the socket is full.
fn write_byte(io: &mut TcpStream, cx: &mut Context<'_>, byte: u8) -> io::Result<bool> {
    match Pin::new(io).poll_write(cx, &[byte]) {
        Poll::Ready(Ok(written)) => Ok(written == 1),
        Poll::Ready(Err(error)) => Err(error),
        Poll::Pending => Ok(false),
    }
}

/// actix-http answers requests that it cannot parse by itself, with an empty body. The same response with
/// our error body; None if `buffer` does not begin with such a response.
fn with_error_body(buffer: &[u8]) -> Option<Substitute> {
    let end = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&buffer[..end]).ok()?;
    let message = match head.get(9..12)? {
        "400" => "the request is not valid HTTP",
        "408" => "the request head did not arrive in time",
        "431" => "the request head is too large",
        _ => return None,
    };
    let empty = "content-length: 0\r\n";
    let place = head.find(empty)?;
    let body = ApiError::malformed(message).body().to_string();
    let (before, after) = (&head[..place], &head[place + empty.len()..]);
    let bytes = format!(
        "{before}content-length: {}\r\ncontent-type: application/json\r\n{after}{body}",
        body.len()
    );
    Some(Substitute {
        bytes: bytes.into_bytes(),
        written: 0,
        replaces: end,
    })
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.connection.must_close() {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buffer);
        let finished = buffer.filled().len() == before && buffer.remaining() > 0;
        if matches!(result, Poll::Ready(Ok(()))) && finished && self.watch.is_none() {
            self.watch = Some(Watch::new());
        }
        result
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.framing.place() == Place::BeforeHead {
            if self.sent_ahead > 0 {
                // These bytes are on their way already.
                let length = self.sent_ahead.min(buffer.len());
                if buffer[..length] != HEAD_START[..length] {
                    return Poll::Ready(Err(io::Error::other(
                        "a response that does not begin with HTTP/1.",
                    )));
                }
                if length < HEAD_START.len().min(self.sent_ahead) {
                    return Poll::Ready(Err(io::Error::other("a status line written in pieces")));
                }
                self.sent_ahead = 0;
                self.accepted(&buffer[..length], cx);
                return Poll::Ready(Ok(length));
            }
            if self.connection.owed.get() == 0 && self.substitute.is_none() {
                self.substitute = with_error_body(buffer);
            }
        }
        let result = if self.substitute.is_some() {
            self.poll_substitute(cx)
        } else {
            Pin::new(&mut self.io).poll_write(cx, buffer)
        };
        match result {
            Poll::Ready(Ok(written)) => {
                self.stalled = None;
                self.accepted(&buffer[..written], cx);
                if let Some(watch) = &mut self.watch {
                    watch.written();
                }
                Poll::Ready(Ok(written))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.poll_stalled(cx),
        }
    }

    /// Called by the dispatcher each time it runs, so also when there is nothing to flush.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch(cx)?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
