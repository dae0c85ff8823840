use super::super::{Bound, RunRecord, bound, differences};
use super::{next, record, spec};

/// What a change to a record makes of it: bitwise, other bits of loss, norm and parameter norms, other
/// tensors, whether something is missing.
type Found = (bool, u64, u64, u64, u64, bool);

/// Name, change, what it makes.
type Row = (&'static str, fn(&mut RunRecord), Found);

#[test]
fn records_are_compared_to_the_bit() {
    let rows: &[Row] = &[
        ("the same", |_| {}, (true, 0, 0, 0, 0, false)),
        ("loss one ulp off", |r| *r.losses.get_mut(&2).unwrap() = next(5.0), (false, 1, 0, 0, 0, false)),
        ("validation one ulp off", |r| r.validation = Some(next(5.5)), (false, 1, 0, 0, 0, false)),
        ("norm one ulp off", |r| *r.norms.get_mut(&1).unwrap() = next(1.5), (false, 0, 1, 0, 0, false)),
        (
            "parameter norm one ulp off",
            |r| *r.parameter_norms.get_mut(&2).unwrap().get_mut("b").unwrap() = next(0.25 * 0.9),
            (false, 0, 0, 1, 0, false),
        ),
        (
            "another tensor",
            |r| drop(r.digests.insert("b".into(), "other".into())),
            (false, 0, 0, 0, 1, false),
        ),
        ("missing tensor", |r| drop(r.digests.remove("b")), (false, 0, 0, 0, 1, true)),
        ("one tensor more", |r| drop(r.digests.insert("c".into(), "c".into())), (false, 0, 0, 0, 1, true)),
        (
            "a loss that is not a number",
            |r| *r.losses.get_mut(&2).unwrap() = f64::NAN,
            (false, 1, 0, 0, 0, false),
        ),
        ("no validation loss", |r| r.validation = None, (false, 1, 0, 0, 0, true)),
        (
            "a step less",
            |r| drop((r.losses.remove(&2), r.norms.remove(&2), r.parameter_norms.remove(&2))),
            (false, 1, 1, 2, 0, true),
        ),
        (
            "a parameter less",
            |r| r.parameter_norms.get_mut(&1).unwrap().retain(|name, _| name != "a"),
            (false, 0, 0, 1, 0, true),
        ),
    ];
    for (name, change, expected) in rows {
        let mut own = record();
        change(&mut own);
        for (one, other) in [(&own, &record()), (&record(), &own)] {
            let found = differences(one, other);
            let counts =
                [&found.loss, &found.gradient_norm, &found.parameter_norm].map(|numbers| numbers.other_bits);
            let found = (
                found.bitwise(),
                counts[0],
                counts[1],
                counts[2],
                found.other_tensors,
                found.missing.is_some(),
            );
            assert_eq!(found, *expected, "{name}");
            assert_eq!(Bound::Bits.broken(&differences(one, other)).is_none(), expected.0, "{name}");
        }
    }
}

#[test]
fn no_number_equals_itself_only_and_breaks_a_tolerance_otherwise() {
    let bound = Bound::Close { loss: 1e-5, first_parameter_norm: 1e-4, reason: String::new() };
    let with = |loss: f64| RunRecord { losses: [(1, loss)].into(), ..record() };
    let nan = f64::NAN;
    let other_nan = f64::from_bits(nan.to_bits() ^ 1);
    for (own, wanted, bitwise, holds) in [
        (nan, nan, true, true),
        (nan, other_nan, false, false),
        (nan, 1.0, false, false),
        (1.0, nan, false, false),
        (f64::INFINITY, f64::NEG_INFINITY, false, false),
        (0.0, -0.0, false, true),
        (0.0, 1e-300, false, false),
        (1.0, 1.0 + 1e-6, false, true),
        (1.0, 1.0 + 2e-5, false, false),
    ] {
        let found = differences(&with(own), &with(wanted));
        assert_eq!(found.bitwise(), bitwise, "{own} {wanted}");
        assert_eq!(bound.broken(&found).is_none(), holds, "{own} {wanted}");
    }
}

#[test]
fn a_tolerance_looks_at_the_first_norms_that_are_finite() {
    let bound = Bound::Close { loss: 1e-5, first_parameter_norm: 1e-4, reason: String::new() };
    let scaled = |step: u64, by: f64| {
        let mut own = record();
        *own.parameter_norms.get_mut(&step).unwrap().get_mut("b").unwrap() *= by;
        own
    };
    assert_eq!(bound.broken(&differences(&scaled(2, 2.0), &record())), None);
    let broken = bound.broken(&differences(&scaled(1, 2.0), &record())).unwrap();
    assert_eq!(
        broken,
        "the first gradient norm of a parameter differs by 5.0e-1 (step 1, b); at most 1e-4 is allowed"
    );
    // A first step that overflowed in both says nothing; the second is the first.
    let skipped = |mut record: RunRecord| {
        record.norms.insert(1, f64::NAN);
        record.parameter_norms.get_mut(&1).unwrap().values_mut().for_each(|norm| *norm = f64::NAN);
        record
    };
    assert!(bound.broken(&differences(&skipped(scaled(2, 2.0)), &skipped(record()))).is_some());
    assert!(bound.broken(&differences(&skipped(scaled(2, 1.00001)), &skipped(record()))).is_none());
}

#[test]
fn layouts_are_held_to_bits_unless_they_add_in_another_order() {
    let rows: [(&str, &str, &[&str], bool); 14] = [
        ("one", "one", &[], true),
        ("one", "pp2", &[], true),
        ("one", "pp2xdp3+zero+gpipe+full", &[], true),
        ("one", "tp2", &[], false),
        ("one", "tp2xpp2+sp", &[], false),
        ("one", "tp2", &["train.tensor_shards=2"], true),
        ("one", "tp4xpp2+sp", &["train.tensor_shards=4"], true),
        ("tp2", "tp2xpp2", &[], true),
        ("tp2", "tp2+sp", &[], false),
        ("tp2", "tp2+sp", &["train.tensor_shards=2"], true),
        ("one", "dp1+sp", &[], true),
        ("one", "dp2", &["train.reduction=fast"], false),
        ("dp2", "dp2xpp2", &["train.reduction=fast"], true),
        ("one", "tp2", &["train.precision=bf16"], false),
    ];
    for (reference, layout, sets, bits) in rows {
        let (reference, other) = (spec(reference, sets), spec(layout, sets));
        assert_eq!(bound(&reference, &other, false) == Bound::Bits, bits, "{layout} {sets:?}");
        assert_eq!(bound(&reference, &other, true), Bound::Bits, "{layout} {sets:?}");
    }
    let tolerance = |sets: &[&str]| match bound(&spec("one", sets), &spec("tp2", sets), false) {
        Bound::Close { loss, first_parameter_norm, .. } => (loss, first_parameter_norm),
        Bound::Bits => panic!("bits are not promised"),
    };
    assert_eq!(tolerance(&[]), (1e-5, 1e-4));
    assert_eq!(tolerance(&["train.precision=bf16"]), (2e-2, 2e-2));
}
