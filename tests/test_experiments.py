"""Every file in experiments/ takes two training steps on a CPU; its full-size network has the promised parameters."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ggm_lightning.cli import config
from ggm_lightning.cli.main import main
from ggm_lightning.networks import pretrained
from ggm_lightning.vqgan.network import Autoencoder

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
DEBUG = ROOT / "configs" / "trainer" / "debug.yaml"

# sizes of each network class for the two steps; an experiment may add its own
TINY: dict[str, dict[str, object]] = {
    "Autoencoder": {"num_codes": 8},
    "DiT": {"feature_dim": 8, "num_heads": 2, "num_layers": 1, "cond_dim": 8},
    "HollowTransformer": {"feature_dim": 8, "num_heads": 2, "num_layers": 1, "num_merges": 1},
    "Transformer": {"feature_dim": 8, "num_heads": 2, "num_layers": 1},
    "JointDenoiser": {"feature_dim": 8, "num_heads": 2, "num_layers": 1, "num_latents": 2, "latent_dim": 4},
    "NCSNpp": {"feature_dim": 8, "multipliers": [1, 1], "num_blocks": 1},
    "UNet": {"feature_dim": 32, "num_layers": 0},
    "UViT": {"feature_dim": 32, "num_layers": 0, "num_dit_layers": 1, "dit_width": 8, "dit_heads": 2, "patch_size": 4},
}


@dataclass(frozen=True)
class Case:
    """What the tests know of an experiment beyond its file.

    Attributes:
        parameters: of the full-size network.
        num_classes, shape: of its data, which the network takes.
        data, network: smaller sizes and paths, never a class; "{tmp}" is the test's folder.
        files: writes the data into that folder.
        model: smaller sizes of the model's other parts.
    """

    parameters: int
    num_classes: int
    shape: tuple[int, ...]
    data: dict[str, object] = field(default_factory=dict)
    network: dict[str, object] = field(default_factory=dict)
    files: Callable[[Path], object] = lambda folder: None
    model: dict[str, object] = field(default_factory=dict)


def text8(folder: Path) -> None:
    (folder / "text8").write_text("the quick brown fox jumps over the lazy dog " * 25)


def words(folder: Path, count: int = 50257) -> None:
    """As many tokens as GPT-2's tokenizer has, the last one the same."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {f"w{i}": i for i in range(count - 1)} | {"<|endoftext|>": count - 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    lines = [" ".join(f"w{13 * i + j}" for j in range(40)) for i in range(60)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


def cifar10(folder: Path) -> None:
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records = np.random.default_rng(0).integers(256, size=(2, 3073)) // [26, *[1] * 3072]
        (folder / f"{name}.bin").write_bytes(records.astype(np.uint8).tobytes())


def imagenet64(folder: Path) -> None:
    for name in ("train_64x64", "valid_64x64"):
        (folder / name).mkdir()
        for i in range(4):
            Image.fromarray(np.full((64, 64, 3), 60 * i, np.uint8)).save(folder / name / f"{i}.png")


def imagenet64_classes(folder: Path) -> None:
    for name in (*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"):
        np.savez(folder / f"{name}.npz", data=np.full((2, 12288), 7, np.uint8), labels=np.array([1, 1000]))


def mnist(folder: Path) -> None:
    for prefix in ("train", "t10k"):
        sizes = {"images-idx3": (4, 28, 28), "labels-idx1": (4,)}
        for name, size in sizes.items():
            header = np.array([0x800 + len(size), *size], dtype=">u4").tobytes()
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + np.full(size, 7, np.uint8).tobytes())


def celeba(folder: Path) -> None:
    (folder / "img_align_celeba").mkdir()
    for i in range(6):
        Image.fromarray(np.full((218, 178, 3), 40 * i, np.uint8)).save(folder / "img_align_celeba" / f"{i}.jpg")
    (folder / "list_eval_partition.txt").write_text("".join(f"{i}.jpg {i // 2}\n" for i in range(6)))


def faces(folder: Path) -> None:
    """Pictures, and a VQGAN in the form of the released ones, with their codebook and grid but few pixels."""
    (folder / "pictures").mkdir()
    for i in range(6):
        Image.fromarray(np.full((40, 32, 3), 40 * i, np.uint8)).save(folder / "pictures" / f"{i}.png")
    sizes = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 0, "attn_resolutions": [], "z_channels": 4}
    sizes |= {"resolution": 32, "in_channels": 3, "out_ch": 3, "double_z": False, "dropout": 0.0}
    params = {"embed_dim": 4, "n_embed": 1024, "ddconfig": sizes}
    (folder / "configs").mkdir()
    (folder / "ckpts").mkdir()
    described = {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}
    (folder / "configs" / "model.yaml").write_text(yaml.safe_dump(described))
    network = Autoencoder((3, 32, 32), 1024, 4, 32, (1, 1), 0, (), 4)
    torch.save({"state_dict": network.state_dict()}, folder / "ckpts" / "last.ckpt")


def digits_vqgan(folder: Path) -> None:
    """An untrained one, as `lightning fit` would have saved it."""
    class_path, init_args = network_of(ROOT / "experiments" / "vqgan_digits.yaml")
    network = Autoencoder(shape=(1, 8, 8), **init_args)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    described = {"network": {"class_path": class_path, "init_args": {**init_args, "shape": [1, 8, 8]}}}
    model = {"class_path": "ggm_lightning.vqgan.training.VQGAN", "init_args": described}
    torch.save({"state_dict": state, "ggm_lightning": {"model": model}}, folder / "vqgan.ckpt")


DEMO = {"length": 16, "global_batch_size": 4, "stride": 64, "folder": "{tmp}/shards"}
TEXT8 = {"path": "{tmp}/text8", "length": 16, "global_batch_size": 4}
TEXT8 |= {"train_chars": 900, "val_chars": 50, "test_chars": 50}
OWT = {"train": "{tmp}/text.jsonl", "tokenizer": "{tmp}/tokenizer.json", "folder": "{tmp}/shards"}
OWT |= {"length": 16, "global_batch_size": 4}
IMAGENET = {"path": "{tmp}", "folder": "{tmp}/flat", "global_batch_size": 2}
FACES = {"source": "{tmp}/pictures", "vqgan": "{tmp}", "folder": "{tmp}/codes"}
FACES |= {"val_every": 3, "global_batch_size": 4}
CODES = {"vqgan": "{tmp}/vqgan.ckpt", "folder": "{tmp}/codes", "global_batch_size": 4}
WORDS = {"num_train": 16, "num_val": 8, "global_batch_size": 4}

SMALL_LATENT = {"num_heads": 2, "num_layers": 1, "num_latents": 2, "latent_dim": 4}
ENCODER = {f"encoder.init_args.{key}": value for key, value in SMALL_LATENT.items()} | {"recipe.stage1_steps": 1}
ALIGNED = ENCODER | {"encoder.init_args.chunk": 8}  # half of the 16 tokens of their rows
SEQ = ENCODER | {f"latent_network.init_args.{key}": value for key, value in SMALL_LATENT.items()}
ALIGNED_SEQ = ALIGNED | SEQ
# the prior and its network take their sizes from their own section
SMALL_CODES = ALIGNED | {"num_codes": 8, "prior.init_args.num_classes": 8, "prior.init_args.shape": "[2]"}
SMALL_CODES |= {f"prior.init_args.network.init_args.{key}": 8 for key in ("num_classes", "feature_dim")}
SMALL_CODES |= {f"prior.init_args.network.init_args.{key}": 1 for key in ("num_heads", "num_layers")}
QWEN = {
    "encoder.init_args.source": "{tmp}/model",
    "encoder.init_args.num_latents": 2,
    "encoder.init_args.latent_dim": 4,
}
QWEN_TOKENS = QWEN | {"encoder.init_args.num_latents": 16, "network.init_args.num_latents": 16}
LM1B = OWT | {"val": "{tmp}/text.jsonl", "document": "file", "detokeniser": "null", "separator": "w9"}

CIFAR = {"path": "{tmp}", "global_batch_size": 2, "eval_batch_size": 2}

CASES = {
    "ar_demo": Case(427_008, 97, (64,), DEMO),
    "ar_markov": Case(161_664, 11, (64,), WORDS),
    "ar_owt": Case(162_149_376, 50257, (1024,), OWT, files=words),
    "blackout_celeba": Case(62_693_251, 256, (3, 64, 64), IMAGENET | {"size": 16}, files=celeba),
    "blackout_cifar10": Case(62_693_251, 256, (3, 32, 32), CIFAR, files=cifar10),
    "blackout_digits": Case(271_121, 17, (1, 8, 8), {"global_batch_size": 4}),
    "blackout_digits_ncsnpp": Case(750_465, 17, (1, 8, 8), {"global_batch_size": 4}),
    "blackout_mnist": Case(62_686_337, 2, (1, 32, 32), CIFAR, files=mnist),
    "genmd4_demo": Case(493_856, 97, (64,), DEMO),
    "genmd4_dictionary": Case(125_072, 9, (32,), WORDS),
    "genmd4_owt": Case(165_857_344, 50257, (1024,), OWT, files=words),
    "genmd4_text8": Case(88_734_272, 27, (256,), TEXT8, files=text8),
    "diladd_demo": Case(314_800, 97, (64,), DEMO, model=SMALL_CODES),
    "diladd_text8": Case(187_652_864, 27, (128,), TEXT8, files=text8, model=SMALL_CODES),
    "ggm_celebahq_vqgan": Case(92_797_504, 1024, (1, 16, 16), FACES, files=faces, model={"num_sweeps": 1}),
    "ggm_demo": Case(329_488, 1024, (32,), DEMO | {"vocab_size": 300}, model={"corrector_steps": 2, "num_sweeps": 2}),
    "ggm_digits": Case(201_792, 17, (1, 8, 8), {"global_batch_size": 4}),
    "ggm_digits_vqgan": Case(207_808, 64, (1, 4, 4), CODES, files=digits_vqgan),
    "ggm_ffhq_vqgan": Case(92_797_504, 1024, (1, 16, 16), FACES, files=faces, model={"num_sweeps": 1}),
    "ggm_markov": Case(199_824, 11, (64,), WORDS),
    "ggm_owt": Case(168_419_392, 50257, (128,), OWT, files=words),
    "lddm_demo": Case(314_800, 97, (64,), DEMO, model=ALIGNED_SEQ),
    "lddm_lm1b": Case(420_206_240, 151669, (128,), LM1B, files=partial(words, count=151669), model=QWEN_TOKENS),
    "lddm_owt": Case(264_437_408, 50257, (512,), OWT, files=words, model=ALIGNED),
    "lddm_owt_qwen3": Case(420_206_240, 151669, (512,), OWT, files=partial(words, count=151669), model=QWEN),
    "lddm_sawtooth": Case(135_060, 2, (128,), WORDS, model=ENCODER),
    "lddm_seq_owt": Case(264_437_408, 50257, (512,), OWT, files=words, model=ALIGNED_SEQ),
    "lddm_seq_sawtooth": Case(103_636, 2, (128,), WORDS, model=SEQ),
    "lddm_text8": Case(187_284_128, 27, (128,), TEXT8, files=text8, model=ALIGNED),
    "markov_digits": Case(271_121, 17, (1, 8, 8), {"global_batch_size": 4}),
    "markov_tokens": Case(185_104, 11, (64,), WORDS),
    "md4_cifar10": Case(28_427_520, 256, (3, 32, 32), CIFAR, files=cifar10),
    "md4_cifar10_small": Case(1_101_760, 256, (3, 32, 32), CIFAR, files=cifar10),
    "md4_demo": Case(493_856, 97, (64,), DEMO),
    "md4_dictionary": Case(125_072, 9, (32,), WORDS),
    "md4_digits": Case(271_121, 17, (1, 8, 8), {"global_batch_size": 4}),
    "md4_digits_vqgan": Case(273_824, 64, (1, 4, 4), CODES, files=digits_vqgan),
    "md4_imagenet64": Case(198_279_680, 256, (3, 64, 64), IMAGENET, files=imagenet64),
    "md4_imagenet64_classes": Case(205_114_112, 256, (3, 64, 64), IMAGENET, files=imagenet64_classes),
    "md4_markov": Case(185_104, 11, (64,), {"num_train": 16, "num_val": 8}),
    "md4_owt": Case(165_857_344, 50257, (1024,), OWT, files=words),
    "md4_sawtooth": Case(134_176, 2, (128,), WORDS),
    "md4_sudoku": Case(186_768, 6, (36,), {"num_train": 16, "num_val": 8, "global_batch_size": 4}),
    "md4_text8": Case(88_734_272, 27, (256,), TEXT8, files=text8),
    "mdlm_owt": Case(169_627_218, 50257, (1024,), OWT | {"val_documents": 20}, files=words),
    "vqgan_digits": Case(159_113, 17, (1, 8, 8), {"global_batch_size": 4}),
}


def ids(path: Path) -> str:
    return path.stem


def network_of(path: Path) -> tuple[str, dict[str, Any]]:
    section = config.load_file(str(path))["model"]["init_args"]["network"]
    return section["class_path"], section.get("init_args", {})


def few_samples(path: Path) -> list[dict[str, Any]]:
    """The file's callbacks, and the report's samples too, drawn in two steps, at the end alone."""
    callbacks = config.load_file(str(path))["trainer"].get("callbacks", [])
    report = {"class_path": "ggm_lightning.report.callback.Report", "init_args": {"num_samples": 0, "num_steps": 0}}
    if not any(part["class_path"] == report["class_path"] for part in callbacks):
        callbacks.append(report)
    for part in callbacks:
        part["init_args"] = {k: 2 if k in ("num_samples", "num_steps") else v for k, v in part["init_args"].items()}
        if part["class_path"] == report["class_path"]:
            part["init_args"]["at_validations"] = 0
    return callbacks


def test_every_experiment_is_listed() -> None:
    assert {path.stem for path in EXPERIMENTS} == set(CASES)


@pytest.fixture
def foreign_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """States of four numbers in place of the pretrained model that an encoder names."""
    monkeypatch.setattr(pretrained, "load_transformers", lambda source: torch.nn.Embedding(151669, 4))


def on_a_cpu(path: Path) -> Any:
    """Long ones whose like is there: GGM of VQGAN codes is ggm_digits with the data of md4_digits_vqgan; ggm_markov and
    ggm_owt are ggm_demo with other data, as ar_owt and ar_markov are ar_demo, genmd4_demo and genmd4_dictionary
    genmd4_owt; lddm_sawtooth stands for the other two of the sawtooth, blackout_cifar10 for blackout_digits_ncsnpp,
    md4_cifar10 for md4_cifar10_small, md4_markov for md4_dictionary; lddm_seq_owt, lddm_lm1b and lddm_owt_qwen3 are
    near lddm_owt; mdlm_owt is md4_owt with another network; a text of another alphabet or classes of pictures change
    a file and no step."""
    twins = ("ggm_ffhq_vqgan", "ggm_celebahq_vqgan", "mdlm_owt", "lddm_lm1b", "lddm_seq_owt", "lddm_owt_qwen3")
    twins += ("ggm_digits_vqgan", "ggm_markov", "ar_owt", "ar_markov", "genmd4_demo", "genmd4_dictionary")
    twins += ("lddm_seq_sawtooth", "md4_sawtooth", "md4_cifar10_small", "blackout_digits_ncsnpp", "md4_dictionary")
    twins += ("ggm_owt", "genmd4_text8", "lddm_text8", "diladd_text8", "md4_imagenet64_classes", "blackout_celeba")
    return pytest.param(path, id=ids(path), marks=pytest.mark.slow if path.stem in twins else ())


@pytest.mark.usefixtures("foreign_model")
@pytest.mark.parametrize("path", [on_a_cpu(path) for path in EXPERIMENTS])
def test_two_steps_on_a_cpu(path: Path, tmp_path: Path) -> None:
    case, kind = CASES[path.stem], network_of(path)[0].rpartition(".")[2]
    case.files(tmp_path)
    smaller = {
        "model.network.init_args": TINY[kind] | case.network,
        "data.init_args": case.data,
        "model.init_args": case.model,
    }
    overrides = [
        f"--{section}.{key}={value}".replace("{tmp}", str(tmp_path))
        for section, values in smaller.items()
        for key, value in values.items()
    ]
    few = tmp_path / "few.yaml"
    few.write_text(yaml.safe_dump({"trainer": {"callbacks": few_samples(path)}}))
    files = [argument for file in (path, DEBUG, few) for argument in ("--config", str(file))]
    main(["fit", *files, "--runs", str(tmp_path), *overrides, "--name", "x"])
    checkpoint = torch.load(tmp_path / "x" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    described = checkpoint["ggm_lightning"]["model"]
    assert described["class_path"] == config.load_file(str(path))["model"]["class_path"]
    assert described["init_args"]["network"]["class_path"] == network_of(path)[0]
    assert (tmp_path / "x" / "report.html").is_file()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids)
def test_full_size_network_on_the_meta_device(path: Path) -> None:
    """Built as the command line builds it: the class that the file names, with what it takes from the data."""
    case, (class_path, init_args) = CASES[path.stem], network_of(path)
    module, _, name = class_path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    from_data = {"num_classes": case.num_classes, "shape": case.shape}
    assert not init_args.keys() & from_data.keys()
    taken = {key: value for key, value in from_data.items() if key in inspect.signature(kind).parameters}
    with torch.device("meta"):
        network = kind(**taken, **init_args)
    assert sum(p.numel() for p in network.parameters()) == case.parameters


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids)
def test_what_the_data_gives_is_what_the_table_says(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At full size, from constructor arguments and header files alone: nothing is prepared. The codec, too, which
    `--init_from` compares before the preparation."""
    monkeypatch.chdir(tmp_path)
    case, section = CASES[path.stem], config.load_file(str(path))["data"]
    case.files(tmp_path)
    module, _, name = section["class_path"].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    paths = {k: str(v).replace("{tmp}", str(tmp_path)) for k, v in case.data.items() if "{tmp}" in str(v)}
    data = kind(**(section.get("init_args", {}) | paths))
    assert (data.num_classes, tuple(data.shape)) == (case.num_classes, case.shape)
    assert data.codec.num_classes == case.num_classes


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids)
def test_a_file_says_what_it_aims_at(path: Path) -> None:
    comment = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "Expect:" in comment
    settings = config.load_file(str(path))
    assert settings["trainer"]["max_steps"] > 0
    assert settings["data"]["init_args"]["global_batch_size"] > 0
    if settings["trainer"]["accelerator"] == "cuda":
        assert re.search(r"Aims at: .*\d", comment), "the published number"


def test_pieces_are_mappings_of_known_sections() -> None:
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        assert set(config.load_file(str(path))) <= {"model", "data", "trainer"}, path
