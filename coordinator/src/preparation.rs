//! Data preparations under way: their progress, and how they are stopped.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coxswain_core::cluster::{Look, Submission};
use coxswain_files::{Digests, Progress, Stopped};
use tokio::sync::mpsc;

use crate::folder;
use crate::handle::Request;

/// How often the progress of a preparation is told at most.
const TELL: Duration = Duration::from_secs(1);

/// Preparations under way; each stops soon after [`Preparations::end`], or when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Preparations {
    /// By job: set to stop it.
    ends: BTreeMap<String, Arc<AtomicBool>>,
}

impl Preparations {
    /// Prepares a job in a thread of its own, which tells the driver of its progress and its end. `first` where no
    /// generation of it was formed.
    pub(crate) fn start(
        &mut self,
        submission: Submission,
        (look, first): (Look, bool),
        digests: Arc<Digests>,
        requests: mpsc::Sender<Request>,
    ) {
        let job = submission.job.clone();
        let ends = Arc::new(AtomicBool::new(false));
        self.ends.insert(job.clone(), Arc::clone(&ends));
        tokio::task::spawn_blocking(move || {
            let told = Mutex::new(Instant::now());
            let watch = |progress: Progress| {
                if ends.load(Ordering::Relaxed) {
                    return Err(Stopped);
                }
                // If it is locked, another thread is reporting.
                if let Ok(mut told) = told.try_lock()
                    && told.elapsed() >= TELL
                {
                    *told = Instant::now();
                    let (job, doing) = (job.clone(), progress.to_string());
                    // Dropped when the driver's queue is full.
                    let _ = requests.try_send(Request::Preparing { job, doing });
                }
                Ok(())
            };
            let result = folder::prepare(&submission, look, &digests, &watch, first);
            // The driver is gone when the coordinator ends; then the result is dropped.
            let _ = requests.blocking_send(Request::Prepared { job, result });
        });
    }

    /// Ends the preparation of a job between two pieces of its work, if it is under way.
    pub(crate) fn end(&mut self, job: &str) {
        if let Some(ends) = self.ends.remove(job) {
            ends.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Preparations {
    fn drop(&mut self) {
        self.ends.values().for_each(|ends| ends.store(true, Ordering::Relaxed));
    }
}
