"""Whatever is given as a variable is a value or one line; and no name of a study leads out of the studies' folder."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from results.study.folder import check_study_name, create_study, new_study_name, open_study, studies_dir
from search.options import (
    FIELDS,
    FOLDERS,
    KNOWN,
    Options,
    parse_options,
    parse_range,
    read_options,
    with_default_warmup,
)
from search.setup.inputs import check_inputs
from search.setup.plan import study_name
from search.setup.settings import read_settings
from tests.documents import sound_document
from tests.fuzz.outcome import EXAMPLES, attempt
from tests.fuzz.texts import assignable, texts
from trainable.config import DOCUMENTED, ENV_NAMES, make_config

many = settings(max_examples=5 * EXAMPLES)
"""These cost next to nothing."""


@contextmanager
def as_it_was() -> Iterator[None]:
    """Put the environment back afterwards."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def read(assignments: list[str], **environment: str) -> Options:
    with as_it_was():
        os.environ.update(environment)
        return read_options(assignments)


plain = {"STORAGE", "OPTUNA_STORAGE", "TRAINING_DATA_SOURCE", "CHECKPOINT_PATH", "CLEAN"}
"""Those that a path may be read from, and which say it as an absolute one."""


@many
@given(st.sampled_from(KNOWN), assignable, st.booleans())
@example("BUDGET_TOKENS", "9" * 400, True)
@example("STUDIES_DIR", " ", True)
def test_a_variable_is_a_value_or_one_line(name: str, text: str, as_word: bool) -> None:
    options = attempt(f"variable {name}", lambda: read([f"{name}={text}"]) if as_word else read([], **{name: text}))
    if options is None or not text.strip():
        return
    assert options.texts[name] == text.strip()
    if name in FIELDS:
        value = getattr(options, name.lower() if name != "FROM" else "from_")
        assert value is not None
        if isinstance(value, Path):
            assert value.is_absolute()
        elif isinstance(value, int) and not isinstance(value, bool):
            assert 1 <= value <= 10**15
        elif isinstance(value, str) and name not in plain | {"COMPILE"}:
            assert value == text.strip()


@given(st.sampled_from(sorted(FOLDERS)), assignable, st.booleans())
def test_a_folder_is_where_later_code_looks_for_it(name: str, text: str, as_word: bool) -> None:
    with as_it_was():
        os.environ.pop(name, None)
        if not as_word:
            os.environ[name] = text
        variables = read_options([f"{name}={text}"] if as_word else [])
        assert os.environ.get(name, "") == text.strip()
        assert variables.texts.get(name) == (text.strip() or None)


@many
@given(st.dictionaries(st.sampled_from([*ENV_NAMES, "USE_LR_WARMUP"]), assignable, max_size=4))
def test_hyperparameters_are_a_configuration_or_one_line(values: dict[str, str]) -> None:
    def config() -> Any:
        given_ = read([f"{name}={text}" for name, text in values.items()]).explicit_hyperparameters()
        return make_config(DOCUMENTED, with_default_warmup(given_, DOCUMENTED))

    made = attempt("hyperparameters", config)
    for env, text in values.items():
        if made is not None and env in ENV_NAMES and text.strip():
            value = getattr(made, ENV_NAMES[env])
            assert isinstance(value, bool) or value == type(value)(text.strip())


@many
@given(
    st.dictionaries(
        st.sampled_from(["TRIALS", "BUDGET_TOKENS", "BASELINE", "CONCURRENCY", "GPU_FRACTION", "STUDY"]), assignable
    )
)
def test_settings_are_read_or_refused_and_leave_no_study(own_environment: Path, values: dict[str, str]) -> None:
    def settings() -> Any:
        variables = read([f"{name}={text}" for name, text in values.items()])
        return read_settings(variables), study_name(variables, "stem")

    attempt("settings", settings)
    assert not (own_environment / "studies").exists()


makes_words = st.lists(
    st.tuples(
        st.sampled_from([*KNOWN, "SPCE", "MAKEFILES", "X", "-j2", ""]),
        st.sampled_from(["=", ":=", "", " "]),
        assignable,
    ).map("".join),
    max_size=4,
).map(" ".join)


@given(makes_words, st.sampled_from(["1", "2", "x"]))
def test_what_make_hands_down_is_read_or_refused(words: str, level: str) -> None:
    attempt("make's words", lambda: read([], MAKE_WORDS=words, MAKELEVEL=level))


@given(st.lists(assignable, max_size=3))
def test_words_without_a_known_name_are_refused(words: list[str]) -> None:
    attempt("words", lambda: read(words))


@many
@given(assignable)
def test_a_range_is_positions_or_one_line(text: str) -> None:
    found = attempt("RANGE", lambda: parse_range(text))
    assert found is None or 0 <= found[0] < found[1]


@pytest.fixture(scope="module")
def small_text(own_environment: Path) -> str:
    path = own_environment / "text.txt"
    path.write_text("a line of text\n" * 50)
    return str(path)


@many
@given(
    st.dictionaries(
        st.sampled_from(["GPT2_MODEL_NAME", "TRAINING_DATA_SOURCE", "CHECKPOINT_PATH", "DEVICE"]),
        assignable,
        min_size=1,
    )
)
def test_inputs_are_found_or_refused(small_text: str, offline: None, values: dict[str, str]) -> None:
    given_ = {"TRAINING_DATA_SOURCE": small_text, **{name: text for name, text in values.items() if text.strip()}}
    if Path(given_["TRAINING_DATA_SOURCE"]).resolve() in Path(small_text).parents:
        return  # Reading the whole disk finds a text.
    attempt("inputs", lambda: check_inputs(parse_options(given_), progress=lambda what, done_frac: None))


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    """The hub's client library switched off, as HF_HUB_OFFLINE=1 does before it is imported."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield


@given(assignable)
def test_a_cache_folder_is_made_or_refused(own_environment: Path, text: str) -> None:
    from trainable.data.corpus import cache_dir

    inside = f"{own_environment}/caches/" + text.replace("..", "").strip()
    with as_it_was():
        os.environ["CACHE_DIR"] = inside
        folder = attempt("CACHE_DIR", cache_dir)
    assert folder is None or folder.is_dir()


@given(texts)
def test_no_name_leads_out_of_the_studies_folder(own_environment: Path, name: str) -> None:
    outside = own_environment / "outside"
    studies = outside / "root" / "studies"
    shutil.rmtree(outside, ignore_errors=True)
    outside.mkdir()
    with as_it_was():
        os.environ["STUDIES_DIR"] = str(studies)
        study = attempt("study made", lambda: create_study(name, sound_document(name)))
        made = set(outside.rglob("*")) - {studies, studies.parent}
        if study is None:
            assert not made
            attempt("study opened", lambda: open_study(name))
            return
        assert study.path.resolve().parent == studies.resolve()
        assert all(study.path in (path, *path.parents) for path in made)
        assert open_study(name) == study


@given(texts)
def test_a_new_studys_name_is_a_name(stem: str) -> None:
    from datetime import datetime

    check_study_name(new_study_name(stem, datetime(2025, 11, 25, 3, 10)))


@given(texts)
@example("one")
@example("latest")
def test_no_name_opens_what_is_no_study(own_environment: Path, name: str) -> None:
    with as_it_was():
        folder = own_environment / "one" / "studies"
        os.environ["STUDIES_DIR"] = str(folder)
        if not (folder / "one").exists():
            create_study("one", sound_document("one"))
            (folder.parent / "study.json").write_text((folder / "one" / "study.json").read_text())
        study = attempt("study named", lambda: open_study(name))
        assert study is None or (study.path == folder / "one" and name in ("one", "latest"))


@given(assignable)
@example("a" * 300)
def test_the_studies_folder_is_one_or_refused(text: str) -> None:
    with as_it_was():
        os.environ["STUDIES_DIR"] = text
        folder = attempt("STUDIES_DIR", studies_dir)
    assert folder is None or folder.is_absolute()
