//! The endpoints that generate nothing.

use actix_web::http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use prometheus::core::Collector;
use serde_json::{Value, json};

use super::context::{Arrival, Context};
use super::dialect::Dialect;
use super::error::ApiError;
use crate::actors::model_manager::{Health, HealthQuery, HealthStatus, ListModels, ModelCard};
use crate::telemetry::Metrics;

/// `GET /health`.
pub async fn health(context: web::Data<Context>) -> HttpResponse {
    let Ok(health) = context.state.manager.send(HealthQuery).await else {
        return manager_gone().response();
    };
    let status = match health.status {
        HealthStatus::Ok => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut response = HttpResponse::build(status);
    if status != StatusCode::OK {
        response.insert_header(("Retry-After", "1"));
    }
    response.json(health_body(&health, &context.state.metrics))
}

fn health_body(health: &Health, metrics: &Metrics) -> Value {
    let (status, reason) = match &health.status {
        HealthStatus::Ok => ("ok", None),
        HealthStatus::Loading => ("loading", None),
        HealthStatus::Failed(reason) => ("failed", Some(reason)),
        HealthStatus::Draining => ("draining", None),
    };
    let blocks = |state| metrics.kv_blocks.with_label_values(&[state]).get();
    let mut memory = json!({
        "kv_blocks_free": blocks("free"),
        "kv_blocks_leased": blocks("leased"),
        "kv_blocks_cached": blocks("cached"),
    });
    if let Some(loaded) = &health.loaded {
        memory["kv_bytes"] = loaded.kv_bytes.into();
        memory["kv_blocks"] = loaded.kv_blocks.into();
        memory["kv_tokens"] = loaded.kv_tokens().into();
    }
    let tokens = metrics.generation_tokens.get();
    let busy = metrics.step_duration_seconds.get_sample_sum();
    json!({
        "status": status,
        "reason": reason,
        "model": health.model,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": metrics.uptime_seconds(),
        "device": health.loaded.as_ref().map(|loaded| loaded.device.as_str()),
        "context_window": health.loaded.as_ref().map(|loaded| loaded.context_window),
        "memory": memory,
        "stats": {
            "requests_total": requests_total(metrics),
            "requests_active": metrics.streams_active.get(),
            "requests_waiting": metrics.requests_waiting.get(),
            "tokens_generated": tokens,
            "avg_tokens_per_sec": if busy > 0.0 { tokens as f64 / busy } else { 0.0 },
        },
    })
}

/// Requests answered, over all endpoints and outcomes.
fn requests_total(metrics: &Metrics) -> u64 {
    let families = metrics.requests.collect();
    let counters = families.iter().flat_map(|family| family.get_metric());
    counters
        .map(|metric| metric.get_counter().get_value())
        .sum::<f64>() as u64
}

/// `GET /metrics`.
pub async fn metrics(context: web::Data<Context>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, prometheus::TEXT_FORMAT))
        .body(context.state.metrics.render())
}

/// `GET /v1/models`.
pub async fn models(context: web::Data<Context>) -> Result<HttpResponse, ApiError> {
    let cards = cards(&context).await?;
    let data: Vec<Value> = cards.iter().map(model_body).collect();
    Ok(HttpResponse::Ok().json(json!({"object": "list", "data": data})))
}

/// `GET /v1/models/{id}`; ids may hold slashes, plain or encoded.
pub async fn model(
    request: HttpRequest,
    context: web::Data<Context>,
) -> Result<HttpResponse, ApiError> {
    let requested = request
        .match_info()
        .query("id")
        .replace("%2F", "/")
        .replace("%2f", "/");
    let cards = cards(&context).await?;
    let named = |card: &&ModelCard| card.id == requested || card.aliases.contains(&requested);
    match cards.iter().find(named) {
        Some(card) => Ok(HttpResponse::Ok().json(model_body(card))),
        None => {
            let available = cards.into_iter().map(|card| card.id).collect();
            Err(ApiError::ModelNotFound {
                requested,
                available,
            })
        }
    }
}

/// The models that can be asked for.
pub async fn cards(context: &Context) -> Result<Vec<ModelCard>, ApiError> {
    let cards = context.state.manager.send(ListModels).await;
    cards.map_err(|_| manager_gone())
}

fn model_body(card: &ModelCard) -> Value {
    json!({
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "trunkline",
        "context_window": card.context_window,
        "aliases": card.aliases,
        "loaded": card.loaded,
    })
}

fn manager_gone() -> ApiError {
    ApiError::Internal("the model manager has stopped".to_owned())
}

/// Any path without a route.
pub async fn not_found(request: HttpRequest) -> HttpResponse {
    let error = ApiError::RouteNotFound(format!("{} {}", request.method(), request.path()));
    refuse(&request, &error)
}

/// An error in the words of the API that was called.
pub fn refuse(request: &HttpRequest, error: &ApiError) -> HttpResponse {
    let request_id = Arrival::of(request).request_id;
    Dialect::of_path(request.path()).error_response(error, &request_id)
}

/// `OPTIONS`, or a method that the path does not have.
pub fn other_method(request: &HttpRequest, allowed: &'static str) -> HttpResponse {
    if request.method() == Method::OPTIONS {
        HttpResponse::NoContent()
            .insert_header((ALLOW, HeaderValue::from_static(allowed)))
            .finish()
    } else {
        let error = ApiError::MethodNotAllowed {
            method: request.method().to_string(),
            allowed,
        };
        refuse(request, &error)
    }
}
