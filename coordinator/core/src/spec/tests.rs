use std::path::Path;

use coxswain_types::JobSpec;
use coxswain_types::job::{Block, DataSpec, RecomputePolicy, Reduction, Schedule};
use coxswain_types::schedule::Action;
use expect_test::expect;

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
    assert_eq!(job.data, DataSpec::Text { files: vec!["/jobs/texts/a.txt".to_owned()], validation: 0.05 });
    expect![[r#"
        name: least
        model:
          architecture: decoder
          layers: 4
          dim: 128
          heads: 8
          kv_heads: 8
          head_dim: 16
          ffn: 384
          vocab: 512
          positions: rope
          rope_theta: 10000.0
          norm: rms
          norm_placement: pre
          norm_eps: 0.00001
          qk_norm: false
          activation: swiglu
          biases: false
          attention:
            kind: full
          attention_scale: 0.25
          embedding_dim: 128
          token_types: 0
          embedding_norm: false
          embedding_scaled: false
          head: lm
          logit_scale: 1.0
          tied_embeddings: false
          layer_groups: 4
        data:
          text:
          - /jobs/texts/a.txt
          validation: 0.05
        train:
          steps: 200
          seed: 1
          sequence: 64
          micro_batch_size: 1
          global_micro_batches: 1
          gradient_groups: 1
          reduction: canonical
          precision: fp32
          non_finite_max: 10
          dropout: 0.0
          attention_dropout: 0.0
          recompute: none
          optimizer: adamw
          learning_rate: 0.0003
          learning_rate_schedule: cosine
          min_learning_rate: 0.000029999999999999997
          warmup_steps: 20
          betas:
          - 0.9
          - 0.95
          eps: 1e-8
          weight_decay: 0.1
          clip_norm: 1.0
          validate_every: 0
          parameter_norms: false
          separate_documents: false
        layout:
          pipeline: 1
          tensor: 1
          data: 1
          schedule: 1f1b
          sequence_parallel: false
          zero: 0
        checkpoint:
          every: 0
          every_minutes: 10
          keep: 2
        recovery:
          on_loss: wait
          peer_replica: false
          rebalance: false
        priority: 0
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
        ("a number beyond all types", "steps: 200", "steps: 99999999999999999999"),
        ("a broken number", "layers: 4", "layers: 4.5"),
        ("a number for text", "name: least", "name: 17"),
        ("a value for a map", "data:\n  text: texts/a.txt", "data: texts/a.txt"),
        ("a wrong word", "steps: 200", "steps: 200\n  recompute: ful"),
        ("a map for paths", "text: texts/a.txt", "text: {path: a.txt}"),
        ("a number among paths", "text: texts/a.txt", "text:\n  - a.txt\n  - 7"),
    ];
    let told = rows.map(|(what, from, to)| {
        assert!(LEAST.contains(from), "{what}");
        format!("{what}:\n  {}\n", refusal(&LEAST.replace(from, to), &[]))
    });
    expect![[r#"
        unknown key:
          job.yaml:5:3: model.haeds: is not a known key; did you mean `heads`? (known here: preset, architecture, layers, encoder_layers, dim, heads, kv_heads, head_dim, ffn, vocab, positions, rope_theta, rope_scaling, max_positions, position_offset, relative_buckets, relative_max_distance, norm, norm_placement, norm_eps, qk_norm, activation, biases, attention, attention_scale, embedding_dim, token_types, embedding_norm, embedding_scaled, head, head_activation, classes, logit_scale, tied_embeddings, layer_groups)
        unknown and unlike:
          job.yaml:2:1: xyzzy: is not a known key (known here: name, model, data, train, layout, checkpoint, recovery, priority)
        missing key:
          job.yaml:2:1: model.heads: is missing; it has no default
        missing section:
          job.yaml: train: is missing; it has no default
        given twice:
          job.yaml:6:3: model.heads: is given twice; keep one of them
        text for a number:
          job.yaml:10:3: train.steps: found the text `many`; must be a whole number from 1 to 1000000000
        a negative number:
          job.yaml:3:3: model.layers: found -4; must be a whole number from 1 to 1024
        a number beyond all types:
          job.yaml:10:3: train.steps: found 99999999999999999999; must be a whole number from 1 to 1000000000
        a broken number:
          job.yaml:3:3: model.layers: found 4.5; must be a whole number from 1 to 1024
        a number for text:
          job.yaml:1:1: name: found 17; must be a text (quote it if it looks like a number)
        a value for a map:
          job.yaml:7:1: data: found the text `texts/a.txt`; must be a map with keys such as text, labelled, classes, pairs, weights, validation, synthetic
        a wrong word:
          job.yaml:11:3: train.recompute: found `ful`; must be none or full or attention or ffn or {budget: BYTES}; did you mean `full`?
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
          job.yaml: found nothing; must be a map with keys such as name, model, data, train, layout, checkpoint, recovery, priority
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
    assert!(refusal(&" ".repeat(2 << 20), &[]).contains("has at most 262144"));
}

#[test]
fn all_faults_of_meaning_are_told_at_once() {
    let text = "\
name: Least One
model: {layers: 2, dim: 512, heads: 7, kv_heads: 3, vocab: 100}
data:
  text: []
  validation: 0.5
train:
  steps: 0
  sequence: 64
  global_micro_batches: 4
  gradient_groups: 5
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
        job.yaml:2:30: model.heads: found 7; must divide model.dim (512), such as 8, or model.head_dim must be set
        job.yaml:2:40: model.kv_heads: found 3; must divide model.heads (7): each is shared by equally many query heads, such as 1
        job.yaml:2:53: model.vocab: found 100; with text must be 257 or more (256 bytes and the end-of-text token)
        job.yaml:4:3: data.text: found a list of 0; must name 1 to 1024 files
        job.yaml:5:3: data.validation: found 0.5; must be 0 or more and below 0.5 (the share at the end of each file)
        job.yaml:7:3: train.steps: found 0; must be 1 or more
        job.yaml:10:3: train.gradient_groups: found 5; must be 1 to train.global_micro_batches (4): a group holds at least one micro-batch
        job.yaml:11:3: train.threads: found 0; must be 1 or more
        job.yaml:12:3: train.learning_rate: found NaN; must be a finite number above 0
        job.yaml:13:3: train.warmup_steps: found 3; must be at most train.steps (0)
        job.yaml:14:16: train.betas[1]: found 1.0; must be 0 or more and below 1
        job.yaml:15:3: train.clip_norm: found -1.0; must be a finite number, 0 or more (0 clips nothing)
        job.yaml:17:3: layout.pipeline: found 3, more stages than layers; must be at most model.layers (2): each stage holds at least one
        job.yaml:18:3: layout.tensor: found 2; must divide model.heads (7): a head is never split, and every rank has as many
        job.yaml:19:3: layout.data: found 8, more data ranks than micro-batches; must be at most train.global_micro_batches (4): each data rank needs at least one micro-batch of the step
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
        vec![("train.global_micro_batches", "8"), ("train.gradient_groups", "4"), ("layout.data", "8")],
        vec![("model.kv_heads", "2"), ("layout.tensor", "8"), ("model.ffn", "4")],
        vec![("model", "{layers: 1, dim: 96, heads: 12, kv_heads: 6, vocab: 300}"), ("layout.tensor", "4")],
        vec![
            ("layout", "{pipeline: 4, tensor: 8, data: 1024}"),
            ("train.global_micro_batches", "1024"),
            ("train.gradient_groups", "1024"),
        ],
        vec![("data", "{}")],
        vec![("data.synthetic.tokens", "1000")],
        vec![("data", "{synthetic: {tokens: 64}, validation: 0.1}")],
        vec![("data.validation", "0"), ("train.validate_every", "10")],
        vec![("train.min_learning_rate", "1")],
        vec![("train.sequence", "1048576"), ("train.micro_batch_size", "17")],
        vec![("train.betas", "[0.9]")],
        vec![("model.layers", "1025")],
        vec![("train.precision", "bf16"), ("train.initial_loss_scale", "1024")],
        vec![("train.precision", "fp16"), ("train.initial_loss_scale", "1000")],
        vec![("train.recompute", "{budget: 2GB}")],
        vec![("train.recompute", "{bytes: 2}")],
        vec![("train.recompute", "{}")],
        vec![("layout", "{pipeline: 3, schedule: interleaved}")],
        vec![("layout.zero", "4")],
        vec![("layout.zero", "all")],
        vec![("model.tied_embeddings", "1")],
        vec![("train.reduction", "fast"), ("train.global_micro_batches", "4"), ("layout.data", "5")],
        vec![
            ("train.tensor_shards", "4"),
            ("layout.sequence_parallel", "true"),
            ("train.sequence", "66"),
            ("layout.tensor", "2"),
        ],
        vec![
            ("layout", "{schedule: custom, data: 2}"),
            ("train.global_micro_batches", "4"),
            ("train.gradient_groups", "3"),
            ("layout.actions", "0F0,0B0"),
        ],
        vec![
            ("layout.schedule", "custom"),
            ("layout.chunks", "2"),
            ("layout.pipeline", "2"),
            ("layout.actions", "\"\\n0F0,2F0,2B0,0B0\\n\\n1F0,3B\""),
        ],
        vec![("data.text", "[a.txt, '']")],
        vec![("trian.steps", "3")],
        vec![("train.seed", "3"), ("train.seed.more", "3")],
    ];
    let told: String = rows.iter().map(|sets| refusal(LEAST, sets) + "\n").collect();
    expect![[r#"
        --set model.heads=7: found 7; must divide model.dim (128), such as 8, or model.head_dim must be set
        --set model.heads=128: found 128, which makes heads of width 1; must leave heads of even width, because RoPE rotates pairs, such as 64
        --set model={layers: 1, dim: 8, heads: 3, vocab: 300}: model.heads: found 3; must divide model.dim (8), such as 2, or model.head_dim must be set
        --set model.haeds=7: is not a known key; did you mean `heads`? (known here: preset, architecture, layers, encoder_layers, dim, heads, kv_heads, head_dim, ffn, vocab, positions, rope_theta, rope_scaling, max_positions, position_offset, relative_buckets, relative_max_distance, norm, norm_placement, norm_eps, qk_norm, activation, biases, attention, attention_scale, embedding_dim, token_types, embedding_norm, embedding_scaled, head, head_activation, classes, logit_scale, tied_embeddings, layer_groups)
        --set name.first=x: there is no key `first` below a value that is not a map
        --set model..heads=8: `model..heads` is not a path; paths look like model.heads
        --set model.heads=[8: cannot be read: did not find expected ',' or ']', while parsing a flow sequence
        --set layout.data=8: found 8; must be at most train.gradient_groups (4): a data rank owns whole groups (train.gradient_groups may be raised to 8)
        --set layout.tensor=8: found 8; must be at most model.ffn (4): each rank holds at least one column
        --set layout.tensor=4: found 4; must divide model.kv_heads (6) or be a multiple of it: ranks hold equally many, or share one
        --set layout={pipeline: 4, tensor: 8, data: 1024}: needs 32768 workers (pipeline 4 x tensor 8 x data 1024); must be 16384 or less (each step closes with one exchange over all workers)
        --set data={}: found nothing; must have one of text, labelled, pairs and synthetic
        job.yaml:7:1: data: found text and synthetic; must have one of text, labelled, pairs and synthetic
        --set data={synthetic: {tokens: 64}, validation: 0.1}: data.validation: goes with texts only; random tokens have no validation split
        --set data={synthetic: {tokens: 64}, validation: 0.1}: data.synthetic.tokens: found 64; must be at least train.sequence + 1 (65): the text of a sample and the token after it
        --set train.validate_every=10: found 10; must be 0 without a validation split: there is nothing to evaluate on
        --set train.min_learning_rate=1: found 1.0; must be 0 or more and at most train.learning_rate (0.0003)
        --set train.micro_batch_size=17: found 17; with a train.sequence of 1048576 must be 16 or less (at most 16777216 tokens at once; more belong into more micro-batches)
        --set train.betas=[0.9]: found a list of 1; must be a list of 2
        --set model.layers=1025: found 1025; must be 1024 or less (every rank's plan lists its layers one by one)
        --set train.initial_loss_scale=1024: goes with train.precision fp16 only (gradients of fp32 and bf16 need no scaling); leave it out, or set that too
        --set train.initial_loss_scale=1000: found 1000; must be a power of two such as 1024, so that scaling rounds nothing
        --set train.recompute={budget: 2GB}: train.recompute.budget: found the text `2GB`; must be a whole number of bytes, or one with KiB, MiB, GiB or TiB such as 2GiB
        --set train.recompute={bytes: 2}: train.recompute.bytes: is not a known key (known here: budget)
        --set train.recompute={}: train.recompute.budget: is missing; it has no default
        --set layout={pipeline: 3, schedule: interleaved}: layout.chunks: 2 on each of 3 pipeline ranks make 6 stages, more than model.layers (4); this schedule has at least 2, so take fewer pipeline ranks or another schedule: each stage holds at least one
        --set layout.zero=4: found 4; must be 0 or 1
        --set layout.zero=all: found the text `all`; must be 0 or 1
        --set model.tied_embeddings=1: found 1; must be true or false
        --set layout.data=5: found 5, more data ranks than micro-batches; must be at most train.global_micro_batches (4): each data rank needs at least one micro-batch of the step
        --set layout.sequence_parallel=true: needs a train.sequence that train.tensor_shards (4) divides, and finds 66: every shard of the sequence is as long; leave it out, or make the sequence a multiple of 4
        --set layout={schedule: custom, data: 2}: layout.schedule: found custom; needs a train.gradient_groups that layout.data (2) divides, and finds 3: its list is for one number of micro-batches, the same on every data rank
        --set layout.actions="\n0F0,2F0,2B0,0B0\n\n1F0,3B": line 4, item 2: `3B` is not an action; actions look like 2F0, 1SEND_F3 or 0RECV_B1
        --set data.text=[a.txt, '']: data.text[1]: found an empty path; must name a file
        --set trian.steps=3: trian: is not a known key; did you mean `train`? (known here: name, model, data, train, layout, checkpoint, recovery, priority)
        --set train.seed.more=3: there is no key `more` below a value that is not a map
    "#]].assert_eq(&told);
}

/// Either would cost its reader a stack or minutes.
#[test]
fn paths_that_are_deep_and_sets_that_are_many_are_refused() {
    let deep = ["a"; 40_000].join(".");
    let told = refusal(LEAST, &[(&deep, "1")]);
    assert!(told.len() < 600 && told.ends_with("has 40000 keys; a path has at most 16"), "{told}");
    let many: Vec<String> = (0..1001).map(|n| format!("a{n}")).collect();
    let many: Vec<_> = many.iter().map(|path| (path.as_str(), "1")).collect();
    assert_eq!(refusal(LEAST, &many), "job.yaml: 1001 values replace others (--set); at most 1000 may");
}

#[test]
fn sets_replace_values_and_make_maps() {
    let sets = [
        ("layout.tensor", "2"),
        ("train.recompute", "full"),
        ("data", "{synthetic: {tokens: 5000}}"),
        ("model.kv_heads", "2"),
        ("model.kv_heads", "1"),
    ];
    let job = read_with(LEAST, &sets).unwrap();
    assert_eq!((job.layout.tensor, job.layout.world(), job.model.kv_heads), (2, 2, 1));
    assert_eq!(job.train.recompute, RecomputePolicy::Full);
    assert_eq!(job.data, DataSpec::Synthetic { tokens: 5000 });
}

#[test]
fn what_the_new_words_mean() {
    let job = |sets: &[(&str, &str)]| read_with(LEAST, sets).unwrap();
    let fast = job(&[("train.reduction", "fast"), ("train.global_micro_batches", "7"), ("layout.data", "3")]);
    assert_eq!((fast.train.reduction, fast.train.gradient_groups), (Reduction::Fast, 3));
    let kept = |value| job(&[("train.recompute", value)]).train.recompute;
    assert_eq!(kept("attention"), RecomputePolicy::Selective(Block::Attention));
    assert_eq!(kept("ffn"), RecomputePolicy::Selective(Block::Ffn));
    assert_eq!(kept("{budget: 512MiB}"), RecomputePolicy::Budget { bytes: 512 << 20 });
    assert_eq!(kept("{budget: 12345}"), RecomputePolicy::Budget { bytes: 12345 });
    let constant = job(&[("train.learning_rate_schedule", "constant")]).train.optimizer;
    assert_eq!(constant.min_learning_rate.to_bits(), constant.learning_rate.to_bits());
    let layout = job(&[("layout", "{pipeline: 2, schedule: interleaved, zero: true}")]).layout;
    assert_eq!((layout.schedule, layout.zero), (Schedule::Interleaved { chunks: 2 }, true));
    assert_eq!(layout.stages(), 4);
}

#[test]
fn the_lists_of_a_custom_schedule_are_read() {
    let text = format!(
        "{LEAST}  global_micro_batches: 4\nlayout:\n  pipeline: 2\n  data: 2\n  schedule: custom\n  actions: |\n    \
         0F0, 0F1,0B0,0B1\n    1F0,1I0,1W0,1F1,1B1\n"
    );
    let job = read_with(&text, &[]).unwrap();
    let lines: Vec<_> = job.actions.iter().map(|list| list.iter().map(Action::to_string).collect()).collect();
    let lines: Vec<_> = lines.iter().map(|list: &Vec<String>| list.join(" ")).collect();
    assert_eq!(lines, ["0F0 0F1 0B0 0B1", "1F0 1I0 1W0 1F1 1B1"]);
    assert_eq!(job.layout.schedule, Schedule::Custom { chunks: 1 });
    assert_eq!(read_with(&resolved_yaml(&job).unwrap(), &[]).unwrap(), job);
}

#[test]
fn paths_start_from_the_folder_of_the_job() {
    let job = read_with(LEAST, &[("data.text", "[./a.txt, b/../c.txt, /d.txt]")]).unwrap();
    let DataSpec::Text { files, .. } = job.data else { panic!("text") };
    assert_eq!(files, ["/jobs/a.txt", "/jobs/b/../c.txt", "/d.txt"]);
}

mod hostile;
mod many;
