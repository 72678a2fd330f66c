//! A hub of one repository, in a thread.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the server departs from a friendly hub.
#[derive(Debug, Clone, Copy, Default)]
pub struct Behaviour {
    /// Closes the connection once after that many bytes of that file's body.
    pub cut: Option<(&'static str, usize)>,
    /// Answers 503 to the file after the cut.
    pub refuse_after_cut: bool,
    /// Stops sending once after that many bytes of that file's body, without closing.
    pub stall: Option<(&'static str, usize)>,
    pub ignore_ranges: bool,
    /// 401 without this token.
    pub token: Option<&'static str>,
    /// Listed, but 404.
    pub lost: Option<&'static str>,
    /// 503 for this file.
    pub failing: Option<&'static str>,
    /// The answer to the question for the revision.
    pub info: Option<&'static str>,
    pub etag: Option<&'static str>,
    /// Sends the weights' readers to `/cdn/`, as the hub does for large files.
    pub redirect: bool,
}

struct State {
    repository: String,
    files: Vec<(String, Vec<u8>)>,
    behaviour: Mutex<Behaviour>,
    requests: Mutex<Vec<String>>,
    stopped: AtomicBool,
    /// Connections that are stalled; closed at the end.
    stalled: Mutex<Vec<TcpStream>>,
}

pub struct TestHub {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl TestHub {
    pub fn start(repository: &str, files: Vec<(String, Vec<u8>)>, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(State {
            repository: repository.to_owned(),
            files,
            behaviour: Mutex::new(behaviour),
            requests: Mutex::default(),
            stopped: AtomicBool::new(false),
            stalled: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(stream) = stream {
                    // The client may leave at any time; that is its business.
                    let _ = shared.serve(stream);
                }
            }
        });
        Self {
            address,
            state,
            thread: Some(thread),
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, behaviour: Behaviour) {
        *self.state.behaviour.lock().expect("no panic") = behaviour;
    }

    /// Method, path and range of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.state.requests.lock().expect("no panic").clone()
    }
}

impl Drop for TestHub {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Request {
    method: String,
    path: String,
    range: Option<usize>,
    authorization: Option<String>,
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream.try_clone()?.take(1 << 16)).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut words = first.split(' ').map(str::to_owned);
    let mut request = Request {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        range: None,
        authorization: None,
    };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                request.range = value
                    .trim()
                    .trim_start_matches("bytes=")
                    .trim_end_matches('-')
                    .parse()
                    .ok()
            }
            "authorization" => request.authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    Ok(request)
}

impl State {
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let request = read_request(&stream)?;
        let behaviour = *self.behaviour.lock().expect("no panic");
        let range = request
            .range
            .map(|start| format!(" bytes={start}-"))
            .unwrap_or_default();
        self.requests
            .lock()
            .expect("no panic")
            .push(format!("{} {}{range}", request.method, request.path));

        let allowed = behaviour.token.map(|token| format!("Bearer {token}"));
        let from_cdn = request.path.starts_with("/cdn/");
        if allowed.is_some() && request.authorization != allowed && !from_cdn {
            return answer(&mut stream, "401 Unauthorized", &[], b"");
        }
        let info = format!("/api/models/{}/revision/", self.repository);
        if request.path.starts_with(&info) {
            let siblings: Vec<_> = self
                .files
                .iter()
                .map(|(name, _)| serde_json::json!({"rfilename": name}))
                .collect();
            let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
            return answer(
                &mut stream,
                "200 OK",
                &[],
                behaviour.info.unwrap_or(&body).as_bytes(),
            );
        }
        let root = format!("/{}/resolve/{COMMIT}/", self.repository);
        let name = request
            .path
            .strip_prefix(&root)
            .or_else(|| request.path.strip_prefix("/cdn/"));
        let file = self
            .files
            .iter()
            .find(|(file, _)| Some(file.as_str()) == name && Some(file.as_str()) != behaviour.lost);
        let Some((file, body)) = file else {
            return answer(&mut stream, "404 Not Found", &[], b"");
        };
        if Some(file.as_str()) == behaviour.failing {
            return answer(&mut stream, "503 Service Unavailable", &[], b"");
        }
        let etag = format!(
            "\"{}\"",
            behaviour
                .etag
                .map_or_else(|| format!("e{:x}", body.len()), str::to_owned)
        );
        if behaviour.redirect && !from_cdn {
            let headers = [
                (
                    "location",
                    format!("http://{}/cdn/{file}", stream.local_addr()?),
                ),
                ("x-linked-etag", etag),
                ("x-linked-size", body.len().to_string()),
                ("x-repo-commit", COMMIT.to_owned()),
                ("etag", "\"of-the-redirect\"".to_owned()),
            ];
            return answer(&mut stream, "302 Found", &headers, b"Found. Redirecting");
        }
        let mut headers = vec![("etag", etag), ("x-repo-commit", COMMIT.to_owned())];
        let start = request
            .range
            .filter(|_| !behaviour.ignore_ranges)
            .unwrap_or(0)
            .min(body.len());
        let status = if start > 0 {
            headers.push((
                "content-range",
                format!("bytes {start}-{}/{}", body.len() - 1, body.len()),
            ));
            "206 Partial Content"
        } else {
            "200 OK"
        };
        write_head(&mut stream, status, &headers, body.len() - start)?;
        if request.method == "HEAD" {
            return Ok(());
        }
        self.send_body(stream, file, &body[start..], behaviour)
    }

    fn send_body(
        &self,
        mut stream: TcpStream,
        file: &str,
        body: &[u8],
        behaviour: Behaviour,
    ) -> std::io::Result<()> {
        if let Some((name, length)) = behaviour.cut
            && name == file
        {
            let mut behaviour = self.behaviour.lock().expect("no panic");
            behaviour.cut = None;
            if behaviour.refuse_after_cut {
                behaviour.failing = Some(name);
            }
            return stream.write_all(&body[..length.min(body.len())]);
        }
        if let Some((name, length)) = behaviour.stall
            && name == file
        {
            self.behaviour.lock().expect("no panic").stall = None;
            stream.write_all(&body[..length.min(body.len())])?;
            self.stalled.lock().expect("no panic").push(stream);
            return Ok(());
        }
        stream.write_all(body)
    }
}

fn write_head(
    stream: &mut TcpStream,
    status: &str,
    headers: &[(&str, String)],
    length: usize,
) -> std::io::Result<()> {
    let mut head =
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())
}

fn answer(
    stream: &mut TcpStream,
    status: &str,
    headers: &[(&str, String)],
    body: &[u8],
) -> std::io::Result<()> {
    write_head(stream, status, headers, body.len())?;
    stream.write_all(body)
}
