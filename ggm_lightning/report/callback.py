"""story.json, report.html and, at the end, curve.png of a fit: from the first validation on, and however it ends."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ggm_lightning.models.trained import Averages, Trained
from ggm_lightning.report import ending, provenance
from ggm_lightning.report.curve import curve_png
from ggm_lightning.report.drawing import classes_in_turn, decode, refuse_sampler, refuse_ways, undisturbed
from ggm_lightning.report.images import image_figures, reconstruction_figure, samples_figure
from ggm_lightning.report.page import PLAIN, Figure, write_run_page
from ggm_lightning.report.protocols import (
    CountsCharacters,
    DrawsSamples,
    HasReferences,
    HasRows,
    HasShape,
    HasStages,
    Reconstructs,
    SetsTasks,
    datamodule_of,
    is_exact,
    pieces_of,
    tables_of,
)
from ggm_lightning.report.story import Story, read_run, read_story, write_story
from ggm_lightning.report.tasks import answered
from ggm_lightning.report.trace import trace_data
from ggm_lightning.rundir.csv_log import FILE_NAME, CSVLog
from ggm_lightning.rundir.terminal import counted
from ggm_lightning.sampling.sampler import Sampler

SHOWN_TEXTS = 8
_SHARE = 0.05  # of a run's time that may go into drawing at validations, the first one aside
_SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)  # one rank alone cannot draw there


class Report(Callback):
    """Tells in the run folder how the run stands, at each validation and however it ends, and what it draws.

    The data module may add (report/protocols.py): `references()` -> name -> bits per dimension, lines in the curve;
    `characters_per_token`, for bits per character; `judge(texts)` -> name -> number, and `judgement`, the heading of
    that table; `codec.pieces(ids)` -> the text of each token, for the step-by-step view; `rows("val")[indices]` -> real
    texts or pictures, to stand beside the samples and, pictures, to be filled in.
    A network that takes labels is given all classes in turn. A model that draws nothing but has `reconstruct(x)` is
    shown by its reconstructions of held-out pictures.

    Of texts, `further` draws more in other ways, each below its own name. Data that set tasks (report/tasks.py) ask the
    model in the ways that `fillings` names. Both map a name to options of the model's `sample`:

        further: {sharpened: {temperature: 0.8}}
        fillings: {surest first: {sampler: ordered, k: 1, temperature: 0}}

    No failure in here ends a run: it is said in a line, once.

    Args:
        num_samples: texts or images drawn at the end; images are all shown, of texts the first eight, and all are
            judged.
        num_steps: sampling steps, as the model's `sample` defines them.
        sampler: one of the model's by name, or class_path and init_args of one of your own; None takes its first.
        seed: of the samples.
        at_validations: drawn at the first validation, and at later ones as long as this takes less than a twentieth
            of the run's time; 0: none. A run with callbacks/samples.py shows what that has drawn.
        about: what one sees, in a few sentences, for the head of the page.
        further: more texts at the end, num_samples for each name.
        fillings: how the model is asked at the end.
        num_tasks: how many tasks the data set for it.
    """

    def __init__(
        self,
        num_samples: int = 32,
        num_steps: int = 128,
        sampler: str | Sampler | None = None,
        seed: int = 0,
        at_validations: int = 4,
        about: str = "",
        further: dict[str, dict[str, Any]] | None = None,
        fillings: dict[str, dict[str, Any]] | None = None,
        num_tasks: int = 200,
    ) -> None:
        for name, value, least in (
            ("num_samples", num_samples, 1),
            ("num_steps", num_steps, 1),
            ("at_validations", at_validations, 0),
            ("num_tasks", num_tasks, 1),
        ):
            if value < least:
                raise ValueError(f"Report: {name} is {value}; it must be at least {least}")
        self.num_samples = num_samples
        self.num_steps = num_steps
        self.sampler = sampler
        self.seed = seed
        self.at_validations = at_validations
        self.about, self.num_tasks = about, num_tasks
        self.further, self.fillings = further or {}, fillings or {}
        self._first_step = self._rows = 0
        self._began = self._spent = 0.0
        self._story: Story | None = None
        self._warned = False

    # how the run goes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._first_step = trainer.global_step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._first_step = checkpoint["global_step"]  # where nothing is left to be done, no training ever starts

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_sampler("Report", self.sampler, pl_module)
        for argument, ways in (("further", self.further), ("fillings", self.fillings)):
            refuse_ways(f"Report: {argument}", ways, self.sampler, pl_module)
        if self.fillings and not isinstance(datamodule_of(trainer), SetsTasks):
            raise ValueError(
                "Report: fillings is given, but the data set no tasks (report/protocols.py, SetsTasks); leave it out"
            )
        self._story, self._warned, self._spent = None, False, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step, self._began = trainer.global_step, time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = 0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        self._rows += len(batch["x"]) * trainer.world_size if isinstance(batch, dict) else 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The averaged weights are still in the module."""
        if not self._tells(trainer) or not self._draws(trainer):
            return
        before = time.monotonic()
        self._guarded(trainer, partial(self._draw_early, trainer, pl_module), "training goes on")
        self._spent += time.monotonic() - before

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._tells(trainer):
            self._guarded(trainer, partial(self._page, trainer, pl_module, "running", ""), "training goes on")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._tells(trainer):
            self._guarded(trainer, partial(self._end, trainer, pl_module), "the run is complete")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not self._tells(trainer):
            return
        state, said = ending.of_exception(exception)
        self._guarded(trainer, partial(self._page, trainer, pl_module, state, said), "what was saved is as it was")

    def _tells(self, trainer: Trainer) -> bool:
        """Not before a step was taken: what the folder tells of the steps before stays as it is."""
        is_fit = trainer.state.fn == "fit" and not trainer.fast_dev_run  # type: ignore[attr-defined]
        # less where the checkpoint's steps are not restored yet
        return bool(trainer.is_global_zero and is_fit and trainer.global_step > self._first_step)

    def _guarded(self, trainer: Trainer, write: Callable[[], None], so: str) -> None:
        try:
            write()
        except Exception as error:  # whatever a model, data or a disk does here must not end the training
            if not self._warned:
                reason = (
                    error.strerror
                    if isinstance(error, OSError) and error.strerror
                    else f"{type(error).__name__}: {error}"
                )
                rank_zero_warn(f"{trainer.default_root_dir}: the report cannot be written ({reason}); {so}")
            self._warned = True

    # what is told

    def _told(self, trainer: Trainer, pl_module: LightningModule) -> Story:
        """The story so far; that of a resumed run goes on."""
        if self._story is None:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            before = read_story(folder) if self._first_step else None
            self._story = _story_of(trainer, pl_module)
            self._story.about = self.about
            if before is not None:
                self._story.starts = before.starts
            self._story.starts = [*self._story.starts, provenance.started(self._first_step)]
            if before is not None and (before.sampled_at or 0) <= self._first_step:
                for name in ("samples", "sampled_at", "further", "task", "trace", "tables", "figures"):
                    setattr(self._story, name, getattr(before, name))
        return self._story

    def _page(self, trainer: Trainer, pl_module: LightningModule, state: str, said: str) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, CSVLog):
                logger.flush()
        story, folder = self._told(trainer, pl_module), Path(trainer.default_root_dir)
        story.state, story.said, story.step = state, said, trainer.global_step
        story.written = provenance.now()
        if self._rows:
            story.rows = self._rows
        story.latest = _latest(trainer, folder)
        write_story(folder, story)
        write_run_page(folder)

    def _end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        story, folder = self._told(trainer, pl_module), Path(trainer.default_root_dir)
        state, said = ending.of_fit(trainer)
        self._page(trainer, pl_module, state, said)  # what is known, before what may fail is tried
        metrics = read_run(folder).metrics
        measure = (story.measure[0], story.measure[1]) if story.measure else None
        if measure is None and story.exact:
            measure = ("bpd", "bits per dimension")
        curve_png(metrics, story.references, story.scale, folder / "curve.png", loss=story.loss, measure=measure)
        self._draw_at_the_end(trainer, pl_module, story)
        story.sampled_at, story.complete = trainer.global_step, True
        self._page(trainer, pl_module, state, said)

    # what is drawn

    def _draws(self, trainer: Trainer) -> bool:
        if not self.at_validations or isinstance(trainer.strategy, _SHARDED):
            return False
        if any(isinstance(callback, DrawsSamples) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            return False
        return not self._spent or self._spent < _SHARE * (time.monotonic() - self._began)

    def _draw_early(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A few, of the weights as they are; with classes one of each, so that pictures make a row."""
        story = self._told(trainer, pl_module)
        story.trace, story.task = None, None
        story.tables, story.further = {}, {}
        if isinstance(pl_module, Reconstructs):
            figures = [reconstruction_figure(trainer, pl_module, self.num_samples)]
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*latent's denoiser is untrained.*")  # the page says so
                label = classes_in_turn(pl_module, self.at_validations)
                drawn = self._draw(trainer, pl_module, self.at_validations, label)
            decoded = decode(trainer, drawn.x)
            story.samples = decoded[:SHOWN_TEXTS] if isinstance(decoded, list) else []
            figures = [] if isinstance(decoded, list) else [samples_figure(trainer, drawn.x, label)]
        story.figures, story.sampled_at = _kept(figures), trainer.global_step

    def _draw_at_the_end(self, trainer: Trainer, pl_module: LightningModule, story: Story) -> None:
        if isinstance(pl_module, Reconstructs):
            story.figures = _kept([reconstruction_figure(trainer, pl_module, self.num_samples)])
            return
        datamodule, label = datamodule_of(trainer), classes_in_turn(pl_module, self.num_samples)
        drawn = self._draw(trainer, pl_module, self.num_samples, label, trace=True)
        decoded = decode(trainer, drawn.x)
        texts = decoded if isinstance(decoded, list) else []
        draw = partial(self._draw, trainer, pl_module)
        story.figures = [] if texts else _kept(image_figures(trainer, pl_module, drawn, label, draw))
        further = self._further(trainer, pl_module, label) if texts else {}
        story.samples = texts[:SHOWN_TEXTS]
        story.further = {name: more[:SHOWN_TEXTS] for name, more in further.items()}
        named = {PLAIN: texts, **further} if further else {"samples": texts}
        story.tables = tables_of(datamodule, named) if texts else {}
        story.trace = _trace(drawn.trace, datamodule, pl_module) if texts else None
        if self.fillings:
            story.task = answered(datamodule, self.fillings, self.num_tasks, draw, Path(trainer.default_root_dir))
        how = counted(self.num_steps, "step")
        if self.sampler is not None:
            how += f", {self.sampler.name if isinstance(self.sampler, Sampler) else self.sampler}"
        story.facts["Sampling"] = (
            f"{counted(self.num_samples, 'sample')} in {how}, {counted(drawn.network_calls, 'network call')}, "
            f"seed {self.seed}"
        )

    def _further(self, trainer: Trainer, pl_module: LightningModule, label: Tensor | None) -> dict[str, list[str]]:
        """Name and options -> texts."""
        found = {}
        for name, options in self.further.items():
            drawn = self._draw(trainer, pl_module, self.num_samples, label, **options)
            how = ", ".join(f"{option} {value}" for option, value in options.items())
            found[f"{name} ({how})"] = list(decode(trainer, drawn.x))
        return found

    def _draw(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        num_samples: int,
        label: Tensor | None = None,
        clamp: tuple[Tensor, Tensor] | None = None,
        trace: bool = False,
        **further: Any,
    ) -> Any:
        """`further`: options of the model's `sample`, before this callback's own."""
        options = {"label": label, "clamp": clamp, "sampler": self.sampler} | further
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        # when a fit ends, the strategy has already moved the module to the CPU, where sampling may take minutes
        home, device = pl_module.device, trainer.strategy.root_device
        if label is not None:
            given["label"] = label.to(device)
        pl_module.to(device)
        with undisturbed(pl_module), trainer.precision_plugin.forward_context():
            drawn = pl_module.sample(
                num_samples, **{"num_steps": self.num_steps, "seed": self.seed, "trace": trace} | given
            )
        pl_module.to(home)
        return drawn


def _story_of(trainer: Trainer, pl_module: LightningModule) -> Story:
    """What does not change while a run goes on."""
    datamodule = datamodule_of(trainer)
    is_text = not isinstance(pl_module, HasShape) or len(pl_module.shape) == 1
    story = Story(
        model=type(pl_module).__name__,
        max_steps=trainer.max_steps if trainer.max_steps > 0 else None,
        loss=pl_module.loss_name if isinstance(pl_module, Trained) else Trained.loss_name,
        exact=is_exact(pl_module),
        scale=datamodule.characters_per_token if isinstance(datamodule, CountsCharacters) else None,
        references=datamodule.references() if isinstance(datamodule, HasReferences) else {},
        facts=_facts(trainer, pl_module),
    )
    if isinstance(pl_module, Reconstructs):
        story.measure = list(pl_module.measure)
        story.results = [[name, title] for name, title, _ in pl_module.results]
        return story
    story.by_class = classes_in_turn(pl_module, 1) is not None
    if isinstance(pl_module, HasStages):
        story.stage1_steps = pl_module.recipe.stage1_steps  # type: ignore[assignment]
    if isinstance(pl_module, HasShape):
        story.num_classes = vars(pl_module).get("num_classes")
        global_batch = vars(datamodule).get("global_batch_size") if datamodule is not None else None
        if global_batch:
            tokens = math.prod(pl_module.shape) * global_batch
            story.per_step = ["tokens", tokens] if is_text else ["examples", global_batch]
    if is_text and isinstance(datamodule, HasRows):
        real = decode(trainer, datamodule.rows("val")[[0]]["x"])
        story.example = real if isinstance(real, list) else []
    return story


def _facts(trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:
    trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
    return {
        "Hardware": provenance.hardware(trainer),
        "Precision": str(trainer.precision),
        "Trained parameters": f"{trained:,}",
        "Weights": _weights(trainer),
        "Data": provenance.data_of(datamodule_of(trainer)),
    }


def _kept(figures: list[Figure]) -> list[dict[str, Any]]:
    """For story.json: files by their names in the run folder."""
    return [
        {"heading": f.heading, "note": f.note, "images": {caption: path.name for caption, path in f.images.items()}}
        for f in figures
    ]


def _latest(trainer: Trainer, folder: Path) -> dict[str, float]:
    """What the trainer still knows of a run without metrics.csv."""
    if (folder / FILE_NAME).is_file():
        return {}
    return {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}


def _trace(states: list[Any] | None, datamodule: Any, pl_module: LightningModule) -> dict[str, Any] | None:
    """Texts only: images have two or three axes."""
    if not states or states[0].dim() != 2:
        return None
    pieces = pieces_of(datamodule) or (lambda ids: [f"{i} " for i in ids])
    return trace_data([state.cpu() for state in states], pieces, mask_id=pl_module.num_classes)  # type: ignore[arg-type]


def _weights(trainer: Trainer) -> str:
    """Those that are validated, drawn from and kept."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Averages):
            return f"exponential moving average, decay {callback.decay:g}"
    return "those of the last step"
