"""The embedded text: its two parts, the same in every process, and that they share nothing."""

import hashlib
import inspect
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.stdlib_text import docstrings
from trainable.data.corpus import language_reference
from trainable.model.model_names import SHIPPED
from trainable.preflight.corpus_checks import measure_overlap

HASH_OF_TEXT = """
import hashlib
from tests.stdlib_text import docstrings
from trainable.data.corpus import language_reference
print(hashlib.sha256((docstrings() + language_reference()).encode()).hexdigest())
"""


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


@pytest.fixture(scope="module")
def texts() -> tuple[str, str]:
    return docstrings(), language_reference()


def test_both_parts_are_english_of_some_size(texts: tuple[str, str]) -> None:
    for text, least in zip(texts, (1_000_000, 300_000), strict=True):
        assert least < len(text.encode()) < 3 * least
        assert 0.02 < text.count(" the ") * 5 / len(text) < 0.1


def test_each_passage_is_there_once(texts: tuple[str, str]) -> None:
    for text, passage in zip(texts, (inspect.getdoc(json.dumps), topics["assert"]), strict=True):
        paragraphs = [paragraph for paragraph in text.split("\n\n") if len(paragraph.split()) >= 12]
        assert len(paragraphs) > 1000
        assert len(set(paragraphs)) == len(paragraphs)
        assert passage is not None
        assert text.count(passage.split("\n\n")[0]) >= 1


def test_the_shipped_model_was_pretrained_on_no_passage_that_it_is_fine_tuned_on(texts: tuple[str, str]) -> None:
    tokenizer = Tokenizer.from_file(str(SHIPPED["tiny"] / "tokenizer.json"))
    first, second = (np.array(tokenizer.encode(text).ids, dtype=np.uint16) for text in texts)
    overlap = measure_overlap(first, second)
    assert overlap is not None
    assert overlap.train_read_frac == 1
    assert overlap.longest_tokens == 0, tokenizer.decode(second[overlap.longest_start :][:40].tolist())


def test_both_parts_are_the_same_in_every_process(texts: tuple[str, str]) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-W", "error", "-c", HASH_OF_TEXT]
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert other == hashlib.sha256("".join(texts).encode()).hexdigest()


def test_docstrings_are_taken_once_and_only_the_long_english_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdlib = tmp_path / "test" / "site-packages" / "lib"  # a Python may be installed under such names
    same, other = "The same words in two places. " * 4, "Words of a class's method, long enough. " * 4
    write(stdlib / "a.py", f'"""{same}"""\n')
    lines = ["def f():", f'    """{same}"""', "class C:", "    async def g(self):", f'        "{other}"']
    write(stdlib / "package" / "b.py", "\n".join(lines))
    write(stdlib / "short.py", '"""Short words."""\n')
    write(stdlib / "accents.py", '"""' + "Des mots français, assez longs pour être pris. " * 4 + '"""\n')
    write(stdlib / "broken.py", f'"""{same}""" if\n')
    write(stdlib / "test" / "c.py", '"""' + "Words of a test, long enough to be taken. " * 4 + '"""\n')
    copied = max(topics["assert"].split("\n\n"), key=len)
    write(stdlib / "copied.py", f'"""{copied}\n\n{other}"""\n')
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(stdlib)})
    text = docstrings()
    assert text.count(same.strip()) == 1
    assert text.count(other.strip()) == 1
    for absent in ("Short words.", "mots", "Words of a test", copied):
        assert absent not in text
    assert text.endswith("\n")
