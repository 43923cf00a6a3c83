"""fit, validate, test and predict: LightningCLI with runs in folders, averaged checkpoints and links from the data.

A run lives in runs/<name>/: last.ckpt (periodic), best.ckpt (lowest val/nelbo), config.yaml, metrics.csv, curve.png,
report.html, samples/. Folders have no version numbers: with them `--ckpt_path last` finds nothing and starts anew.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from ggm_lightning import config as config_files
from ggm_lightning.callbacks.bounds import Bounds
from ggm_lightning.callbacks.guard import Guard
from ggm_lightning.callbacks.keep import KeepBest, KeepLast
from ggm_lightning.callbacks.progress import Progress
from ggm_lightning.callbacks.report import Report
from ggm_lightning.callbacks.stop import StopSignals
from ggm_lightning.callbacks.throughput import Throughput
from ggm_lightning.models.base import Family
from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir.csv_log import CSVLog

_SKIPPED = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule", "weights_only"}
_NETWORK_CLASSES = "model.init_args.network.init_args.num_classes"
_LOGGERS = ("csv", "tensorboard", "wandb", "wandb_offline")


def build(command: str, argv: list[str]) -> None:
    """Parses argv = [command, ...], builds data, model and trainer, and runs the trainer's method of that name."""
    _quieten()

    class OneCommand(_CLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {command: _SKIPPED}  # Lightning would build the parsers of all four: seconds for each --help

    strict = {"exit_on_error": False, "allow_abbrev": False}  # --trainer.max_step must not pass for max_steps
    OneCommand(
        model_class=Family,
        datamodule_class=LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
        seed_everything_default=0,
        trainer_defaults={"use_distributed_sampler": False, "enable_model_summary": False},
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        parser_kwargs={**strict, command: dict(strict)},
        args=argv,
    )


def _quieten() -> None:
    """Advertisements, and warnings about what is meant so, would push the user's own lines off the screen."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
    for expected in (
        "exists and is not empty",  # a resumed run
        "callbacks used to create the checkpoint",  # evaluation needs none of them
        "ended before the epoch ended",  # data/order.py continues at the optimiser step
        "Couldn't infer the batch indices",  # the rows know their own numbers
    ):
        warnings.filterwarnings("ignore", message=f".*{expected}.*")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not str(record.msg).startswith(("💡", "TPU available")))


class _CLI(LightningCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="the run's folder below `runs`")
        parser.add_argument("--runs", type=str, default="runs", help="where run folders are kept")
        parser.add_argument("--logger", type=list[str], default=["csv"], help=f"any of {', '.join(_LOGGERS)}")
        parser.add_argument("--checkpoint_every_n_steps", type=int, default=1000, help="last.ckpt is renewed so often")
        parser.add_argument(
            "--allow_fresh", type=bool, default=False, help="go on without a checkpoint where one was asked for"
        )
        for name in ("num_classes", "shape"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        parser.link_arguments("data.num_classes", _NETWORK_CLASSES, apply_on="instantiate")
        for target in ("model.init_args.seed", "data.init_args.seed"):
            parser.link_arguments("seed_everything", target)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)  # without Lightning's warning that sys.argv differs

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's values silently beat the configuration."""

    # ------------------------------------------------------------------ what the run needs beyond its configuration

    @property
    def folder(self) -> Path:
        return Path(self._get(self.config, "runs")) / self._get(self.config, "name")

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        for section in ("model", "data"):
            if not config.get(section):
                raise ValueError(f"'{section}' is missing; give --config experiments/<name>.yaml")
        for key in ("network", "schedule", "optimizer"):
            if config.model.init_args.get(key, "") is None:
                raise ValueError(f"model.{key} is null; leave it out for the default, or say which")
        for key in ("name", "runs"):
            if not config[key]:
                raise ValueError(f"{key} is empty; it is a part of the run folder's path, runs/<name>")
        config_files.check_trainer(config.trainer)
        for key in ("model.init_args.num_classes", "model.init_args.shape", _NETWORK_CLASSES):
            if config.get(key) is not None:
                raise ValueError(
                    f"{key.replace('.init_args', '')} is {config.get(key)} in the configuration, but it is taken from "
                    "the data; leave it out"
                )
        if config.trainer.use_distributed_sampler:
            raise ValueError(
                "trainer.use_distributed_sampler is true: the data order is aware of ranks already and would be "
                "sharded twice; leave it out"
            )
        if config.trainer.logger is None:
            config.trainer.logger = False  # ours are made in instantiate_trainer
        if config.trainer.enable_checkpointing is None:
            config.trainer.enable_checkpointing = True
        config.trainer.default_root_dir = str(self.folder)
        config.ckpt_path = self._resolved_checkpoint(config.get("ckpt_path"), config.allow_fresh)

    def _resolved_checkpoint(self, given: str | None, allow_fresh: bool) -> str | None:
        """A file that exists, or None for a fresh start; `last` and `best` are files of the run folder."""
        folder, fitting = self.folder, self.subcommand == "fit"
        path = folder / f"{given}.ckpt" if given in ("last", "best") else Path(given) if given else None
        if path is not None and not path.is_file():
            if allow_fresh and given == "last":
                return None
            raise FileNotFoundError(
                f"--ckpt_path {given}: there is no {path}; check --name and --runs"
                + (", or start fresh with --allow_fresh true" if fitting else "")
            )
        dry = self.config[self.subcommand].trainer.fast_dev_run
        requeued = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
        if path is None and fitting and requeued and (folder / "last.ckpt").is_file():
            rank_zero_info(f"requeued job: goes on from {folder / 'last.ckpt'}")
            path = folder / "last.ckpt"
        if path is None and fitting and not dry and any(folder.glob("*.ckpt")):
            raise ValueError(
                f"{folder} already holds a run; continue it with --ckpt_path last, or choose another --name"
            )
        if path is None and not fitting and not allow_fresh and not dry:
            path = folder / "last.ckpt"
            if not path.is_file():
                raise FileNotFoundError(
                    f"{self.subcommand} needs weights: there is no {path}; give --ckpt_path, or --allow_fresh true to "
                    "measure the untrained network"
                )
        return None if path is None else str(path)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        given = config.get("callbacks") or []
        dry = bool(config.get("fast_dev_run"))
        given = given if isinstance(given, list) else [given]  # the parser takes a single one too
        extra: list[Callback] = [Throughput(), Bounds()]
        if config.get("enable_progress_bar") is not False:
            extra.append(Progress())
        if self.subcommand == "fit" and not dry:
            keep_last = KeepLast(str(self.folder), self._get(self.config, "checkpoint_every_n_steps"))
            ours = [Guard(), Report(), _SaveConfig(self.folder, self._config_text())]
            extra += [callback for callback in ours if not any(type(callback) is type(other) for other in given)]
            extra += [keep_last, KeepBest(str(self.folder)), StopSignals(keep_last)]
        config["callbacks"] = [*given, *extra]
        config["plugins"] = [*(config.get("plugins") or []), checkpoint_files.AtomicCheckpointIO()]
        if SLURMEnvironment.detect():  # Lightning's own requeueing saves in the middle of a step
            config["plugins"] += [SLURMEnvironment(auto_requeue=False)]
        if config.get("logger") is False and not dry:
            config["logger"] = [self._logger(name) for name in self._get(self.config, "logger")]
        try:
            return Trainer(**config)
        except (TypeError, MisconfigurationException) as error:
            raise ValueError(f"trainer: {error}") from error

    def _logger(self, name: str) -> Any:
        if name == "csv":
            return CSVLog(str(self.folder))
        if name == "tensorboard":
            from lightning.pytorch.loggers import TensorBoardLogger

            return TensorBoardLogger(save_dir=str(self.folder), name="", version="tensorboard")
        if name in ("wandb", "wandb_offline"):
            from lightning.pytorch.loggers import WandbLogger

            self.folder.mkdir(parents=True, exist_ok=True)
            return WandbLogger(
                name=self.folder.name,
                save_dir=str(self.folder),
                offline=name == "wandb_offline",
                project="ggm_lightning",
            )
        raise ValueError(f"logger '{name}' is unknown; choose any of {', '.join(_LOGGERS)}")

    def _config_text(self) -> str:
        parser = self._parser(self.subcommand)
        return parser.dump(self.config[self.subcommand], skip_none=False, skip_link_targets=True)

    def after_instantiate_classes(self) -> None:
        self.model.resolved_config = yaml.safe_load(self._config_text())
        path = self.config[self.subcommand].get("ckpt_path")
        if path is not None:
            _refuse_another_model(self.model, path, resuming=self.subcommand == "fit")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return {**kwargs, "ckpt_path": self.config[subcommand].get("ckpt_path"), "weights_only": True}

    def _run_subcommand(self, subcommand: str) -> None:
        run: Callable[..., Any] = getattr(self.trainer, subcommand)
        run(**self._prepare_subcommand_kwargs(subcommand))


def _refuse_another_model(model: LightningModule, path: str, resuming: bool) -> None:
    """A checkpoint of another family, vocabulary, shape or network is refused by key, before anything is loaded.

    Evaluation may differ in how the optimiser is set and how the bound is estimated; a resumed fit in neither.
    """
    about = checkpoint_files.read(path).get(checkpoint_files.KEY) or {}
    theirs, ours = about.get("model"), checkpoint_files.describe(model)["model"]
    if theirs is None or ours is None:
        return
    found = config_files.differences(ours, theirs)
    free = () if resuming else ("model.optimizer", "model.seed", "model.label_dropout")
    found = [text for text in found if not text.startswith((*free, "model.eval_"))]
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise ValueError(f"--ckpt_path {path} is of another model: {'; '.join(found[:3])}{more}; make them agree")


class _SaveConfig(Callback):
    """config.yaml, complete enough to repeat the run; a changed one is written beside it, never over it."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder, self.text = folder, text

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        numbered = [self.folder / "config.yaml", *(self.folder / f"config-{i}.yaml" for i in range(2, 1000))]
        for file in numbered:
            if not file.exists():
                file.write_text(self.text, encoding="utf-8")
                return
            if _without_checkpoint(file.read_text(encoding="utf-8")) == _without_checkpoint(self.text):
                return


def _without_checkpoint(text: str) -> dict[str, Any]:
    """Resuming changes ckpt_path and nothing else: that is no new configuration."""
    return {key: value for key, value in yaml.safe_load(text).items() if key not in ("ckpt_path", "allow_fresh")}
