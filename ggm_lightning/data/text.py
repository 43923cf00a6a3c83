"""Text from plain, JSON, CSV and parquet files, tokenised once into shards (data/tokens.py), read as windows.

data:
  class_path: ggm_lightning.data.text.TextData
  init_args: {train: my_text.txt}
"""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from tqdm import tqdm

from ggm_lightning.codecs.codec import Codec, dict_hash
from ggm_lightning.codecs.loss import REPLACEMENT, Loss
from ggm_lightning.codecs.text import Bytes, Characters, Subwords
from ggm_lightning.data.detokenise import DETOKENISERS
from ggm_lightning.data.documents import (
    Piece,
    Reader,
    Survey,
    find_files,
    held_out_from,
    held_out_last,
)
from ggm_lightning.data.fingerprints import fingerprint
from ggm_lightning.data.hub import HUB, hub_parquet, hub_tokenizer
from ggm_lightning.data.prepared import Identity, PreparedData
from ggm_lightning.data.rows import RowSource
from ggm_lightning.data.shard_writer import ShardWriter
from ggm_lightning.data.tokenising import tokenise
from ggm_lightning.data.tokens import TokenShards, Windows

OF_DATA = "data"  # data.alphabet: the characters that occur in the text
_INSTEAD = "take data.tokenizer: bytes, or characters with data.alphabet: data, or "
# Files of tokenizers in other formats, by name or ending, and whose they are
_OTHER_TOKENIZERS = {
    ".model": "sentencepiece's",
    ".spm": "sentencepiece's",
    ".tiktoken": "tiktoken's",
    "vocab.txt": "BERT's list of words",
    "vocab.json": "a vocabulary alone",
    "merges.txt": "the merges alone",
}


def describe(shards: TokenShards) -> str:
    """Counts of every split and what is lost, for the one line that a preparation prints."""
    return counts(shards) + shards.loss_note()


def counts(shards: TokenShards) -> str:
    """Documents, characters and tokens of every split."""
    return "; ".join(
        f"{split} {shards.documents(split):,} document(s), {shards.characters(split):,} characters, "
        f"{shards.tokens(split):,} tokens"
        for split in shards.header["splits"]
    )


def refuse_loss(loss: Loss | None, allowed: bool, where: str, instead: str) -> None:
    """ValueError if more than 1 % of the characters are lost and that is not allowed; `instead` says what to take."""
    if loss is not None and loss.too_much and not allowed:
        raise ValueError(
            f"{where}: {loss.share} are unknown to the tokenizer and lost, the first: {loss.first_changed}; "
            f"{instead}set data.allow_loss: true to go on without them"
        )


def token_named(codec: Codec, key: str, name: str) -> int:
    """The id of a token that data.`key` names."""
    found = codec.token_id(name)
    if found is None:
        raise ValueError(f"data.{key}: the tokenizer has no token {name!r}; give one that it has")
    return found


def read_codec(tokenizer: str, alphabet: str | None = None) -> Codec:
    """The codec that data.tokenizer names: bytes, characters, hub:NAME, a tokenizer.json or a folder with one."""
    if tokenizer == "bytes":
        return Bytes()
    if tokenizer == "characters":
        return Characters() if alphabet is None else Characters(alphabet)
    path = hub_tokenizer(tokenizer) if tokenizer.startswith(HUB) else Path(tokenizer).expanduser()
    if path.is_dir():  # a model's folder, as an encoder's source
        others = [] if (path / "tokenizer.json").is_file() else sorted(path.iterdir())
        path = next((other for other in others if _whose(other)), path / "tokenizer.json")
    if not path.is_file():
        raise FileNotFoundError(f"data.tokenizer: no file '{path}'; give bytes, characters, or a tokenizer.json")
    if _whose(path):
        raise ValueError(
            f"data.tokenizer: {path} is {_whose(path)}, which is not read; have transformers write a tokenizer.json by "
            f"AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER), and give that"
        )
    try:
        return Subwords(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"data.tokenizer: {path}: binary, not a `tokenizers` JSON; give a tokenizer.json") from None
    except ValueError as error:
        raise ValueError(f"data.tokenizer: {path}: {error}") from None


def _whose(path: Path) -> str | None:
    """What a tokenizer's file is, if it is of another format than tokenizer.json."""
    return _OTHER_TOKENIZERS.get(path.name, _OTHER_TOKENIZERS.get(path.suffix))


class TextData(PreparedData):
    """Windows of a text.

    Documents follow each other, separated by the tokenizer's own end-of-text where it has one (`<|endoftext|>`, `</s>`,
    `[SEP]`, ..) and by a newline where not (by a space in an alphabet without newline). Large .txt files are encoded in
    pieces of about a million characters that end at a line's end.

    Args:
        train: path or glob of .txt, .jsonl, .json, .csv, .tsv or .parquet files, or a list of them; hub:NAME is a data
            set of the hub. All but parquet may be packed (.gz, .zst).
        val: the same for validation; None: the last part of `train` is held out.
        held_out: what the last part is counted in. "documents": no document is in both parts (of a single document,
            the last characters). "blocks": windows of `length` tokens, after tokenising, so that the text is read only
            once; one document may lie on both sides of the cut.
        val_fraction: how much is held out.
        val_documents: or how many documents.
        tokenizer: "bytes", "characters", hub:NAME, or the path of a `tokenizers` JSON or of a folder with one.
        alphabet: of "characters"; None: printable ASCII and newline; "data": newline and all characters of the text,
            which is read once more for them. Others become U+FFFD and are counted.
        allow_loss: go on though more than 1 % of the characters are unknown to the tokenizer.
        text_key: the field of a JSON object, the column of a .parquet, .csv or .tsv file.
        document: what a .txt file holds, one document ("file") or one in each line ("line").
        on_error: at a line or row without readable text "stop", or "skip" it; the skipped ones are counted.
        detokeniser: for corpora of separated words, the name of a rule in data/detokenise.py.
        separator: the token between two documents; None: as said above.
        length: tokens per example.
        stride: distance between two training windows; None: no overlap. Validation windows never overlap.
        wrap: [first, last], two tokens put around each window, such as ["[CLS]", "[SEP]"]; they count to its length.
        folder: of the shards; None: runs/data/<name>-<hash of the options>.
        processes: that tokenise; None: this one, in which a `tokenizers` JSON is worked through by all cores. On two
            cores that was somewhat faster than two processes; many cores are not yet measured.
        batches: global_batch_size, max_batch_per_device, eval_batch_size, num_workers, seed (see DiscreteData).
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str] | None = None,
        held_out: str = "documents",
        val_fraction: float = 0.05,
        val_documents: int | None = None,
        tokenizer: str = "bytes",
        alphabet: str | None = None,
        allow_loss: bool = False,
        text_key: str = "text",
        document: str = "file",
        on_error: str = "stop",
        detokeniser: str | None = None,
        separator: str | None = None,
        length: int = 256,
        stride: int | None = None,
        wrap: list[str] | None = None,
        folder: str | None = None,
        processes: int | None = None,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        if held_out not in ("documents", "blocks"):
            raise ValueError(f"data.held_out is {held_out!r}; it must be documents or blocks")
        if val is None and val_documents is None and not 0 < val_fraction < 1:
            raise ValueError(f"data.val_fraction is {val_fraction}; it must lie between 0 and 1, or give data.val")
        if val_documents is not None and (val is not None or held_out == "blocks" or val_documents < 1):
            raise ValueError(
                f"data.val_documents is {val_documents}; it must be at least 1, and goes with neither data.val nor "
                f"data.held_out: blocks"
            )
        if val is not None and held_out == "blocks":
            raise ValueError("data.held_out: blocks cuts the training text, but data.val is given; leave one out")
        if alphabet is not None and tokenizer != "characters":
            raise ValueError(f"data.alphabet is for data.tokenizer: characters, not {tokenizer!r}; leave one out")
        if detokeniser is not None and detokeniser not in DETOKENISERS:
            raise ValueError(f"data.detokeniser is {detokeniser!r}; choose one of {', '.join(DETOKENISERS)}")
        if wrap is not None and len(wrap) != 2:
            raise ValueError(f"data.wrap has {len(wrap)} tokens; give two, one before and one behind each window")
        if processes is not None and processes < 1:
            raise ValueError(f"data.processes is {processes}; it must be at least 1")
        self.train, self.val, self.held_out = train, val, held_out
        self.val_fraction, self.val_documents = val_fraction, val_documents
        self.tokenizer, self.alphabet, self.length, self.stride = tokenizer, alphabet, length, stride
        self.text_key, self.document, self.on_error, self.detokeniser = text_key, document, on_error, detokeniser
        self.separator, self.wrap, self.processes, self.allow_loss = separator, wrap, processes, allow_loss
        self._given_folder = folder
        self._codec: Codec | None = None
        self._reader()  # refuses what it cannot read

    def _reader(self) -> Reader:
        rule = None if self.detokeniser is None else DETOKENISERS[self.detokeniser]
        return Reader(self.text_key, self.document, self.on_error, rule)

    @property
    def codec(self) -> Codec:
        if self._codec is None:
            of_data = self.alphabet == OF_DATA
            self._codec = self._codec_of_data() if of_data else read_codec(self.tokenizer, self.alphabet)
        return self._codec

    def _codec_of_data(self) -> Codec:
        """Characters that occur in the text: those of the shards, or if there are none yet, of the files."""
        try:
            if self.unprepared() is None:
                return TokenShards(self.folder).codec
        except FileNotFoundError:
            pass  # said below
        files = [path for paths in self._files().values() for path in paths]
        found: set[str] = set()
        with _bar(sum(path.stat().st_size for path in files), "alphabet") as bar:
            for path in files:
                for piece in self._reader().read(path, bar.update):
                    found |= set(piece.text)
        if not found:
            raise ValueError(f"data.train: {files[0]}: 0 characters of text in all; give more text")
        return Characters("".join(sorted(found - {REPLACEMENT} | {"\n"})))  # a newline to separate documents

    @property
    def expected_tokenizer(self) -> str | None:
        """With alphabet: data it follows from the files."""
        return None if self.alphabet == OF_DATA else self.codec.tokenizer_hash

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def options(self) -> dict[str, Any]:
        """What the shards depend on besides the tokenizer and the files' contents."""
        cut = self.val is None and self.held_out == "documents"
        of_data = {"alphabet": OF_DATA} if self.alphabet == OF_DATA else {}
        return of_data | {
            "text_key": self.text_key,
            "document": self.document,
            "on_error": self.on_error,
            "detokeniser": self.detokeniser,
            "separator": self.separator,
            "val_fraction": self.val_fraction if cut and self.val_documents is None else None,
            "val_documents": self.val_documents,
        }

    @property
    def folder(self) -> Path:
        if self._given_folder is not None:
            return Path(self._given_folder)
        first = self.train if isinstance(self.train, str) else self.train[0]
        name = Path(first).stem.replace("*", "").strip("-_.") or "text"
        key = dict_hash([self.train, self.val, self.expected_tokenizer, self.options])
        return Path("runs/data") / f"{name}-{key[:8]}"

    def describe(self) -> str:
        return describe(TokenShards(self.folder))

    def verify(self) -> str:
        shards = TokenShards(self.folder)
        shards.verify()
        return f"{self.folder}: as written ({describe(shards)})"

    def _given(self) -> dict[str, str | list[str]]:
        return {"train": self.train} if self.val is None else {"train": self.train, "val": self.val}

    def open_source(self) -> tuple[Identity, None]:
        """Of the hub's data sets the name is enough, so that no start asks the network."""
        found: Identity = []
        for split, given in self._given().items():
            if isinstance(given, str) and given.startswith(HUB):
                found.append({"split": split, "hub": given.removeprefix(HUB)})
            else:
                found += [{"split": split, **fingerprint(path)} for path in find_files(given, split)]
        return found, None

    def _files(self) -> dict[str, list[Path]]:
        return {
            split: hub_parquet(given, split)
            if isinstance(given, str) and given.startswith(HUB)
            else find_files(given, split)
            for split, given in self._given().items()
        }

    def build(self, source: Identity, opened: None) -> str:
        """Writes the shards, or what was missing of them; returns what there is to say about the text."""
        files, reader = self._files(), self._reader()
        total = sum(path.stat().st_size for paths in files.values() for path in paths)
        workers = self.processes or 1
        try:
            with ShardWriter(self.folder, self.codec, options=self.options, source=source) as writer:
                if writer.resumed:
                    rank_zero_info(f"{self.folder}: goes on at {writer.counted('documents'):,} documents")
                pieces = self._routed(files, reader, bar := _bar(total, "tokenise"))
                with bar:
                    loss = tokenise(writer, pieces, workers, bar, self._between())
                self._check_splits(writer, files)
                refuse_loss(loss, self.allow_loss, f"data.train: {files['train'][0]}", _INSTEAD)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(
                f"{self.folder}: no space left on the device; make room and start again, it goes on where it stopped"
            ) from None
        return reader.note()

    def _routed(self, files: dict[str, list[Path]], reader: Reader, bar: tqdm) -> Iterator[tuple[str, Piece]]:
        pieces = (piece for path in files["train"] for piece in reader.read(path, bar.update))
        if self.val is None and self.held_out == "documents":
            yield from self._split(pieces, self._survey(files["train"]))
            return
        yield from (("train", piece) for piece in pieces)
        for path in files.get("val", []):
            yield from (("val", piece) for piece in reader.read(path, bar.update))

    def _survey(self, files: list[Path]) -> Survey:
        """A first pass over the text: where its last part begins is known only when all of it was counted."""
        with _bar(sum(path.stat().st_size for path in files), "count") as bar:
            counts = self._reader().survey(files, bar.update)
        if counts.characters < 2:
            raise ValueError(f"data.train: {files[0]}: {counts.characters} characters of text in all; give more text")
        return counts

    def _split(self, pieces: Iterator[Piece], counts: Survey) -> Iterator[tuple[str, Piece]]:
        if self.val_documents is None:
            return held_out_last(pieces, counts, self.val_fraction)
        if self.val_documents >= counts.documents:
            raise ValueError(
                f"data.val_documents is {self.val_documents}, but there are {counts.documents} documents in all and "
                f"none would be left to train on; hold out fewer, or leave it out for data.val_fraction"
            )
        return held_out_from(pieces, counts.documents - self.val_documents)

    def _check_splits(self, writer: ShardWriter, files: dict[str, list[Path]]) -> None:
        for split, paths in files.items():
            if not writer.counted("characters", split):
                raise ValueError(f"data.{split}: {paths[0]}: 0 characters of text in all; give more text")

    def load(self, split: str) -> RowSource:
        codec = self.codec
        shards = TokenShards(self.folder).require(num_classes=codec.num_classes, tokenizer_hash=codec.tokenizer_hash)
        refuse_loss(shards.loss, self.allow_loss, str(self.folder), _INSTEAD)
        stride = self.stride if split == "train" else None
        wrap = None
        if self.wrap is not None:
            wrap = token_named(codec, "wrap", self.wrap[0]), token_named(codec, "wrap", self.wrap[1])
        if self.held_out == "documents":
            if split != "train" and self.val is None:
                self._check_held_out(shards, split)
            return Windows(shards, split, self.length, stride, wrap)
        return Windows(shards, "train", self.length, stride, wrap, self._part(shards, split))

    def _check_held_out(self, shards: TokenShards, split: str) -> None:
        """ValueError where the last part of a text holds no row."""
        held_out = shards.tokens(split)
        need = self.length if self.wrap is None else self.length - 2
        if held_out >= need:
            return
        total = shards.tokens("train") + held_out
        more = f"about {math.ceil(need / self.val_fraction):,} tokens of text (there are {total:,})"
        if self.val_documents is not None:
            more = "more data.val_documents"
        raise ValueError(
            f"data.train: the part that is held out has {held_out} tokens, and a row of data.length {self.length} "
            f"needs {need}; give {more}, a smaller data.length, or --data.val FILE"
        )

    def _part(self, shards: TokenShards, split: str) -> tuple[int, int]:
        """The tokens of a split that is cut by blocks."""
        block = self.length if self.wrap is None else self.length - 2
        blocks = shards.tokens("train") // max(1, block)
        if blocks < 2:
            raise ValueError(
                f"sequence longer than the data: data.length is {self.length}, but the text has {blocks} block(s) of "
                f"it for two splits; choose a smaller length or give more data"
            )
        cut = min(max(1, round(blocks * (1 - self.val_fraction))), blocks - 1) * block
        return (0, cut) if split == "train" else (cut, blocks * block)

    def _between(self) -> tuple[list[int], int] | None:
        """Ids and characters between two documents; None: the codec's own."""
        return None if self.separator is None else ([token_named(self.codec, "separator", self.separator)], 0)

    @property
    def characters_per_token(self) -> float | None:
        shards = TokenShards(self.folder)
        return shards.characters_per_token("val" if self.held_out == "documents" else "train")

    def losses(self) -> str:
        return TokenShards(self.folder).loss_note().removeprefix("; ")


def _bar(total: int, what: str) -> tqdm:
    return tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=None)
