"""A language model of half a megabyte, made here in a moment: for tests with mlx_lm where no download may be.

It counts: whatever it is asked, it answers ``w000 w001 w002 ...``, each word one token, so that a lost, doubled or
moved token shows. It is a Llama whose layers add nothing to the embedding of the last token (but take the time that
layers take), and whose head answers the embedding of each word with the next word. Many layers make it slow.

    python -m tests.tiny_model DIRECTORY [LAYERS]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

WORDS: Final = 200
"""How many words it knows; after the last comes the first again."""

_HIDDEN: Final = 64
_HEADS: Final = 4
_INNER: Final = 128
_SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>")
# The last token of every prompt is a space: the one that the first word follows.
_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def answer(tokens: int) -> str:
    """What it says when it may say so many tokens."""
    return " ".join(f"w{number % WORDS:03d}" for number in range(tokens))


def build_tiny_model(directory: Path, *, layers: int = 2) -> Path:
    """Write the model's files to ``directory``, which is made, and return it. Needs what mlx-lm brings."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(directory)
    rows = -(-len(vocabulary) // 32) * 32
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "float32",
        "vocab_size": rows,
        "hidden_size": _HIDDEN,
        "num_hidden_layers": layers,
        "intermediate_size": _INNER,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "head_dim": _HIDDEN // _HEADS,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "bos_token_id": vocabulary["<|endoftext|>"],
        "eos_token_id": vocabulary["<|im_end|>"],
    }
    (directory / "config.json").write_text(json.dumps(config))
    _write_weights(directory, vocabulary, rows, layers)
    return directory


def _write_tokenizer(directory: Path) -> dict[str, int]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # pyright: ignore[reportMissingImports]

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġw{number:03d}" for number in range(WORDS)]
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *letters, *words])}
    # Without merges a prompt is one token a byte: any text can be asked, and no word is ever in a prompt.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
        "chat_template": _TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return vocabulary


def _write_weights(directory: Path, vocabulary: dict[str, int], rows: int, layers: int) -> None:
    import numpy as np  # pyright: ignore[reportMissingImports]
    from safetensors.numpy import save_file  # pyright: ignore[reportMissingImports]

    random = np.random.default_rng(1)

    def noise(*shape: int) -> Any:
        return (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    embedding = noise(rows, _HIDDEN)
    # Of the size that the norm before the head would give it.
    embedding *= np.sqrt(_HIDDEN) / np.linalg.norm(embedding, axis=1, keepdims=True)
    head = np.zeros((rows, _HIDDEN), np.float32)
    words = [vocabulary[f"Ġw{number:03d}"] for number in range(WORDS)]
    for before, word in zip([words[-1], *words[:-1]], words, strict=True):
        head[word] += embedding[before]
    head[words[0]] += embedding[vocabulary["Ġ"]]

    ones = np.ones(_HIDDEN, np.float32)
    weights = {"model.embed_tokens.weight": embedding, "model.norm.weight": ones, "lm_head.weight": head}
    for number in range(layers):
        layer = f"model.layers.{number}."
        weights[layer + "input_layernorm.weight"] = weights[layer + "post_attention_layernorm.weight"] = ones
        for name in ("q", "k", "v"):
            weights[layer + f"self_attn.{name}_proj.weight"] = noise(_HIDDEN, _HIDDEN)
        for name in ("gate", "up"):
            weights[layer + f"mlp.{name}_proj.weight"] = noise(_INNER, _HIDDEN)
        # The two that would add to the embedding.
        weights[layer + "self_attn.o_proj.weight"] = np.zeros((_HIDDEN, _HIDDEN), np.float32)
        weights[layer + "mlp.down_proj.weight"] = np.zeros((_HIDDEN, _INNER), np.float32)
    save_file(weights, directory / "model.safetensors", metadata={"format": "mlx"})


if __name__ == "__main__":
    print(build_tiny_model(Path(sys.argv[1]), layers=int(sys.argv[2]) if len(sys.argv) > 2 else 2))
