"""What goes wrong ends in one line that says what, the whole cause and where, with the traceback in a file."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import lightning.pytorch  # noqa: F401  # its log must not be bound to the stderr of a single test
import pytest
import torch
import yaml

from ggm_lightning.cli import errors
from ggm_lightning.cli.main import main

MARKOV = Path(__file__).parents[2] / "experiments" / "md4_markov.yaml"

# A user's file. Each class fails in one line of its own, which is marked by its name.
THEIRS = """
import os
import torch
from lightning.pytorch import Callback
from torch import nn

from ggm_lightning.codecs.text import Integers
from ggm_lightning.data.rows import RowSource
from ggm_lightning.data.toy.synthetic import MarkovChain
from ggm_lightning.models.md4 import MD4


class Net(nn.Module):
    def __init__(self, num_classes: int = 11):
        super().__init__()
        self.embedding = nn.Embedding(num_classes + 1, num_classes)

    def forward(self, z, t, label=None):
        if os.environ.get("BREAK"):
            raise ValueError("broken on request")  # Net
        return self.embedding(z)


class ForwardValue(Net):
    def forward(self, z, t, label=None):
        raise ValueError("my forward:\\n  is wrong")  # ForwardValue


class ForwardKey(Net):
    def forward(self, z, t, label=None):
        return {}["missing"]  # ForwardKey


class ForwardAssert(Net):
    def forward(self, z, t, label=None):
        assert z.shape[0] == 1234  # ForwardAssert


class ForwardTorch(Net):
    def forward(self, z, t, label=None):
        return self.embedding(z) @ torch.zeros(3, 4)  # ForwardTorch


class ForwardChain(Net):
    def forward(self, z, t, label=None):
        try:
            {}["deep"]  # ForwardChain
        except KeyError as error:
            raise RuntimeError("outer words") from error


class ForwardEscape(Net):
    def forward(self, z, t, label=None):
        raise ValueError("red \\x1b[31m and \\u202e turned")  # ForwardEscape


class ForwardMemory(Net):
    def forward(self, z, t, label=None):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")  # ForwardMemory


class InitValue(Net):
    def __init__(self, num_classes: int = 11):
        raise ValueError("No luck:\\nErrors in line two\\n\\nGiven value: three")  # InitValue


class InitKey(Net):
    def __init__(self, num_classes: int = 11):
        {}["absent"]  # InitKey


class InitImport(Net):
    def __init__(self, num_classes: int = 11):
        import a_module_that_is_not_there  # InitImport


class InitParserWords(Net):
    def __init__(self, num_classes: int = 11):
        raise ValueError("does not accept option 'foo'")  # InitParserWords


class CallbackIndex(Callback):
    def on_train_batch_end(self, *args):
        [][3]  # CallbackIndex


class CallbackInit(Callback):
    def __init__(self, k: int = 3):
        raise ValueError("callback's\\nwords")  # CallbackInit


class BrokenRows(RowSource):
    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def fetch(self, index):
        if len(index) > 1:
            return self.inner.fetch(index)["no such column"]  # DataKey
        return self.inner.fetch(index)


class DataKey(MarkovChain):
    def load(self, split):
        return BrokenRows(super().load(split))


class DataInit(MarkovChain):
    def __init__(self, num_train: int = 3):
        raise ValueError("data\\nsays no")  # DataInit


class Strange(Integers):
    def decode(self, x):
        raise ZeroDivisionError("division by zero")  # DataCodec


class DataCodec(MarkovChain):
    @property
    def codec(self):
        return Strange(11)


class OptimizerKey(MD4):
    def configure_optimizers(self):
        raise AttributeError("no such part")  # OptimizerKey
"""
DATA = {"num_train": 64, "num_val": 16, "length": 13, "global_batch_size": 8}
SAMPLES = {"class_path": "ggm_lightning.callbacks.samples.Samples", "init_args": {"num_steps": 2}}


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's file, importable as `theirs`, in a folder of its own that is the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GGM_DEBUG", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    spare = tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spare))
    (tmp_path / "theirs.py").write_text(THEIRS)
    yield tmp_path / "theirs.py"
    sys.modules.pop("theirs", None)


def line_of(mark: str) -> int:
    return next(i for i, line in enumerate(THEIRS.splitlines(), 1) if line.endswith(f"# {mark}"))


def configured(folder: Path, name: str, **extra: object) -> list[str]:
    """Arguments of a small fit in which the class `name` has the place that its name's beginning says."""
    model: dict[str, object] = {"network": {"class_path": "theirs.Net"}}
    tree: dict[str, object] = {"include": [str(MARKOV)], "trainer": {"max_steps": 2, "val_check_interval": 2}}
    tree["data"] = {"init_args": {**DATA, **extra}}
    if name.startswith("Data"):
        arguments = {} if name == "DataInit" else {**DATA, **extra}
        tree["data"] = {"class_path": f"theirs.{name}", "init_args": arguments}
    elif name.startswith("Callback"):
        tree["trainer"]["callbacks"] = [{"class_path": f"theirs.{name}"}]
    elif not name.startswith("Optimizer"):
        model = {"network": {"class_path": f"theirs.{name}"}}
    if name == "DataCodec":
        tree["trainer"]["callbacks"] = [SAMPLES]
    tree["model"] = {"init_args": model}
    if name.startswith("Optimizer"):
        tree["model"] = {"class_path": f"theirs.{name}", "init_args": model}
    (folder / "mine.yaml").write_text(yaml.safe_dump(tree))
    return ["fit", "--config", "mine.yaml", "--name", "toy"]


def failed(capsys: pytest.CaptureFixture[str], args: list[str]) -> tuple[int, str]:
    """(exit code, the one line, without its beginning)."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(args)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if "lightning: error: " in line]
    assert len(lines) == 1, said
    assert said.endswith(f"{lines[0]}\n"), said
    assert "Traceback" not in said
    return stop.value.code, lines[0].partition("lightning: error: ")[2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ForwardValue", "my forward: is wrong"),
        ("ForwardKey", "KeyError: 'missing'"),
        ("ForwardAssert", "AssertionError"),
        ("ForwardTorch", "mat1 and mat2 shapes cannot be multiplied (208x11 and 3x4)"),
        ("ForwardChain", "outer words; caused by KeyError: 'deep'"),
        ("ForwardEscape", r"red \x1b[31m and \u202e turned"),
        (
            "ForwardMemory",
            "CUDA out of memory. Tried to allocate 2.00 GiB.; set data.init_args.max_batch_per_device lower "
            "(micro-batches of fewer rows, and the same update), data.init_args.eval_batch_size if it was in a "
            "validation, or model.network.init_args.checkpoint_activations: true",
        ),
        ("InitValue", "No luck: Errors in line two Given value: three"),
        ("InitKey", "KeyError: 'absent'"),
        ("InitImport", "No module named 'a_module_that_is_not_there'"),
        ("InitParserWords", "does not accept option 'foo'"),
        ("CallbackIndex", "IndexError: list index out of range"),
        ("CallbackInit", "callback's words"),
        ("DataKey", "KeyError: 'no such column'"),
        ("DataInit", "data says no"),
        ("DataCodec", "ZeroDivisionError: division by zero"),
        ("OptimizerKey", "AttributeError: no such part"),
    ],
)
def test_a_users_class_that_fails(theirs: Path, capsys: pytest.CaptureFixture[str], name: str, message: str) -> None:
    code, line = failed(capsys, configured(theirs.parent, name))
    assert code == 1
    place = f"theirs.py:{line_of(name)}"
    told = re.fullmatch(r"(.*); at (\S+); traceback: (runs/toy/error-\d{8}-\d{6}\.txt)", line)
    assert told is not None, line
    assert (told[1], told[2]) == (message, place)
    kept = Path(told[3]).read_text()
    assert "Traceback (most recent call last):" in kept
    assert f'theirs.py", line {line_of(name)}' in kept


def test_a_loaders_worker_sends_its_traceback_as_text(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = failed(capsys, configured(theirs.parent, "DataKey", num_workers=2))
    assert code == 1
    assert line.startswith(f"KeyError: 'no such column'; at theirs.py:{line_of('DataKey')}; traceback: runs/toy/error-")


def test_a_single_callback_is_found_behind_the_parsers_union(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = configured(theirs.parent, "CallbackInit")
    tree = yaml.safe_load(Path("mine.yaml").read_text())
    tree["trainer"]["callbacks"] = tree["trainer"]["callbacks"][0]
    Path("mine.yaml").write_text(yaml.safe_dump(tree))
    assert failed(capsys, args)[1].startswith(f"callback's words; at theirs.py:{line_of('CallbackInit')}; traceback: ")


def test_no_traceback_is_replaced(
    theirs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda form: "20261128-080000")
    args = configured(theirs.parent, "ForwardKey")
    failed(capsys, args)
    first = Path("runs/toy/error-20261128-080000.txt").read_text()
    assert failed(capsys, args)[1].endswith("traceback: runs/toy/error-20261128-080000-2.txt")
    monkeypatch.setenv("LOCAL_RANK", "1")
    line = _reported(capsys, _raised(KeyError("x")), args)
    assert line == "rank 1: KeyError: 'x'; at theirs.py:1; traceback: runs/toy/error-20261128-080000-rank1.txt"
    assert Path("runs/toy/error-20261128-080000.txt").read_text() == first


def test_the_users_mistakes_keep_their_line_and_leave_no_file(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = configured(theirs.parent, "Net")
    code, line = failed(capsys, [*args, "--data.init_args.length=0"])
    assert (code, line) == (2, "data.num_symbols 11 must be at least 2 and data.length 0 at least 1")
    code, line = failed(capsys, [*args, "--model.network=theirs.NoSuch"])
    assert code == 2
    assert line.startswith("model.network: there is no class 'NoSuch'; give its name or its full path, such as ggm_")
    assert not list(theirs.parent.rglob("*error-*"))


def test_a_file_that_is_no_python(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before there is a run folder the traceback goes to the system's temporary folder."""
    Path("torn.py").write_text("x = 1\ndef f(:\n")
    code, line = failed(capsys, [*configured(theirs.parent, "Net"), "--model.network=torn.Net"])
    assert code == 1
    assert line.startswith("SyntaxError: invalid syntax (torn.py, line 2); at torn.py:2; traceback: ")
    assert Path(line.rpartition(": ")[2]).parent == theirs.parent / "spare"


def test_commands_that_take_a_checkpoint(
    theirs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = configured(theirs.parent, "Net")
    main(args)
    monkeypatch.setenv("BREAK", "1")
    trusted = ["--trust", "theirs"]
    checkpoint = ["--ckpt_path", "runs/toy/last.ckpt", *trusted]
    expected = f"broken on request; at theirs.py:{line_of('Net')}; traceback: runs/toy/error-"
    for command in (
        ["validate", *args[1:]],
        ["test", *args[1:]],
        ["predict", *args[1:]],
        ["sample", *checkpoint],
        ["infill", "--ckpt_path=runs/toy/last.ckpt", "--text", "1 _", *trusted],
        ["evaluate", *checkpoint],
    ):
        code, line = failed(capsys, command)
        assert code == 1, command
        assert line.startswith(expected), command


def test_debugging_shows_the_traceback(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGM_DEBUG", "1")
    with pytest.raises(KeyError, match="missing"):
        main(configured(theirs.parent, "ForwardKey"))


# Errors as they are, without a run around them.


def _raised(error: Exception, cause: Exception | None = None, file: str = "theirs.py") -> Exception:
    """The error, raised in the first line of `file`."""
    code = compile("raise error from cause" if cause else "raise error", file, "exec")
    try:
        exec(code, {"error": error, "cause": cause})
    except Exception as caught:
        caught.__traceback__ = caught.__traceback__.tb_next  # from where it was raised, as `main` sees it
        return caught
    raise AssertionError("nothing was raised")


def _reported(capsys: pytest.CaptureFixture[str], error: Exception, args: list[str], code: int = 1) -> str:
    capsys.readouterr()
    assert errors.report(error, args, lambda message: f"parsed: {message}") == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said.removeprefix("lightning: error: ").removesuffix("\n")


def test_an_installed_package_is_found_where_no_file_of_the_users_is(
    theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(theirs.parent / "site-packages" / "shared_nets" / "net.py")
    assert "; at site-packages/shared_nets/net.py:1; " in _reported(capsys, _raised(KeyError("x"), file=file), ["fit"])
    inside = _raised(ValueError("twice"), cause=_raised(IndexError("7"), file=file))
    assert "twice; caused by IndexError: 7; at theirs.py:1; " in _reported(capsys, inside, ["fit"])


def test_this_packages_own_words_stand_alone(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = str(Path(errors.__file__).parents[1] / "data" / "text.py")
    assert _reported(capsys, _raised(ValueError("give more"), file=ours), ["fit"], code=2) == "give more"
    bare = _reported(capsys, _raised(FileNotFoundError(2, "No such file", "x"), file=ours), ["fit"], code=2)
    assert bare.startswith("[Errno 2] No such file: 'x'; traceback: ")  # the system's words, not ours
    assert _reported(capsys, _raised(ValueError("no"), file=torch.__file__), ["fit"], 2).startswith("no; traceback: ")
    # the control: the same words from elsewhere are no deliberate message
    assert "; at theirs.py:1; traceback: " in _reported(capsys, _raised(ValueError("give more")), ["fit"])
    # nor is another kind of exception from within
    assert _reported(capsys, _raised(TypeError("no"), file=ours), ["fit"]).startswith("TypeError: no; traceback: ")


def test_nothing_fails_within_the_report(
    theirs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    monkeypatch.setattr(tempfile, "tempdir", str(theirs.parent / "nowhere"))
    errors.set_run_folder(theirs.parent / "nowhere either")
    assert _reported(capsys, _raised(Mute()), ["fit"]) == "Mute; at theirs.py:1"
    monkeypatch.setattr(errors, "_links", lambda error: 1 / 0)
    assert _reported(capsys, KeyError("x"), ["fit"]) == "KeyError (and ZeroDivisionError while explaining it)"


def test_printed_tracebacks_are_read_to_their_first_cause(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a loader's worker or a spawned rank sends it."""
    text = (
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "/home/me/rows.py", line 3, in fetch\n    {}["k"]\n    ~~^^^^^\nKeyError: \'k\'\n\n'
        "The above exception was the direct cause of the following exception:\n\n"
        "Traceback (most recent call last):\n"
        f'  File "{torch.__file__}", line 70, in fetch\n    data = fetch()\n'
        '  File "/home/me/rows.py", line 5, in fetch\n    raise RuntimeError()\nRuntimeError: first\nsecond\n'
    )
    frame = _raised(RuntimeError(text), file=torch.__file__)
    line = _reported(capsys, frame, ["fit"])
    assert line.startswith("first second; caused by KeyError: 'k'; at /home/me/rows.py:3; traceback: ")
