"""Invalid configurations: a valid one with a fault put in, and the words of which an error must say one."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.strategies import EMA, SAMPLES, SCHEDULE_KINDS, Tree, configurations
from tests.fuzz.writing import Case, written

NAN, INF = math.nan, math.inf
NO_INT = ("abc", [1], {"a": 1}, 1.5, NAN, INF, True, "", "1e400")
NO_FLOAT = ("abc", [0.5], {"a": 1}, NAN, INF, -INF, True, "")
NO_BOOL = ("abc", 5, [True], {"a": 1}, 0.5)
NO_TEXT = (5, ["a"], {"a": 1}, True)
NO_CHOICE = ("nope", "", 5, ["t"], None)

NETWORK = ("model", "init_args", "network", "init_args")
MODEL = ("model", "init_args")
OPTIMIZER = ("model", "init_args", "optimizer")
DATA = ("data", "init_args")
BELOW_ONE = (0, -1, -(2**40))


def _null(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*values, None)


# section -> key -> values that no run can mean
BAD: dict[tuple[str, ...], dict[str, tuple[Any, ...]]] = {
    NETWORK: {
        "feature_dim": (*_null(NO_INT), 0, -2, 3, 7),
        "num_heads": (*_null(NO_INT), *BELOW_ONE),
        "num_layers": (*_null(NO_INT), *BELOW_ONE),
        "num_labels": (*_null(NO_INT), -1),
        "mlp": NO_CHOICE,
        "conditioning": NO_CHOICE,
        "time_features": NO_CHOICE,
        "outside_embed": _null(NO_BOOL),
        "dropout": (*_null(NO_FLOAT), 1, 1.0, -0.1, 1.5),
        "depth_scaled_init": _null(NO_BOOL),
        "checkpoint_activations": _null(NO_BOOL),
        "num_classes": (3, 11, "abc", -1),
    },
    MODEL: {
        "num_timesteps": (*NO_INT, *BELOW_ONE),
        "count_prior": _null(NO_BOOL),
        "leftover": NO_CHOICE,
        "label_dropout": (*_null(NO_FLOAT), -0.1, 1.5),
        "eval_samples": (*_null(NO_INT), *BELOW_ONE),
        "eval_seed": (*_null(NO_INT), 2**64),
        "seed": (3, "abc", None),
        "num_classes": (3, "abc"),
        "shape": ([3], 5, "abc"),
        "optimizer": (None, 5, "abc", [1]),
        "network": (None, 5, ["a"], "Nope", "ggm_lightning.core.schedules.Linear", "no.such.module.Net"),
        "schedule": (None, 5, ["a"], "Nope", "ggm_lightning.networks.transformer.Transformer", "torch.nn.ReLU"),
    },
    OPTIMIZER: {
        "lr": (*_null(NO_FLOAT), -1e-3),
        "eps": (*_null(NO_FLOAT), -1e-8),
        "weight_decay": (*_null(NO_FLOAT), -0.5),
        "warmup_steps": (*_null(NO_INT), -1),
        "betas": (0.9, [0.9], [0.9, 1.0], [-0.1, 0.9], [0.9, NAN], ["a", "b"], [0.9, 0.9, 0.9], None, {"a": 1}),
        "decay": NO_CHOICE,
    },
    DATA: {
        "global_batch_size": (*_null(NO_INT), *BELOW_ONE),
        "max_batch_per_device": (*NO_INT, *BELOW_ONE),
        "eval_batch_size": (*_null(NO_INT), *BELOW_ONE),
        "num_workers": (*_null(NO_INT), -1),
        "seed": (3, None),
    },
    ("trainer",): {
        "max_steps": (*NO_INT, -5),
        "max_epochs": (*NO_INT, -5),
        "min_steps": (*NO_INT, -1),
        "log_every_n_steps": (*NO_INT, -1),
        "gradient_clip_val": ("abc", [1], {"a": 1}, NAN, INF, -1, -0.5),
        "gradient_clip_algorithm": ("nope", 5, [1]),
        "val_check_interval": ("abc", [1], NAN, 0, -1, -0.5),
        "check_val_every_n_epoch": (*NO_INT, 0, -1),
        "limit_val_batches": ("abc", [1], -1, -0.5, 1.5, NAN),
        "limit_train_batches": ("abc", [1], -1, -0.5, 1.5, NAN),
        "num_sanity_val_steps": (*NO_INT, -2),
        "accumulate_grad_batches": (*_null(NO_INT), 0, -1, 13),
        "precision": ("17", 17, "half", [32]),
        "accelerator": ("abacus", 5, [1]),
        "strategy": ("abacus", 5, [1]),
        "devices": (0, -2, "abc", 1.5),
        "max_time": ("soon", {"days": -1}, {"years": 1}, 5),
        "use_distributed_sampler": (True, "abc", 5),
        "detect_anomaly": NO_BOOL,
        "fast_dev_run": (-1, "abc", [1]),
        "overfit_batches": (-1, 1.5, "abc", NAN),
        "callbacks": ("Nope", 5, [5], ["Nope"], [{"class_path": "Nope"}], [{"init_args": {}}], "Linear", {"a": 1}),
    },
    (): {
        "seed_everything": (-1, 2**32, "abc", [1], 1.5, NAN, True, None),
        "name": (*NO_TEXT, "", None),
        "runs": (*NO_TEXT, "", None),
        "logger": ("csv", 5, ["nope"], [5], None, {"a": 1}),
        "checkpoint_every_n_steps": (*_null(NO_INT), *BELOW_ONE),
        "allow_fresh": _null(NO_BOOL),
        "ckpt_path": ("nowhere.ckpt", "last", "best", 5, ["a"]),
        "model": (5, None, "Nope", [1], "ggm_lightning.networks.transformer.Transformer", "no.such.module.Model"),
        "data": (5, None, "Nope", [1], "ggm_lightning.models.md4.MD4", "os.path", "no.such.module.Data"),
        "trainer": (5, None, "abc", [1]),
        "config": ("nowhere.yaml",),
    },
}
BAD_SCHEDULE = {
    "Linear": {"eps": (*_null(NO_FLOAT), -0.1, 0.5, 1.0)},
    "Cosine": {"eps": (*_null(NO_FLOAT), -0.1, 0.5, 1.0)},
    "Polynomial": {"eps": (0.5, -1.0), "exponent": (*_null(NO_FLOAT), 0, -1.0)},
    "Geometric": {"b_min": (*_null(NO_FLOAT), 0, -1.0, 100.0), "b_max": (*_null(NO_FLOAT), 0, -1.0)},
}
SYNTHETIC = {
    "length": (*_null(NO_INT), *BELOW_ONE),
    "num_train": (*_null(NO_INT), *BELOW_ONE),
    "num_val": (*_null(NO_INT), *BELOW_ONE),
    "source_seed": (*_null(NO_INT), -1, 2**64),
}
BAD_DATA = {
    "toy.synthetic.MarkovChain": {**SYNTHETIC, "num_symbols": (*_null(NO_INT), 1, *BELOW_ONE)},
    "toy.synthetic.Sawtooth": {
        **SYNTHETIC,
        "saws": (*_null(NO_INT), *BELOW_ONE),
        "scale": (*_null(NO_FLOAT), 0, 0.5, -0.1, 2),
    },
    "text.TextData": {
        "train": (5, None, "nowhere.txt", "nowhere/*.jsonl", ["nowhere.txt"], {"a": 1}, ""),
        "val": (5, "nowhere.txt"),
        "length": (*_null(NO_INT), *BELOW_ONE, 10**6),
        "stride": (*NO_INT, *BELOW_ONE),
        "tokenizer": (5, None, "nowhere.json", ["a"]),
        "text_key": (5, None, ["a"]),
    },
    "arrays.ArrayData": {
        "train": (5, None, "nowhere.npy", "FILES/words.txt", "FILES/reals.npy", "FILES/flat.npy", ""),
        "num_classes": (*_null(NO_INT), *BELOW_ONE, 1, 3),
        "val": (5, "nowhere.npy", "FILES/reals.npy", "FILES/flat.npy"),
        "labels": (5, "nowhere.npy", "FILES/reals.npy", "FILES/flat.npy"),
        "val_labels": ("FILES/labels.npy", "nowhere.npy", 5),
    },
}
BAD_CALLBACK = {
    "EMA": {"decay": (*_null(NO_FLOAT), 1, 1.0, 1.5, -0.1), "warmup": _null(NO_BOOL)},
    "Samples": {
        "num_samples": (*_null(NO_INT), *BELOW_ONE),
        "num_steps": (*_null(NO_INT), *BELOW_ONE),
        "every_n_validations": (*_null(NO_INT), *BELOW_ONE),
        "temperature": (*_null(NO_FLOAT), 0, -1.0),
        "top_p": (*_null(NO_FLOAT), 0, -0.5, 1.5),
        "seed": (*_null(NO_INT), 2**64),
    },
}


def place(tree: Tree, path: tuple[str, ...]) -> Tree:
    """The mapping at `path`, made where it is missing."""
    for key in path:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    return tree


def words(key: str, value: Any) -> list[str]:
    """What an error about this key may say: the key, or the value as Python or YAML spells it."""
    return [key, *(text for text in (str(value), repr(value), json.dumps(value)) if len(text) > 2)]


SCHEDULE_ARGUMENTS = (*MODEL, "schedule", "init_args")
CALLBACK = ("trainer", "callbacks")

# (section, the class there or None for any, key, values): every key once
WRONG_VALUES = [
    (section, name, key, values)
    for section, tables in (
        *((section, {None: table}) for section, table in BAD.items()),
        (DATA, BAD_DATA),
        (SCHEDULE_ARGUMENTS, BAD_SCHEDULE),
        (CALLBACK, BAD_CALLBACK),
    )
    for name, table in tables.items()
    for key, values in table.items()
]


@st.composite
def bad_values(draw: st.DrawFn, files: Path, number: int) -> Case:
    """A value of another type, or out of range, for key `number` of WRONG_VALUES."""
    section, name, key, values = WRONG_VALUES[number]
    value = draw(st.sampled_from(values))
    if isinstance(value, str):
        value = value.replace("FILES", str(files))
    tree = copy.deepcopy(draw(configurations(files, name if section == DATA else None)))
    last = None
    if section == CALLBACK:
        callback = copy.deepcopy(draw({"EMA": EMA, "Samples": SAMPLES}[name]))
        callback["init_args"][key] = value
        tree["trainer"]["callbacks"] = [callback, *tree["trainer"]["callbacks"][-1:]]
    else:
        if section == SCHEDULE_ARGUMENTS:
            tree["model"]["init_args"]["schedule"] = copy.deepcopy(draw(SCHEDULE_KINDS[name]))
        if key == "gradient_clip_algorithm":
            tree["trainer"]["gradient_clip_val"] = 1.0  # without it the algorithm is not looked at
        if key == "val_labels":
            tree["data"]["init_args"].pop("val", None)
        place(tree, section)[key] = value
        last = ((*section, key), value) if not isinstance(value, dict) and draw(st.booleans()) else None
    return marked(draw(written(tree, last)), words(key, value))


def marked(case: Case, mark: list[str]) -> Case:
    case.mark = mark
    return case
