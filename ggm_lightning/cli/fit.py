"""fit, validate, test and predict: LightningCLI with runs in folders, averaged checkpoints and links from the data.

A run lives in runs/<name>/: last.ckpt (periodic), best.ckpt (lowest bound), config.yaml, metrics.csv, story.json,
report.html, curve.png, samples/. Folders have no version numbers: with them `--ckpt_path last` finds nothing and starts
anew.
"""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from ggm_lightning.callbacks.bounds import Bounds
from ggm_lightning.callbacks.exponents import Exponents
from ggm_lightning.callbacks.guard import Guard
from ggm_lightning.callbacks.keep import KeepBest, KeepLast
from ggm_lightning.callbacks.progress import Progress, result_line
from ggm_lightning.callbacks.save_config import SaveConfig
from ggm_lightning.callbacks.settings import ChangedOptimizer
from ggm_lightning.callbacks.steps import TakesSteps, WholeSteps
from ggm_lightning.callbacks.stop import StopSignals
from ggm_lightning.callbacks.throughput import Throughput
from ggm_lightning.cli import config as config_files
from ggm_lightning.cli import environment, errors, launcher, resume, together, trainer_checks
from ggm_lightning.cli.last_words import last_words
from ggm_lightning.data.base import DiscreteData

# so that `--model MD4` finds them by their names
from ggm_lightning.models import autoregressive, blackout, diladd, genmd4, ggm, lddm, markov, md4  # noqa: F401
from ggm_lightning.models.base import Family
from ggm_lightning.models.trained import Trained
from ggm_lightning.report.callback import Report
from ggm_lightning.report.protocols import HasExponents
from ggm_lightning.rundir import building, exported, start, transfer_list
from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir.building import named
from ggm_lightning.rundir.folder import refuse_without_space
from ggm_lightning.rundir.freezing import freeze
from ggm_lightning.rundir.loggers import LOGGERS, make_logger

_SKIPPED = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule", "weights_only", "verbose"}
_RESULTS = {"validate": "val", "test": "test"}  # commands that measure, and the split whose figures they print
_FROM_DATA = tuple(
    f"{owner}.init_args.{name}"
    for owner in ("model", "model.init_args.network", "model.init_args.encoder")
    for name in ("num_classes", "shape")
)


def build(command: str, argv: list[str]) -> None:
    """Parses argv = [command, ...], builds data, model and trainer, and runs the trainer's method of that name."""
    _quieten()

    class OneCommand(_CLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {command: _SKIPPED}  # Lightning would build the parsers of all four: seconds for each --help

    strict = {"exit_on_error": False, "allow_abbrev": False}  # --trainer.max_step must not pass for max_steps
    OneCommand(
        model_class=Trained,
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
        "in eval mode at the start of training",  # frozen encoders
        "The `srun` command is available",  # cli/launcher.py says where it is needed
    ):
        warnings.filterwarnings("ignore", message=f".*{expected}.*")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not str(record.msg).startswith(_UNSAID))


# advertisements; and how a run ended, which Lightning writes into the running bar, so that it is drawn twice: the
# closing line says it (cli/last_words.py)
_UNSAID = ("💡", "TPU available", "`Trainer.fit` stopped: ", "Time limit reached. ")


class _CLI(LightningCLI):
    resumed: resume.Resumed | None = None  # the checkpoint that is gone on from, or evaluated
    weights: start.Weights | None = None  # what a new run starts from
    is_finished = False

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="the run's folder below `runs`")
        parser.add_argument("--runs", type=str, default="runs", help="where run folders are kept")
        parser.add_argument("--logger", type=list[str], default=["csv"], help=f"any of {', '.join(LOGGERS)}")
        parser.add_argument("--checkpoint_every_n_steps", type=int, default=1000, help="last.ckpt is renewed so often")
        parser.add_argument(
            "--allow_fresh", type=bool, default=False, help="go on without a checkpoint where one was asked for"
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="a checkpoint, or a run's folder: a new run starts from its (averaged) weights as far as they fit",
        )
        parser.add_argument(
            "--freeze", type=list[str], default=[], help="parameters that are not trained, by name or pattern: a.b.*"
        )
        for target in _FROM_DATA:  # a network that has no such argument is left as it is
            parser.link_arguments(f"data.{target.rpartition('.')[2]}", target, apply_on="instantiate")
        for target in ("model.init_args.seed", "data.init_args.seed"):
            parser.link_arguments("seed_everything", target)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)  # without Lightning's warning that sys.argv differs
        seed = self.config[self.config.subcommand].seed_everything
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise ValueError(f"seed_everything is {seed}; it must lie in 0..{2**32 - 1}")

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's values silently beat the configuration."""

    # ------------------------------------------------------------------ what the run needs beyond its configuration

    @property
    def folder(self) -> Path:
        return Path(self._get(self.config, "runs")) / self._get(self.config, "name")

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        trainer_checks.check_name(config.name, config.runs)
        errors.set_run_folder(self.folder)
        for section in ("model", "data"):
            if not config.get(section):
                raise ValueError(f"'{section}' is missing; give --config experiments/<name>.yaml")
        callbacks = config.trainer.callbacks or []
        for part in callbacks if isinstance(callbacks, list) else [callbacks]:
            config_files.check_nulls(part, "trainer.callbacks")
            trainer_checks.plain_texts(part)
        for section in ("model", "data"):
            config_files.check_nulls(config[section], section)
        for key in ("name", "runs", "logger", "checkpoint_every_n_steps", "allow_fresh"):
            if config[key] is None or config[key] == "":
                raise ValueError(f"{key} is empty; leave it out for the default")
        if config.init_from == "":
            raise ValueError("init_from is empty; leave it out to start from new weights")
        trainer_checks.check_trainer(config.trainer, self.folder)
        if self.subcommand == "fit":
            trainer_checks.check_steps(config.trainer)
        for key in _FROM_DATA:
            if config.get(key) is not None and config.get(key) != _default(config, key):
                raise ValueError(
                    f"{key.replace('.init_args', '')} is {config.get(key)} in the configuration, but it is taken from "
                    "the data; leave it out"
                )
        if config.trainer.logger is None:
            config.trainer.logger = False  # ours are made in instantiate_trainer
        config.trainer.enable_checkpointing = True
        writes = not config.trainer.fast_dev_run
        session = together.session() if self.subcommand in ("fit", "predict") and writes else None
        if session is not None and session.fits and self.folder.is_dir():
            session.take_folder()  # what is in it may still change
        given = config.get("ckpt_path")
        self.resumed = resume.agreed(lambda: self._resolved_checkpoint(given, config.allow_fresh))
        config.ckpt_path = None if self.resumed is None else str(self.resumed.path)
        if self.subcommand == "fit" and config.init_from is not None:
            self._start_from(config.init_from, given)
        if session is not None:
            session.make_folder()
        if session is not None and session.fits:
            session.take_folder()
            session.say_first_line(None if self.resumed is None else self.resumed.step)

    def _start_from(self, init_from: str, ckpt_path: str | None) -> None:
        """A run that goes on, such as a requeued job's, does not start again: the same command may be given anew."""
        if self.resumed is None:
            self.weights = start.weights_of(init_from)
            return
        before = (self.resumed.started_from or {}).get("given")
        if ckpt_path is not None and (before is None or Path(before).resolve() != Path(init_from).resolve()):
            raise ValueError(
                f"--init_from {init_from} starts a new run, --ckpt_path {ckpt_path} goes on with one: give one of them "
                "(both, where the run to go on with was itself started from the former)"
            )

    def _resolved_checkpoint(self, given: str | None, allow_fresh: bool) -> str | None:
        """A file that exists, or None for a fresh start; `last` and `best` are files of the run folder."""
        folder, fitting = self.folder, self.subcommand == "fit"
        path = folder / f"{given}.ckpt" if given in ("last", "best") else exported.local(given) if given else None
        if path is not None and path.is_dir() and exported.is_exported(path):
            if fitting:
                raise ValueError(
                    f"--ckpt_path {given}: a model that was handed on has no optimiser to go on with; start a new run "
                    f"from its weights by --init_from {given}"
                )
            return str(path)
        if path is not None and path.is_dir():
            path = path / "last.ckpt"  # of another run's folder
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
        trainer_checks.check_callbacks(given, self.model)
        first: list[Callback] = [TakesSteps()] if self.subcommand == "fit" else []
        extra: list[Callback] = [Throughput(), Bounds()]
        if isinstance(self.model, HasExponents):
            extra.append(Exponents())
        if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in given):
            extra.append(Progress())
        if self.subcommand == "fit" and not dry:
            keep_last = KeepLast(str(self.folder), self._get(self.config, "checkpoint_every_n_steps"))
            ours = [Guard(), Report(), SaveConfig(self.folder, self._origin() + self._config_text())]
            extra += [callback for callback in ours if not any(type(callback) is type(other) for other in given)]
            # best before last, whose file says what the best one is; StopSignals saves the last one, too
            extra += [KeepBest(str(self.folder), self.model.best_by), keep_last, StopSignals(keep_last)]
        if self.subcommand == "fit":
            extra.append(WholeSteps())
        config["callbacks"] = [*first, *given, *extra]
        config["default_root_dir"] = str(self.folder)
        plugins = config.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        trainer_checks.check_plugins(plugins)
        config["plugins"] = [*plugins, checkpoint_files.AtomicCheckpointIO(self._read())]
        place = launcher.place()
        config["plugins"] += environment.environments(place, together.address(place), plugins)
        if config.get("logger") is False and not dry:
            names, fitting = self._get(self.config, "logger"), self.subcommand == "fit"
            config["logger"] = [make_logger(name, self.folder, fitting) for name in names]
        try:
            trainer = Trainer(**config)
        except (TypeError, ValueError, ImportError, MisconfigurationException) as error:
            raise ValueError(f"trainer: {trainer_checks.with_remedy(error)}") from error
        trainer_checks.check_strategy(trainer)
        environment.check_ranks(trainer, place)
        if (
            isinstance(self.model, Family)
            and self.model.unused_parameters
            and isinstance(trainer.strategy, DDPStrategy)
        ):
            # whatever strategy was asked for by name: plain DDP would die where a part of the model is left out
            trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        return trainer

    def _read(self) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint that was read already, to be kept no longer than until it is loaded."""
        if self.resumed is None:
            return None
        read, self.resumed = self.resumed.read, replace(self.resumed, read=None)
        return read

    def _origin(self) -> str:
        """A comment in config.yaml: what the run started from, which init_from names by its path alone."""
        if self.weights is None:
            return ""
        return f"# started from {self.weights.path}, step {self.weights.step}, identity {self.weights.identity}\n"

    def _config_text(self) -> str:
        parser = self._parser(self.subcommand)
        return parser.dump(self.config[self.subcommand], skip_none=False, skip_link_targets=True)

    def after_instantiate_classes(self) -> None:
        self.model.resolved_config = yaml.safe_load(self._config_text())
        config = self.config[self.subcommand]
        if isinstance(self.datamodule, DiscreteData):
            self.datamodule.check_model(self.model)  # before hours of preparation
        if self.subcommand != "fit":
            if self.resumed is not None:
                resume.changed_model(self.resumed, self.model, resuming=False)
            return
        if not config.trainer.fast_dev_run:
            refuse_without_space(self.folder, self.model)
        if self.resumed is not None:
            self._go_on(self.resumed, config)
        elif self.weights is not None:
            trust = building.foreign(self.model.resolved_config)  # all of it the user has named
            codec = self.datamodule.codec if isinstance(self.datamodule, checkpoint_files.HasCodec) else None
            rank_zero_info("\n".join(start.begin(self.model, self.weights, codec, trust)))
        frozen = freeze(self.model, config.freeze)
        if frozen:
            rank_zero_info("\n".join(transfer_list.frozen(frozen, dict(self.model.named_parameters()))))

    def _go_on(self, resumed: resume.Resumed, config: Any) -> None:
        """Says what is restored and what is not that of the checkpoint, and whether anything is left to be done."""
        settings = resume.changed_model(resumed, self.model, resuming=True)
        resume.refuse_other_freeze(resumed, config.freeze)
        data = resume.changed_data(resumed, self.model.resolved_config or {})
        self.model.started_from = resumed.started_from
        end = None if config.trainer.fast_dev_run else resume.finished(resumed, self.trainer)
        if end is not None:
            self.is_finished = True
            rank_zero_info(resume.nothing_left(resumed, end, self.folder, changed=bool(settings or data)))
            return
        if settings:
            self.trainer.callbacks.insert(0, ChangedOptimizer())  # type: ignore[attr-defined]
        for line in resume.what_is_restored(resumed, self.folder, settings, data):
            rank_zero_info(line)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand in _RESULTS:
            kwargs["verbose"] = False  # Lightning's table has sixteen digits and no error
        return {**kwargs, "ckpt_path": self.config[subcommand].get("ckpt_path"), "weights_only": True}

    def _run_subcommand(self, subcommand: str) -> None:
        if self.is_finished:
            return
        run: Callable[..., Any] = getattr(self.trainer, subcommand)
        try:
            run(**self._prepare_subcommand_kwargs(subcommand))
        except RuntimeError as error:
            if "Early stopping conditioned on metric" not in str(error):
                raise
            raise ValueError(f"trainer.callbacks: {error}") from error
        if not self.trainer.is_global_zero:
            return
        if subcommand in _RESULTS:
            step = 0 if self.resumed is None or self.resumed.step is None else self.resumed.step
            print(f"step {step}  {result_line(self.trainer, _RESULTS[subcommand], further=True)}", flush=True)
        elif subcommand == "fit" and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            print(last_words(self.folder, self.trainer, self.model), flush=True)


def _default(config: Any, key: str) -> Any:
    """What the constructor itself says for the key: the parser has filled it in where nobody gave a value."""
    owner, _, name = key.rpartition(".init_args.")
    class_path = config.get(f"{owner}.class_path")
    if class_path is None:
        return None
    taken = inspect.signature(named(class_path)).parameters.get(name)
    return None if taken is None else taken.default
