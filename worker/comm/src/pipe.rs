//! Sends that no thread waits for: compute goes on while they travel, and a tensor is given back as soon
//! as its send has ended.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use coxswain_native::TorchError;
use coxswain_native::net::Transfer;

enum PipeTask {
    /// Wait for a send and give its tensor back.
    End(Transfer),
    /// Say how the sends so far have ended.
    Report(SyncSender<Result<(), TorchError>>),
}

/// Sends in flight. A thread waits for them in their order; how many there are is bounded by the
/// schedule, which sends each activation and each gradient once.
#[derive(Debug)]
pub struct Pipe {
    jobs: Sender<PipeTask>,
}

impl Pipe {
    /// No sends yet.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn new() -> Result<Pipe, TorchError> {
        let (jobs, queue) = channel();
        // Without a `Pipe` the thread ends after the sends it has; an abort of the links ends those.
        let thread = std::thread::Builder::new().name("sends".to_owned()).spawn(move || end_all(&queue));
        thread.map_err(|error| TorchError(format!("starting the thread of sends: {error}")))?;
        Ok(Pipe { jobs })
    }

    /// Takes charge of a send.
    pub fn push(&self, send: Transfer) -> Result<(), TorchError> {
        self.give(PipeTask::End(send))
    }

    /// Waits for all sends.
    ///
    /// # Errors
    /// The first that failed since the last time.
    pub fn drain(&self) -> Result<(), TorchError> {
        let (reply, answer) = sync_channel(1);
        self.give(PipeTask::Report(reply))?;
        answer.recv().map_err(|_| gone())?
    }

    fn give(&self, job: PipeTask) -> Result<(), TorchError> {
        self.jobs.send(job).map_err(|_| gone())
    }
}

fn gone() -> TorchError {
    TorchError("the thread of sends has ended".to_owned())
}

fn end_all(queue: &Receiver<PipeTask>) {
    let mut ended = Ok(());
    for job in queue {
        match job {
            PipeTask::End(send) => {
                let result = send.wait();
                if ended.is_ok() {
                    ended = result;
                }
            }
            // The receiver may be gone, which does no harm.
            PipeTask::Report(reply) => drop(reply.send(std::mem::replace(&mut ended, Ok(())))),
        }
    }
}
