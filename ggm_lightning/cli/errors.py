"""What the command line says when something goes wrong: one line, and a traceback in a file where it helps.

    lightning: error: KeyError: 'x'; at mynet.py:24; traceback: runs/toy/error-20261128-080000.txt

What is said goes by where an exception arose, not by its type alone. This package's own words, the parser's and
Lightning's refusals are mistakes of the command, its files or its place: exit code 2. What arose in other code (the
user's, a library's) or is of a kind that nobody meant to show ends with exit code 1, the file and line of the innermost
frame of that code, and the traceback in a file. A disk that fails or fills up in the middle of a training is no mistake
of the command either: 1, so that a job may go back into its queue.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import os
import re
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ggm_lightning.rundir.terminal import visible

_HEADER = "Traceback (most recent call last):\n"
# whose text says by itself what is wrong; of others ('x', "list index out of range") the type is half of the message
_SPEAKING = (ValueError, OSError, ImportError, RuntimeError)
_SPEAKING_NAMES = ("ArgumentError", "NSKeyError", "ParserError", "MisconfigurationException")
_REFUSALS = (ValueError, OSError, ImportError)
_MEMORY = {
    "fit": "set data.init_args.max_batch_per_device lower (micro-batches of fewer rows, and the same update), "
    "data.init_args.eval_batch_size if it was in a validation, or model.network.init_args.checkpoint_activations: true",
    "sample": "lower --batch_size (the samples stay the same)",
    "infill": "lower --batch_size (the fillings stay the same)",
    "evaluate": "lower --batch_size (the bounds stay the same)",
}

_run_folder: Path | None = None


def set_run_folder(folder: Path | None) -> None:
    """Where tracebacks go from now on, if the folder is there by then; None: the system's temporary folder."""
    global _run_folder
    _run_folder = folder


def report(
    error: Exception, args: list[str], parsing_message: Callable[[str], str], chosen: Callable[[str], str] | None = None
) -> int:
    """Prints the one line to stderr, writes the traceback where it belongs, and returns the exit code.

    Args:
        error: what a command raised.
        args: the command line, without the program's name.
        parsing_message: the essence of the parser's own message of many lines.
        chosen: of several ranks, the line that this one prints for its own; "" where another one speaks.
    """
    try:
        line, exit_code = _line(error, args, parsing_message)
    except Exception as failure:  # an error that cannot be explained must still be seen
        line, exit_code = f"{type(error).__name__} (and {type(failure).__name__} while explaining it)", 1
    say(line if chosen is None else chosen(line.removeprefix(f"rank {_rank()}: ")))
    return exit_code


def say(line: str) -> None:
    """The one line, unless it is empty."""
    with contextlib.suppress(OSError, ValueError):  # nobody listens; the exit code remains
        if line:
            print(f"lightning: error: {visible(_collapsed(line))}", file=sys.stderr, flush=True)


def _line(error: Exception, args: list[str], parsing_message: Callable[[str], str]) -> tuple[str, int]:
    chain = list(_links(error))
    shown = [link for link in chain if not link.hidden]
    wrapped = list(itertools.dropwhile(lambda link: link.origin == "parser", shown))
    shown = wrapped or shown  # a constructor's own words, where the parser wrapped them in its own
    head = shown[0]
    if head.origin == "parser":
        message, place = _parsers_words(error, parsing_message), None
    else:
        message, place = _message(shown), _place(chain, libraries=head.origin != "package")
    refusal = head.is_a(_REFUSALS) or head.name in _SPEAKING_NAMES
    is_mistake = refusal and (head.origin in ("package", "parser") or place is None)
    exit_code = 2 if is_mistake and not _is_of_a_disk_in_training(head) else 1
    if _out_of_memory(head) and args and args[0] in _MEMORY:
        message += f"; {_MEMORY[args[0]]}"
    if _rank():
        message = f"rank {_rank()}: {message}"
    if place is not None:
        message += f"; at {place}"
    worded = head.origin in ("package", "parser") or head.name in _SPEAKING_NAMES
    if exit_code == 1 or place is not None or not worded or "[Errno" in head.text:
        file = _write_traceback(error, message, args)
        message += f"; traceback: {file}" if file else ""
    return message, exit_code


def _is_of_a_disk_in_training(head: _Link) -> bool:
    """Whether steps were being made."""
    return head.is_a((OSError,)) and any(file.endswith("training_epoch_loop.py") for file, _ in head.frames)


def _parsers_words(error: Exception, parsing_message: Callable[[str], str]) -> str:
    try:
        return parsing_message(str(error))
    except Exception:  # its known keys are looked up in classes of the user's, which may not even import
        return str(error)


def _message(shown: list[_Link]) -> str:
    """The error's own words, then those of its causes, none of them cut. What this package says holds its cause."""
    message = shown[0].words
    if shown[0].origin != "package":
        for link in shown[1:]:
            if _collapsed(link.text) not in _collapsed(message) or not link.text:
                message += f"; {link.how} {link.name}: {link.text}".rstrip(": ")
    return message


# A library's or a user's `raise` inside `except` leaves a chain of exceptions; a loader's worker or a spawned process
# sends its chain as text. Both become links.


@dataclass
class _Link:
    """One exception of a chain; `frames` are (file, line), outermost first."""

    name: str
    text: str
    kind: type | None
    frames: list[tuple[str, int]]
    how: str = ""
    hidden: bool = False  # behind `raise ... from None`: its text is not wanted, its frames may say where

    @property
    def words(self) -> str:
        speaks = self.is_a(_SPEAKING) or self.name in _SPEAKING_NAMES
        if not self.text:
            return self.name
        return self.text if speaks else f"{self.name}: {self.text}"

    @property
    def origin(self) -> str:
        """Whose code raised it: that of the innermost frame outside the standard library."""
        origins = (_origin(file) for file, _ in reversed(self.frames))
        return next((origin for origin in origins if origin != "standard"), "standard")

    def is_a(self, kinds: tuple[type, ...]) -> bool:
        return self.kind is not None and issubclass(self.kind, kinds)


def _links(error: BaseException) -> Iterator[_Link]:
    """The error, what caused it, and so on to the first cause."""
    seen: set[int] = set()
    how, hidden = "", False
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        remote = type(current.__cause__).__name__ in ("RemoteTraceback", "_RemoteTraceback")
        text = _text(current.__cause__) if remote and current.__cause__ is not None else _text(current)
        if _HEADER in text:
            yield from _links_of_text(text, how, hidden)
        else:
            frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(current.__traceback__)]
            if isinstance(current, SyntaxError) and current.filename:
                frames.append((current.filename, current.lineno or 0))  # of a file that never ran
            yield _Link(type(current).__name__, text, type(current), frames, how, hidden)
        if remote:
            return
        hidden = hidden or (current.__cause__ is None and current.__suppress_context__)
        how = "while handling" if current.__cause__ is None else "caused by"
        current = _cause(current)


def _cause(error: BaseException) -> BaseException | None:
    """What it was raised from, or while handling. Where no type of a union takes a value, the parser chains the refusal
    of the first one only, and a constructor's words may stand behind another."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if frames and frames[-1].f_code.co_name == "raise_union_unexpected_value":
        for refusal in frames[-1].f_locals.get("exceptions", []):
            if any(link.origin != "parser" for link in _links(refusal)):
                return refusal
    return error.__cause__ or error.__context__


def _text(error: BaseException) -> str:
    try:
        return "\n".join([str(error), *getattr(error, "__notes__", [])]).strip()
    except Exception:  # a __str__ that fails itself
        return ""


def _links_of_text(text: str, how: str, hidden: bool) -> Iterator[_Link]:
    """Links out of printed tracebacks, in which the first cause stands first."""
    found: list[_Link] = []
    for block in text.split(_HEADER)[1:]:
        lines = block.strip('"\n').splitlines()
        words = list(itertools.dropwhile(lambda line: line.startswith(" ") or not line, lines))
        frames = [(m[1], int(m[2])) for m in re.finditer(r'^ +File "(.+?)", line (\d+)', block, re.MULTILINE)]
        told = "\n".join(words).strip()
        link_how = "caused by" if told.endswith(_CAUSED) else "while handling"
        told = told.removesuffix(_CAUSED).removesuffix(_HANDLING).strip()
        named = re.match(r"([A-Za-z_][\w.]*)(?:: |:?$)", told, re.MULTILINE)
        name = named[1].rsplit(".", 1)[-1] if named else "Error"
        kind = vars(builtins).get(name)
        rest = told[named.end() :] if named else told
        found.append(_Link(name, rest.strip(), kind if isinstance(kind, type) else None, frames, link_how, hidden))
    found.reverse()
    found[0].how = how
    yield from found


_CAUSED = "The above exception was the direct cause of the following exception:"
_HANDLING = "During handling of the above exception, another exception occurred:"


# ------------------------------------------------------------------ where


def _place(chain: list[_Link], libraries: bool) -> str | None:
    """file:line of the innermost frame of the user's own code, the first cause first; where there is none and
    `libraries`, of installed packages other than those that everything here runs in."""
    open_ones = [link for link in reversed(chain) if not link.hidden]
    searches = [("user", open_ones), ("user", [link for link in reversed(chain) if link.hidden])]
    if libraries:
        searches.append(("library", open_ones))
    for wanted, links in searches:
        for file, line in (frame for link in links for frame in reversed(link.frames)):
            if _origin(file) == wanted:
                return f"{_short_path(Path(file))}:{line}"
    return None


def _origin(file: str) -> str:
    """package (this one), parser, framework (torch, Lightning), library (installed), standard, or user."""
    if file.startswith("<") or "torchinductor_" in file:
        return "standard"  # frozen and generated code
    path = Path(file).absolute()
    if path.is_relative_to(Path(__file__).parents[1]):
        return "package"
    for origin, names in (("parser", _PARSER), ("framework", _FRAMEWORK)):
        if any(path.is_relative_to(root) for root in _roots(names)):
            return origin
    if {"site-packages", "dist-packages"} & set(path.parts):
        return "library"
    standard = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    return "standard" if any(path.is_relative_to(root) for root in standard) else "user"


_PARSER = ("jsonargparse", "typeshed_client", "yaml")
_FRAMEWORK = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities")


def _roots(names: tuple[str, ...]) -> list[Path]:
    """The folders of those packages, as far as they are loaded."""
    files = [getattr(sys.modules.get(name), "__file__", None) for name in names]
    return [Path(file).parent for file in files if file]


def _short_path(path: Path) -> str:
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# ------------------------------------------------------------------ the line and the file


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _out_of_memory(link: _Link) -> bool:
    return link.name in ("OutOfMemoryError", "MemoryError") or "can't allocate memory" in link.text


def _rank() -> int:
    """This process's number among the ranks, as launchers tell it."""
    told = (os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((int(number) for number in told if number.isdecimal()), 0)


def _write_traceback(error: Exception, message: str, args: list[str]) -> str | None:
    """The path of a new file in the run folder, else in the system's temporary folder; None where neither is writable.

    Nothing is replaced: of two ranks or two failures in one second each gets a name of its own.
    """
    rank = f"-rank{_rank()}" if _rank() else ""
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}{rank}"
    text = f"lightning {' '.join(args)}\n{_collapsed(message)}\n\n{_whole_traceback(error)}"
    for folder in (_folder(args), None):
        try:
            if folder is None:
                return str(_new_file(Path(tempfile.gettempdir()), f"ggm-lightning-{name}", text))
            if folder.is_dir():
                return _short_path(_new_file(folder, name, text))
        except OSError:
            continue  # not writable, or full
    return None


def _folder(args: list[str]) -> Path | None:
    """The run's, or that of the checkpoint which the command line names."""
    if _run_folder is not None:
        return _run_folder
    for option, value in zip(args, [*args[1:], ""], strict=True):
        if option.startswith("--ckpt_path"):
            return Path(option.partition("=")[2] or value).parent
    return None


def _new_file(folder: Path, name: str, text: str) -> Path:
    for number in itertools.count(1):
        path = folder / (f"{name}.txt" if number == 1 else f"{name}-{number}.txt")
        try:
            with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return path
        except FileExistsError:
            continue
    raise AssertionError("unreachable: the numbers do not end")


def _whole_traceback(error: BaseException) -> str:
    """Every exception of the chain, the first cause first, also those that `from None` hides from Python's own."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        parts.append("".join(traceback.format_exception(current, chain=False)))
        current = _cause(current)
    return "\nwhich led to:\n\n".join(reversed(parts))
