//! Progress of what takes long, on standard error and only where a person looks at it.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// A turning mark with a text; gone without a trace when dropped.
pub(crate) struct Spinner {
    bar: ProgressBar,
}

impl Spinner {
    /// Shows the text.
    pub(crate) fn new(text: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        if super::stderr_is_terminal() {
            bar.enable_steady_tick(TICK);
        } else {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        bar.set_message(text.to_owned());
        Self { bar }
    }

    /// Changes the text.
    pub(crate) fn set(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A bar for bytes of a known or unknown total; gone without a trace when dropped.
pub(crate) struct TransferProgress {
    bar: ProgressBar,
}

impl TransferProgress {
    /// A bar; `total_bytes` may be unknown.
    pub(crate) fn new(label: &str, total_bytes: Option<u64>) -> Self {
        let bar = match total_bytes {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::no_length(),
        };
        if !super::stderr_is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let template = if total_bytes.is_some() {
            "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}"
        } else {
            "{spinner} {msg} {bytes} {bytes_per_sec}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(label.to_owned());
        Self { bar }
    }

    /// Changes the text.
    pub(crate) fn label(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    /// Sets how many bytes there are by now, and in all.
    pub(crate) fn set(&self, done_bytes: u64, total_bytes: u64) {
        self.bar.set_length(total_bytes);
        self.bar.set_position(done_bytes);
    }

    /// Counts bytes.
    pub(crate) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

impl Drop for TransferProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
