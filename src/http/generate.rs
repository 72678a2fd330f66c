//! From a request's body to its running answer, for every API; and OpenAI's two completion endpoints.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use actix::prelude::*;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap};
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::Value;
use tokio::sync::oneshot;

use super::answer::{Answer, Delivery, Shape};
use super::body::read_body;
use super::constrain::constrain;
use super::context::{Arrival, Context as Shared, connection};
use super::error::ApiError;
use super::form::{FormMaker, Opening};
use super::openai::{CompletionForm, StreamOptions};
use super::outbox::{Outbox, StreamBody};
use super::paths::PathMap;
use super::prepare::{GenerationRequest, ModelBounds, PreparedSequence, prepare};
use super::record::{Endpoint, RequestRecord};
use super::request::chat::ChatRequest;
use super::request::completion::CompletionRequest;
use super::request::parse_json;
use super::wire::{ChoiceDelta, Form};
use crate::actors::messages::{self, Submit};
use crate::actors::model_manager::{Acquire, ModelLease};
use crate::actors::streamer::decoder::{EchoedPrompt, OutputDecoder};
use crate::actors::streamer::{Assignment, Presence, Streamer};
use crate::ids::SequenceId;
use crate::prompt::StopMatcher;

/// Bodies above this are parsed off the worker thread.
const PARSE_INLINE: usize = 64 * 1024;
/// Headers that ask for progress events.
const PROGRESS_HEADERS: [&str; 2] = ["x-prefill-progress", "x-swiftlm-prefill-progress"];

/// `POST /v1/chat/completions`.
pub async fn chat_completions(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    let translate = |body: &Value| {
        let request = ChatRequest::parse(body)?;
        Ok(openai(GenerationRequest::Chat(request)))
    };
    handle(
        Endpoint::ChatCompletions,
        request,
        payload,
        shared,
        translate,
    )
    .await
}

/// `POST /v1/completions`.
pub async fn completions(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    let translate = |body: &Value| {
        let request = CompletionRequest::parse(body)?;
        Ok(openai(GenerationRequest::Text(request)))
    };
    handle(Endpoint::Completions, request, payload, shared, translate).await
}

/// A request that came in the internal form, to be answered likewise.
fn openai(request: GenerationRequest) -> Translated {
    let form = request.form();
    let options = request.options();
    let options = StreamOptions {
        include_usage: options.include_usage,
        progress_chunks: options.stream && options.return_progress,
        timings: options.timings,
        ..StreamOptions::default()
    };
    Translated {
        request,
        form: Box::new(move |opening| Box::new(CompletionForm::new(form, options, opening))),
        paths: PathMap::default(),
    }
}

/// What an API makes of a body.
pub struct Translated {
    pub request: GenerationRequest,
    /// How the answer is told.
    pub form: FormMaker,
    /// How errors about the request are told.
    pub paths: PathMap,
}

/// Answers a request of any API: `translate` says what it asks for and how the answer is told.
pub async fn handle<T>(
    endpoint: Endpoint,
    request: HttpRequest,
    mut payload: web::Payload,
    shared: web::Data<Shared>,
    translate: T,
) -> HttpResponse
where
    T: FnOnce(&Value) -> Result<Translated, ApiError> + Send + 'static,
{
    let arrival = Arrival::of(&request);
    arrival.logged.set(true);
    let metrics = Arc::clone(&shared.state.metrics);
    let request_id = Arc::clone(&arrival.request_id);
    let mut record = RequestRecord::new(endpoint, arrival.request_id, arrival.at, metrics);
    let deadline = (arrival.at + shared.options.request_timeout).into();
    let understood = understand(translate, &request, &mut payload, &shared, &mut record);
    let understood = tokio::time::timeout_at(deadline, understood).await;
    match understood.unwrap_or(Err(ApiError::DeadlineExceeded)) {
        Ok(job) => generate(job, endpoint, &request, &shared, record).await,
        Err(error) => {
            record.reject(&error);
            endpoint.dialect().error_response(&error, &request_id)
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
async fn understand<T>(
    translate: T,
    request: &HttpRequest,
    payload: &mut web::Payload,
    shared: &Shared,
    record: &mut RequestRecord,
) -> Result<(Job, FormMaker), ApiError>
where
    T: FnOnce(&Value) -> Result<Translated, ApiError> + Send + 'static,
{
    let Translated {
        request: generation,
        form,
        paths,
    } = read(request, payload, shared, translate).await?;
    let lease = acquire(shared, generation.options().model.clone()).await?;
    record.describe(&lease.id, generation.options().stream);

    let bounds = bounds(&lease);
    let format = Arc::clone(&lease.prompt);
    let grammars = Arc::clone(&lease.grammars);
    let log_content = shared.options.log_content;
    let (generation, sequences) = encoding(shared, move || {
        let sequences = prepare(&generation, &format, bounds, log_content)
            .and_then(|mut sequences| {
                constrain(
                    &generation,
                    &mut sequences,
                    &format,
                    &grammars,
                    bounds.vocabulary,
                )?;
                Ok(sequences)
            })
            .map_err(|error| paths.tell(error))?;
        Ok((generation, sequences))
    })
    .await?;
    for text in sequences
        .iter()
        .filter_map(|sequence| sequence.text.as_deref())
    {
        tracing::info!(request_id = %record.request_id(), prompt = text, "prompt");
    }
    let job = Job {
        request: generation,
        lease: Rc::new(lease),
        sequences,
    };
    Ok((job, form))
}

/// Reads the body and makes sense of it.
pub async fn read<R: Send + 'static>(
    request: &HttpRequest,
    payload: &mut web::Payload,
    shared: &Shared,
    understand: impl FnOnce(&Value) -> Result<R, ApiError> + Send + 'static,
) -> Result<R, ApiError> {
    let options = &shared.options;
    let body = read_body(
        payload,
        request.headers(),
        options.body_limit,
        options.body_timeout,
    )
    .await?;
    let short = body.len() <= PARSE_INLINE;
    let parse = move || understand(&parse_json(&body)?);
    if short {
        parse()
    } else {
        blocking(parse).await
    }
}

/// The right to use the model that a request names.
pub async fn acquire(shared: &Shared, model: Option<String>) -> Result<ModelLease, ApiError> {
    match shared.state.manager.send(Acquire { model }).await {
        Ok(lease) => Ok(lease?),
        Err(_) => Err(ApiError::Internal(
            "the model manager has stopped".to_owned(),
        )),
    }
}

/// What the model allows.
pub fn bounds(lease: &ModelLease) -> ModelBounds {
    ModelBounds {
        context_window: lease.context_window,
        vocabulary: lease.engine.vocabulary,
    }
}

/// Renders or encodes: on the blocking pool, and no more of it at once than there are CPUs.
pub async fn encoding<R: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce() -> Result<R, ApiError> + Send + 'static,
) -> Result<R, ApiError> {
    let Ok(_permit) = shared.encoding.acquire().await else {
        return Err(ApiError::Internal("the server has stopped".to_owned()));
    };
    blocking(work).await
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
    (job, form): (Job, FormMaker),
    endpoint: Endpoint,
    request: &HttpRequest,
    shared: &Shared,
    record: RequestRecord,
) -> HttpResponse {
    let options = job.request.options();
    let opening = Opening {
        model: job.lease.id.clone(),
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        request_id: Arc::clone(record.request_id()),
        arrived: record.arrived(),
        prompt_tokens: job
            .sequences
            .iter()
            .map(|sequence| sequence.prompt.len())
            .sum(),
        progress_events: options.stream && wants_progress_events(request.headers()),
        usage_on_final_chunk: shared.options.usage_on_final_chunk,
    };
    let setting = Setting {
        request_id: Arc::clone(record.request_id()),
        deadline: record.arrived() + shared.options.request_timeout,
        wants_progress: opening.progress_events || options.stream && options.return_progress,
    };
    let stream = options.stream;
    let shape = Shape {
        prompts: job.sequences.len(),
        n: options.choices.n,
        best_of: options.choices.best_of,
        logprobs: options.logprobs.is_some(),
    };
    let form = (form)(opening);
    let log_content = shared.options.log_content;
    let refuse = |answer: &RefCell<Answer>, error: ApiError| {
        answer.borrow_mut().reject(&error);
        endpoint
            .dialect()
            .error_response(&error, &setting.request_id)
    };
    if stream {
        let content_type = form.content_type();
        let outbox = Outbox::new(form);
        let delivery = Delivery::Stream(Rc::clone(&outbox));
        let answer = Answer::new(record, delivery, shape, log_content);
        let presence = match start(job, &answer, &setting, shared).await {
            Ok(presence) => presence,
            Err(error) => return refuse(&answer, error),
        };
        HttpResponse::Ok()
            .insert_header((CONTENT_TYPE, content_type))
            .insert_header((CACHE_CONTROL, "no-cache"))
            // For proxies that would collect the stream.
            .insert_header(("X-Accel-Buffering", "no"))
            .body(StreamBody::new(outbox, connection(request), presence))
    } else {
        let (reply, receiver) = oneshot::channel();
        let delivery = Delivery::Whole { form, reply };
        let answer = Answer::new(record, delivery, shape, log_content);
        let presence = match start(job, &answer, &setting, shared).await {
            Ok(presence) => presence,
            Err(error) => return refuse(&answer, error),
        };
        drop(answer);
        let whole = whole(receiver, presence).await;
        match whole {
            Ok(whole) => HttpResponse::Ok().json(whole),
            Err(error) => endpoint
                .dialect()
                .error_response(&error, &setting.request_id),
        }
    }
}

/// What the sequences of one request share.
struct Setting {
    request_id: Arc<str>,
    deadline: std::time::Instant,
    wants_progress: bool,
}

/// Starts a streamer for each sequence and submits them. When one is refused, all are abandoned.
async fn start(
    job: Job,
    answer: &Rc<RefCell<Answer>>,
    setting: &Setting,
    shared: &Shared,
) -> Result<Presence, ApiError> {
    let options = job.request.options();
    let seed: u64 = options.sampling.seed.unwrap_or_else(rand::random);
    let form = job.request.form();
    let mut requests = Vec::with_capacity(job.sequences.len() * options.choices.best_of);
    let mut streamers = Vec::with_capacity(requests.capacity());
    // Sequences of one prompt follow each other: the first computes it, the others wait for its blocks.
    let sequences = job.sequences.iter();
    let sequences =
        sequences.flat_map(|prepared| std::iter::repeat_n(prepared, options.choices.best_of));
    for (choice, prepared) in sequences.enumerate() {
        let format = &job.lease.prompt;
        if form == Form::Chat {
            let mut answer = answer.borrow_mut();
            answer.delta(choice, ChoiceDelta::Role);
        }
        // Without log probabilities the prompt can be told at once.
        let echo = match &prepared.echo {
            Some(text) if options.logprobs.is_some() => {
                let detokenizer = format.detokenizer();
                let tokens = prepared.prompt.to_vec();
                Some(EchoedPrompt::new(text.clone(), tokens, detokenizer))
            }
            Some(text) => {
                let mut answer = answer.borrow_mut();
                answer.delta(choice, ChoiceDelta::Content(text.clone()));
                None
            }
            None => None,
        };
        let echoed = prepared.echo.as_deref().unwrap_or_default();
        let decoder = OutputDecoder::new(
            if prepared.continues_text {
                format.continuing_detokenizer()
            } else {
                format.detokenizer()
            },
            StopMatcher::new(&options.stop),
            prepared
                .parser
                .as_ref()
                .map(|options| format.output_parser(options)),
            prepared
                .parser
                .as_ref()
                .is_some_and(|options| options.reasoning_open),
        )
        .with_single_call(job.request.single_call());
        let mut sampling = options
            .sampling
            .resolve(&job.lease.sampling, seed.wrapping_add(choice as u64));
        if let Some((token, bias)) = prepared.forbidden {
            sampling.logit_bias.entry(token).or_insert(bias);
        }
        sampling.grammar = prepared.grammar.clone();
        // To choose the best, log probabilities are needed though none are told.
        let to_choose = (options.choices.best_of > options.choices.n).then_some(0);
        sampling.logprobs = options.logprobs.or(to_choose);
        sampling.prompt_logprobs = echo.is_some();
        let sequence = SequenceId::next();
        let streamer = Streamer::new(Assignment {
            sequence,
            choice,
            prompt_tokens: prepared.prompt.len(),
            decoder: decoder.behind(echoed.chars().count()),
            echo,
            silent: prepared.silent,
            answer: Rc::clone(answer),
            scheduler: job.lease.scheduler.clone().recipient(),
            // One prompt's progress is told; with several, the first one's.
            progress_interval: (setting.wants_progress && choice == 0)
                .then_some(shared.options.progress_interval),
            deadline: setting.deadline,
            metrics: Arc::clone(&shared.state.metrics),
            lease: Rc::clone(&job.lease) as Rc<dyn std::any::Any>,
        })
        .start();
        requests.push(messages::GenerationRequest {
            sequence,
            request_id: Arc::clone(&setting.request_id),
            prompt: Arc::clone(&prepared.prompt),
            sampling,
            max_new_tokens: prepared.max_new_tokens,
            ignore_eos: options.ignore_eos,
            deadline: setting.deadline,
            events: streamer.clone().recipient(),
        });
        streamers.push(streamer);
    }
    answer
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
) -> Result<Value, ApiError> {
    let whole = receiver.await;
    drop(presence);
    whole.unwrap_or_else(|_| Err(ApiError::Internal("the answer was lost".to_owned())))
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
