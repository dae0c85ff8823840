//! The state machine: an input and the time give actions.

use std::sync::Arc;

use coxswain_types::Assignment;
use coxswain_types::ids::{Generation, Step};
use coxswain_types::status::{
    DesiredState, Directive, Fault, Leave, LeaveCause, Phase, WorkerInfo, WorkerStatus,
};

use crate::assignment::AssignmentState;
use crate::contact::{Contact, ContactDue, GivesUp, Missed};
use crate::messages::{AgentAction, AgentInput, AgentNotice, CoordinatorNews, EngineNews, Publication};
use crate::{AgentError, Departure, StopRequest};

/// An engine that is told to end gets this many times its longest stretch of work without a check. It checks between
/// parts of a layer, and the next part may take longer than any before.
const ENGINE_END_STRETCHES: u64 = 4;
/// The lower bound of that time, for an engine still in its first action.
const ENGINE_END_MIN_MS: u64 = 30_000;
/// The upper bound: beyond it the engine counts as hung, and the next generation is waiting.
const ENGINE_END_MAX_MS: u64 = 600_000;

/// How a worker keeps in contact.
#[derive(Clone, Copy, Debug)]
pub struct AgentSettings {
    /// Between two statuses where nothing changes.
    pub heartbeat_ms: u64,
    /// Between two tries to reach the coordinator.
    pub retry_ms: u64,
    /// How long a coordinator that has never taken this worker in is looked for.
    pub connect_timeout_ms: u64,
    /// How long the worker goes on without its coordinator; 0 ends with it.
    pub coordinator_timeout_ms: u64,
    /// How long a worker that is asked to stop waits for the end of a step.
    pub grace_ms: u64,
    /// The most reports in one status.
    pub reports_max: usize,
}

/// A worker's process. Times are of one clock that never goes back, whose zero is the caller's.
#[derive(Clone, Debug)]
pub struct Agent {
    settings: AgentSettings,
    info: WorkerInfo,
    contact: Contact,
    /// Grows with each assignment that it takes or lets go.
    stint: u64,
    state: AssignmentState,
    engine: EngineState,
    /// The longest that an engine has worked without a look at what is wanted.
    longest_stretch_ms: u64,
    /// Why it was asked to stop, and until when it waits for the end of a step.
    leaving: Option<(StopRequest, u64)>,
}

/// Whether an engine works.
#[derive(Clone, Debug)]
enum EngineState {
    /// None does.
    Ended,
    /// On the assignment at hand.
    Works,
    /// It was told to end.
    Ends { next: Box<DesiredState>, until_ms: u64, limit_ms: u64 },
    /// It has ended as told, and this is to follow once there is a coordinator.
    Followed { next: Box<DesiredState> },
}

/// How long an engine gets to end that has worked for this long without a look at what is wanted.
pub fn time_to_end_ms(longest_stretch_ms: u64) -> u64 {
    longest_stretch_ms.saturating_mul(ENGINE_END_STRETCHES).clamp(ENGINE_END_MIN_MS, ENGINE_END_MAX_MS)
}

impl Agent {
    /// A process that has just started. Its first deadline is now.
    pub fn new(info: WorkerInfo, settings: AgentSettings, now_ms: u64) -> Agent {
        Agent {
            settings,
            contact: Contact::new(now_ms),
            stint: 0,
            state: AssignmentState::idle(info.clone(), Generation(0)),
            info,
            engine: EngineState::Ended,
            longest_stretch_ms: 0,
            leaving: None,
        }
    }

    /// What this worker says of itself. What its engine does at the moment is the caller's to add.
    pub fn status(&self) -> WorkerStatus {
        let mut status = self.state.status.clone();
        status.reports.truncate(self.settings.reports_max);
        status.leaving = self.leaving.map(|(stop, _)| stop.why().to_owned());
        status
    }

    /// What is asked of all ranks, as far as this one has heard. The engine looks at it before each step.
    pub fn directive(&self) -> Directive {
        self.state.directive()
    }

    /// The time of the next [`AgentInput::Clock`], where one is due at some time.
    pub fn deadline_ms(&self) -> Option<u64> {
        let engine = match self.engine {
            EngineState::Ends { until_ms, .. } if self.contact.stands() => Some(until_ms),
            _ => None,
        };
        let grace = self.leaving.map(|(_, until_ms)| until_ms);
        [self.contact.deadline_ms(), engine, grace].into_iter().flatten().min()
    }

    /// Remembers for how long the engine has worked without a look at what is wanted: an engine that is told to end
    /// gets a multiple of it.
    pub fn note_stretch(&mut self, stretch_ms: u64) {
        self.longest_stretch_ms = self.longest_stretch_ms.max(stretch_ms);
    }

    /// What to do about an input.
    pub fn on(&mut self, input: AgentInput, now_ms: u64) -> Vec<AgentAction> {
        let mut out = Vec::new();
        match input {
            AgentInput::Clock => self.on_clock(now_ms, &mut out),
            AgentInput::Coordinator(news) => self.on_coordinator(news, now_ms, &mut out),
            AgentInput::Engine(news) => self.on_engine(news, now_ms, &mut out),
            AgentInput::Published { stint, step, result } => self.on_published(stint, step, result),
            AgentInput::Stop(stop) => self.on_stop(stop, now_ms, &mut out),
        }
        self.conclude(&mut out);
        out
    }

    fn on_clock(&mut self, now_ms: u64, out: &mut Vec<AgentAction>) {
        if let EngineState::Ends { until_ms, limit_ms, .. } = self.engine
            && until_ms <= now_ms
            && self.contact.stands()
        {
            return out.push(AgentAction::Exit(Err(AgentError::Hung { limit_s: limit_ms / 1000 })));
        }
        if let Some((stop, _)) = self.leaving.filter(|(_, until_ms)| *until_ms <= now_ms) {
            return self.leave_now(stop, "its time to leave is over", out);
        }
        if self.contact.due(&self.settings, now_ms) == Some(ContactDue::Try) {
            out.push(if self.info.incarnation == 0 { AgentAction::Register } else { AgentAction::Open });
        }
    }

    fn on_coordinator(&mut self, news: CoordinatorNews, now_ms: u64, out: &mut Vec<AgentAction>) {
        let missed = match news {
            CoordinatorNews::Registered { incarnation } => {
                self.info.incarnation = incarnation;
                self.state.status.info.incarnation = incarnation;
                return out.push(AgentAction::Open);
            }
            CoordinatorNews::Accepted => {
                self.contact.made(&self.settings, now_ms);
                return self.follow(now_ms, out);
            }
            CoordinatorNews::DesiredState(desired) => {
                return match &desired.leave {
                    Some(leave) => self.sent_away(leave, out),
                    None => self.obey(*desired, now_ms, out),
                };
            }
            CoordinatorNews::Busy(why) => Missed::Busy(why),
            CoordinatorNews::Refused(why) => Missed::Refused(why),
            CoordinatorNews::Lost(why) => Missed::Lost(why),
        };
        let error = match self.contact.missed(missed, &self.settings, now_ms) {
            Ok(notice) => return out.extend(notice.map(AgentAction::Tell)),
            Err(GivesUp::NeverTaken(why)) => AgentError::Refused(why),
            Err(GivesUp::Alone(why)) => AgentError::Lost { why, at_work: self.state.assignment.is_some() },
        };
        out.push(AgentAction::Exit(Err(error)));
    }

    fn on_engine(&mut self, news: Vec<EngineNews>, now_ms: u64, out: &mut Vec<AgentAction>) {
        for news in news {
            match (&news, std::mem::replace(&mut self.engine, EngineState::Ended)) {
                // An engine that was told to end did not fail, whatever its last operation says.
                (EngineNews::Ended(_), EngineState::Ends { next, .. }) => {
                    self.engine = EngineState::Followed { next };
                }
                (EngineNews::Ended(_), _) => self.state.note(news),
                (_, engine) => {
                    self.engine = engine;
                    self.state.note(news);
                }
            }
        }
        if self.contact.stands() {
            self.follow(now_ms, out);
        }
    }

    fn on_published(&mut self, stint: u64, step: Step, result: Result<String, String>) {
        // That of an assignment that is over has come too late.
        if stint == self.stint {
            self.state.published(step, result);
        }
    }

    fn on_stop(&mut self, stop: StopRequest, now_ms: u64, out: &mut Vec<AgentAction>) {
        if !self.contact.stands() {
            return out.push(AgentAction::Exit(Ok(Departure::Asked(stop))));
        }
        if self.leaving.is_some() {
            return self.leave_now(stop, stop.why(), out);
        }
        self.leaving = Some((stop, now_ms + self.settings.grace_ms));
        out.push(AgentAction::Tell(AgentNotice::Leaving(stop)));
    }

    /// Leaves in the middle of a step: says so, that the coordinator can name the reason.
    fn leave_now(&mut self, stop: StopRequest, why: &str, out: &mut Vec<AgentAction>) {
        out.push(AgentAction::Tell(AgentNotice::LeavingNow(why.to_owned())));
        if self.state.assignment.is_some() && self.contact.stands() {
            self.state.fail(why.to_owned(), Fault::Leaving);
            out.push(AgentAction::SayLast);
        }
        out.push(AgentAction::Exit(Ok(Departure::Asked(stop))));
    }

    /// The coordinator sends this process away.
    fn sent_away(&self, leave: &Leave, out: &mut Vec<AgentAction>) {
        let departure = match (leave.cause, self.leaving) {
            (LeaveCause::Drained | LeaveCause::Dismissed, _) => Departure::Finished,
            (LeaveCause::Asked, Some((stop, _))) => Departure::Asked(stop),
            (LeaveCause::Asked, None) | (LeaveCause::Refused, _) => Departure::Refused,
        };
        out.push(AgentAction::Tell(AgentNotice::SentAway { leave: leave.clone(), departure }));
        out.push(AgentAction::Exit(Ok(departure)));
    }

    /// Makes what was to follow an engine so, once that has ended.
    fn follow(&mut self, now_ms: u64, out: &mut Vec<AgentAction>) {
        match std::mem::replace(&mut self.engine, EngineState::Ended) {
            EngineState::Followed { next } => self.obey(*next, now_ms, out),
            engine => self.engine = engine,
        }
    }

    /// Makes what is desired so.
    fn obey(&mut self, desired: DesiredState, now_ms: u64, out: &mut Vec<AgentAction>) {
        let status = &self.state.status;
        if desired.generation < status.generation {
            return out.push(AgentAction::Tell(AgentNotice::Outdated(desired.generation)));
        }
        if desired.assignment_digest != status.assignment_digest {
            // The document comes with the answer to a status that does not name its digest.
            if desired.assignment_digest.is_some() && desired.assignment.is_none() {
                return;
            }
            if matches!(self.engine, EngineState::Works | EngineState::Ends { .. }) {
                return self.end_engine(desired, now_ms, out);
            }
            // What was to follow the engine that has ended is out of date.
            self.engine = EngineState::Ended;
            self.stint += 1;
            match (&desired.assignment_digest, &desired.assignment) {
                (Some(digest), Some(document)) => self.begin(&desired, digest, document, out),
                _ => self.state = AssignmentState::idle(self.info.clone(), desired.generation),
            }
        }
        self.state.hear(&desired);
        let Some(publish) = desired.publish.filter(|publish| self.state.begins_to_publish(publish)) else {
            return;
        };
        if let Some(assignment) = self.state.assignment.clone() {
            let publication = Publication { stint: self.stint, assignment, publish };
            out.push(AgentAction::Publish(Box::new(publication)));
        }
    }

    /// Takes an assignment. One that cannot be read shows as a failed phase.
    fn begin(&mut self, desired: &DesiredState, digest: &str, document: &str, out: &mut Vec<AgentAction>) {
        self.state = AssignmentState::preparing(self.info.clone(), desired.generation, digest);
        match read(digest, document) {
            Ok(assignment) => {
                let assignment = Arc::new(assignment);
                self.state.assignment = Some(Arc::clone(&assignment));
                self.engine = EngineState::Works;
                out.push(AgentAction::Start(assignment));
            }
            Err(message) => self.state.fail(message, Fault::Own),
        }
    }

    /// Tells the engine to end, to make what is desired so after it. The newest counts.
    fn end_engine(&mut self, desired: DesiredState, now_ms: u64, out: &mut Vec<AgentAction>) {
        out.push(AgentAction::EndEngine);
        if let EngineState::Ends { next, .. } = &mut self.engine {
            **next = desired;
            return;
        }
        let limit_ms = time_to_end_ms(self.longest_stretch_ms);
        self.engine = EngineState::Ends { next: Box::new(desired), until_ms: now_ms + limit_ms, limit_ms };
    }

    /// What follows from how the worker is now: it leaves, or ends, or says so.
    fn conclude(&self, out: &mut Vec<AgentAction>) {
        if !self.contact.stands() || matches!(out.last(), Some(AgentAction::Exit(_))) {
            return;
        }
        if let Some((stop, _)) = self.leaving.filter(|_| self.state.assignment.is_none()) {
            out.push(AgentAction::Tell(AgentNotice::NothingLeft));
            return out.push(AgentAction::Exit(Ok(Departure::Asked(stop))));
        }
        if let Phase::Failed { message, fault: Fault::Device } = &self.state.status.phase {
            out.push(AgentAction::SayLast);
            return out.push(AgentAction::Exit(Err(AgentError::Broken(message.clone()))));
        }
        out.push(AgentAction::Say);
    }
}

/// Reads an assignment, whose digest must be the one it came with.
fn read(digest: &str, document: &str) -> Result<Assignment, String> {
    if blake3::hash(document.as_bytes()).to_hex().as_str() != digest {
        return Err("the assignment does not have the digest it came with".to_owned());
    }
    serde_json::from_str(document).map_err(|error| format!("reading the assignment: {error}"))
}
