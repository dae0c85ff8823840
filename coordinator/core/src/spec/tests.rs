use std::path::Path;

use coxswain_types::JobSpec;
use coxswain_types::job::{Checkpointing, DataSpec};
use expect_test::expect;
use proptest::prelude::*;

use super::{JobText, SpecError, parse, resolved_yaml};

pub(super) const LEAST: &str = "\
name: least
model:
  layers: 4
  dim: 128
  heads: 8
  vocab: 512
data:
  text: texts/a.txt
train:
  steps: 200
  sequence: 64
";

fn read_with(text: &str, sets: &[(&str, &str)]) -> Result<JobSpec, SpecError> {
    let sets: Vec<_> = sets.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned())).collect();
    parse(&JobText { source: "job.yaml", text, sets: &sets, base: Path::new("/jobs") })
}

fn refusal(text: &str, sets: &[(&str, &str)]) -> String {
    read_with(text, sets).unwrap_err().to_string()
}

#[test]
fn a_least_job_gets_every_default() {
    let job = read_with(LEAST, &[]).unwrap();
    assert_eq!((job.model.kv_heads, job.model.ffn), (8, 384));
    assert_eq!(job.data, DataSpec::Text { files: vec!["/jobs/texts/a.txt".to_owned()], held_out: 0.05 });
    expect![[r#"
        name: least
        model:
          layers: 4
          dim: 128
          heads: 8
          kv_heads: 8
          ffn: 384
          vocab: 512
          rope_theta: 10000.0
          norm_eps: 0.00001
        data:
          text:
          - /jobs/texts/a.txt
          held_out: 0.05
        train:
          steps: 200
          seed: 1
          sequence: 64
          micro_batch: 1
          micro_batches: 1
          reduction_runs: 1
          checkpointing: none
          learning_rate: 0.0003
          min_learning_rate: 0.000029999999999999997
          warmup_steps: 20
          betas:
          - 0.9
          - 0.95
          eps: 1e-8
          weight_decay: 0.1
          clip_norm: 1.0
          evaluate_every: 0
        layout:
          pipeline: 1
          tensor: 1
          data: 1
        checkpoint:
          every: 0
          keep: 2
    "#]]
    .assert_eq(&resolved_yaml(&job).unwrap());
}

#[test]
fn the_example_job_is_a_job() {
    let text = include_str!("../../../../deploy/jobs/demo.yaml");
    let job = read_with(text, &[]).unwrap();
    let parameters: u64 =
        coxswain_types::params::parameter_table(&job.model).iter().map(|row| row.elements()).sum();
    assert!((2_000_000..=4_000_000).contains(&parameters), "{parameters} parameters");
    assert_eq!(job.layout.world(), 4);
}

#[test]
fn the_first_fault_of_shape_is_told() {
    let rows = [
        ("unknown key", "  heads: 8", "  haeds: 8"),
        ("unknown and unlike", "name: least", "name: least\nxyzzy: 1"),
        ("missing key", "  heads: 8\n", ""),
        ("missing section", "train:\n  steps: 200\n  sequence: 64\n", ""),
        ("given twice", "  heads: 8", "  heads: 8\n  heads: 4"),
        ("text for a number", "steps: 200", "steps: many"),
        ("a negative number", "layers: 4", "layers: -4"),
        ("a broken number", "layers: 4", "layers: 4.5"),
        ("a number for text", "name: least", "name: 17"),
        ("a value for a map", "data:\n  text: texts/a.txt", "data: texts/a.txt"),
        ("a wrong word", "steps: 200", "steps: 200\n  checkpointing: ful"),
        ("a map for paths", "text: texts/a.txt", "text: {path: a.txt}"),
        ("a number among paths", "text: texts/a.txt", "text:\n  - a.txt\n  - 7"),
    ];
    let told = rows.map(|(what, from, to)| {
        assert!(LEAST.contains(from), "{what}");
        format!("{what}:\n  {}\n", refusal(&LEAST.replace(from, to), &[]))
    });
    expect![[r#"
        unknown key:
          job.yaml:5:3: model.haeds: is not a known key; did you mean `heads`? (known here: layers, dim, heads, kv_heads, ffn, vocab, rope_theta, norm_eps)
        unknown and unlike:
          job.yaml:2:1: xyzzy: is not a known key (known here: name, model, data, train, layout, checkpoint)
        missing key:
          job.yaml:2:1: model.heads: is missing; it has no default
        missing section:
          job.yaml: train: is missing; it has no default
        given twice:
          job.yaml:6:3: model.heads: is given twice; keep one of them
        text for a number:
          job.yaml:10:3: train.steps: found the text `many`; must be a whole number from 0 to 18446744073709551615
        a negative number:
          job.yaml:3:3: model.layers: found -4; must be a whole number from 0 to 4294967295
        a broken number:
          job.yaml:3:3: model.layers: found 4.5; must be a whole number from 0 to 4294967295
        a number for text:
          job.yaml:1:1: name: found 17; must be a text (quote it if it looks like a number)
        a value for a map:
          job.yaml:7:1: data: found the text `texts/a.txt`; must be a map with keys such as text, held_out, synthetic
        a wrong word:
          job.yaml:11:3: train.checkpointing: found `ful`; must be none or full; did you mean `full`?
        a map for paths:
          job.yaml:8:3: data.text: found a map; must be a path or a list of paths
        a number among paths:
          job.yaml:10:5: data.text[1]: found 7; must be a text (quote it if it looks like a number)
    "#]].assert_eq(&told.concat());
}

#[test]
fn broken_yaml_is_told_with_its_place() {
    let texts = [
        "",
        "name: [a, b",
        "name: x\nmodel:\n\tlayers: 1\n",
        "a: 1\n---\nb: 2\n",
        "a: !tag {}\n",
        "a: &x [*x]\n",
        "{a: 1}: 2\n",
    ];
    let told = texts.map(|text| format!("{text:?}:\n  {}\n", refusal(text, &[])));
    expect![[r#"
        "":
          job.yaml: found nothing; must be a map with keys such as name, model, data, train, layout, checkpoint
        "name: [a, b":
          job.yaml:2:1: cannot be read: did not find expected ',' or ']', while parsing a flow sequence at line 1 column 7
        "name: x\nmodel:\n\tlayers: 1\n":
          job.yaml:3:1: cannot be read: found character that cannot start any token, while scanning for the next token (YAML indents with spaces, and this line has a tab)
        "a: 1\n---\nb: 2\n":
          job.yaml: cannot be read: deserializing from YAML containing more than one document is not supported
        "a: !tag {}\n":
          job.yaml:1:4: cannot be read: a: a tag (!name) has no meaning in a job file
        "a: &x [*x]\n":
          job.yaml:1:4: cannot be read: recursion limit exceeded
        "{a: 1}: 2\n":
          job.yaml:1:1: cannot be read: invalid type: map, expected a key
    "#]].assert_eq(&told.concat());
    assert!(refusal(&" ".repeat(2 << 20), &[]).contains("has at most 1048576"));
}

#[test]
fn all_faults_of_meaning_are_told_at_once() {
    let text = "\
name: Least One
model: {layers: 2, dim: 512, heads: 7, kv_heads: 3, vocab: 100}
data:
  text: []
  held_out: 0.5
train:
  steps: 0
  sequence: 64
  micro_batches: 4
  reduction_runs: 5
  threads: 0
  learning_rate: .nan
  warmup_steps: 3
  betas: [0.9, 1.0]
  clip_norm: -1
layout:
  pipeline: 3
  tensor: 2
  data: 8
checkpoint: {keep: 0}
";
    expect![[r#"
        job.yaml:1:1: name: found `Least One`; must be 1 to 64 of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or a digit: it names folders
        job.yaml:2:30: model.heads: found 7; must divide model.dim (512), such as 8
        job.yaml:2:40: model.kv_heads: found 3; must divide model.heads (7): each is shared by equally many query heads, such as 1
        job.yaml:2:53: model.vocab: found 100; with data.text must be 257 or more (256 bytes and the end-of-text token)
        job.yaml:4:3: data.text: found a list of 0; must name 1 to 1024 files
        job.yaml:5:3: data.held_out: found 0.5; must be 0 or more and below 0.5 (the share at the end of each file)
        job.yaml:7:3: train.steps: found 0; must be 1 or more
        job.yaml:10:3: train.reduction_runs: found 5; must be 1 to train.micro_batches (4): a run holds at least one micro-batch
        job.yaml:11:3: train.threads: found 0; must be 1 or more
        job.yaml:12:3: train.learning_rate: found NaN; must be a finite number above 0
        job.yaml:13:3: train.warmup_steps: found 3; must be at most train.steps (0)
        job.yaml:14:16: train.betas[1]: found 1.0; must be 0 or more and below 1
        job.yaml:15:3: train.clip_norm: found -1.0; must be a finite number, 0 or more (0 clips nothing)
        job.yaml:17:3: layout.pipeline: found 3, more stages than layers; must be at most model.layers (2): each stage holds at least one
        job.yaml:18:3: layout.tensor: found 2; must divide model.heads (7): a head is never split, and every rank has as many
        job.yaml:19:3: layout.data: found 8, more data ranks than micro-batches; must be at most train.micro_batches (4): each data rank needs at least one micro-batch of the step
        job.yaml:20:14: checkpoint.keep: found 0; must be 1 or more"#]]
    .assert_eq(&refusal(text, &[]));
}

#[test]
fn single_faults_name_the_flag_that_brought_them() {
    let rows = [
        vec![("model.heads", "7")],
        vec![("model.heads", "128")],
        vec![("model", "{layers: 1, dim: 8, heads: 3, vocab: 300}")],
        vec![("model.haeds", "7")],
        vec![("name.first", "x")],
        vec![("model..heads", "8")],
        vec![("model.heads", "[8")],
        vec![("train.micro_batches", "8"), ("train.reduction_runs", "4"), ("layout.data", "8")],
        vec![("model.kv_heads", "2"), ("layout.tensor", "8"), ("model.ffn", "4")],
        vec![("model", "{layers: 1, dim: 96, heads: 12, kv_heads: 6, vocab: 300}"), ("layout.tensor", "4")],
        vec![
            ("layout", "{pipeline: 4, tensor: 8, data: 1024}"),
            ("train.micro_batches", "1024"),
            ("train.reduction_runs", "1024"),
        ],
        vec![("data", "{}")],
        vec![("data.synthetic.tokens", "1000")],
        vec![("data", "{synthetic: {tokens: 64}, held_out: 0.1}")],
        vec![("data.held_out", "0"), ("train.evaluate_every", "10")],
        vec![("train.min_learning_rate", "1")],
        vec![("train.sequence", "1048576"), ("train.micro_batch", "17")],
        vec![("train.betas", "[0.9]")],
        vec![("model.layers", "1025")],
        vec![("data.text", "[a.txt, '']")],
    ];
    let told: String = rows.iter().map(|sets| refusal(LEAST, sets) + "\n").collect();
    expect![[r#"
        --set model.heads=7: found 7; must divide model.dim (128), such as 8
        --set model.heads=128: found 128, which makes heads of width 1; must leave heads of even width, because RoPE rotates pairs, such as 64
        --set model={layers: 1, dim: 8, heads: 3, vocab: 300}: model.heads: found 3; must divide model.dim (8), such as 2
        --set model.haeds=7: is not a known key; did you mean `heads`? (known here: layers, dim, heads, kv_heads, ffn, vocab, rope_theta, norm_eps)
        --set name.first=x: there is no key `first` below a value that is not a map
        --set model..heads=8: `model..heads` is no path; paths look like model.heads
        --set model.heads=[8: cannot be read: did not find expected ',' or ']', while parsing a flow sequence
        --set layout.data=8: found 8; must be at most train.reduction_runs (4): a data rank owns whole runs (train.reduction_runs may be raised to 8)
        --set layout.tensor=8: found 8; must be at most model.ffn (4): each rank holds at least one column
        --set layout.tensor=4: found 4; must divide model.kv_heads (6) or be a multiple of it: ranks hold equally many, or share one
        --set layout={pipeline: 4, tensor: 8, data: 1024}: needs 32768 workers (pipeline 4 x tensor 8 x data 1024); must be 4096 or less (each step closes with one exchange over all workers)
        --set data={}: found neither text nor synthetic; must have one of them
        job.yaml:7:1: data: found both text and synthetic; must have one of them
        --set data={synthetic: {tokens: 64}, held_out: 0.1}: data.held_out: goes with data.text only; random tokens hold out nothing
        --set data={synthetic: {tokens: 64}, held_out: 0.1}: data.synthetic.tokens: found 64; must be at least train.sequence + 1 (65): a sample and the token after it
        --set train.evaluate_every=10: found 10; must be 0 where no text is held out: there is nothing to evaluate on
        --set train.min_learning_rate=1: found 1.0; must be 0 or more and at most train.learning_rate (0.0003)
        --set train.micro_batch=17: found 17; with a train.sequence of 1048576 must be 16 or less (at most 16777216 tokens at once; more belong into more micro-batches)
        --set train.betas=[0.9]: found a list of 1; must be a list of 2
        --set model.layers=1025: found 1025; must be 1024 or less (every rank's plan lists its layers one by one)
        --set data.text=[a.txt, '']: data.text[1]: found an empty path; must name a file
    "#]].assert_eq(&told);
}

#[test]
fn sets_replace_values_and_make_maps() {
    let sets = [
        ("layout.tensor", "2"),
        ("train.checkpointing", "full"),
        ("data", "{synthetic: {tokens: 5000}}"),
        ("model.kv_heads", "2"),
        ("model.kv_heads", "1"),
    ];
    let job = read_with(LEAST, &sets).unwrap();
    assert_eq!((job.layout.tensor, job.layout.world(), job.model.kv_heads), (2, 2, 1));
    assert_eq!(job.train.checkpointing, Checkpointing::Full);
    assert_eq!(job.data, DataSpec::Synthetic { tokens: 5000 });
}

#[test]
fn paths_start_from_the_folder_of_the_job() {
    let job = read_with(LEAST, &[("data.text", "[./a.txt, b/../c.txt, /d.txt]")]).unwrap();
    let DataSpec::Text { files, .. } = job.data else { panic!("text") };
    assert_eq!(files, ["/jobs/a.txt", "/jobs/b/../c.txt", "/d.txt"]);
}

proptest! {
    #[test]
    fn a_resolved_job_is_the_same_job(
        (layers, heads_log, head_pairs, kv_log) in (1_u32..9, 0_u32..4, 1_u32..9, 0_u32..4),
        (steps, seed, micro_batches) in (1_u64..10_000, any::<u64>(), 1_u32..33),
        (learning_rate, held_out, beta) in (1e-9_f64..10.0, 0.0_f64..0.5, 0.0_f64..1.0),
        threads in proptest::option::of(1_u32..64),
        synthetic in any::<bool>(),
    ) {
        let (heads, kv_heads) = (1 << heads_log, 1 << kv_log.min(heads_log));
        let dim = heads * head_pairs * 2;
        let data = if synthetic { "{synthetic: {tokens: 999}}".to_owned() } else { format!("{{text: [a, 'b: c'], held_out: {held_out:?}}}") };
        let text = format!(
            "name: p\nmodel: {{layers: {layers}, dim: {dim}, heads: {heads}, kv_heads: {kv_heads}, vocab: 300}}\n\
             data: {data}\n\
             train: {{steps: {steps}, seed: {seed}, sequence: 9, micro_batches: {micro_batches}, \
             learning_rate: {learning_rate:?}, betas: [{beta:?}, 0.5], threads: {}}}\n\
             layout: {{pipeline: {layers}, tensor: {heads}}}\n",
            threads.map_or("null".to_owned(), |t| t.to_string()),
        );
        let job = read_with(&text, &[]).unwrap();
        prop_assert_eq!(&job.train.seed, &seed);
        let resolved = resolved_yaml(&job).unwrap();
        prop_assert_eq!(read_with(&resolved, &[]).unwrap(), job);
    }

    #[test]
    fn no_text_makes_the_door_panic(text in "[a-z:\\[\\]{}&*!|>'\" \\n\\t0-9.,#-]{0,80}") {
        let _ = read_with(&text, &[("model.heads", &text)]);
        let _ = read_with(LEAST, &[(&text, "1")]);
    }
}
