//! What asks this process to stop.

use anyhow::{Context, Result};
use coxswain_agent::StopRequest;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// The signals that this process listens for, and the end of its certificate.
pub(crate) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    /// Has an item once the certificate is not renewed any more.
    not_renewed: mpsc::Receiver<()>,
}

impl StopSignals {
    pub(crate) fn listen(not_renewed: mpsc::Receiver<()>) -> Result<StopSignals> {
        let terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        Ok(StopSignals { terminate, interrupt, not_renewed })
    }

    /// The next request to stop.
    pub(crate) async fn next(&mut self) -> StopRequest {
        tokio::select! {
            _ = self.interrupt.recv() => StopRequest::Interrupt,
            _ = self.terminate.recv() => StopRequest::Terminate,
            // Without an item the channel has ended, since nothing is renewed.
            Some(()) = self.not_renewed.recv() => StopRequest::NotRenewed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_certificate_that_is_not_renewed_asks_to_stop_once() {
        let (not_renewed, refused) = mpsc::channel(1);
        let mut signals = StopSignals::listen(refused).unwrap();
        not_renewed.send(()).await.unwrap();
        drop(not_renewed);
        assert_eq!(signals.next().await, StopRequest::NotRenewed);
        tokio::time::timeout(Duration::from_secs(60), signals.next()).await.unwrap_err();
    }
}
