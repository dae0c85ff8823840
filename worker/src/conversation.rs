//! The stream with the coordinator: statuses go out, what is desired comes in. When to look for the coordinator
//! again is the agent's decision.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result};
use coxswain_agent::CoordinatorNews;
use coxswain_proto::wire;
use coxswain_proto::wire::cluster_client::ClusterClient;
use coxswain_transport::tls::enroll::may_pass;
use coxswain_types::ids::WorkerId;
use coxswain_types::status::{DesiredState, WorkerStatus};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// Statuses that may wait to be sent. The newest tells all, so a few are plenty.
const OUTBOX: usize = 4;
/// How long the last status gets to leave. The stream is flushed by its own task; closing it at once would cut the
/// message off.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The way to the coordinator: one try or one stream at a time.
pub(crate) struct Conversation {
    client: ClusterClient<Channel>,
    state: Talk,
}

/// Where the conversation is.
enum Talk {
    /// Nothing is under way.
    Closed,
    /// A call is. It is kept here, so that [`Conversation::next`] can be dropped and called again.
    Calling(Pin<Box<dyn Future<Output = Result<CallAnswer, tonic::Status>> + Send>>),
    /// The stream stands.
    Open { outbox: mpsc::Sender<wire::WorkerStatus>, inbox: Box<Streaming<wire::DesiredState>> },
}

/// What the coordinator answers to a call.
enum CallAnswer {
    /// The incarnation of this process.
    Incarnation(u64),
    /// A stream, and the way into it.
    Stream(mpsc::Sender<wire::WorkerStatus>, Box<Streaming<wire::DesiredState>>),
}

impl Conversation {
    pub(crate) fn new(client: ClusterClient<Channel>) -> Conversation {
        Conversation { client, state: Talk::Closed }
    }

    /// The client, for other calls to the same coordinator.
    pub(crate) fn client(&self) -> &ClusterClient<Channel> {
        &self.client
    }

    /// Asks for an incarnation; [`Conversation::next`] has the answer.
    pub(crate) fn register(&mut self, worker: &WorkerId) {
        let (mut client, request) = (self.client.clone(), wire::RegisterRequest { worker: worker.0.clone() });
        self.state = Talk::Calling(Box::pin(async move {
            Ok(CallAnswer::Incarnation(client.register(request).await?.into_inner().incarnation))
        }));
    }

    /// Opens a stream that begins with this status; [`Conversation::next`] says whether it stands.
    pub(crate) fn open(&mut self, first: WorkerStatus) {
        let mut client = self.client.clone();
        self.state = Talk::Calling(Box::pin(async move {
            let (outbox, messages) = mpsc::channel(OUTBOX);
            outbox.send(first.into()).await.ok();
            let accepted = client.sync(ReceiverStream::new(messages)).await?;
            Ok(CallAnswer::Stream(outbox, Box::new(accepted.into_inner())))
        }));
    }

    /// Sends a status. A full outbox is fine: the next status has all that this one would have said.
    pub(crate) fn say(&self, status: WorkerStatus) {
        if let Talk::Open { outbox, .. } = &self.state {
            outbox.try_send(status.into()).ok();
        }
    }

    /// Sends a status and sees to it that it leaves, before the process ends.
    pub(crate) async fn say_last(&self, status: WorkerStatus) {
        if let Talk::Open { outbox, .. } = &self.state {
            outbox.send(status.into()).await.ok();
            tokio::time::sleep(LAST_WORDS).await;
        }
    }

    /// What comes next; never, where nothing is under way. It may be dropped and called again.
    ///
    /// # Errors
    /// A message that is not valid.
    pub(crate) async fn next(&mut self) -> Result<CoordinatorNews> {
        let news = match &mut self.state {
            Talk::Closed => std::future::pending().await,
            Talk::Calling(call) => {
                let answer = call.await;
                self.state = Talk::Closed;
                match answer {
                    Ok(CallAnswer::Incarnation(incarnation)) => CoordinatorNews::Registered { incarnation },
                    Ok(CallAnswer::Stream(outbox, inbox)) => {
                        self.state = Talk::Open { outbox, inbox };
                        CoordinatorNews::Accepted
                    }
                    Err(status) => untaken(&status),
                }
            }
            Talk::Open { inbox, .. } => match inbox.message().await {
                Ok(Some(desired)) => {
                    let desired = DesiredState::try_from(desired).context("a message of the coordinator")?;
                    CoordinatorNews::DesiredState(Box::new(desired))
                }
                Ok(None) => CoordinatorNews::Lost("it closed the connection".to_owned()),
                Err(status) => CoordinatorNews::Lost(status.message().to_owned()),
            },
        };
        if matches!(news, CoordinatorNews::Lost(_)) {
            self.state = Talk::Closed;
        }
        Ok(news)
    }
}

/// The coordinator does not take this worker, for this reason.
fn untaken(status: &tonic::Status) -> CoordinatorNews {
    let reason = status.message().to_owned();
    if may_pass(status) { CoordinatorNews::Busy(reason) } else { CoordinatorNews::Refused(reason) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_that_is_busy_is_asked_again() {
        let busy = |status| matches!(untaken(&status), CoordinatorNews::Busy(_));
        assert!(busy(tonic::Status::resource_exhausted("more than 20 calls a second")));
        assert!(!busy(tonic::Status::permission_denied("another worker's name")));
    }
}
