"""One answer for one seed: whatever the slots, their speeds, the kills and resumes, a search leaves the same tables.

Ray is played here, with the real searcher, scheduler, recorder and ledger, and made-up losses; but for the last test,
whose long form is tests/faults/one_answer.py.
"""

import io
import math
import os
import random
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from rich.console import Console

from results.study.folder import Study
from results.study.ledger import Ledger
from search.terminal.live_view import StudyView
from search.tune.asha import TokenASHA
from search.tune.early_end import read_part_losses
from search.tune.history import known_trials
from search.tune.optuna_searcher import SpaceSearcher
from search.tune.recorder import StudyRecorder
from spaces.budget import Speeds
from spaces.overrides import Settings, with_overrides
from spaces.read.load import space_from_tables
from spaces.space import SearchSpace
from tests.faults.common import Place
from tests.faults.one_answer import small_space, wrong
from tests.rows import evaluation
from tests.search.conftest import run_in_process
from trainable.checkpoint.checkpoint_store import CheckpointStore
from trainable.config import TrialConfig
from trainable.rows import PENALTY_NATS, Verdict, fidelity_tokens

TRIALS = 30


def make_space(
    searcher: str = "tpe", *, ends_early: bool = False, batch_sizes: Sequence[int] = (2, 4, 8, 40)
) -> SearchSpace:
    tables: dict[str, Any] = {
        "trials": TRIALS,
        "baseline": {"batch_size": 4, "block_size": 32},
        "budget": {"tokens": 12_800},
        "evaluation": {"tokens": 256, "count": 4},
        "searcher": {"name": searcher},
        "search": {
            "batch_size": {"choice": list(batch_sizes)},
            "learning_rate": {"log_uniform": [1e-5, 1e-1]},
            "lr_schedule": {"choice": ["constant", "warmup_cosine"]},
        },
    }
    return replace(space_from_tables(tables, name="small", path="small.toml"), ends_early=ends_early)


def in_device_time(space: SearchSpace) -> SearchSpace:
    """The space with 20 s a trial, where a step of 40 sequences takes three times as long as one of 2."""
    step_s = {shape: 0.05 * (1 + shape.batch_size / 20) for shape in space.shapes()}
    return with_overrides(space, Settings(device_s=20.0), speeds=Speeds(step_s=step_s, evaluation_s=0.1))


@dataclass
class Running:
    """A trial in a slot."""

    trial: Any
    config: TrialConfig
    pace_s: float
    """Of an evaluation."""
    at_s: float
    evaluation: int
    """The next one's index."""


@dataclass
class Simulation:
    """A search over made-up losses in `slots` slots of random speeds, killed now and then."""

    folder: Path
    space: SearchSpace
    slots: int
    draw: random.Random
    kills: int = 0
    nats_a_doubling: float = 0.0
    """By how much a batch twice as large is worse."""
    now_s: float = 0.0
    ended: bool = False
    running: dict[int, Running] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "steps").mkdir(parents=True)
        self.study = Study(self.folder)

    def to_its_end(self) -> "Simulation":
        while not self.ended:
            self._process()
        return self

    def _process(self) -> None:
        """Run until the search is over or the process is killed."""
        ledger = Ledger(self.study, flush_interval_s=self.draw.choice([0.0, 5.0]))
        known = known_trials(
            ledger.trials(),
            ledger.metrics(),
            milestones=self.space.milestones,
            part_losses=read_part_losses(self.study),
        )
        self.searcher = SpaceSearcher(self.space, trials=known)
        self.scheduler = TokenASHA(self.searcher.log)
        console = Console(file=io.StringIO())
        view = StudyView(study=self.study, ledger=ledger, trials_planned=TRIALS, console=console)
        self.recorder = StudyRecorder(
            ledger,
            self.searcher.log,
            view,
            planned_run=self.searcher.planned_run,
            checkpoints_of=lambda trial_id: CheckpointStore(root=str(self.folder / "none"), trial_id=trial_id),
            on_ended=lambda _: None,
            evaluation_timeout_s=3600.0,
            oom_counter_of=lambda pid: None,
        )
        self.recorder.end_late_stops()
        self.running, left = {}, self.searcher.trials_left
        # A study may go on in fewer slots than it had.
        slots = self.draw.randint(1, self.slots) if known else self.slots
        while True:
            while left and len(self.running) < slots:
                proposal = self.searcher.suggest("any")
                if not isinstance(proposal, dict):
                    left = 0 if proposal == Searcher.FINISHED else left
                    break
                left -= 1
                self._start(proposal, ledger)
            if not self.running:
                assert not left, "the searcher waits, and nothing runs"
                self.ended = True
                return
            if self.kills and self.draw.random() < 0.1:
                self.kills -= 1
                if self.draw.random() < 0.5:
                    self.recorder.interrupt()
                return
            self._next_result()

    def _start(self, proposal: dict[str, Any], ledger: Ledger) -> None:
        number = proposal["trial_id"]
        trial = SimpleNamespace(config=proposal, last_result=None, error_file=None, pickled_error_file=None)
        self.recorder.on_trial_start(iteration=1, trials=[], trial=trial)
        # From its newest checkpoint, which is at one of its evaluations or after the last, or from its start.
        evaluations = sum(row["trial_id"] == number for row in ledger.metrics())
        begin = self.draw.randrange(evaluations + 1) if evaluations else 0
        pace_s = math.exp(self.draw.uniform(0, 2))
        config = TrialConfig(**proposal["trial"])
        self.running[number] = Running(trial, config, pace_s, self.now_s + pace_s, begin)

    def _next_result(self) -> None:
        number, one = min(self.running.items(), key=lambda pair: pair[1].at_s)
        self.now_s = one.at_s
        one.at_s += one.pace_s
        result = self._result(one)
        one.evaluation += 1
        if result["status"] == "failed":
            self.recorder.on_trial_error(iteration=1, trials=[], trial=one.trial)
            del self.running[number]
            return
        if not result["done"]:
            result["done"] = self.scheduler.on_trial_result(None, one.trial, result) == TrialScheduler.STOP
        self.recorder.on_trial_result(iteration=1, trials=[], trial=one.trial, result=result)
        one.trial.last_result = result
        if result["done"]:
            self.recorder.on_trial_complete(iteration=1, trials=[], trial=one.trial)
            del self.running[number]

    def _result(self, one: Running) -> dict[str, Any]:
        config, milestones = one.config, self.space.milestones(one.config)
        steps = sorted({0, *(step for _, step in milestones)})[one.evaluation]
        luck = zlib.crc32(repr(config).encode())
        status = self._broken(config, luck) if one.evaluation == 1 + luck % 3 else "running"
        is_over = steps == config.training_steps
        loss = 9 + abs(math.log10(config.learning_rate) + 3) - steps / config.training_steps + luck % 97 / 300
        loss += self.nats_a_doubling * math.log2(config.batch_size)
        metrics = evaluation(
            steps,
            loss,
            tokens_seen=steps * config.tokens_per_step,
            part_losses=(loss - luck % 3, loss + luck % 3) if is_over else (),
        )
        if status == "running" and is_over:
            status = "completed"
        has_loss = status in ("running", "completed")
        return {
            "status": status,
            "done": status != "running",
            "objective": loss if has_loss else PENALTY_NATS,
            "fidelity_tokens": fidelity_tokens(milestones, optimizer_steps=steps),
            "metrics": asdict(metrics) if has_loss else None,
            "steps": [],
            "verdict": asdict(Verdict(reason="nonfinite", step=1, evidence="")) if status == "unstable" else None,
            "evidence": "",
            "saved": False,
            "notes": [],
            "input_fault": None,
            "optimizer_steps": steps,
            "tokens_seen": steps * config.tokens_per_step,
            "active_s": 1.0,
        }

    @staticmethod
    def _broken(config: TrialConfig, luck: int) -> str:
        if config.batch_size == 40:
            return "out_of_memory"
        # Some break in the range that the search goes on in, too.
        if config.learning_rate > 0.008 or luck % 13 == 1:
            return "unstable"
        return "failed" if luck % 5 == 0 else "running"

    @property
    def answer(self) -> tuple[list[Any], list[Any]]:
        """All that may not hang on slots, speeds and kills; what was spent may."""
        names = ("trial_id", "status", "verdict", "point", "val_loss", "best_val_loss", "rung", "learning_rate")
        rows = [tuple(row[name] for name in names) for row in self.study.trials()]
        found = [(row["trial_id"], row["optimizer_steps"], row["val_loss"]) for row in self.study.metrics()]
        return rows, found


@pytest.fixture(scope="module", params=["tpe", "random", "auto", "tpe in device time"])
def one_slot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    folder = tmp_path_factory.mktemp("one") / "study"
    auto = request.param == "auto"
    space = make_space("tpe" if auto else request.param.partition(" ")[0], ends_early=auto)
    space = in_device_time(space) if "time" in request.param else space
    return Simulation(folder, space, 1, random.Random(0)).to_its_end()


def test_the_search_on_one_slot_has_every_ending(one_slot: Simulation) -> None:
    rows = one_slot.study.trials()
    begun = len(rows)
    assert 3 * TRIALS / 4 <= begun < TRIALS if one_slot.space.ends_early else begun == TRIALS
    assert [row["trial_id"] for row in rows] == list(range(begun))
    endings = {row["status"] for row in rows}
    assert endings == {"completed", "stopped", "unstable", "out_of_memory", "failed"}
    assert {row["rung"] for row in rows if row["status"] == "stopped"} == {0, 1}


@pytest.mark.parametrize(("slots", "kills"), [(1, 10), (2, 0), (4, 20), (9, 10)])
def test_any_slots_speeds_and_kills_leave_the_same_tables(
    one_slot: Simulation, slots: int, kills: int, tmp_path: Path
) -> None:
    other = Simulation(tmp_path / "study", one_slot.space, slots, random.Random(slots), kills).to_its_end()
    assert other.kills < kills or not kills
    assert other.answer == one_slot.answer


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_sizes", [(2, 4), (4, 8)])
def test_a_baseline_at_an_end_of_the_sizes_leaves_the_answer_to_no_slot(
    batch_sizes: tuple[int, ...], seed: int, tmp_path: Path
) -> None:
    space = make_space(batch_sizes=batch_sizes)
    space = replace(space, baseline=replace(space.baseline, seed=seed))
    alone = Simulation(tmp_path / "alone", space, 1, random.Random(0), nats_a_doubling=0.3).to_its_end()
    for slots in (2, 4):
        folder = tmp_path / f"slots-{slots}"
        other = Simulation(folder, space, slots, random.Random(slots), 5, nats_a_doubling=0.3).to_its_end()
        assert other.answer == alone.answer


def test_two_real_slots_with_slow_and_killed_workers_and_a_killed_driver_give_the_answer_of_one(
    tmp_path: Path,
) -> None:
    place = Place(str(tmp_path), small_space(trials=10))
    assert run_in_process(place.words("run", "alone-0", SEED=0), os.environ).code == 0
    endings = {row["status"] for row in place.study("alone-0").trials()}
    assert endings == {"completed", "stopped", "unstable"}
    assert wrong(place, "two", trials=10, kills=1, slots=2) == []
