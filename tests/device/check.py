"""What a device does with the training loop: right, how fast, within which memory. Neither Ray nor a study.

`python tests/device/check.py [DEVICE]`: under eight minutes on one GPU; a CPU runs a small form of it, on one thread.
It prints a table and writes tests/device/results/DEVICE'S NAME.json. Checks that fail end it with exit code 1.
"""

import argparse
import json
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])

import torch

from tests.benchmarks import peers, step_speed
from tests.benchmarks.peers import Case
from tests.benchmarks.turns import interleaved
from trainable.checkpoint.checkpoint_store import BackgroundSaver, CheckpointStore
from trainable.config import TrialConfig
from trainable.data.tokens import sample_batch
from trainable.device.device import device_info, pick_device
from trainable.device.device_memory import GIB, is_out_of_memory, prepare_memory, release_memory
from trainable.device.own_process import in_own_process
from trainable.device.speed_probe import probe
from trainable.evaluation import EvalProtocol
from trainable.loop import train
from trainable.preflight.memory import estimate_step_bytes
from trainable.rows import StepRow
from trainable.run import RunSpec, start_run

EQUAL_STEPS = 20
MOST_NATS_OFF = {"fp32": 2e-3, "bf16": 0.05}
"""Of 20 steps' losses from the CPU's in fp32: rounding that Adam's first steps enlarge, and bf16's own."""
ESTIMATE_RANGE = (0.7, 1.5)
"""Peak over estimate: kernels and the allocator add, and other attention kernels save."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the checks are made on."""

    device: torch.device
    folder: Path

    @property
    def is_cpu(self) -> bool:
        """Whether this is the small form."""
        return self.device.type == "cpu"

    def case(self, batch_size: int = 32, block_size: int = 128, precision: str = "bf16") -> Case:
        """Return a comparison on the model of the device's size."""
        return Case(
            model_name="tiny-scratch" if self.is_cpu else "gpt2-scratch",
            batch_size=batch_size,
            block_size=block_size,
            precision=precision,
            device=self.device.type,
        )

    def spec(self, case: Case, device: str | None = None) -> RunSpec:
        """Return the fixed part of the case's runs."""
        return RunSpec(
            model_name=case.model_name,
            corpus=peers.write_corpus(self.folder, case.shape["vocab_size"]),
            protocol=EvalProtocol(block_size=case.block_size, tokens=case.block_size),
            device=device or self.device.type,
            unigram_entropy=math.nan,
            compile_mode="off",
        )


Row = dict[str, Any]


def equality(bench: Bench) -> Iterator[Row]:
    """Yield how far 20 losses are from those of transformers' own model and torch's plain AdamW on the CPU."""
    config = TrialConfig(batch_size=4, block_size=64, learning_rate=1e-3, training_steps=EQUAL_STEPS, dropout=0.0)
    spec = replace(bench.spec(bench.case()), model_name="tiny-scratch")
    spec = replace(spec, corpus=peers.write_corpus(bench.folder, 2048))
    expected = _plain_losses(spec, config)
    for precision, most in MOST_NATS_OFF.items():
        state = start_run(spec, replace(config, precision=precision))
        rows = train(state, spec.corpus, spec.protocol, eval_steps=(), stop_on=())
        losses = [row.train_loss for row in rows if isinstance(row, StepRow)]
        off = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        yield {"precision": precision, "steps": EQUAL_STEPS, "most_nats_off": off, "ok": off <= most}


def _plain_losses(spec: RunSpec, config: TrialConfig) -> list[float]:
    ours = start_run(replace(spec, device="cpu"), config)
    model = peers.hf_model(Case(model_name=spec.model_name, batch_size=1, block_size=1, precision="fp32", device="cpu"))
    model.load_state_dict(ours.model.state_dict())
    model.eval()  # no dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    losses = []
    for _ in range(config.training_steps):
        windows = sample_batch(spec.corpus.train, config, ours.batches)
        optimizer.zero_grad()
        logits = model(input_ids=windows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def speed(bench: Bench) -> Iterator[Row]:
    """Yield a step against its peers', its share of the products' ceiling, and what compiling the layers gains."""
    # On a CPU `make bench` compares more, and takes its time.
    cases = [(32, 128, "fp32"), (32, 128, "bf16"), (8, 256, "bf16")][: 1 if bench.is_cpu else None]
    for shape in cases:
        case = bench.case(*shape)
        corpus = peers.write_corpus(bench.folder, case.shape["vocab_size"])
        loops: dict[str, Any] = {name: partial(loop, case, corpus) for name, loop in step_speed.PEERS.items()}
        loops["ours"] = partial(peers.ours, case, corpus, compile_mode="off")
        loops["ours compiled"] = partial(peers.ours, case, corpus, compile_mode="on")
        if find_spec("liger_kernel") is not None and not bench.is_cpu:
            loops["liger"] = partial(peers.liger, case, corpus)
        if find_spec("accelerate") is None:
            del loops["Trainer"]
        if bench.device.type == "mps":
            del loops["ours compiled"]
        rounds, steps = (3, 1) if bench.is_cpu else (5, 20)
        found = interleaved(loops, rounds=rounds, warm_up_steps=2, steps=steps, device=bench.device.type)
        base = found["ours"].step_ms
        ceiling = step_speed.gemm_ceiling(case)
        for name, one in found.items():
            ratios = [a / b for a, b in zip(one.step_ms, base, strict=True)]
            step_ms = statistics.median(one.step_ms)
            yield {
                "case": case.words,
                "loop": name,
                "step_ms": step_ms,
                "times_ours": statistics.median(ratios),
                "share_of_products": step_speed.flops_per_step(case) / (step_ms / 1e3) / ceiling,
                "peak_mib": one.peak_memory_mib,
            }


def side_by_side(bench: Bench) -> Iterator[Row]:
    """Yield the tokens per second of one and of two trials on the device."""
    # A CPU may have to imitate bf16: 14 s a step.
    case = bench.case(8, 128, "fp32" if bench.is_cpu else "bf16")
    one, two = (probe(bench.spec(case), peers.config_of(case), count=count, threads=1, seconds=4.0) for count in (1, 2))
    gain = two.tokens_per_s / one.tokens_per_s if one.tokens_per_s else math.nan
    yield {"case": case.words, "one_tokens_per_s": one.tokens_per_s, "two_times_one": gain, "ok": two.tokens_per_s > 0}


def out_of_memory(bench: Bench) -> Iterator[Row]:
    """Yield whether a run that does not fit is told from a fault, gives its memory back, and the next one trains."""
    small, large = bench.case(1, 64), bench.case(4096, 512)
    share_frac = min(1.0, 4 * GIB / _total_bytes(bench.device))
    prepare_memory(bench.device, share_frac=share_frac)
    told = _trains(bench, large) is None
    release_memory(bench.device)
    left = _allocated_bytes(bench.device)
    loss = _trains(bench, small)
    ok = told and loss is not None and math.isfinite(loss) and left < GIB / 8
    yield {"large_was_told": told, "left_mib": left / (1 << 20), "next_loss": loss, "ok": ok}


def _trains(bench: Bench, case: Case) -> float | None:
    spec = bench.spec(case)
    try:
        state = start_run(spec, replace(peers.config_of(case), training_steps=2))
        rows = list(train(state, spec.corpus, spec.protocol, eval_steps=(), stop_on=()))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return [row.train_loss for row in rows if isinstance(row, StepRow)][-1]


def checkpoint(bench: Bench) -> Iterator[Row]:
    """Yield how long a checkpoint stops training, and how long until it is written."""
    case = bench.case(1, 64)
    spec = bench.spec(case)
    state = start_run(spec, replace(peers.config_of(case), training_steps=1))
    for _ in train(state, spec.corpus, spec.protocol, eval_steps=(), stop_on=()):
        pass
    saver = BackgroundSaver(CheckpointStore(root=str(bench.folder), trial_id=0))
    started = time.perf_counter()
    saver.save(state, model_name=case.model_name, corpus_fingerprint=spec.corpus.fingerprint)
    stall_s = time.perf_counter() - started
    saver.wait()
    yield {"model": case.model_name, "stall_ms": 1e3 * stall_s, "written_s": time.perf_counter() - started}


def memory(bench: Bench) -> Iterator[Row]:
    """Yield the estimate of a step's memory against the peak of two real ones."""
    for precision in ("fp32", "bf16"):
        case = bench.case(32, 128, precision)
        spec, config = bench.spec(case), replace(peers.config_of(case), training_steps=2)
        state = start_run(spec, config)
        estimate = estimate_step_bytes(state.model, config)
        before = _peak_bytes(bench.device)
        for _ in train(state, spec.corpus, spec.protocol, eval_steps=(), stop_on=()):
            pass
        # A CPU's peak is the process's: what came before the steps is taken off, but for the weights.
        weights = sum(weight.numel() * 4 for weight in state.model.parameters()) if bench.is_cpu else 0
        peak = _peak_bytes(bench.device) - (before if bench.is_cpu else 0) + weights
        ratio = peak / estimate
        low, high = ESTIMATE_RANGE
        # In one process the second precision would show no peak of its own on a CPU.
        ok = bench.is_cpu or low <= ratio <= high
        yield {"case": case.words, "estimate_mib": estimate >> 20, "peak_over_estimate": ratio, "ok": ok}
        if bench.is_cpu:
            return


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _allocated_bytes(device: torch.device) -> int:
    return int(torch.cuda.memory_allocated() if device.type == "cuda" else torch.mps.current_allocated_memory())


def _total_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(torch.mps.recommended_max_memory())


CHECKS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "equality": equality,
    "memory": memory,
    "checkpoint": checkpoint,
    "out_of_memory": out_of_memory,
    "side_by_side": side_by_side,
    "speed": speed,
}
ELSEWHERE_THAN_ON_A_CPU = ("out_of_memory",)
"""A CPU's memory is everybody's: running out of it would be others' end too."""
WITH_PROCESSES_OF_THEIR_OWN = ("side_by_side", "speed")


def checked(name: str, device: str, folder: Path) -> Iterator[Row]:
    """Yield a check's rows, or what it failed with."""
    torch.set_num_threads(1)
    try:
        yield from CHECKS[name](Bench(device=torch.device(device), folder=folder))
    except Exception as error:
        yield {"ok": False, "failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def words(row: Row) -> str:
    """Return a row of the table."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
    return "  ".join(f"{name} {value}" for name, value in shown.items())


def main() -> int:
    """Run every check that applies, print its rows as they come, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("device", nargs="?", help="cuda, mps or cpu (default: the first there is)")
    parser.add_argument(
        "--only", choices=list(CHECKS), action="append", help="these checks alone; the file keeps the others"
    )
    arguments = parser.parse_args()
    assert "ray" not in sys.modules, "a machine that is lent for this need not have it"
    device = pick_device(arguments.device)
    name = device_info(device).name
    path = Path(__file__).parent / "results" / f"{'-'.join(name.lower().split())}.json"
    path.parent.mkdir(exist_ok=True)
    before = json.loads(path.read_text()) if arguments.only and path.exists() else {}
    document: dict[str, Any] = {"device": name, "torch": torch.__version__, "threads": 1}
    document["checks"] = before.get("checks", {})
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CACHE_DIR"] = folder
        for check in arguments.only or CHECKS:
            if device.type == "cpu" and check in ELSEWHERE_THAN_ON_A_CPU:
                continue
            rows = document["checks"][check] = []
            # Also on a CPU: memory's peak is the process's.
            where = "cpu" if check in WITH_PROCESSES_OF_THEIR_OWN else "cuda"
            for row in in_own_process(where, checked, check, device.type, Path(folder)):
                rows.append(row)
                print(f"{check:<14}", words(row), flush=True)
            path.write_text(json.dumps(document, indent=2) + "\n")
    print(f"{time.monotonic() - started:.0f} s; {path}")
    return 0 if all(row.get("ok", True) for rows in document["checks"].values() for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
