"""GGUF by the ``gguf`` package's writer, then llama.cpp's own quantizer. Llama-shaped models with a byte-level BPE.

Rows of q and k are stored in llama.cpp's rotary order: a head's two halves become interleaved pairs (the layout of
Su et al. 2021, RoFormer; Hugging Face keeps halves apart). The tokenizer's split rule is left at llama.cpp's default:
the bench hands over tokens, not text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from greenllm.errors import GreenError

_NAMES = {"F16": "LLAMA_FTYPE_MOSTLY_F16", "Q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0", "Q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0",
          "Q4_K_M": "LLAMA_FTYPE_MOSTLY_Q4_K_M"}  # fmt: skip


def write(checkpoint: Path, file: Path) -> None:
    """Write a checkpoint as float16 GGUF (norms in float32).

    Args:
        checkpoint: directory with config.json, safetensors and tokenizer.json.
        file: ``.gguf`` file to make.

    Raises:
        GreenError: the model is not Llama-shaped, or has scaled rotary embeddings or another tokenizer.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    if config["architectures"] != ["LlamaForCausalLM"] or rope.get("rope_type", "default") != "default":
        raise GreenError(
            f"{checkpoint} is {config['architectures'][0]} with {rope.get('rope_type', 'default')} rotary embeddings; "
            "the GGUF peer is made of plain Llama-shaped models only."
        )
    writer = gguf.GGUFWriter(file, "llama")
    _describe(writer, config, float(rope["rope_theta"]))
    _tokenizer(writer, checkpoint, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj.weight": config["num_attention_heads"], "k_proj.weight": config["num_key_value_heads"]}
    for key, tensor in _tensors(checkpoint):
        rows = next((n for end, n in heads.items() if key.endswith(end)), 0)
        value = _interleave(tensor, rows) if rows else tensor
        to = names.get_name(key, try_suffixes=(".weight",))
        if to is None:
            raise GreenError(f"llama.cpp has no name for {key} in a Llama.")
        writer.add_tensor(to, value.astype(np.float16 if value.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, file: Path, kind: str, threads: int = 1) -> None:
    """Run llama.cpp's quantizer, without an importance matrix, as its command does when told nothing else.

    Raises:
        GreenError: llama.cpp refuses.
    """
    import llama_cpp as ll

    options = ll.llama_model_quantize_default_params()
    options.ftype, options.nthread = getattr(ll, _NAMES[kind]), threads
    if ll.llama_model_quantize(str(source).encode(), str(file).encode(), options) != 0:
        raise GreenError(f"llama.cpp cannot quantize {source} to {kind}; its log says why.")


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any], theta: float) -> None:
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _tokenizer(writer: gguf.GGUFWriter, checkpoint: Path, size: int) -> None:
    """Tokens by id, with fillers up to the model's vocabulary, and merges."""
    held = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    if held["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(held["pre_tokenizer"]):
        raise GreenError(f"{checkpoint}: the GGUF peer needs a tokenizer.json with a byte-level BPE.")
    known = [(f"[PAD{i}]", gguf.TokenType.UNUSED) for i in range(size)]
    for text, i in held["model"]["vocab"].items():
        known[i] = (text, gguf.TokenType.NORMAL)
    for token in held["added_tokens"]:
        known[token["id"]] = (token["content"], gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _ in known])
    writer.add_token_types([kind for _, kind in known])
    gguf.SpecialVocab(checkpoint, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)


def _tensors(checkpoint: Path) -> Any:
    """Name and float32 array of each tensor, one at a time."""
    from safetensors import safe_open

    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as f:
            for key in f.keys():  # noqa: SIM118 - a reader, not a dict
                yield key, f.get_tensor(key).float().numpy()


def _interleave(W: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """[heads * d, in], each head's rows from (0 … d/2, d/2 … d) to pairs (0, d/2, 1, d/2 + 1, …)."""
    return W.reshape(heads, 2, -1, W.shape[1]).swapaxes(1, 2).reshape(W.shape)
