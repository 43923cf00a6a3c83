"""Valid configurations, tiny, as trees of plain values; tests/fuzz/writing.py writes them the way users do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

Tree = dict[str, Any]

SCHEDULES = "ggm_lightning.core.schedules"
CALLBACKS = "ggm_lightning.callbacks"


def corpus(folder: Path) -> Path:
    """The files that configurations name: a text, arrays of tokens and of pictures, labels."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "words.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 12, encoding="utf-8")
    np.save(folder / "tokens.npy", rng.integers(0, 5, (23, 7), dtype=np.uint8))
    np.save(folder / "pictures.npy", rng.integers(0, 5, (23, 3, 5), dtype=np.uint8))
    np.save(folder / "labels.npy", np.arange(23) % 3)
    np.save(folder / "reals.npy", rng.random((23, 7)))
    np.save(folder / "flat.npy", np.arange(5))
    return folder


def mapping(**optional: st.SearchStrategy) -> st.SearchStrategy[Tree]:
    """Any subset of these keys."""
    return st.fixed_dictionaries({}, optional=optional)


def of_class(path: str, arguments: st.SearchStrategy[Tree], short: bool = True) -> st.SearchStrategy[Tree]:
    """class_path by its full or its short name, and init_args."""
    names = [path, path.rsplit(".", 1)[1]] if short else [path]
    return st.fixed_dictionaries({"class_path": st.sampled_from(names), "init_args": arguments})


def rates(top: float) -> st.SearchStrategy[float]:
    return st.floats(0, top)


EPS = st.sampled_from([0.0, 1e-4, 0.01])
LINEAR = of_class(f"{SCHEDULES}.Linear", mapping(eps=EPS))
COSINE = of_class(f"{SCHEDULES}.Cosine", mapping(eps=EPS))
POLYNOMIAL = of_class(f"{SCHEDULES}.Polynomial", mapping(eps=EPS, exponent=st.floats(0.25, 4)))
GEOMETRIC = of_class(
    f"{SCHEDULES}.Geometric",
    mapping(eps=EPS, b_min=st.sampled_from([1e-5, 1e-3]), b_max=st.sampled_from([5.0, 20.0])),
)
SCHEDULE_KINDS = {"Linear": LINEAR, "Polynomial": POLYNOMIAL, "Cosine": COSINE, "Geometric": GEOMETRIC}
SCHEDULE = st.one_of(*SCHEDULE_KINDS.values())

OPTIMIZER = mapping(
    lr=rates(0.01),
    betas=st.tuples(rates(0.875), rates(0.9375)).map(list),
    eps=st.sampled_from([1e-12, 1e-8, 1e-6]),
    weight_decay=rates(0.5),
    warmup_steps=st.integers(0, 3),
    decay=st.sampled_from(["cosine", "constant"]),
)

EMA = of_class(f"{CALLBACKS}.ema.EMA", mapping(decay=rates(0.875), warmup=st.booleans()))
SAMPLES = of_class(
    f"{CALLBACKS}.samples.Samples",
    st.fixed_dictionaries(
        {"num_samples": st.integers(1, 2), "num_steps": st.integers(1, 3)},
        optional={
            "temperature": st.sampled_from([0.5, 1.0, 2.0]),
            "top_p": st.sampled_from([0.5, 1.0]),
            "seed": st.integers(0, 9),
            "every_n_validations": st.integers(1, 2),
        },
    ),
)
# the report of a run draws 32 samples in 128 steps unless it is told otherwise
REPORT = {"class_path": f"{CALLBACKS}.report.Report", "init_args": {"num_samples": 1, "num_steps": 1}}


@st.composite
def networks(draw: st.DrawFn, num_labels: int) -> Tree:
    arguments = st.fixed_dictionaries(
        {
            "feature_dim": st.sampled_from([4, 6, 8]),
            "num_heads": st.integers(1, 3),
            "num_layers": st.integers(1, 2),
        },
        optional={
            "mlp": st.sampled_from(["glu", "swiglu", "geglu"]),
            "conditioning": st.sampled_from(["adaln_zero", "adaln"]),
            "time_features": st.sampled_from(["t", "none"]),
            "outside_embed": st.booleans(),
            "dropout": rates(0.875),
            "depth_scaled_init": st.booleans(),
            "checkpoint_activations": st.booleans(),
            "compile_blocks": st.just(False),
        },
    )
    tree = draw(of_class("ggm_lightning.networks.transformer.Transformer", arguments, short=False))
    return {**tree, "init_args": {**tree["init_args"], **({"num_labels": num_labels} if num_labels else {})}}


@st.composite
def models(draw: st.DrawFn, labelled: bool) -> Tree:
    num_labels = draw(st.sampled_from([0, 3])) if labelled else 0
    arguments = draw(
        st.fixed_dictionaries(
            {"network": networks(num_labels)},
            optional={
                "schedule": SCHEDULE,
                "num_timesteps": st.one_of(st.none(), st.integers(1, 9)),
                "count_prior": st.booleans(),
                "leftover": st.sampled_from(["draw", "argmax"]),
                "optimizer": OPTIMIZER,
                "label_dropout": rates(1.0) if num_labels else st.just(0.0),
                "eval_samples": st.integers(1, 2),
                "eval_seed": st.integers(0, 9),
            },
        )
    )
    return {"class_path": "ggm_lightning.models.md4.MD4", "init_args": arguments}


# (global batch, largest micro-batch) that divide
BATCHES = st.sampled_from([(2, None), (4, 2), (6, 2), (6, 1), (3, 3), (1, None), (5, 7)])
SYNTHETIC = {"num_train": st.integers(3, 20), "num_val": st.integers(1, 5), "length": st.integers(1, 7)}
MARKOV = st.fixed_dictionaries(
    {**SYNTHETIC, "num_symbols": st.integers(2, 7)}, optional={"source_seed": st.integers(0, 9)}
)
SAWTOOTH = st.fixed_dictionaries(
    SYNTHETIC,
    optional={
        "saws": st.integers(1, 2),
        "scale": st.sampled_from([0.01, 0.25]),
        "source_seed": st.integers(0, 9),
    },
)


def text_data(files: Path) -> st.SearchStrategy[Tree]:
    train = str(files / "words.txt")
    return st.fixed_dictionaries(
        {"train": st.sampled_from([train, [train], str(files / "*.txt")]), "length": st.integers(1, 9)},
        optional={
            "tokenizer": st.sampled_from(["bytes", "characters"]),
            "val": st.just(train),
            "val_fraction": st.sampled_from([0.25, 0.5]),
            "stride": st.one_of(st.none(), st.integers(1, 9)),
            "folder": st.just("shards"),
        },
    )


def array_data(files: Path, labelled: bool) -> st.SearchStrategy[Tree]:
    name = st.sampled_from([str(files / "tokens.npy"), str(files / "pictures.npy")])
    labels = {"labels": st.just(str(files / "labels.npy"))} if labelled else {}
    return st.fixed_dictionaries(
        {"train": name, "num_classes": st.integers(5, 6), **labels},
        optional={"val_fraction": st.sampled_from([0.25, 0.5])},
    )


@st.composite
def datasets(draw: st.DrawFn, files: Path, labelled: bool, kind: str | None = None) -> Tree:
    kinds = {
        "toy.synthetic.MarkovChain": MARKOV,
        "toy.synthetic.Sawtooth": SAWTOOTH,
        "text.TextData": text_data(files),
        "arrays.ArrayData": array_data(files, labelled),
    }
    name = "arrays.ArrayData" if labelled else kind or draw(st.sampled_from(sorted(kinds)))
    path, arguments = f"ggm_lightning.data.{name}", kinds[name]
    whole, micro = draw(BATCHES)
    batches: Tree = {"global_batch_size": whole, "eval_batch_size": draw(st.integers(1, 5))}
    if micro is not None:
        batches["max_batch_per_device"] = micro
    return {"class_path": path, "init_args": {**draw(arguments), **batches}}


@st.composite
def trainers(draw: st.DrawFn) -> Tree:
    # bf16 is emulated on most CPUs, so rarely
    precision = draw(st.integers(0, 15).map(lambda i: {1: "bf16-mixed", 2: "64-true", 3: "32"}.get(i, "32-true")))
    callbacks = [draw(kind) for kind in (EMA, SAMPLES) if draw(st.booleans())]
    tree = draw(
        mapping(
            gradient_clip_val=st.sampled_from([None, 0.5, 1]),
            gradient_clip_algorithm=st.sampled_from(["norm", "value"]),
            log_every_n_steps=st.integers(1, 5),
            limit_val_batches=st.sampled_from([1, 2, 1.0]),
            num_sanity_val_steps=st.integers(0, 2),
            enable_progress_bar=st.booleans(),
            detect_anomaly=st.just(False),
        )
    )
    return {
        **tree,
        "accelerator": "cpu",
        "devices": 1,
        "precision": precision,
        "max_steps": 1,
        "val_check_interval": draw(st.integers(1, 2)),
        "check_val_every_n_epoch": None,
        "callbacks": [*callbacks, REPORT],
    }


@st.composite
def configurations(draw: st.DrawFn, files: Path, kind: str | None = None) -> Tree:
    """{model, data, trainer, and the run's own keys}: everything a fit needs, one step long; data of this kind."""
    labelled = kind in (None, "arrays.ArrayData") and draw(st.integers(0, 3)) == 0
    top = mapping(
        seed_everything=st.integers(0, 2**32 - 1),
        name=st.sampled_from(["toy", "a-b_c.d", "sweep-1"]),
        runs=st.sampled_from(["runs", "elsewhere/runs"]),
        logger=st.sampled_from([["csv"], []]),
        checkpoint_every_n_steps=st.integers(1, 5),
        allow_fresh=st.booleans(),
    )
    return {
        **draw(top),
        "model": draw(models(labelled)),
        "data": draw(datasets(files, labelled, kind)),
        "trainer": draw(trainers()),
    }
