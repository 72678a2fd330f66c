//! The server: sockets, middleware and routes put together.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::rc::Rc;
use std::time::Duration;

use actix_http::{HttpService, Protocol};
use actix_server::{Server, ServerHandle};
use actix_service::{IntoServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{AppConfig, ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, HttpMessage, HttpRequest, HttpResponse, web};
use tokio::net::TcpStream;

use super::connection::{Connection, ConnectionCount, WatchedStream};
use super::context::{AppState, Arrival, Context};
use super::dialect::Dialect;
use super::error::ApiError;
use super::options::HttpOptions;
use super::{anthropic, generate, handlers, ollama, openapi, responses, tokens};
use crate::telemetry::Rejection;

/// How long the rest of a refused body is read, so that the client can read the refusal.
const LINGER: Duration = Duration::from_secs(5);
/// actix-server stops accepting at its limit; ours is lower and answers.
const ACCEPT_LIMIT: usize = 65_536;
/// Response bytes that are collected for one connection before more of its body is asked for.
const WRITE_BUFFER: usize = 16 * 1024;

/// A bound server. Run [`HttpServer::run`]'s future; stop it through the handle.
pub struct HttpServer {
    server: Server,
    handle: ServerHandle,
    addresses: Vec<SocketAddr>,
}

impl HttpServer {
    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// To stop it: gracefully (running responses end, idle connections close) or at once.
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// Serves until stopped.
    pub fn run(self) -> impl Future<Output = io::Result<()>> {
        self.server
    }
}

/// Binds the addresses and starts serving. Signals are the caller's.
///
/// # Errors
/// An address that cannot be resolved or bound.
pub fn serve(options: HttpOptions, state: AppState) -> io::Result<HttpServer> {
    let listeners = bind(&options.host, options.port)?;
    let addresses = listeners
        .iter()
        .map(TcpListener::local_addr)
        .collect::<io::Result<_>>()?;
    let count = ConnectionCount::new(options.connection_limit);
    let mut builder = Server::build()
        .workers(options.workers.max(1))
        .disable_signals()
        .max_concurrent_connections(ACCEPT_LIMIT);
    let shared = Context::new(options, state);
    for listener in listeners {
        let draining = builder.graceful_shutdown_signal();
        let (shared, count) = (shared.clone(), count.clone());
        builder = builder.listen("http", listener, move || {
            let (count, draining) = (count.clone(), draining.clone());
            let options = &shared.options;
            let write_timeout = options.write_timeout;
            let app = app(shared.clone())
                .into_factory()
                .map_err(|error: actix_web::Error| error.error_response());
            let http = HttpService::build()
                .keep_alive(options.keep_alive)
                .client_request_timeout(options.head_timeout)
                .client_disconnect_timeout(LINGER)
                .h1_allow_half_closed(true)
                .h1_write_buffer_size(WRITE_BUFFER)
                .graceful_shutdown_signal(move || {
                    let draining = draining.clone();
                    async move { draining.notified().await }
                })
                .on_connect_ext(|io: &WatchedStream, extensions| {
                    extensions.insert(io.connection());
                })
                .finish(map_config(app, |_| AppConfig::default()));
            fn_service(move |io: TcpStream| {
                let peer = io.peer_addr().ok();
                let watched = WatchedStream::new(io, &count, write_timeout);
                async move {
                    let refused = || {
                        actix_http::error::DispatchError::Io(
                            io::ErrorKind::ConnectionRefused.into(),
                        )
                    };
                    Ok((watched.ok_or_else(refused)?, Protocol::Http1, peer))
                }
            })
            .and_then(http)
        })?;
    }
    let server = builder.run();
    Ok(HttpServer {
        handle: server.handle(),
        server,
        addresses,
    })
}

/// All addresses of a name, on one port.
fn bind(host: &str, port: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    let mut failure = None;
    for mut address in (host, port).to_socket_addrs()? {
        if let Some(first) = listeners.first() {
            address.set_port(first.local_addr()?.port());
        }
        match TcpListener::bind(address) {
            Ok(listener) => listeners.push(listener),
            // Another server answers there: clients would reach one or the other by chance.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            // A name's other addresses may do, for example without IPv6.
            Err(error) => failure = Some(error),
        }
    }
    match (listeners.is_empty(), failure) {
        (true, Some(failure)) => Err(failure),
        (true, None) => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{host} has no address"),
        )),
        (false, _) => Ok(listeners),
    }
}

/// Routes and middleware.
fn app(
    shared: Context,
) -> App<
    impl actix_service::ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<BoxBody>,
        Error = actix_web::Error,
        InitError = (),
    >,
> {
    const POST: &str = "POST, OPTIONS";
    const GET: &str = "GET, HEAD, OPTIONS";
    let refuse = |allowed: &'static str| {
        web::to(
            move |request: HttpRequest| async move { handlers::other_method(&request, allowed) },
        )
    };
    macro_rules! get {
        ($path:literal, $handler:path) => {
            web::resource($path)
                .route(web::get().to($handler))
                .route(web::head().to($handler))
                .default_service(refuse(GET))
        };
    }
    macro_rules! post {
        ($path:literal, $handler:path) => {
            web::resource($path)
                .route(web::post().to($handler))
                .default_service(refuse(POST))
        };
    }
    App::new()
        .app_data(web::Data::new(shared))
        .service(post!("/v1/chat/completions", generate::chat_completions))
        .service(post!("/v1/completions", generate::completions))
        .service(post!(
            "/v1/chat/completions/input_tokens",
            tokens::chat_input_tokens
        ))
        .service(post!("/v1/responses", responses::create))
        .service(post!("/v1/responses/input_tokens", responses::input_tokens))
        .service(
            web::resource("/v1/responses/{id}")
                .route(web::get().to(responses::retrieve))
                .route(web::head().to(responses::retrieve))
                .route(web::delete().to(responses::delete))
                .default_service(refuse("GET, HEAD, DELETE, OPTIONS")),
        )
        .service(get!(
            "/v1/responses/{id}/input_items",
            responses::input_items
        ))
        .service(post!("/v1/responses/{id}/cancel", responses::cancel))
        .service(post!("/v1/messages", anthropic::messages))
        .service(post!("/v1/messages/count_tokens", anthropic::count_tokens))
        .service(post!("/api/chat", ollama::chat))
        .service(post!("/api/generate", ollama::generate))
        .service(get!("/api/tags", ollama::tags))
        .service(get!("/api/ps", ollama::ps))
        .service(post!("/api/show", ollama::show))
        .service(get!("/api/version", ollama::version))
        .service(post!("/tokenize", tokens::tokenize))
        .service(post!("/detokenize", tokens::detokenize))
        .service(post!("/apply-template", tokens::apply_template))
        .service(get!("/v1/models", handlers::models))
        .service(get!("/v1/models/{id:.+}", handlers::model))
        .service(get!("/health", handlers::health))
        .service(get!("/metrics", handlers::metrics))
        .service(openapi::page())
        .default_service(web::to(handlers::not_found))
        .wrap(from_fn(around))
}

/// Around every request: its identity, the refusals that need no handler, CORS, and the log line.
async fn around(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let arrival = Arrival::new();
    request.extensions_mut().insert(arrival.clone());
    let connection = request.request().conn_data::<Rc<Connection>>().cloned();
    if let Some(connection) = &connection {
        connection.begin(request.method());
    }
    let Some(shared) = request.app_data::<web::Data<Context>>().cloned() else {
        return Ok(request.into_response(HttpResponse::InternalServerError().finish()));
    };
    let mut response = match refusal(&request, &shared, connection.as_deref()) {
        Some(error) => {
            let dialect = Dialect::of_path(request.path());
            request.into_response(dialect.error_response(&error, &arrival.request_id))
        }
        None => next.call(request).await?.map_into_boxed_body(),
    };
    let preflight = response.request().method() == Method::OPTIONS;
    let asked = response.request().headers().clone();
    let dialect = Dialect::of_path(response.request().path());
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&arrival.request_id) {
        if dialect == Dialect::Anthropic {
            headers.insert(HeaderName::from_static("request-id"), id.clone());
        }
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    shared.cors.apply(&asked, headers, preflight);
    if !arrival.logged.get() {
        tracing::info!(
            request_id = %arrival.request_id,
            method = %response.request().method(),
            path = response.request().path(),
            status = response.status().as_u16(),
            seconds = arrival.at.elapsed().as_secs_f64(),
            "request"
        );
    }
    Ok(response)
}

/// Why a request is refused whatever it asks.
fn refusal(
    request: &ServiceRequest,
    shared: &Context,
    connection: Option<&Connection>,
) -> Option<ApiError> {
    let path = request.path();
    let metrics = &shared.state.metrics;
    let watching = matches!(path, "/health" | "/metrics");
    if let Some(connection) = connection
        && connection.is_over_limit()
        && !watching
    {
        connection.close_after_response();
        metrics.reject(Rejection::QueueFull);
        return Some(ApiError::Unavailable {
            message: format!(
                "too many connections (the limit is {})",
                shared.options.connection_limit
            ),
            code: "too_many_connections",
            retry_after: Duration::from_secs(1),
        });
    }
    let reading = path == openapi::DESCRIPTION_PATH || path.starts_with(openapi::PAGE_PATH);
    if watching || reading || request.method() == Method::OPTIONS {
        return None;
    }
    let refused = shared.keys.check(request.headers()).err()?;
    metrics.reject(Rejection::Unauthorized);
    Some(refused)
}
