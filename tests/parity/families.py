"""Lists, as the `transformers` library has them, into proto/files/src/hf: the configuration, tensor names and
shapes of a small model of each family (families.json), the defaults of each family's configuration
(defaults.json), and small stand-ins of published checkpoints, with the names that those have (published.json).

    pip install torch transformers safetensors && python tests/parity/families.py
"""

import dataclasses
import json
import re
import tempfile
from pathlib import Path

import transformers as hf
from safetensors import safe_open

PLAIN = dict(vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)
GROUPED = dict(PLAIN, num_key_value_heads=2)
BERT = dict(PLAIN, max_position_embeddings=34)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
T5 = dict(vocab_size=60, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=4,
          relative_attention_num_buckets=8, relative_attention_max_distance=16)

MODELS = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=60, n_positions=32, n_embd=16, n_layer=2, n_head=4)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, rope_parameters=LLAMA3)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=5)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED, tie_word_embeddings=True)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=6)),
    "qwen3, tied": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=4, tie_word_embeddings=True)),
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**BERT)),
    "bert, bare": lambda: hf.BertModel(hf.BertConfig(**BERT)),
    "bert, classes": lambda: hf.BertForSequenceClassification(hf.BertConfig(**BERT, num_labels=3)),
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**BERT, type_vocab_size=1, pad_token_id=1)),
    "roberta, classes": lambda: hf.RobertaForSequenceClassification(
        hf.RobertaConfig(**BERT, type_vocab_size=1, pad_token_id=1, num_labels=3)),
    "albert": lambda: hf.AlbertForMaskedLM(hf.AlbertConfig(**BERT, embedding_size=8)),
    "albert, bare": lambda: hf.AlbertModel(hf.AlbertConfig(**BERT, embedding_size=8)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "t5, gated": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(
        vocab_size=60, d_model=16, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32)),
    "longformer": lambda: hf.LongformerForMaskedLM(
        hf.LongformerConfig(**BERT, type_vocab_size=1, pad_token_id=1, attention_window=[4, 4])),
    "big_bird": lambda: hf.BigBirdForMaskedLM(hf.BigBirdConfig(**BERT, attention_type="original_full")),
}

CONFIGS = dict(gpt2=hf.GPT2Config, llama=hf.LlamaConfig, mistral=hf.MistralConfig, qwen2=hf.Qwen2Config,
               qwen3=hf.Qwen3Config,
               bert=hf.BertConfig, roberta=hf.RobertaConfig, albert=hf.AlbertConfig, longformer=hf.LongformerConfig,
               big_bird=hf.BigBirdConfig, t5=hf.T5Config, bart=hf.BartConfig)

# The keys of published configurations that say the model, with small sizes.
UNCASED = dict(BERT, hidden_act="gelu", layer_norm_eps=1e-12, type_vocab_size=2, pad_token_id=0,
               position_embedding_type="absolute", gradient_checkpointing=False, model_type="bert")
ROBERTA = dict(BERT, hidden_act="gelu", layer_norm_eps=1e-5, type_vocab_size=1, pad_token_id=1)
RMS = dict(hidden_act="silu", rms_norm_eps=1e-5)
OLD_T5 = dict(vocab_size=60, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, layer_norm_epsilon=1e-6,
              relative_attention_num_buckets=8, n_positions=512, model_type="t5",
              architectures=["T5ForConditionalGeneration"])
NEW_T5 = dict(OLD_T5, num_decoder_layers=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
UNTIED_T5 = {f"{name}.weight": [60, 16] for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")}
ROPE_BUFFERS = {"model.layers.*.self_attn.rotary_emb.inv_freq": [2]}
POOLER = {"pooler.dense.weight": [16, 16], "pooler.dense.bias": [16]}
NEXT_SENTENCE = {"cls.seq_relationship.weight": [2, 16], "cls.seq_relationship.bias": [2]}


def below(prefix, tensors):
    return {f"{prefix}.{name}": shape for name, shape in tensors.items()}


# What each checkpoint has: the names of a class of today, changed where they are older, and more tensors.
PUBLISHED = {
    "gpt2": (MODELS["gpt2"], (r"^transformer\.", ""), {"h.*.attn.bias": [1, 1, 32, 32]}, dict(
        model_type="gpt2", architectures=["GPT2LMHeadModel"], activation_function="gelu_new", n_ctx=32, n_embd=16,
        n_head=4, n_layer=2, n_positions=32, vocab_size=60, layer_norm_epsilon=1e-5)),
    "distilgpt2": (MODELS["gpt2"], None, below("transformer", {
        "h.*.attn.bias": [1, 1, 32, 32], "h.*.attn.masked_bias": [1]}) | {"lm_head.weight": [60, 16]}, dict(
        model_type="gpt2", architectures=["GPT2LMHeadModel"], n_ctx=32, n_embd=16, n_head=4, n_layer=2,
        n_positions=32, vocab_size=60)),
    "llama-2-7b": (MODELS["llama"], None, ROPE_BUFFERS, dict(
        GROUPED, **RMS, model_type="llama", architectures=["LlamaForCausalLM"], max_position_embeddings=32,
        pretraining_tp=1, rope_scaling=None, tie_word_embeddings=False, torch_dtype="float16")),
    "llama-3.2-1b": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, tie_word_embeddings=True)), None, {}, dict(
        GROUPED, **RMS, model_type="llama", architectures=["LlamaForCausalLM"], attention_bias=False, mlp_bias=False,
        head_dim=4, max_position_embeddings=131072, rope_theta=500000.0, rope_scaling=dict(
            factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=8192,
            rope_type="llama3"), tie_word_embeddings=True)),
    "mistral-7b": (MODELS["mistral"], None, {}, dict(
        GROUPED, **RMS, model_type="mistral", architectures=["MistralForCausalLM"], max_position_embeddings=32768,
        rope_theta=10000.0, sliding_window=4096, tie_word_embeddings=False)),
    "qwen2-0.5b": (MODELS["qwen2"], None, {}, dict(
        GROUPED, hidden_act="silu", rms_norm_eps=1e-6, model_type="qwen2", architectures=["Qwen2ForCausalLM"],
        max_position_embeddings=131072, max_window_layers=24, rope_theta=1000000.0, sliding_window=131072,
        use_sliding_window=False, tie_word_embeddings=True)),
    "qwen3-0.6b": (MODELS["qwen3, tied"], None, {"lm_head.weight": [60, 16]}, dict(
        GROUPED, hidden_act="silu", rms_norm_eps=1e-6, model_type="qwen3", architectures=["Qwen3ForCausalLM"],
        attention_bias=False, head_dim=4, max_position_embeddings=40960, max_window_layers=28, rope_scaling=None,
        rope_theta=1000000, sliding_window=None, use_sliding_window=False, tie_word_embeddings=True)),
    "bert-base-uncased": (MODELS["bert"], "gamma", below("bert", POOLER) | NEXT_SENTENCE | {
        "cls.predictions.decoder.weight": [60, 16]}, dict(UNCASED, architectures=["BertForMaskedLM"])),
    "all-MiniLM-L6-v2": (MODELS["bert, bare"], None, {"embeddings.position_ids": [1, 34]}, dict(
        UNCASED, architectures=["BertModel"])),
    "roberta-base": (MODELS["roberta"], None, below("roberta", POOLER | {"embeddings.position_ids": [1, 34]}) | {
        "lm_head.decoder.weight": [60, 16], "lm_head.decoder.bias": [60]}, dict(
        ROBERTA, model_type="roberta", architectures=["RobertaForMaskedLM"])),
    "twitter-roberta-base-sentiment": (MODELS["roberta, classes"], None, below("roberta", POOLER), dict(
        ROBERTA, model_type="roberta", architectures=["RobertaForSequenceClassification"],
        id2label={"0": "negative", "1": "neutral", "2": "positive"})),
    "albert-base-v2": (MODELS["albert"], None, below("albert", {"pooler.weight": [16, 16], "pooler.bias": [16]}) | {
        "predictions.decoder.weight": [60, 8], "predictions.decoder.bias": [60]}, dict(
        BERT, model_type="albert", architectures=["AlbertForMaskedLM"], hidden_act="gelu_new", embedding_size=8,
        inner_group_num=1, num_hidden_groups=1, type_vocab_size=2, layer_norm_eps=1e-12, net_structure_type=0,
        gap_size=0, num_memory_blocks=0, down_scale_factor=1)),
    "longformer-base-4096": (MODELS["longformer"], None, below("longformer", POOLER | {
        "embeddings.position_ids": [1, 34]}) | {"lm_head.decoder.weight": [60, 16]}, dict(
        ROBERTA, model_type="longformer", attention_mode="longformer", attention_window=[4, 4],
        ignore_attention_mask=False)),
    "bigbird-roberta-base": (MODELS["big_bird"], None, below("bert", {
        "pooler.weight": [16, 16], "pooler.bias": [16], "embeddings.position_ids": [1, 34]}) | NEXT_SENTENCE | {
        "cls.predictions.decoder.weight": [60, 16], "cls.predictions.decoder.bias": [60]}, dict(
        BERT, model_type="big_bird", architectures=["BigBirdForPreTraining"], attention_type="block_sparse",
        block_size=64, num_random_blocks=3, hidden_act="gelu_new", layer_norm_eps=1e-12, rescale_embeddings=False,
        type_vocab_size=2, use_bias=True, position_embedding_type="absolute")),
    "t5-small": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**dict(T5, num_decoder_layers=2))), None, {
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": [8, 4],
        "encoder.embed_tokens.weight": [60, 16], "decoder.embed_tokens.weight": [60, 16]}, OLD_T5),
    "t5-v1_1-small": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**dict(
        T5, num_decoder_layers=2, feed_forward_proj="gated-gelu"))), None, UNTIED_T5, NEW_T5),
    "flan-t5-small": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**dict(
        T5, num_decoder_layers=2, feed_forward_proj="gated-gelu"))), None, UNTIED_T5, dict(
        NEW_T5, dense_act_fn="gelu_new", is_gated_act=True, relative_attention_max_distance=128)),
    "t5-v1_1-small, saved again": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**dict(
        T5, num_decoder_layers=2, feed_forward_proj="gated-gelu"))), None, UNTIED_T5, dict(
        NEW_T5, tie_word_embeddings=True, scale_decoder_outputs=False, dense_act_fn="gelu_new", is_gated_act=True)),
    "bart-base": (lambda: hf.BartModel(hf.BartConfig(
        vocab_size=60, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32)), None, {
        "encoder.embed_tokens.weight": [60, 16], "decoder.embed_tokens.weight": [60, 16]}, dict(
        model_type="bart", architectures=["BartModel"], vocab_size=60, d_model=16, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24,
        max_position_embeddings=32, activation_function="gelu", add_bias_logits=False, add_final_layer_norm=False,
        normalize_before=False, normalize_embedding=True, scale_embedding=False)),
    "bart-large-cnn": (lambda: hf.BartForConditionalGeneration(hf.BartConfig(
        vocab_size=60, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32)), None, {
        "model.encoder.embed_tokens.weight": [60, 16], "model.decoder.embed_tokens.weight": [60, 16],
        "lm_head.weight": [60, 16]}, dict(
        model_type="bart", architectures=["BartForConditionalGeneration"], vocab_size=60, d_model=16,
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=24,
        decoder_ffn_dim=24, max_position_embeddings=32, activation_function="gelu", scale_embedding=False)),
}


def listed(make):
    with tempfile.TemporaryDirectory() as folder:
        make().save_pretrained(folder)
        tensors = safe_open(Path(folder) / "model.safetensors", "pt")
        shapes = {name: list(tensors.get_slice(name).get_shape()) for name in sorted(tensors.keys())}
        return json.loads((Path(folder) / "config.json").read_text()), shapes


def defaults(config):
    """Of the keys of the class itself."""
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    own = [name for name in config.__annotations__ if name in fields]
    return {name: fields[name] for name in own if name != "model_type"}


def published(make, older, more, config):
    """With a star for the number of a layer in names that all layers have."""
    _, shapes = listed(make)
    if older == "gamma":
        shapes = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): shape
                  for name, shape in shapes.items()}
    elif older:
        shapes = {re.sub(*older, name): shape for name, shape in shapes.items()}
    star = {name: re.sub(r"(layers?|h|block)\.[01]\.", r"\1.*.", name, count=1) for name in shapes}
    every = [pattern for pattern in star.values() if list(star.values()).count(pattern) == 2]
    return config, {star[name] if star[name] in every else name: shape for name, shape in shapes.items()} | more


def write(name, value, lines):
    target = Path(__file__).parents[2] / "proto/files/src/hf" / name
    target.write_text(json.dumps(value, indent=None, sort_keys=True).replace(lines, lines[:-2] + "\n" + lines[-1]) + "\n")


def main():
    write("families.json", {name: listed(make) for name, make in MODELS.items()}, '], "')
    write("defaults.json", {name: defaults(config) for name, config in CONFIGS.items()}, '}, "')
    write("published.json", {name: published(*of) for name, of in PUBLISHED.items()}, '], "')


main()
