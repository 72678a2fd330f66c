//! Models and the server's state.

use serde_json::Value;
use utoipa::ToSchema;

#[derive(ToSchema)]
pub struct Models {
    #[schema(example = "list")]
    pub object: String,
    pub data: Vec<Model>,
}

#[derive(ToSchema)]
pub struct Model {
    pub id: String,
    #[schema(example = "model")]
    pub object: String,
    pub created: u64,
    pub owned_by: String,
    pub context_window: Option<u64>,
    pub aliases: Vec<String>,
    pub loaded: bool,
}

#[derive(ToSchema)]
pub struct Health {
    /// `ok`, `loading`, `failed` or `draining`
    pub status: String,
    pub reason: Option<String>,
    pub model: Option<String>,
    pub version: String,
    pub uptime_seconds: f64,
    pub device: Option<String>,
    pub context_window: Option<u64>,
    #[schema(value_type = Object)]
    pub memory: Value,
    #[schema(value_type = Object)]
    pub stats: Value,
}
