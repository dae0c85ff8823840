"""Lists the configuration, tensor names and shapes of a small model of each family, as the `transformers`
library writes them, into proto/files/src/hf/families.json.

    pip install torch transformers safetensors && python tests/parity/families.py
"""

import json
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


def listed(make):
    with tempfile.TemporaryDirectory() as folder:
        make().save_pretrained(folder)
        tensors = safe_open(Path(folder) / "model.safetensors", "pt")
        shapes = {name: list(tensors.get_slice(name).get_shape()) for name in sorted(tensors.keys())}
        return json.loads((Path(folder) / "config.json").read_text()), shapes


def main():
    families = {name: listed(make) for name, make in MODELS.items()}
    target = Path(__file__).parents[2] / "proto/files/src/hf/families.json"
    target.write_text(json.dumps(families, indent=None, sort_keys=True).replace('], "', '],\n"') + "\n")


main()
