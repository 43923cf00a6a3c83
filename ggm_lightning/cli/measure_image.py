"""FID, KID and IS of drawn pictures as a measure of `lightning evaluate --measures image` (docs/images.md)."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from ggm_lightning.cli import own_code, ranks
from ggm_lightning.cli.evaluation_sets import EvaluationSet
from ggm_lightning.cli.measure import Cell, Context, Measure, Plan
from ggm_lightning.cli.parts import Arrays, Parts, batches, divided
from ggm_lightning.codecs.codec import dict_hash
from ggm_lightning.data.arrays import DAMAGE
from ggm_lightning.data.fingerprints import hash_of_rows
from ggm_lightning.data.picture_files import folder_blocks, folder_stream
from ggm_lightning.data.picture_folders import find_pictures
from ggm_lightning.metrics import images
from ggm_lightning.metrics.images import Features
from ggm_lightning.networks import fid_inception
from ggm_lightning.report.evaluation_rows import Key, Row
from ggm_lightning.rundir.folder import write_whole
from ggm_lightning.vqgan.codes import Codes

_CACHE = Path("runs") / "reference"
_PUBLISHED = 50_000  # pictures of either kind in published tables
_TOGETHER = 64
_PART = 16 * _TOGETHER  # pictures that a rank does at once; each goes through the network beside the same others
Compute = Callable[[], list[Row]]


@dataclass(frozen=True)
class Pictures:
    """Where they come from: what tells them from others, how many they are, and those from start to stop - 1."""

    identity: str
    count: int
    between: Callable[[int, int], UInt8[Tensor, "b 3 h w"]]


@dataclass(frozen=True)
class Reference:
    """The real pictures, of how many there are, whether a VQGAN has reconstructed them, what they are in words, all
    that their features depend on, and the file that keeps these."""

    pictures: Pictures
    available: int
    of_codes: bool
    told: str
    key: dict[str, Any]
    file: Path


@dataclass(frozen=True)
class Image(Measure):
    """FID, KID and IS of drawn pictures, by the features of a network; pixels, and decoded codes of a VQGAN.

    Args:
        inception: path of weights-inception-2015-12-05-6726825d.pth, the network of published figures.
        extractor: module:Class, a network of your own in its place: UInt8[b, 3, h, w] -> features Float[b, d], or
            (features, logits of classes). It is built without arguments.
        resize: of Inception: clean (antialiased, arXiv 2104.11222) or tf (as the older tables).
        reference: split of the real pictures.
        reference_count: how many of them, from the first on.
        reference_pictures: a folder of picture files in the place of that split's rows, as large as the model draws;
            of a model of codes the split's rows are reconstructions. Classes are drawn as in `reference` all the same.
        pictures: a folder of picture files in the place of what is drawn, all of the size that the model draws.
    """

    inception: str = fid_inception.FILE
    extractor: str | None = None
    resize: str = "clean"
    reference: str = "train"
    reference_count: int = _PUBLISHED
    reference_pictures: str | None = None
    pictures: str | None = None
    name: ClassVar[str] = "image"
    num_drawn: ClassVar[int] = _PUBLISHED

    @property
    def real(self) -> str:
        return self.reference

    @property
    def draws(self) -> bool:  # type: ignore[override]
        return self.pictures is None

    def check(self, context: Context) -> None:
        if len(context.loaded.model.shape) != 3:
            shape = list(context.loaded.model.shape)
            raise ValueError(
                f"--measures image: the model's rows have shape {shape}, which are no pictures; leave it out"
            )
        if self.resize not in fid_inception.RESIZES:
            raise ValueError(f"--resize {self.resize}: choose {' or '.join(fid_inception.RESIZES)}")
        if self.extractor is not None and self.resize != "clean":
            raise ValueError("--resize is of Inception; an --extractor of your own takes pictures as they are")
        for one in context.sets:
            if self.reference not in one.data.splits:
                known = ", ".join(one.data.splits)
                raise ValueError(f"--reference {self.reference}: {one.name} has {known}")
        for option, folder in (("reference_pictures", self.reference_pictures), ("pictures", self.pictures)):
            if folder is not None:
                _files(context, option, folder).between(0, 1)  # its size is looked at
        network = self._network()
        probe = _decoded(context, torch.zeros(2, *context.loaded.model.shape, dtype=torch.int64))
        width = images.features_of(network, [_pictures(probe)]).values.shape[1]
        for one in context.sets:
            count = self._real(context, one)[0].count
            where = f"{one.name}, {self.reference_pictures or self.reference}"
            images.refuse_too_few(count, width, where, "raise --reference_count, if there are more")
        if self.pictures is None:
            images.refuse_too_few(context.draws.num_samples, width, "--num_drawn", "draw more")
        else:
            count = _files(context, "pictures", self.pictures).count
            images.refuse_too_few(count, width, f"--pictures {self.pictures}", "give more")

    def cells(self, context: Context) -> list[Cell]:
        network = self._network()
        shape = _shape(context)
        # rank 0 says which it is: the last digit of an answer might be another on other hardware
        identity = ranks.current().agree(lambda: fid_inception.identity(network, shape))
        found = []
        for one in context.sets:
            reference = self._reference(context, one, identity)
            for plan in context.plans:
                depends = {**context.depends_on(plan), "reference": reference.key}
                compute = self._of_drawn(context, one, plan, network, reference)
                found.append(Cell(context.key(one, plan).told, depends, compute, samples=plan, whose="all"))
            if self.pictures is not None:
                files = _files(context, "pictures", self.pictures)
                depends = {"pictures": files.identity, "reference": reference.key}
                compute = self._of_files(context, one, files, network, reference)
                found.append(Cell(f"{one.name}, {self.pictures}", depends, compute, whose="all"))
        return found

    def _of_drawn(
        self, context: Context, one: EvaluationSet, plan: Plan, network: nn.Module, reference: Reference
    ) -> Compute:
        def compute() -> list[Row]:
            samples = context.drawn(plan)
            drawn = Pictures(samples.hash, len(samples.x), _from(context, samples.x))
            measured = self._figures(context, network, reference, drawn)
            if measured is None:
                return []
            figures, about = measured
            return [Row(context.key(one, plan), figures, context.about(plan, samples) | about)]

        return compute

    def _of_files(
        self, context: Context, one: EvaluationSet, files: Pictures, network: nn.Module, reference: Reference
    ) -> Compute:
        def compute() -> list[Row]:
            measured = self._figures(context, network, reference, files)
            if measured is None:
                return []
            return [Row(Key(one.name, f"files of {self.pictures}"), *measured)]

        return compute

    def _figures(
        self, context: Context, network: nn.Module, reference: Reference, pictures: Pictures
    ) -> tuple[dict[str, float | None], dict[str, Any]] | None:
        """(figures, what they depend on); None on all ranks but 0."""
        drawn = _features(context, network, json.dumps(reference.key), pictures)
        real = _of_reference(context, network, reference)
        if drawn is None or real is None:
            return None
        kid, kid_error = images.kernel_distance(real, drawn)
        figures: dict[str, float | None] = {"fid": images.frechet_distance(real, drawn)}
        figures |= {"kid": kid, "kid_stderr": kid_error}
        score = images.inception_score(drawn, seed=context.settings.seed)
        if score is not None:
            figures |= {"inception_score": score[0], "inception_score_stderr": score[1]}
        by = self.extractor or f"Inception of 2015-12-05, resize {self.resize}"
        protocol = f"{len(real):,} {reference.told} beside {len(drawn):,}; {by}"
        about = {
            "what": "FID, KID of all pairs and IS; errors over 10 splits",
            "protocol": protocol,
            "notes": [protocol],
            "departures": self._departures(reference, len(drawn)),
            "extractor_hash": reference.key["extractor"],
            "reference_hash": reference.pictures.identity,
        }
        return figures, about

    def _departures(self, reference: Reference, num_drawn: int) -> list[str]:
        """In what the figures are not those of published tables."""
        found = []
        if self.extractor is not None:
            found.append(f"the features of {self.extractor} are not Inception's")
        if num_drawn != _PUBLISHED:
            found.append(f"{num_drawn:,} pictures are measured, not {_PUBLISHED:,}; FID of fewer is larger")
        if reference.of_codes:
            found.append(
                f"the real pictures are {reference.told}; published figures compare with the pictures themselves "
                "(--reference_pictures)"
            )
        if self.reference_pictures is None and self.reference != "train":
            found.append(f"the real pictures are of {self.reference}, not of train")
        count = reference.pictures.count
        if count != min(_PUBLISHED, reference.available):
            found.append(f"{count:,} of {reference.available:,} real pictures are taken, not {_PUBLISHED:,}")
        return found

    def _network(self) -> nn.Module:
        if self.extractor is None:
            return fid_inception.load(self.inception, self.resize)
        return own_extractor(self.extractor)

    def _real(self, context: Context, one: EvaluationSet) -> tuple[Pictures, int]:
        """(those that are taken, how many there are)."""
        if self.reference_pictures is not None:
            files = _files(context, "reference_pictures", self.reference_pictures)
            return replace(files, count=min(self.reference_count, files.count)), files.count
        rows = one.data.rows(self.reference)
        count = min(self.reference_count, len(rows))

        def between(start: int, stop: int) -> UInt8[Tensor, "b 3 h w"]:
            return _pictures(_decoded(context, rows[np.arange(start, stop)]["x"]))

        return Pictures(hash_of_rows(rows, count), count, between), len(rows)

    def _reference(self, context: Context, one: EvaluationSet, identity: str) -> Reference:
        """`identity` is the network's."""
        real, available = self._real(context, one)
        of_codes = False
        key: dict[str, Any] = {"count": real.count, "extractor": identity}
        key["resize"] = None if self.extractor else self.resize
        if self.reference_pictures is not None:
            told, name = f"files of {self.reference_pictures}", Path(self.reference_pictures).resolve().name
            key["files"] = real.identity
        else:
            told, name = f"of {self.reference}", f"{one.name}-{self.reference}"
            of_codes = isinstance(context.loaded.model.codec, Codes)
            if of_codes:
                told = f"reconstructions of {self.reference} by the VQGAN"
            key |= {"data": one.name, "split": self.reference, "rows": real.identity}
            # what makes pictures of the rows; of codes the hash of the VQGAN's weights is in it
            key["codec"] = context.loaded.model.codec.tokenizer_hash
        digits = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return Reference(real, available, of_codes, told, key, _CACHE / f"{name}-{real.count}-{digits}.npy")


def _of_reference(context: Context, network: nn.Module, reference: Reference) -> Features | None:
    """Computed once, and kept; None on all ranks but 0."""
    file, here = reference.file, ranks.current()
    kept = _kept(file) if here.is_first else None
    if here.agree(lambda: kept is not None):
        return kept
    found = _features(context, network, json.dumps(reference.key), reference.pictures)
    if found is None:
        return None
    file.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, found.values.float().numpy())
    write_whole(file, content.getvalue())
    return Features(found.values.float().double())  # as it will be read


def _kept(file: Path) -> Features | None:
    """None where there are none, or the file is damaged."""
    try:
        return Features(torch.from_numpy(np.load(file, allow_pickle=False)).double())
    except (*DAMAGE, TypeError):
        return None


def _files(context: Context, option: str, path: str) -> Pictures:
    """The picture files of a folder, in the order of their paths; ValueError where there are none."""
    folder, shape = Path(path), _shape(context)
    if not folder.is_dir():
        raise ValueError(f"--{option} {folder}: there is no such folder; name one of picture files")
    names = find_pictures(folder).names

    def between(start: int, stop: int) -> UInt8[Tensor, "b 3 h w"]:
        blocks = folder_blocks(folder, names[start:stop], shape)
        return torch.from_numpy(np.concatenate([block.images for block in blocks]))

    return Pictures(dict_hash(folder_stream(folder, shape).fingerprint), len(names), between)


def _features(context: Context, network: nn.Module, identity: str, pictures: Pictures) -> Features | None:
    """Several ranks do a share each; None on all but rank 0."""
    device = str(context.loaded.model.device)
    network = network.to(device)

    def make(start: int, stop: int) -> Arrays:
        own = pictures.between(start, stop)
        found = images.features_of(network, own.split(_TOGETHER), device)
        return {name: value.numpy() for name, value in vars(found).items() if value is not None}

    parts = None
    if ranks.current().count > 1:
        parts = Parts(context.folder / ".features", f"{pictures.identity} {identity}")
    made = divided(parts, batches(pictures.count, _PART), make)
    if made is None:
        return None
    if parts is not None:
        parts.remove()
    joined = {name: torch.from_numpy(np.concatenate([one[name] for one in made])) for name in made[0]}
    return Features(**joined)


def own_extractor(name: str) -> nn.Module:
    """The network that the user named. Raises ValueError in one line."""
    module, _, kind = name.replace(":", ".").rpartition(".")
    own_code.open_folder([f"{module}.{kind}"])
    try:
        found = getattr(importlib.import_module(module), kind)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"--extractor {name}: cannot be built ({' '.join(str(error).split())}); write module:Class"
        ) from None
    if not isinstance(found, nn.Module):
        raise ValueError(f"--extractor {name}: is no torch module; name a class of one, module:Class")
    return found.eval().requires_grad_(False)


def _decoded(context: Context, x: Int[Tensor, " b *s"]) -> UInt8[np.ndarray, "b h w 3"]:
    codec: Any = context.loaded.model.codec
    return np.asarray(codec.decode(x.cpu().numpy()))


def _shape(context: Context) -> tuple[int, int, int]:
    """Of the pictures that the model draws, channels first."""
    height, width = _decoded(context, torch.zeros(1, *context.loaded.model.shape, dtype=torch.int64)).shape[1:3]
    return 3, height, width


def _pictures(decoded: UInt8[np.ndarray, "b h w 3"]) -> UInt8[Tensor, "b 3 h w"]:
    return torch.from_numpy(np.ascontiguousarray(decoded.transpose(0, 3, 1, 2)))


def _from(context: Context, x: Int[Tensor, " b *s"]) -> Callable[[int, int], UInt8[Tensor, "b 3 h w"]]:
    return lambda start, stop: _pictures(_decoded(context, x[start:stop]))
