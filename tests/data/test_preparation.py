"""What can be wrong with a text or happen to its preparation: named in one line, or gone on with to the same bytes."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ggm_lightning.codecs.loss import Loss
from ggm_lightning.codecs.text import Bytes
from ggm_lightning.data import encoding, shard_writer, tokenising
from ggm_lightning.data import text as text_module
from ggm_lightning.data.openwebtext import OpenWebText
from ggm_lightning.data.prepared import folder_lock
from ggm_lightning.data.text import TextData
from ggm_lightning.data.tokens import TokenShards
from tests.data.small_text import TEXTS, files, ids, json_lines, prepared, write

# ---------------------------------------------------------------- what can be wrong with a text

BAD = b'{"text": "half\n'


def test_bad_lines_stop_or_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = json_lines(TEXTS[:20]).splitlines(keepends=True)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join([*lines[:7], BAD, b'{"text": "\xff"}\n', b'{"text": ""}\n', *lines[7:]]))
    with pytest.raises(
        ValueError, match=r"a.jsonl: line 8 is not JSON \(.*\); write one .*, or set data.on_error: skip"
    ):
        prepared(path, tmp_path / "s")
    assert not (tmp_path / "s" / "header.json").exists()
    logging.getLogger("lightning.pytorch").propagate = True
    logging.getLogger("lightning.pytorch.utilities.rank_zero").propagate = True
    with caplog.at_level(logging.INFO):
        data = prepared(path, tmp_path / "s", on_error="skip", val_documents=3)
    said = caplog.messages[-1]
    assert "; 1 empty documents left out; 2 unreadable skipped, the first: " in said
    assert "line 8 is not JSON" in said
    assert TokenShards(data.folder).documents("train") == 17
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        TextData(str(path), on_error="ignore")


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("a.parquet", lambda raw: raw[:-9], r"a.parquet: not a whole parquet file \(.*\); get the file again"),
        ("a.parquet", lambda raw: raw[:900] + b"\0" * 99 + raw[999:], "a.parquet: not a whole parquet file"),
        ("a.jsonl.gz", lambda raw: raw[:-30], r"a.jsonl.gz: not a whole .gz file \(.*\); get the file again"),
        ("a.jsonl.gz", lambda raw: b"no gzip" + raw, "a.jsonl.gz: not a whole .gz file"),
        ("a.jsonl.zst", lambda raw: raw[:-30], r"a.jsonl.zst: not a whole .zst file \(.*\); get the file again"),
        ("a.jsonl.zst", lambda raw: b"no zstd" + raw, "a.jsonl.zst: not a whole .zst file"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, spoil: Callable[[bytes], bytes], message: str) -> None:
    path = write(tmp_path, name)
    prepared(path, tmp_path / "control")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        prepared(path, tmp_path / "s")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s" / "header.json").exists()


def test_parquet_of_other_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a", "b"], "n": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet: no column 'text', it has body, n; set data.text_key"):
        prepared(tmp_path / "a.parquet", tmp_path / "s")
    with pytest.raises(ValueError, match=r"column 'n' holds int64, no text"):
        prepared(tmp_path / "a.parquet", tmp_path / "s", text_key="n")
    pq.write_table(pa.table({"text": ["first document", None, "third"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet: row 2 has no text; fill it, or set data.on_error: skip"):
        prepared(tmp_path / "b.parquet", tmp_path / "s")
    data = prepared(tmp_path / "b.parquet", tmp_path / "s", on_error="skip", held_out="blocks")
    assert bytes(ids(data).tolist()) == b"first document\nthird"


def test_without_network_the_message_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to the hub\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(
        ValueError, match=r"^data.tokenizer: hub:gpt2: no route to the hub and much more; .* the path of its tokenizer"
    ):
        _ = OpenWebText().num_classes
    data = OpenWebText(tokenizer="bytes", folder=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"^data.train: hub:Sky.*: no route to the hub and much more; .*give data.train their glob$"
    ):
        data.prepare_data()


def test_the_hubs_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot's files of the split alone; a second start asks the hub for nothing."""
    import huggingface_hub

    (tmp_path / "plain_text").mkdir()
    write(tmp_path / "plain_text", "train-00000-of-00002.parquet", TEXTS[:100])
    write(tmp_path / "plain_text", "train-00001-of-00002.parquet", TEXTS[100:])
    write(tmp_path / "plain_text", "test-00000-of-00001.parquet", ["not this"])
    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
    data = OpenWebText(tokenizer="bytes", folder=str(tmp_path / "s"), length=8)
    data.prepare_data()
    data.prepare_data()
    assert asked == ["Skylion007/openwebtext"]
    assert bytes(ids(data).tolist()).decode() == "\n".join(TEXTS)


def test_shards_outlive_the_files_they_were_made_from(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl")
    data = prepared(path, tmp_path / "s")
    path.unlink()
    data.prepare_data()
    assert len(data.rows("train")) > 0
    with pytest.raises(FileNotFoundError, match="matches no file"):  # other options would need the text
        prepared(path, tmp_path / "other", on_error="skip")


def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up in the middle; with room again the preparation goes on to the same bytes."""
    path = write(tmp_path, "a.jsonl")
    monkeypatch.setattr(tokenising, "_BATCH", 300)
    monkeypatch.setattr(tokenising, "_MARK", 900)
    whole = prepared(path, tmp_path / "whole")
    on_disk, calls = shard_writer._SplitWriter.write, [0]

    def full(self: Any, ids: np.ndarray) -> None:
        calls[0] += 1
        if calls[0] == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        on_disk(self, ids)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer._SplitWriter, "write", full)
        with pytest.raises(OSError, match=r"s: no space left on the device; make room and start again, it goes on"):
            prepared(path, tmp_path / "s")
    assert (tmp_path / "s" / "progress.json").is_file()
    assert not (tmp_path / "s" / "header.json").exists()
    calls[0] = 100
    encoded = []
    monkeypatch.setattr(encoding, "encode", lambda codec, texts: encoded.append(1) or _real_encode(codec, texts))
    prepared(path, tmp_path / "s")
    assert files(tmp_path / "s") == files(whole.folder)
    assert 0 < len(encoded) < 40  # what was marked was not encoded again


_real_encode = encoding.encode


def test_a_mark_that_does_not_fit_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Altered shards, an altered mark or other options: from the start, to the right bytes."""
    path = write(tmp_path, "a.jsonl")
    monkeypatch.setattr(tokenising, "_BATCH", 300)
    monkeypatch.setattr(tokenising, "_MARK", 900)
    whole = files(prepared(path, tmp_path / "whole").folder)
    for spoil in ("shard", "cut", "mark", "options"):
        folder = tmp_path / spoil
        with monkeypatch.context() as patch:
            patch.setattr(text_module.TextData, "_check_splits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                prepared(path, folder, **({"on_error": "skip"} if spoil == "options" else {}))
        shard, mark = folder / "train-00000.bin.tmp", folder / "progress.json"
        if spoil == "shard":
            shard.write_bytes(b"x" + shard.read_bytes()[1:])
        elif spoil == "cut":
            os.truncate(shard, 100)
        elif spoil == "mark":
            mark.write_text(mark.read_text().replace('"batches": ', '"batches": 1'))
        prepared(path, folder)
        assert files(folder) == whole


def _hold(folder: Path, ready: Any, go: Any) -> None:
    with folder_lock(folder):
        ready.set()
        go.wait(60)


@pytest.mark.slow
def test_the_second_preparation_says_whom_it_waits_for(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "s", ready, go))
    holder.start()
    assert ready.wait(60)
    path = write(tmp_path, "a.jsonl")
    run = f"prepared({str(path)!r}, Path({str(tmp_path / 's')!r}))"
    code = f"from tests.data.small_text import Path, prepared; {run}"
    second = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    said = second.stderr.readline()
    assert f"being prepared by process {holder.pid} on " in said
    assert not (tmp_path / "s" / "header.json").exists()
    go.set()
    holder.join()
    assert second.wait(60) == 0
    assert (tmp_path / "s" / "header.json").is_file()


@pytest.mark.parametrize("how", ["killed", "codec"])
def test_a_process_that_encodes_fails(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line instead of a wait for ever."""
    workers = encoding.Workers(Bytes(), 2)
    try:
        texts = ["naïve", "", "ab\n"]
        ids, lengths, loss = workers.submit(texts).result(60)
        assert bytes(ids.tolist()) == "".join(texts).encode()
        assert (lengths, loss) == ([6, 0, 3], Loss(texts=3, characters=8))
        if how == "codec":
            with pytest.raises(AttributeError, match="encode"):  # its own error, as in this process
                workers.submit([7]).result(60)  # type: ignore[list-item]
            return
        for process in workers._processes:
            process.kill()
        for _ in range(4):
            with pytest.raises(RuntimeError, match="ended with status -9; start again, it goes on where it stopped"):
                workers.submit(texts).result(60)
    finally:
        workers.close()
    assert all(process.returncode is not None for process in workers._processes)


def test_what_such_a_process_prints_does_not_come_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A library that prints each time a batch is read: seen on stderr, and the answers are whole."""
    noisy = (
        "import os, pickle\nread = pickle.load\npickle.load = lambda file: (os.write(1, b'noise\\n'), read(file))[1]\n"
    )
    (tmp_path / "sitecustomize.py").write_text(noisy)
    monkeypatch.syspath_prepend(tmp_path)
    workers = encoding.Workers(Bytes(), 1)
    try:
        for text in ("one", "another"):
            assert bytes(workers.submit([text]).result(60).ids.tolist()) == text.encode()
    finally:
        workers.close()
    assert capfd.readouterr().err.count("noise") >= 3  # the codec and two batches


# ---------------------------------------------------------------- killed, and gone on with


def _prepare(folder: Path, source: Path, tokenizer: Path, processes: int, begins: Any) -> None:
    os.setsid()  # so that it can be killed with its own processes
    tokenising._BATCH, tokenising._MARK = 40_000, 160_000
    begins.set()
    prepared(source, folder, tokenizer=str(tokenizer), processes=processes)


def _start(*arguments: Any) -> Any:
    # not forked from here: this process may have threads, whose locks a child would wait for
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.data.small_text"])
    begins = context.Event()
    child = context.Process(target=_prepare, args=(*arguments, begins))
    child.start()
    assert begins.wait(120)
    return child


def _finish(*arguments: Any) -> float:
    """Seconds that an undisturbed preparation takes."""
    child, begin = _start(*arguments), time.monotonic()
    child.join()
    assert child.exitcode == 0
    return time.monotonic() - begin


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_goes_on_to_the_same_bytes(tmp_path: Path, tokenizer: Path) -> None:
    source = write(tmp_path, "a.jsonl", [f"{i} {text * 20}" for i in range(12) for text in TEXTS])
    rng = random.Random(0)
    killed = gone_on = 0
    for trial in range(10):
        how = (tmp_path / f"{trial}", source, tokenizer, 2 if trial in (3, 7) else 1)
        duration = _finish(tmp_path / f"whole{trial}", *how[1:])
        child = _start(*how)
        time.sleep(rng.uniform(0.1, 0.9) * duration)
        if child.is_alive():
            child.kill() if trial == 7 else os.killpg(child.pid, signal.SIGKILL)  # its processes end by themselves
        child.join()
        killed += child.exitcode == -signal.SIGKILL
        gone_on += (how[0] / "progress.json").is_file()
        if (how[0] / "header.json").is_file():  # it loads only if it is complete
            assert files(how[0]) == files(tmp_path / f"whole{trial}")
        _finish(*how)
        assert files(how[0]) == files(tmp_path / f"whole{trial}")
    print(f"{killed} of 10 killed, {gone_on} went on from a mark")
    assert killed >= 7
    assert gone_on >= 3
