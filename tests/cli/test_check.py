"""`lightning check` of classes: what is asked, what came, and the exit in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggm_lightning.cli import check
from tests.cli.test_main import error_of

SMALL = ("--feature_dim", "8", "--num_heads", "1", "--num_layers", "1", "--num_merges", "1")
OWN = """
import torch
from torch import nn
from ggm_lightning.core.rates import Rates
from ggm_lightning.core.schedules import Schedule
from ggm_lightning.metrics.samples import SampleMetric
from ggm_lightning.sampling.plan import Plan, Sites

class Tiny(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.embedding = nn.Embedding(num_classes + 1, num_classes)

    def forward(self, z, t, label=None):
        return self.embedding(z)

class Wrong(Tiny):
    def forward(self, z, t, label=None):
        return self.embedding(z)[..., :2]

class OverSites(Tiny):
    def __init__(self, num_classes: int, shape: tuple[int, ...]):
        super().__init__(num_classes)
        self.sites = nn.Linear(shape[0], shape[0])

    def forward(self, z, t, label=None):
        return self.sites(self.embedding(z).mT).mT

class Fixed(OverSites):
    def __init__(self):
        super().__init__(7, (2,))

class Ring(Rates):
    def __init__(self, speed: float = 1.0):
        self.speed = speed

    def rates(self, num_classes, time):
        step = torch.eye(num_classes, dtype=torch.float64)
        return self.speed * (step.roll(1, 0) + step.roll(-1, 0))

class Doubles(SampleMetric):
    def measure(self, drawn, real):
        return {}

class Bent(Schedule):
    def alpha(self, t):
        return 0.5 + 0.5 * torch.cos(9 * t)

class Everything(Plan):
    '''Law: all at once, as if the sites were independent.'''

    def choose(self, run):
        return Sites(run.masked)

class Deaf(Everything):
    '''Law: uniform; the network is not asked.'''

    def _revealed(self, run, sites):
        values = (run.uniform("value") * run.model.num_classes).long()
        return torch.where(sites, values, run.z)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine_checked.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    check.run(["mine_checked.Tiny"])
    told = capsys.readouterr().out
    assert told.startswith("mine_checked.Tiny: a network\n")
    assert "ok    every parameter gets a gradient" in told
    assert told.endswith("all is as it has to be\n")
    with pytest.raises(ValueError, match=r"Wrong: 1 of 2 answers are wrong.*nothing is raised"):
        check.run(["mine_checked.Wrong"])
    assert "wanted: logits of shape (4, 5, 3)" in capsys.readouterr().out


def test_a_network_of_layers_over_the_sites(capsys: pytest.CaptureFixture[str]) -> None:
    """It is called with the shape and the classes that it was built with; one that takes neither, as the user says."""
    check.run(["mine_checked.OverSites"])
    assert "MD4 takes it: 3 classes, shape (3,)" in capsys.readouterr().out
    check.run(["mine_checked.OverSites", "--shape", "[7]", "--num_classes", "5"])
    assert "MD4 takes it: 5 classes, shape (7,)" in capsys.readouterr().out
    check.run(["mine_checked.Fixed", "--shape", "[2]", "--num_classes=7"])
    assert "MD4 takes it: 7 classes, shape (2,)" in capsys.readouterr().out
    check.run(["mine_checked.OverSites", "--shape", "7"])
    assert "MD4 takes it: 3 classes, shape (7,)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="answers are wrong"):  # control: at other sizes it does not work
        check.run(["mine_checked.Fixed"])


def test_a_network_that_another_family_calls(capsys: pytest.CaptureFixture[str]) -> None:
    name = "ggm_lightning.networks.hollow.HollowTransformer"
    check.run([name, *SMALL, "--family", "GGM"])
    assert "ok    GGM takes it" in capsys.readouterr().out
    check.run([name, *SMALL, "--visited_bits", "false"])
    assert "ok    MD4 takes it" in capsys.readouterr().out


def test_rates(capsys: pytest.CaptureFixture[str]) -> None:
    check.run(["mine_checked.Ring"])
    told = capsys.readouterr().out
    assert told.startswith("mine_checked.Ring: rates\n")
    assert "rate b -> a; elapsed rises from 0: 3 states for 3 classes up to t_end = 10\n" in told
    assert "ok    bound: off by" in told
    for more, message in (
        (("--speed", "-1"), "1 of 1 answers are wrong.*negative"),
        (("--t_end", "0.1"), "answers are wrong; the first: start: "),  # it has not come to rest where sampling begins
    ):
        with pytest.raises(ValueError, match=message):
            check.run(["mine_checked.Ring", *more])


def test_a_schedule_and_a_sampler(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="1 of 1 answers are wrong"):
        check.run(["mine_checked.Bent"])
    assert "FAILS alpha falls from 1 to 0" in capsys.readouterr().out
    check.run(["mine_checked.Everything"])
    told = capsys.readouterr().out
    assert "ok    a row drawn alone is the row in a batch" in told
    assert "told  sampler Everything: law" in told  # an error that its docstring may state
    assert "ok    sampler Everything: known" in told
    assert "ok    its law is nearer to p with an exact network than with equal logits" in told
    with pytest.raises(ValueError, match=r"its law is nearer to p .* it does not draw what the network says"):
        check.run(["mine_checked.Deaf"])


def test_a_family_with_networks_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """FUJI's encoder and network are not given: exact ones stand there."""
    check.run(["ggm_lightning.models.lddm.FujiLDDM", "--num_classes", "2", "--shape", "[2]"])
    told = capsys.readouterr().out
    assert told.startswith("ggm_lightning.models.lddm.FujiLDDM: a family\n")
    assert "ok    bound: off by" in told
    assert told.endswith("all is as it has to be\n")


def test_a_codec_and_a_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    check.run(["ggm_lightning.codecs.text.Bytes", "--text", "ä b"])
    told = capsys.readouterr().out
    assert "ok    'ä b' decodes to itself: 'ä b'" in told
    check.run(["ggm_lightning.data.toy.synthetic.MarkovChain", "--num_train=8", "--num_val=5", "--length", "13"])
    told = capsys.readouterr().out
    assert "ok    val: x is Int64[b, 13]: torch.int64, (4, 13)" in told
    assert "in 4 of 5 rows" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.Class"], "check nowhere.Class: not found"),
        (["Class"], "there is no such file, and a class has its module before it"),
        (["mine_checked.OWN_NAME"], "not found"),
        (["mine_checked.Tiny", "--classes", "3"], "unknown key 'classes'; did you mean --num_classes?"),
        (["mine_checked.Tiny", "--x", "3"], "unknown key 'x'; there are --num_classes, --shape, --family, --text"),
        (["some.ckpt", "--num_step", "3"], "check some.ckpt: unknown key 'num_step'; did you mean --num_steps?"),
        (["some.ckpt", "--nm=3"], "unknown key 'nm'; there are --row, --sites, --num_samples, --num_steps"),
        (["mine_checked.Tiny", "classes"], "classes is no option"),
        (["pathlib.PurePath"], "PurePath is not of a kind that is checked; checked are networks (nn.Module)"),
        (["mine_checked.Doubles"], "Doubles is a metric, and metrics are not checked; checked are networks"),
        (["torchmetrics.MeanMetric"], "MeanMetric is a metric, and metrics are not checked"),
        (
            ["ggm_lightning.networks.hollow.HollowTransformer", *SMALL],
            "--family GGM), and --NAME VALUE an argument of its ",
        ),
        (["ggm_lightning.networks.unet.UNet"], "its arguments are given as --NAME VALUE"),
        (
            ["mine_checked.OverSites", "--shape", "[a]"],
            "a side of shape is 'a'; it must be a whole number of at least 1",
        ),
        (["mine_checked.OverSites", "--shape", "0"], "a side of shape is 0; it must be at least 1"),
        (["mine_checked.OverSites", "--shape", "[]"], "shape is []; give at least one whole number"),
        (["mine_checked.Tiny", "--num_classes", "0"], "num_classes is 0; it must be at least 1"),
        (["mine_checked.py"], "a source file; name the class in it, as in `lightning check mine_checked.Tiny`"),
        (["ggm_lightning.models.diladd.DiLADD"], "give that family, model.prior, and the family of its tokens, MD4"),
        (["--row", "1"], "name a class or a checkpoint first"),
    ],
)
def test_mistakes_end_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of(capsys, ["check", *words])
