"""A command on a cluster's head: what is refused here, which studies it needs, and that its words come back.

The whole way, through Ray's client, is tests/faults/cluster.py.
"""

import importlib.util
import os
import signal
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from search import __main__ as main
from search.commands import remote_command as module
from search.commands.remote_command import HeadCommand, _on_disk, _studies_read, remote_command
from search.options import parse_options
from search.terminal.console import Terminal
from trainable.data.node_cache import share
from trainable.errors import UserError

ADDRESS = "ray://127.0.0.1:10001"


@pytest.mark.parametrize(
    ("command", "variables", "words"),
    [
        ("run", {}, "needs STORAGE"),
        ("resume", {"STORAGE": "/shared"}, "does not know which study was last here"),
        ("confirm", {"STORAGE": "/shared", "STUDY": "latest"}, "does not know which study was last here"),
        ("attribute", {"STORAGE": "/shared"}, "does not know which study was last here"),
        ("attribute", {"STORAGE": "/shared", "FROM": "before"}, "pip install 'ray\\[client\\]'"),
        ("run", {"STORAGE": "/shared"}, "pip install 'ray\\[client\\]'"),
    ],
)
def test_what_is_refused_before_the_cluster_is_asked(
    command: str, variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "check_port", lambda address, host_and_port: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"^ADDRESS={ADDRESS}.*{words}"):
        remote_command(command, parse_options({"ADDRESS": ADDRESS, **variables}), Terminal(as_json=False))


def test_commands_that_train_on_ray_go_there_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    went: list[str] = []
    monkeypatch.setattr(module, "remote_command", lambda command, *_: went.append(command))
    monkeypatch.setattr(main, "_command", lambda name: lambda options, terminal: 0)
    for command in ("run", "resume", "train", "list"):
        main.main([command, f"ADDRESS={ADDRESS}"])
    main.main(["run", "ADDRESS=auto"])
    assert went == ["run", "resume"]


def test_paths_of_this_machine_are_taken_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plateau").mkdir()
    (tmp_path / "mine.toml").touch()
    monkeypatch.chdir(tmp_path)
    values = {"SPACE": "mine.toml", "GPT2_MODEL_NAME": "tiny", "TRAINING_DATA_SOURCE": "plateau"}
    found = {name: _on_disk(name, parse_options(values)) for name in values}
    assert found == {
        "SPACE": tmp_path / "mine.toml",
        "GPT2_MODEL_NAME": None,
        "TRAINING_DATA_SOURCE": tmp_path / "plateau",
    }
    assert _on_disk("SPACE", parse_options({"SPACE": "plateau"})) is None


def test_the_studies_a_command_reads_are_known(tmp_path: Path) -> None:
    for name in ("one", "attribute-one-9", "two"):
        (tmp_path / name).mkdir()
    storage = str(tmp_path)
    assert _studies_read("run", {"STUDY": "new", "BASELINE": "before", "WARM_START": "one"}, storage) == ["one"]
    assert _studies_read("resume", {"STUDY": "one", "BASELINE": "two"}, storage) == ["two", "one"]
    assert _studies_read("attribute", {"STUDY": "one"}, storage) == ["one", "attribute-one-9"]
    assert _studies_read("attribute", {"FROM": "before"}, str(tmp_path / "none")) == []


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HeadCommand:
    """The actor as a plain object of this process."""
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    monkeypatch.setenv("STUDIES_DIR", os.environ["STUDIES_DIR"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return HeadCommand()


def heard(head: HeadCommand) -> tuple[list[tuple[str, str]], int]:
    said: list[tuple[str, str]] = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        lines, code = head.news()
        said += lines
        if code is not None:
            return said, code
        time.sleep(0.05)
    raise AssertionError(said)


def test_a_commands_words_streams_and_exit_code_come_back(head: HeadCommand, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("taken along")
    shared = share(text, str(tmp_path / "shared"))
    head.start("spaces", {}, {"TRAINING_DATA_SOURCE": shared}, str(tmp_path / "shared"), as_json=False)
    said, code = heard(head)
    assert code == 0
    assert any(stream == "stdout" and "plateau" in line for stream, line in said)
    assert head.hand_over(str(tmp_path / "shared")) == []
    assert not list(tmp_path.glob("gpt2-search-*"))
    assert shared.local().read_text() == "taken along"


def test_ctrl_c_reaches_a_command_whose_worker_blocks_it(head: HeadCommand, tmp_path: Path, text_file: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        head.start("preflight", {"TRAINING_DATA_SOURCE": str(text_file)}, {}, str(tmp_path), as_json=False)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    lines, code = head.news()
    while not lines and code is None:
        time.sleep(0.05)
        lines, code = head.news()
    head.send_signal(signal.SIGINT)
    said, code = heard(head)
    assert code == 130, said


def test_a_mistake_comes_back_as_one(head: HeadCommand, tmp_path: Path) -> None:
    head.start("spaces", {"SPACE": "nowhere"}, {}, str(tmp_path), as_json=True)
    said, code = heard(head)
    assert code == 2
    assert [line for stream, line in said if stream == "stderr"][-1].startswith("error: ")
    assert ("stdout", "{") in said
