"""Slots of one machine and of a cluster: every one of them is on one device, and all fit at once."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from search.cluster.connection import Node
from search.options import parse_options, read_options
from search.setup.reopen import with_inputs_of
from search.setup.slots import slots_for
from search.tune.resources import Slots, slot_notes, slots_on
from trainable.config import TrialConfig
from trainable.device.device import DeviceInfo
from trainable.device.speed_probe import Probe
from trainable.errors import UserError


@pytest.mark.parametrize(
    ("device", "count", "cores", "concurrency", "gpu_frac", "slots"),
    [
        ("cpu", 2, 2, None, 1.0, (2, 1, 0)),
        ("cpu", 8, 8, 2, 1.0, (2, 1, 0)),
        ("cpu", 2, 2, 5, 1.0, (5, 1, 0)),
        ("mps", 1, 10, None, 1.0, (1, 10, 0)),
        ("mps", 1, 10, 2, 1.0, (2, 5, 0)),
        ("cuda", 1, 16, None, 1.0, (1, 16, 1.0)),
        ("cuda", 4, 16, None, 1.0, (4, 4, 1.0)),
        ("cuda", 1, 16, None, 0.25, (4, 4, 0.25)),
        ("cuda", 1, 16, None, 0.3, (3, 5, 0.3)),
        ("cuda", 2, 16, None, 0.5, (4, 4, 0.5)),
        ("cuda", 1, 16, 4, 1.0, (4, 4, 0.25)),
        ("cuda", 8, 4, None, 1.0, (8, 1, 1.0)),
        # Two on one GPU and one on the other.
        ("cuda", 2, 16, 3, 1.0, (3, 5, 0.5)),
        # Two on each: a fifth would span both.
        ("cuda", 2, 16, None, 0.4, (4, 4, 0.4)),
        ("cuda", 2, 16, 3, 0.4, (3, 5, 0.4)),
        ("cuda", 2, 16, 1, 1.0, (1, 16, 1.0)),
        # More than GPU_FRACTION gives room for: the shares shrink.
        ("cuda", 2, 16, 7, 0.4, (7, 2, 0.25)),
        # Ray counts in ten-thousandths, and six of 0.1667 are more than one GPU.
        ("cuda", 1, 16, 6, 1.0, (6, 2, 0.1666)),
        ("cuda", 1, 16, None, 1 / 3, (3, 5, 0.3333)),
        ("cuda", 3, 2, 4, 1.0, (4, 1, 0.5)),
    ],
)
def test_slots_of_one_machine(
    device: str, count: int, cores: int, concurrency: int | None, gpu_frac: float, slots: tuple[int, int, float]
) -> None:
    here = Node(name="here", cpus=cores, gpus=count if device == "cuda" else 0, is_ours=True)
    got = slots_on([here], device, concurrency=concurrency, gpu_frac=gpu_frac)
    assert got == Slots(count=slots[0], threads=slots[1], gpu_frac=slots[2], on_mps=device == "mps")
    if device == "cuda":
        a_gpu = 10_000 // round(got.gpu_frac * 10_000)
        assert math.ceil(got.count / count) <= a_gpu


@pytest.mark.parametrize(
    ("shapes", "device", "concurrency", "gpu_frac", "slots"),
    [
        ([(4, 0), (4, 0)], "cpu", None, 1.0, (8, 1, 0)),
        ([(4, 0), (4, 0)], "cpu", 2, 1.0, (2, 1, 0)),
        ([(8, 0), (1, 0)], "cpu", 3, 1.0, (3, 1, 0)),
        ([(2, 0)], "cpu", 5, 1.0, (2, 1, 0)),
        ([(16, 2), (16, 2)], "cuda", None, 1.0, (4, 8, 1.0)),
        ([(4, 2), (60, 2)], "cuda", None, 1.0, (4, 2, 1.0)),
        ([(16, 2), (64, 0)], "cuda", None, 1.0, (2, 8, 1.0)),
        ([(16, 2)], "cuda", None, 0.5, (4, 4, 0.5)),
        ([(16, 2)], "cuda", None, 0.4, (4, 4, 0.4)),
        ([(16, 2)], "cuda", 4, 1.0, (4, 4, 0.5)),
        ([(16, 2)], "cuda", 3, 1.0, (3, 5, 0.5)),
        ([(16, 1), (16, 1)], "cuda", 3, 1.0, (3, 8, 0.5)),
        ([(2, 4)], "cuda", None, 1.0, (2, 1, 1.0)),
        ([(8, 0), (10, 0)], "mps", None, 1.0, (2, 8, 0)),
        ([(8, 0), (10, 0)], "mps", 3, 1.0, (3, 4, 0)),
    ],
)
def test_slots_of_a_cluster_fit_on_its_nodes(
    shapes: list[tuple[int, int]],
    device: str,
    concurrency: int | None,
    gpu_frac: float,
    slots: tuple[int, int, float],
) -> None:
    nodes = [Node(name=f"{cpus}x{gpus}", cpus=cpus, gpus=gpus) for cpus, gpus in shapes]
    got = slots_on(nodes, device, concurrency=concurrency, gpu_frac=gpu_frac)
    assert got == Slots(count=slots[0], threads=slots[1], gpu_frac=slots[2], on_mps=device == "mps")


@pytest.mark.parametrize(
    ("nodes", "device", "concurrency", "count"),
    [
        ([Node(name="here", cpus=8, gpus=0, is_ours=True)], "cpu", None, 2),
        ([Node(name="here", cpus=8, gpus=0, is_ours=True)], "cpu", 5, 5),
        # A study that was moved to a smaller machine.
        ([Node(name="here", cpus=2, gpus=0, is_ours=True)], "cpu", None, 1),
        ([Node(name="here", cpus=2, gpus=2, is_ours=True)], "cuda", None, 2),
        ([Node(name="a", cpus=8, gpus=0), Node(name="b", cpus=3, gpus=0)], "cpu", None, 2),
        ([Node(name="a", cpus=8, gpus=0), Node(name="b", cpus=4, gpus=0)], "cpu", 9, 3),
    ],
)
def test_threads_are_what_the_user_says(nodes: list[Node], device: str, concurrency: int | None, count: int) -> None:
    slots = slots_on(nodes, device, concurrency=concurrency, gpu_frac=1.0, threads=4)
    assert (slots.count, slots.threads) == (count, 4)


@pytest.mark.parametrize(
    ("device", "concurrency", "said"),
    [
        ("cpu", 33, "CONCURRENCY=33: at most 16 trials share a CPU core, 32 in all here"),
        ("cuda", 10**9, "CONCURRENCY=1000000000: at most 16 trials share a GPU, 16 in all here"),
        ("mps", 17, "CONCURRENCY=17: at most 16 trials share a GPU, 16 in all here"),
    ],
)
def test_more_trials_than_a_machine_could_start_are_refused(device: str, concurrency: int, said: str) -> None:
    here = Node(name="here", cpus=2, gpus=int(device == "cuda"), is_ours=True)
    assert slots_on([here], device, concurrency=16, gpu_frac=1.0).count == 16
    with pytest.raises(UserError, match=said):
        slots_on([here], device, concurrency=concurrency, gpu_frac=1.0)


def test_more_threads_than_any_node_has_are_refused() -> None:
    with pytest.raises(UserError, match=r"THREADS=9: no node of the cluster has more than 8 CPUs. Lower it."):
        slots_on([Node(name="a", cpus=8, gpus=0)], "cpu", concurrency=None, gpu_frac=1.0, threads=9)


@pytest.mark.parametrize(
    ("slots", "on_device", "memory_frac"),
    [
        (Slots(count=4, threads=1, gpu_frac=0), 4, 1.0),
        (Slots(count=4, threads=1, gpu_frac=1.0), 1, 1.0),
        (Slots(count=4, threads=1, gpu_frac=0.4), 2, 0.4),
        (Slots(count=1, threads=1, gpu_frac=0.25), 1, 0.25),
        (Slots(count=2, threads=1, gpu_frac=0, on_mps=True), 2, 0.5),
        (Slots(count=8, threads=1, gpu_frac=0.5, address="auto"), 1, 0.5),
    ],
)
def test_memory_is_shared_by_the_trials_on_one_device(slots: Slots, on_device: int, memory_frac: float) -> None:
    assert (slots.count_on_device, slots.memory_frac) == (on_device, memory_frac)


def test_a_macs_gpu_is_counted_by_ray_and_taken_by_one_trial_unless_more_are_asked_for() -> None:
    here = Node(name="here", cpus=8, gpus=0, is_ours=True)
    one, two = (slots_on([here], "mps", concurrency=concurrency, gpu_frac=1.0) for concurrency in (None, 2))
    assert (one.a_trial, one.of_the_machine) == ({"cpu": 1, "gpu": 0, "mps": 1}, {"mps": 1})
    assert (two.a_trial, two.of_the_machine) == ({"cpu": 1, "gpu": 0, "mps": 1}, {"mps": 2})
    assert slot_notes(one, None, threads=None) == []
    assert "CONCURRENCY=2: the trials take turns on the Mac's one GPU" in slot_notes(two, None, threads=None)[0]
    on_a_cpu = slots_on([here], "cpu", concurrency=2, gpu_frac=1.0)
    assert (on_a_cpu.a_trial, on_a_cpu.of_the_machine) == ({"cpu": 1, "gpu": 0}, {})


def test_what_is_measured_is_the_largest_configuration_with_its_context_and_reserve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[TrialConfig] = []

    def probe(spec: object, config: TrialConfig, *, count: int, threads: int) -> Probe:
        measured.append(config)
        return Probe(count=count, threads=threads, tokens_per_s=100.0 * count, peak_memory_bytes=5 << 30)

    monkeypatch.setattr("trainable.device.speed_probe.probe", probe)
    monkeypatch.setattr("trainable.device.device_memory.memory_bytes", lambda device_type: 16 << 30)
    loaded: Any = SimpleNamespace(device_info=DeviceInfo(type="cuda", name="a GPU", count=1), cluster=None, spec=None)
    options = parse_options({"CONCURRENCY": "auto"})
    largest = TrialConfig(batch_size=64, block_size=512, grad_accum_steps=32)
    progress: Any = lambda what, done: None  # noqa: E731
    # Two of 5 GiB fit into 16, four do not.
    assert slots_for(loaded, options, largest, progress).count == 2
    # Five steps of 32 micro-batches may take longer than is waited for.
    assert measured == [replace(largest, grad_accum_steps=2)] * 2


@pytest.mark.parametrize(
    ("concurrency", "threads", "slots", "note"),
    [
        (None, None, (8, 1), None),
        (1, None, (1, 1), "7 of 8 cores stay idle. THREADS=8 gives each trial 8 threads"),
        (3, None, (3, 1), "5 of 8 cores stay idle. THREADS=2 gives each trial 2 threads"),
        (5, None, (5, 1), None),
        (1, 4, (1, 4), None),
        (None, 4, (2, 4), None),
        (12, 1, (12, 1), None),
        (1, 12, (1, 12), "THREADS=12 on 8 cores: the threads wait for each other."),
        ("auto", None, (1, 8), None),
        ("auto", 2, (4, 2), None),
    ],
)
def test_a_trials_threads_do_not_depend_on_how_many_run_at_once(
    concurrency: Any, threads: int | None, slots: tuple[int, int], note: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(spec: object, config: TrialConfig, *, count: int, threads: int) -> Probe:
        speed = {1: 100.0, 4: 200.0, 8: 50.0}[count]
        return Probe(count=count, threads=threads, tokens_per_s=speed, peak_memory_bytes=0)

    monkeypatch.setattr("trainable.device.speed_probe.probe", probe)
    monkeypatch.setattr("trainable.device.device.cpu_cores", lambda: 8)
    loaded: Any = SimpleNamespace(device_info=DeviceInfo(type="cpu", name="a CPU", count=1), cluster=None, spec=None)
    options = parse_options(
        {name: str(value) for name, value in {"CONCURRENCY": concurrency, "THREADS": threads}.items() if value}
    )
    progress: Any = lambda what, done: None  # noqa: E731
    found = slots_for(loaded, options, TrialConfig(), progress)
    assert (found.count, found.threads) == slots
    assert [words[: len(note or "")] for words in found.notes] == ([note] if note else [])


@pytest.mark.parametrize(
    ("device", "asked", "threads"), [("cpu", [], 4), ("cpu", ["THREADS=2"], 2), ("cuda", [], None)]
)
def test_a_reopened_study_goes_on_with_the_threads_of_its_trials(
    device: str, asked: list[str], threads: int | None
) -> None:
    document = {"model": "tiny", "device": {"type": device, "threads_per_slot": 4}}
    assert with_inputs_of(document, read_options(asked)).threads == threads


def test_a_study_goes_on_training_as_it_began() -> None:
    own = {"type": "cuda", "compile": "off", "gradient_checkpointing": True}
    for words, found in (
        ([], ("off", True)),
        (["COMPILE=1"], ("on", True)),
        (["GRADIENT_CHECKPOINTING=0"], ("off", False)),
    ):
        options = with_inputs_of({"model": "tiny", "device": own}, read_options(words))
        assert (options.compile, options.gradient_checkpointing) == found
    assert with_inputs_of({"model": "tiny", "device": {"type": "cpu"}}, read_options([])).compile == "auto"
