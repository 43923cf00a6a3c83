"""The tiny text network of MDLM's public code (tests/data/mdlm_oracle.npz): its state dict, and files of the two forms
in which such networks are published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from ggm_lightning.networks.dit import DiT

ORACLE = np.load(Path(__file__).parents[1] / "data" / "mdlm_oracle.npz")
V, N, EPS = 11, 7, 1e-3
SIZES = {"feature_dim": 8, "num_heads": 3, "num_layers": 2, "cond_dim": 16}
BUFFER = "rotary_emb.inv_freq"  # in every file of theirs; what it holds follows from its length


def weights() -> dict[str, Tensor]:
    """Their state dict, the buffer too."""
    return {name.removeprefix("param/"): torch.from_numpy(ORACLE[name]) for name in ORACLE if name.startswith("param/")}


def network(dtype: torch.dtype = torch.float32, **options: bool) -> DiT:
    """With their weights, which are taken strictly."""
    found = DiT(V, **SIZES, **options).to(dtype).eval()  # type: ignore[arg-type]
    found.load_state_dict({name: value.to(dtype) for name, value in weights().items() if name != BUFFER})
    return found


def times(sigma: np.ndarray) -> Tensor:
    """t with -ln(1 - (1 - eps) t) = sigma, Float64."""
    return -torch.expm1(-torch.from_numpy(sigma).double()) / (1 - EPS)


# ------------------------------------------------------------------ files of the published forms

CONFIG = {
    "model_type": "mdlm",
    "architectures": ["MDLM"],
    "auto_map": {"AutoModelForMaskedLM": "modeling_mdlm.MDLM"},
    "vocab_size": V + 1,
    "hidden_dim": 24,
    "cond_dim": 16,
    "n_blocks": 2,
    "n_heads": 3,
    "model_length": N,
    "dropout": 0.1,
    "time_conditioning": False,
}


def prefixed(state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    return {f"backbone.{name}": value for name, value in (state or weights()).items()}


def hub_folder(folder: Path, state: dict[str, Tensor] | None = None, **changed: object) -> Path:
    """As a model lies on the hub; `changed` are keys of its config.json."""
    folder.mkdir(parents=True)
    save_file(prefixed(state), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | changed))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# mdlm\n")
    (folder / "modeling_mdlm.py").write_text("raise SystemExit('executed')\n")
    return folder


def parameters() -> list[str]:
    """Their names, in the order in which their averages are listed."""
    return [name for name in weights() if name != BUFFER]


def lightning_checkpoint(path: Path, averages: list[Tensor] | None, configuration: object = None) -> Path:
    """As their Lightning module saves it."""
    content = {"state_dict": prefixed(), "global_step": 13, "pytorch-lightning_version": "2.2.1"}
    content |= {"loops": {}, "hyper_parameters": {"config": configuration}}
    if averages is not None:
        content["ema"] = {"decay": 0.9999, "num_updates": 13, "shadow_params": averages}
    torch.save(content, path)
    return path


def tokenizer(path: Path, count: int = V) -> Path:
    vocabulary = {f"w{i}": i for i in range(count - 1)} | {"<|endoftext|>": count - 1}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found.save(str(path))
    return path
