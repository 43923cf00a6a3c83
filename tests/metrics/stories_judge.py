"""The external judge of the tests: stories260K (llama2.c's format, MIT), as a folder of `transformers`.

It is made from the real data in a temporary folder; nothing of it is kept with the project.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big red ball. She wanted to play with it, but it was too high in a tree."
)
_BYTES = 259  # <unk>, <s>, </s> and the 256 bytes


def make(source: Path, folder: Path) -> str:
    """A LlamaForCausalLM with its tokenizer, from stories260K.bin and tok512.bin; returns the folder."""
    model, vocab = _model(source / "stories260K.bin")
    model.save_pretrained(folder)
    _tokenizer(source / "tok512.bin", vocab).save_pretrained(folder)
    return str(folder)


def _model(path: Path) -> tuple[Any, int]:
    from transformers import LlamaConfig, LlamaForCausalLM

    content = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("7i", content[:28])
    values = torch.from_numpy(np.frombuffer(content, dtype="<f4", offset=28).copy())
    taken = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal taken
        count = int(np.prod(shape))
        taken += count
        return values[taken - count : taken].reshape(shape)

    kv = dim // heads * kv_heads
    state = {"model.embed_tokens.weight": take(abs(vocab), dim)}
    shapes = {
        "input_layernorm": (dim,),
        "self_attn.q_proj": (dim, dim),
        "self_attn.k_proj": (kv, dim),
        "self_attn.v_proj": (kv, dim),
        "self_attn.o_proj": (dim, dim),
        "post_attention_layernorm": (dim,),
        "mlp.gate_proj": (hidden, dim),
        "mlp.down_proj": (dim, hidden),
        "mlp.up_proj": (hidden, dim),
    }
    for name, shape in shapes.items():
        for layer, weight in enumerate(take(layers, *shape)):
            state[f"model.layers.{layer}.{name}.weight"] = _half_split(name, weight, dim // heads)
    state["model.norm.weight"] = take(dim)
    config = LlamaConfig(
        vocab_size=abs(vocab),
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (set(missing), unexpected) == ({"lm_head.weight"}, [])
    model.tie_weights()
    return model, abs(vocab)


def _half_split(name: str, weight: torch.Tensor, size: int) -> torch.Tensor:
    """Rows of q and k: llama2.c turns neighbours, (0, 1), (2, 3), ..; transformers the two halves of a head."""
    if not name.endswith(("q_proj", "k_proj")):
        return weight
    return weight.reshape(-1, size // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _tokenizer(path: Path, vocab: int) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces, scores = _pieces(path.read_bytes(), vocab)
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for piece, i in ids.items():
        if i < _BYTES:
            continue
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if min(ids.get(left, 0), ids.get(right, 0)) >= _BYTES:
                merges.append((-scores[i], left, right))
    merges.sort(key=lambda merge: merge[0])
    pairs = [(left, right) for _, left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = [AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _pieces(content: bytes, vocab: int) -> tuple[list[str], list[float]]:
    pieces, scores, at = [], [], 4  # the length of the longest piece comes first
    for _ in range(vocab):
        score, length = struct.unpack("<fi", content[at : at + 8])
        pieces.append(content[at + 8 : at + 8 + length].decode("utf-8"))
        scores.append(score)
        at += 8 + length
    pieces[1:3] = ["<s>", "</s>"]
    return pieces, scores
