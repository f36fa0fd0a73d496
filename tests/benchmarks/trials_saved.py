"""What TRIALS=auto saves and what it costs, replayed on recorded learning curves with 1, 2 and 4 slots.

python tests/benchmarks/trials_saved.py [--seeds N] [--slots 1 2 4] [--trials N]

Regret: by how much the best loss is higher than that of the same seed's search with all trials, as a share of what that
one gains over the baseline; the mean over the seeds. The curves hold no losses by part, so each gets a scatter of the
size that was measured on the table's six best configurations of either kind.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[2]))

from spaces.space import SearchSpace
from tests.benchmarks.search_speed import tables
from tests.benchmarks.search_table.make_table import BUDGET_TOKENS, KINDS, table_path
from tests.benchmarks.search_table.replay import Completed, CurveTable, replay
from tests.benchmarks.search_table.searches import Ours

NOISE_NATS = {"fine-tune": 0.028, "scratch": 0.019}
"""Median standard error of the difference of two good configurations, over the table's 1,024 held-out tokens."""
PARTS = 16


class OursWithParts(Ours):
    """This project's search, its completed trials with their losses on parts of the held-out tokens."""

    def __init__(self, space: SearchSpace, seed: int, table: CurveTable, noise_nats: float) -> None:
        super().__init__(space, seed, space.trials)
        self._table, self._scatter = table, noise_nats * math.sqrt(PARTS / 2)

    def end(self, key: int, loss: float | None) -> None:
        """Tell the log, with a scatter that is the curve's own."""
        super().end(key, loss)
        if loss is not None:
            curve = self._table.nearest({**self._space.baseline_params(), **(self.log[key].point or {})})
            scatter = np.random.default_rng(curve.number).normal(0.0, self._scatter, PARTS)
            self.log.end(key, "completed", loss, tuple(map(float, loss + scatter)))


def searched(space: SearchSpace, seed: int, table: CurveTable, noise_nats: float, slots: int) -> dict[str, Any]:
    """Return how many trials a search begins, the best final loss that it finds, and when it ends."""
    search = OursWithParts(space, seed, table, noise_nats)
    found: list[Completed] = replay(search, table, slots=slots, most_tokens=math.inf)
    ended = search.log.early_end.trials if search.log.early_end else space.trials
    assert len(search.log.trials) == ended
    best = min(one.curve.final_loss for one in found)
    return {"trials": ended, "best": best, "wall": max(one.wall_s for one in found), "tokens": found[-1].tokens}


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="default 20")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4], help="default 1 4")
    parser.add_argument("--trials", type=int, help="the most trials; by default the space's")
    arguments = parser.parse_args()
    for kind, (table, space) in tables(table_path(BUDGET_TOKENS), list(KINDS)).items():
        space = replace(space, trials=arguments.trials or space.trials)
        baseline = table.nearest(space.baseline_params()).final_loss
        for slots in arguments.slots:
            saved, regrets, nats, walls = [], [], [], []
            for seed in range(arguments.seeds):
                given = (seed, table, NOISE_NATS[kind], slots)
                full, auto = searched(space, *given), searched(replace(space, ends_early=True), *given)
                saved.append(1 - auto["trials"] / space.trials)
                nats.append(auto["best"] - full["best"])
                regrets.append(nats[-1] / (baseline - full["best"]))
                walls.append(1 - auto["wall"] / full["wall"])
            error = np.std(regrets) / math.sqrt(len(regrets))
            print(
                f"{kind}, {slots} slot(s), {len(saved)} seeds: {np.mean(saved):.1%} of {space.trials} trials saved, "
                f"{np.mean(walls):.1%} of the wall time; regret {np.mean(regrets):.2%} \u00b1 {error:.2%} of the gain, "
                f"{np.mean(nats):.4f} nats/token",
                flush=True,
            )


if __name__ == "__main__":
    main()
