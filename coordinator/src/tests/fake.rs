//! Workers that compute nothing and say what real ones would say.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coxswain_proto::wire::cluster_client::ClusterClient;
use coxswain_proto::{limits, wire};
use coxswain_transport::{cluster_client, connect};
use coxswain_types::Assignment;
use coxswain_types::ids::{Generation, Rank, Step, WorkerId};
use coxswain_types::status::{
    DesiredState, Fault, Phase, Published, Saved, SavedFile, StepReport, WorkerInfo, WorkerStatus,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
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
    /// It ends when its coordinator goes away, where a real one goes on and looks for it.
    pub(crate) clings: bool,
    /// It never stops before its last step.
    pub(crate) deaf: bool,
}

/// How long a step takes.
const STEP: Duration = Duration::from_millis(10);

/// How long a worker that lost its coordinator waits before it looks for it again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long after its deadline a call may still end, on a busy machine.
const SLACK: Duration = Duration::from_secs(3);

/// What all workers of a test were given: the digest of each generation's ranks.
pub(crate) type Given = Arc<Mutex<BTreeMap<(u64, u32), String>>>;

/// Why a stream ended.
enum End {
    /// The coordinator sends the worker away, for this reason.
    Leave(String),
    /// The coordinator cannot be reached.
    Lost(String),
    /// Something that must not be.
    Broken(String),
}

/// A worker: a process of a name.
pub(crate) struct Worker {
    status: WorkerStatus,
    assignment: Option<Assignment>,
    /// What was wanted of the run: the number of each directive and its last step.
    directives: Vec<(u64, Step)>,
    /// Whether ranks agreed that the step taken is the last one.
    last: bool,
    faults: Faults,
    given: Given,
}

/// Works until it is told to leave; returns the reason, or what ended it.
pub(crate) async fn work(url: &str, name: &str, faults: Faults) -> Result<String, String> {
    Worker::new(name, 1, faults, Given::default()).work(url).await
}

/// Fails when a call ends much later than its deadline allows.
async fn by_deadline<T>(call: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, End> {
    match timeout(limits::RPC_DEADLINE + SLACK, call).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(status)) => Err(End::Lost(status.to_string())),
        Err(_) => Err(End::Broken("a call did not end by its deadline".to_owned())),
    }
}

impl Worker {
    pub(crate) fn new(name: &str, incarnation: u64, faults: Faults, given: Given) -> Worker {
        let info = WorkerInfo {
            id: WorkerId(name.to_owned()),
            incarnation,
            host: "alpha".to_owned(),
            pid: std::process::id(),
            cores: 2,
            device: "cpu".to_owned(),
            runtime: "none".to_owned(),
            serves: None,
        };
        Worker {
            status: WorkerStatus::idle(info, Generation(0)),
            assignment: None,
            directives: vec![],
            last: false,
            faults,
            given,
        }
    }

    /// Works until it is told to leave; returns the reason, or what ended it.
    pub(crate) async fn work(mut self, url: &str) -> Result<String, String> {
        loop {
            match self.sync(url).await {
                End::Leave(reason) => return Ok(reason),
                End::Broken(why) => return Err(why),
                End::Lost(why) if self.faults.clings => return Err(why),
                End::Lost(_) => {
                    // No step needs the coordinator.
                    let until = Instant::now() + LOOK_AGAIN;
                    while Instant::now() < until {
                        tokio::time::sleep(STEP).await;
                        self.step();
                    }
                }
            }
        }
    }

    /// Serves one stream to its end.
    async fn sync(&mut self, url: &str) -> End {
        match self.stream(url).await {
            Ok(reason) => End::Leave(reason),
            Err(end) => end,
        }
    }

    async fn stream(&mut self, url: &str) -> Result<String, End> {
        let lost = |error: tonic::Status| End::Lost(error.to_string());
        let channel = timeout(limits::CONNECT_TIMEOUT + SLACK, connect(url)).await;
        let channel = channel.map_err(|_| End::Broken("connecting did not end".to_owned()))?;
        let mut client = cluster_client(channel.map_err(|error| End::Lost(error.to_string()))?);
        let (statuses, outgoing) = mpsc::channel(16);
        let mut desired = by_deadline(client.sync(ReceiverStream::new(outgoing))).await?.into_inner();
        let mut tick = tokio::time::interval(STEP);
        loop {
            if statuses.send(self.said()).await.is_err() {
                return Err(End::Lost("the coordinator went away".to_owned()));
            }
            tokio::select! {
                wanted = desired.message() => {
                    let wanted = wanted.map_err(lost)?.ok_or_else(|| End::Lost("the stream ended".to_owned()))?;
                    let wanted = DesiredState::try_from(wanted).map_err(|error| End::Broken(error.to_string()))?;
                    if let Some(leave) = wanted.leave {
                        return Ok(leave.reason);
                    }
                    self.follow(&mut client, wanted).await?;
                }
                _ = tick.tick() => {
                    let next = Some(self.status.step.0 + 1).filter(|_| self.status.phase == Phase::Running);
                    if next.is_some() && next == self.faults.dies_at {
                        return Err(End::Broken("it died".to_owned()));
                    }
                    if next.is_some() && next == self.faults.leaves_at {
                        self.status.leaving = Some("it was asked to stop".to_owned());
                    }
                    if next.is_some() && next == self.faults.stalls_at {
                        std::future::pending::<()>().await;
                    }
                    if next.is_some() && next == self.faults.fails_at {
                        let message = "the disk is full".to_owned();
                        self.status.phase = Phase::Failed { message, fault: Fault::Own };
                    }
                    self.step();
                }
            }
        }
    }

    /// Its status, with as many of its reports as one message may have.
    fn said(&self) -> wire::WorkerStatus {
        let mut status = self.status.clone();
        status.reports.truncate(limits::MAX_REPORTS);
        status.into()
    }

    async fn follow(&mut self, client: &mut ClusterClient<Channel>, wanted: DesiredState) -> Result<(), End> {
        let status = &mut self.status;
        let stops = wanted.run_to == Step(0);
        if self.directives.last().is_none_or(|(revision, _)| *revision < wanted.revision)
            && !(stops && self.faults.deaf)
        {
            self.directives.push((wanted.revision, wanted.run_to));
        }
        if wanted.assignment_digest.is_none() {
            *status = WorkerStatus::idle(status.info.clone(), wanted.generation);
            (self.assignment, self.directives, self.last) = (None, vec![], false);
            return Ok(());
        }
        if let Some(text) = wanted.assignment
            && status.assignment_digest != wanted.assignment_digest
        {
            let assignment: Assignment =
                serde_json::from_str(&text).map_err(|error| End::Broken(error.to_string()))?;
            take_note(&self.given, &assignment, wanted.assignment_digest.as_deref())?;
            if wanted.generation <= status.generation && status.assignment_digest.is_some() {
                return Err(End::Broken(format!(
                    "generation {} after {}",
                    wanted.generation, status.generation
                )));
            }
            (self.directives, self.last) = (vec![(wanted.revision, wanted.run_to)], false);
            status.generation = wanted.generation;
            status.assignment_digest = wanted.assignment_digest;
            status.phase = Phase::Running;
            status.step = assignment.resume.as_ref().map_or(Step(0), |resume| resume.step);
            (status.saved, status.published) = (None, None);
            status.reports.clear();
            if let Err(message) = meet(client, &assignment).await? {
                status.phase = Phase::Failed { message, fault: Fault::Peer };
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

    /// Closes a step as ranks do: the least number of a directive that any of them has seen rules. `None` while
    /// a vote is missing. Ranks, which may be processes, tell each other in a folder, without a coordinator.
    fn close(&self, assignment: &Assignment) -> Option<u64> {
        let newest = self.directives.last()?.0;
        let folder = PathBuf::from(format!("{}.votes", assignment.directory));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("g{}-{}", assignment.generation, self.status.step.next()));
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).unwrap();
        let mut votes = read_votes(&mut file);
        if !votes.contains_key(&assignment.rank.0) {
            file.write_all(format!("{} {newest}\n", assignment.rank).as_bytes()).unwrap();
            votes = read_votes(&mut file);
        }
        votes.values().min().copied().filter(|_| votes.len() == assignment.world as usize)
    }

    fn step(&mut self) {
        let Some(assignment) = self.assignment.clone().filter(|_| self.status.phase == Phase::Running) else {
            return;
        };
        let lead = assignment.rank == Rank(0);
        if !self.last {
            let Some(revision) = self.close(&assignment) else { return };
            self.status.step = self.status.step.next();
            if lead {
                self.status.reports.push(report(self.status.step.0));
            }
            let run_to = self.directives.iter().rev().find(|(seen, _)| *seen <= revision);
            self.last = run_to.is_some_and(|(_, run_to)| *run_to <= self.status.step)
                || self.status.step.0 == assignment.spec.train.steps;
        }
        let status = &mut self.status;
        let every = assignment.spec.checkpoint.every;
        if self.last || (every > 0 && status.step.0.is_multiple_of(every)) {
            let name = format!("r{}.safetensors", assignment.rank);
            let file = SavedFile { name, bytes: 1, digest: "d".to_owned() };
            status.saved = Some(Saved { step: status.step, files: vec![file] });
        }
        let published = status.published.as_ref().is_some_and(|published| published.step == status.step);
        if self.last && (!lead || published) {
            status.phase = Phase::Done;
        }
    }
}

fn read_votes(file: &mut File) -> BTreeMap<u32, u64> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    let votes = text.lines().map(|line| line.split_once(' ').unwrap());
    votes.map(|(rank, vote)| (rank.parse().unwrap(), vote.parse().unwrap())).collect()
}

/// One generation has one assignment for each rank, whoever asks and whenever.
fn take_note(given: &Given, assignment: &Assignment, digest: Option<&str>) -> Result<(), End> {
    let digest = digest.unwrap_or_default().to_owned();
    let key = (assignment.generation.0, assignment.rank.0);
    let before = given.lock().unwrap().insert(key, digest.clone());
    match before.filter(|before| *before != digest) {
        None => Ok(()),
        Some(_) => Err(End::Broken(format!("generation {} was used again", assignment.generation))),
    }
}

/// Meets the other ranks by the rendezvous; the inner error is why it cannot.
async fn meet(
    client: &mut ClusterClient<Channel>,
    assignment: &Assignment,
) -> Result<Result<(), String>, End> {
    let (job, generation) = (assignment.job.clone(), assignment.generation.0);
    let key = |rank: u32| format!("rank{rank}").into_bytes();
    let own = wire::StoreSetRequest {
        job: job.clone(),
        generation,
        key: key(assignment.rank.0),
        value: b"here".to_vec(),
    };
    let met = async {
        by_deadline(client.store_set(own)).await?;
        for rank in 0..assignment.world {
            let other = wire::StoreGetRequest { job: job.clone(), generation, key: key(rank), wait_ms: 2000 };
            let reply = by_deadline(client.store_get(other)).await?.into_inner();
            if reply.value != b"here" {
                return Ok(Err(format!("rank {rank} is not there")));
            }
        }
        Ok(Ok(()))
    };
    match met.await {
        // Whether the generation has ended or the connection, its peers are not to be had.
        Err(End::Lost(why)) => Ok(Err(why)),
        other => other,
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
        validation: None,
    }
}
