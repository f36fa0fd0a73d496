"""Inputs on a node that lacks them: fetched once from the storage, and refused when they are not what was put there."""

from dataclasses import replace
from pathlib import Path

import pytest

from trainable.data.node_cache import SharedInputs, share, share_inputs
from trainable.data.remote_files import below
from trainable.data.tokens import Corpus
from trainable.errors import InputChangedError
from trainable.evaluation import EvalProtocol
from trainable.run import RunSpec


@pytest.fixture
def driver(tmp_path: Path) -> RunSpec:
    """What a driver's machine has: tokens, a model folder with a run's checkpoint in it, and a checkpoint."""
    here = tmp_path / "driver"
    (here / "model" / "checkpoint-5").mkdir(parents=True)
    for name in ("tokens.npy", "start.pt", "model/config.json", "model/weights.safetensors", "model/checkpoint-5/old"):
        (here / name).write_text(f"what {name} holds")
    return RunSpec(
        model_name=str(here / "model"),
        corpus=Corpus(path=here / "tokens.npy", fingerprint="f", vocab_size=9),
        protocol=EvalProtocol(block_size=8, tokens=8),
        device="cpu",
        unigram_entropy=1.0,
        init_from=here / "start.pt",
    )


def elsewhere(spec: RunSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Go to a node where nothing of the driver's is."""
    Path(spec.model_name).parent.rename(tmp_path / "gone")
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "node"))


def test_a_node_that_has_it_all_fetches_nothing(driver: RunSpec, tmp_path: Path) -> None:
    assert share_inputs(driver, str(tmp_path / "shared")).localized(driver) == driver


def test_a_node_that_lacks_it_fetches_it_once(driver: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = share_inputs(driver, str(tmp_path / "shared"))
    elsewhere(driver, monkeypatch, tmp_path)
    found = shared.localized(driver)
    assert found.corpus.path.read_text() == "what tokens.npy holds"
    assert found.init_from is not None
    assert found.init_from.read_text() == "what start.pt holds"
    files = {path.name: path.read_text() for path in Path(found.model_name).iterdir()}
    assert files == {name: f"what model/{name} holds" for name in ("config.json", "weights.safetensors")}
    assert all(str(path).startswith(str(tmp_path / "node")) for path in (found.corpus.path, found.init_from))
    for copy in (tmp_path / "shared").rglob("*"):
        if copy.is_file():
            copy.unlink()
    assert shared.localized(driver) == found


def test_another_file_at_the_drivers_path_is_not_taken(
    driver: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = share_inputs(driver, str(tmp_path / "shared"))
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "node"))
    driver.corpus.path.write_text("WHAT tokens.npy holds")
    found = shared.localized(driver)
    assert found.corpus.path.read_text() == "what tokens.npy holds"
    assert found.model_name == driver.model_name


def test_a_damaged_copy_is_refused_and_not_kept(
    driver: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = share_inputs(driver, str(tmp_path / "shared"))
    elsewhere(driver, monkeypatch, tmp_path)
    [copy] = (tmp_path / "shared").rglob("tokens.npy")
    copy.write_text("WHAT tokens.npy holds")
    with pytest.raises(InputChangedError, match="in the storage is damaged, delete it"):
        shared.localized(driver)
    assert not list((tmp_path / "node").rglob("*.npy"))
    copy.unlink()
    with pytest.raises(InputChangedError, match="the input is gone: "):
        shared.localized(driver)


def test_a_copy_that_was_cut_short_is_made_whole(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a whole text")
    storage = str(tmp_path / "shared")
    shared = share(tmp_path / "text.txt", storage)
    Path(shared.place).write_text("a wh")
    assert share(tmp_path / "text.txt", storage) == shared
    assert Path(shared.place).read_text() == "a whole text"
    (tmp_path / "text.txt").write_text("another text")
    assert share(tmp_path / "text.txt", storage).place != shared.place


def test_presets_and_hub_names_are_not_copied(driver: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr("trainable.data.node_cache.fetch", fetched.append)
    for name in ("tiny", "tiny-scratch", "somebody/not-here"):
        spec = replace(driver, model_name=name, init_from=None)
        shared = share_inputs(spec, str(tmp_path / "shared"))
        assert list(shared.copies) == [str(driver.corpus.path)]
        assert isinstance(shared, SharedInputs)
        assert shared.localized(spec).model_name == name
    assert fetched == ["somebody/not-here"]


def test_a_place_keeps_a_uris_query_at_its_end() -> None:
    assert below("/shared/", "one", "checkpoints") == "/shared/one/checkpoints"
    assert below("s3://b/p?scheme=http", "one", "inputs") == "s3://b/p/one/inputs?scheme=http"
    assert below("/what?/shared", "one") == "/what?/shared/one"


@pytest.mark.parametrize("name", ["my model.pt", "ein m\u00e4dchen.pt", "run #3 a%20b?.pt"])
def test_any_file_name_can_be_shared_at_a_uri(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "node"))
    (tmp_path / name).write_text("a whole text")
    found = share(tmp_path / name, (tmp_path / "shared").as_uri()).local(tmp_path / "nowhere")
    assert (found.name, found.read_text()) == (name, "a whole text")
