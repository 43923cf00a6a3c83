"""A process that has imported torch and Lightning once, and forks for every test: ten seconds less for each of them.

    python warm.py torch lightning.pytorch ...      # what to import beforehand; nothing of the package or its tests

Reads one line of JSON per test, {"tree": folder, "arguments": of pytest, "limit": seconds}, and answers with one line:
pytest's exit status, negative for the signal that ended it. What the test printed is in <tree>/output.txt.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

ELSEWHERE = 97  # the package would not be imported from the tree


def run(tree: Path, arguments: list[str], limit: int) -> int:
    """In the child: pytest in the tree."""
    output = os.open(tree / "output.txt", os.O_WRONLY | os.O_CREAT)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    signal.alarm(limit)  # ends this process
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)  # of processes that a test starts
    sys.path.insert(0, str(tree))
    found = importlib.util.find_spec("ggm_lightning")
    if found is None or found.origin != str(tree / "ggm_lightning" / "__init__.py"):
        return ELSEWHERE
    import pytest

    return int(pytest.main(arguments))


def main(preload: list[str]) -> None:
    for name in preload:
        importlib.import_module(name)
    gc.freeze()  # no child has to look through all of torch for garbage
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            status = run(Path(request["tree"]), request["arguments"], request["limit"])
            sys.stdout.flush()
            os._exit(status)  # at once: what stands behind this loop is the parent's
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
