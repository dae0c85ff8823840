use coxswain_types::ids::WorkerId;
use tonic::transport::Endpoint;

use super::*;

fn directive(generation: u64) -> DesiredState {
    DesiredState {
        revision: generation,
        generation: Generation(generation),
        assignment_digest: None,
        assignment: None,
        run_to: Step(u64::MAX),
        save_after: Step(0),
        publish: None,
        decided: Step(0),
        acknowledged: Step(0),
        leave: None,
    }
}

/// A worker that is at work in generation 1, whose engine ends once the sender says so.
fn at_work() -> (Agent, std::sync::mpsc::Sender<()>) {
    let info = WorkerInfo {
        id: WorkerId("w".to_owned()),
        incarnation: 1,
        host: "h".to_owned(),
        pid: 1,
        cores: 1,
        device: "cpu".to_owned(),
        runtime: "r".to_owned(),
        serves: None,
    };
    let mut status = WorkerStatus::idle(info.clone(), Generation(1));
    (status.assignment_digest, status.phase) = (Some("digest".to_owned()), Phase::Running);
    let mut rank = Rank::start().unwrap();
    let (end, ended) = std::sync::mpsc::channel();
    rank.begin(Box::new(move |_| ended.recv().unwrap_or(()))).unwrap();
    let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
    let agent = Agent {
        info,
        client: coxswain_transport::cluster_client(channel),
        port: DataPort::local().unwrap(),
        generation: Generation(1),
        shared: Shared::new(status),
        assignment: None,
        rank,
        publishing: None,
        ending: None,
        longest: Duration::ZERO,
        known: true,
        leaving: None,
        grace: Duration::ZERO,
    };
    (agent, end)
}

#[tokio::test(start_paused = true)]
async fn a_worker_shows_its_old_generation_until_its_engine_has_ended() {
    let (mut agent, end) = at_work();
    for generation in [2, 3] {
        agent.obey(directive(generation));
        tokio::time::sleep(ENGINE_END_MIN / 3).await;
        let status = agent.message();
        assert_eq!((status.generation, status.assignment_digest.as_deref()), (1, Some("digest")));
    }
    assert!(agent.shared.lock().dismissed);
    end.send(()).unwrap();
    agent.rank.ended().await;
    agent.engine_ended().await.unwrap();
    let ending = agent.ending.take().unwrap();
    agent.obey(ending.next);
    let status = agent.message();
    assert_eq!((status.generation, status.assignment_digest), (3, None), "the newest directive counts");
}

#[tokio::test(start_paused = true)]
async fn a_directive_that_comes_once_the_engine_has_ended_leaves_nothing_to_follow() {
    let (mut agent, end) = at_work();
    agent.obey(directive(2));
    end.send(()).unwrap();
    agent.rank.ended().await;
    agent.obey(directive(3));
    assert_eq!((agent.message().generation, agent.ending.is_none()), (3, true));
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_hangs_ends_its_process() {
    let (mut agent, _end) = at_work();
    agent.obey(directive(2));
    let error = agent.engine_ended().await.unwrap_err().to_string();
    assert!(error.contains("did not within 30 s"), "{error}");
}

#[test]
fn an_engine_gets_time_to_end_by_what_it_takes_to_look() {
    let seconds = |longest: u64| time_to_end(Duration::from_secs(longest)).as_secs();
    assert_eq!([0, 5, 20, 100, 1000, u64::MAX].map(seconds), [30, 30, 80, 400, 600, 600]);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_not_renewed_asks_to_stop_once() {
    let (not_renewed, refused) = mpsc::channel(1);
    let mut signals = Signals::listen(refused).unwrap();
    not_renewed.send(()).await.unwrap();
    drop(not_renewed);
    let stop = signals.next().await;
    assert_eq!((stop, End::Asked(stop).code()), (Stop::NotRenewed, 1));
    tokio::time::timeout(Duration::from_secs(60), signals.next()).await.unwrap_err();
}

#[test]
fn a_coordinator_that_is_busy_is_asked_again() {
    let busy = |status| matches!(Conversation::none(&status), Conversation::Busy(_));
    assert!(busy(tonic::Status::resource_exhausted("more than 20 calls a second")));
    assert!(!busy(tonic::Status::permission_denied("another worker's name")));
}
