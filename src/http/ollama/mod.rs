//! Ollama's API: `/api/chat` and `/api/generate`, and what its clients ask before.

mod form;
mod request;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};

use super::context::Context as Shared;
use super::error::ApiError;
use super::generate::{handle, read};
use super::handlers::{cards, refuse};
use super::record::Endpoint;
use super::request::fields::Fields;
use crate::actors::model_manager::ModelCard;

/// `POST /api/chat`.
pub async fn chat(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    handle(
        Endpoint::OllamaChat,
        request,
        payload,
        shared,
        request::chat,
    )
    .await
}

/// `POST /api/generate`.
pub async fn generate(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    handle(
        Endpoint::OllamaGenerate,
        request,
        payload,
        shared,
        request::generate,
    )
    .await
}

/// `GET /api/tags`: the models that can be asked for.
pub async fn tags(request: HttpRequest, shared: web::Data<Shared>) -> HttpResponse {
    list(&request, &shared, |_| true).await
}

/// `GET /api/ps`: the models in memory.
pub async fn ps(request: HttpRequest, shared: web::Data<Shared>) -> HttpResponse {
    list(&request, &shared, |card| card.loaded).await
}

async fn list(
    request: &HttpRequest,
    shared: &Shared,
    wanted: impl Fn(&ModelCard) -> bool,
) -> HttpResponse {
    match cards(shared).await {
        Ok(cards) => {
            let models: Vec<Value> = cards
                .iter()
                .filter(|card| wanted(card))
                .map(entry)
                .collect();
            HttpResponse::Ok().json(json!({"models": models}))
        }
        Err(error) => refuse(request, &error),
    }
}

/// One model of a list. What the server does not know of a model has Ollama's empty value, because typed
/// clients want the members to be there.
fn entry(card: &ModelCard) -> Value {
    let modified = i64::try_from(card.created)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    json!({
        "name": card.id,
        "model": card.id,
        "modified_at": modified.to_string(),
        "size": 0,
        "digest": "",
        "details": details(),
        "context_length": card.context_window,
    })
}

fn details() -> Value {
    json!({"parent_model": "", "format": "", "family": "", "families": [], "parameter_size": "",
        "quantization_level": ""})
}

/// `POST /api/show`.
pub async fn show(
    request: HttpRequest,
    mut payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    let name = |body: &Value| {
        let body = Fields::root(body)?;
        match body.string("name")? {
            Some(old_spelling) => Ok(old_spelling.to_owned()),
            None => Ok(body.require("model")?.string()?.to_owned()),
        }
    };
    let shown = async {
        let name = read(&request, &mut payload, &shared, name).await?;
        let cards = cards(&shared).await?;
        let requested = request::without_tag(&name);
        let named =
            |card: &&ModelCard| card.id == requested || card.aliases.iter().any(|a| a == requested);
        match cards.iter().find(named) {
            Some(card) => Ok(description(card)),
            None => Err(ApiError::ModelNotFound {
                requested: name,
                available: cards.into_iter().map(|card| card.id).collect(),
            }),
        }
    };
    match shown.await {
        Ok(description) => HttpResponse::Ok().json(description),
        Err(error) => refuse(&request, &error),
    }
}

fn description(card: &ModelCard) -> Value {
    json!({
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": details(),
        "model_info": {
            "general.architecture": "trunkline",
            "general.basename": card.id,
            "trunkline.context_length": card.context_window,
        },
        "capabilities": ["completion", "tools", "thinking"],
        "modified_at": entry(card)["modified_at"],
    })
}

/// `GET /api/version`: this server's, not Ollama's.
pub async fn version() -> HttpResponse {
    HttpResponse::Ok().json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
