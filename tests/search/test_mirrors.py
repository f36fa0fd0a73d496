"""Mirrors: asked for and checked before anything runs, and a trial's configuration as the point it came from."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from ray.tune import Callback
from ray.tune.experiment import Trial
from tensorboardX.proto.event_pb2 import Event

from results.study.folder import Study
from results.study.ledger import Ledger
from results.study.planned_run import PlannedRun
from search.options import Options, parse_options
from search.trackers.callbacks import HOOKS, GuardedTracker, OptunaMirror, TensorBoardMirror
from search.trackers.trackers import check_mirrors, mirror_callbacks
from spaces.optuna_domains import distribution_of, point_of, suggest
from spaces.read.load import load_space
from tests.rows import evaluation
from trainable.errors import UserError
from trainable.rows import Purpose, Verdict


def test_nothing_is_mirrored_unless_asked_for() -> None:
    view: Any = None
    assert mirror_callbacks(Options(), view, load_space("smoke")) == []


def test_a_path_is_an_sqlite_file_and_a_url_stays_one(tmp_path: Path) -> None:
    assert parse_options({"OPTUNA_STORAGE": f"{tmp_path}/o.db"}).optuna_storage == f"sqlite:///{tmp_path}/o.db"
    url = f"sqlite+pysqlite:///{tmp_path}/o.db"
    assert parse_options({"OPTUNA_STORAGE": url}).optuna_storage == url


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"OPTUNA_STORAGE": "/nope/o.db"}, r"OPTUNA_STORAGE='/nope/o\.db' must be a file in a folder that exists"),
        ({"OPTUNA_STORAGE": "sqlite:////nope/o.db"}, "must be a file in a folder that exists"),
        ({"OPTUNA_STORAGE": "sqlite://"}, "must be a file in a folder that exists"),
        ({"OPTUNA_STORAGE": "/tmp"}, "must be a file in a folder that exists"),
        ({"OPTUNA_STORAGE": "9" * 999}, "must be a file in a folder that exists"),
        ({"OPTUNA_STORAGE": "oracl://host/name"}, r"is not a database that can be opened: .*oracl"),
        ({"OPTUNA_STORAGE": "http://host"}, "is not a database that can be opened"),
        ({"OPTUNA_STORAGE": "mysql+mysqlnodriver://host/name"}, "is not a database that can be opened"),
        ({"OPTUNA_STORAGE": "oracl://me:secret@host/x"}, r"OPTUNA_STORAGE='oracl://\*\*\*@host/x' is not"),
        ({"OPTUNA_STORAGE": "://"}, "is not a database that can be opened"),
        ({"MLFLOW": "file:x"}, "MLFLOW is set but mlflow is not installed"),
        ({"WANDB": "x"}, "WANDB is set but wandb is not installed"),
    ],
)
def test_what_is_not_there_is_refused(values: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=message):
        parse_options(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"WANDB": "a/b"}, "cannot name a project"),
    ],
)
def test_where_a_tracker_is_installed_what_it_is_given_is_checked(
    values: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    with pytest.raises(UserError, match=message):
        parse_options(values)
    for right in ({"MLFLOW": "sqlite:///m.db"}, {"MLFLOW": "./runs"}, {"MLFLOW": "http://h:5000"}, {"WANDB": "gpt2"}):
        parse_options(right)


@pytest.mark.parametrize("name", ["plateau", "schedule", "before_after"])
def test_a_configuration_is_mirrored_as_the_point_it_came_from(name: str) -> None:
    space = load_space(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(30):
        trial = study.ask()
        suggest(trial, space.parameters)
        point = point_of(space, space.config_for(trial.params))
        assert point.keys() == trial.params.keys()
        for parameter, value in point.items():
            tolerance = 0.03 if parameter == "warmup_frac" else 0.0
            expected = trial.params[parameter]
            assert value == expected if isinstance(value, str) else abs(value - expected) <= tolerance
        domains = {parameter.name: parameter.domain for parameter in space.parameters}
        study.add_trial(
            optuna.trial.create_trial(
                value=1.0, params=point, distributions={key: distribution_of(domains[key]) for key in point}
            )
        )


def saying() -> tuple[list[str], Callable[[str], None]]:
    lines: list[str] = []
    return lines, lines.append


class Fragile(Callback):  # type: ignore[misc]
    """A tracker whose server goes away at the second result."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def setup(self, **info: Any) -> None:
        self.heard.append("setup")

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: Any, **info: Any) -> None:
        self.heard.append(result["name"])
        if result["name"] == "second":
            raise ConnectionError("no route to host\nand more")


def test_a_tracker_that_fails_is_told_of_once_and_gone_on_without() -> None:
    lines, say = saying()
    fragile = Fragile()
    guarded = GuardedTracker("MLflow", lambda: fragile, say)
    guarded.setup()
    for name in ("first", "second", "third"):
        guarded.on_trial_result(iteration=1, trials=[], trial=None, result={"name": name})
    guarded.on_experiment_end(trials=[])
    assert fragile.heard == ["setup", "first", "second"]
    assert lines == ["MLflow failed (no route to host and more); the study goes on without it"]


def test_a_tracker_that_cannot_begin_is_gone_on_without() -> None:
    def no_server() -> Callback:
        raise RuntimeError

    lines, say = saying()
    guarded = GuardedTracker("W&B", no_server, say)
    for hook in HOOKS:
        getattr(guarded, hook)()
    assert lines == ["W&B failed (RuntimeError); the study goes on without it"]
    assert {"setup", "on_trial_start", "on_trial_result", "on_trial_error", "on_experiment_end"} <= set(HOOKS)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: "nonsense://x", "Can't load plugin"),
        (lambda folder: "postgresql+psycopg2://host/name", "Failed to import DB access module"),
        (lambda folder: f"sqlite:///{folder}/missing/o.db", "unable to open database file"),
        (
            lambda folder: f"sqlite:///{(folder / 'o.db').write_text('no database at all' * 100) and folder}/o.db",
            "not a",
        ),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_in_a_line(make: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"OPTUNA_STORAGE cannot be used: .*{reason}") as refused:
        check_mirrors(Options.model_construct(optuna_storage=make(tmp_path)), lambda words, share: None, new_study="x")
    # Of a confirmation nothing would be written there.
    options = Options.model_construct(optuna_storage=make(tmp_path))
    check_mirrors(options, lambda words, share: None, new_study="x", searches=False)
    assert "\n" not in str(refused.value)


def test_a_storage_that_knows_a_study_of_the_name_is_refused_for_a_new_one_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/o.db"
    optuna.create_study(study_name="known", storage=url)
    options = Options(optuna_storage=url)
    optuna.logging.set_verbosity(optuna.logging.INFO)
    check_mirrors(options, lambda words, share: None, new_study="another")
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR, "it would print that it makes and deletes a study"
    check_mirrors(options, lambda words, share: None, new_study=None)
    with pytest.raises(UserError, match="already holds a study named known"):
        check_mirrors(options, lambda words, share: None, new_study="known")
    assert optuna.get_all_study_names(url) == ["known"]


class Mirrored:
    """A ledger of the smoke space's trials and its Optuna mirror, told of each as Ray would."""

    def __init__(self, folder: Path) -> None:
        (folder / "steps").mkdir()
        self.url = f"sqlite:///{folder}/o.db"
        self.space = load_space("smoke")
        self.ledger = Ledger(Study(folder))
        self.open()

    def open(self) -> None:
        self.mirror = OptunaMirror(self.url, self.ledger, "s", self.space)

    def start(self, trial_id: int, *, tell: bool = True, **changes: Any) -> None:
        config = replace(self.space.baseline, **changes)
        # A confirmation run is on a seed of its own.
        purpose: Purpose = "confirmation" if "seed" in changes else "search"
        run = PlannedRun(trial_id=trial_id, config=config, purpose=purpose, is_baseline=trial_id == 0)
        self.ledger.start_trial(run, started_at=datetime.now(UTC))
        self._tell(trial_id, tell)

    def evaluate(self, trial_id: int, tokens: int, loss: float, *, tell: bool = True) -> None:
        self.ledger.add_metrics(trial_id, evaluation(tokens // 10, loss), None)
        self._tell(trial_id, tell)

    def end(self, trial_id: int, status: Any, *, tell: bool = True) -> None:
        verdict = Verdict(reason="nonfinite", step=4, evidence="loss nan") if status == "unstable" else None
        self.ledger.end_trial(trial_id, status=status, verdict=verdict, ended_at=datetime.now(UTC))
        self._tell(trial_id, tell)

    def _tell(self, trial_id: int, tell: bool) -> None:
        if tell:
            trial = Trial("SearchTrial", config={"trial_id": trial_id}, stub=True)
            self.mirror.on_trial_result(iteration=1, trials=[trial], trial=trial)

    @property
    def trials(self) -> list[FrozenTrial]:
        trials: list[FrozenTrial] = optuna.load_study(study_name="s", storage=self.url).get_trials()
        return trials


def test_a_trial_has_its_own_number_in_optuna_however_they_start_and_end(tmp_path: Path) -> None:
    """The baseline starts second and ends last; 3 and 4 are confirmation runs, on another seed, that nobody mirrors."""
    mirrored = Mirrored(tmp_path)
    mirrored.start(1)
    assert mirrored.trials == []
    mirrored.start(0)
    mirrored.start(2, learning_rate=1e-3)
    for number in (3, 4):
        mirrored.start(number, tell=False, seed=77)
    mirrored.start(5, learning_rate=2e-3)
    for trial_id, status in ((2, "unstable"), (1, "stopped"), (5, "out_of_memory"), (0, "completed")):
        mirrored.evaluate(trial_id, 0, 7.0)
        mirrored.evaluate(trial_id, 100, 6.0 + trial_id)
        assert mirrored.trials[trial_id].state == TrialState.RUNNING
        mirrored.end(trial_id, status)
    trials = mirrored.trials
    assert [trial.number for trial in trials] == list(range(6))
    fail = TrialState.FAIL
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.PRUNED, fail, fail, fail, fail]
    assert [trial.user_attrs.get("trial_id") for trial in trials] == [0, 1, 2, None, None, 5]
    assert trials[0].value == 6.0
    assert trials[2].intermediate_values == {0: 7.0, 100: 8.0}
    assert trials[2].params["learning_rate"] == 1e-3
    assert trials[2].user_attrs["verdict"] == "nonfinite at step 4: loss nan"
    assert optuna.load_study(study_name="s", storage=mirrored.url).best_trial.number == 0


def test_a_resumed_study_goes_on_under_its_numbers_and_what_was_missed_is_copied(tmp_path: Path) -> None:
    mirrored = Mirrored(tmp_path)
    mirrored.start(0)
    mirrored.evaluate(0, 0, 7.0)
    # What the process does after this, its mirror has never heard of.
    mirrored.evaluate(0, 100, 6.0, tell=False)
    mirrored.end(0, "completed", tell=False)
    mirrored.start(1, tell=False, learning_rate=1e-3)
    mirrored.ledger.interrupt(datetime.now(UTC))
    mirrored.open()
    assert [trial.state for trial in mirrored.trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert mirrored.trials[0].intermediate_values == {0: 7.0, 100: 6.0}
    mirrored.start(1, learning_rate=1e-3)
    mirrored.evaluate(1, 0, 7.5)
    mirrored.end(1, "stopped")
    mirrored.start(2)
    assert [trial.state for trial in mirrored.trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING]


def test_tensorboards_files_hold_every_scalar_by_tokens(tmp_path: Path) -> None:
    mirror = TensorBoardMirror(tmp_path)
    trial = Trial("SearchTrial", config={"trial_id": 3}, stub=True)
    step = {"train_loss": 5.0, "grad_norm": 1.0, "learning_rate": 1e-3, "tokens_seen": 64}
    metrics = {"val_loss": 4.5, "tokens_per_s": 100.0, "tokens_seen": 64}
    for row in (metrics, None):
        mirror.on_trial_result(iteration=1, trials=[], trial=trial, result={"steps": [step], "metrics": row})
    mirror.on_trial_complete(iteration=1, trials=[], trial=trial)
    [file] = (tmp_path / "trial_0003").iterdir()
    events, data = [], file.read_bytes()
    while data:
        # A record: its length, a checksum of that, itself, a checksum of it.
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    scalars = [(value.tag, value.simple_value, event.step) for event in events for value in event.summary.value]
    assert [name for name, _, _ in scalars].count("train_loss") == 2
    assert ("val_loss", 4.5, 64) in scalars
