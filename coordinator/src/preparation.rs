//! The preparations of jobs' data that are under way: what is told of them, and how they are ended.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coxswain_core::cluster::{Event, Look, Submission};
use coxswain_files::{Digests, Progress, Stopped};
use tokio::sync::mpsc;

use crate::folder;
use crate::handle::Request;

/// How often the progress of a preparation is told at most.
const TELL: Duration = Duration::from_secs(1);

/// The preparations under way; each ends soon after it is let go of, or this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Preparations {
    /// By job: whether it shall end.
    ends: BTreeMap<String, Arc<AtomicBool>>,
}

impl Preparations {
    /// Prepares a job in a thread of its own, which tells the driver of its progress and its end.
    pub(crate) fn start(
        &mut self,
        submission: Submission,
        look: Look,
        digests: Arc<Digests>,
        requests: mpsc::Sender<Request>,
    ) {
        let job = submission.job.clone();
        let ends = Arc::new(AtomicBool::new(false));
        self.end(&job);
        self.ends.insert(job.clone(), Arc::clone(&ends));
        tokio::task::spawn_blocking(move || {
            let told = Mutex::new(Instant::now());
            let watch = |progress: Progress| {
                if ends.load(Ordering::Relaxed) {
                    return Err(Stopped);
                }
                // Who finds it locked comes while another thread tells.
                if let Ok(mut told) = told.try_lock()
                    && told.elapsed() >= TELL
                {
                    *told = Instant::now();
                    let event = Event::Preparing { job: job.clone(), doing: progress.to_string() };
                    // A driver that has more urgent things to do misses this one.
                    let _ = requests.try_send(Request::Preparing { event });
                }
                Ok(())
            };
            let result = folder::prepare(&submission, look, &digests, &watch);
            // The driver is gone when the coordinator ends; then nobody waits for this.
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
