//! Streamers with a script in place of the scheduler, and the bytes that a client would read.

use std::path::Path;
use std::pin::Pin;
use std::task::Poll;

use actix_web::body::MessageBody;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::actors::messages::GenerationFailure;
use crate::http::answer::{Delivery, Shape};
use crate::http::openai::{CompletionForm, StreamOptions};
use crate::http::outbox::{Outbox, StreamBody};
use crate::http::record::{Endpoint, RequestRecord};
use crate::http::wire::{Envelope, Form};
use crate::prompt::{ParserOptions, PromptAssets, PromptFormat, StopMatcher};

/// The scheduler's stand-in: tells what was cancelled.
struct Cancels(mpsc::UnboundedSender<Cancel>);

impl Actor for Cancels {
    type Context = Context<Self>;
}

impl Handler<Cancel> for Cancels {
    type Result = ();

    fn handle(&mut self, cancel: Cancel, _: &mut Self::Context) {
        let _ = self.0.send(cancel);
    }
}

const PROMPT_TOKENS: usize = 10;

fn format() -> PromptFormat {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/tokenizer.json");
    PromptFormat::new(PromptAssets {
        tokenizer: tokenizers::Tokenizer::from_file(file).unwrap(),
        chat_template: None,
        bos_token: None,
        eos_token: None,
        add_bos: None,
    })
    .unwrap()
}

fn form(options: StreamOptions) -> Box<CompletionForm> {
    let envelope = Envelope {
        form: Form::Chat,
        id: "chatcmpl-t".into(),
        created: 1,
        model: "m".into(),
        fingerprint: "f".into(),
    };
    Box::new(CompletionForm { envelope, options })
}

/// A request with one streamer a choice, and everything around it.
struct Stage {
    format: PromptFormat,
    metrics: Arc<Metrics>,
    streamers: Vec<Addr<Streamer>>,
    cancels: mpsc::UnboundedReceiver<Cancel>,
    body: Option<StreamBody<Presence>>,
    reply: Option<oneshot::Receiver<Result<Value, ApiError>>>,
}

#[derive(Default)]
struct Setup {
    stop: Vec<&'static str>,
    whole: bool,
    options: StreamOptions,
    choices: Option<usize>,
    progress: Option<Duration>,
}

impl Stage {
    fn open(setup: Setup) -> Self {
        let format = format();
        let metrics = Arc::new(Metrics::new());
        let record = RequestRecord::new(
            Endpoint::ChatCompletions,
            "r".into(),
            Instant::now(),
            Arc::clone(&metrics),
        );
        let (sender, cancels) = mpsc::unbounded_channel();
        let scheduler = Cancels(sender).start().recipient();
        let outbox = Outbox::new(form(setup.options));
        let (reply, receiver) = oneshot::channel();
        let delivery = if setup.whole {
            Delivery::Whole {
                form: form(setup.options),
                reply,
            }
        } else {
            Delivery::Stream(Rc::clone(&outbox))
        };
        let choices = setup.choices.unwrap_or(1);
        let answer = Answer::new(record, delivery, Shape::choices(choices), false);
        let start = |choice| {
            answer.borrow_mut().delta(choice, ChoiceDelta::Role);
            let parser = format.output_parser(&ParserOptions {
                tools: true,
                ..ParserOptions::default()
            });
            Streamer::new(Assignment {
                sequence: SequenceId(100 + choice as u64),
                choice,
                prompt_tokens: PROMPT_TOKENS,
                decoder: OutputDecoder::new(
                    format.detokenizer(),
                    StopMatcher::new(&setup.stop),
                    Some(parser),
                    false,
                ),
                echo: None,
                silent: false,
                answer: Rc::clone(&answer),
                scheduler: scheduler.clone(),
                progress_interval: setup.progress,
                deadline: Instant::now() + Duration::from_secs(3600),
                metrics: Arc::clone(&metrics),
                lease: Rc::new(()),
            })
            .start()
        };
        let streamers: Vec<_> = (0..choices).map(start).collect();
        answer
            .borrow_mut()
            .set_streamers(streamers.iter().map(Addr::downgrade).collect());
        let presence = Presence::new(streamers.clone());
        Self {
            format,
            metrics,
            streamers,
            cancels,
            body: Some(StreamBody::new(outbox, None, presence)),
            reply: setup.whole.then_some(receiver),
        }
    }

    /// Tells the streamer of `choice`, and waits until it has handled it.
    async fn tell(&self, choice: usize, event: GenerationEvent) {
        self.streamers[choice].send(event).await.unwrap();
    }

    async fn prefill(&self, processed: usize) {
        let progress = PrefillProgress {
            processed,
            cached: 4,
            prompt: PROMPT_TOKENS,
        };
        self.tell(0, GenerationEvent::Prefill(progress)).await;
    }

    /// Sends a text token by token, as far as the streamer lives. Returns how many were sent.
    async fn say(&self, choice: usize, text: &str) -> usize {
        let mut sent = 0;
        for token in self.format.encode(text).unwrap() {
            if self.streamers[choice]
                .send(GenerationEvent::Tokens(vec![token.into()]))
                .await
                .is_err()
            {
                break;
            }
            sent += 1;
        }
        sent
    }

    async fn finish(&self, reason: FinishReason) {
        let usage = TokenUsage {
            prompt_tokens: PROMPT_TOKENS,
            cached_tokens: 4,
            completion_tokens: 7,
        };
        self.tell(
            0,
            GenerationEvent::Finished(Finished {
                reason,
                usage,
                after: Duration::from_millis(9),
            }),
        )
        .await;
    }

    /// What the client can read now, in events; the second value says whether the stream has ended.
    async fn read(&mut self) -> (Vec<String>, bool) {
        let body = self.body.as_mut().unwrap();
        let mut events = Vec::new();
        let ended = std::future::poll_fn(|cx| {
            loop {
                match Pin::new(&mut *body).poll_next(cx) {
                    Poll::Ready(Some(Ok(bytes))) => {
                        // One piece may be told in several events.
                        let text = String::from_utf8(bytes.to_vec()).unwrap();
                        events.extend(text.split_inclusive("\n\n").map(str::to_owned));
                    }
                    Poll::Ready(None) => return Poll::Ready(true),
                    Poll::Pending => return Poll::Ready(false),
                }
            }
        })
        .await;
        (events, ended)
    }

    fn outcome(&self, outcome: &str) -> u64 {
        self.metrics
            .requests
            .with_label_values(&["chat_completions", outcome])
            .get()
    }

    /// All streamers have ended.
    async fn wait_until_idle(&self) {
        while self.metrics.streams_active.get() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// The JSON of a `data:` event.
fn data(event: &str) -> Value {
    let json = event
        .strip_prefix("data: ")
        .and_then(|rest| rest.strip_suffix("\n\n"));
    serde_json::from_str(json.expect(event)).expect(event)
}

fn content(events: &[String]) -> String {
    let text = |event: &String| {
        data(event)["choices"][0]["delta"]["content"]
            .as_str()
            .map(str::to_owned)
    };
    events
        .iter()
        .filter(|event| !event.contains("[DONE]"))
        .filter_map(text)
        .collect()
}

#[actix_web::test]
async fn a_stream_has_its_order() {
    let options = StreamOptions {
        include_usage: true,
        ..StreamOptions::default()
    };
    let mut stage = Stage::open(Setup {
        options,
        ..Setup::default()
    });
    let (first, _) = stage.read().await;
    assert_eq!(data(&first[0])["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(first.len(), 1);
    stage.prefill(10).await;
    let text = "Größe: 10 €, ok 🙂!";
    stage.say(0, text).await;
    stage.finish(FinishReason::Stop).await;
    let (events, ended) = stage.read().await;
    assert!(ended);
    assert_eq!(content(&events), text);
    let [.., finish, usage, done] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!(data(finish)["choices"][0]["finish_reason"], "stop");
    assert_eq!(data(finish)["choices"][0]["delta"], serde_json::json!({}));
    assert_eq!(data(usage)["choices"], serde_json::json!([]));
    assert_eq!(
        data(usage)["usage"]["prompt_tokens_details"]["cached_tokens"],
        4
    );
    assert_eq!(data(usage)["usage"]["total_tokens"], 17);
    assert_eq!(done, "data: [DONE]\n\n");
    stage.wait_until_idle().await;
    assert_eq!(stage.outcome("stop"), 1);
    assert_eq!(
        stage.metrics.time_to_first_token_seconds.get_sample_count(),
        1
    );
}

#[actix_web::test]
async fn a_stop_string_ends_the_sequence() {
    let mut stage = Stage::open(Setup {
        stop: vec!["three, fo"],
        ..Setup::default()
    });
    let sent = stage
        .say(0, "one, two, three, four, five, six, seven, eight")
        .await;
    let cancel = stage.cancels.recv().await.unwrap();
    assert_eq!(
        (cancel.sequence, cancel.cause),
        (SequenceId(100), CancelCause::StopString)
    );
    let (events, ended) = stage.read().await;
    assert!(ended);
    assert_eq!(content(&events), "one, two, ");
    assert!(
        sent < stage
            .format
            .encode("one, two, three, four, five, six, seven, eight")
            .unwrap()
            .len()
    );
    let finish = &events[events.len() - 2];
    assert_eq!(data(finish)["choices"][0]["finish_reason"], "stop");
    drop(stage.body.take());
    stage.wait_until_idle().await;
    assert!(stage.cancels.try_recv().is_err(), "cancelled twice");
    assert_eq!(stage.outcome("stop"), 1);
}

#[actix_web::test]
async fn tool_calls_are_deltas_without_markup() {
    let mut stage = Stage::open(Setup::default());
    let call = |city: &str| {
        format!(
            "<tool_call>\n{{\"name\": \"weather\", \"arguments\": {{\"city\": \"{city}\"}}}}\n</tool_call>"
        )
    };
    stage
        .say(0, &format!("{}\n{}", call("Berlin"), call("Paris")))
        .await;
    stage.finish(FinishReason::Stop).await;
    let (events, _) = stage.read().await;
    assert!(!events.concat().contains("tool_call>"));
    let mut calls: Vec<(String, String, String)> = Vec::new();
    for event in events
        .iter()
        .filter(|event| event.contains("tool_calls\":["))
    {
        let call = &data(event)["choices"][0]["delta"]["tool_calls"][0];
        let index = call["index"].as_u64().unwrap() as usize;
        if let Some(id) = call["id"].as_str() {
            assert_eq!(
                (index, &call["type"]),
                (calls.len(), &Value::from("function"))
            );
            let name = call["function"]["name"].as_str().unwrap();
            calls.push((id.to_owned(), name.to_owned(), String::new()));
        }
        calls[index].2 += call["function"]["arguments"].as_str().unwrap();
    }
    assert_eq!(calls.len(), 2);
    assert!(calls[0].0.starts_with("call_") && calls[0].0 != calls[1].0);
    for ((_, name, arguments), city) in calls.iter().zip(["Berlin", "Paris"]) {
        assert_eq!(name, "weather");
        assert_eq!(
            serde_json::from_str::<Value>(arguments).unwrap(),
            serde_json::json!({"city": city})
        );
    }
    let finish = &events[events.len() - 2];
    assert_eq!(data(finish)["choices"][0]["finish_reason"], "tool_calls");
    stage.wait_until_idle().await;
    assert_eq!(stage.outcome("tool_calls"), 1);
}

#[actix_web::test]
async fn a_failed_stream_ends_in_an_error_and_nothing_else() {
    let mut stage = Stage::open(Setup::default());
    stage.say(0, "so far").await;
    stage
        .tell(
            0,
            GenerationEvent::Failed(GenerationFailure::Engine("lost".into())),
        )
        .await;
    let (events, ended) = stage.read().await;
    assert!(ended);
    let error = data(events.last().unwrap());
    assert_eq!(error["error"]["type"], "server_error");
    assert!(error["error"]["message"].as_str().unwrap().contains("lost"));
    let wire = events.concat();
    assert!(!wire.contains("[DONE]") && !wire.contains("\"finish_reason\":\"stop\""));
    stage.wait_until_idle().await;
    assert_eq!(stage.outcome("failed"), 1);
    assert_eq!(stage.metrics.client_disconnects.get(), 0);
}

#[actix_web::test]
async fn a_client_that_leaves_cancels_its_sequence() {
    let mut stage = Stage::open(Setup::default());
    stage.say(0, "so far").await;
    drop(stage.body.take());
    let cancel = stage.cancels.recv().await.unwrap();
    assert_eq!(
        (cancel.sequence, cancel.cause),
        (SequenceId(100), CancelCause::ClientGone)
    );
    stage.wait_until_idle().await;
    assert_eq!(stage.outcome("cancelled"), 1);
    assert_eq!(stage.metrics.client_disconnects.get(), 1);
}

#[actix_web::test]
async fn progress_is_told_before_the_first_token_and_never_after() {
    let options = StreamOptions {
        progress_events: true,
        progress_chunks: true,
        ..StreamOptions::default()
    };
    let mut stage = Stage::open(Setup {
        options,
        progress: Some(Duration::from_millis(1)),
        ..Setup::default()
    });
    stage.prefill(4).await;
    // The heartbeat tells of prefill that goes on.
    let mut wire = String::new();
    while !wire.contains("\"status\":\"processing\"") {
        tokio::task::yield_now().await;
        wire += &stage.read().await.0.concat();
    }
    stage.prefill(10).await;
    stage.say(0, "text").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    stage.finish(FinishReason::Stop).await;
    let (rest, _) = stage.read().await;
    wire += &rest.concat();
    let events: Vec<&str> = wire.split_inclusive("\n\n").collect();
    assert_eq!(data(events[0])["choices"][0]["delta"]["role"], "assistant");
    let named: Vec<Value> = events
        .iter()
        .filter_map(|event| event.strip_prefix("event: prefill_progress\n"))
        .map(data)
        .collect();
    let statuses: Vec<&str> = named
        .iter()
        .map(|event| event["status"].as_str().unwrap())
        .collect();
    assert_eq!(statuses.first(), Some(&"queued"));
    assert_eq!(
        statuses.iter().filter(|status| **status == "done").count(),
        1
    );
    assert_eq!(statuses.last(), Some(&"done"));
    let done = named.last().unwrap();
    assert_eq!(
        (&done["n_past"], &done["n_prompt_tokens"]),
        (&10.into(), &10.into())
    );
    assert_eq!(
        (&done["cached_tokens"], &done["fraction"]),
        (&4.into(), &1.0.into())
    );
    assert_eq!(
        (&done["object"], &done["id"]),
        (&"prefill_progress".into(), &"chatcmpl-t".into())
    );
    assert_eq!(done["choices"], serde_json::json!([]));
    assert!(done["elapsed_seconds"].as_f64().unwrap() >= 0.0);
    let first_text = events
        .iter()
        .position(|event| event.contains("\"content\":\""))
        .unwrap();
    assert!(
        events[first_text..]
            .iter()
            .all(|event| !event.contains("progress"))
    );
    assert!(
        events[..first_text]
            .iter()
            .any(|event| event.contains("prompt_progress"))
    );
}

#[actix_web::test]
async fn a_whole_answer_comes_once() {
    let mut stage = Stage::open(Setup {
        whole: true,
        ..Setup::default()
    });
    stage.prefill(10).await;
    stage.say(0, "<think>Hm.</think>All of it.").await;
    stage.finish(FinishReason::Length).await;
    let answer = stage.reply.take().unwrap().await.unwrap().unwrap();
    assert_eq!(answer["object"], "chat.completion");
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], "All of it.");
    assert_eq!(choice["message"]["reasoning_content"], "Hm.");
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 7);
    assert!(
        answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
            .as_u64()
            .unwrap()
            > 0
    );
}

#[actix_web::test]
async fn a_reader_that_does_not_read_costs_its_text_and_delays_nobody() {
    let mut stage = Stage::open(Setup::default());
    let tokens = stage.format.encode("word ").unwrap();
    let tokens: Vec<GeneratedToken> = tokens.into_iter().map(Into::into).collect();
    for _ in 0..20_000 {
        stage.tell(0, GenerationEvent::Tokens(tokens.clone())).await;
    }
    stage.finish(FinishReason::Length).await;
    stage.wait_until_idle().await;
    let (events, ended) = stage.read().await;
    assert!(ended);
    // Role, one content, finish, [DONE].
    assert_eq!(events.len(), 4);
    assert_eq!(content(&events), "word ".repeat(20_000));
}

#[actix_web::test]
async fn one_failed_choice_ends_all() {
    let mut stage = Stage::open(Setup {
        choices: Some(2),
        ..Setup::default()
    });
    stage.say(1, "fine").await;
    stage
        .tell(
            0,
            GenerationEvent::Failed(GenerationFailure::DeadlineExceeded),
        )
        .await;
    let cancel = stage.cancels.recv().await.unwrap();
    assert_eq!(cancel.sequence, SequenceId(101));
    let (events, ended) = stage.read().await;
    assert!(ended);
    assert_eq!(
        data(events.last().unwrap())["error"]["code"],
        "deadline_exceeded"
    );
    stage.wait_until_idle().await;
    assert_eq!(stage.outcome("deadline"), 1);
    assert_eq!(stage.outcome("cancelled"), 0);
}
