import base64
import io
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer

from tests.trainable.reference_text import reference_paragraphs, tokenizer_of
from trainable.data.corpus import source_files
from trainable.data.tokens import load_corpus
from trainable.errors import UserError
from trainable.text_audit.audit import audit
from trainable.text_audit.audit_findings import MAX_FINDINGS
from trainable.text_audit.audit_values import KINDS, SEVERITIES, AuditFinding, AuditReport
from trainable.text_audit.report import plot_audit, render, to_json

NEAR_TOKENS = 60
NEAR_LINES = 4
FRENCH = """Le matin, la vieille dame ouvre les volets de sa maison et regarde longtemps la rue encore vide. Elle pense
que le boulanger ne va pas tarder, car il passe toujours avant que les enfants partent pour leur petite école. Dans la
cuisine, le café est déjà prêt, et le chat attend près du poêle qu'on lui donne enfin un peu de lait. Quand la cloche
sonne, elle prend son panier, met un manteau, puis descend lentement les marches usées de son escalier. Les voisins la
saluent, elle leur répond avec un sourire, et tous parlent du temps, des prix et de leurs jardins. Le soir, elle écrit
une lettre à sa fille, qui habite très loin, dans une grande ville au bord de la mer, où il pleut souvent.
"""
draw = random.Random(1)
NOISE = draw.randbytes(3000)
RUSSIAN = "Старая дама утром открывает окно и долго смотрит на пустую улицу, а кот ждёт молока у печи. " * 2


def changed(text: str, every: int = 14) -> str:
    words = text.split(" ")
    return " ".join("altered" if i % every == every - 1 and word.isalpha() else word for i, word in enumerate(words))


PROSE = reference_paragraphs(most_words=1_000_000)


@pytest.fixture
def paragraphs() -> list[str]:
    return list(PROSE)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_of(PROSE, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def audited(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., AuditReport]:
    """Return a function that audits a text."""

    def run(text: str, token_range: tuple[int, int] | None = None) -> AuditReport:
        path = tmp_path / "text.txt"
        path.write_bytes(text.encode())
        return audit([path], tokenizer, token_range=token_range)

    return run


def of_kind(report: AuditReport, kind: str) -> list[AuditFinding]:
    return [finding for finding in report.findings if finding.kind == kind]


def test_the_twin_without_faults_has_no_findings(paragraphs: list[str], audited: Callable[..., AuditReport]) -> None:
    text = "".join(paragraphs)
    report = audited(text)
    assert [(f.kind, f.summary, f.excerpt) for f in report.findings if f.severity != "low"] == []
    assert set(report.totals) <= {"near_duplicate"}  # the reference's own sentences about its many methods
    assert report.lines == text.count("\n")
    assert report.train_tokens == int(0.9 * report.tokens)


def planted_passages(paragraphs: list[str]) -> dict[str, tuple[str, str]]:
    """(kind, passage) by name; the passage goes in at a place of its own."""
    return {
        "copy": ("exact_duplicate", "".join(paragraphs[20:24])),
        "near copy": ("near_duplicate", changed("".join(paragraphs[20:24]))),
        "near copies in a row": ("near_duplicate", changed("".join(paragraphs[20:34]))),
        "phrase over and over": ("repeated_ngram", "I can not answer that question.\n" * 60),
        "rule of one character": ("repeated_ngram", "ha " * 300 + "\n"),
        "base64 in lines": ("binary", base64.encodebytes(NOISE).decode()),
        "base64 in one line": ("binary", base64.b64encode(NOISE).decode() + "\n"),
        "hexadecimal": ("binary", NOISE.hex() + "\n"),
        "a dump": ("binary", "".join(NOISE[i : i + 16].hex(" ") + "\n" for i in range(0, 800, 16))),
        "bytes read as Latin-1": ("binary", NOISE.decode("latin-1").replace("\r", "") + "\n"),
        "NULs": ("binary", "\0" * 500 + "\n"),
        "random characters": ("binary", "".join(chr(32 + byte * 94 // 255) for byte in NOISE * 2) + "\n"),
        "Russian": ("foreign_language", RUSSIAN + "\n"),
        "French": ("foreign_language", FRENCH),
        "mojibake": ("encoding_debris", "La clÃ© est cachÃ©e prÃ¨s de lâ€™entrÃ©e.\n"),
        "replacement characters": ("encoding_debris", "The caf\ufffd is clos\ufffdd.\n"),
        "control characters": ("encoding_debris", "The \x08caf\x1b[1m is closed\x7f.\n"),
        "mark in the middle": ("encoding_debris", "\ufeffHere begins the second file.\n"),
        "HTML": ("encoding_debris", '<div class="a"><p>One &amp; two,</p><br/>\n<p>three &lt; four.</p></div>\n' * 2),
        "table of numbers": (
            "distribution_shift",
            "".join(f"{n * 7919 % 99991};{n * 31 % 977}\n" for n in range(1500)),
        ),
    }


@pytest.mark.parametrize("name", planted_passages(PROSE[:30]))
def test_each_fault_is_found_where_it_was_planted(
    name: str, paragraphs: list[str], tokenizer: Tokenizer, audited: Callable[..., AuditReport]
) -> None:
    kind, passage = planted_passages(paragraphs)[name]
    before, after = "".join(paragraphs[:150]), "".join(paragraphs[150:])
    report = audited(before + passage + after)
    first_token = len(tokenizer.encode(before).ids)
    end_token = first_token + len(tokenizer.encode(passage).ids)
    first_line, last_line = before.count("\n") + 1, (before + passage).count("\n")
    slack = 2048 if kind == "distribution_shift" else NEAR_TOKENS
    lines_slack = 400 if kind == "distribution_shift" else NEAR_LINES
    here = [f for f in of_kind(report, kind) if f.first_token < end_token and f.last_token >= first_token]
    assert here, [(f.kind, f.first_line, f.summary) for f in report.findings]
    assert len(here) <= 2
    assert abs(min(f.first_token for f in here) - first_token) <= slack
    assert abs(max(f.last_token for f in here) + 1 - end_token) <= slack
    assert abs(min(f.first_line for f in here) - first_line) <= lines_slack
    assert abs(max(f.last_line for f in here) - last_line) <= lines_slack
    for finding in here:
        assert finding.severity in SEVERITIES
        assert finding.file.name == "text.txt"
        assert 0 < len(finding.excerpt) <= 120
        assert finding.excerpt.isprintable()


def test_a_copy_says_where_the_original_is(
    paragraphs: list[str], tokenizer: Tokenizer, audited: Callable[..., AuditReport]
) -> None:
    passage = "".join(paragraphs[20:24])
    report = audited("".join([*paragraphs[:150], passage, *paragraphs[150:180], passage, *paragraphs[180:]]))
    finding = of_kind(report, "exact_duplicate")[0]
    assert finding.occurrences == 3
    assert finding.copy_of is not None
    assert abs(finding.copy_of.first_token - len(tokenizer.encode("".join(paragraphs[:20])).ids)) <= NEAR_TOKENS
    assert finding.copy_of.first_line == "".join(paragraphs[:20]).count("\n") + 1
    assert finding.excerpt.startswith(paragraphs[20].strip()[:30])


def test_overlap_is_shown_in_the_validation_part(
    paragraphs: list[str], tokenizer: Tokenizer, audited: Callable[..., AuditReport]
) -> None:
    passage = "".join(paragraphs[20:24])
    before = "".join(paragraphs[:-3])
    report = audited(before + passage + "".join(paragraphs[-3:]))
    finding = of_kind(report, "train_val_overlap")[0]
    assert finding.severity != "low"
    assert abs(finding.first_token - len(tokenizer.encode(before).ids)) <= NEAR_TOKENS
    assert finding.first_token >= report.train_tokens
    assert finding.copy_of is not None
    assert finding.copy_of.last_token < report.train_tokens
    assert finding.copy_of.first_line == "".join(paragraphs[:20]).count("\n") + 1
    assert not of_kind(report, "exact_duplicate")


def test_a_very_long_line_is_found(paragraphs: list[str], audited: Callable[..., AuditReport]) -> None:
    before, line = "".join(paragraphs[:150]), " ".join("".join(paragraphs[150:180]).split()) + "\n"
    report = audited(before + line + "".join(paragraphs[180:]))
    finding = of_kind(report, "long_line")[0]
    assert finding.first_line == finding.last_line == before.count("\n") + 1
    assert f"{len(line):,} bytes" in finding.summary


def test_a_change_of_the_whole_text_is_found(paragraphs: list[str], audited: Callable[..., AuditReport]) -> None:
    half = "".join(paragraphs)
    numbers = "".join(f"{n * 7919 % 99991};{n * 31 % 977}\n" for n in range(len(half) // 18))
    report = audited(half + numbers)
    assert "changes at token" in of_kind(report, "distribution_shift")[0].summary


def test_positions_are_those_of_the_training_tokens(
    paragraphs: list[str], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    passage = "".join(paragraphs[20:24])
    path = tmp_path / "text.txt"
    path.write_text("".join([*paragraphs[:100], passage, *paragraphs[100:]]), encoding="utf-8")
    report = audit([path], tokenizer)
    tokens = load_corpus([path], tokenizer).tokens
    finding = of_kind(report, "exact_duplicate")[0]
    assert finding.copy_of is not None
    copy = tokens[finding.first_token : finding.last_token + 1]
    assert np.array_equal(copy, tokens[finding.copy_of.first_token : finding.copy_of.last_token + 1])
    assert report.tokens == len(tokens)


def test_carriage_returns_count_as_one_line_end(paragraphs: list[str], audited: Callable[..., AuditReport]) -> None:
    passage = "".join(paragraphs[20:24])
    text = "".join([*paragraphs[:100], passage, *paragraphs[100:]]).replace("\n", "\r\n")
    report = audited(text)
    finding = of_kind(report, "exact_duplicate")[0]
    assert abs(finding.first_line - "".join(paragraphs[:100]).count("\n") - 1) <= 1
    assert report.lines == text.count("\n")
    assert not of_kind(report, "encoding_debris")


def test_files_of_a_folder_are_one_text_with_their_own_lines(
    paragraphs: list[str], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    passage = "".join(paragraphs[20:24])
    parts = {"a.txt": paragraphs[:100], "b.txt": [*paragraphs[100:130], passage], "c.txt": paragraphs[130:]}
    for name, part in parts.items():
        (tmp_path / name).write_text("\ufeff" + "".join(part), encoding="utf-8")
    (tmp_path / "a mark alone.txt").write_text("\ufeff", encoding="utf-8")
    report = audit(source_files(str(tmp_path)), tokenizer)
    finding = of_kind(report, "exact_duplicate")[0]
    assert finding.file.name == "b.txt"
    assert finding.first_line == "".join(paragraphs[100:130]).count("\n") + 1
    assert finding.copy_of is not None
    assert finding.copy_of.file.name == "a.txt"
    assert not of_kind(report, "encoding_debris"), "a mark at the start of a file is no debris"


def test_one_giant_line_is_audited(paragraphs: list[str], audited: Callable[..., AuditReport]) -> None:
    passage = "".join(paragraphs[20:24])
    text = " ".join("".join([*paragraphs[:100], passage, *paragraphs[100:]]).split())
    report = audited(text)
    assert report.lines == 1
    assert of_kind(report, "exact_duplicate")[0].affected_tokens > 100
    assert {(f.first_line, f.last_line) for f in report.findings} == {(1, 1)}


@pytest.mark.parametrize("text", ["\n" * 400, " \n\t\n" * 100, "a", "one line only\n", "\r" * 50 + "x"])
def test_texts_with_hardly_anything_in_them_are_audited(text: str, audited: Callable[..., AuditReport]) -> None:
    report = audited(text)
    assert report.tokens > 0
    assert {finding.kind for finding in report.findings} <= {"repeated_ngram"}


def test_empty_lines_do_not_move_line_numbers(paragraphs: list[str], audited: Callable[..., AuditReport]) -> None:
    passage = "".join(paragraphs[20:24])
    before = "\n" * 7 + "".join(paragraphs[:100]) + "\n" * 500
    report = audited(before + passage + "".join(paragraphs[100:]))
    assert of_kind(report, "exact_duplicate")[0].first_line == before.count("\n") + 1


def test_a_range_keeps_what_touches_it(paragraphs: list[str], audited: Callable[..., AuditReport]) -> None:
    noise = base64.encodebytes(NOISE).decode()
    text = "".join([*paragraphs[:100], noise, *paragraphs[100:200], "I can not answer that.\n" * 60, *paragraphs[200:]])
    whole = audited(text)
    blob, repeats = of_kind(whole, "binary")[0], of_kind(whole, "repeated_ngram")[0]
    around_blob = (blob.first_token - 100, blob.last_token + 100)
    report = audited(text, token_range=around_blob)
    assert set(report.totals) == {"binary"}
    assert report.token_range == around_blob
    assert report.tokens == whole.tokens
    inside, rest = to_json(report)["range_against_rest"]["entropy"]
    assert inside != rest
    past_end = audited(text, token_range=(repeats.first_token, 10 * whole.tokens))
    assert past_end.token_range == (repeats.first_token, whole.tokens)
    with pytest.raises(UserError, match=r"RANGE starts at token 9,000,000; the text has [\d,]+\. Positions are"):
        audited(text, token_range=(9_000_000, 9_500_000))


def test_findings_come_worst_first_and_totals_count_all(
    paragraphs: list[str], audited: Callable[..., AuditReport]
) -> None:
    spread = [paragraph + ("The caf\ufffd.\n\n" if i % 2 else "") for i, paragraph in enumerate(paragraphs)]
    report = audited("".join(["\0" * 20_000 + "\n", *spread]))
    ranks = [SEVERITIES.index(finding.severity) for finding in report.findings]
    assert ranks == sorted(ranks)
    assert report.findings[0].kind == "binary"
    assert report.findings[0].severity == "high"
    debris = of_kind(report, "encoding_debris")
    assert report.totals["encoding_debris"].findings > len(debris) == MAX_FINDINGS
    assert report.totals["encoding_debris"].severity == debris[0].severity == "high"
    assert {finding.kind for finding in report.findings} <= set(KINDS)


def test_the_embedded_text_has_nothing_severe(tokenizer: Tokenizer) -> None:
    report = audit(source_files(None), tokenizer)
    assert {f.severity for f in report.findings} <= {"low", "medium"}
    assert report.totals.keys() <= {"train_val_overlap", "exact_duplicate", "near_duplicate", "foreign_language"}


def test_an_audit_in_bytes_finds_what_one_in_tokens_does(paragraphs: list[str], tmp_path: Path) -> None:
    in_bytes, path = tokenizer_of(paragraphs, tmp_path, vocab_size=257), tmp_path / "text.txt"
    before, between = "".join(paragraphs[:100]), "".join(paragraphs[100:150])
    copied, near = "".join(paragraphs[20:24]), changed("".join(paragraphs[40:48]))
    path.write_text("".join([before, copied, between, near, *paragraphs[150:]]), encoding="utf-8")
    report = audit([path], in_bytes)
    first = {"exact_duplicate": len(before), "near_duplicate": len(before + copied + between)}
    assert report.totals.keys() == first.keys()
    for kind, token in first.items():
        assert abs(of_kind(report, kind)[0].first_token - token) <= 4 * NEAR_TOKENS


def test_a_report_can_be_read_as_text_json_and_picture(
    paragraphs: list[str], tmp_path: Path, audited: Callable[..., AuditReport]
) -> None:
    text = "".join([*paragraphs[:100], base64.encodebytes(NOISE).decode(), *paragraphs[20:24], *paragraphs[100:]])
    report = audited(text, token_range=(1000, 30_000))
    console = Console(width=120, record=True, file=(tmp_path / "out.txt").open("w"))
    console.print(render(report))
    shown = console.export_text()
    assert "bytes that are no text" in shown
    assert "text.txt:" in shown
    with console.capture() as small:
        console.print(render(replace(report, findings=(), lines=1, bytes=1234)))
    console.file.close()
    assert " tokens, 1 line, 1.2 kB; " in small.get()
    values = json.loads(json.dumps(to_json(report)))
    assert values["findings"][0].keys() == {*AuditFinding.__dataclass_fields__}
    assert values["totals"].keys() == report.totals.keys()
    assert len(values["profile"]["entropy"]) == len(values["profile"]["first_token"])
    for name in ("plot.png", "plot.svg"):
        plot_audit(report, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.parametrize(
    ("severities", "listed", "left"),
    [
        ("high medium low low low low", 2, "... and 4 more, low ones: RANGE= shows"),
        ("low low low low low", 3, "... and 2 more, low ones: RANGE= shows"),
        (" ".join(["medium"] * 30), 25, "... and 5 more: RANGE= shows"),
        (" ".join(["medium"] * 30), 25, "--json lists the largest 200 of each kind"),
        ("high", 1, None),
    ],
)
def test_the_findings_that_matter_are_listed_and_how_many_more_there_are(
    severities: str, listed: int, left: str | None, paragraphs: list[str], audited: Callable[..., AuditReport]
) -> None:
    sound = audited("".join([*paragraphs[:60], base64.encodebytes(NOISE).decode()]))
    one, [kind, total] = sound.findings[0], next(iter(sound.totals.items()))
    findings = tuple(replace(one, severity=severity) for severity in severities.split())
    totals = {kind: replace(total, findings=len(findings))}
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(render(replace(sound, findings=findings, totals=totals)))
    shown = console.export_text()
    assert shown.count(one.excerpt[:20]) == listed
    assert shown.count("... and") == (left is not None)
    assert left is None or left in shown


def test_a_text_without_a_validation_part_names_none(
    paragraphs: list[str], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(paragraphs[:60]), encoding="utf-8")
    for has_tail in (True, False):
        report = audit([path], tokenizer, has_tail=has_tail)
        console = Console(width=120, record=True, file=(tmp_path / "out.txt").open("w"))
        console.print(render(report))
        console.file.close()
        assert ("validation starts at token" in console.export_text()) == has_tail


def test_nothing_found_is_said(paragraphs: list[str], audited: Callable[..., AuditReport], tmp_path: Path) -> None:
    report = audited("".join(paragraphs[:60]))
    assert report.findings == ()
    console = Console(width=120, record=True, file=(tmp_path / "out.txt").open("w"))
    console.print(render(report))
    console.file.close()
    assert "Nothing wrong found." in console.export_text()
