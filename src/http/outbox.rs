//! The sink of one stream: what is said and not yet sent, bounded by the text itself.
//!
//! The streamer puts pieces in, the connection takes frames out when the socket has room. Both run on the
//! same thread. While a client does not read, adjacent pieces become one, so that a slow client costs
//! the length of its answer and no more, and nobody waits for it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use actix_web::body::{BodySize, MessageBody};
use bytes::Bytes;

use super::connection::Connection;
use super::form::{Piece, WireForm};
use crate::actors::streamer::Interrupter;

/// The pieces between a streamer and its connection.
pub struct Outbox {
    form: Box<dyn WireForm>,
    pieces: VecDeque<Piece>,
    /// No further pieces come.
    closed: bool,
    reader: Option<Waker>,
}

impl Outbox {
    pub fn new(form: Box<dyn WireForm>) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            form,
            pieces: VecDeque::new(),
            closed: false,
            reader: None,
        }))
    }

    /// Adds a piece. [`Piece::Done`] and [`Piece::Error`] are the last ones.
    pub fn push(&mut self, piece: Piece) {
        if self.closed {
            return;
        }
        self.closed = matches!(piece, Piece::Done(_) | Piece::Error(_));
        let rest = match self.pieces.back_mut() {
            Some(last) => last.merge(piece),
            None => Some(piece),
        };
        self.pieces.extend(rest);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Generation has begun.
    pub fn started(&mut self, interrupter: Interrupter) {
        self.form.started(interrupter);
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Bytes, bool)>> {
        while let Some(piece) = self.pieces.pop_front() {
            let failed = matches!(piece, Piece::Error(_));
            let frame = self.form.encode(piece);
            // Not every API tells every piece.
            if !frame.is_empty() {
                return Poll::Ready(Some((frame, failed)));
            }
        }
        if self.closed {
            return Poll::Ready(None);
        }
        self.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// The response body that reads an [`Outbox`]. Dropping it tells `presence` that the client has left.
pub struct StreamBody<P> {
    outbox: Rc<RefCell<Outbox>>,
    connection: Option<Rc<Connection>>,
    _presence: P,
}

impl<P> StreamBody<P> {
    pub fn new(
        outbox: Rc<RefCell<Outbox>>,
        connection: Option<Rc<Connection>>,
        presence: P,
    ) -> Self {
        Self {
            outbox,
            connection,
            _presence: presence,
        }
    }
}

impl<P: Unpin> MessageBody for StreamBody<P> {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        let frame = self.outbox.borrow_mut().poll_frame(cx);
        frame.map(|frame| {
            frame.map(|(bytes, failed)| {
                if failed && let Some(connection) = &self.connection {
                    connection.close_after_response();
                }
                Ok(bytes)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use serde_json::json;

    use super::*;
    use crate::http::form::Summary;
    use crate::http::openai::{CompletionForm, StreamOptions};
    use crate::http::wire::{ChoiceDelta, Envelope, Form, Progress, TokenLogprob};

    fn form() -> Box<CompletionForm> {
        Box::new(CompletionForm {
            envelope: Envelope {
                form: Form::Chat,
                id: "chatcmpl-1".into(),
                created: 7,
                model: "m".into(),
                fingerprint: "fp".into(),
            },
            options: StreamOptions::default(),
        })
    }

    fn content(text: &str) -> Piece {
        Piece::Delta {
            choice: 0,
            delta: ChoiceDelta::Content(text.into()),
            logprobs: Vec::new(),
        }
    }

    async fn take(body: &mut StreamBody<()>) -> Option<String> {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_next(cx)).await?;
        let Ok(bytes) = frame;
        Some(String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[actix_web::test]
    async fn frames_are_exactly_server_sent_events() {
        let outbox = Outbox::new(form());
        let mut body = StreamBody::new(Rc::clone(&outbox), None, ());
        outbox.borrow_mut().push(content("a\nb"));
        let expected = json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m",
            "system_fingerprint": "fp",
            "choices": [{"index": 0, "delta": {"content": "a\nb"}, "finish_reason": null}],
        });
        assert_eq!(
            take(&mut body).await.unwrap(),
            format!("data: {expected}\n\n")
        );
        outbox.borrow_mut().push(Piece::Done(Summary::default()));
        assert_eq!(take(&mut body).await.unwrap(), "data: [DONE]\n\n");
        assert_eq!(take(&mut body).await, None);
        outbox.borrow_mut().push(content("late"));
        assert_eq!(take(&mut body).await, None);
    }

    #[actix_web::test]
    async fn unread_text_becomes_one_piece() {
        let outbox = Outbox::new(form());
        let mut body = StreamBody::new(Rc::clone(&outbox), None, ());
        for _ in 0..10_000 {
            outbox.borrow_mut().push(content("x"));
        }
        assert_eq!(outbox.borrow().pieces.len(), 1);
        let frame = take(&mut body).await.unwrap();
        assert!(frame.contains(&"x".repeat(10_000)));
    }

    #[test]
    fn log_probabilities_stay_with_their_text() {
        let scored = |text: &str| {
            let token = TokenLogprob {
                bytes: text.into(),
                logprob: Some(-1.0),
                top: Vec::new(),
                offset: 0,
                echoed: false,
            };
            let delta = ChoiceDelta::Content(text.into());
            Piece::Delta {
                choice: 0,
                delta,
                logprobs: vec![token],
            }
        };
        let mut first = scored("a");
        assert_eq!(first.merge(scored("b")), None);
        let Piece::Delta { logprobs, .. } = first.clone() else {
            panic!("{first:?} is a delta");
        };
        assert_eq!(logprobs.len(), 2);
        let mut role = Piece::Delta {
            choice: 0,
            delta: ChoiceDelta::Role,
            logprobs: Vec::new(),
        };
        assert_eq!(role.merge(first.clone()), Some(first));
    }

    #[actix_web::test]
    async fn tool_arguments_join_their_call_and_no_other() {
        let mut call = ChoiceDelta::ToolCall {
            index: 0,
            id: "i".into(),
            name: "f".into(),
            arguments: String::new(),
        };
        let text = |index, text: &str| ChoiceDelta::ToolArguments {
            index,
            text: text.into(),
        };
        assert_eq!(call.merge(text(0, "{")), None);
        assert_eq!(call.merge(text(0, "}")), None);
        assert_eq!(call.merge(text(1, "{")), Some(text(1, "{")));
        assert!(matches!(call, ChoiceDelta::ToolCall { arguments, .. } if arguments == "{}"));
    }

    #[test]
    fn progress_of_one_status_is_replaced() {
        let progress = |status, processed| {
            let prefill = crate::actors::messages::PrefillProgress {
                processed,
                cached: 0,
                prompt: 10,
            };
            Piece::Progress(Progress {
                status,
                prefill,
                elapsed_seconds: 0.0,
            })
        };
        use super::super::wire::ProgressStatus::*;
        let outbox = Outbox::new(form());
        for piece in [
            progress(Queued, 0),
            progress(Processing, 2),
            progress(Processing, 5),
            progress(Done, 10),
        ] {
            outbox.borrow_mut().push(piece);
        }
        let pieces: Vec<_> = outbox.borrow().pieces.iter().cloned().collect();
        assert_eq!(
            pieces,
            [
                progress(Queued, 0),
                progress(Processing, 5),
                progress(Done, 10)
            ]
        );
    }
}
