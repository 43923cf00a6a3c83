"""Preparing and reading text: tokens/s beside the tokenizer's own encode_batch, memory on a large input, start-up.

    python -m tests.benchmarks.text [--gigabytes 2] [--tokenizer tokenizer.json --text owt.jsonl]

Without a tokenizer of GPT-2's kind and a real text it trains a byte-level BPE of 8,192 tokens on Python's language
reference and repeats that text, shuffled by paragraphs, so that nothing needs a download.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from tokenizers import Tokenizer

from ggm_lightning.data.text import TextData
from ggm_lightning.data.tokens import TokenShards
from ggm_lightning.data.toy.demo import reference_text, train_bpe

ROUNDS = 5
_CHILD = """
import resource, sys, threading, time
from pathlib import Path
from ggm_lightning.data.text import TextData

peak = [0]

def anonymous(pid):
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon")), 0)

def watch():
    while True:
        peak[0] = max(peak[0], sum(map(anonymous, descendants())))
        time.sleep(0.2)

def descendants():
    import os
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                pass
    mine, found = {os.getpid()}, True
    while found:
        found = {pid for pid, parent in parents.items() if parent in mine} - mine
        mine |= found
    return mine

if __name__ == "__main__":
    source, tokenizer, folder, processes = sys.argv[1:]
    threading.Thread(target=watch, daemon=True).start()
    how = {"held_out": "blocks", "processes": int(processes), "length": 1024}
    data = TextData(source, tokenizer=tokenizer, folder=folder, **how)
    begin = time.perf_counter()
    data.prepare_data()
    print("RESULT", time.perf_counter() - begin, peak[0] * 1024)
"""


def prepared(source: Path, tokenizer: Path, folder: Path, processes: int) -> tuple[float, int]:
    """(seconds, peak bytes of anonymous memory over all processes) of a preparation in a fresh process."""
    script = folder.parent / "prepare.py"
    script.write_text(_CHILD)
    command = [sys.executable, str(script), str(source), str(tokenizer), str(folder), str(processes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _, seconds, peak = next(line for line in done.stdout.splitlines() if line.startswith("RESULT")).split()
    return float(seconds), int(peak)


def encode_batch(tokenizer: Path, texts: list[str]) -> tuple[float, int]:
    """(seconds, tokens) of the library's own call on all documents, in its threads."""
    own = Tokenizer.from_file(str(tokenizer))
    begin = time.perf_counter()
    tokens = sum(len(one.ids) for one in own.encode_batch(texts, add_special_tokens=False))
    return time.perf_counter() - begin, tokens


def reading(folder: Path, tokenizer: Path, source: Path) -> float:
    """Training tokens/s through the loader, without worker processes, from shards in the system's cache."""
    data = TextData(str(source), tokenizer=str(tokenizer), folder=str(folder), held_out="blocks", length=1024)
    data.global_batch_size = 64
    loader = data.train_dataloader()
    sum(batch["x"].numel() for batch in loader)
    begin = time.perf_counter()
    tokens = sum(batch["x"].numel() for batch in loader)
    return tokens / (time.perf_counter() - begin)


def start_up(folder: Path, tokens: int = 9_035_582_198) -> tuple[float, int]:
    """(seconds, bytes) to open, order and read first a set of the size of OpenWebText: a sparse file of 18 GB."""
    import zlib

    from ggm_lightning.codecs.text import Integers
    from ggm_lightning.data.blocks import BLOCK_BYTES
    from ggm_lightning.data.header import sealed

    folder.mkdir()
    with open(folder / "train-00000.bin", "wb") as handle:
        handle.truncate(2 * tokens)
    whole, rest = divmod(2 * tokens, BLOCK_BYTES)
    crc = f"{zlib.crc32(bytes(BLOCK_BYTES)):08x}" * whole + f"{zlib.crc32(bytes(rest)):08x}"
    codec = Integers(50257)
    file = {"name": "train-00000.bin", "tokens": tokens, "sha256": "", "crc32": crc}
    split = {"documents": 1, "tokens": tokens, "characters": 0, "largest_id": 0, "files": [file]}
    described = {"num_classes": 50257, "dtype": "uint16", "block_bytes": BLOCK_BYTES, "options": {}, "source": []}
    described |= {"tokenizer_hash": codec.tokenizer_hash, "codec": codec.to_dict(), "splits": {"train": split}}
    (folder / "header.json").write_bytes(sealed(described))
    code = (
        "import resource, time, sys\n"
        "from ggm_lightning.data.tokens import TokenShards, Windows\n"
        "from ggm_lightning.data.order import TrainOrder\n"
        "before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()\n"
        "rows = Windows(TokenShards(sys.argv[1]), 'train', 1024)\n"
        "rows[next(iter(TrainOrder(len(rows), 64)))]\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(time.perf_counter() - begin, (after - before) * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    seconds, grown = done.stdout.split()
    return float(seconds), int(grown)


def paragraphs(size: int) -> list[str]:
    """Documents of about 5,000 characters, `size` characters in all, of shuffled paragraphs."""
    train, _ = reference_text()
    parts = [part for part in train.split("\n\n") if part]
    rng, documents, done = np.random.default_rng(0), [], 0
    while done < size:
        document = "\n\n".join(parts[i] for i in rng.integers(len(parts), size=12))
        documents.append(document)
        done += len(document)
    return documents


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=0.0, help="also prepare an input of this size")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--text", type=Path)
    given = parser.parse_args()
    print(json.dumps(measure(given.gigabytes, given.tokenizer, given.text), indent=1))


def compared(folder: Path, source: Path, tokenizer: Path, texts: list[str]) -> dict[str, float]:
    """Preparing, in one process and in one per core, beside encode_batch on the same cores, in turns."""
    cores = len(os.sched_getaffinity(0))
    contenders = {"encode_batch": 0, "preparing": 1, f"preparing in {cores} processes": cores}
    rates = {who: list[float]() for who in contenders}
    for i in range(ROUNDS):
        for who in contenders if i % 2 else reversed(contenders):
            made = folder / f"{i}-{contenders[who]}"
            if who == "encode_batch":
                seconds, tokens = encode_batch(tokenizer, texts)
            else:
                seconds = prepared(source, tokenizer, made, contenders[who])[0]
                tokens = TokenShards(made).tokens("train")
            rates[who].append(tokens / seconds)
    result: dict[str, float] = {"cores": cores}
    for who, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates["encode_batch"], strict=True)]
        result |= {f"{who}, tokens/s": statistics.median(found), f"{who}, ratio": statistics.median(ratios)}
        result[f"{who}, least ratio"] = min(ratios)
    return result


def measure(gigabytes: float = 0.0, tokenizer: Path | None = None, text: Path | None = None) -> dict[str, float]:
    """All figures of this file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if tokenizer is None or text is None:
            tokenizer, texts = folder / "tokenizer.json", paragraphs(12_000_000)
            tokenizer.write_text(train_bpe(reference_text()[0], 8192))
        else:
            texts = [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()] * 8
        source = folder / "text.jsonl"
        source.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts), encoding="utf-8")
        result = compared(folder, source, tokenizer, texts)
        result["reading, tokens/s"] = reading(folder / "0-1", tokenizer, source)
        seconds, grown = start_up(folder / "sparse")
        result |= {"start of 9 billion tokens, s": seconds, "start of 9 billion tokens, bytes": grown}
        return result | (large(folder, source, tokenizer, gigabytes) if gigabytes else {})


def large(folder: Path, source: Path, tokenizer: Path, gigabytes: float) -> dict[str, float]:
    """The text over and over, up to this size: what memory a preparation takes."""
    big, raw = folder / "big.jsonl", source.read_bytes()
    with open(big, "wb") as handle:
        for _ in range(int(gigabytes * 1e9 / len(raw)) + 1):
            handle.write(raw)
    seconds, peak = prepared(big, tokenizer, folder / "big", 1)
    return {"large input, bytes": big.stat().st_size, "large input, s": seconds, "anonymous bytes at the most": peak}


if __name__ == "__main__":
    Console().rule("text")
    main()
