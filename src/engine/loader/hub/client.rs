//! The hub's HTTP routes.

use std::io::Read;

use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};

use super::cache::is_commit;
use super::error::HubError;
use super::options::HubOptions;

/// A list of a repository's files is no longer than this.
const MAX_ANSWER: u64 = 64 << 20;
/// Relative redirects that are followed for a file's facts.
const MAX_REDIRECTS: usize = 5;

/// A repository at a revision, on the hub.
pub(super) struct HubClient<'a> {
    options: &'a HubOptions,
    repository: &'a str,
    revision: &'a str,
    agent: Agent,
}

/// What a revision holds.
#[derive(Debug)]
pub(super) struct RepositoryInfo {
    pub commit: String,
    pub files: Vec<String>,
}

/// What the hub says about a file.
#[derive(Debug)]
pub(super) struct FileInfo {
    /// Names the content; a safe file name.
    pub etag: String,
    pub size: u64,
}

/// A file's bytes from some position on.
pub(super) struct FileStream {
    /// Where the bytes begin: what was asked for, or 0 if the server cannot resume.
    pub start: u64,
    pub reader: Box<dyn Read>,
}

/// Why a request brought no usable answer.
#[derive(Debug)]
pub(super) enum RequestError {
    /// No connection, no answer in time, or the server's own fault: another try may help.
    Transient(String),
    /// Another try will not help.
    Final(HubError),
}

impl<'a> HubClient<'a> {
    pub fn new(options: &'a HubOptions, repository: &'a str, revision: &'a str) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_resolve(Some(options.response_timeout))
            .timeout_connect(Some(options.response_timeout))
            .timeout_recv_response(Some(options.response_timeout))
            .timeout_per_read(Some(options.stall_timeout))
            // Sizes and ranges are those of the file itself.
            .accept_encoding("identity")
            .user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&options.endpoint) {
            config = config.proxy(None);
        }
        Self {
            options,
            repository,
            revision,
            agent: config.build().new_agent(),
        }
    }

    /// The commit and the files of the revision.
    pub fn repository_info(&self) -> Result<RepositoryInfo, RequestError> {
        let revision = self.revision.replace('/', "%2F");
        let url = format!(
            "{}/api/models/{}/revision/{revision}",
            self.options.endpoint, self.repository
        );
        let response = self.get(&url, &[])?;
        self.check_status(&response, || HubError::NoRepository {
            endpoint: self.options.endpoint.clone(),
            repository: self.repository.to_owned(),
            revision: self.revision.to_owned(),
        })?;
        let bytes = response
            .into_body()
            .into_with_config()
            .limit(MAX_ANSWER)
            .read_to_vec()
            .map_err(|cause| RequestError::Transient(cause.to_string()))?;
        let bad = |reason: String| {
            RequestError::Final(HubError::BadAnswer {
                url: url.clone(),
                reason,
            })
        };
        let answer: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|cause| bad(cause.to_string()))?;
        let commit = answer["sha"].as_str().filter(|commit| is_commit(commit));
        let files = answer["siblings"].as_array();
        match (commit, files) {
            (Some(commit), Some(files)) => Ok(RepositoryInfo {
                commit: commit.to_owned(),
                files: files
                    .iter()
                    .filter_map(|file| file["rfilename"].as_str())
                    .map(str::to_owned)
                    .collect(),
            }),
            _ => Err(bad(
                "it has no commit (sha) or no list of files (siblings)".to_owned()
            )),
        }
    }

    /// A file's content name and size.
    pub fn file_info(&self, commit: &str, file: &str) -> Result<FileInfo, RequestError> {
        let mut url = self.file_url(commit, file);
        for _ in 0..MAX_REDIRECTS {
            let response = self.head(&url)?;
            let location = response
                .headers()
                .get("location")
                .and_then(|value| value.to_str().ok());
            if let (true, Some(location)) = (response.status().is_redirection(), location)
                && location.starts_with('/')
            {
                url = format!("{}{location}", origin(&url));
                continue;
            }
            if !response.status().is_redirection() {
                self.check_file_status(&response, file)?;
            }
            return file_info(response.headers()).ok_or_else(|| {
                RequestError::Final(HubError::BadAnswer {
                    url: url.clone(),
                    reason: "it has no usable etag and size".to_owned(),
                })
            });
        }
        Err(RequestError::Final(HubError::BadAnswer {
            url,
            reason: "it redirects without end".to_owned(),
        }))
    }

    /// Opens a file from a position on.
    pub fn open(&self, commit: &str, file: &str, from: u64) -> Result<FileStream, RequestError> {
        let url = self.file_url(commit, file);
        let range = format!("bytes={from}-");
        let response = match from {
            0 => self.get(&url, &[])?,
            _ => self.get(&url, &[("range", &range)])?,
        };
        self.check_file_status(&response, file)?;
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => content_range_start(response.headers()).unwrap_or(from),
            _ => 0,
        };
        if start != from && start != 0 {
            return Err(RequestError::Final(HubError::BadAnswer {
                url,
                reason: format!("it begins at byte {start} instead of {from}"),
            }));
        }
        Ok(FileStream {
            start,
            reader: Box::new(response.into_body().into_reader()),
        })
    }

    fn file_url(&self, commit: &str, file: &str) -> String {
        format!(
            "{}/{}/resolve/{commit}/{file}",
            self.options.endpoint, self.repository
        )
    }

    fn get(
        &self,
        url: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response<ureq::Body>, RequestError> {
        let mut request = self.agent.get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.options.token {
            request = request.header("authorization", format!("Bearer {}", token.secret()));
        }
        request.call().map_err(transient)
    }

    fn head(&self, url: &str) -> Result<Response<ureq::Body>, RequestError> {
        let mut request = self.agent.head(url).config().max_redirects(0).build();
        if let Some(token) = &self.options.token {
            request = request.header("authorization", format!("Bearer {}", token.secret()));
        }
        request.call().map_err(transient)
    }

    fn check_file_status(
        &self,
        response: &Response<ureq::Body>,
        file: &str,
    ) -> Result<(), RequestError> {
        self.check_status(response, || HubError::NoFile {
            repository: self.repository.to_owned(),
            file: file.to_owned(),
        })
    }

    fn check_status(
        &self,
        response: &Response<ureq::Body>,
        missing: impl FnOnce() -> HubError,
    ) -> Result<(), RequestError> {
        let status = response.status();
        let gated = response
            .headers()
            .get("x-error-code")
            .is_some_and(|code| code == "GatedRepo");
        match status.as_u16() {
            200..=299 => Ok(()),
            status @ (401 | 403) => Err(RequestError::Final(HubError::Refused {
                repository: self.repository.to_owned(),
                status,
            })),
            404 if !gated => Err(RequestError::Final(missing())),
            status @ 404 => Err(RequestError::Final(HubError::Refused {
                repository: self.repository.to_owned(),
                status,
            })),
            _ => Err(RequestError::Transient(format!("HTTP {status}"))),
        }
    }
}

fn transient(cause: ureq::Error) -> RequestError {
    RequestError::Transient(cause.to_string())
}

/// Large files announce their own size and etag in `x-linked-*`, beside those of the redirect.
fn file_info(headers: &HeaderMap) -> Option<FileInfo> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let etag = text("x-linked-etag").or_else(|| text("etag"))?;
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    let safe = (1..=128).contains(&etag.len())
        && etag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let size = text("x-linked-size")
        .or_else(|| text("content-length"))?
        .parse()
        .ok()?;
    safe.then(|| FileInfo {
        etag: etag.to_owned(),
        size,
    })
}

/// The first position of `Content-Range: bytes 100-199/200`.
fn content_range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get("content-range")?.to_str().ok()?;
    value
        .trim()
        .strip_prefix("bytes")?
        .trim()
        .split('-')
        .next()?
        .trim()
        .parse()
        .ok()
}

/// Scheme and authority of a URL.
fn origin(url: &str) -> String {
    match url.parse::<Uri>() {
        Ok(uri) => format!(
            "{}://{}",
            uri.scheme_str().unwrap_or("https"),
            uri.authority().map_or("", |authority| authority.as_str())
        ),
        Err(_) => String::new(),
    }
}

fn is_loopback(endpoint: &str) -> bool {
    let host = endpoint
        .parse::<Uri>()
        .ok()
        .and_then(|uri| uri.host().map(str::to_owned));
    host.is_some_and(|host| host == "localhost" || host.starts_with("127.") || host == "[::1]")
}
