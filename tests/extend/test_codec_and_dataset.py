"""docs/extend/codec.md and dataset.md, run as they are written: files of a stranger in a folder outside the package."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "extend"
MODULES = {"codec": "codons", "dataset": "bars"}
LABELS = {"codec": "None", "dataset": "[0, 1]"}
UNTRUSTED = {"codec": "sample", "dataset": "evaluate"}  # what is refused without --trust
# What follows the fit, in one new process: a refusal, the page's commands, and what a loaded model is asked.
LATER = """
from ggm_lightning import load
from ggm_lightning.cli.main import main

try:
    main([{refused!r}, "--ckpt_path", {path!r}])
except SystemExit as end:
    print("refused:", end.code)
for line in {commands!r}:
    main(line.split()[3:])
model = load({path!r}, trust={module!r})
print("codec:", type(model.codec).__module__, type(model.codec).__name__)
print("drawn:", model.codec.decode(model.sample(2, 4, label={label}).x)[0])
"""
BROKEN = """
from ggm_lightning.cli.main import main

for command in ({fit!r}, {prepare!r}):
    try:
        main(command.split()[3:])
    except SystemExit as end:
        print("refused:", end.code)
"""


def blocks(page: str) -> tuple[dict[str, str], list[str]]:
    """(name -> text of the files, commands) that a page holds."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"```\w+ title=\"([\w.]+)\"\n(.*?)```", text, re.DOTALL))
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return files, commands.strip().splitlines()


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """In `folder`, with this package importable and nothing else of this checkout."""
    env = {**os.environ, "PYTHONPATH": str(DOCS.parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", params=MODULES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A page, and the folder in which its first command has been run."""
    folder = tmp_path_factory.mktemp(request.param)
    files, (fit, *_) = blocks(request.param)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    found = run(folder, *shlex.split(fit)[1:])
    assert found.returncode == 0, found.stderr
    return request.param, folder


@pytest.mark.slow
def test_the_example_is_short(trained: tuple[str, Path]) -> None:
    page, folder = trained
    assert 20 <= len((folder / f"{MODULES[page]}.py").read_text().splitlines()) <= 70


@pytest.mark.slow
def test_it_is_refused_loaded_sampled_filled_in_and_evaluated(trained: tuple[str, Path]) -> None:
    page, folder = trained
    _, commands = blocks(page)
    assert [line.split()[3] for line in commands] == ["fit", "sample", "infill", "evaluate"]
    path, module = str(next(folder.glob("runs/*/last.ckpt"))), MODULES[page]
    facts = {"path": path, "module": module, "label": LABELS[page], "refused": UNTRUSTED[page]}
    (folder / "later.py").write_text(LATER.format(commands=commands[1:], **facts))
    found = run(folder, "later.py")
    assert found.returncode == 0, found.stderr
    refusal = next(line for line in found.stderr.splitlines() if "error" in line)
    assert f"names the class {module}." in refusal
    assert f"--trust {module}" in refusal
    out = found.stdout
    assert out.startswith("refused: 2\n")
    if page == "codec":
        filled = re.findall(r"(?m)^ATG[ACGT]{3}GCC[ACGT]{3}TAA$", out)
        assert len(filled) == 4, out  # what was given stands where it stood, in all four fillings
        assert "codec: codons Codons" in out
        assert re.search(r"(?m)^drawn: [ACGT]{33}$", out)
        assert "upper bounds on -log p" in out
        assert re.search(r"Genes +val +130 ", out)
    else:
        assert "codec: ggm_lightning.codecs.pictures Images" in out
        assert re.search(r"Bars +val +70 ", out)


@pytest.mark.slow
def test_inspect_names_the_classes_and_imports_none(trained: tuple[str, Path], capsys: pytest.CaptureFixture) -> None:
    from ggm_lightning.cli.inspect import inspect

    page, folder = trained
    inspect(str(next(folder.glob("runs/*/last.ckpt"))))
    shown = capsys.readouterr().out
    needed = {"codec": "codons.Codons, codons.Genes", "dataset": "bars.Bars"}[page]
    assert f"{needed}: foreign code, built only with --trust {MODULES[page]}" in shown
    assert MODULES[page] not in sys.modules


@pytest.mark.slow
def test_a_codec_that_cannot_be_loaded_again_ends_fit_and_prepare_at_once(tmp_path: Path) -> None:
    """The page's own codec, with the line left out that keeps the argument."""
    files, (fit, *_) = blocks("codec")
    kept = "self.letters = letters"
    assert kept in files["codons.py"]
    broken = files["codons.py"].replace(kept, "used = letters").replace("{self.letters}", "these")
    (tmp_path / "codons.py").write_text(broken)
    (tmp_path / "genes.yaml").write_text(files["genes.yaml"])
    prepare = "python -m ggm_lightning prepare --config genes.yaml"
    (tmp_path / "broken.py").write_text(BROKEN.format(fit=fit, prepare=prepare))
    found = run(tmp_path, "broken.py")
    assert found.stdout == "refused: 2\nrefused: 2\n", found.stderr
    lines = [line for line in found.stderr.splitlines() if "error" in line]
    assert len(lines) == 2
    for line in lines:
        assert "codons.Codons: its argument 'letters' is not kept" in line
        assert "write self.letters = letters in the constructor" in line
    assert not list(tmp_path.glob("runs/*/*.ckpt"))
