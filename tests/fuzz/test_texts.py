"""Whatever bytes the text and the model folder hold, they are read or refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.fuzz.outcome import EXAMPLES, attempt
from trainable.data.corpus import text_fingerprint
from trainable.data.text_documents import iter_chunks
from trainable.model.model_names import check_model_name
from trainable.text_audit.audit import audit
from trainable.text_audit.clean import write_clean
from trainable.text_audit.report import render, to_json

FEW = settings(max_examples=max(30, EXAMPLES // 4))
SENTENCES = "".join(f"Line {n} tells of number {n * 7919 % 997} and of {n * 31 % 61} others.\n" for n in range(120))
pieces = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            "\n",
            "\r\n",
            "\r",
            "\x00",
            "\ufeff",
            "\u2028",
            "\x85",
            "\x1b[31m",
            "Ã©",
            "&amp;",
            "<br>",
            "\ufffd",
            "日本語のテキスト。",
        ]
    ),
    st.sampled_from(
        [
            "a" * 5000,
            "the " * 600,
            "\x01\x02" * 400,
            "0123456789abcdef" * 80,
            "\U0001f600" * 50,
            " " * 3000,
            "e\u0301" * 99,
        ]
    ),
    st.integers(0, 60).map(lambda at: SENTENCES[at * 40 : at * 40 + 3000]),
)
contents = st.lists(pieces, min_size=1, max_size=8).map("".join)


@pytest.fixture(scope="module")
def tokenizer(own_environment: Path) -> Tokenizer:
    """A byte-level BPE of 300 ids."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [SENTENCES], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def audited(folder: Path, parts: list[str], tokenizer: Tokenizer, token_range: tuple[int, int] | None) -> Any:
    files = []
    for index, part in enumerate(parts):
        files.append(folder / f"{index}.txt")
        files[-1].write_bytes(part.encode("utf-8", "surrogatepass"))
    report = audit(files, tokenizer, token_range=token_range)
    json.dumps(to_json(report), allow_nan=False)
    assert render(report)
    out = folder.parent / "clean.txt"
    out.unlink(missing_ok=True)
    summary = write_clean(files, report, out)
    assert summary.bytes == out.stat().st_size
    out.read_bytes().decode()
    return report


@FEW
@given(st.lists(contents, min_size=1, max_size=3), st.none() | st.tuples(st.integers(0, 3000), st.integers(1, 3000)))
def test_any_text_is_audited_and_cleaned_or_refused(
    own_environment: Path, tokenizer: Tokenizer, parts: list[str], asked: Any
) -> None:
    folder = own_environment / "texts"
    folder.mkdir(exist_ok=True)
    token_range = (asked[0], asked[0] + asked[1]) if asked else None
    attempt("audit", lambda: audited(folder, [SENTENCES, *parts], tokenizer, token_range))


@given(
    st.lists(
        st.binary(max_size=300) | contents.map(lambda text: text.encode("utf-8", "surrogatepass")),
        min_size=1,
        max_size=3,
    )
)
def test_any_bytes_are_a_text_or_refused(own_environment: Path, parts: list[bytes]) -> None:
    path = own_environment / "any.txt"
    path.write_bytes(b"".join(parts))

    def read() -> bytes:
        text_fingerprint([path])
        return b"".join(chunk.raw for chunk in iter_chunks([path]))

    text = attempt("text", read)
    assert text is None or text == path.read_bytes()


configs = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.binary(max_size=80) | configs.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b"[]")
def test_any_config_of_a_model_folder_is_checked_or_refused(own_environment: Path, data: bytes) -> None:
    folder = own_environment / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(data)

    def check() -> bool:
        check_model_name(str(folder))
        return True

    if attempt("config.json", check):
        assert isinstance(json.loads(data), dict)
