"""Every flag of Lightning's Trainer: what it means here, in optimiser steps, tried in a fit and in a resumed one.

    python -m tests.trainer_flags             # runs everything (many minutes) and writes docs/trainer_flags.md
    python -m tests.trainer_flags EarlyStopping val_check_interval    # runs these alone, writes nothing

The runs are those of tests/trainer_runs.py: 8 steps, 7 in an epoch, a validation after every third. The callbacks stand
in tests/trainer_callbacks.py.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from tests.trainer_runs import ROOT, Run, fit, largest_difference

PAGE = ROOT / "docs" / "trainer_flags.md"
BY_EPOCH = "--trainer.check_val_every_n_epoch=1"
TWO_EPOCHS = ("--trainer.max_steps=-1", "--trainer.max_epochs=2")
EXACT = "bit for bit"


def plain(run: Run) -> bool:
    """The run as it is without the flag."""
    return run.steps == 8 and run.validated == [3, 6] and run.steps_with("train/bpd") == [2, 4, 6, 8]


def validated(*steps: int) -> Callable[[Run], bool]:
    return lambda run: run.validated == list(steps)


def ended(step: int, *validations: int) -> Callable[[Run], bool]:
    return lambda run: run.steps == step and run.validated == list(validations)


def logged(*steps: int) -> Callable[[Run], bool]:
    return lambda run: run.steps == 8 and run.steps_with("train/bpd") == list(steps)


def said(words: str) -> Callable[[Run], bool]:
    return lambda run: plain(run) and words in run.output


@dataclass(frozen=True)
class Case:
    """A flag, or a callback, with a value that a user might give it.

    Attributes:
        name: of the flag, or of the callback's class.
        value: as it is written behind --trainer.<name>=; of a callback its arguments.
        meaning: what it means here.
        holds: what must be true of a run that works, undisturbed and resumed.
        refused: the words with which it ends, as a part of its one line.
        refused_again: those with which a run ends that is resumed so, where they are others.
        options: what is given besides.
        resumed: what a run is that is stopped after step 4 and resumed; "" where it cannot be tried.
        absent: a package, or "cuda", without which alone the row is true.
        fast: whether `make test` tries it.
    """

    name: str
    value: str
    meaning: str
    holds: Callable[[Run], bool] | None = None
    refused: str = ""
    refused_again: str = ""
    options: tuple[str, ...] = ()
    resumed: str = EXACT
    absent: str = ""
    fast: bool = False

    @property
    def arguments(self) -> list[str]:
        return [f"--trainer.{self.name}={self.value}", *self.options]

    @property
    def applies(self) -> bool:
        if self.absent == "cuda":
            return not torch.cuda.is_available()
        return not self.absent or importlib.util.find_spec(self.absent) is None


NO_STEP = "is 0: no step would be taken"
FLAGS = [
    Case("accelerator", "auto", "the best there is", plain),
    Case("accelerator", "gpu", "as Lightning has it; here, where there is none",
         refused="No supported gpu backend found!", absent="cuda"),
    Case("strategy", "auto", "one device: single_device; several: ddp", plain),
    Case("strategy", "ddp", "the same rows, noise and weights on any number of ranks (tests/test_ddp.py)", plain),
    Case("strategy", "ddp_find_unused_parameters_true", "the same; models that need it get it by themselves", plain),
    Case("strategy", "ddp_spawn", "ranks started from within a process", refused="neither signals nor checkpoints"),
    Case("strategy", "fsdp", "neither averages nor checkpoints are made for divided weights yet",
         refused="divides the weights over the ranks"),
    Case("strategy", "deepspeed", "likewise", refused="divides the weights over the ranks"),
    Case("devices", "1", "their number; the step stays data.global_batch_size rows", plain),
    Case("devices", "0", "", refused="is not a valid input using cpu accelerator", absent="cuda"),
    Case("num_nodes", "1", "of a job; with more, those that srun or torchrun has started (docs/cluster.md)", plain),
    Case("precision", "bf16-mixed", "as Lightning has it", plain),
    Case("precision", "16-mixed", "as Lightning has it, its loss scale included", plain),
    Case("precision", "bf16-true", "as Lightning has it; EMA averages in float32", plain),
    Case("precision", "64-true", "as Lightning has it", plain),
    Case("logger", "true", "Lightning's default logger instead of --logger; no metrics.csv",
         lambda run: run.steps == 8),
    Case("logger", "false", "as left out: --logger says which", plain),
    Case("callbacks", "lightning.pytorch.callbacks.LearningRateMonitor", "one, or a list; `callbacks+` adds to one",
         plain),
    Case("fast_dev_run", "2", "2 steps and 2 validation batches; nothing is written",
         lambda run: not run.folder.exists(),
         resumed=""),
    Case("max_epochs", "2", "epochs of ceil(rows / data.global_batch_size) steps", ended(14, 3, 6, 9, 12), fast=True,
         options=("--trainer.max_steps=-1",)),
    Case("max_epochs", "0", "no step", refused=NO_STEP),
    Case("min_epochs", "1", "epochs before anything but max_steps may end the run", plain),
    Case("max_steps", "5", "optimiser steps", ended(5, 3)),
    Case("max_steps", "0", "no step", refused=NO_STEP, fast=True),
    Case("min_steps", "5", "optimiser steps before anything but max_steps may end the run", plain),
    Case("max_time", "00:01:00:00", "of the whole run, resumed parts included; ends with a whole step", plain),
    Case("max_time", "00:00:00:00", "used up before the first step", refused="no optimiser step was taken",
         refused_again="which is finished by its time limit"),
    Case("limit_train_batches", "3", "3 optimiser steps make an epoch; the next one goes on in the data",
         ended(6, 3, 6),
         options=(*TWO_EPOCHS, "--trainer.val_check_interval=1.0", BY_EPOCH), fast=True),
    Case("limit_train_batches", "0.5", "a fraction of an epoch's steps, rounded down", ended(6, 3, 6),
         options=TWO_EPOCHS),
    Case("limit_train_batches", "0", "no step", refused=NO_STEP),
    Case("limit_train_batches", "0.01", "less than a step", refused="less than one step of the 7 there are"),
    Case("limit_val_batches", "2", "2 batches of data.eval_batch_size rows, over all ranks: the first rows", plain),
    Case("limit_val_batches", "0.5", "a fraction of them, rounded down", plain),
    Case("limit_val_batches", "0", "no validation, no best.ckpt", ended(8)),
    Case("limit_val_batches", "0.01", "less than a batch", refused="less than one batch of the 3 there are"),
    Case("limit_test_batches", "2", "likewise, in `lightning test`; none in a fit", plain),
    Case("limit_predict_batches", "2", "likewise, in `lightning predict`; none in a fit", plain),
    Case("overfit_batches", "2", "the rows of 2 optimiser steps again and again, unshuffled, and 2 validation batches",
         ended(8, 3, 6)),
    Case("overfit_batches", "0.5", "a fraction of an epoch's steps, and of the validation's batches", ended(8, 3, 6)),
    Case("val_check_interval", "2", "optimiser steps; with check_val_every_n_epoch null across epochs",
         validated(2, 4, 6, 8), fast=True),
    Case("val_check_interval", "2", "optimiser steps of each epoch", validated(2, 4, 6), options=(BY_EPOCH,)),
    Case("val_check_interval", "1", "after every step", validated(*range(1, 9)), options=(BY_EPOCH,)),
    Case("val_check_interval", "0.5", "a fraction of an epoch's steps, rounded down", validated(3, 6),
         options=(BY_EPOCH,)),
    Case("val_check_interval", "1.0", "at the end of each epoch", validated(7), options=(BY_EPOCH,)),
    Case("val_check_interval", "9", "more than an epoch has", options=(BY_EPOCH,),
         refused="is 9 steps, but an epoch has 7; set trainer.check_val_every_n_epoch: null"),
    Case("val_check_interval", "0.5", "a fraction of no epoch", refused="should be an integer",
         options=("--trainer.check_val_every_n_epoch=null",)),
    Case("val_check_interval", "00:00:00:01", "by the clock", refused="validations would depend on the clock",
         fast=True),
    Case("check_val_every_n_epoch", "2", "epochs", ended(15, 14),
         options=("--trainer.val_check_interval=1.0", "--trainer.max_steps=15")),
    Case("check_val_every_n_epoch", "null", "val_check_interval counts across epochs", plain),
    Case("num_sanity_val_steps", "1", "batches of each rank before training; nothing of them is kept", plain),
    Case("num_sanity_val_steps", "-1", "all of them", plain),
    Case("log_every_n_steps", "3", "optimiser steps", logged(3, 6)),
    Case("log_every_n_steps", "0", "validations alone are logged", logged()),
    Case("enable_checkpointing", "false", "", refused="last.ckpt and best.ckpt are what a run is for"),
    Case("enable_progress_bar", "true", "a bar in optimiser steps, a line now and then where there is no terminal",
         said("step 8/8 (100%)")),
    Case("enable_model_summary", "true", "off by default", said("Trainable params")),
    Case("accumulate_grad_batches", "2", "follows from data.global_batch_size and data.max_batch_per_device", plain),
    Case("accumulate_grad_batches", "3", "another number", refused="make it 2; leave the former out", fast=True),
    Case("gradient_clip_val", "0.5", "of the whole step's gradient; train/grad_norm is logged", plain),
    Case("gradient_clip_val", "-1.0", "", refused="it must be at least 0"),
    Case("gradient_clip_algorithm", "value", "as Lightning has it; no train/grad_norm", plain),
    Case("gradient_clip_algorithm", "xyz", "", refused="gradient_clip_algorithm` xyz is invalid"),
    Case("deterministic", "true", "as Lightning has it; rows and noise are so anyway", plain),
    Case("benchmark", "true", "as Lightning has it", plain),
    Case("inference_mode", "false", "of validate, test and predict", plain),
    Case("use_distributed_sampler", "true", "", refused="would be sharded twice"),
    Case("profiler", "simple", "as Lightning has it", said("run_training_batch")),
    Case("profiler", "xla", "for TPUs", refused="choose simple, advanced or pytorch"),
    Case("detect_anomaly", "true", "as Lightning has it", plain),
    Case("barebones", "true", "", refused="nothing would be logged or saved"),
    Case("plugins", "lightning.pytorch.plugins.environments.LightningEnvironment", "one, or a list", plain, fast=True),
    Case("plugins", "lightning.pytorch.plugins.TorchCheckpointIO", "another way to write checkpoints",
         refused="TorchCheckpointIO writes checkpoints, but those of a run"),
    Case("sync_batchnorm", "true", "as Lightning has it; no network here has one", plain),
    Case("reload_dataloaders_every_n_epochs", "1", "as Lightning has it; the order goes on at the step", plain),
    Case("default_root_dir", "elsewhere", "<runs>/<name> is the folder", refused="set these, and leave the former out"),
    Case("enable_autolog_hparams", "false", "as Lightning has it", plain),
    Case("model_registry", "mine", "", refused="checkpoints are files of the run's folder"),
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------- trying them


@functools.cache
def _base(folder: Path) -> Run:
    """A run of four steps without flags, to try what is refused when it is resumed."""
    return fit(folder / "base", "--trainer.max_steps=4")


def try_out(case: Case, folder: Path, resumed: bool = True) -> list[str]:
    """What is not as the case says; in `folder`."""
    whole = fit(folder / "whole", *case.arguments)
    faults = _faults(case, whole, "fit")
    if faults or not resumed or not case.resumed:
        return faults
    if case.refused:
        start = ["--ckpt_path", str(_base(folder.parent).folder / "last.ckpt")]
        return _faults(case, fit(folder / "resumed", *case.arguments, *start), "resumed")
    first = fit(folder / "part", *case.arguments, "--trainer.max_steps=4")
    again = fit(folder / "part", *case.arguments, "--ckpt_path", "last")
    faults = [f"part: {first.output[-300:]}"] if first.exit_code else _faults(case, again, "resumed")
    if faults or case.resumed != EXACT:
        return faults
    difference = largest_difference(whole, again)
    return [f"{case.name}={case.value}, resumed: weights differ by {difference:.1e}"] if difference else []


def _faults(case: Case, run: Run, how: str) -> list[str]:
    where = f"{case.name}={case.value}, {how}: "
    if run.exit_code is None:
        return [where + "it does not end"]
    if case.refused:
        words = case.refused_again if how == "resumed" and case.refused_again else case.refused
        return [] if words in run.error else [where + f"not refused ({run.exit_code}): {run.output[-300:]}"]
    if run.exit_code != 0:
        return [where + f"exit code {run.exit_code}: {run.output[-300:]}"]
    try:
        as_it_should = case.holds is None or case.holds(run)
    except (OSError, KeyError) as error:
        return [where + repr(error)]
    return [] if as_it_should else [where + f"validated {run.validated}, logged {run.steps_with('train/bpd')}"]


# ------------------------------------------------------------------------------------------------------- the page


HEAD = """# Lightning's flags and callbacks, counted in optimiser steps

Lightning counts micro-batches in many places. Here a number of steps is a number of optimiser steps, each of
`data.global_batch_size` rows, whatever `data.max_batch_per_device` and the number of devices. A flag works as
[Lightning's manual](https://lightning.ai/docs/pytorch/stable/common/trainer.html) says, with steps in the place of
batches, or it is refused in one line before training.

The table is made by `python -m tests.trainer_flags`, which tries each row in runs of 8 steps of two micro-batches, 7
steps in an epoch, a validation after every third, with lightning 2.6.6 on a CPU. "Resumed" is a run that was stopped
after step 4 and continued with `--ckpt_path last`, beside the undisturbed one: "bit for bit" says that all weights are
equal, and that it was validated and logged at the same steps. `make test` tries some of the rows, `make test-slow` all.
"""


def _row(case: Case, prefix: str) -> str:
    fitted = f"refused: “.. {case.refused} ..”" if case.refused else "works"
    resumed = case.resumed or "not tried"
    if case.refused and case.resumed:
        resumed = "refused"
    value = f"`{case.value}`" if case.value else ""
    also = [option.removeprefix("--trainer.") for option in case.options if option.startswith("--trainer.")]
    more = f" with `{' '.join(also)}`" if also else ""
    cells = (f"`{prefix}{case.name}`", f"{value}{more}", case.meaning, fitted, resumed)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page() -> str:
    from tests.trainer_callbacks import CALLBACKS

    rule = "|---|---|---|---|---|"
    flags = ["## Flags", "", "| flag | value | here it means | fit | resumed |", rule]
    flags += [_row(case, "") for case in FLAGS]
    callbacks = ["", "## Callbacks", "", "| callback | arguments | here it means | fit | resumed |", rule]
    callbacks += [_row(case, "") for case in CALLBACKS]
    return "\n".join([HEAD, *flags, *callbacks, ""])


def flags_of_lightning() -> list[str]:
    return list(inspect.signature(Trainer.__init__).parameters)[1:]


def main(names: list[str]) -> int:
    from tests.trainer_callbacks import CALLBACKS

    cases = [case for case in (*FLAGS, *CALLBACKS) if not names or case.name in names]
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases):
            found = try_out(case, Path(folder) / str(number)) if case.applies else []
            print(f"{case.name}={case.value}: {'; '.join(found) or 'as it should'}", flush=True)
            faults += found
    if not faults and not names:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(), encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
