"""The record of a preflight that passed: what brings it back, and what makes preflight run again."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from search.options import Options
from search.setup import preflight_run
from search.setup.inputs import Loaded
from search.setup.preflight_run import (
    Preflight,
    PreflightRecord,
    check_preflight,
    read_record,
    record_path,
    write_record,
)
from search.terminal.console import Terminal
from trainable.config import TrialConfig
from trainable.evaluation import EvalProtocol
from trainable.preflight.check_result import Check
from trainable.preflight.configuration import PRECISION
from trainable.preflight.memory import DISK, MEMORY, CheckpointRoom

FACTS: Mapping[str, Any] = {
    "model_fingerprint": "m",
    "checkpoint_fingerprint": None,
    "corpus": {"fingerprint": "c"},
}
RECORD = PreflightRecord(
    passed_at=datetime(2026, 1, 2, 3, 4),
    learning_rate=1e-5,
    batch_size=32,
    block_size=128,
    runs=2,
    memory_frac=0.5,
    needed_bytes={MEMORY: 1000, DISK: 100},
)


@pytest.fixture(autouse=True)
def own_cache(own_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))


@pytest.fixture
def make_loaded() -> Callable[..., Loaded]:
    def make(device: str = "cpu", tokens: int = 1024, recomputed: bool = False, **facts: Any) -> Loaded:
        protocol = EvalProtocol(tokens=tokens)
        spec = SimpleNamespace(device=device, protocol=protocol, gradient_checkpointing=recomputed)
        chip, inputs = SimpleNamespace(name="a chip"), SimpleNamespace(options=Options())
        parts = SimpleNamespace(facts={**FACTS, **facts}, spec=spec, device_info=chip, inputs=inputs)
        return cast("Loaded", parts)

    return make


def test_a_record_comes_back_for_the_same_inputs_and_their_warnings_with_it(make_loaded: Callable[..., Loaded]) -> None:
    warning = {"name": "initial loss", "status": "warn", "measured": "m", "expected": "e", "advice": "a"}
    path = record_path(looked_at(make_loaded(), TrialConfig()))
    assert read_record(path) is None
    write_record(path, replace(RECORD, warnings=[warning]))
    # What preflight's own steps replace is no other input.
    again = record_path(looked_at(make_loaded(), TrialConfig(learning_rate=1e-3, seed=7, batch_size=8)))
    assert again == path
    assert read_record(again) == replace(RECORD, warnings=[warning])


@pytest.mark.parametrize(
    "changed",
    [
        {"model_fingerprint": "other"},
        {"checkpoint_fingerprint": "k"},
        {"corpus": {"fingerprint": "other"}},
        {"device": "cuda"},
        {"tokens": 2048},
        {"recomputed": True},
    ],
)
def test_a_changed_input_has_no_record(changed: dict[str, Any], make_loaded: Callable[..., Loaded]) -> None:
    write_record(record_path(looked_at(make_loaded(), TrialConfig())), RECORD)
    assert read_record(record_path(looked_at(make_loaded(**changed), TrialConfig()))) is None


def test_neither_has_another_precision_or_program(
    make_loaded: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(record_path(looked_at(make_loaded(), TrialConfig())), RECORD)
    assert read_record(record_path(looked_at(make_loaded(), TrialConfig(precision="bf16")))) is None
    monkeypatch.setattr(preflight_run, "_program", lambda: "changed")
    assert read_record(record_path(looked_at(make_loaded(), TrialConfig()))) is None


def test_neither_has_a_space_that_trains_every_weight_where_adapters_alone_were_looked_at(
    make_loaded: Callable[..., Loaded],
) -> None:
    adapters = looked_at(make_loaded(), TrialConfig(use_lora=True))
    write_record(record_path(adapters), RECORD)
    others: list[dict[str, Any]] = [{"use_lora": False}, {"lora_rank": 64}, {"precision": "bf16"}]
    for changed in others:
        largest = replace(adapters.config, **changed)
        assert read_record(record_path(replace(adapters, largest=largest))) is None
    assert read_record(record_path(replace(adapters, largest=TrialConfig(use_lora=True, batch_size=1)))) is not None


def looked_at(loaded: Loaded, config: TrialConfig, **others: Any) -> Preflight:
    return Preflight(loaded=loaded, config=config, largest=config, **others)


def asked(
    loaded: Loaded, *, room: CheckpointRoom | None = None, runs: int = 1, share: float = 1, **size: Any
) -> Preflight:
    config = TrialConfig(**{"batch_size": 32, "block_size": 128, **size})
    return looked_at(loaded, config, room=room, runs=runs, memory_frac=share)


def test_a_larger_batch_a_longer_block_a_smaller_rate_more_runs_and_a_smaller_share_are_looked_at_again(
    make_loaded: Callable[..., Loaded],
) -> None:
    loaded = make_loaded()
    two = partial(asked, loaded, runs=2, share=0.5)
    assert RECORD.covers(two())
    assert RECORD.covers(asked(loaded, batch_size=64, block_size=64, learning_rate=1e-3))
    for size in ({"batch_size": 33}, {"batch_size": 1, "block_size": 256}, {"learning_rate": 1e-9}):
        assert not RECORD.covers(two(**size))
    assert not RECORD.covers(asked(loaded, runs=3, share=0.5))
    assert not RECORD.covers(asked(loaded, runs=2, share=0.4))


def test_a_rate_that_was_rounded_away_says_nothing_of_a_larger_one(make_loaded: Callable[..., Loaded]) -> None:
    """Its warning would be repeated to a run whose steps are not."""
    warned = replace(RECORD, warnings=[{"name": PRECISION, "status": "warn"}])
    covered = [warned.covers(asked(make_loaded(), learning_rate=rate)) for rate in (1e-6, 1e-5, 1e-3)]
    assert covered == [False, True, False]


def test_a_machine_or_a_disk_that_has_less_left_is_looked_at_again(
    make_loaded: Callable[..., Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, left = CheckpointRoom(folder=tmp_path / "there", count=3), {"memory": 1000, "disk": 300}
    monkeypatch.setattr("trainable.device.device_memory._free_bytes", lambda device: left["memory"])
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=left["disk"]))
    preflight = asked(make_loaded(), room=room)
    assert RECORD.covers(preflight)
    left["disk"] = 299
    assert not RECORD.covers(preflight)
    assert RECORD.covers(replace(preflight, room=CheckpointRoom(folder=None, count=3)))
    left.update(disk=300, memory=999)
    assert not RECORD.covers(preflight)
    # Nobody looked at a disk.
    left.update(memory=1000)
    assert not replace(RECORD, needed_bytes={}).covers(preflight)
    assert replace(RECORD, needed_bytes={}).covers(replace(preflight, room=None))


def test_a_run_that_is_not_checked_again_is_warned_of_its_own_rate(
    make_loaded: Callable[..., Loaded], capsys: pytest.CaptureFixture[str]
) -> None:
    of_another = Check(name="learning-rate schedule", status="warn", measured="another's", expected="e", advice="")
    for rate, is_warned in ((1e-3, False), (3.0, True)):
        preflight = asked(make_loaded(), learning_rate=rate)
        write_record(record_path(preflight), replace(RECORD, warnings=[asdict(of_another)]))
        check_preflight(preflight, Terminal(as_json=False))
        said = capsys.readouterr().out
        assert "passed before" in said
        assert "another's" not in said
        assert ("Lower LEARNING_RATE" in said) == is_warned


def test_a_damaged_record_is_none_nor_is_one_of_an_earlier_form(make_loaded: Callable[..., Loaded]) -> None:
    path = record_path(looked_at(make_loaded(), TrialConfig()))
    write_record(path, RECORD)
    whole = json.loads(path.read_text())
    of_before = {name: value for name, value in whole.items() if name not in ("learning_rate", "needed_bytes")}
    for text in ("{", "[]", json.dumps(of_before)):
        path.write_text(text)
        assert read_record(path) is None


def test_a_check_that_fails_ends_the_command_with_one_document(
    make_loaded: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = Check(name="labels", status="fail", measured="m", expected="e", advice="")
    monkeypatch.setattr(preflight_run, "_checks", lambda preflight: [failed])
    preflight = looked_at(make_loaded(), TrialConfig())
    with pytest.raises(SystemExit) as ended:
        check_preflight(preflight, Terminal(as_json=True))
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out) == {"passed": False, "checks": [asdict(failed)]}
    assert read_record(record_path(preflight)) is None


@pytest.mark.parametrize(("device", "read_there"), [("cpu", False), ("cuda", True), ("mps", True)])
def test_preflight_has_a_process_of_its_own_where_only_its_end_gives_memory_back(
    device: str, read_there: bool, make_loaded: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "trainable.device.own_process.in_own_process", lambda *args, **kwargs: asked.append((args, kwargs))
    )
    loaded: Any = make_loaded(device)
    loaded.tokenizer, loaded.inputs.files = None, ()
    checkpoint: Any = SimpleNamespace(path=Path("run.pt"))
    preflight_run._checks(looked_at(loaded, TrialConfig(), runs=2, checkpoint=checkpoint))
    ((device_type, work, _, _, *sharing), kwargs) = asked[0]
    assert (device_type, work, sharing) == (device, preflight_run._preflight, [2, 1.0])
    assert kwargs["checkpoint"] == (checkpoint.path if read_there else checkpoint)
