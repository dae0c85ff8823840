//! Bytes that are not a message, or one that says nonsense: each is refused by name, and nothing panics.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::collections::BTreeMap;

use coxswain_proto::{WireError, limits, wire};
use coxswain_types::status::{DesiredState, WorkerStatus};
use proptest::prelude::*;
use prost::Message;

/// A status in which every field is set.
fn status() -> wire::WorkerStatus {
    let files =
        || vec![wire::SavedFile { name: "model-g1-r000.safetensors".into(), bytes: 100, digest: "d".into() }];
    let report = |step| wire::StepReport {
        step,
        loss: 2.5,
        grad_norm: 1.0,
        learning_rate: 1e-3,
        tokens: 64,
        tokens_per_second: 640.0,
        step_seconds: 0.1,
        validation: Some(wire::ValidationResult { loss: 2.0, bits_per_byte: 3.0, accuracy: Some(7.0) }),
        skipped: true,
        loss_scale: Some(65536.0),
        parameter_norms: [("w".to_owned(), 1.0), ("v".to_owned(), 2.0)].into(),
    };
    wire::WorkerStatus {
        info: Some(wire::WorkerInfo {
            id: "worker-3".into(),
            incarnation: 9,
            host: "alpha".into(),
            pid: 7,
            cores: 2,
            device: "cpu".into(),
            runtime: "libtorch".into(),
        }),
        generation: 3,
        assignment_digest: Some("abc".into()),
        phase: wire::Phase::Failed.into(),
        failure: "no space left".into(),
        step: 12,
        reports: vec![report(11), report(12)],
        saved: Some(wire::Saved { step: 10, files: files() }),
        published: Some(wire::Published { step: 10, digest: "m".into() }),
        peak_tensor_bytes: 1 << 30,
        fault: wire::Fault::Peer.into(),
        leaving: Some("SIGTERM".into()),
        activity: Some(wire::Activity {
            step: 12,
            doing: Some(wire::activity::Doing::Action(wire::Action {
                stage: 0,
                kind: wire::ActionKind::Backward.into(),
                micro_batch: 7,
            })),
            for_ms: 3,
            waits_for: Some(1),
            last: None,
            still_ms: 0,
        }),
        pace: Some(wire::Pace { step: 12, busy_us: 5 }),
        begun: Some(wire::Begun { step: 9, origin: wire::Origin::Memory.into() }),
        unreachable: None,
    }
}

fn desired() -> wire::DesiredState {
    wire::DesiredState {
        revision: 1 << 20,
        generation: 3,
        assignment_digest: Some("abc".into()),
        assignment: Some("{}".into()),
        run_to: 100,
        save_after: 11,
        publish: Some(wire::Publish { step: 10, files: status().saved.unwrap().files }),
        acknowledged: 9,
        leave: Some(wire::Leave { cause: 1, reason: "drained".into() }),
        decided: 10,
    }
}

/// Decodes bytes as every message that comes from outside, and checks what they say.
fn check(bytes: &[u8]) -> Result<(), WireError> {
    let said = wire::WorkerStatus::decode(bytes).map(WorkerStatus::try_from);
    let wanted = wire::DesiredState::decode(bytes).map(DesiredState::try_from);
    let _ = wire::SubmitRequest::decode(bytes);
    let _ = wire::StoreSetRequest::decode(bytes);
    let _ = wire::ListRequest::decode(bytes);
    let _ = wire::CancelRequest::decode(bytes);
    if let Ok(Ok(status)) = &said {
        assert!(!status.info.id.0.is_empty() && status.reports.len() <= limits::MAX_REPORTS);
        // What was taken in can be said again.
        let again = WorkerStatus::try_from(wire::WorkerStatus::from(status.clone())).unwrap();
        assert_eq!(format!("{again:?}"), format!("{status:?}"));
    }
    if let Ok(Ok(desired)) = &wanted {
        DesiredState::try_from(wire::DesiredState::from(desired.clone())).unwrap();
    }
    said.unwrap_or(Err(WireError::Missing("all"))).map(drop)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn no_bytes_make_a_message_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = check(&bytes);
    }

    #[test]
    fn no_change_of_a_message_makes_it_panic(
        which in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let mut bytes = if which { status().encode_to_vec() } else { desired().encode_to_vec() };
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = check(&bytes);
    }
}

/// The most memory that this process ever had, in bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// A change to a status.
type Change = fn(&mut wire::WorkerStatus);

#[test]
fn words_are_bounded_and_names_are_of_one_line() {
    let rows: [(&str, Change); 10] = [
        ("WorkerInfo.id: has control", |status| status.info.as_mut().unwrap().id = "a\nfake-1 done".into()),
        ("WorkerInfo.host: has control", |status| status.info.as_mut().unwrap().host = "\u{1b}[2J".into()),
        ("WorkerInfo.device: 100 bytes", |status| status.info.as_mut().unwrap().device = "x".repeat(100)),
        ("WorkerStatus.failure: 5000 bytes", |status| status.failure = "x".repeat(5000)),
        ("WorkerStatus.leaving: 5000 bytes", |status| status.leaving = Some("x".repeat(5000))),
        ("Activity.doing: missing", |status| status.activity.as_mut().unwrap().doing = None),
        ("Activity.phase: 99 names nothing", |status| {
            status.activity.as_mut().unwrap().doing = Some(wire::activity::Doing::Phase(99));
        }),
        ("Action.kind: missing", |status| {
            let nothing = wire::Action { stage: 0, kind: 0, micro_batch: 0 };
            status.activity.as_mut().unwrap().last = Some(nothing);
        }),
        ("SavedFile.name: 5000 bytes", |status| {
            status.saved.as_mut().unwrap().files[0].name = "x".repeat(5000)
        }),
        ("Saved.files: 65 entries", |status| {
            let files = &mut status.saved.as_mut().unwrap().files;
            *files = vec![files[0].clone(); 65];
        }),
    ];
    for (told, change) in rows {
        let mut status = status();
        change(&mut status);
        let error = WorkerStatus::try_from(status).unwrap_err().to_string();
        assert!(error.starts_with(told), "{error}");
    }
    // What an honest worker has to say at length arrives, cut.
    let mut checked = WorkerStatus::try_from(status()).unwrap();
    checked.leaving = Some("ä".repeat(limits::MAX_WORDS_BYTES));
    let cut = WorkerStatus::try_from(wire::WorkerStatus::from(checked)).unwrap().leaving.unwrap();
    assert!(cut.len() <= limits::MAX_WORDS_BYTES && cut.len() > 4000 && cut.ends_with("ä…"), "{}", cut.len());
}

#[test]
fn messages_that_cost_much_are_refused_in_little_memory() {
    check(&status().encode_to_vec()).unwrap();
    let before = memory();
    // A length that claims more than follows.
    for tag in [0x0a, 0x3a, 0x42, 0x2a] {
        for length in [1_u64 << 20, 1 << 30, 1 << 40, u64::MAX >> 1, u64::MAX] {
            let mut bytes = vec![tag];
            prost::encoding::encode_varint(length, &mut bytes);
            check(&bytes).unwrap_err();
        }
    }
    // Groups in groups, which are not sent any more.
    check(&vec![0x0b; 1 << 20]).unwrap_err();
    // As many empty reports as a message has room for: two bytes each.
    let many = [0x3a, 0x00].repeat(1 << 19);
    assert!(matches!(check(&many), Err(WireError::TooMany { .. })));
    let norms: BTreeMap<String, f64> =
        (0..limits::MAX_PARAMETER_NORMS + 1).map(|n| (n.to_string(), 0.0)).collect();
    let mut wide = status();
    wide.reports[0].parameter_norms = norms.into_iter().collect();
    assert!(matches!(check(&wide.encode_to_vec()), Err(WireError::TooMany { .. })));
    let grown = memory().saturating_sub(before) >> 20;
    println!("messages of a megabyte took {grown} MiB");
    assert!(grown < 512, "{grown} MiB");
}
