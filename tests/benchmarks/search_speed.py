"""Does this search find more per token than what else could be used? Replayed on recorded learning curves.

python tests/benchmarks/search_speed.py [--seeds N] [--slots 1 2 4] [--only NAME ...] [--no-peers]

The curves are tests/benchmarks/search_table's. Every search proposes by its own classes; a proposal is answered with
the nearest recorded curve (replay.DECADES_APART), and the clock is the shapes' measured speeds. The other libraries are
installed into an environment of their own. 200 seeds take an hour of one core, but for Syne Tune, which fits a model
for every proposal and gets a twentieth of the seeds. A run that is ended goes on where it was.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

# Last, for the replay of an earlier version puts that version's packages first.
sys.path.append(str(Path(__file__).parents[2]))

from tests.benchmarks.search_table.make_table import BUDGET_TOKENS, KINDS, read_table, table_path
from tests.benchmarks.search_table.replay import CurveTable, replay
from tests.benchmarks.search_table.searches import OURS, PEERS

ROOT = Path(__file__).resolve().parents[2]
SETTLED_COMMIT = "96d7077"
"""The search before this benchmark chose anything: kept as a peer."""
PEER_PACKAGES = ("syne-tune==0.16.0", "neural-pipeline-search==0.17.0", "torch==2.13.0")
AT_FULL_TRIALS = (3, 5, 8, 12)
NEAR_NATS = 0.02
SLOW = {"Syne Tune ASHA + CQR": 20}
"""Searches that get one seed of so many."""
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Replay, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="default 10")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4], help="default 1 4")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, metavar="KIND", help=" ".join(KINDS))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="searches by the beginning of their names")
    parser.add_argument("--no-peers", action="store_true", help="this search alone, and as it was")
    parser.add_argument("--table", type=Path, default=table_path(BUDGET_TOKENS))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replay:
        replay_into(arguments.into, arguments.replay, arguments)
        return
    report(list(all_outcomes(arguments)), arguments)


def replay_into(path: Path, name: str, arguments: argparse.Namespace) -> None:
    """Append a line of what each replay of one search completes, but for those that an earlier run wrote."""
    make, written = {**OURS, **PEERS}[name], set(lines_of(path))
    with path.open("a") as lines:
        for kind, (table, space) in tables(arguments.table, arguments.kinds).items():
            for slots, seed in product(arguments.slots, seeds_of(name, arguments.seeds)):
                if (kind, slots, seed) in written:
                    continue
                found = replay(
                    make(space, seed),
                    table,
                    slots=slots,
                    most_tokens=(AT_FULL_TRIALS[-1] + 0.5) * table.budget_tokens,
                )
                completed = [[one.tokens, round(one.wall_s, 2), one.curve.number] for one in found]
                lines.write(json.dumps({"kind": kind, "slots": slots, "seed": seed, "completed": completed}) + "\n")
                lines.flush()


def seeds_of(name: str, seeds: int) -> range:
    """Return the seeds that a search gets."""
    return range(0, seeds, SLOW.get(name, 1))


def lines_of(path: Path) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Return the outcomes in a file by (kind, slots, seed), without a line that was cut off."""
    if not path.exists():
        return {}
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    path.write_text(whole)
    lines = [json.loads(line) for line in whole.splitlines()]
    return {(line["kind"], line["slots"], line["seed"]): line for line in lines}


def tables(path: Path, kinds: Sequence[str]) -> dict[str, tuple[CurveTable, Any]]:
    """Return the curves of each kind, and the space that they were drawn from."""
    rows, space = read_table(path)
    # A few runs have three times the budget.
    budget_tokens = min(row["budget_tokens"] for row in rows)
    own = [row for row in rows if row["budget_tokens"] == budget_tokens]
    return {kind: (CurveTable([row for row in own if row["kind"] == kind], budget_tokens), space) for kind in kinds}


def all_outcomes(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the outcomes of every search, each replayed in a process of its own."""
    wanted: list[tuple[str, str, str, dict[str, str]]] = []
    for name in OURS:
        wanted.append((name, name, sys.executable, {}))
    if (earlier := earlier_code()) is not None:
        wanted.append((f"this search, {SETTLED_COMMIT}", "this search", sys.executable, {"PYTHONPATH": str(earlier)}))
    if not arguments.no_peers:
        wanted += [(name, name, peers_python(), {}) for name in PEERS]
    if arguments.only:
        names = ", ".join(one[0] for one in wanted)
        wanted = [one for one in wanted if one[0].startswith(tuple(arguments.only))]
        if not wanted:
            sys.exit(f"--only {' '.join(arguments.only)}: the searches are {names}")
    folder = outcomes_folder(arguments.table)
    with ThreadPoolExecutor(arguments.processes) as pool:
        jobs = [pool.submit(_replay, *one[1:], folder / f"{one[0]}.jsonl", arguments) for one in wanted]
        for (name, called, _, _), job in zip(wanted, jobs, strict=True):
            if job.result():
                print(f"{name}: failed", file=sys.stderr)
                continue
            print(f"{name}: replayed", file=sys.stderr)
            lines = lines_of(folder / f"{name}.jsonl")
            for key in product(arguments.kinds, arguments.slots, seeds_of(called, arguments.seeds)):
                yield {"search": name, **lines[key]}


def _replay(called: str, python: str, env: Mapping[str, str], into: Path, arguments: argparse.Namespace) -> int:
    """Return the exit code of a process that replays one search."""
    command = [python, __file__, "--replay", called, "--into", str(into), "--seeds", str(arguments.seeds)]
    command += ["--table", str(arguments.table), "--slots", *map(str, arguments.slots), "--kinds", *arguments.kinds]
    whole = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", **env}
    # Each library has its own words for a user; a failed one's are shown.
    return subprocess.run(command, env=whole, cwd=ROOT, stdout=subprocess.DEVNULL).returncode


def outcomes_folder(table: Path) -> Path:
    """Return where this code's replays of a table are kept, so that a run that was ended goes on where it was."""
    described = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    code = described.stdout.strip() or "no-clone"
    folder = cache_folder(f"outcomes-{code}-{hashlib.sha256(table.read_bytes()).hexdigest()[:12]}")
    # Code that is not committed changes from run to run under the same name.
    if code.endswith(("dirty", "no-clone")):
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_folder(name: str) -> Path:
    """Return a folder that `make clean` removes."""
    return ROOT / ".cache" / "search_speed" / name


def earlier_code() -> Path | None:
    """Return this project's packages as they were at the commit; None outside a clone that has it."""
    folder = cache_folder(SETTLED_COMMIT)
    if not folder.exists():
        packages = ("search", "spaces", "trainable", "results")
        archive = subprocess.run(["git", "archive", SETTLED_COMMIT, *packages], cwd=ROOT, capture_output=True)
        if archive.returncode:
            return None
        folder.mkdir(parents=True)
        subprocess.run(["tar", "x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def peers_python() -> str:
    """Return the Python of an environment that has the other libraries, made where it is not there yet."""
    folder = cache_folder("peers")
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        print("installing the other libraries (once; some minutes) ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        # What this project has, torch above all, is not installed a second time.
        ours = Path(np.__file__).parents[1]
        site = next((folder / "lib").glob("python*/site-packages"))
        (site / "project.pth").write_text(f"{ours}\n")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
        (folder / "made").touch()
    return str(python)


def report(outcomes: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> None:
    """Print a table for each kind and number of slots, keep the figures, draw the picture."""
    from rich.console import Console
    from rich.table import Table

    all_tables = tables(arguments.table, arguments.kinds)
    console, kept = Console(width=170), []
    for kind, (table, _) in all_tables.items():
        for slots in arguments.slots:
            counted = f"{len(table.curves)} configurations of {table.budget_tokens:,} tokens"
            shown = Table(title=f"{kind}, {slots} slot(s); {counted}")
            columns = [f"regret at {count}" for count in AT_FULL_TRIALS]
            for column in ("", "seeds", *columns, f"tokens to {NEAR_NATS}", "wall", "within", "best"):
                shown.add_column(column, justify="left" if not column else "right")
            for name in dict.fromkeys(one["search"] for one in outcomes):
                own = [one for one in outcomes if (one["search"], one["kind"], one["slots"]) == (name, kind, slots)]
                if not own:
                    continue
                figures = {"seeds": len(own), **figures_of(own, table)}
                kept.append({"search": name, "kind": kind, "slots": slots, **figures})
                cells = [_cell(figures[f"regret_{count}"]) for count in AT_FULL_TRIALS]
                cells += [_cell(figures["tokens_to_near"], "1f"), _cell(figures["wall_to_near"], "1f")]
                cells += [f"{figures['within_near']:.0%}", f"{figures['found_best']:.0%}"]
                shown.add_row(name, str(len(own)), *cells)
            console.print(shown)
    console.print(
        "regret: nats/token above the table's best after the tokens of so many full trials. tokens, wall: in full "
        "trials, until within 0.02 nats of it; > where half of the seeds did not get there in 12. [95 % interval]"
    )
    if not arguments.only:
        RESULTS.mkdir(exist_ok=True)
        document = {"seeds": arguments.seeds, "figures": kept}
        (RESULTS / "search_speed.json").write_text(json.dumps(document, indent=1) + "\n")
        draw(outcomes, all_tables, arguments.slots[0])


def _cell(figure: Sequence[float], digits: str = "3f") -> str:
    middle, low, high = (f"{value:.{digits}}".lstrip("0") if np.isfinite(value) else ">12" for value in figure)
    return f"{middle} [{low} {high}]"


def figures_of(outcomes: Sequence[Mapping[str, Any]], table: CurveTable) -> dict[str, Any]:
    """Return the means, medians and shares over the seeds, the first two with 95 % bootstrap intervals."""
    finals = {curve.number: curve.final_loss for curve in table.curves}
    best = table.best.final_loss
    regrets: dict[int, list[float]] = {count: [] for count in AT_FULL_TRIALS}
    tokens_to, wall_to, found = [], [], []
    for outcome in outcomes:
        incumbents = [(tokens, wall, finals[number]) for tokens, wall, number in outcome["completed"]]
        tokens = np.array(AT_FULL_TRIALS) * table.budget_tokens
        for count, loss in zip(AT_FULL_TRIALS, _best_at(tokens, outcome, finals, table.start_loss), strict=True):
            regrets[count].append(loss - best)
        within = [one for one in incumbents if one[0] <= AT_FULL_TRIALS[-1] * table.budget_tokens]
        near = [(tokens, wall) for tokens, wall, loss in within if loss <= best + NEAR_NATS]
        tokens_to.append(min((tokens for tokens, _ in near), default=np.inf) / table.budget_tokens)
        wall_to.append(min((wall for _, wall in near), default=np.inf) / table.full_trial_s)
        found.append(any(loss == best for _, _, loss in within))
    return {
        **{f"regret_{count}": _interval(values, np.mean) for count, values in regrets.items()},
        "tokens_to_near": _interval(tokens_to, np.median),
        "wall_to_near": _interval(wall_to, np.median),
        "within_near": float(np.mean(np.isfinite(tokens_to))),
        "found_best": float(np.mean(found)),
    }


def _interval(values: Sequence[float], middle: Any) -> list[float]:
    draws = np.random.default_rng(0).choice(np.array(values), (2000, len(values)))
    # An ordered statistic, for the mean of two infinite medians is no number.
    middles = np.sort(np.nan_to_num([middle(draw) for draw in draws], nan=np.inf, posinf=np.inf))
    ends = middles[[int(0.025 * len(middles)), int(0.975 * len(middles))]]
    return [float(np.nan_to_num(middle(values), nan=np.inf, posinf=np.inf)), *map(float, ends)]


def draw(outcomes: Sequence[Mapping[str, Any]], all_tables: Mapping[str, Any], slots: int) -> None:
    """Write the picture: mean regret against tokens."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(all_tables), figsize=(6 * len(all_tables), 4.2), squeeze=False)
    for axis, (kind, (table, _)) in zip(axes[0], all_tables.items(), strict=True):
        finals = {curve.number: curve.final_loss for curve in table.curves}
        grid = np.linspace(1, AT_FULL_TRIALS[-1], 111)
        for name in dict.fromkeys(one["search"] for one in outcomes):
            own = [one for one in outcomes if (one["search"], one["kind"], one["slots"]) == (name, kind, slots)]
            if not own:
                continue
            lines = [
                [
                    min(
                        [
                            table.start_loss,
                            *(finals[n] for t, _, n in one["completed"] if t <= at * table.budget_tokens),
                        ]
                    )
                    for at in grid
                ]
                for one in own
            ]
            width = 2.2 if name == "this search" else 1.0
            axis.plot(grid, np.mean(lines, axis=0) - table.best.final_loss, label=name, linewidth=width)
        axis.set(title=f"{kind}, {slots} slot(s)", xlabel="tokens, in full trials", ylabel="regret, nats/token")
        axis.set_yscale("log")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(RESULTS / "search_speed.png", dpi=110)


def _best_at(
    tokens: "np.ndarray[Any, Any]", outcome: Mapping[str, Any], finals: Mapping[int, float], start_loss: float
) -> list[float]:
    """Return the best final loss that a replay has completed by each of the token counts."""
    known = [(at, finals[number]) for at, _, number in outcome["completed"]]
    return [min([start_loss, *(loss for at, loss in known if at <= most)]) for most in tokens]


if __name__ == "__main__":
    main()
