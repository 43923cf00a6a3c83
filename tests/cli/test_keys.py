"""The full key that an unknown one stands for."""

from __future__ import annotations

import pytest

from ggm_lightning.cli import config, keys

MARKOV = config.load_file("experiments/md4_markov.yaml")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("max_steps", ["trainer.max_steps"]),
        ("lr", ["model.optimizer.lr"]),
        ("network", ["model.network"]),
        ("feature_dim", ["model.network.feature_dim"]),
        ("batch_size", ["data.global_batch_size", "data.eval_batch_size"]),
        ("data.batchsize", ["data.global_batch_size", "data.eval_batch_size"]),
        ("data.init_args.batchsize", ["data.global_batch_size", "data.eval_batch_size"]),
        ("data.lr", ["model.optimizer.lr"]),
        ("trainer.max_step", ["trainer.max_steps"]),
        ("devcies", ["trainer.devices"]),
        ("nam", ["name"]),
        ("foo", []),
        ("data.foo", []),
        ("data.shape", []),  # is taken from elsewhere
        ("", []),
    ],
)
def test_meant(given: str, meant: list[str]) -> None:
    assert keys.meant(given, MARKOV, config.TOP_KEYS) == meant


def test_a_text_where_the_data_has_none_names_the_file_that_does() -> None:
    """It is no part of trainer.limit_train_batches."""
    demo = config.load_file("experiments/md4_demo.yaml")
    said = config.one_line("unrecognized arguments: --data.train=my.txt", experiment=demo)
    assert said.endswith("a text of your own: --config text_file after the first --config")
    assert "text_file" not in config.one_line("unrecognized arguments: --data.foo=x", experiment=demo)


def test_a_file_without_its_option() -> None:
    message = "unrecognized arguments: runs/demo/last.ckpt"
    assert config.one_line(message, ("ckpt_path", "num_samples")).endswith("mean --ckpt_path runs/demo/last.ckpt?")
    assert config.one_line(message, config.TOP_KEYS).endswith("did you mean --ckpt_path runs/demo/last.ckpt?")
    assert config.one_line("unrecognized arguments: md4_demo", config.TOP_KEYS).endswith("--config md4_demo?")


def test_only_sections_that_the_command_has() -> None:
    assert keys.meant("max_steps", MARKOV, ("data", "verify")) == []
    assert keys.meant("length", MARKOV, ("data", "verify")) == ["data.length"]


def test_without_an_experiment_the_trainers_keys_are_known() -> None:
    assert keys.meant("max_steps", {}, config.TOP_KEYS) == ["trainer.max_steps"]
    assert keys.meant("lr", {}, config.TOP_KEYS) == []
