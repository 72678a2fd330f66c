//! `POST /v1/chat/completions` and `POST /v1/completions`: from the body to the running answer.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use actix::prelude::*;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap};
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::Value;
use tokio::sync::oneshot;

use super::answer::{Answer, Delivery, StreamOptions};
use super::body::read_body;
use super::context::{Arrival, Context as Shared, connection};
use super::error::ApiError;
use super::outbox::{Outbox, StreamBody};
use super::prepare::{GenerationRequest, ModelBounds, PreparedSequence, prepare};
use super::record::{Endpoint, RequestRecord};
use super::request::chat::ChatRequest;
use super::request::completion::CompletionRequest;
use super::request::parse_json;
use super::wire::{ChoiceDelta, Envelope, Form};
use crate::actors::messages::{self, Submit};
use crate::actors::model_manager::{Acquire, ModelLease};
use crate::actors::streamer::decoder::OutputDecoder;
use crate::actors::streamer::{Assignment, Presence, Streamer};
use crate::ids::SequenceId;
use crate::prompt::StopMatcher;

/// Bodies above this are parsed off the worker thread.
const PARSE_INLINE: usize = 64 * 1024;
/// Headers that ask for progress events.
const PROGRESS_HEADERS: [&str; 2] = ["x-prefill-progress", "x-swiftlm-prefill-progress"];
/// The model and its numbers change only with the build.
const FINGERPRINT: &str = concat!("trunkline-", env!("CARGO_PKG_VERSION"));

/// `POST /v1/chat/completions`.
pub async fn chat_completions(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    handle(Endpoint::ChatCompletions, request, payload, shared).await
}

/// `POST /v1/completions`.
pub async fn completions(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    handle(Endpoint::Completions, request, payload, shared).await
}

async fn handle(
    endpoint: Endpoint,
    request: HttpRequest,
    mut payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    let arrival = Arrival::of(&request);
    arrival.logged.set(true);
    let metrics = Arc::clone(&shared.state.metrics);
    let mut record = RequestRecord::new(endpoint, arrival.request_id, arrival.at, metrics);
    let deadline = (arrival.at + shared.options.request_timeout).into();
    let understood = understand(endpoint, &request, &mut payload, &shared, &mut record);
    let understood = tokio::time::timeout_at(deadline, understood).await;
    match understood.unwrap_or(Err(ApiError::DeadlineExceeded)) {
        Ok(job) => generate(job, &request, &shared, record).await,
        Err(error) => {
            record.reject(&error);
            error.response()
        }
    }
}

/// A request that can be answered.
struct Job {
    request: GenerationRequest,
    lease: Rc<ModelLease>,
    sequences: Vec<PreparedSequence>,
}

/// Everything that can be refused is refused here, or when the scheduler is asked.
async fn understand(
    endpoint: Endpoint,
    request: &HttpRequest,
    payload: &mut web::Payload,
    shared: &Shared,
    record: &mut RequestRecord,
) -> Result<Job, ApiError> {
    let options = &shared.options;
    let body = read_body(
        payload,
        request.headers(),
        options.body_limit,
        options.body_timeout,
    )
    .await?;
    let generation = if body.len() <= PARSE_INLINE {
        parse(endpoint, &body)?
    } else {
        blocking(move || parse(endpoint, &body)).await?
    };

    let acquire = Acquire {
        model: generation.options().model.clone(),
    };
    let lease = match shared.state.manager.send(acquire).await {
        Ok(lease) => lease?,
        Err(_) => {
            return Err(ApiError::Internal(
                "the model manager has stopped".to_owned(),
            ));
        }
    };
    record.describe(&lease.id, generation.options().stream);

    let bounds = ModelBounds {
        context_window: lease.context_window,
        vocabulary: lease.engine.vocabulary,
    };
    let format = Arc::clone(&lease.prompt);
    let log_content = options.log_content;
    let Ok(_permit) = shared.encoding.acquire().await else {
        return Err(ApiError::Internal("the server has stopped".to_owned()));
    };
    let (request, sequences) = blocking(move || {
        let sequences = prepare(&generation, &format, bounds, log_content)?;
        Ok((generation, sequences))
    })
    .await?;
    for text in sequences
        .iter()
        .filter_map(|sequence| sequence.text.as_deref())
    {
        tracing::info!(request_id = %record.request_id(), prompt = text, "prompt");
    }
    Ok(Job {
        request,
        lease: Rc::new(lease),
        sequences,
    })
}

fn parse(endpoint: Endpoint, body: &[u8]) -> Result<GenerationRequest, ApiError> {
    let body = parse_json(body)?;
    Ok(match endpoint {
        Endpoint::ChatCompletions => GenerationRequest::Chat(ChatRequest::parse(&body)?),
        Endpoint::Completions => GenerationRequest::Text(CompletionRequest::parse(&body)?),
    })
}

/// Runs work that takes long on the blocking pool.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match web::block(work).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::Internal(
            "the request could not be processed".to_owned(),
        )),
    }
}

/// Starts the streamers, submits the sequences, and answers.
async fn generate(
    job: Job,
    request: &HttpRequest,
    shared: &Shared,
    record: RequestRecord,
) -> HttpResponse {
    let options = job.request.options();
    let envelope = envelope(job.request.form(), &job.lease.id);
    let stream_options = StreamOptions {
        include_usage: options.include_usage,
        usage_on_final_chunk: shared.options.usage_on_final_chunk,
        progress_events: options.stream && wants_progress_events(request.headers()),
        progress_chunks: options.stream && options.return_progress,
    };
    let (request_id, arrived) = (Arc::clone(record.request_id()), record.arrived());
    let mut outlet = None;
    let mut receiver = None;
    let delivery = if options.stream {
        let outbox = Outbox::new(envelope);
        outlet = Some(Rc::clone(&outbox));
        Delivery::Stream {
            outbox,
            options: stream_options,
        }
    } else {
        let (reply, reading) = oneshot::channel();
        receiver = Some(reading);
        Delivery::Whole { envelope, reply }
    };
    let answer = Answer::new(
        record,
        delivery,
        job.sequences.len(),
        shared.options.log_content,
    );
    let setting = Setting {
        answer: Rc::clone(&answer),
        request_id,
        deadline: arrived + shared.options.request_timeout,
        wants_progress: stream_options.progress_events || stream_options.progress_chunks,
    };
    let presence = match start(job, &setting, shared).await {
        Ok(presence) => presence,
        Err(error) => {
            answer.borrow_mut().reject(&error);
            return error.response();
        }
    };
    match (outlet, receiver) {
        (Some(outbox), _) => HttpResponse::Ok()
            .insert_header((CONTENT_TYPE, "text/event-stream"))
            .insert_header((CACHE_CONTROL, "no-cache"))
            // For proxies that would collect the stream.
            .insert_header(("X-Accel-Buffering", "no"))
            .body(StreamBody::new(outbox, connection(request), presence)),
        (None, Some(receiver)) => whole(receiver, presence).await,
        (None, None) => ApiError::Internal("an answer without a way out".to_owned()).response(),
    }
}

/// What the sequences of one request share.
struct Setting {
    answer: Rc<RefCell<Answer>>,
    request_id: Arc<str>,
    deadline: std::time::Instant,
    wants_progress: bool,
}

/// Starts a streamer for each sequence and submits them. When one is refused, all are abandoned.
async fn start(job: Job, setting: &Setting, shared: &Shared) -> Result<Presence, ApiError> {
    let options = job.request.options();
    let seed: u64 = options.sampling.seed.unwrap_or_else(rand::random);
    let form = job.request.form();
    let mut requests = Vec::with_capacity(job.sequences.len());
    let mut streamers = Vec::with_capacity(job.sequences.len());
    for (choice, prepared) in job.sequences.into_iter().enumerate() {
        {
            let mut answer = setting.answer.borrow_mut();
            if form == Form::Chat {
                answer.delta(choice, ChoiceDelta::Role);
            }
            if let Some(echo) = prepared.echo {
                answer.delta(choice, ChoiceDelta::Content(echo));
            }
        }
        let format = &job.lease.prompt;
        let decoder = OutputDecoder::new(
            if form == Form::Chat {
                format.detokenizer()
            } else {
                format.continuing_detokenizer()
            },
            StopMatcher::new(&options.stop),
            prepared
                .parser
                .as_ref()
                .map(|options| format.output_parser(options)),
            prepared
                .parser
                .is_some_and(|options| options.reasoning_open),
        );
        let sequence = SequenceId::next();
        let streamer = Streamer::new(Assignment {
            sequence,
            choice,
            prompt_tokens: prepared.prompt.len(),
            decoder,
            answer: Rc::clone(&setting.answer),
            scheduler: job.lease.scheduler.clone().recipient(),
            // One prompt's progress is told; with several, the first one's.
            progress_interval: (setting.wants_progress && choice == 0)
                .then_some(shared.options.progress_interval),
            deadline: setting.deadline,
            metrics: Arc::clone(&shared.state.metrics),
            lease: Rc::clone(&job.lease) as Rc<dyn std::any::Any>,
        })
        .start();
        let mut sampling = options
            .sampling
            .resolve(&job.lease.sampling, seed.wrapping_add(choice as u64));
        if let Some((token, bias)) = prepared.forbidden {
            sampling.logit_bias.entry(token).or_insert(bias);
        }
        requests.push(messages::GenerationRequest {
            sequence,
            request_id: Arc::clone(&setting.request_id),
            prompt: prepared.prompt,
            sampling,
            max_new_tokens: prepared.max_new_tokens,
            ignore_eos: options.ignore_eos,
            deadline: setting.deadline,
            events: streamer.clone().recipient(),
        });
        streamers.push(streamer);
    }
    setting
        .answer
        .borrow_mut()
        .set_streamers(streamers.iter().map(Addr::downgrade).collect());
    let presence = Presence::new(streamers);
    for request in requests {
        match job.lease.scheduler.send(Submit(request)).await {
            Ok(admitted) => admitted?,
            Err(_) => return Err(messages::SubmitError::EngineGone.into()),
        }
    }
    Ok(presence)
}

/// Waits for a whole answer. Dropped with the connection, it abandons the sequences.
async fn whole(
    receiver: oneshot::Receiver<Result<Value, ApiError>>,
    presence: Presence,
) -> HttpResponse {
    let response = match receiver.await {
        Ok(Ok(answer)) => HttpResponse::Ok().json(answer),
        Ok(Err(error)) => error.response(),
        Err(_) => ApiError::Internal("the answer was lost".to_owned()).response(),
    };
    drop(presence);
    response
}

fn envelope(form: Form, model: &str) -> Envelope {
    let created = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    Envelope {
        form,
        id: format!("{}{}", form.id_prefix(), uuid::Uuid::new_v4().simple()),
        created,
        model: model.to_owned(),
        fingerprint: FINGERPRINT.to_owned(),
    }
}

fn wants_progress_events(headers: &HeaderMap) -> bool {
    let on = |value: &str| {
        ["true", "1", "yes", "on"]
            .iter()
            .any(|yes| value.trim().eq_ignore_ascii_case(yes))
    };
    PROGRESS_HEADERS
        .iter()
        .filter_map(|name| headers.get(*name))
        .any(|value| value.to_str().is_ok_and(on))
}
