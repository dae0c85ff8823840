//! What crosses the wire comes back the same, and what is invalid is named.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::collections::BTreeMap;

use coxswain_proto::{WireError, limits, wire};
use coxswain_types::activity::{Activity, EngineWork};
use coxswain_types::ids::{Generation, Rank, Step, WorkerId};
use coxswain_types::model::{Architecture, Biases, ModelSpec, NormKind, NormPlacement, NormSpec};
use coxswain_types::params::parameter_table;
use coxswain_types::status::{
    Begun, DesiredState, Fault, Leave, LeaveCause, Origin, Pace, Phase, Publish, Published, Saved, SavedFile,
    StepReport, ValidationResult, WorkerInfo, WorkerStatus,
};
use prost::Message;

fn info() -> WorkerInfo {
    WorkerInfo {
        id: WorkerId("worker-3".into()),
        incarnation: u64::MAX,
        host: "alpha".into(),
        pid: 4711,
        cores: 2,
        device: "cpu".into(),
        runtime: "libtorch 2.11.0 avx512".into(),
        serves: None,
    }
}

fn files() -> Vec<SavedFile> {
    vec![
        SavedFile { name: "a.safetensors".into(), bytes: 1 << 40, digest: "d1".into() },
        SavedFile { name: "b.safetensors".into(), bytes: 0, digest: "d2".into() },
    ]
}

fn report(step: u64, loss: f64) -> StepReport {
    StepReport {
        step,
        loss,
        grad_norm: f64::INFINITY,
        learning_rate: 1e-300,
        tokens: 4096,
        tokens_per_second: 0.1 + 0.2,
        step_seconds: f64::MIN_POSITIVE,
        skipped: false,
        loss_scale: None,
        parameter_norms: BTreeMap::new(),
        validation: None,
    }
}

/// A step that overflowed, and names its parameters.
fn skipped(step: u64) -> StepReport {
    let norms = [("model.norm.weight".to_owned(), f64::INFINITY), ("lm_head.weight".to_owned(), 0.5)];
    StepReport {
        skipped: true,
        loss_scale: Some(65536.0),
        parameter_norms: BTreeMap::from(norms),
        ..report(step, f64::NEG_INFINITY)
    }
}

fn status(phase: Phase) -> WorkerStatus {
    let validation = Some(ValidationResult { loss: 2.5, bits_per_byte: 3.1, accuracy: Some(0.75) });
    WorkerStatus {
        info: info(),
        generation: Generation(7),
        assignment_digest: Some("abc".into()),
        phase,
        step: Step(12),
        reports: vec![report(11, 5.25), StepReport { validation, ..report(12, 0.1 + 0.7) }, skipped(13)],
        saved: Some(Saved { step: Step(10), files: files() }),
        published: Some(Published { step: Step(10), digest: "m".into() }),
        peak_tensor_bytes: 3 << 30,
        leaving: Some("it was asked to stop".into()),
        activity: Some(Activity {
            step: Step(8),
            doing: EngineWork::Action("0B7".parse().unwrap()),
            for_ms: 31,
            waits_for: Some(Rank(0)),
            last: Some("0F11".parse().unwrap()),
            still_ms: 30,
        }),
        pace: Some(Pace { step: Step(7), busy_us: 1234 }),
        begun: Some(Begun { step: Step(6), origin: Origin::Memory }),
    }
}

/// Through the bytes, as the network would carry it.
fn carried<M: Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

#[test]
fn a_status_comes_back_the_same() {
    let failed = |fault| Phase::Failed { message: "no space left".into(), fault };
    let path = Fault::Path { peer: Rank(3) };
    let faults = [Fault::Own, Fault::Peer, path, Fault::Leaving, Fault::Device, Fault::Checkpoint];
    let failures = faults.map(failed);
    for phase in [Phase::Idle, Phase::Preparing, Phase::Running, Phase::Done].into_iter().chain(failures) {
        let sent = status(phase);
        let back = WorkerStatus::try_from(carried(&wire::WorkerStatus::from(sent.clone()))).unwrap();
        assert_eq!(back, sent);
        assert_eq!(back.reports[1].loss.to_bits(), (0.1f64 + 0.7).to_bits());
    }
    let bare = WorkerStatus {
        assignment_digest: None,
        reports: vec![],
        saved: None,
        published: None,
        ..status(Phase::Idle)
    };
    let back = WorkerStatus::try_from(carried(&wire::WorkerStatus::from(bare.clone()))).unwrap();
    assert_eq!(back, bare);
}

#[test]
fn all_that_a_rank_can_do_comes_back_the_same() {
    let actions = ["2F0", "0B13", "1I4", "3W11", "1SEND_F3", "0RECV_B1", "10RECV_F2", "3SEND_B7"];
    let actions = actions.map(|action| EngineWork::Action(action.parse().unwrap()));
    let activity = |doing| Activity { doing, last: None, ..status(Phase::Running).activity.unwrap() };
    for doing in actions {
        let sent = activity(doing);
        let back = Activity::try_from(carried(&wire::Activity::from(sent.clone())));
        assert_eq!(back.unwrap(), sent);
    }
    // Of the phases all that the wire knows.
    let phases: Vec<_> = (1..).map_while(|number| wire::EnginePhase::try_from(number).ok()).collect();
    assert_eq!(phases.len(), 11);
    for phase in phases {
        let mut sent = wire::Activity::from(activity(actions[0]));
        sent.doing = Some(wire::activity::Doing::Phase(phase.into()));
        let read = Activity::try_from(carried(&sent)).unwrap();
        assert_eq!(wire::Activity::from(read), sent);
    }
}

#[test]
fn a_report_without_numbers_survives_the_wire() {
    let sent = StepReport { loss: f64::NAN, grad_norm: f64::INFINITY, ..skipped(3) };
    let back = StepReport::from(carried(&wire::StepReport::from(sent.clone())));
    assert!(back.loss.is_nan() && back.grad_norm == f64::INFINITY && back.skipped, "{back:?}");
    assert_eq!(back.parameter_norms, sent.parameter_norms);
}

#[test]
fn reports_with_many_norms_are_sent_a_few_at_once() {
    let parameter_norms: BTreeMap<_, _> = (0..10_000).map(|n| (n.to_string(), 1.0)).collect();
    let reports: Vec<_> = (1..=5)
        .map(|step| StepReport { parameter_norms: parameter_norms.clone(), ..report(step, 1.0) })
        .collect();
    let sent = wire::WorkerStatus::from(WorkerStatus { reports, ..status(Phase::Running) });
    assert_eq!(sent.reports.iter().map(|report| report.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(sent.encoded_len() < limits::MAX_MESSAGE_BYTES);
}

#[test]
fn what_is_wanted_comes_back_the_same() {
    let full = DesiredState {
        revision: 9,
        generation: Generation(7),
        assignment_digest: Some("abc".into()),
        assignment: Some("{\"rank\":0}".into()),
        run_to: Step(100),
        save_after: Step(11),
        publish: Some(Publish { step: Step(10), files: files() }),
        decided: Step(6),
        acknowledged: Step(8),
        leave: Some(Leave { cause: LeaveCause::Dismissed, reason: "the run is over".into() }),
    };
    let drained = Some(Leave { cause: LeaveCause::Drained, reason: String::new() });
    let empty_texts = DesiredState { assignment: Some(String::new()), leave: drained, ..full.clone() };
    for sent in [full, empty_texts, DesiredState::default()] {
        let back = DesiredState::try_from(carried(&wire::DesiredState::from(sent.clone()))).unwrap();
        assert_eq!(back, sent);
    }
}

/// An encoder and a decoder of 1,024 layers each, the most that a job may have, with every vector that a layer can
/// have.
fn largest_model() -> ModelSpec {
    ModelSpec {
        architecture: Architecture::EncoderDecoder,
        encoder_layers: 1024,
        norm: NormSpec::new(NormKind::Layer, NormPlacement::Pre, 1e-5),
        biases: Biases { qkv: true, out: true, ffn: true },
        ..ModelSpec::llama(1024, 64, 4, 4, 128, 256)
    }
}

#[test]
fn the_norms_of_the_largest_model_fit_into_a_status() {
    let names = parameter_table(&largest_model());
    assert!(names.len() > 1 << 14, "{} parameters", names.len());
    let norms: BTreeMap<_, _> = names.into_iter().map(|parameter| (parameter.name, 1.5)).collect();
    let sent = WorkerStatus {
        reports: vec![StepReport { parameter_norms: norms, ..report(11, 5.25) }],
        ..status(Phase::Running)
    };
    let message = wire::WorkerStatus::from(sent.clone());
    assert!(message.encoded_len() < limits::MAX_REQUEST_BYTES, "{} bytes", message.encoded_len());
    assert_eq!(WorkerStatus::try_from(carried(&message)).unwrap(), sent);
}

#[test]
fn what_makes_no_sense_is_named() {
    type Spoil = fn(&mut wire::WorkerStatus);
    let rows: [(&str, Spoil); 8] = [
        ("WorkerStatus.info: missing", |s| s.info = None),
        ("WorkerInfo.id: missing", |s| s.info.as_mut().unwrap().id.clear()),
        ("WorkerStatus.phase: missing", |s| s.phase = 0),
        (
            "WorkerStatus.phase: 99 names nothing that this version knows; are both sides of one version?",
            |s| s.phase = 99,
        ),
        ("WorkerStatus.reports: 257 entries, at most 256 are allowed", |s| {
            s.reports = vec![wire::StepReport::default(); limits::MAX_REPORTS + 1]
        }),
        ("StepReport.parameter_norms: 49153 entries, at most 49152 are allowed", |s| {
            let most = limits::MAX_PARAMETER_NORMS;
            s.reports[2].parameter_norms = (0..=most).map(|n| (n.to_string(), 0.0)).collect();
        }),
        ("SavedFile.digest: missing", |s| s.saved.as_mut().unwrap().files[1].digest.clear()),
        ("Published.digest: missing", |s| s.published.as_mut().unwrap().digest.clear()),
    ];
    for (expected, spoil) in rows {
        let mut message = wire::WorkerStatus::from(status(Phase::Running));
        spoil(&mut message);
        assert_eq!(WorkerStatus::try_from(message).unwrap_err().to_string(), expected);
    }
    let desired = wire::DesiredState { assignment: Some("{}".into()), ..Default::default() };
    assert_eq!(DesiredState::try_from(desired), Err(WireError::Missing("DesiredState.assignment_digest")));
}
