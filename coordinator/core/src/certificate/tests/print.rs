use expect_test::expect;

use super::super::{CertificateHead, Done, ONE, RunRecord, certify, threads};
use super::{next, record, spec};

fn head(strict: bool) -> CertificateHead {
    CertificateHead {
        job: "tiny".to_owned(),
        file: "job.yaml".to_owned(),
        sets: vec!["train.seed=2".to_owned()],
        parameters: 1_234_567,
        precision: "fp32".to_owned(),
        runtime: "libtorch 2.11.0 AVX2".to_owned(),
        device: "cpu".to_owned(),
        threads: threads(None, 8, 4),
        steps: 2,
        step_tokens: 1024,
        reference: ONE.to_owned(),
        reference_reason: None,
        strict,
    }
}

fn ran(layout: &str, change: fn(&mut RunRecord)) -> Done {
    let mut record = record();
    change(&mut record);
    Done { name: layout.to_owned(), spec: spec(layout, &[]), record }
}

fn rounded(record: &mut RunRecord) {
    record.losses.insert(2, 5.000_000_5);
    record.norms.insert(2, 1.250_001);
    record.parameter_norms.get_mut(&1).unwrap().insert("b".to_owned(), 0.250_000_1);
    record.parameter_norms.get_mut(&2).unwrap().insert("b".to_owned(), 0.225_001);
    record.digests.insert("b".to_owned(), "other".to_owned());
}

fn off(record: &mut RunRecord) {
    record.losses.insert(2, next(5.0));
}

fn runs() -> [Done; 4] {
    [ran("pp2", |_| {}), ran("tp2", rounded), ran("tp2xpp2", rounded), ran("dp2+zero", |_| {})]
}

#[test]
fn a_certificate_that_holds_reads_so() {
    let certificate = certify(head(false), &ran("one", |_| {}), &runs());
    assert!(certificate.holds);
    expect![[r#"
        Certificate: does the layout change the numbers?

        job        tiny (job.yaml --set train.seed=2)
        model      1,234,567 parameters, fp32
        runs       2 steps of 1,024 tokens
        runtime    libtorch 2.11.0 AVX2, on cpu
        threads    2 for each worker (8 cores shared by at most 4 workers)
        reference  one process
        held to    what each row says

        layout    loss             gradient norm    of a parameter   final tensors  verdict
        pp2       same bits        same bits        same bits        same bits (3)  bitwise
        tp2       1.0e-7 (step 2)  8.0e-7 (step 2)  4.4e-6 (step 2)  1 of 3 differ  within 1e-5 (loss), 1e-4 (first norms)
        tp2xpp2   1.0e-7 (step 2)  8.0e-7 (step 2)  4.4e-6 (step 2)  1 of 3 differ  within 1e-5 (loss), 1e-4 (first norms), the bits of tp2
        dp2+zero  same bits        same bits        same bits        same bits (3)  bitwise

        tp2: largest difference of a parameter's gradient norm: 4.4e-6 (step 2, b)
        tp2: in the first step: 4.0e-7 (step 1, b)
        tp2xpp2: largest difference of a parameter's gradient norm: 4.4e-6 (step 2, b)
        tp2xpp2: in the first step: 4.0e-7 (step 1, b)
        tp2: bits are not promised: products are sums of 2 instead of 1 partial products; with train.tensor_shards=2 the bits are the same
        tp2xpp2: bits are not promised: products are sums of 2 instead of 1 partial products; with train.tensor_shards=2 the bits are the same
        holds: 4 of 4
    "#]].assert_eq(&certificate.to_string());
}

#[test]
fn a_certificate_that_does_not_hold_says_why() {
    let runs = [
        ran("dp2", off),
        ran("tp2", rounded),
        ran("tp2xpp2", |r| {
            rounded(r);
            r.norms.insert(1, next(1.5));
        }),
    ];
    let certificate = certify(head(false), &ran("one", |_| {}), &runs);
    assert!(!certificate.holds);
    expect![[r#"
        Certificate: does the layout change the numbers?

        job        tiny (job.yaml --set train.seed=2)
        model      1,234,567 parameters, fp32
        runs       2 steps of 1,024 tokens
        runtime    libtorch 2.11.0 AVX2, on cpu
        threads    2 for each worker (8 cores shared by at most 4 workers)
        reference  one process
        held to    what each row says

        layout   loss              gradient norm    of a parameter   final tensors  verdict
        dp2      1.8e-16 (step 2)  same bits        same bits        same bits (3)  BROKEN
        tp2      1.0e-7 (step 2)   8.0e-7 (step 2)  4.4e-6 (step 2)  1 of 3 differ  within 1e-5 (loss), 1e-4 (first norms)
        tp2xpp2  1.0e-7 (step 2)   8.0e-7 (step 2)  4.4e-6 (step 2)  1 of 3 differ  BROKEN

        tp2: largest difference of a parameter's gradient norm: 4.4e-6 (step 2, b)
        tp2: in the first step: 4.0e-7 (step 1, b)
        tp2xpp2: largest difference of a parameter's gradient norm: 4.4e-6 (step 2, b)
        tp2xpp2: in the first step: 4.0e-7 (step 1, b)
        tp2: bits are not promised: products are sums of 2 instead of 1 partial products; with train.tensor_shards=2 the bits are the same
        tp2xpp2: bits are not promised: products are sums of 2 instead of 1 partial products; with train.tensor_shards=2 the bits are the same
        dp2: BROKEN: the loss differs by 1.8e-16 (step 2); the same bits are wanted
        tp2xpp2: BROKEN: compared with tp2: the gradient norm differs by 1.5e-16 (step 1); the same bits are wanted
        does not hold: 2 of 3: dp2, tp2xpp2
    "#]].assert_eq(&certificate.to_string());
    let broken: Vec<_> = certificate.layouts.iter().map(|row| row.broken.is_some()).collect();
    assert_eq!(broken, [true, false, true]);
}

#[test]
fn strict_holds_every_layout_to_bits() {
    let certificate = certify(head(true), &ran("one", |_| {}), &runs());
    let broken: Vec<_> = certificate.layouts.iter().map(|row| row.broken.is_some()).collect();
    assert_eq!(broken, [false, true, true, false]);
    assert!(!certificate.holds);
}

#[test]
fn as_json_it_names_the_same() {
    let certificate = certify(head(false), &ran("one", |_| {}), &runs()[..2]);
    expect![[r#"
        {
          "format": 1,
          "job": "tiny",
          "file": "job.yaml",
          "sets": [
            "train.seed=2"
          ],
          "parameters": 1234567,
          "precision": "fp32",
          "runtime": "libtorch 2.11.0 AVX2",
          "device": "cpu",
          "threads": {
            "number": 2,
            "origin": "8 cores shared by at most 4 workers"
          },
          "steps": 2,
          "step_tokens": 1024,
          "reference": "one",
          "strict": false,
          "layouts": [
            {
              "layout": "pp2",
              "workers": 2,
              "loss": {
                "relative": 0.0,
                "step": null,
                "other_bits": 0
              },
              "gradient_norm": {
                "relative": 0.0,
                "step": null,
                "other_bits": 0
              },
              "parameter_norm": {
                "relative": 0.0,
                "step": null,
                "other_bits": 0
              },
              "first_parameter_norm": {
                "relative": 0.0,
                "step": null,
                "other_bits": 0
              },
              "other_tensors": 0,
              "tensors": 3,
              "bitwise": true,
              "bound": {
                "kind": "bits"
              },
              "broken": null
            },
            {
              "layout": "tp2",
              "workers": 2,
              "loss": {
                "relative": 9.999998992516097e-8,
                "step": 2,
                "other_bits": 1
              },
              "gradient_norm": {
                "relative": 7.999993599346988e-7,
                "step": 2,
                "other_bits": 1
              },
              "parameter_norm": {
                "relative": 4.444424691450261e-6,
                "step": 2,
                "parameter": "b",
                "other_bits": 2
              },
              "first_parameter_norm": {
                "relative": 3.9999984001156627e-7,
                "step": 1,
                "parameter": "b",
                "other_bits": 1
              },
              "parameter_norms": {
                "b": 4.444424691450261e-6
              },
              "other_tensors": 1,
              "tensors": 3,
              "bitwise": false,
              "bound": {
                "kind": "close",
                "loss": 0.00001,
                "first_parameter_norm": 0.0001,
                "reason": "products are sums of 2 instead of 1 partial products; with train.tensor_shards=2 the bits are the same"
              },
              "broken": null
            }
          ],
          "holds": true
        }"#]].assert_eq(&serde_json::to_string_pretty(&certificate).unwrap());
}
