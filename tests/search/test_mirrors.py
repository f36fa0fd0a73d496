"""Mirrors: asked for and checked before anything runs, and a trial's configuration as the point it came from."""

from pathlib import Path

import optuna
import pytest

from search.options import Options, parse_options
from search.trackers.trackers import Mirrors, read_mirrors
from search.tune.optuna_searcher import suggest
from spaces.optuna_domains import distribution_of, point_of
from spaces.read.load import load_space
from trainable.errors import UserError


def test_nothing_is_mirrored_unless_asked_for() -> None:
    assert read_mirrors(Options()) == Mirrors()


def test_a_path_is_an_sqlite_file_and_a_url_stays_one(tmp_path: Path) -> None:
    given = read_mirrors(parse_options({"TENSORBOARD": "1", "OPTUNA_STORAGE": f"{tmp_path}/o.db"}))
    assert given == Mirrors(tensorboard=True, optuna_storage=f"sqlite:///{tmp_path}/o.db")
    url = f"sqlite+pysqlite:///{tmp_path}/o.db"
    assert read_mirrors(parse_options({"OPTUNA_STORAGE": url})).optuna_storage == url


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"OPTUNA_STORAGE": "/nope/o.db"}, r"OPTUNA_STORAGE='/nope/o\.db' must be a file in a folder that exists"),
        ({"OPTUNA_STORAGE": "sqlite:////nope/o.db"}, "must be a file in a folder that exists"),
        ({"OPTUNA_STORAGE": "sqlite://"}, "must be a file in a folder that exists"),
        ({"OPTUNA_STORAGE": "/tmp"}, "must be a file in a folder that exists"),
        ({"OPTUNA_STORAGE": "oracl://host/name"}, r"is not a database that can be opened: .*oracl"),
        ({"OPTUNA_STORAGE": "http://host"}, "is not a database that can be opened"),
        ({"OPTUNA_STORAGE": "mysql+mysqlnodriver://host/name"}, "is not a database that can be opened"),
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
        ({"MLFLOW": "htp://host"}, r"is not a tracking URI: MLflow knows no htp://\. Did you mean 'http'\?"),
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
