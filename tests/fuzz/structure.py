"""Invalid configurations whose fault is not one value: unknown keys, classes, missing parts, broken files, commands."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import assume
from hypothesis import strategies as st

from tests.fuzz.faults import DATA, MODEL, NETWORK, OPTIMIZER, marked, place
from tests.fuzz.strategies import EMA, SAMPLES, Tree, configurations
from tests.fuzz.writing import Case, written

SECTIONS = {
    (): ("model", "data", "trainer", "seed_everything", "name", "checkpoint_every_n_steps"),
    ("model",): ("class_path", "init_args"),
    MODEL: ("network", "schedule", "num_timesteps", "label_dropout", "eval_samples", "leftover"),
    (*MODEL, "network"): ("class_path", "init_args"),
    NETWORK: ("feature_dim", "num_heads", "num_layers", "conditioning", "dropout"),
    OPTIMIZER: ("lr", "betas", "weight_decay", "warmup_steps"),
    ("data",): ("class_path", "init_args"),
    DATA: ("global_batch_size", "eval_batch_size", "num_workers"),
    ("trainer",): ("max_steps", "gradient_clip_val", "precision", "callbacks", "val_check_interval"),
}


@st.composite
def misspelt(draw: st.DrawFn, known: tuple[str, ...]) -> str:
    """A key one slip away from a known one, or of another make altogether."""
    name = draw(st.sampled_from(known))
    i = draw(st.integers(0, len(name) - 1))
    slips = [name[:i] + name[i + 1 :], name[:i] + "x" + name[i:], name.upper(), name + "s", "foo", "öl", "a b", "7"]
    return draw(st.sampled_from([slip for slip in slips if slip and slip not in known]))


@st.composite
def unknown_keys(draw: st.DrawFn, files: Path) -> Case:
    tree = copy.deepcopy(draw(configurations(files)))
    if draw(st.integers(0, 7)) == 0:
        callback = copy.deepcopy(draw(st.one_of(EMA, SAMPLES)))
        inside = draw(st.booleans())
        key = draw(misspelt(("decay", "warmup", "num_samples") if inside else ("class_path", "init_args")))
        (callback["init_args"] if inside else callback)[key] = 1
        tree["trainer"]["callbacks"] = [callback, *tree["trainer"]["callbacks"][-1:]]
        return marked(draw(written(tree)), [key])
    section = draw(st.sampled_from(sorted(SECTIONS)))
    key = draw(misspelt(SECTIONS[section]))
    value = draw(st.sampled_from([1, 0.5, "abc", None, [1]]))
    place(tree, section)[key] = value
    last = ((*section, key), value) if draw(st.booleans()) else None
    return marked(draw(written(tree, last)), [key])


WRONG_CLASSES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("model",): (
        "Nope",
        "ggm_lightning.data.toy.synthetic.MarkovChain",
        "ggm_lightning.models.md4.Nope",
        "a b",
        "Family",
    ),
    ("data",): ("Nope", "ggm_lightning.models.md4.MD4", "ggm_lightning.data.arrays.Nope", "os.path.join", ""),
    (*MODEL, "network"): ("Nope", "ggm_lightning.core.schedules.Linear", "ggm_lightning.networks.nope.Net", "json"),
    (*MODEL, "schedule"): ("Nope", "ggm_lightning.networks.transformer.Transformer", "torch.nn.Linear", "Schedule"),
}


@st.composite
def wrong_classes(draw: st.DrawFn, files: Path) -> Case:
    """A class that does not exist or is of another kind, with or without the arguments of the right one."""
    tree = copy.deepcopy(draw(configurations(files)))
    section = draw(st.sampled_from(sorted(WRONG_CLASSES)))
    name: Any = draw(st.sampled_from([*WRONG_CLASSES[section], None, 5, ["a"]]))
    holder = place(tree, section)
    holder["class_path"] = name
    if draw(st.booleans()):
        holder.pop("init_args", None)
    mark = [section[-1], "class_path", *([name] if isinstance(name, str) and name else [])]
    return marked(draw(written(tree)), mark)


@st.composite
def missing_parts(draw: st.DrawFn, files: Path) -> Case:
    """A section, a class or a needed argument is not there."""
    tree = copy.deepcopy(draw(configurations(files)))
    needed = {"TextData": ["train"], "ArrayData": ["train", "num_classes"]}
    data = str(tree["data"]["class_path"]).rsplit(".", 1)[1]
    choices: list[tuple[str, ...]] = [("model",), ("data",), (*MODEL, "network"), ("data", "class_path")]
    choices += [("model", "class_path"), (*MODEL, "network", "class_path")]
    choices += [(*DATA, key) for key in needed.get(data, [])]
    path = draw(st.sampled_from(choices))
    place(tree, path[:-1]).pop(path[-1])
    case = draw(written(tree))
    return marked(case, [path[-1], path[-2] if len(path) > 1 else path[-1], "class"])


def _as_text(case: Case, name: str = "m.yaml") -> str:
    content = case.files[name]
    assert isinstance(content, str)
    return content


# what a file ends with, or is altogether (bytes, and the kinds in WHOLE), and the words that the error must say
BROKEN: dict[str, tuple[str | bytes, list[str]]] = {
    "bracket": ("trainer2: [\n", ["not valid yaml"]),
    "tab": ("foo:\n\t- 1\n", ["not valid yaml"]),
    "colon": ("a: b: c\n", ["not valid yaml"]),
    "tag": ("a: !!python/object/apply:os.getcwd []\n", ["not valid yaml"]),
    "alias": ("a: *nowhere\n", ["not valid yaml"]),
    "date": ("a: 2024-99-99\n", ["not valid yaml"]),
    "documents": ("---\na: 1\n", ["not valid yaml"]),
    "deep": ("a: " + "[" * 300 + "]" * 300 + "\n", ["nested too deeply", "'a'"]),
    "circle": ("a: &a {b: *a}\n", ["alias"]),
    "binary": (b"\x93NUMPY\x01\x00v\x00{'descr'", ["text file", "not valid yaml"]),
    "latin": ("# für\n".encode("latin-1"), ["text file"]),
    "zero": ("a: \x00\n", ["not valid yaml"]),
    "empty": ("", ["mapping"]),
    "comment": ("# nothing yet\n", ["mapping"]),
    "list": ("- a\n- b\n", ["mapping"]),
    "scalar": ("abc\n", ["mapping"]),
    "number key": ("1: x\n", ["'1'"]),
    "null key": ("null: x\n", ["'null'"]),
    "yes key": ("on: x\n", ["'on'"]),
    "list key": ("? [a, b]\n: x\n", ["not valid yaml"]),
    "deep number key": ("runner: {1: x}\n", ["'1'"]),
    "twice": ("foo: 1\nfoo: 2\n", ["'foo' appears twice"]),
    "twice deep": ("foo: {a: 1, a: 2}\n", ["'a' appears twice"]),
    "two forms": ("foo: {a: 1}\nfoo.b: 2\n", ["'foo' and 'foo.b'"]),
    "two deep forms": ("foo: {a: {b: 1}, a.b: 2}\n", ["'a' and 'a.b'"]),
    "plus": ("foo: {a+: 1, a: 2}\n", ["'a+' and 'a'"]),
}
WHOLE = ("empty", "comment", "list", "scalar")


@st.composite
def broken_files(draw: st.DrawFn, files: Path) -> Case:
    """One file of an otherwise valid case is no YAML, no text, no mapping, or says a thing twice."""
    kind, broken = draw(st.tuples(st.sampled_from(sorted(BROKEN)), st.sampled_from(["m.yaml", "behind.yaml"])))
    case = draw(written(draw(configurations(files))))
    behind, mark = BROKEN[kind]
    content = behind if isinstance(behind, bytes) or kind in WHOLE else _as_text(case) + behind
    case.files[broken] = content
    if broken != "m.yaml":
        case.args = [*case.args, "--config", broken]
    return marked(case, mark)


BAD_INCLUDES: list[Any] = [
    *("b.yaml", 5, None, True, {"a": "b.yaml"}, [5], [None], [["m.yaml"]], [{"b.yaml": 1}]),
    *(["m.yaml"], ["./m.yaml"], ["loop.yaml"], ["nowhere.yaml"], [""], ["."], ["../m.yaml"]),
    *(["empty.yaml"], ["binary.yaml"]),
]


@st.composite
def broken_includes(draw: st.DrawFn, files: Path) -> Case:
    value = draw(st.sampled_from(BAD_INCLUDES))
    case = draw(written(draw(configurations(files))))
    content: Tree = yaml.safe_load(_as_text(case))
    case.files["m.yaml"] = yaml.safe_dump({**content, "include": value}, sort_keys=False)
    case.files |= {"loop.yaml": "include: [m.yaml]\n", "empty.yaml": "", "binary.yaml": b"\xff\xfe\x00"}
    return marked(case, ["include", "nowhere.yaml", "no such file", "mapping", "text file"])


@st.composite
def wrong_commands(draw: st.DrawFn, files: Path) -> Case:
    """The rest of the command line: commands, paths of files and of checkpoints, arguments without a value."""
    case = draw(written(draw(configurations(files))))
    case.files["noise.ckpt"] = b"not a checkpoint"
    command, *rest = case.args
    settled = [argument for argument in rest if not argument.startswith("--allow_fresh")]
    for name, content in case.files.items():
        if isinstance(content, str):
            case.files[name] = content.replace("allow_fresh: true", "allow_fresh: false")
    case.args, mark = draw(
        st.sampled_from(
            [
                (["fitt", *rest], "fitt"),
                (["", *rest], "unknown command"),
                (["fit"], "missing"),
                (["fit", "--config"], "--config"),
                (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
                (["fit", "--config="], "--config"),
                (["fit", "--config", "."], "no such file"),
                ([command, *rest, "--config"], "--config"),
                ([command, *rest, "stray"], "stray"),
                ([command, *rest, "--trainer.max_steps"], "max_steps"),
                ([command, *rest, "--name"], "name"),
                ([command, *rest, "--nonsense"], "nonsense"),
                ([command, *rest, "--trainer.max_step=1"], "max_step"),
                ([command, *rest, "--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
                ([command, *rest, "--ckpt_path", "noise.ckpt"], "noise.ckpt"),
                ([command, *settled, "--ckpt_path", "last"], "last"),
                ([command, *settled, "--ckpt_path", "best"], "best"),
                (["validate", *settled], "weights"),
                (["test", *settled], "weights"),
                (["predict", *settled], "weights"),
                (["validate", *rest, "--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
                (["sample", "--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
                (["sample", "--ckpt_path", "noise.ckpt"], "noise.ckpt"),
                (["infill", "--ckpt_path", "noise.ckpt", "--text", "a_"], "noise.ckpt"),
                (["sample"], "ckpt_path"),
            ]
        )
    )
    assume(case.args[-1] != "best" or "allow_fresh=true" not in case.args)
    return marked(case, [mark])


def invalid(files: Path, kinds: tuple[Any, ...]) -> st.SearchStrategy[Case]:
    return st.one_of([kind(files) for kind in kinds])
