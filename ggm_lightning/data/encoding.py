"""Encoding a batch of texts, here or in processes of its own, which import neither torch nor Lightning and so start in
half a second."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.loss import Loss
from ggm_lightning.rundir import building
from ggm_lightning.rundir.codecs import codec_from_dict


class Encoded(NamedTuple):
    """A batch's ids in one array, how many belong to each piece, and what is lost by encoding them."""

    ids: Integer[np.ndarray, " n"]
    lengths: list[int]
    loss: Loss


def encode(codec: Codec, texts: list[str]) -> Encoded:
    """All texts, one after the other."""
    found, loss = codec.encode_measured(texts)
    ids = np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
    ids = ids.astype(np.uint32, copy=False)  # half of what goes through the pipe
    return Encoded(ids, [len(one) for one in found], loss)


class Workers:
    """Processes that encode, each fed over its pipes by a thread of this one.

    They are programs of their own and not `multiprocessing`'s, whose children import the caller's main module, with
    torch in it, before they begin. When this process is gone, killed or not, their pipes close and they end.
    """

    def __init__(self, codec: Codec, count: int) -> None:
        self._free: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        # one thread each, or the processes would fight over the cores
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"]
        self._processes = [
            subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is the parent's matter
            )
            for _ in range(count)
        ]
        described = codec.to_dict()
        for process in self._processes:
            self._tell(process, (described, building.foreign(described)))  # of a class that runs here already
            self._free.put(process)
        self._threads = ThreadPoolExecutor(count)

    def submit(self, texts: list[str]) -> Future[Encoded]:
        """`encode` of the texts, when a process is free. RuntimeError: the process is gone."""
        return self._threads.submit(self._encode, texts)

    def _encode(self, texts: list[str]) -> Encoded:
        process = self._free.get()
        try:
            self._tell(process, texts)
            answer = pickle.load(process.stdout)  # type: ignore[arg-type]
        except (OSError, EOFError):
            raise RuntimeError(
                f"a process that encodes ended with status {process.wait()}; start again, it goes on where it stopped, "
                f"and with less memory if you leave data.processes out"
            ) from None
        finally:
            self._free.put(process)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @staticmethod
    def _tell(process: subprocess.Popen[bytes], what: Any) -> None:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone: what it should answer will be missed
            pickle.dump(what, process.stdin)
            process.stdin.flush()

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            with suppress(BrokenPipeError):
                process.stdin.close()  # type: ignore[union-attr]
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]


def serve() -> None:
    """What such a process does: reads a codec's `to_dict()` and whose classes it may build, then lists of texts, and
    answers each with `Encoded`."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed must not come between
    try:
        codec = codec_from_dict(*pickle.load(sys.stdin.buffer))
        while True:
            texts = pickle.load(sys.stdin.buffer)
            try:
                answer: Any = encode(codec, texts)
            except Exception as error:
                answer = error
            pickle.dump(answer, answers)
            answers.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)  # nobody asks any more; flushing what nobody reads would end in a traceback
