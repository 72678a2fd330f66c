//! Anthropic's API: `/v1/messages` and `/v1/messages/count_tokens`.

mod form;
mod request;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

use super::context::Context as Shared;
use super::generate::handle;
use super::record::Endpoint;
use super::tokens::count;

/// `POST /v1/messages`.
pub async fn messages(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    handle(
        Endpoint::Messages,
        request,
        payload,
        shared,
        request::messages,
    )
    .await
}

/// `POST /v1/messages/count_tokens`.
pub async fn count_tokens(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    let endpoint = Endpoint::CountTokens;
    let told = |tokens| json!({"input_tokens": tokens});
    count(endpoint, request, payload, shared, request::counted, told).await
}
