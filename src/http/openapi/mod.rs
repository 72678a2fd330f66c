//! The description of this server's API (OpenAPI 3.1): `GET /openapi.json`, and a page to read it at `/docs/`.
//!
//! The types in [`wire`] describe the wire; the request types are what [`super::request`] and its siblings
//! read field by field. That description and parser agree is tested: every described field is checked by the
//! parser, and schemathesis sends what the description allows (see `.ci/run`).

#[cfg(test)]
mod tests;
// Its types are described and never built.
#[allow(dead_code)]
mod wire;

use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerUi};

/// Where the description is.
pub const DESCRIPTION_PATH: &str = "/openapi.json";
/// Below this is the page.
pub const PAGE_PATH: &str = "/docs/";

/// The description.
pub fn description() -> OpenApi {
    <wire::Description as utoipa::OpenApi>::openapi()
}

/// The page and the description, to be registered as one service.
pub fn page() -> SwaggerUi {
    SwaggerUi::new(format!("{PAGE_PATH}{{_:.*}}"))
        .url(DESCRIPTION_PATH, description())
        // Requests are tried with the page's own origin; nothing is sent elsewhere.
        .config(
            Config::default()
                .try_it_out_enabled(true)
                .validator_url("none"),
        )
}
