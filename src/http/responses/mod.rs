//! OpenAI's Responses API: `/v1/responses` and what is kept of it.

mod form;
mod items;
mod request;
pub mod store;

use std::collections::HashMap;
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};

use super::context::Context as Shared;
use super::error::ApiError;
use super::generate::handle;
use super::record::Endpoint;
use super::tokens;

/// How long the one who cancels waits for the client to take the end of the answer.
const CANCEL_PATIENCE: Duration = Duration::from_secs(2);
/// Input items listed at once, unless the query says otherwise, and at most.
const LISTED: (usize, usize) = (20, 100);

/// `POST /v1/responses`.
pub async fn create(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    let store = shared.responses.clone();
    let translate = move |body: &Value| request::responses(body, &store);
    handle(Endpoint::Responses, request, payload, shared, translate).await
}

/// `POST /v1/responses/input_tokens`.
pub async fn input_tokens(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    let store = shared.responses.clone();
    let translate = move |body: &Value| request::counted(body, &store);
    let (endpoint, told) = (Endpoint::InputTokens, tokens::input_tokens);
    tokens::count(endpoint, request, payload, shared, translate, told).await
}

fn id(request: &HttpRequest) -> &str {
    request.match_info().query("id")
}

fn not_found(request: &HttpRequest) -> ApiError {
    ApiError::ResponseNotFound(id(request).to_owned())
}

/// The parameters of the query.
fn query(request: &HttpRequest) -> Result<HashMap<String, String>, ApiError> {
    match web::Query::<HashMap<String, String>>::from_query(request.query_string()) {
        Ok(query) => Ok(query.into_inner()),
        Err(_) => Err(ApiError::malformed("the query string cannot be read")),
    }
}

/// `GET /v1/responses/{id}`.
pub async fn retrieve(
    request: HttpRequest,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    if query(&request)?
        .get("stream")
        .is_some_and(|on| on == "true")
    {
        let message = "is not supported here; a response is streamed when it is created";
        return Err(ApiError::unsupported("stream", message));
    }
    if let Some(stored) = shared.responses.get(id(&request)) {
        return Ok(HttpResponse::Ok().json(&stored.response));
    }
    match shared.responses.running(id(&request)) {
        Some(running) => Ok(HttpResponse::Ok().json(&*running.response)),
        None => Err(not_found(&request)),
    }
}

/// `DELETE /v1/responses/{id}`.
pub async fn delete(
    request: HttpRequest,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    match shared.responses.delete(id(&request)) {
        true => {
            let body = json!({"id": id(&request), "object": "response", "deleted": true});
            Ok(HttpResponse::Ok().json(body))
        }
        false => Err(not_found(&request)),
    }
}

/// `POST /v1/responses/{id}/cancel`: ends a response that is being generated, streamed or not.
pub async fn cancel(
    request: HttpRequest,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let Some(running) = shared.responses.running(id(&request)) else {
        return Err(match shared.responses.get(id(&request)) {
            Some(_) => ApiError::malformed("Cannot cancel a completed response."),
            None => not_found(&request),
        });
    };
    let began = running.response.clone();
    let cancelled = tokio::time::timeout(CANCEL_PATIENCE, running.cancel()).await;
    let response = cancelled.ok().flatten().unwrap_or_else(|| {
        // Its client does not read, or has left: what it would have got is known no better.
        let mut response = (*began).clone();
        response["status"] = "cancelled".into();
        response
    });
    Ok(HttpResponse::Ok().json(response))
}

/// `GET /v1/responses/{id}/input_items`.
pub async fn input_items(
    request: HttpRequest,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let query = query(&request)?;
    let limit = match query.get("limit") {
        None => LISTED.0,
        Some(text) => match text.parse() {
            Ok(limit) if (1..=LISTED.1).contains(&limit) => limit,
            _ => {
                let message = format!("must be an integer from 1 to {}, got {text:?}", LISTED.1);
                return Err(ApiError::invalid("limit", message));
            }
        },
    };
    let newest_first = match query.get("order").map(String::as_str) {
        None | Some("desc") => true,
        Some("asc") => false,
        Some(other) => {
            let message = format!("must be `asc` or `desc`, got {other:?}");
            return Err(ApiError::invalid("order", message));
        }
    };
    let stored = shared.responses.get(id(&request));
    let stored = stored.ok_or_else(|| not_found(&request))?;
    let mut items: Vec<&Value> = stored.input_items.iter().collect();
    if newest_first {
        items.reverse();
    }
    if let Some(after) = query.get("after") {
        let Some(position) = items.iter().position(|item| item["id"] == *after) else {
            let message = format!("is {after:?}, and no item has that id");
            return Err(ApiError::invalid("after", message));
        };
        items.drain(..=position);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let at = |item: Option<&&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    Ok(HttpResponse::Ok().json(json!({
        "object": "list",
        "data": items,
        "first_id": at(items.first()),
        "last_id": at(items.last()),
        "has_more": has_more,
    })))
}
