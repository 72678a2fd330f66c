//! Tokens without generating any: counting, encoding, decoding, rendering.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};

use super::context::{Arrival, Context as Shared};
use super::error::ApiError;
use super::generate::{acquire, bounds, encoding, read};
use super::paths::PathMap;
use super::prepare::{GenerationRequest, ModelBounds, PreparedSequence, decode, prepare};
use super::record::{Endpoint, Outcome, RequestRecord};
use super::request::chat::ChatRequest;
use super::request::fields::Fields;
use crate::actors::messages::TokenUsage;
use crate::ids::TokenId;
use crate::prompt::PromptFormat;

/// Answers with how many tokens the prompt of a request would have, however long it is.
pub async fn count<T, A>(
    endpoint: Endpoint,
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
    translate: T,
    told: A,
) -> HttpResponse
where
    T: FnOnce(&Value) -> Result<(ChatRequest, PathMap), ApiError> + Send + 'static,
    A: FnOnce(usize) -> Value + Send + 'static,
{
    let understand = |body: &Value| {
        let (chat, paths) = translate(body)?;
        let model = chat.options.model.clone();
        let work: Work = Box::new(move |format, bounds| {
            let prompt = rendered(chat, format, bounds).map_err(|error| paths.tell(error))?;
            Ok(told(prompt.prompt.len()))
        });
        Ok((model, work))
    };
    answer(endpoint, request, payload, shared, understand).await
}

/// `POST /v1/chat/completions/input_tokens`.
pub async fn chat_input_tokens(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    let endpoint = Endpoint::InputTokens;
    let translate = |body: &Value| Ok((ChatRequest::parse(body)?, PathMap::default()));
    count(endpoint, request, payload, shared, translate, input_tokens).await
}

/// How OpenAI tells a count.
pub fn input_tokens(tokens: usize) -> Value {
    json!({"object": "response.input_tokens", "input_tokens": tokens})
}

/// `POST /tokenize`: `content` as llama-server has it, `prompt` or `messages` as vLLM has them.
pub async fn tokenize(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    answer(Endpoint::Tokenize, request, payload, shared, to_tokens).await
}

/// `POST /detokenize`.
pub async fn detokenize(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    answer(Endpoint::Detokenize, request, payload, shared, to_text).await
}

/// `POST /apply-template`: the text that a chat request's messages and tools become.
pub async fn apply_template(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    let understand = |body: &Value| {
        let chat = ChatRequest::parse(body)?;
        let model = chat.options.model.clone();
        let work: Work = Box::new(move |format, bounds| {
            let prepared = rendered(chat, format, bounds)?;
            Ok(json!({"prompt": prepared.text}))
        });
        Ok((model, work))
    };
    let endpoint = Endpoint::ApplyTemplate;
    answer(endpoint, request, payload, shared, understand).await
}

/// What is left to do when the model is known.
type Work = Box<dyn FnOnce(&PromptFormat, ModelBounds) -> Result<Value, ApiError> + Send>;

/// Reads a body, acquires the model it names, does the work off this thread, and answers.
async fn answer(
    endpoint: Endpoint,
    request: HttpRequest,
    mut payload: web::Payload,
    shared: web::Data<Shared>,
    understand: impl FnOnce(&Value) -> Result<(Option<String>, Work), ApiError> + Send + 'static,
) -> HttpResponse {
    let arrival = Arrival::of(&request);
    arrival.logged.set(true);
    let metrics = Arc::clone(&shared.state.metrics);
    let request_id = Arc::clone(&arrival.request_id);
    let mut record = RequestRecord::new(endpoint, arrival.request_id, arrival.at, metrics);
    let answering = async {
        let (model, work) = read(&request, &mut payload, &shared, understand).await?;
        let lease = acquire(&shared, model).await?;
        record.describe(&lease.id, false);
        let (format, bounds) = (Arc::clone(&lease.prompt), bounds(&lease));
        encoding(&shared, move || work(&format, bounds)).await
    };
    let deadline = (arrival.at + shared.options.request_timeout).into();
    let answered = tokio::time::timeout_at(deadline, answering).await;
    match answered.unwrap_or(Err(ApiError::DeadlineExceeded)) {
        Ok(value) => {
            record.complete(Outcome::Stop, TokenUsage::default());
            HttpResponse::Ok().json(value)
        }
        Err(error) => {
            record.reject(&error);
            endpoint.dialect().error_response(&error, &request_id)
        }
    }
}

/// A chat's prompt, whether it fits the context or not.
fn rendered(
    chat: ChatRequest,
    format: &PromptFormat,
    bounds: ModelBounds,
) -> Result<PreparedSequence, ApiError> {
    let bounds = ModelBounds {
        context_window: usize::MAX,
        ..bounds
    };
    let prepared = prepare(&GenerationRequest::Chat(chat), format, bounds, true)?;
    let first = prepared.into_iter().next();
    first.ok_or_else(|| ApiError::Internal("a chat without a prompt".to_owned()))
}

fn to_tokens(body: &Value) -> Result<(Option<String>, Work), ApiError> {
    let fields = Fields::root(body)?;
    let model = fields.string("model")?.map(str::to_owned);
    let texts = fields.boolean("return_token_strs")?.unwrap_or(false);
    let pieces = fields.boolean("with_pieces")?.unwrap_or(false);
    let told = move |tokens: &[TokenId], format: &PromptFormat, bounds: ModelBounds| {
        let ids: Vec<u32> = tokens.iter().map(|token| token.0).collect();
        let strings = || tokens.iter().map(|token| decode(format, &[*token]));
        let mut value = json!({
            "tokens": ids,
            "count": tokens.len(),
            "max_model_len": bounds.context_window,
        });
        if pieces {
            let piece = |(id, piece): (&u32, String)| json!({"id": id, "piece": piece});
            value["tokens"] = ids.iter().zip(strings()).map(piece).collect();
        }
        if texts {
            value["token_strs"] = strings().collect();
        }
        value
    };
    if fields.get("messages").is_some() {
        let chat = ChatRequest::parse(body)?;
        let work: Work = Box::new(move |format, bounds| {
            let prepared = rendered(chat, format, bounds)?;
            Ok(told(&prepared.prompt, format, bounds))
        });
        return Ok((model, work));
    }
    let content = fields.string("content")?;
    let (text, special) = match (content, fields.string("prompt")?) {
        (Some(content), None) => (content, fields.boolean("add_special")?.unwrap_or(false)),
        (None, Some(prompt)) => (
            prompt,
            fields.boolean("add_special_tokens")?.unwrap_or(true),
        ),
        (None, None) => {
            return Err(ApiError::InvalidRequest {
                message: "one of `content`, `prompt` and `messages` is required".to_owned(),
                parameter: Some("prompt".to_owned()),
                code: "missing_required_parameter",
            });
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid(
                "content",
                "is not allowed together with `prompt`",
            ));
        }
    };
    let text = text.to_owned();
    let work: Work = Box::new(move |format, bounds| {
        let tokens = match special {
            true => format.encode_completion(&text)?,
            false => format.encode(&text)?,
        };
        Ok(told(&tokens, format, bounds))
    });
    Ok((model, work))
}

fn to_text(body: &Value) -> Result<(Option<String>, Work), ApiError> {
    let fields = Fields::root(body)?;
    let model = fields.string("model")?.map(str::to_owned);
    // The body limit bounds the number.
    let tokens = fields.require("tokens")?.array(usize::MAX)?;
    let tokens = tokens
        .iter()
        .map(|field| Ok(TokenId(field.integer(0, i64::from(u32::MAX))? as u32)))
        .collect::<Result<Vec<_>, ApiError>>()?;
    let work: Work = Box::new(move |format, bounds| {
        let outside = |token: &TokenId| token.0 as usize >= bounds.vocabulary;
        if let Some(index) = tokens.iter().position(outside) {
            let message = format!(
                "is not a token of this model; ids are below {}",
                bounds.vocabulary
            );
            return Err(ApiError::invalid(format!("tokens[{index}]"), message));
        }
        let text = decode(format, &tokens);
        // llama-server's name and vLLM's.
        Ok(json!({"content": text, "prompt": text}))
    });
    Ok((model, work))
}
