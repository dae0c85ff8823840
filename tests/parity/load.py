"""Loads exports with the `transformers` library, of version 4 or 5, and compares what it makes of them with what
`tests/tests/parity/exports.rs` wrote beside each: the loss, the tokens of texts, and what configurations say.

    pip install torch transformers safetensors && python tests/parity/load.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import load_file

# Relative, as sums of fp32 in another order differ.
TOLERANCE = 1e-6
AUTO = {"LMHeadModel": hf.AutoModelForCausalLM, "ForCausalLM": hf.AutoModelForCausalLM,
        "ForMaskedLM": hf.AutoModelForMaskedLM, "ForConditionalGeneration": hf.AutoModelForSeq2SeqLM,
        "ForSequenceClassification": hf.AutoModelForSequenceClassification}


def loss_of(model, batch):
    inputs = {"input_ids": batch["ids"]}
    if model.config.is_encoder_decoder:
        inputs = {"input_ids": batch["source"], "decoder_input_ids": batch["ids"]}
    if model.config.model_type == "longformer":
        # The first token sees all, and is seen by all.
        inputs["global_attention_mask"] = torch.zeros_like(batch["ids"])
        inputs["global_attention_mask"][:, 0] = 1
    with torch.no_grad():
        logits = model(**inputs).logits
    logits = logits[:, None] if logits.dim() == 2 else logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum").item()


def faults(path, batch, expected):
    auto = next(auto for ends, auto in AUTO.items() if expected["class"].endswith(ends))
    model, info = auto.from_pretrained(path, attn_implementation="eager", output_loading_info=True)
    model.eval()
    if type(model).__name__ != expected["class"]:
        yield f"it is a {type(model).__name__}"
    for what, keys in info.items():
        if keys:
            yield f"{what}: {keys}"
    loss = loss_of(model, batch)
    off = abs(loss / expected["loss"] - 1)
    print(f"{path.name:<14} {expected['class']:<32} loss {loss:.6f}, off by {off:.1e}")
    if not off < TOLERANCE:
        yield f"the loss is {loss}, and {expected['loss']} here"

    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    for text, ids, cut in expected["texts"]:
        found = tokenizer(text)["input_ids"]
        if found != ids:
            yield f"the tokens of {text!r} are {found}, and {ids} here"
        found = tokenizer(text, truncation=True)["input_ids"]
        if found != cut:
            yield f"cut, the tokens of {text!r} are {found}, and {cut} here"
    config = model.config
    for key in ("bos", "eos", "pad"):
        token, id = getattr(tokenizer, f"{key}_token_id"), getattr(config, f"{key}_token_id")
        # What these count positions from is a token of texts, as `plan` says.
        counts = key == "pad" and config.model_type in ("roberta", "longformer")
        if token != id and not counts:
            yield f"the {key}_token_id of its tokenizer is {token}, and of its configuration {id}"
    if expected["mask"] is not None and tokenizer.convert_tokens_to_ids(
            "<mask>" if tokenizer.mask_token else "<extra_id_0>") != expected["mask"]:
        yield f"the mask is {tokenizer.mask_token}, and {expected['mask']} here"
    if expected["classes"] and list(config.id2label.values()) != expected["classes"]:
        yield f"its classes are {config.id2label}"
    if expected["classes"] and [config.label2id[name] for name in expected["classes"]] != [0, 1, 2]:
        yield f"its classes are {config.label2id}"
    if config.is_encoder_decoder and config.decoder_start_token_id != expected["decoder_start"]:
        yield f"its decoder begins with {config.decoder_start_token_id}, and {expected['decoder_start']} here"
    if model.can_generate() and expected["class"].endswith(("LMHeadModel", "ForCausalLM", "ForConditionalGeneration")):
        if model.generation_config.eos_token_id != config.eos_token_id:
            yield f"it ends with {model.generation_config.eos_token_id}, and {config.eos_token_id} in its configuration"
        model.generate(**tokenizer("The boat", return_tensors="pt"), max_new_tokens=2, do_sample=False)


def main():
    folder, failed = Path(sys.argv[1]), False
    print(f"transformers {hf.__version__}")
    paths = sorted(path for path in folder.iterdir() if path.is_dir())
    for path in paths:
        batch = load_file(folder / f"{path.name}.safetensors")
        for fault in faults(path, batch, json.loads((path / "expected.json").read_text())):
            print(f"  {path.name}: {fault}")
            failed = True
    sys.exit(1 if failed or not paths else 0)


main()
