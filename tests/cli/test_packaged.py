"""Experiments by name: which file is meant, what lies in the working folder first, lists and copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggm_lightning.cli import config, packaged
from ggm_lightning.cli import main as command_line
from ggm_lightning.cli.main import main

DEMO = "experiments/md4_demo.yaml"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("md4_demo", DEMO),
        ("md4_demo.yaml", DEMO),
        (DEMO, DEMO),
        ("experiments/md4_demo", DEMO),
        ("text8", "configs/data/text8.yaml"),
        ("configs/data/text8.yaml", "configs/data/text8.yaml"),
        ("configs/trainer/cpu", "configs/trainer/cpu.yaml"),
        ("vqgan_digits", "experiments/vqgan_digits.yaml"),  # a data set is called so, too
    ],
)
def test_a_name_means_a_file_of_the_package(given: str, meant: str) -> None:
    assert packaged.find(given) == ROOT / meant
    assert packaged.find_packaged(given) == meant


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("given", ["pyproject.toml", "configs/../pyproject.toml", "../configs/data/text8.yaml", "cpu"])
def test_nothing_else_of_the_package_is_found(given: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; looked for"):
        packaged.find(given)


@pytest.mark.parametrize("own", ["md4_demo", "md4_demo.yaml", DEMO])
def test_the_working_folder_comes_first(empty: Path, own: str) -> None:
    write(empty / own, "name: mine\n")
    assert packaged.find("md4_demo") == Path(own)
    assert config.load_file("md4_demo") == {"name": "mine"}


def test_a_data_set_of_the_working_folder_is_no_experiment(empty: Path) -> None:
    write(empty / "configs" / "data" / "vqgan_digits.yaml", "data: {}\n")
    assert packaged.find("vqgan_digits") == ROOT / "experiments" / "vqgan_digits.yaml"
    assert packaged.find_data("vqgan_digits") == "configs/data/vqgan_digits.yaml"


def test_it_is_said_that_the_package_has_another_file_of_that_name(
    empty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "_run_trainer_command", lambda *_: None)
    main(["fit", "--config", "md4_demo"])
    assert capsys.readouterr().err == ""  # the package's: there is no other
    write(empty / DEMO, "name: mine\n")
    main(["fit", "--config", DEMO])
    assert capsys.readouterr().err == ""  # the very file that was named
    main(["fit", "--config", "md4_demo"])
    assert capsys.readouterr().err == f"md4_demo: {DEMO} of the working folder is taken, not the package's\n"
    monkeypatch.chdir(ROOT)
    main(["fit", "--config", "md4_demo"])
    assert capsys.readouterr().err == ""  # in a checkout both are one file


def test_a_run_is_called_by_the_name_of_its_file(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = []
    monkeypatch.setattr(
        command_line, "_run_trainer_command", lambda command, merged, rest: named.append(merged["name"])
    )
    write(empty / "experiments" / "mine.v2.yaml", "trainer: {max_steps: 1}\n")
    write(empty / "second.yaml", "trainer: {max_steps: 2}\n")
    for given in ("mine.v2", "experiments/mine.v2.yaml"):
        main(["fit", "--config", given])
    main(["fit", "--config", "mine.v2", "-c=second"])
    main(["fit", "--config", "md4_markov", "--config", "second"])  # whose file says it
    assert named == ["mine.v2", "mine.v2", "second", "md4_markov"]


@pytest.mark.parametrize("included", [DEMO, "md4_demo"])
def test_a_file_of_ones_own_may_include_the_packages(empty: Path, included: str) -> None:
    write(empty / "sub" / "mine.yaml", f"include: [{included}]\nname: mine\n")
    found = config.load_file("sub/mine.yaml")
    assert found["model"] == config.load_file(DEMO)["model"]
    assert found["name"] == "mine"
    # beside the file wins, the working folder does not count
    write(empty / DEMO, "model: {class_path: Other}\n")
    assert config.load_file("sub/mine.yaml") == found
    write(empty / "sub" / DEMO, "model: {class_path: Other}\n")
    if included == DEMO:
        assert config.load_file("sub/mine.yaml")["model"] == {"class_path": "Other"}


def test_a_missing_include_is_one_line(empty: Path) -> None:
    write(empty / "mine.yaml", "include: [experiments/md4_dmo.yaml]\n")
    message = (
        "--config mine: include experiments/md4_dmo.yaml: no such file; looked for experiments/md4_dmo.yaml and among "
        "the package's experiments/ and configs/; did you mean 'experiments/md4_demo.yaml'?"
    )
    with pytest.raises(FileNotFoundError) as refused:
        config.load_file("mine")
    assert str(refused.value) == message


@pytest.mark.usefixtures("empty")
def test_a_pattern_names_files_of_the_package() -> None:
    sets = ["lambada", "lm1b", "ptb", "wikitext103", "wikitext2"]
    assert packaged.expand("configs/data/zeroshot_*.yaml") == [f"configs/data/zeroshot_{name}.yaml" for name in sets]
    assert packaged.expand("nothing_*.yaml") == ["nothing_*.yaml"]
    assert packaged.expand("*.toml") == ["*.toml"]
    write(Path("configs/data/zeroshot_mine.yaml"), "data: {}\n")
    assert packaged.expand("configs/data/zeroshot_*.yaml") == ["configs/data/zeroshot_mine.yaml"]


@pytest.mark.usefixtures("empty")
def test_evaluate_takes_data_sets_of_the_package() -> None:
    from ggm_lightning.cli import evaluation_sets

    sources = evaluation_sets.sections(["configs/data/zeroshot_*.yaml", "text8"], None, {}, {}, "x.ckpt")
    assert sorted(sources)[:2] == ["text8", "zeroshot_lambada"]
    assert sources["text8"].section == config.load_file("configs/data/text8.yaml")["data"]
    assert sources["text8"].file == "configs/data/text8.yaml"  # which `lightning prepare --config` takes


@pytest.mark.usefixtures("empty")
def test_the_list_has_each_experiment_and_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith("  ")]
    names = [row[0] for row in rows]
    for name in names:
        assert packaged.find(name).is_file()
    experiments, sets = (sorted((ROOT / folder).glob("*.yaml")) for folder in ("experiments", "configs/data"))
    assert {packaged.find(name) for name in names if not name.endswith(".sbatch")} == {*experiments, *sets}
    assert ["md4_markov", "MD4", "MD4", "on", "a", "source"] in [row[:6] for row in rows]
    assert ["text8", "Text8"] in [row[:2] for row in rows]


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_copy_says_what_the_original_says(
    empty: Path, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["copy", path.stem, "mine"])
    copied = f"mine/experiments/{path.name}"
    assert capsys.readouterr().out.endswith(f"train it: lightning fit --config {copied}\n")
    monkeypatch.setattr(packaged, "_of_package", lambda _: False)  # every piece is there
    assert config.load_file(copied) == config.load_file(str(path))
    assert {file.read_bytes() for file in (empty / "mine").rglob("*.yaml")} <= {
        (ROOT / name).read_bytes() for name in packaged.names()
    }


def test_a_copy_replaces_nothing(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    piece = write(empty / "configs" / "trainer" / "cpu.yaml", "trainer: {accelerator: mine}\n")
    main(["copy", "md4_demo"])
    assert "stays as it is: configs/trainer/cpu.yaml" in capsys.readouterr().out
    assert piece.read_text() == "trainer: {accelerator: mine}\n"
    assert config.load_file("md4_demo")["trainer"]["accelerator"] == "mine"
    write(empty / DEMO, "name: mine\n")
    with pytest.raises(SystemExit):
        main(["copy", "md4_demo"])
    assert f"{DEMO} is there already" in capsys.readouterr().err
    assert (empty / DEMO).read_text() == "name: mine\n"
    (empty / "new" / "experiments").mkdir(parents=True)
    (empty / "new" / DEMO).symlink_to(empty / "nowhere.yaml")  # a link that leads nowhere is somebody's, too
    with pytest.raises(SystemExit):
        main(["copy", "md4_demo", "new"])
    assert not (empty / "nowhere.yaml").exists()


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    import lightning
    import torch

    import ggm_lightning

    main(["--version"])
    versions = f"torch {torch.__version__}, lightning {lightning.__version__}"
    assert capsys.readouterr().out == f"ggm_lightning {ggm_lightning.__version__}, {versions}\n"
