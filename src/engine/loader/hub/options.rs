//! How the hub is reached.

use std::path::PathBuf;

/// Where the hub and its cache are.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// The folder of the cache (`$HF_HOME/hub`).
    pub cache: PathBuf,
}
