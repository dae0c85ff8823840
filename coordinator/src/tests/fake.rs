//! A worker that computes nothing and says what a real one would say.

use std::collections::BTreeMap;
use std::time::Duration;

use coxswain_proto::{cluster_client, connect, wire};
use coxswain_types::Assignment;
use coxswain_types::ids::{Generation, Rank, Step, WorkerId};
use coxswain_types::status::{
    Desired, Fault, Phase, Published, Saved, SavedFile, StepReport, WorkerInfo, WorkerStatus,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// What a fake worker does wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// It ends without a word before this step.
    pub(crate) dies_at: Option<u64>,
    /// It says that it cannot go on before this step.
    pub(crate) fails_at: Option<u64>,
    /// It falls silent before this step.
    pub(crate) stalls_at: Option<u64>,
    /// It asks for its place to be taken before this step.
    pub(crate) leaves_at: Option<u64>,
}

/// How long a step takes.
const STEP: Duration = Duration::from_millis(10);

struct Worker {
    client: wire::cluster_client::ClusterClient<Channel>,
    status: WorkerStatus,
    assignment: Option<Assignment>,
    /// What was wanted of the run: the number of each wish and its last step.
    wishes: Vec<(u64, Step)>,
    /// The step that it has voted for.
    voted: Step,
    /// Whether ranks agreed that the step taken is the last one.
    last: bool,
}

/// Works until it is told to leave; returns the reason, or what ended it.
pub(crate) async fn work(url: &str, name: &str, faults: Faults) -> Result<String, String> {
    let channel = connect(url).await.map_err(|error| error.to_string())?;
    let mut worker = Worker::new(cluster_client(channel), name);
    let (statuses, outgoing) = mpsc::channel(16);
    let sync = worker.client.sync(ReceiverStream::new(outgoing)).await;
    let mut desired = sync.map_err(|error| error.to_string())?.into_inner();
    let mut tick = tokio::time::interval(STEP);
    loop {
        if statuses.send(worker.status.clone().into()).await.is_err() {
            return Err("the coordinator went away".to_owned());
        }
        tokio::select! {
            wanted = desired.message() => {
                let wanted = wanted.map_err(|error| error.to_string())?.ok_or("the stream ended")?;
                let wanted = Desired::try_from(wanted).map_err(|error| error.to_string())?;
                if let Some(reason) = wanted.leave {
                    return Ok(reason);
                }
                worker.follow(wanted).await?;
            }
            _ = tick.tick() => {
                let next = Some(worker.status.step.0 + 1).filter(|_| worker.status.phase == Phase::Running);
                if next.is_some() && next == faults.dies_at {
                    return Err("it died".to_owned());
                }
                if next.is_some() && next == faults.leaves_at {
                    worker.status.leaving = Some("it was asked to stop".to_owned());
                }
                if next.is_some() && next == faults.stalls_at {
                    std::future::pending::<()>().await;
                }
                if next.is_some() && next == faults.fails_at {
                    worker.status.phase = Phase::Failed { message: "the disk is full".to_owned(), fault: Fault::Own };
                }
                worker.step().await;
            }
        }
    }
}

impl Worker {
    fn new(client: wire::cluster_client::ClusterClient<Channel>, name: &str) -> Worker {
        let info = WorkerInfo {
            id: WorkerId(name.to_owned()),
            incarnation: 1,
            host: "alpha".to_owned(),
            pid: std::process::id(),
            cores: 2,
            device: "cpu".to_owned(),
            runtime: "none".to_owned(),
        };
        let status = WorkerStatus {
            info,
            generation: Generation(0),
            assignment_digest: None,
            phase: Phase::Idle,
            step: Step(0),
            reports: vec![],
            saved: None,
            published: None,
            peak_tensor_bytes: 0,
            leaving: None,
            activity: None,
            pace: None,
        };
        Worker { client, status, assignment: None, wishes: vec![], voted: Step(0), last: false }
    }

    async fn follow(&mut self, wanted: Desired) -> Result<(), String> {
        let status = &mut self.status;
        if self.wishes.last().is_none_or(|(revision, _)| *revision < wanted.revision) {
            self.wishes.push((wanted.revision, wanted.run_to));
        }
        if wanted.assignment_digest.is_none() {
            *status = Worker::new(self.client.clone(), &status.info.id.0).status;
            status.generation = wanted.generation;
            (self.assignment, self.wishes, self.last) = (None, vec![], false);
            return Ok(());
        }
        if let Some(text) = wanted.assignment
            && status.assignment_digest != wanted.assignment_digest
        {
            let assignment: Assignment = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            (self.wishes, self.last) = (vec![(wanted.revision, wanted.run_to)], false);
            status.generation = wanted.generation;
            status.assignment_digest = wanted.assignment_digest;
            status.phase = Phase::Running;
            status.step = assignment.resume.as_ref().map_or(Step(0), |resume| resume.step);
            self.voted = status.step;
            if let Err(message) = self.meet(&assignment).await {
                self.status.phase = Phase::Failed { message, fault: Fault::Peer };
            }
            self.assignment = Some(assignment);
        }
        let status = &mut self.status;
        status.reports.retain(|report| report.step > wanted.acknowledged.0);
        if let Some(publish) = wanted.publish {
            status.published = Some(Published { step: publish.step, digest: "m".to_owned() });
        }
        Ok(())
    }

    /// Meets the other ranks as a c10d Store would.
    async fn meet(&mut self, assignment: &Assignment) -> Result<(), String> {
        let (job, generation) = (assignment.job.clone(), assignment.generation.0);
        let key = |rank: u32| format!("rank{rank}").into_bytes();
        let own = wire::StoreSetRequest {
            job: job.clone(),
            generation,
            key: key(assignment.rank.0),
            value: b"here".to_vec(),
        };
        self.client.store_set(own).await.map_err(|error| error.to_string())?;
        for rank in 0..assignment.world {
            let other = wire::StoreGetRequest { job: job.clone(), generation, key: key(rank), wait_ms: 2000 };
            let reply = self.client.store_get(other).await.map_err(|error| error.to_string())?.into_inner();
            if reply.value != b"here" {
                return Err(format!("rank {rank} is not there"));
            }
        }
        Ok(())
    }

    /// Closes a step as ranks do: the least number of a wish that any of them has seen rules. `None` while
    /// a vote is missing.
    async fn close(&mut self, assignment: &Assignment) -> Option<u64> {
        let (job, generation, step) =
            (assignment.job.clone(), assignment.generation.0, self.status.step.next());
        let key = |rank: u32| format!("step{step}-{rank}").into_bytes();
        if self.voted < step {
            let value = self.wishes.last()?.0.to_le_bytes().to_vec();
            let own =
                wire::StoreSetRequest { job: job.clone(), generation, key: key(assignment.rank.0), value };
            self.client.store_set(own).await.ok()?;
            self.voted = step;
        }
        let mut least = u64::MAX;
        for rank in 0..assignment.world {
            let vote = wire::StoreGetRequest { job: job.clone(), generation, key: key(rank), wait_ms: 0 };
            let reply = self.client.store_get(vote).await.ok()?.into_inner();
            least = least.min(u64::from_le_bytes(reply.value.try_into().ok()?));
        }
        Some(least)
    }

    async fn step(&mut self) {
        let Some(assignment) = self.assignment.clone().filter(|_| self.status.phase == Phase::Running) else {
            return;
        };
        if !self.last {
            let Some(revision) = self.close(&assignment).await else { return };
            let status = &mut self.status;
            status.step = status.step.next();
            if assignment.rank == Rank(0) {
                status.reports.push(report(status.step.0));
            }
            let run_to = self.wishes.iter().rev().find(|(seen, _)| *seen <= revision);
            self.last = run_to.is_some_and(|(_, run_to)| *run_to <= status.step)
                || status.step.0 == assignment.spec.train.steps;
            return;
        }
        let status = &mut self.status;
        let name = format!("r{}.safetensors", assignment.rank);
        let file = SavedFile { name, bytes: 1, digest: "d".to_owned() };
        status.saved = Some(Saved { step: status.step, files: vec![file] });
        let lead = assignment.rank == Rank(0);
        if !lead || status.published.as_ref().is_some_and(|published| published.step == status.step) {
            status.phase = Phase::Done;
        }
    }
}

fn report(step: u64) -> StepReport {
    StepReport {
        step,
        loss: 6.0 / step as f64,
        grad_norm: 1.0,
        learning_rate: 1e-3,
        tokens: 64,
        tokens_per_second: 640.0,
        step_seconds: 0.1,
        skipped: false,
        loss_scale: None,
        parameter_norms: BTreeMap::new(),
        held_out: None,
    }
}
