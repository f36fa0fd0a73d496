"""A training step against transformers.Trainer, a naive loop and nanoGPT's style, like for like.

`python tests/benchmarks/step_speed.py [--quick]`: on a CPU about 8 minutes, one thread; on CUDA GPT-2 124M in bf16.
The peers run in processes of their own and take turns step by step; ratios are medians of the rounds' ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from tests.benchmarks import peers
from tests.benchmarks.peers import Case
from tests.benchmarks.turns import interleaved, now_s
from trainable.device.device import device_info, pick_device
from trainable.preflight.configuration import times_as_slow

RESULTS = Path(__file__).parent / "results"
PEERS = {"ours": peers.ours, "Trainer": peers.trainer, "naive": peers.naive, "nanoGPT style": peers.nano}
GOALS = {
    ("tiny-scratch", "fp32"): (2.0, 1.6),
    ("tiny-scratch", "bf16"): (2.6, None),
    ("gpt2-scratch", "fp32"): (1.3, None),
    ("wide-head", "fp32"): (2.0, None),
    ("llama-135m", "fp32"): (1.5, None),
}
"""Times faster than (Trainer, nanoGPT's style) that this project set itself, the bf16 one for CPUs with AMX."""
LADDER = ("chunked head", "and dropout", "and attention", "and linear layers")


def cases(device: str, quick: bool) -> list[tuple[Case, int]]:
    """Return what is compared, and in how many rounds."""
    if device == "cuda":
        sizes = [(32, 128), (8, 256)]
        return [(_case("gpt2-scratch", batch, block, "bf16", device), 5 if quick else 15) for batch, block in sizes]
    tiny = [(_case("tiny-scratch", 32, 128, precision, device), 5 if quick else 15) for precision in ("fp32", "bf16")]
    if quick:
        return tiny
    large = [("wide-head", 8, 128, "fp32"), ("wide-head", 8, 128, "bf16"), ("gpt2-scratch", 4, 128, "fp32")]
    return [*tiny, *((_case(*one, device), 5) for one in [*large, ("llama-135m", 2, 128, "fp32")])]


def _case(model_name: str, batch_size: int, block_size: int, precision: str, device: str) -> Case:
    return Case(model_name=model_name, batch_size=batch_size, block_size=block_size, precision=precision, device=device)


def compare(case: Case, rounds: int, folder: Path) -> dict[str, Any]:
    """Return each peer's time, memory and ratio to ours."""
    corpus = peers.write_corpus(folder, case.model_config.vocab_size)
    # What nanoGPT trains is a GPT-2.
    chosen = {
        name: loop for name, loop in PEERS.items() if loop is not peers.nano or case.model_config.model_type == "gpt2"
    }
    loops = {name: partial(loop, case, corpus) for name, loop in chosen.items()}
    found = interleaved(
        loops, rounds=rounds, warm_up_steps=3, steps=1 if case.device == "cpu" else 20, device=case.device
    )
    base = found["ours"].step_ms
    return {
        name: {
            "step_ms": statistics.median(one.step_ms),
            "times_slower": statistics.median(a / b for a, b in zip(one.step_ms, base, strict=True)),
            "quartiles": quartiles([a / b for a, b in zip(one.step_ms, base, strict=True)]),
            "peak_memory_mib": one.peak_memory_mib,
        }
        for name, one in found.items()
    }


def climb(case: Case, rounds: int, folder: Path) -> dict[str, Any]:
    """Return the gain of each of the CPU's tricks on top of those before, over the model as transformers makes it."""
    corpus = peers.write_corpus(folder, case.shape["vocab_size"])
    loops = {"naive": partial(peers.naive, case, corpus)}
    loops |= {name: partial(peers.ours_up_to, case, corpus, index) for index, name in enumerate(LADDER)}
    found = interleaved(loops, rounds=rounds, warm_up_steps=3)
    base = found["naive"].step_ms
    return {
        name: {
            "times_faster_than_naive": statistics.median(b / a for a, b in zip(one.step_ms, base, strict=True)),
            "quartiles": quartiles([b / a for a, b in zip(one.step_ms, base, strict=True)]),
        }
        for name, one in found.items()
    }


def flops_per_step(case: Case) -> float:
    """Return the model's floating-point operations of a step: 6 per weight of a product and token, and attention's.

    Kaplan et al. 2020, the head counted, the embedding's look-up not; causal attention counted in full.
    """
    config, tokens = case.model_config, case.batch_size * case.block_size
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear | Conv1D))
    return float(tokens * (6 * weights + 12 * config.num_hidden_layers * config.hidden_size * case.block_size))


def gemm_ceiling(case: Case) -> float:
    """Return the most FLOP/s that a product of the model's own shapes reaches here."""
    rows, width = case.batch_size * case.block_size, case.model_config.hidden_size
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    torch.set_num_threads(1)
    from trainable.device.cpu_kernels.linear import product

    best = 0.0
    for inner, outer in ((width, 3 * width), (width, 4 * width), (4 * width, width)):
        left = torch.randn(rows, inner, device=case.device, dtype=dtype)
        right = torch.randn(inner, outer, device=case.device, dtype=dtype)
        for multiply in (torch.mm, product):
            times_s = []
            for _ in range(12):
                started = now_s(case.device)
                multiply(left, right)
                times_s.append(now_s(case.device) - started)
            best = max(best, 2 * rows * inner * outer / statistics.median(times_s[2:]))
    return best


def quartiles(values: list[float]) -> list[float]:
    """Return the lower and the upper quartile."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def show(case: Case, found: dict[str, Any], console: Console) -> None:
    """Print a case's table."""
    goals = dict(zip(("Trainer", "nanoGPT style"), GOALS.get((case.model_name, case.precision), ()), strict=False))
    table = Table(title=f"{case.words} on {case.device}", title_justify="left")
    for heading in ("loop", "ms a step", "times slower than ours", "quartiles", "goal", "peak MiB"):
        table.add_column(heading)
    for name, one in found["loops"].items():
        low, high = one["quartiles"]
        goal = f"{goals[name]}" if goals.get(name) else ""
        ratio, memory = f"{one['times_slower']:.2f}", f"{one['peak_memory_mib']:.0f}"
        table.add_row(name, f"{one['step_ms']:.0f}", ratio, f"{low:.2f} to {high:.2f}", goal, memory)
    console.print(table)
    console.print(
        f"ours does {found['model_tflop_per_s']:.3f} model TFLOP/s, {found['share_of_gemm_ceiling']:.0%} of the "
        f"{found['gemm_ceiling_tflop_per_s']:.3f} that a product of its shapes reaches here"
    )


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, the small model alone")
    quick = parser.parse_args().quick
    device = pick_device(None).type
    info, console = device_info(torch.device(device)), Console(width=120)
    document: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "device": info.name, "threads": 1}
    document |= {"torch": torch.__version__, "cpu": cpu_words(), "cases": {}}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for case, rounds in cases(device, quick):
            if device == "cpu" and (times := times_as_slow(case.precision)) > 1:
                words = f"products take {times:.0f} times as long in {case.precision} as in fp32 here"
                console.print(f"{case.words}: left out, {words}")
                document["cases"][case.words] = {"left_out": words}
                continue
            found: dict[str, Any] = {"loops": compare(case, rounds, folder)}
            achieved = flops_per_step(case) / (found["loops"]["ours"]["step_ms"] / 1e3)
            ceiling = gemm_ceiling(case)
            found |= {"model_tflop_per_s": achieved / 1e12, "gemm_ceiling_tflop_per_s": ceiling / 1e12}
            found["share_of_gemm_ceiling"] = achieved / ceiling
            document["cases"][case.words] = found
            show(case, found, console)
        if device == "cpu":
            document["ladder"] = climb(cases(device, True)[0][0], 5 if quick else 11, folder)
            table = Table(title="the ladder, fp32, each trick on top of those before", title_justify="left")
            for heading in ("loop", "times faster than naive", "quartiles"):
                table.add_column(heading)
            for name, one in document["ladder"].items():
                low, high = one["quartiles"]
                table.add_row(name, f"{one['times_faster_than_naive']:.2f}", f"{low:.2f} to {high:.2f}")
            console.print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"step_speed_{device}.json").write_text(json.dumps(document, indent=2) + "\n")


def cpu_words() -> str:
    """Return the processor's name and whether it multiplies bf16 in tiles, as far as Linux says."""
    try:
        flags = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    name = next((line.split(":", 1)[1].strip() for line in flags.splitlines() if line.startswith("Model name")), "")
    return f"{name}, {'AMX' if 'amx_bf16' in flags else 'no AMX'}"


if __name__ == "__main__":
    main()
