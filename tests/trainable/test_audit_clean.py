import base64
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.trainable.reference_text import reference_paragraphs, tokenizer_of
from trainable.data.corpus import source_files
from trainable.errors import UserError
from trainable.text_audit.audit import audit
from trainable.text_audit.audit_values import AuditReport
from trainable.text_audit.clean import check_clean, write_clean
from trainable.text_audit.debris import repair
from trainable.text_audit.report import render_clean

REMOVED_KINDS = {
    "train_val_overlap",
    "exact_duplicate",
    "near_duplicate",
    "repeated_ngram",
    "binary",
    "encoding_debris",
}
NOISE = random.Random(1).randbytes(2000)
PHRASE = "I can not answer that question.\n"


@pytest.fixture(scope="module")
def paragraphs() -> list[str]:
    kept = reference_paragraphs(most_words=150)
    random.Random(0).shuffle(kept)
    return kept


@pytest.fixture(scope="module")
def tokenizer(paragraphs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_of(paragraphs, tmp_path_factory.mktemp("tokenizer"))


Cleaned = tuple[AuditReport, str]


@pytest.fixture
def cleaned(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Cleaned]:
    """Return a function that gives a text's report and its cleaned copy, and checks the source."""

    def run(text: str, token_range: tuple[int, int] | None = None) -> Cleaned:
        source, out = tmp_path / "source.txt", tmp_path / "clean.txt"
        source.write_bytes(text.encode())
        report = audit([source], tokenizer, token_range=token_range)
        write_clean([source], report, out)
        assert source.read_bytes() == text.encode()
        assert {path.name for path in tmp_path.iterdir()} == {"source.txt", "clean.txt", "cache"}
        return report, out.read_bytes().decode()

    return run


WITH_SIGNS = """What a reader of tables finds where two commas stand side by side
is a cell without anything in it (for example,
"'7,,9'.split(',')" gives "['7', '', '9']").  Such a *cell* counts
as the others do.

"""


def with_faults(paragraphs: list[str]) -> str:
    # Each Python's reference has other paragraphs.
    near = next(one for one in paragraphs[40:] if one.count(" the ") > 4).replace(" the ", " this ", 2)
    return "".join(
        [
            *paragraphs[:80],
            *paragraphs[20:23],
            *paragraphs[80:90],
            PHRASE * 80,
            *paragraphs[90:100],
            base64.encodebytes(NOISE).decode(),
            WITH_SIGNS,
            *paragraphs[100:110],
            NOISE.decode("latin-1").replace("\r", "") + "\n",
            *paragraphs[110:120],
            "La clÃ© est cachÃ©e.\nThe caf\ufffd is\x08 closed.\n\n",
            *paragraphs[120:130],
            near,
            *paragraphs[130:-3],
            *paragraphs[30:33],
            *paragraphs[-3:],
        ]
    )


def test_all_faults_go_and_all_else_stays(
    paragraphs: list[str], cleaned: Callable[..., Cleaned], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    report, text = cleaned(with_faults(paragraphs))
    assert report.totals.keys() >= REMOVED_KINDS
    lost = [paragraph for paragraph in [*paragraphs, WITH_SIGNS] if text.count(paragraph) != 1]
    assert lost == []
    assert text.count(PHRASE) == 1
    assert base64.encodebytes(NOISE).decode()[:60] not in text
    assert "La clé est cachée.\nThe caf is closed.\n" in text
    assert len(text.encode()) <= sum(map(len, [*paragraphs, WITH_SIGNS])) + 200
    again = audit([tmp_path / "clean.txt"], tokenizer)
    assert not again.totals.keys() & REMOVED_KINDS, [f.summary for f in again.findings]


def test_a_validation_passage_goes_from_the_training_side(
    paragraphs: list[str], cleaned: Callable[..., Cleaned]
) -> None:
    copied = "".join(paragraphs[30:33])
    report, text = cleaned("".join([*paragraphs[:-3], copied, *paragraphs[-3:]]))
    assert set(report.totals) == {"train_val_overlap"}
    assert text == "".join([*paragraphs[:30], *paragraphs[33:-3], copied, *paragraphs[-3:]])


def test_of_copies_the_first_stays(paragraphs: list[str], cleaned: Callable[..., Cleaned]) -> None:
    copied = "".join(paragraphs[30:33])
    _, text = cleaned("".join([*paragraphs[:90], copied, *paragraphs[90:150], copied, *paragraphs[150:]]))
    assert text == "".join(paragraphs)


def test_a_text_without_faults_is_copied_byte_for_byte(
    paragraphs: list[str], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    source, out = tmp_path / "source.txt", tmp_path / "clean.txt"
    source.write_bytes("".join(paragraphs).replace("\n", "\r\n").encode() + b"no line end")
    summary = write_clean([source], audit([source], tokenizer), out)
    assert out.read_bytes() == source.read_bytes()
    assert (summary.removed, summary.repaired_lines, summary.bytes) == ({}, 0, source.stat().st_size)


def test_carriage_returns_stay(paragraphs: list[str], cleaned: Callable[..., Cleaned]) -> None:
    text = "".join([*paragraphs[:90], *paragraphs[30:33], *paragraphs[90:]]).replace("\n", "\r\n")
    assert cleaned(text)[1] == "".join(paragraphs).replace("\n", "\r\n")


def test_a_copy_within_one_giant_line_goes(paragraphs: list[str], cleaned: Callable[..., Cleaned]) -> None:
    flat = [" ".join(paragraph.split()) + " " for paragraph in paragraphs]
    copied = "".join(flat[30:36])
    _, text = cleaned("".join([*flat[:90], copied, *flat[90:]]))
    assert text.count(copied[300:-300]) == 1
    assert abs(len(text) - sum(map(len, flat))) <= 600
    assert "".join(flat[:89]) in text
    assert "".join(flat[92:]) in text


def test_a_line_that_loses_its_end_still_ends(paragraphs: list[str], cleaned: Callable[..., Cleaned]) -> None:
    flat = [" ".join(paragraph.split()) for paragraph in paragraphs]
    copied = " ".join(flat[30:36])
    _, text = cleaned("\n".join([*flat[:90], flat[90] + " " + copied, *flat[91:]]) + "\n")
    assert f"\n{flat[91]}\n" in text
    assert text.count("\n") == len(flat)


def test_a_foreign_language_stays_and_is_named(paragraphs: list[str], tmp_path: Path, tokenizer: Tokenizer) -> None:
    russian = "Старая дама утром открывает окно и долго смотрит на пустую улицу, а кот ждёт молока у печи.\n" * 2
    source, out = tmp_path / "source.txt", tmp_path / "clean.txt"
    source.write_text("".join([*paragraphs[:90], russian, *paragraphs[90:]]), encoding="utf-8")
    summary = write_clean([source], audit([source], tokenizer), out)
    assert "left in, for you to judge: foreign language" in str(render_clean(summary))
    assert summary.kept_kinds == ("foreign_language",)
    assert russian.splitlines()[0] in out.read_text(encoding="utf-8")


def test_files_of_a_folder_become_one_text(
    paragraphs: list[str], tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "texts", tmp_path / "clean.txt"
    folder.mkdir()
    (folder / "a.txt").write_text("".join(paragraphs[:100]).rstrip("\n"), encoding="utf-8")
    (folder / "b.txt").write_text("".join(paragraphs[30:33] + paragraphs[100:]), encoding="utf-8")
    files = source_files(str(folder))
    report, looked_at, where = audit(files, tokenizer), list[int](), np.where

    def counted(flags: Any, *others: Any) -> Any:
        looked_at.append(len(flags))
        return where(flags, *others)

    with monkeypatch.context() as patch:
        patch.setattr(np, "where", counted)
        summary = write_clean(files, report, out)
    assert looked_at == np.bincount(report.plan.units.file_index).tolist(), "each file's own units, once"
    assert out.read_text(encoding="utf-8") == "".join(paragraphs[:100]).rstrip("\n") + "\n" + "".join(paragraphs[100:])
    (folder / "nested").mkdir()
    for path in folder.glob("*.txt"):
        path.rename(folder / "nested" / path.name)
    with pytest.raises(UserError, match="would become part of it"):
        check_clean(source_files(str(folder)), folder / "clean.txt", source=folder)
    assert summary.removed["exact_duplicate"].lines == sum(p.count("\n") - 1 for p in paragraphs[30:33])


def test_with_a_range_only_what_is_in_it_goes(
    paragraphs: list[str], cleaned: Callable[..., Cleaned], tokenizer: Tokenizer
) -> None:
    before = "".join(paragraphs[:90])
    text = "".join([before, PHRASE * 80, *paragraphs[90:150], "ha " * 300 + "\n", *paragraphs[150:]])
    first = len(tokenizer.encode(before).ids)
    report, clean = cleaned(text, token_range=(first - 50, first + 1000))
    assert set(report.totals) == {"repeated_ngram"}
    assert clean == text.replace(PHRASE * 80, PHRASE)


def test_the_template_of_a_text_stays(paragraphs: list[str], cleaned: Callable[..., Cleaned]) -> None:
    draw = random.Random(0)
    words = "".join(paragraphs).split()
    examples = [
        "Below is a question about Python, the language, with its context. Write an answer that is short and correct.\n"
        f"Question: {' '.join(draw.sample(words, 12))}?\nAnswer: {' '.join(draw.sample(words, 40))}\n\n"
        for _ in range(400)
    ]
    report, text = cleaned("".join([*examples, *examples[100:102]]))
    template = next(finding for finding in report.findings if "a template" in finding.summary)
    assert template.occurrences == 402
    assert template.severity == "low"
    assert text == "".join([*examples[:100], *examples[102:], *examples[100:102]])


def test_the_summary_counts_what_went(paragraphs: list[str], tmp_path: Path, tokenizer: Tokenizer) -> None:
    source, out = tmp_path / "source.txt", tmp_path / "clean.txt"
    blob = base64.encodebytes(NOISE).decode()
    source.write_text("".join([*paragraphs[:90], blob, *paragraphs[90:]]), encoding="utf-8")
    summary = write_clean([source], audit([source], tokenizer), out)
    assert summary.removed.keys() == {"binary"}
    assert summary.removed["binary"].lines == blob.count("\n")
    assert abs(summary.removed["binary"].tokens - len(tokenizer.encode(blob).ids)) <= 2
    assert summary.source_bytes - summary.bytes == len(blob)
    shown = str(render_clean(summary))
    assert f"removed {blob.count(chr(10))} lines" in shown
    assert f"{len(blob):,} bytes less" in shown


def test_nothing_is_overwritten(paragraphs: list[str], tmp_path: Path, tokenizer: Tokenizer) -> None:
    source, other = tmp_path / "source.txt", tmp_path / "other.txt"
    source.write_text("".join(paragraphs[:20]), encoding="utf-8")
    other.write_text("mine", encoding="utf-8")
    report = audit([source], tokenizer)
    with pytest.raises(UserError, match=r"is one of the audited files\. Nothing is overwritten"):
        write_clean([source], report, source)
    with pytest.raises(UserError, match=r"exists\. Nothing is overwritten"):
        write_clean([source], report, other)
    with pytest.raises(UserError, match=r"is not a folder\. Make it, or name another"):
        write_clean([source], report, tmp_path / "missing" / "clean.txt")
    source.write_text("something else", encoding="utf-8")
    with pytest.raises(UserError, match="has changed since it was audited"):
        write_clean([source], report, tmp_path / "clean.txt")
    assert other.read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "clean.txt").exists()


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("cafÃ© Ã\xa0la crÃ¨me", "café àla crème"),
        ("itâ€™s â€œfineâ€\x9d â€“ or", "it’s “fine” – or"),
        ("5Â°C Â£3", "5°C £3"),
        ("ðŸ˜€", "😀"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "Привет"),
        ("one\ufeff two\x00\x1b[31m three\ufffd", "one two three"),
        ("É» à la Ã and Â are letters", "É» à la Ã and Â are letters"),
        ("<b>a &amp; b</b>", "<b>a &amp; b</b>"),
        ("a control\x85 of two bytes\x1f and\x7f of one", "a control of two bytes and of one"),
        ("tab\tand\r\nline\x0c", "tab\tand\r\nline\x0c"),
    ],
)
def test_debris_is_repaired(broken: str, mended: str) -> None:
    assert repair(broken.encode(), markup=False).decode() == mended


def test_markup_goes_where_it_is_debris() -> None:
    assert repair(b"<p>a &amp;amp; b <br/>&lt;c&gt;</p>", markup=True) == b"a & b <c>"
