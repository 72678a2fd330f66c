//! Stories of clients that leave, and of clients that only look like it, over real sockets.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_http::{HttpService, Protocol};
use actix_server::{Server, ServerHandle};
use actix_service::{IntoServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::dev::{AppConfig, Service};
use actix_web::{App, HttpResponse, web};
use bytes::Bytes;
use futures_util::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

use super::{Connection, ConnectionCount, WatchedStream};

/// A server whose handlers wait until they are told to go on, and report their beginning and end.
struct Stage {
    address: SocketAddr,
    handle: ServerHandle,
    cues: Arc<Cues>,
    reports: mpsc::UnboundedReceiver<&'static str>,
}

struct Cues {
    go_on: Notify,
    report: mpsc::UnboundedSender<&'static str>,
}

/// Reports when a handler or body is dropped.
struct Alive(Arc<Cues>);

impl Drop for Alive {
    fn drop(&mut self) {
        let _ = self.0.report.send("dropped");
    }
}

async fn pending(cues: web::Data<Cues>) -> HttpResponse {
    let alive = Alive(cues.into_inner());
    let _ = alive.0.report.send("begun");
    alive.0.go_on.notified().await;
    HttpResponse::Ok().body("done")
}

async fn streaming(cues: web::Data<Cues>) -> HttpResponse {
    let alive = Alive(cues.into_inner());
    let chunks = stream::unfold((alive, 0), |(alive, number)| async move {
        match number {
            0 => {
                let _ = alive.0.report.send("begun");
            }
            1 => alive.0.go_on.notified().await,
            _ => return None,
        }
        let chunk = Bytes::from_static([b"first", b"later"][number]);
        Some((
            Ok::<_, std::convert::Infallible>(chunk),
            (alive, number + 1),
        ))
    });
    HttpResponse::Ok().streaming(chunks)
}

/// More than any socket buffers hold.
async fn endless(cues: web::Data<Cues>) -> HttpResponse {
    let alive = Alive(cues.into_inner());
    let chunks = stream::repeat_with(move || {
        let _ = &alive;
        Ok::<_, std::convert::Infallible>(Bytes::from_static(&[b'x'; 8192]))
    });
    HttpResponse::Ok().streaming(chunks)
}

impl Stage {
    fn open(write_timeout: Duration) -> Self {
        let (report, reports) = mpsc::unbounded_channel();
        let cues = Arc::new(Cues {
            go_on: Notify::new(),
            report,
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let data = web::Data::from(Arc::clone(&cues));
        let count = ConnectionCount::new(16);
        let server = Server::build()
            .workers(1)
            .disable_signals()
            .listen("stage", listener, move || {
                let app = App::new()
                    .app_data(data.clone())
                    .route("/pending", web::get().to(pending))
                    .route("/streaming", web::get().to(streaming))
                    .route("/endless", web::get().to(endless))
                    .wrap_fn(|request, service| {
                        if let Some(connection) =
                            request.request().conn_data::<std::rc::Rc<Connection>>()
                        {
                            connection.begin(request.method());
                        }
                        service.call(request)
                    })
                    .into_factory()
                    .map_err(|error: actix_web::Error| error.error_response());
                let http = HttpService::build()
                    .on_connect_ext(|io: &WatchedStream, extensions| {
                        extensions.insert(io.connection());
                    })
                    .finish(map_config(app, |_| AppConfig::default()));
                let count = count.clone();
                fn_service(move |io: TcpStream| {
                    let watched = WatchedStream::new(io, &count, write_timeout).unwrap();
                    async move { Ok((watched, Protocol::Http1, None)) }
                })
                .and_then(http)
            })
            .unwrap()
            .run();
        let handle = server.handle();
        actix_web::rt::spawn(server);
        Self {
            address,
            handle,
            cues,
            reports,
        }
    }

    async fn request(&self, path: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        client
    }

    /// Waits for a report, with more patience than any correct run needs.
    async fn expect(&mut self, report: &str) {
        let patience = Duration::from_secs(60);
        let next = tokio::time::timeout(patience, self.reports.recv()).await;
        assert_eq!(next.expect("nothing was reported"), Some(report));
    }

    async fn close(self) {
        self.handle.stop(false).await;
    }
}

async fn read_until(client: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        bytes.push(client.read_u8().await.unwrap());
    }
    bytes
}

async fn read_rest(client: &mut TcpStream, mut bytes: Vec<u8>) -> String {
    client.read_to_end(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A body in chunks, read by the letter of the grammar.
fn dechunk(mut body: &str) -> String {
    let mut text = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").unwrap();
        assert!(
            !size.is_empty() && size.len() <= 16 && size.bytes().all(|b| b.is_ascii_hexdigit()),
            "{size:?}"
        );
        let size = usize::from_str_radix(size, 16).unwrap();
        text.push_str(&rest[..size]);
        assert_eq!(&rest[size..size + 2], "\r\n");
        body = &rest[size + 2..];
        if size == 0 {
            assert_eq!(body, "");
            return text;
        }
    }
}

const PATIENT: Duration = Duration::from_secs(600);

#[actix_web::test]
async fn a_client_that_closes_while_it_waits_is_noticed() {
    let mut stage = Stage::open(PATIENT);
    let client = stage.request("/pending").await;
    stage.expect("begun").await;
    drop(client);
    stage.expect("dropped").await;
    stage.close().await;
}

#[actix_web::test]
async fn a_client_that_closes_between_two_chunks_is_noticed() {
    let mut stage = Stage::open(PATIENT);
    let mut client = stage.request("/streaming").await;
    stage.expect("begun").await;
    read_until(&mut client, b"first\r\n").await;
    drop(client);
    stage.expect("dropped").await;
    stage.close().await;
}

#[actix_web::test]
async fn a_client_that_resets_the_connection_is_noticed() {
    let mut stage = Stage::open(PATIENT);
    let client = stage.request("/pending").await;
    stage.expect("begun").await;
    client.set_zero_linger().unwrap();
    drop(client);
    stage.expect("dropped").await;
    stage.close().await;
}

#[actix_web::test]
async fn a_half_closed_client_is_served_a_valid_response() {
    let mut stage = Stage::open(PATIENT);
    let mut client = stage.request("/pending").await;
    stage.expect("begun").await;
    client.shutdown().await.unwrap();
    // What is sent ahead to find out whether the client is still there.
    let ahead = read_until(&mut client, b"HT").await;
    stage.cues.go_on.notify_one();
    let response = read_rest(&mut client, ahead).await;
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    assert!(head.contains("content-length: 4"), "{response}");
    assert_eq!(body, "done");
    stage.close().await;
}

#[actix_web::test]
async fn a_half_closed_client_is_served_a_valid_stream() {
    let mut stage = Stage::open(PATIENT);
    let mut client = stage.request("/streaming").await;
    stage.expect("begun").await;
    let mut wire = read_until(&mut client, b"first\r\n").await;
    client.shutdown().await.unwrap();
    wire.extend(read_until(&mut client, b"00").await);
    stage.cues.go_on.notify_one();
    let response = read_rest(&mut client, wire).await;
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    assert_eq!(dechunk(body), "firstlater");
    stage.close().await;
}

#[actix_web::test]
async fn a_half_closed_client_that_closes_later_is_noticed() {
    let mut stage = Stage::open(PATIENT);
    let mut client = stage.request("/pending").await;
    stage.expect("begun").await;
    client.shutdown().await.unwrap();
    read_until(&mut client, b"H").await;
    drop(client);
    stage.expect("dropped").await;
    stage.close().await;
}

#[actix_web::test]
async fn a_client_that_takes_nothing_is_given_up() {
    let mut stage = Stage::open(Duration::from_millis(200));
    let client = stage.request("/endless").await;
    stage.expect("dropped").await;
    drop(client);
    stage.close().await;
}

#[actix_web::test]
async fn a_request_that_is_not_http_gets_an_error_body() {
    let stage = Stage::open(PATIENT);
    for request in [
        "GET /\0 HTTP/1.1\r\n\r\n",
        "nonsense\r\n\r\n",
        "GET /%zz bad HTTP/1.1\r\nhost: x\r\n\r\n",
    ] {
        let mut client = TcpStream::connect(stage.address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let response = read_rest(&mut client, Vec::new()).await;
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{response}"
        );
        assert!(
            head.contains(&format!("content-length: {}\r\n", body.len())),
            "{response}"
        );
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["type"], "invalid_request_error");
    }
    stage.close().await;
}

#[actix_web::test]
async fn requests_on_one_connection_are_followed() {
    let mut stage = Stage::open(PATIENT);
    let mut client = TcpStream::connect(stage.address).await.unwrap();
    for _ in 0..3 {
        client
            .write_all(b"GET /pending HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        stage.expect("begun").await;
        stage.cues.go_on.notify_one();
        read_until(&mut client, b"done").await;
        stage.expect("dropped").await;
    }
    client
        .write_all(b"GET /pending HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    stage.expect("begun").await;
    drop(client);
    stage.expect("dropped").await;
    stage.close().await;
}

#[test]
fn connections_are_counted_and_leave() {
    let count = ConnectionCount::new(1);
    let first = count.enter().unwrap();
    assert!(!first.over_limit);
    assert!(count.enter().unwrap().over_limit);
    drop(first);
    assert!(!count.enter().unwrap().over_limit);
    let many: Vec<_> = std::iter::repeat_with(|| count.enter())
        .take(1 + super::REFUSED_POLITELY)
        .collect();
    assert!(many.iter().all(Option::is_some));
    assert!(count.enter().is_none());
    drop(many);
    assert!(!count.enter().unwrap().over_limit);
}
