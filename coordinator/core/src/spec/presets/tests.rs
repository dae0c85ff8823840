use std::path::Path;

use coxswain_types::model::ModelSpec;
use coxswain_types::params::{Parameter, parameter_table};
use expect_test::expect;

use super::*;
use crate::plan::sketch;
use crate::spec::{parse, resolved_yaml};

fn read(text: &str, sets: &[(&str, &str)]) -> Result<coxswain_types::JobSpec, SpecError> {
    let sets: Vec<_> = sets.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned())).collect();
    look(&JobText { source: "job.yaml", text, sets: &sets, base: Path::new("/") })
}

fn job(name: &str, workers: u32, sets: &[(&str, &str)]) -> coxswain_types::JobSpec {
    let owned: Vec<_> = sets.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned())).collect();
    let text = JobText { source: "preset", text: "", sets: &owned, base: Path::new("/") };
    let text = job_text(&text, name, workers).unwrap();
    read(&text, sets).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn count(model: &ModelSpec) -> u64 {
    parameter_table(model).iter().map(Parameter::elements).sum()
}

/// Where a number comes from: it is published (with the paper, the model card or its checkpoint), or it
/// is what the named class of the `transformers` library counts on torch's meta device.
#[derive(Clone, Copy)]
enum Source {
    Published,
    Class(&'static str),
    Own,
}

use Source::{Class, Own, Published};

const COUNTS: [(&str, u64, Source); 40] = [
    ("gpt2", 124_439_808, Published),
    ("gpt2-medium", 354_823_168, Published),
    ("gpt2-large", 774_030_080, Published),
    ("gpt2-xl", 1_557_611_200, Published),
    ("gpt3-22b", 22_074_273_792, Published),
    ("gpt3-175b", 174_615_846_912, Published),
    ("mt-nlg-530b", 529_600_819_200, Published),
    ("llama-2-7b", 6_738_415_616, Published),
    ("llama-2-13b", 13_015_864_320, Published),
    ("llama-2-70b", 68_976_648_192, Published),
    ("llama-3-8b", 8_030_261_248, Published),
    ("llama-3-70b", 70_553_706_496, Published),
    ("llama-3.1-405b", 405_853_388_800, Published),
    ("llama-3.2-1b", 1_235_814_400, Published),
    ("llama-3.2-3b", 3_212_749_824, Published),
    ("mistral-7b", 7_241_732_096, Published),
    ("qwen2-0.5b", 494_032_768, Published),
    ("qwen3-0.6b", 596_049_920, Published),
    ("smollm2-135m", 134_515_008, Published),
    ("smollm2-360m", 361_821_120, Published),
    ("deepseek-latent-small", 133_518_336, Own),
    ("bert-base", 109_482_240, Published),
    ("bert-base-mlm", 109_514_298, Published),
    ("bert-large", 335_141_888, Published),
    ("bert-large-mlm", 335_174_458, Published),
    ("roberta-base", 124_645_632, Published),
    ("roberta-base-mlm", 124_697_433, Class("RobertaForMaskedLM")),
    ("roberta-large", 355_359_744, Class("RobertaModel")),
    ("roberta-large-mlm", 355_412_057, Class("RobertaForMaskedLM")),
    ("albert-base", 11_683_584, Class("AlbertModel")),
    ("albert-base-mlm", 11_221_680, Class("AlbertForMaskedLM")),
    ("longformer-base", 148_659_456, Class("LongformerModel")),
    ("longformer-base-mlm", 148_711_257, Class("LongformerForMaskedLM")),
    ("bigbird-base", 127_468_800, Class("BigBirdModel")),
    ("bigbird-base-mlm", 127_520_694, Class("BigBirdForMaskedLM, less its unused pooler")),
    ("t5-small", 60_506_624, Published),
    ("t5-base", 222_903_552, Published),
    ("t5-large", 737_668_096, Published),
    ("bart-base", 139_420_416, Published),
    ("bart-large", 406_291_456, Published),
];

#[test]
fn every_preset_has_the_parameters_that_its_model_has() {
    let told: Vec<_> = COUNTS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(names(), told);
    for (name, expected, source) in COUNTS {
        let source = match source {
            Published => "published".to_owned(),
            Class(class) => format!("of transformers' {class}"),
            Own => "our own".to_owned(),
        };
        let job = job(name, 1, &[]);
        assert_eq!(count(&job.model), expected, "{name}, {source}");
        assert_eq!(sketch(&job, 1).unwrap().parameters(), expected, "{name}, planned");
    }
}

/// GPT with biases, a vocabulary of 51200 and 2048 positions: layers and width of the published table of
/// Megatron-LM's models (arXiv 2104.04473) with their exact sizes, 12lh^2 + 13lh + (V + s)h + 2h.
#[test]
fn megatrons_models_have_their_exact_sizes() {
    for (layers, dim, expected) in [
        (24, 2304, 1_652_230_656),
        (30, 3072, 3_562_168_320),
        (36, 4096, 7_467_786_240),
        (40, 6144, 18_449_756_160),
        (48, 8192, 39_096_041_472),
        (60, 10_240, 76_050_739_200),
        (80, 12_288, 145_622_261_760),
        (96, 16_384, 310_130_540_544),
        (105, 20_480, 529_600_819_200),
        (128, 25_600, 1_008_038_758_400_u64),
    ] {
        let (layers, dim) = (u32::to_string(&layers), u32::to_string(&dim));
        let sets = [
            ("model.layers", layers.as_str()),
            ("model.dim", &dim),
            ("model.heads", "32"),
            ("model.vocab", "51200"),
            ("model.max_positions", "2048"),
        ];
        assert_eq!(count(&job("gpt2", 1, &sets).model), expected, "{layers} {dim}");
    }
}

#[test]
fn every_preset_is_planned_for_several_workers_and_survives_its_resolved_text() {
    for name in names() {
        let one = job(&name, 1, &[]);
        let resolved = resolved_yaml(&one).unwrap();
        assert_eq!(read(&resolved, &[]).unwrap(), one, "{name}");
        for workers in [2, 3, 8] {
            let job = job(&name, workers, &[]);
            let plan = sketch(&job, workers).unwrap_or_else(|error| panic!("{name} {workers}: {error}"));
            assert_eq!(plan.parameters(), count(&one.model), "{name} {workers}");
        }
    }
    let many = job("gpt2", 34, &[]).layout;
    assert_eq!((many.pipeline, many.data), (2, 17));
    let fewer = job("gpt2", 4, &[("train.global_micro_batches", "2")]).train;
    assert_eq!((fewer.global_micro_batches, fewer.gradient_groups), (2, 2));
    let chosen = job("gpt2", 4, &[("layout.tensor", "4")]).layout;
    assert_eq!((chosen.pipeline, chosen.tensor, chosen.data), (1, 4, 1));
}

const REST: &str = "data: {synthetic: {tokens: 4096}}\ntrain: {steps: 5, sequence: 16}\n";

#[test]
fn a_job_overrides_its_preset() {
    let model = |keys: &str, sets: &[(&str, &str)]| {
        read(&format!("name: a\nmodel: {{{keys}}}\n{REST}"), sets).unwrap().model
    };
    let small = model("preset: gpt2, layers: 2, dim: 64", &[("model.heads", "4")]);
    assert_eq!((small.layers, small.dim, small.head_dim, small.ffn, small.vocab), (2, 64, 16, 256, 50257));
    // What goes with the positions of the preset goes with them.
    let rope = model("preset: gpt2, positions: rope", &[]);
    assert_eq!(rope.positions, model("preset: llama-2-7b, positions: rope", &[]).positions);
    assert_eq!(
        model("preset: bert-base", &[("model.preset", "bert-base-mlm")]).head,
        model("preset: roberta-base-mlm", &[]).head
    );
    // `null` takes the default that the key has without a preset.
    assert_eq!(model("preset: llama-3-8b, rope_theta: null", &[]).positions, rope.positions);
}

#[test]
fn an_unknown_preset_is_told_with_the_known_ones() {
    let text = format!("name: a\nmodel:\n  preset: gpt3\n{REST}");
    let told = read(&text, &[]).unwrap_err().to_string();
    assert!(
        told.starts_with(
            "job.yaml:3:3: model.preset: found `gpt3`, which is not a preset; must be one of gpt2, "
        ),
        "{told}"
    );
    assert!(names().iter().all(|name| told.contains(name.as_str())), "{told}");
}

#[test]
fn what_can_be_planned_only_is_not_trained() {
    let refused: Vec<_> = names()
        .iter()
        .filter_map(|name| {
            let text = format!("name: a\nmodel: {{preset: {name}}}\n{REST}");
            let job = JobText { source: "job.yaml", text: &text, sets: &[], base: Path::new("/") };
            parse(&job).err().map(|error| format!("{name}: {error}\n"))
        })
        .collect();
    expect![[r#"
        bert-base: job.yaml:2:1: model.classes: found 0; must be 2 or more: the loss of model.head pooled is over classes; `coxswain plan --preset` can plan it without
        job.yaml:3:8: data.synthetic: has no classes; model.head pooled is trained on data.labelled
        bert-large: job.yaml:2:1: model.classes: found 0; must be 2 or more: the loss of model.head pooled is over classes; `coxswain plan --preset` can plan it without
        job.yaml:3:8: data.synthetic: has no classes; model.head pooled is trained on data.labelled
        roberta-base: job.yaml:2:1: model.classes: found 0; must be 2 or more: the loss of model.head pooled is over classes; `coxswain plan --preset` can plan it without
        job.yaml:3:8: data.synthetic: has no classes; model.head pooled is trained on data.labelled
        roberta-large: job.yaml:2:1: model.classes: found 0; must be 2 or more: the loss of model.head pooled is over classes; `coxswain plan --preset` can plan it without
        job.yaml:3:8: data.synthetic: has no classes; model.head pooled is trained on data.labelled
        albert-base: job.yaml:2:1: model.classes: found 0; must be 2 or more: the loss of model.head pooled is over classes; `coxswain plan --preset` can plan it without
        job.yaml:3:8: data.synthetic: has no classes; model.head pooled is trained on data.labelled
        longformer-base: job.yaml:2:1: model.classes: found 0; must be 2 or more: the loss of model.head pooled is over classes; `coxswain plan --preset` can plan it without
        job.yaml:3:8: data.synthetic: has no classes; model.head pooled is trained on data.labelled
        bigbird-base: job.yaml:2:1: model.classes: found 0; must be 2 or more: the loss of model.head pooled is over classes; `coxswain plan --preset` can plan it without
        job.yaml:3:8: data.synthetic: has no classes; model.head pooled is trained on data.labelled
    "#]].assert_eq(&refused.concat());
}
