//! What can go wrong with a hub model.

/// Why a hub model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error(
        "model '{repository}' is not in the local cache, and the hub may not be asked (offline)"
    )]
    NotCached { repository: String },
}
