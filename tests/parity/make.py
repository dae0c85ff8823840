"""Makes the fixtures of tests/tests/parity.rs: small random models of the `transformers` library, with
the sum of their token losses and its gradients, under the names that this project gives parameters.

    pip install torch transformers safetensors && python tests/parity/make.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import save_file

VOCAB, DIM, FFN, LAYERS, HEADS, TOKENS, ROWS = 48, 16, 24, 2, 4, 12, 2


def llama_names(layer_biases=()):
    names = {"model.embed_tokens.weight": "model.embed_tokens.weight", "model.norm.weight": "model.norm.weight"}
    for i in range(LAYERS):
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                     "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"):
            for kind in ("weight", "bias") if part in layer_biases else ("weight",):
                name = f"model.layers.{i}.{part}.{kind}"
                names[name] = name
    return names


def qwen3_names():
    """Norms of the heads of queries and keys."""
    names = llama_names()
    for i in range(LAYERS):
        for part in "qk":
            name = f"model.layers.{i}.self_attn.{part}_norm.weight"
            names[name] = name
    return names


def both(theirs, ours):
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}


def bert_names(prefix, layers):
    names = {
        f"{prefix}.embeddings.word_embeddings.weight": "model.embed_tokens.weight",
        f"{prefix}.embeddings.position_embeddings.weight": "model.embed_positions.weight",
        f"{prefix}.embeddings.token_type_embeddings.weight": "model.embed_types.weight",
        **both(f"{prefix}.embeddings.LayerNorm", "model.embed_norm"),
    }
    for i in range(layers):
        at, to = f"{prefix}.encoder.layer.{i}", f"model.layers.{i}"
        for theirs, ours in (
            ("attention.self.query", "self_attn.q_proj"), ("attention.self.key", "self_attn.k_proj"),
            ("attention.self.value", "self_attn.v_proj"), ("attention.output.dense", "self_attn.o_proj"),
            ("attention.output.LayerNorm", "input_layernorm"), ("intermediate.dense", "mlp.up_proj"),
            ("output.dense", "mlp.down_proj"), ("output.LayerNorm", "post_attention_layernorm"),
        ):
            names |= both(f"{at}.{theirs}", f"{to}.{ours}")
    return names


def gpt2(model):
    """GPT-2 keeps its maps as [in, out], and queries, keys and values in one."""
    names = {
        "transformer.wte.weight": "model.embed_tokens.weight", "transformer.wpe.weight": "model.embed_positions.weight",
        **both("transformer.ln_f", "model.norm"),
    }
    for i in range(LAYERS):
        at, to = f"transformer.h.{i}", f"model.layers.{i}"
        names |= both(f"{at}.ln_1", f"{to}.input_layernorm") | both(f"{at}.ln_2", f"{to}.post_attention_layernorm")
    for which, take in (("w", lambda p: p.data), ("g", lambda p: p.grad)):
        params = {name: take(p) for name, p in model.named_parameters()}
        for theirs, ours in names.items():
            yield f"{which}/{ours}", params[theirs]
        for i in range(LAYERS):
            at, to = f"transformer.h.{i}", f"model.layers.{i}"
            for theirs, ours in (("attn.c_proj", "self_attn.o_proj"), ("mlp.c_fc", "mlp.up_proj"),
                                 ("mlp.c_proj", "mlp.down_proj")):
                yield f"{which}/{to}.{ours}.weight", params[f"{at}.{theirs}.weight"].T
                yield f"{which}/{to}.{ours}.bias", params[f"{at}.{theirs}.bias"]
            for kind in ("weight", "bias"):
                parts = params[f"{at}.attn.c_attn.{kind}"].chunk(3, -1)
                for ours, part in zip("qkv", parts):
                    yield f"{which}/{to}.self_attn.{ours}_proj.{kind}", part.T if kind == "weight" else part


def plain(names):
    def rows(model):
        params = dict(model.named_parameters())
        for theirs, ours in names.items():
            yield f"w/{ours}", params[theirs].data
            yield f"g/{ours}", params[theirs].grad
    return rows


def families():
    size = dict(vocab_size=VOCAB, hidden_size=DIM, intermediate_size=FFN, num_hidden_layers=LAYERS,
                num_attention_heads=HEADS, max_position_embeddings=32)
    grouped = dict(size, num_key_value_heads=2, rms_norm_eps=1e-5)
    head = {"lm_head.weight": "lm_head.weight"}
    llama3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=32, rope_theta=10000.0)
    yarn = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, rope_theta=10000.0)
    yield "gpt2", hf.GPT2LMHeadModel(hf.GPT2Config(
        vocab_size=VOCAB, n_positions=32, n_embd=DIM, n_layer=LAYERS, n_head=HEADS, n_inner=FFN, resid_pdrop=0,
        embd_pdrop=0, attn_pdrop=0, attn_implementation="eager")), gpt2
    eager = dict(attn_implementation="eager")
    for name, scaling in (("llama3", llama3), ("yarn", yarn)):
        config = hf.LlamaConfig(**grouped, rope_parameters=scaling, tie_word_embeddings=False, **eager)
        yield name, hf.LlamaForCausalLM(config), plain(llama_names() | head)
    config = hf.MistralConfig(**grouped, sliding_window=5, tie_word_embeddings=False, **eager)
    yield "mistral", hf.MistralForCausalLM(config), plain(llama_names() | head)
    config = hf.Qwen2Config(**grouped, tie_word_embeddings=True, **eager)
    biased = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    yield "qwen2", hf.Qwen2ForCausalLM(config), plain(llama_names(biased))

    quiet = dict(size, hidden_dropout_prob=0, attention_probs_dropout_prob=0, type_vocab_size=2, **eager)
    tail = {"cls.predictions.bias": "lm_head.bias", **both("cls.predictions.transform.dense", "lm_head.dense"),
            **both("cls.predictions.transform.LayerNorm", "lm_head.norm")}
    yield "bert", hf.BertForMaskedLM(hf.BertConfig(**quiet)), plain(bert_names("bert", LAYERS) | tail)
    tail = {"lm_head.bias": "lm_head.bias", **both("lm_head.dense", "lm_head.dense"),
            **both("lm_head.layer_norm", "lm_head.norm")}
    # Its head is GELU whatever its layers are.
    config = hf.RobertaConfig(**dict(quiet, max_position_embeddings=34, type_vocab_size=1), pad_token_id=1,
                              hidden_act="relu")
    yield "roberta", hf.RobertaForMaskedLM(config), plain(bert_names("roberta", LAYERS) | tail)
    # Two groups do not divide three layers.
    config = hf.AlbertConfig(**dict(quiet, num_hidden_layers=3, num_hidden_groups=2), embedding_size=8,
                             hidden_act="gelu_new")
    names = bert_names("albert", 0) | both("albert.encoder.embedding_hidden_mapping_in", "model.embed_map")
    for group in range(config.num_hidden_groups):
        at, to = f"albert.encoder.albert_layer_groups.{group}.albert_layers.0", f"model.layer_groups.{group}"
        for theirs, ours in (("attention.query", "self_attn.q_proj"), ("attention.key", "self_attn.k_proj"),
                             ("attention.value", "self_attn.v_proj"), ("attention.dense", "self_attn.o_proj"),
                             ("attention.LayerNorm", "input_layernorm"), ("ffn", "mlp.up_proj"),
                             ("ffn_output", "mlp.down_proj"), ("full_layer_layer_norm", "post_attention_layernorm")):
            names |= both(f"{at}.{theirs}", f"{to}.{ours}")
    tail = {"predictions.bias": "lm_head.bias", **both("predictions.dense", "lm_head.dense"),
            **both("predictions.LayerNorm", "lm_head.norm")}
    yield "albert", hf.AlbertForMaskedLM(config), plain(names | tail)


def more_encoders():
    quiet = dict(vocab_size=VOCAB, hidden_size=DIM, intermediate_size=FFN, num_hidden_layers=LAYERS,
                 num_attention_heads=HEADS, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    tail = {"lm_head.bias": "lm_head.bias", **both("lm_head.dense", "lm_head.dense"),
            **both("lm_head.layer_norm", "lm_head.norm")}
    config = hf.LongformerConfig(**quiet, max_position_embeddings=34, type_vocab_size=1, pad_token_id=1,
                                 attention_window=[4] * LAYERS)
    names = bert_names("longformer", LAYERS) | tail
    for i in range(LAYERS):
        for theirs, ours in (("query", "q"), ("key", "k"), ("value", "v")):
            names |= both(f"longformer.encoder.layer.{i}.attention.self.{theirs}_global",
                          f"model.layers.{i}.self_attn.global_{ours}_proj")
    yield "longformer", hf.LongformerForMaskedLM(config), plain(names)
    config = hf.BigBirdConfig(**quiet, max_position_embeddings=32, attention_type="original_full")
    tail = {"cls.predictions.bias": "lm_head.bias", **both("cls.predictions.transform.dense", "lm_head.dense"),
            **both("cls.predictions.transform.LayerNorm", "lm_head.norm")}
    yield "big_bird", hf.BigBirdForMaskedLM(config), plain(bert_names("bert", LAYERS) | tail)
    config = hf.BertConfig(**quiet, max_position_embeddings=32, num_labels=3, classifier_dropout=0)
    tail = {**both("bert.pooler.dense", "pooler.dense"), **both("classifier", "classifier")}
    yield "bert_classes", hf.BertForSequenceClassification(config), plain(bert_names("bert", LAYERS) | tail)


def t5_names():
    """The tables of relative positions lie in the first block of each stack."""
    names = {"shared.weight": "model.embed_tokens.weight", "encoder.final_layer_norm.weight": "model.encoder.norm.weight",
             "decoder.final_layer_norm.weight": "model.norm.weight"}
    for stack, ours in (("encoder", "model.encoder"), ("decoder", "model")):
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        names[table] = f"{ours}.relative_bias.weight"
        for i in range(LAYERS):
            at, to = f"{stack}.block.{i}.layer", f"{ours}.layers.{i}"
            for part in "qkvo":
                names[f"{at}.0.SelfAttention.{part}.weight"] = f"{to}.self_attn.{part}_proj.weight"
            names[f"{at}.0.layer_norm.weight"] = f"{to}.input_layernorm.weight"
            last = 1
            if stack == "decoder":
                for part in "qkvo":
                    names[f"{at}.1.EncDecAttention.{part}.weight"] = f"{to}.cross_attn.{part}_proj.weight"
                names[f"{at}.1.layer_norm.weight"] = f"{to}.cross_attention_layernorm.weight"
                last = 2
            names[f"{at}.{last}.DenseReluDense.wi.weight"] = f"{to}.mlp.up_proj.weight"
            names[f"{at}.{last}.DenseReluDense.wo.weight"] = f"{to}.mlp.down_proj.weight"
            names[f"{at}.{last}.layer_norm.weight"] = f"{to}.post_attention_layernorm.weight"
    return names


def bart_names():
    names = {"model.shared.weight": "model.embed_tokens.weight"}
    for stack, ours in (("encoder", "model.encoder"), ("decoder", "model")):
        names[f"model.{stack}.embed_positions.weight"] = f"{ours}.embed_positions.weight"
        names |= both(f"model.{stack}.layernorm_embedding", f"{ours}.embed_norm")
        for i in range(LAYERS):
            at, to = f"model.{stack}.layers.{i}", f"{ours}.layers.{i}"
            kinds = [("self_attn", "self_attn"), ("encoder_attn", "cross_attn")][: 1 if stack == "encoder" else 2]
            for theirs, own in kinds:
                for theirs_part, part in (("q_proj",) * 2, ("k_proj",) * 2, ("v_proj",) * 2, ("out_proj", "o_proj")):
                    names |= both(f"{at}.{theirs}.{theirs_part}", f"{to}.{own}.{part}")
            norms = [("self_attn_layer_norm", "input_layernorm"), ("final_layer_norm", "post_attention_layernorm"),
                     ("encoder_attn_layer_norm", "cross_attention_layernorm")][: 2 if stack == "encoder" else 3]
            for theirs, own in norms + [("fc1", "mlp.up_proj"), ("fc2", "mlp.down_proj")]:
                names |= both(f"{at}.{theirs}", f"{to}.{own}")
    return names


def encoder_decoders():
    config = hf.T5Config(vocab_size=VOCAB, d_model=DIM, d_kv=DIM // HEADS, d_ff=FFN, num_layers=LAYERS, num_heads=HEADS,
                         relative_attention_num_buckets=8, relative_attention_max_distance=16, dropout_rate=0,
                         tie_word_embeddings=True, attn_implementation="eager")
    yield "t5", hf.T5ForConditionalGeneration(config), plain(t5_names())
    config = hf.BartConfig(vocab_size=VOCAB, d_model=DIM, encoder_layers=LAYERS, decoder_layers=LAYERS,
                           encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=FFN,
                           decoder_ffn_dim=FFN, max_position_embeddings=32, dropout=0, attention_dropout=0,
                           activation_dropout=0, attn_implementation="eager")
    yield "bart", hf.BartForConditionalGeneration(config), plain(bart_names())


def more_decoders():
    config = hf.Qwen3Config(vocab_size=VOCAB, hidden_size=DIM, intermediate_size=FFN, num_hidden_layers=LAYERS,
                            num_attention_heads=HEADS, num_key_value_heads=2, head_dim=8, max_position_embeddings=32,
                            rms_norm_eps=1e-6, tie_word_embeddings=False, attn_implementation="eager")
    yield "qwen3", hf.Qwen3ForCausalLM(config), plain(qwen3_names() | {"lm_head.weight": "lm_head.weight"})


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for index, (name, model, rows) in enumerate([*families(), *encoder_decoders(), *more_encoders(), *more_decoders()]):
        torch.manual_seed(index)
        with torch.no_grad():
            for which, p in model.named_parameters():
                norm = p.dim() == 1 and which.endswith("weight")
                p.normal_(1.0 if norm else 0.0, 0.2)
        ids = torch.randint(2, VOCAB, (ROWS, TOKENS + 1))
        inputs, source = {"input_ids": ids[:, :-1]}, {}
        if model.config.is_encoder_decoder:
            source = {"source": torch.randint(2, VOCAB, (ROWS, TOKENS))}
            inputs = {"input_ids": source["source"], "decoder_input_ids": ids[:, :-1]}
        if name == "longformer":
            # The first token sees all, and is seen by all.
            inputs["global_attention_mask"] = torch.zeros_like(inputs["input_ids"])
            inputs["global_attention_mask"][:, 0] = 1
        logits, targets = model(**inputs).logits, ids[:, 1:]
        if logits.dim() == 2:
            logits, targets = logits[:, None], ids[:, -1:] % logits.shape[-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        loss.backward()
        tensors = {key: value.contiguous().clone() for key, value in rows(model)}
        tensors |= {"ids": ids[:, :-1].contiguous(), "targets": targets.contiguous(), "loss": loss.detach()} | source
        save_file(tensors, folder / f"{name}.safetensors")
        print(f"{name}: {sum(v.numel() for k, v in tensors.items() if k.startswith('w/'))} weights, loss {loss:.6f}")


main()
