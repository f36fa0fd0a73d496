"""A hub's model is fetched whole and once, and is then a folder like any other: every run compares its files."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.trainable.makers import MakeSpec, MakeTrial
from trainable.errors import InputChangedError, UserError
from trainable.model.fingerprint import model_fingerprint, weight_sums
from trainable.model.hub_models import fetch, hub_folder
from trainable.model.model_names import check_model_name, is_to_fetch
from trainable.model.models import load_tokenizer
from trainable.run import start_run

NAME, COMMITS = "somebody/small", ("a" * 40, "b" * 40)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's local cache, empty."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def put(cache: Path, files: Path, commit: str) -> Path:
    """Put a model's files into the cache, as the revision that `main` is at."""
    root = cache / f"models--{NAME.replace('/', '--')}"
    folder = root / "snapshots" / commit
    shutil.copytree(files, folder)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    return folder


@pytest.mark.usefixtures("offline")
def test_a_model_in_the_cache_is_fingerprinted_and_another_revision_starts_no_run(
    hub_cache: Path,
    model_folders: dict[str, Path],
    make_spec: MakeSpec,
    make_trial: MakeTrial,
) -> None:
    first = put(hub_cache, model_folders["gpt2"], COMMITS[0])
    check_model_name(NAME)
    assert hub_folder(NAME) == first
    assert load_tokenizer(NAME, []).get_vocab_size() > 0
    assert model_fingerprint(NAME) == model_fingerprint(str(model_folders["gpt2"]))
    spec = make_spec(NAME, weight_sums=weight_sums(NAME, None))
    assert sorted(spec.weight_sums) == ["model/config.json", "model/model.safetensors"]
    start_run(spec, make_trial())
    weights = put(hub_cache, model_folders["gpt2"], COMMITS[1]) / "model.safetensors"
    start_run(spec, make_trial())  # the same files
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputChangedError, match=f"has changed since it was first read: {weights}"):
        start_run(spec, make_trial())
    weights.unlink()
    with pytest.raises(InputChangedError, match=f"^the input is gone: .* of {NAME}$"):
        start_run(spec, make_trial())


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("lost", ["model.safetensors", "model-00002-of-00002.safetensors", "config.json"])
def test_a_model_that_is_not_whole_in_the_cache_is_to_fetch(
    hub_cache: Path, model_folders: dict[str, Path], lost: str
) -> None:
    folder = put(hub_cache, model_folders["gpt2"], COMMITS[0])
    if "-of-" in lost:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        shards = {"x": "model-00001-of-00002.safetensors", "y": lost}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    else:
        (folder / lost).unlink()
    assert is_to_fetch(NAME)
    with pytest.raises(UserError, match="is not cached here and the hub does not answer"):
        check_model_name(NAME)
    with pytest.raises(UserError, match=f"^GPT2_MODEL_NAME={NAME} cannot be fetched from the hub: "):
        fetch(NAME)


@pytest.fixture
def hub(hub_cache: Path, model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub on this machine that has one model, in both formats; yields the files that are asked for."""
    files = {path.name: path.read_bytes() for path in model_folders["gpt2"].iterdir()}
    files |= {"pytorch_model.bin": b"the same", "onnx/model.safetensors": b"other", "flax_model.msgpack": b"other"}
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if "/tree/" in path:
                tree = [{"type": "file", "path": name, "size": len(files[name]), "oid": ""} for name in files]
                self.answer(json.dumps(tree).encode())
            elif path.startswith(f"/api/models/{NAME}"):
                siblings = [{"rfilename": name} for name in files]
                self.answer(json.dumps({"id": NAME, "sha": COMMITS[0], "siblings": siblings}).encode())
            elif (name := path.rpartition(f"/{NAME}/resolve/{COMMITS[0]}/")[2]) in files:
                asked.append(name)
                self.answer(files[name])
            else:
                self.send_error(404)

        def answer(self, content: bytes) -> None:
            self.send_response(200)
            for header, value in (("ETag", f'"{hash(content)}"'), ("X-Repo-Commit", COMMITS[0])):
                self.send_header(header, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", address, raising=False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield asked
    server.shutdown()
    server.server_close()


def test_a_model_is_fetched_whole_and_once(hub: list[str], model_folders: dict[str, Path]) -> None:
    check_model_name(NAME)
    assert is_to_fetch(NAME)
    folder = fetch(NAME)
    assert {path.name for path in folder.iterdir()} == {path.name for path in model_folders["gpt2"].iterdir()}
    assert model_fingerprint(NAME) == model_fingerprint(str(model_folders["gpt2"]))
    hub.clear()
    assert fetch(NAME) == folder
    check_model_name(NAME)
    load_tokenizer(NAME, [])
    assert hub == []
