//! Who is told how a download goes.

use std::io::IsTerminal;
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Hears about downloads. Calls come from the thread that called [`resolve`](crate::engine::loader::resolve).
pub trait DownloadProgress {
    /// A file begins: `total` bytes in all, of which `present` are there from an earlier try.
    fn begin(&self, file: &str, total: u64, present: u64);
    /// That many more bytes have come.
    fn advance(&self, bytes: u64);
    /// The file is complete.
    fn finish(&self, file: &str);
}

/// Tells nobody.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl DownloadProgress for Silent {
    fn begin(&self, _file: &str, _total: u64, _present: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self, _file: &str) {}
}

/// A progress bar on standard error when that is a terminal, and log lines otherwise.
#[derive(Debug, Default)]
pub struct Console {
    /// The bar of the current file; the only writer is the downloading thread.
    bar: Mutex<Option<ProgressBar>>,
}

const TEMPLATE: &str = "{msg:.bold} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";

impl Console {
    fn with_bar(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        if let Ok(mut bar) = self.bar.lock() {
            act(&mut bar);
        }
    }
}

impl DownloadProgress for Console {
    fn begin(&self, file: &str, total: u64, present: u64) {
        tracing::info!(file, total, present, "downloading");
        if !std::io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.set_message(file.to_owned());
        bar.set_position(present);
        bar.reset_eta();
        self.with_bar(|current| *current = Some(bar));
    }

    fn advance(&self, bytes: u64) {
        self.with_bar(|current| {
            if let Some(bar) = current {
                bar.inc(bytes);
            }
        });
    }

    fn finish(&self, file: &str) {
        tracing::info!(file, "downloaded");
        self.with_bar(|current| {
            if let Some(bar) = current.take() {
                bar.finish();
            }
        });
    }
}
