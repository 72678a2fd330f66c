//! How far quantizing is: a bar on standard error when that is a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::source::SourceTensor;

const TEMPLATE: &str = "{msg:.bold} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";

/// Counts the bytes of the original that are done.
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    /// A bar for so many bytes.
    pub fn new(label: String, total: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.set_message(label);
        Self(Some(bar))
    }

    /// This tensor is done. The last one ends the bar.
    pub fn advance(&self, tensor: &SourceTensor<'_>) {
        if let Some(bar) = &self.0 {
            bar.inc(tensor.bytes() as u64);
            if bar.length().is_some_and(|total| bar.position() >= total) {
                bar.finish();
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.abandon();
        }
    }
}
