//! What can go wrong with a hub model.

use std::io;
use std::path::PathBuf;

/// Why a hub model could not be fetched. What has been downloaded stays, and the next try goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error(
        "model '{repository}' is not (completely) in the cache {}, and HF_HUB_OFFLINE forbids to ask the hub",
        cache.display()
    )]
    NotCached { repository: String, cache: PathBuf },
    #[error(
        "the hub at {endpoint} cannot be reached ({cause}), and model '{repository}' is not (completely) in the cache"
    )]
    Unreachable {
        endpoint: String,
        repository: String,
        cause: String,
    },
    #[error(
        "access to model '{repository}' is refused (HTTP {status}): it is private or gated; accept its terms on the \
         hub and set HF_TOKEN to a token that may read it"
    )]
    Refused { repository: String, status: u16 },
    #[error("model '{repository}' (revision '{revision}') does not exist on {endpoint}")]
    NoRepository {
        endpoint: String,
        repository: String,
        revision: String,
    },
    #[error("file {file} of model '{repository}' does not exist on the hub any more")]
    NoFile { repository: String, file: String },
    #[error("model '{repository}' has no weights that can be used: {reason}")]
    NoWeights { repository: String, reason: String },
    #[error("the hub's answer to {url} makes no sense: {reason}")]
    BadAnswer { url: String, reason: String },
    #[error(
        "the download of {file} of model '{repository}' broke off{} ({cause}); start again to go on from there",
        progress(*received, *total)
    )]
    Interrupted {
        repository: String,
        file: String,
        received: u64,
        total: u64,
        cause: String,
    },
    #[error("cannot write {} ({cause}){}", path.display(), space_hint(cause, *needed))]
    Disk {
        path: PathBuf,
        needed: u64,
        #[source]
        cause: io::Error,
    },
}

/// How far a file came, once its size was known.
fn progress(received: u64, total: u64) -> String {
    match total {
        0 => " before it began".to_owned(),
        _ => format!(" after {received} of {total} bytes"),
    }
}

fn space_hint(cause: &io::Error, needed: u64) -> String {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!(
                "; {needed} bytes are still needed: free space, or set HF_HOME to another disk, and start again to resume"
            )
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; set HF_HOME to a folder that may be written".to_owned()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_forbidden_folder_say_what_helps() {
        let error = |kind: io::ErrorKind| {
            HubError::Disk {
                path: PathBuf::from("/cache/blobs/x.part"),
                needed: 123,
                cause: kind.into(),
            }
            .to_string()
        };
        let full = error(io::ErrorKind::StorageFull);
        assert!(
            full.contains("123 bytes") && full.contains("resume") && full.contains("x.part"),
            "{full}"
        );
        assert!(error(io::ErrorKind::PermissionDenied).contains("HF_HOME"));
    }
}
