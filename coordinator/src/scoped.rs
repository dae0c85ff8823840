//! The answers about jobs as a caller may read them: what leaves the service names no job that is not the
//! caller's.

use std::pin::Pin;

use coxswain_proto::wire;
use coxswain_proto::wire::jobs_server::Jobs;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::auth::Caller;
use crate::auth::scope::Scope;
use crate::handle::Handle;

/// A service whose answers are made fit for their callers.
pub(crate) struct Scoped<J> {
    pub(crate) jobs: J,
    pub(crate) handle: Handle,
}

/// An answer that has texts.
trait ScopedTexts {
    fn texts(&mut self) -> Vec<&mut String>;
}

impl ScopedTexts for wire::SubmitReply {
    fn texts(&mut self) -> Vec<&mut String> {
        Vec::new()
    }
}

impl ScopedTexts for wire::DrainReply {
    fn texts(&mut self) -> Vec<&mut String> {
        Vec::new()
    }
}

impl ScopedTexts for wire::JobSummary {
    fn texts(&mut self) -> Vec<&mut String> {
        vec![&mut self.reason]
    }
}

impl ScopedTexts for wire::ListReply {
    fn texts(&mut self) -> Vec<&mut String> {
        self.jobs.iter_mut().flat_map(ScopedTexts::texts).collect()
    }
}

impl ScopedTexts for wire::CancelReply {
    fn texts(&mut self) -> Vec<&mut String> {
        vec![&mut self.reason]
    }
}

impl ScopedTexts for wire::ExplainReply {
    fn texts(&mut self) -> Vec<&mut String> {
        vec![&mut self.text]
    }
}

impl ScopedTexts for wire::ViewReply {
    fn texts(&mut self) -> Vec<&mut String> {
        vec![&mut self.json]
    }
}

impl ScopedTexts for wire::JobEvent {
    fn texts(&mut self) -> Vec<&mut String> {
        vec![&mut self.text, &mut self.fields]
    }
}

impl ScopedTexts for wire::JobUpdate {
    fn texts(&mut self) -> Vec<&mut String> {
        match &mut self.event {
            Some(wire::job_update::Event::Summary(summary)) => summary.texts(),
            _ => Vec::new(),
        }
    }
}

/// What a caller may read of an answer.
async fn fit<T: ScopedTexts>(scope: &mut Scope, answer: Result<T, Status>) -> Result<T, Status> {
    match answer {
        Ok(mut answer) => {
            scope.hide(answer.texts()).await;
            Ok(answer)
        }
        Err(status) => {
            let mut message = status.message().to_owned();
            scope.hide(vec![&mut message]).await;
            // What was made on the way to here stays as it is where it says nothing that is hidden.
            Err(if message == status.message() {
                status
            } else {
                // Its codes say nothing of other jobs.
                Status::with_metadata(status.code(), message, status.metadata().clone())
            })
        }
    }
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The items of a stream as a caller may read them.
fn each<T, S>(mut scope: Scope, mut items: S) -> Replies<T>
where
    T: ScopedTexts + Send + 'static,
    S: Stream<Item = Result<T, Status>> + Send + Unpin + 'static,
{
    use tokio_stream::StreamExt as _;
    // One item on its way: a slow reader holds up its own stream.
    let (sender, fitted) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let item = tokio::select! {
                item = items.next() => item,
                // Whoever has gone holds nothing until the next item.
                () = sender.closed() => None,
            };
            let Some(item) = item else { return };
            if sender.send(fit(&mut scope, item).await).await.is_err() {
                return;
            }
        }
    });
    Box::pin(tokio_stream::wrappers::ReceiverStream::new(fitted))
}

impl<J: Jobs> Scoped<J> {
    fn scope<T>(&self, request: &Request<T>) -> Scope {
        Scope::new(Caller::of(request), self.handle.clone())
    }
}

async fn answer<T: ScopedTexts>(
    mut scope: Scope,
    answer: Result<Response<T>, Status>,
) -> Result<Response<T>, Status> {
    fit(&mut scope, answer.map(Response::into_inner)).await.map(Response::new)
}

async fn stream<T, S>(
    mut scope: Scope,
    answer: Result<Response<S>, Status>,
) -> Result<Response<Replies<T>>, Status>
where
    T: ScopedTexts + Send + 'static,
    S: Stream<Item = Result<T, Status>> + Send + Unpin + 'static,
{
    match answer {
        Ok(items) => Ok(Response::new(each(scope, items.into_inner()))),
        Err(status) => match fit::<wire::SubmitReply>(&mut scope, Err(status)).await {
            Err(status) => Err(status),
            Ok(_) => Err(Status::internal("a refusal became an answer")),
        },
    }
}

#[tonic::async_trait]
impl<J: Jobs> Jobs for Scoped<J>
where
    J::WatchStream: Unpin,
    J::EventsStream: Unpin,
{
    type WatchStream = Replies<wire::JobUpdate>;
    type EventsStream = Replies<wire::JobEvent>;

    async fn submit(
        &self,
        request: Request<wire::SubmitRequest>,
    ) -> Result<Response<wire::SubmitReply>, Status> {
        answer(self.scope(&request), self.jobs.submit(request).await).await
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Result<Response<wire::JobSummary>, Status> {
        answer(self.scope(&request), self.jobs.get(request).await).await
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Result<Response<wire::ListReply>, Status> {
        answer(self.scope(&request), self.jobs.list(request).await).await
    }

    async fn cancel(
        &self,
        request: Request<wire::CancelRequest>,
    ) -> Result<Response<wire::CancelReply>, Status> {
        answer(self.scope(&request), self.jobs.cancel(request).await).await
    }

    async fn drain(
        &self,
        request: Request<wire::DrainRequest>,
    ) -> Result<Response<wire::DrainReply>, Status> {
        answer(self.scope(&request), self.jobs.drain(request).await).await
    }

    async fn explain(
        &self,
        request: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::ExplainReply>, Status> {
        answer(self.scope(&request), self.jobs.explain(request).await).await
    }

    async fn view(&self, request: Request<wire::ViewRequest>) -> Result<Response<wire::ViewReply>, Status> {
        answer(self.scope(&request), self.jobs.view(request).await).await
    }

    async fn events(
        &self,
        request: Request<wire::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        stream(self.scope(&request), self.jobs.events(request).await).await
    }

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        stream(self.scope(&request), self.jobs.watch(request).await).await
    }
}
