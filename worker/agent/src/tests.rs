//! Stories of a worker's process, and what holds whatever it hears.

use std::path::Path;

use coxswain_core::plan::{encode, sketch};
use coxswain_core::spec::{JobText, parse};
use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::status::{
    Begun, DesiredState, Fault, Leave, LeaveCause, Origin, Pace, Phase, Publish, Saved, WorkerInfo,
};
use proptest::prelude::*;

use super::*;

const SETTINGS: AgentSettings = AgentSettings {
    heartbeat_ms: 1_000,
    retry_ms: 500,
    connect_timeout_ms: 60_000,
    coordinator_timeout_ms: 900_000,
    grace_ms: 20_000,
    reports_max: 4,
};

fn info() -> WorkerInfo {
    WorkerInfo {
        id: WorkerId("w".to_owned()),
        incarnation: 0,
        host: "h".to_owned(),
        pid: 1,
        cores: 1,
        device: "cpu".to_owned(),
        runtime: "r".to_owned(),
        serves: None,
    }
}

/// An assignment's document and its digest.
fn document() -> (String, String) {
    let text = "\
name: tiny
model: {layers: 2, dim: 32, heads: 2, ffn: 64, vocab: 99}
data: {synthetic: {tokens: 10000}}
train: {steps: 20, sequence: 16}
";
    let spec = parse(&JobText { source: "tiny", text, sets: &[], base: Path::new("/") }).unwrap();
    encode(&sketch(&spec, 1).unwrap().assignments[0])
}

fn idle(generation: u64) -> DesiredState {
    DesiredState {
        revision: generation,
        generation: Generation(generation),
        run_to: Step(u64::MAX),
        ..DesiredState::default()
    }
}

fn work(generation: u64, (json, digest): &(String, String)) -> DesiredState {
    DesiredState {
        assignment_digest: Some(digest.clone()),
        assignment: Some(json.clone()),
        ..idle(generation)
    }
}

fn desired(desired: DesiredState) -> AgentInput {
    AgentInput::Coordinator(CoordinatorNews::DesiredState(Box::new(desired)))
}

fn leave(cause: LeaveCause) -> AgentInput {
    desired(DesiredState { leave: Some(Leave { cause, reason: "so".to_owned() }), ..idle(9) })
}

fn accepted() -> AgentInput {
    AgentInput::Coordinator(CoordinatorNews::Accepted)
}

fn lost() -> AgentInput {
    AgentInput::Coordinator(CoordinatorNews::Lost("it closed the connection".to_owned()))
}

fn refused() -> AgentInput {
    AgentInput::Coordinator(CoordinatorNews::Refused("another worker's name".to_owned()))
}

fn busy() -> AgentInput {
    AgentInput::Coordinator(CoordinatorNews::Busy("more than 20 calls a second".to_owned()))
}

fn ended(phase: Phase) -> AgentInput {
    AgentInput::Engine(vec![EngineNews::Ended(phase)])
}

fn failed(fault: Fault) -> Phase {
    Phase::Failed { message: "so".to_owned(), fault }
}

/// A worker that a coordinator has taken in at 0 ms.
fn taken_in() -> Agent {
    let mut agent = Agent::new(info(), SETTINGS, 0);
    assert_eq!(agent.on(AgentInput::Clock, 0), [AgentAction::Register]);
    let registered = AgentInput::Coordinator(CoordinatorNews::Registered { incarnation: 7 });
    assert_eq!(agent.on(registered, 0), [AgentAction::Open]);
    assert_eq!(agent.on(accepted(), 0), [AgentAction::Say]);
    assert_eq!(agent.status().info.incarnation, 7);
    agent
}

/// A worker whose engine works in generation 1 since 0 ms.
fn at_work() -> Agent {
    let mut agent = taken_in();
    let actions = agent.on(desired(work(1, &document())), 0);
    assert!(matches!(&actions[..], [AgentAction::Start(_), AgentAction::Say]), "{actions:?}");
    agent
}

fn exit(actions: &[AgentAction]) -> Option<&Result<Departure, AgentError>> {
    match actions.last() {
        Some(AgentAction::Exit(result)) => Some(result),
        _ => None,
    }
}

#[test]
fn a_worker_shows_its_old_generation_until_its_engine_has_ended() {
    let mut agent = at_work();
    for (generation, at_ms) in [(2, 0), (3, 10_000)] {
        assert_eq!(
            agent.on(desired(idle(generation)), at_ms),
            [AgentAction::EndEngine, AgentAction::Say],
            "the engine is told to end"
        );
        assert_eq!(agent.status().generation, Generation(1));
        assert!(agent.status().assignment_digest.is_some());
    }
    assert_eq!(agent.on(ended(failed(Fault::Peer)), 20_000), [AgentAction::Say]);
    let status = agent.status();
    assert_eq!(
        (status.generation, status.assignment_digest, status.phase),
        (Generation(3), None, Phase::Idle),
        "the newest desired state counts, and an engine that ended as told has not failed"
    );
}

#[test]
fn an_engine_that_ended_while_there_was_no_coordinator_is_followed_once_there_is_one() {
    let mut agent = at_work();
    agent.on(desired(idle(3)), 0);
    agent.on(lost(), 10);
    assert_eq!(agent.on(ended(Phase::Done), 20), []);
    assert_eq!(agent.status().generation, Generation(1));
    agent.on(AgentInput::Clock, 510);
    assert_eq!(agent.on(accepted(), 520), [AgentAction::Say]);
    assert_eq!(agent.status().generation, Generation(3));
}

#[test]
fn an_engine_that_hangs_ends_its_process() {
    // The longest stretch without a look, and what an engine gets to end.
    for (stretch_ms, limit_ms) in
        [(0, 30_000), (5_000, 30_000), (20_000, 80_000), (100_000, 400_000), (u64::MAX, 600_000)]
    {
        assert_eq!(time_to_end_ms(stretch_ms), limit_ms);
        let mut agent = at_work();
        agent.note_stretch(stretch_ms);
        agent.on(desired(idle(2)), 0);
        let (now_ms, error) = loop {
            let now_ms = agent.deadline_ms().unwrap();
            let actions = agent.on(AgentInput::Clock, now_ms);
            if let Some(result) = exit(&actions) {
                break (now_ms, result.clone());
            }
        };
        assert_eq!((now_ms, error), (limit_ms, Err(AgentError::Hung { limit_s: limit_ms / 1000 })));
    }
}

#[test]
fn a_coordinator_is_looked_for_as_long_as_it_may_still_come() {
    let never = || Agent::new(info(), SETTINGS, 0);
    let known = || {
        let mut agent = at_work();
        agent.on(lost(), 1_000);
        agent
    };
    let lost_it = || AgentError::Lost { why: "it closed the connection".to_owned(), at_work: true };
    let untaken = |why: &str| AgentError::Refused(why.to_owned());
    type Case = (&'static str, Agent, AgentInput, u64, Option<AgentError>);
    let rows: Vec<Case> = vec![
        ("a busy one may take a new worker soon", never(), busy(), 59_999, None),
        ("not for ever", never(), busy(), 60_000, Some(untaken("more than 20 calls a second"))),
        (
            "one that refuses a new worker does so again",
            never(),
            refused(),
            0,
            Some(untaken("another worker's name")),
        ),
        ("one that is away may come back", known(), refused(), 900_999, None),
        ("one that is busy too", known(), busy(), 900_999, None),
        ("not for ever, and the first reason counts", known(), refused(), 901_000, Some(lost_it())),
    ];
    for (case, mut agent, input, now_ms, expected) in rows {
        let tries = agent.on(AgentInput::Clock, now_ms);
        assert!(matches!(&tries[..], [AgentAction::Register | AgentAction::Open]), "{case}: {tries:?}");
        let actions = agent.on(input, now_ms);
        let error = exit(&actions).cloned().and_then(Result::err);
        assert_eq!(error, expected, "{case}");
        if expected.is_none() {
            assert_eq!(agent.deadline_ms(), Some(now_ms + 500), "{case}: another try follows");
        }
    }
}

#[test]
fn a_worker_that_was_told_to_end_with_its_coordinator_does_so_at_once() {
    let settings = AgentSettings { coordinator_timeout_ms: 0, ..SETTINGS };
    let mut agent = Agent::new(info(), settings, 0);
    agent.on(AgentInput::Clock, 0);
    agent.on(accepted(), 0);
    let gone = AgentError::Lost { why: "it closed the connection".to_owned(), at_work: false };
    assert_eq!(agent.on(lost(), 5), [AgentAction::Exit(Err(gone))]);
}

#[test]
fn who_asks_to_stop_waits_for_the_end_of_a_step_and_asks_again_to_stop_at_once() {
    use StopRequest::{Interrupt, NotRenewed, Terminate};
    let stop = |agent: &mut Agent, stop, now_ms| agent.on(AgentInput::Stop(stop), now_ms);
    let asked = |stop| AgentAction::Exit(Ok(Departure::Asked(stop)));

    let mut agent = taken_in();
    assert_eq!(stop(&mut agent, Terminate, 0).last(), Some(&asked(Terminate)), "nothing is left to do");

    let mut agent = at_work();
    let told = [AgentAction::Tell(AgentNotice::Leaving(Terminate)), AgentAction::Say];
    assert_eq!(stop(&mut agent, Terminate, 100), told);
    assert_eq!(agent.status().leaving.as_deref(), Some("it was asked to stop (SIGTERM)"));
    let mut again = agent.clone();
    let actions = stop(&mut again, Interrupt, 200);
    assert_eq!(actions[1..], [AgentAction::SayLast, asked(Interrupt)]);
    let why = "it was interrupted (SIGINT)".to_owned();
    assert_eq!(again.status().phase, Phase::Failed { message: why, fault: Fault::Leaving });
    // Its place is taken at the end of a step.
    let mut replaced = agent.clone();
    replaced.on(desired(idle(2)), 300);
    assert_eq!(replaced.on(ended(Phase::Done), 400).last(), Some(&asked(Terminate)));
    // It is not.
    let actions = agent.on(AgentInput::Clock, 20_100);
    assert_eq!(actions[1..], [AgentAction::SayLast, asked(Terminate)]);

    let mut agent = at_work();
    agent.on(lost(), 0);
    assert_eq!(stop(&mut agent, NotRenewed, 1), [asked(NotRenewed)], "it has no coordinator to wait for");
    assert_eq!(Departure::Asked(NotRenewed).code(), 1);
}

#[test]
fn a_worker_leaves_as_its_coordinator_says() {
    use LeaveCause::{Asked, Dismissed, Drained, Refused};
    let rows = [
        (Drained, false, Departure::Finished),
        (Dismissed, true, Departure::Finished),
        (Asked, true, Departure::Asked(StopRequest::Terminate)),
        (Asked, false, Departure::Refused),
        (Refused, true, Departure::Refused),
    ];
    for (cause, leaving, departure) in rows {
        let mut agent = at_work();
        if leaving {
            agent.on(AgentInput::Stop(StopRequest::Terminate), 0);
        }
        assert_eq!(exit(&agent.on(leave(cause), 1)), Some(&Ok(departure)), "{cause:?}");
    }
}

#[test]
fn a_broken_device_ends_the_process_once_it_is_said() {
    let mut agent = at_work();
    let actions = agent.on(ended(failed(Fault::Device)), 5);
    let broken = AgentError::Broken("so".to_owned());
    assert_eq!(actions, [AgentAction::SayLast, AgentAction::Exit(Err(broken))]);
    let mut agent = at_work();
    assert_eq!(agent.on(ended(failed(Fault::Peer)), 5), [AgentAction::Say]);
}

#[test]
fn an_assignment_that_cannot_be_read_is_a_failed_phase() {
    let (json, _) = document();
    let digest = blake3::hash(b"{}").to_hex().to_string();
    let rows = [
        (json, digest.clone(), "the assignment does not have the digest it came with"),
        ("{}".to_owned(), digest, "reading the assignment: missing field"),
    ];
    for (json, digest, expected) in rows {
        let mut agent = taken_in();
        assert_eq!(agent.on(desired(work(1, &(json, digest))), 0), [AgentAction::Say]);
        let Phase::Failed { message, fault: Fault::Own } = agent.status().phase else { panic!("{expected}") };
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn a_document_that_is_still_to_come_changes_nothing() {
    let mut agent = at_work();
    let unread = DesiredState { assignment_digest: Some("other".to_owned()), ..idle(2) };
    assert_eq!(agent.on(desired(unread), 0), [AgentAction::Say]);
    let outdated = AgentAction::Tell(AgentNotice::Outdated(Generation(0)));
    assert_eq!(agent.on(desired(idle(0)), 0), [outdated, AgentAction::Say]);
    assert_eq!(agent.status().generation, Generation(1));
}

#[test]
fn a_manifest_is_published_once_for_its_assignment() {
    let mut agent = at_work();
    let publish = |step| DesiredState {
        publish: Some(Publish { step: Step(step), files: Vec::new() }),
        ..work(1, &document())
    };
    let begun = |actions: &[AgentAction]| {
        actions.iter().find_map(|action| match action {
            AgentAction::Publish(publication) => Some((publication.stint, publication.publish.step)),
            _ => None,
        })
    };
    let (stint, step) = begun(&agent.on(desired(publish(5)), 0)).unwrap();
    assert_eq!(step, Step(5));
    assert_eq!(begun(&agent.on(desired(publish(5)), 1)), None, "it is under way");
    let result = Ok("digest".to_owned());
    let mut late = agent.clone();
    agent.on(AgentInput::Published { stint, step, result: result.clone() }, 2);
    assert_eq!(agent.status().published.map(|published| published.step), Some(Step(5)));
    assert_eq!(begun(&agent.on(desired(publish(4)), 3)), None, "a newer one is");
    // Another assignment has no part in what the one before it published.
    late.on(desired(idle(2)), 2);
    late.on(ended(Phase::Done), 3);
    late.on(AgentInput::Published { stint, step, result }, 4);
    assert_eq!(late.status().published, None);
    // What could not be published is what the run has failed by, whatever the engine says after it.
    let result = Err("the disk is full".to_owned());
    agent.on(AgentInput::Published { stint, step: Step(6), result }, 5);
    agent.on(ended(Phase::Done), 6);
    let full = Phase::Failed { message: "the disk is full".to_owned(), fault: Fault::Own };
    assert_eq!(agent.status().phase, full);
}

#[test]
fn checkpoints_wait_until_they_are_decided() {
    let mut agent = at_work();
    let begun = Begun { step: Step(3), origin: Origin::Initial };
    let saved = |step| EngineNews::Saved(Saved { step: Step(step), files: Vec::new() });
    let stepped = EngineNews::Stepped { pace: Pace { step: Step(4), busy_us: 1 }, peak_tensor_bytes: 9 };
    let mut news = vec![EngineNews::Ready(begun, Vec::new()), stepped];
    news.extend((4..30).map(saved));
    agent.on(AgentInput::Engine(news), 0);
    let status = agent.status();
    assert_eq!((status.phase, status.step, status.peak_tensor_bytes), (Phase::Running, Step(4), 9));
    let oldest = |agent: &Agent| agent.status().saved.map(|saved| saved.step.0);
    assert_eq!(oldest(&agent), Some(14), "of so many the newest sixteen wait");
    for (decided, left) in [(13, Some(14)), (20, Some(21)), (29, None)] {
        agent.on(desired(DesiredState { decided: Step(decided), ..work(1, &document()) }), 0);
        assert_eq!(oldest(&agent), left);
    }
}

/// Inputs in the order in which a caller may give them: what comes from an engine needs one.
fn inputs() -> impl Strategy<Value = Vec<(u8, u64)>> {
    proptest::collection::vec((0..12_u8, 0..40_000_u64), 1..60)
}

proptest! {
    /// At most one engine works, each that starts has ended before the next does, its process ends once, and a
    /// generation never goes back.
    #[test]
    fn engines_take_turns(inputs in inputs()) {
        let document = document();
        let mut agent = Agent::new(info(), SETTINGS, 0);
        let (mut now_ms, mut works, mut generation, mut stands) = (0, false, 1, false);
        for (what, passes_ms) in inputs {
            now_ms += passes_ms;
            let input = match what {
                0..=2 => AgentInput::Clock,
                3 => { stands = true; accepted() }
                4 if stands => { stands = false; lost() }
                5 if !stands => busy(),
                6 if stands => { generation += 1; desired(idle(generation)) }
                7 | 8 if stands => { generation += 1; desired(work(generation, &document)) }
                9 | 10 if works => { works = false; ended(Phase::Done) }
                11 => AgentInput::Stop(StopRequest::Terminate),
                _ => continue,
            };
            let before = agent.status().generation;
            let actions = agent.on(input, now_ms);
            for action in &actions {
                if let AgentAction::Start(_) = action {
                    prop_assert!(!works, "an engine starts beside another");
                    works = true;
                }
            }
            prop_assert!(agent.status().generation >= before);
            let exits = actions.iter().filter(|action| matches!(action, AgentAction::Exit(_))).count();
            prop_assert!(exits <= 1);
            if exits == 1 {
                prop_assert!(exit(&actions).is_some(), "it is the last action");
                return Ok(());
            }
            let says = actions.contains(&AgentAction::Say);
            prop_assert_eq!(says, stands, "whoever is heard is told");
        }
    }
}
