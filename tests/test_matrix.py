"""Every family on every kind of data: two training steps, a bound and a sample, or one line that says why not.

Kinds: shards of text, pixels in colour (CelebA's flat files), codes of a VQGAN, binarised MNIST; all from generated
files, through the data modules that real ones take. Networks are tiny; what they compute is proved elsewhere.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from ggm_lightning import MD4, GenMD4
from ggm_lightning.cli.main import main
from ggm_lightning.data.arrays import ArrayData
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.celeba import CelebA
from ggm_lightning.data.mnist import Mnist
from ggm_lightning.data.text import TextData
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.base import Family
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.lddm_stages import Recipe
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.networks.hollow import HollowTransformer
from ggm_lightning.networks.latent import JointDenoiser, LatentDenoiser
from ggm_lightning.networks.latent_encoder import LatentEncoder
from ggm_lightning.networks.ncsnpp import NCSNpp
from ggm_lightning.networks.transformer import Transformer
from ggm_lightning.vqgan.codes import VQGANCodes
from tests.test_experiments import celeba, mnist
from tests.vqgan.released_vqgan import picture, released

ROOT = Path(__file__).parents[1]
BATCH = {"global_batch_size": 2, "eval_batch_size": 2}
LATENT = {"feature_dim": 8, "num_heads": 2, "num_layers": 1, "num_latents": 2, "latent_dim": 3}
REFUSED = (
    "{family} on {data}: its process moves between neighbouring classes, but these {classes} are names without an "
    "order; take another family (MD4, GGM, ..), or data of amounts: pixels, or ArrayData with ordered: true"
)


def text(folder: Path) -> TextData:
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 30)
    return TextData(str(folder / "text.txt"), length=17, folder=str(folder / "shards"), **BATCH)


def pixels(folder: Path) -> CelebA:
    celeba(folder)
    return CelebA(str(folder), size=8, folder=str(folder / "flat"), **BATCH)


def codes(folder: Path) -> VQGANCodes:
    (folder / "pictures").mkdir()
    for i in range(6):
        picture(i).save(folder / "pictures" / f"{i}.png")
    vqgan = released(folder / "vqgan")
    return VQGANCodes(str(folder / "pictures"), str(vqgan), val_every=3, folder=str(folder / "codes"), **BATCH)


def binarised(folder: Path) -> Mnist:
    mnist(folder)
    return Mnist(str(folder), variant="threshold28", **BATCH)


KINDS: dict[str, tuple[Callable[[Path], DiscreteData], bool]] = {
    # how it is made, and whether its classes are amounts
    "text": (text, False),
    "pixels": (pixels, True),
    "codes": (codes, False),
    "binarised": (binarised, True),
}


def transformer(data: DiscreteData, **more: object) -> Transformer:
    return Transformer(data.num_classes, feature_dim=8, num_heads=2, num_layers=1, **more)


def masked(family: type[Family], data: DiscreteData) -> Family:
    return family(transformer(data), data.num_classes, data.shape)


def autoregressive(data: DiscreteData) -> AutoregressiveModel:
    network = transformer(data, time_features="none", causal=True)
    return AutoregressiveModel(network, data.num_classes, data.shape)


def glauber(data: DiscreteData) -> GGM:
    network = transformer(data, visited_bits=True)
    return GGM(network, data.num_classes, data.shape, num_sweeps=1, block_size=math.prod(data.shape), hide="block")


def all_sites(data: DiscreteData) -> GGM:
    network = HollowTransformer(data.num_classes, feature_dim=8, num_heads=2, num_layers=1, num_merges=1)
    return GGM(network, data.num_classes, data.shape, num_sweeps=1, order="random")


def latent(family: type[Family], data: DiscreteData) -> Family:
    """Both stages of the recipe: the encoder is trained in the first step and held in the second."""
    parts: dict[str, nn.Module] = {"network": JointDenoiser(data.num_classes, **LATENT)}
    parts["encoder"] = LatentEncoder(data.num_classes, **LATENT)
    if family is SeqLDDM:
        parts["latent_network"] = LatentDenoiser(**LATENT)
    return family(**parts, num_classes=data.num_classes, shape=data.shape, recipe=Recipe(stage1_steps=1))


def blackout(data: DiscreteData) -> Blackout:
    """As published where there are pictures; a network that could read anything is no reason to take anything."""
    if not isinstance(data, CelebA | Mnist):
        anything = {"output": "distribution", "loss": "cross_entropy", "network_input": "counts"}
        return Blackout(transformer(data), data.num_classes, data.shape, **anything)
    network = NCSNpp(data.shape, feature_dim=8, multipliers=(1, 1), num_blocks=1)
    return Blackout(network, data.num_classes, data.shape, t_end=10.0)


def markov(process: str, data: DiscreteData) -> MarkovDiffusion:
    return MarkovDiffusion(transformer(data), data.num_classes, data.shape, process=process, num_timesteps=8)


FAMILIES: dict[str, Callable[[DiscreteData], Family]] = {
    "MD4": functools.partial(masked, MD4),
    "GenMD4": functools.partial(masked, GenMD4),
    "AutoregressiveModel": autoregressive,
    "GGM": glauber,
    "GGM, all sites": all_sites,
    "FujiLDDM": functools.partial(latent, FujiLDDM),
    "SeqLDDM": functools.partial(latent, SeqLDDM),
    "Blackout": blackout,
    "MarkovDiffusion, uniform": functools.partial(markov, "uniform"),
    "MarkovDiffusion, gaussian": functools.partial(markov, "gaussian"),
}
COUNTING = {"Blackout", "MarkovDiffusion, gaussian"}
# a network call per block instead of one per site and sweep
DRAWING = {family: {"sampler": "parallel"} for family in ("GGM", "GGM, all sites")}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DiscreteData]:
    """Each kind's files are made and prepared once; every cell reads them by a data module of its own."""

    @functools.cache
    def made(kind: str) -> DiscreteData:
        data = KINDS[kind][0](tmp_path_factory.mktemp(kind))
        data.prepare_data()
        return data

    return made


def fitted(data: DiscreteData, model: Family, folder: Path) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **quiet,
    )
    trainer.fit(model, datamodule=data)
    return trainer


LONG = [
    ("AutoregressiveModel", "binarised"),
    ("MarkovDiffusion, gaussian", "pixels"),
    ("MarkovDiffusion, uniform", "pixels"),
]
CASES = [pytest.param(*case, marks=[pytest.mark.slow] if case in LONG else []) for case in product(FAMILIES, KINDS)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_two_steps_and_a_sample_or_one_line(
    family: str, kind: str, prepared: Callable[[str], DiscreteData], tmp_path: Path
) -> None:
    data = prepared(kind)
    torch.manual_seed(0)
    model = FAMILIES[family](data)
    if family in COUNTING and not KINDS[kind][1]:
        names = {"family": type(model).__name__, "data": type(data).__name__, "classes": data.num_classes}
        with pytest.raises(ValueError, match=f"^{re.escape(REFUSED.format(**names))}$"):
            fitted(data, model, tmp_path)
        return
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = fitted(data, model, tmp_path)
    assert trainer.global_step == 2
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert math.isfinite(trainer.callback_metrics[model.loss_name])
    assert 0 < float(trainer.callback_metrics["val/nelbo"]) < math.inf
    drawn = model.sample(2, num_steps=3, **DRAWING.get(family, {}))
    assert drawn.x.shape == (2, *data.shape)
    assert drawn.x.dtype == torch.int64
    assert int(drawn.x.min()) >= 0  # the mask is data.num_classes: none of it is left
    assert int(drawn.x.max()) < data.num_classes
    assert len(data.decode(drawn.x)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_whether_classes_are_amounts(kind: str, prepared: Callable[[str], DiscreteData]) -> None:
    assert prepared(kind).ordered == KINDS[kind][1]


def test_an_array_says_so_itself(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(5, size=(20, 7)))
    counts, names, bits = (
        ArrayData(str(tmp_path / "x.npy"), num_classes, ordered=ordered)
        for num_classes, ordered in ((5, True), (5, False), (2, False))
    )
    model = Blackout(transformer(counts), 5, (7,), output="distribution", loss="cross_entropy", network_input="counts")
    counts.check_model(model)
    bits.check_model(model)  # of two classes either may be called the larger
    with pytest.raises(ValueError, match="Blackout on ArrayData"):
        names.check_model(model)
    names.check_model(MarkovDiffusion(transformer(names), 5, (7,), process=[[1.0] * 5] * 5))


def test_the_command_refuses_before_it_prepares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = text(tmp_path)
    network = ["--model.network=ggm_lightning.networks.transformer.Transformer", "--model.network.feature_dim=8"]
    network += ["--model.network.num_heads=2"]
    own = ["--model.output=distribution", "--model.loss=cross_entropy", "--model.network_input=counts"]
    taken = ["--data=ggm_lightning.data.text.TextData", f"--data.train={data.train}", f"--data.folder={data.folder}"]
    where = ["--runs", str(tmp_path / "runs"), "--trainer.accelerator=cpu"]
    cpu = ["--config", str(ROOT / "configs" / "trainer" / "cpu.yaml")]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *cpu, "--model=ggm_lightning.models.blackout.Blackout", *network, *own, *taken, *where])
    assert stop.value.code == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed == "lightning: error: " + REFUSED.format(family="Blackout", data="TextData", classes=256)
    assert not data.folder.exists()
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.ckpt"))
