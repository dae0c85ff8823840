use super::*;
use crate::model::{Attention, Positions, RopeScaling};
use crate::model::{Biases, NormKind};

type Change = fn(&mut ModelSpec);

/// Models whose numbers fit, of several forms.
fn sound() -> Vec<ModelSpec> {
    let plain = ModelSpec::llama(2, 32, 4, 2, 64, 300);
    let encoder = ModelSpec { architecture: Architecture::Encoder, ..plain.clone() };
    let masked = Head::MaskedLm { activation: Activation::Gelu };
    vec![
        ModelSpec { positions: Positions::Learned { max: 64, offset: 2 }, ..plain.clone() },
        ModelSpec { head: masked, layer_groups: 1, ..encoder.clone() },
        ModelSpec { head: Head::Pooled { classes: 0 }, biases: Biases::default(), ..encoder },
        ModelSpec {
            architecture: Architecture::EncoderDecoder,
            encoder_layers: 3,
            positions: Positions::RelativeBias { buckets: 32, max_distance: 128 },
            ..plain.clone()
        },
        ModelSpec { attention: Attention::Compressed { window: 8, block: 4 }, ..plain.clone() },
        plain,
    ]
}

#[test]
fn sound_models_pass() {
    for model in sound() {
        assert_eq!(model.check_bounds(), Ok(()), "{model:?}");
    }
}

#[test]
fn each_number_of_a_model_has_its_bounds() {
    let rows: [(&str, Change); 32] = [
        ("model.layers", |m| m.layers = u32::MAX),
        ("model.layers", |m| m.layers = 0),
        ("model.encoder_layers", |m| m.encoder_layers = 1),
        ("model.encoder_layers", |m| {
            (m.architecture, m.encoder_layers) = (Architecture::EncoderDecoder, u32::MAX);
        }),
        ("model.layer_groups", |m| m.layer_groups = 0),
        ("model.layer_groups", |m| m.layer_groups = 3),
        ("model.dim", |m| m.dim = u32::MAX),
        ("model.heads", |m| m.heads = 0),
        ("model.kv_heads", |m| m.kv_heads = 0),
        ("model.kv_heads", |m| m.kv_heads = 3),
        ("model.head_dim", |m| m.head_dim = 1 << 20),
        ("model.head_dim", |m| m.head_dim = 7),
        ("model.ffn", |m| m.ffn = u32::MAX),
        ("model.vocab", |m| m.vocab = u32::MAX),
        ("model.embedding_dim", |m| m.embedding.dim = 0),
        ("model.token_types", |m| m.embedding.types = u32::MAX),
        ("model.classes", |m| m.head = Head::Pooled { classes: u32::MAX }),
        ("model.head_activation", |m| m.head = Head::MaskedLm { activation: Activation::Swiglu }),
        ("model.max_positions", |m| m.positions = Positions::Learned { max: 0, offset: 0 }),
        ("model.position_offset", |m| m.positions = Positions::Learned { max: 9, offset: u32::MAX }),
        ("model.rope_theta", |m| {
            m.positions = Positions::Rope { theta: f64::NAN, scaling: RopeScaling::None };
        }),
        ("model.rope_scaling.factor", |m| {
            m.positions = Positions::Rope { theta: 9.0, scaling: RopeScaling::Linear { factor: 0.0 } };
        }),
        ("model.rope_scaling.beta_fast", |m| {
            let scaling = RopeScaling::Yarn { factor: 2.0, beta_fast: 1.0, beta_slow: 1.0, original: 9 };
            m.positions = Positions::Rope { theta: 9.0, scaling };
        }),
        ("model.relative_buckets", |m| {
            m.positions = Positions::RelativeBias { buckets: u32::MAX, max_distance: 128 };
        }),
        ("model.relative_max_distance", |m| {
            m.positions = Positions::RelativeBias { buckets: 32, max_distance: 16 };
        }),
        ("model.attention.window", |m| m.attention = Attention::Window { window: u32::MAX }),
        ("model.attention.window", |m| {
            m.attention = Attention::BigBird { block: 4, window: 2, global: 1, last: 0, random: 1 };
        }),
        ("model.attention.block", |m| {
            m.attention = Attention::Compressed { window: 4, block: u32::MAX };
        }),
        ("model.attention.rank", |m| m.attention = Attention::Latent { rank: 0, rope_dim: 4 }),
        ("model.attention.rope_dim", |m| {
            (m.kv_heads, m.attention) = (4, Attention::Latent { rank: 8, rope_dim: 8 });
        }),
        ("model.norm_eps", |m| m.norm.eps = -1.0),
        ("model.attention_scale", |m| m.attention_scale = f64::INFINITY),
    ];
    for (key, change) in rows {
        let mut model = ModelSpec::llama(2, 32, 4, 2, 64, 300);
        model.norm.kind = NormKind::Layer;
        change(&mut model);
        let found = model.check_bounds().map_err(|error| error.key);
        assert_eq!(found, Err(key), "{model:?}");
    }
}
