"""Audit a text of 100 MB with planted faults, and print what was found, the time and the peak memory.

python tests/benchmarks/audit_speed.py [MEGABYTES]
"""

import random
import resource
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from tests.stdlib_text import docstrings
from trainable.data.tokens import train_tokenizer
from trainable.text_audit.audit import audit
from trainable.text_audit.clean import write_clean
from trainable.text_audit.report import plot_audit

VOCAB_SIZE = 8192
SENTENCE_WORDS = 18
PARAGRAPH_SENTENCES = 5


def words_in_a_row(rng: np.random.Generator, count: int) -> list[str]:
    """Return random walks over the pairs of words: text that repeats itself as little as prose does."""
    words = docstrings().split()
    ids = {word: index for index, word in enumerate(dict.fromkeys(words))}
    walk = np.array([ids[word] for word in words])
    order = np.argsort(walk[:-1], kind="stable")
    first = np.searchsorted(walk[:-1][order], np.arange(len(ids) + 1))
    chains = 4096
    state = walk[rng.integers(0, len(walk) - 1, chains)]
    steps = []
    for _ in range(-(-count // chains)):
        steps.append(state)
        size = first[state + 1] - first[state]
        drawn = order[first[state] + (rng.random(chains) * np.maximum(size, 1)).astype(np.int64)] + 1
        state = np.where((size > 0) & (rng.random(chains) > 0.1), walk[drawn], walk[rng.integers(0, len(walk), chains)])
    names = np.array(list(ids), dtype=object)
    return list(names[np.stack(steps, axis=1).ravel()[:count]])


def paragraphs(rng: np.random.Generator, size_bytes: int) -> list[str]:
    """Return about so many bytes of paragraphs."""
    words = words_in_a_row(rng, size_bytes // 7)
    step = SENTENCE_WORDS
    sentences = [" ".join(words[i : i + step]) + ".\n" for i in range(0, len(words), step)]
    step = PARAGRAPH_SENTENCES
    return ["".join(sentences[i : i + step]) + "\n" for i in range(0, len(sentences), step)]


def faults(text: list[str], draw: random.Random) -> dict[str, str]:
    """Return one planted passage per fault."""
    noise = bytes(draw.randrange(256) for _ in range(60_000))
    near = " ".join(word if draw.random() > 0.04 else "changed" for word in "".join(text[400:440]).split(" "))
    letters = "абвгдежзиклмнопрстуфхцчшя"
    return {
        "exact_duplicate": "".join(text[100:160]),
        "near_duplicate": near,
        "repeated_ngram": "I am sorry, I can not help with that.\n" * 2000,
        "binary": noise.hex() + "\n" + noise.decode("latin-1").replace("\r", "") + "\n",
        "foreign_language": "".join("".join(draw.choices(letters, k=6)) + " " for _ in range(20_000)) + "\n",
        "encoding_debris": "".join(text[500:540]).replace(" the ", " thÃ© "),
        "distribution_shift": "\n".join(f"{draw.randrange(10**6)};{draw.random():.4f};-" for _ in range(8000)) + "\n",
        "long_line": " ".join("".join(text[600:700]).split()) + "\n",
        "train_val_overlap": "".join(text[200:240]),
    }


def plant(path: Path, size_bytes: int) -> list[tuple[str, int, int]]:
    """Write the text and return (fault, first line, last line) of every planted passage."""
    rng, draw = np.random.default_rng(0), random.Random(0)
    text = paragraphs(rng, size_bytes)
    planted = faults(text, draw)
    places = {kind: int((0.2 + 0.08 * index) * len(text)) for index, kind in enumerate(planted)}
    places["train_val_overlap"] = int(0.97 * len(text))
    inserted = {place: kind for kind, place in places.items()}
    lines, found = 0, []
    with path.open("w", encoding="utf-8", newline="") as file:
        for index, paragraph in enumerate(text):
            if index in inserted:
                passage = planted[inserted[index]]
                file.write(passage)
                found.append((inserted[index], lines + 1, lines + passage.count("\n")))
                lines += passage.count("\n")
            file.write(paragraph)
            lines += paragraph.count("\n")
    return found


def main() -> None:
    size_bytes = int(float(sys.argv[1] if len(sys.argv) > 1 else 100) * 1e6)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "planted.txt"
        # In a process of its own: what it takes to make the text is not the audit's.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            planted = pool.submit(plant, path, size_bytes).result()
        tokenizer = train_tokenizer([path], VOCAB_SIZE)
        stages: dict[str, float] = defaultdict(float)
        stage, since = "", time.perf_counter()

        def progress(what: str, _: float) -> None:
            nonlocal stage, since
            now = time.perf_counter()
            stages[stage or what] += now - since
            stage, since = what, now

        print(f"peak before the audit: {peak_mb():,.0f} MB")
        start, cpu = time.perf_counter(), time.process_time()
        report = audit([path], tokenizer, progress=progress)
        wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
        print(
            f"audit: {report.bytes / 1e6:,.1f} MB, {report.tokens:,} tokens in {wall_s:,.1f} s, CPU time {cpu_s:,.1f} s"
        )
        for what, seconds in stages.items():
            print(f"  {what:<40} {seconds:6.1f} s")
        print(f"peak memory: {peak_mb():,.0f} MB")
        for kind, first, end in planted:
            hits = [f for f in report.findings if f.kind == kind and f.first_line <= end and f.last_line >= first]
            places = ", ".join(f"{f.first_line:,}-{f.last_line:,}" for f in hits[:3])
            print(f"{kind:<20} planted in lines {first:,}-{end:,}: {places or 'MISSED'}")
        for kind, total in report.totals.items():
            print(f"{kind:<20} {total.findings:,} findings, {total.frac:.3%}, {total.severity}")
        plot_audit(report, Path(folder) / "plot.png")
        start = time.perf_counter()
        summary = write_clean([path], report, Path(folder) / "clean.txt")
        if len(sys.argv) > 2:
            plot_audit(report, Path(sys.argv[2]))
        print(f"clean: {summary.source_bytes - summary.bytes:,} bytes less in {time.perf_counter() - start:,.1f} s")


def peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()
