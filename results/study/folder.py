"""A study's folder: its name, paths, document and tables. It runs nothing and changes no file in place."""

import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, count
from pathlib import Path
from stat import S_IFDIR, S_IFREG
from types import MappingProxyType
from typing import Any

from results.study.atomic import write_document
from results.study.holder import may_be_there
from results.study.paths import expanded, shown
from results.study.planned_run import Row
from trainable.errors import UserError, as_user_error, did_you_mean, reason
from trainable.regular_files import cannot_make, file_type, json_object, read_regular, sync_folder

SCHEMA_VERSION = 3
"""Of study.json; other versions are refused."""

STUDIES_DIR = Path(__file__).resolve().parents[1] / "studies"
"""Where studies are kept, unless the variable of that name names another folder."""

LATEST = "latest"
"""In place of a name: the study that search or baseline made last."""

RESUMED_KINDS = ("search", "baseline")
"""Kinds of studies that have a baseline and trials of their own, and that resume goes on with."""

MAX_NAME_CHARACTERS = 100
MOST_AHEAD = timedelta(days=365)
"""A study that was made later than this from now says nothing of when it was: its clock was wrong."""
_UNKNOWN = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Study:
    """A study's folder; files of it may be missing."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def study_json(self) -> Path:
        """The study's settings and inputs, enough to run it again."""
        return self.path / "study.json"

    @property
    def trials_path(self) -> Path:
        """A row per trial."""
        return self.path / "trials.parquet"

    @property
    def metrics_path(self) -> Path:
        """A row per evaluation."""
        return self.path / "metrics.parquet"

    def steps_path(self, trial_id: int) -> Path:
        """Return the table of the trial's optimizer steps."""
        return self.path / "steps" / f"{trial_id}.parquet"

    def checkpoint_dir(self, trial_id: int) -> Path:
        """Return the folder of the trial's checkpoints."""
        return self.path / "checkpoints" / f"{trial_id}"

    @property
    def log_path(self) -> Path:
        """The lines that the search printed."""
        return self.path / "search.log"

    @property
    def best_env(self) -> Path:
        """The winner, for a shell."""
        return self.path / "best.env"

    @property
    def best_json(self) -> Path:
        """The winner, for a program."""
        return self.path / "best.json"

    @property
    def holder_path(self) -> Path:
        """Names the process that writes the study, while it does."""
        # Not the lock file itself, which any process that asks for the lock may empty.
        return self.path / ".holder.json"

    def document(self) -> dict[str, Any]:
        """Return study.json. Raises UserError when it is missing, cut short, another version's, or lacks a value."""
        where = shown(self.study_json)
        try:
            document = json.loads(read_regular(self.study_json), parse_constant=_refuse_constant)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{where}: there is no such file, so {self.name} is not a study.") from None
        except OSError as err:
            raise UserError(f"{where}: cannot be read ({reason(err)}). Restore it, or move the study away.") from None
        except (ValueError, RecursionError) as err:
            raise UserError(f"{where}: not whole JSON ({err}). Restore it, or move the study away.") from None
        if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{where}: not a study of schema_version {SCHEMA_VERSION}: another version wrote it. Read it with the "
                "version of its git_commit, or move the study away."
            )
        from results.study.document_model import document_fault

        if (fault := document_fault(document)) is not None:
            raise UserError(f"{where}: {fault}. It was changed since the study was made: restore it.")
        return document

    def trials(self) -> list[Row]:
        """Return the rows of trials.parquet by trial_id; none before the first trial. Raises UserError when damaged.

        A trial that ran when its study's process was killed is interrupted.
        """
        rows = sorted(_rows(self.trials_path, "TRIALS"), key=lambda row: row["trial_id"])
        running = [row for row in rows if row["status"] == "running"]
        if running and not self._is_written():
            for row in running:
                row["status"] = "interrupted"
        return rows

    def metrics(self) -> list[Row]:
        """Return the rows of metrics.parquet by trial_id, then tokens_seen, as trials() does."""
        return sorted(_rows(self.metrics_path, "METRICS"), key=lambda row: (row["trial_id"], row["tokens_seen"]))

    def steps(self, trial_id: int) -> list[Row]:
        """Return the rows of a trial's optimizer steps, as trials() does."""
        return _rows(self.steps_path(trial_id), "STEPS")

    def _is_written(self) -> bool:
        """Return whether the process that said to hold the study may be there."""
        holder = json_object(self.holder_path)
        if holder is None:
            # One that was fetched from a storage has no holder here, and may have one elsewhere.
            return bool((json_object(self.study_json) or {}).get("storage"))
        return may_be_there(holder)


def _rows(path: Path, schema: str) -> list[Row]:
    from results.study import tables  # brings pyarrow, which most commands do without

    return tables.read_rows(path, getattr(tables, schema)) if file_type(path) is not None else []


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def studies_dir() -> Path:
    """Return the absolute folder that holds the studies: STUDIES_DIR, else results/studies. It may not exist yet.

    Raises UserError when STUDIES_DIR is not a folder.
    """
    text = os.environ.get("STUDIES_DIR", "")
    if not text:
        return STUDIES_DIR
    path = expanded(text, "STUDIES_DIR")
    with as_user_error(OSError, f"STUDIES_DIR={text!r} cannot be used", "Set it to a folder."):
        kind = file_type(path)
    if kind not in (S_IFDIR, None):
        raise UserError(f"STUDIES_DIR={text!r} is not a folder.")
    return path


def check_studies_dir() -> None:
    """Raises UserError where no study can be made in studies_dir(), as far as can be seen without writing."""
    folder = studies_dir()
    if (refused := cannot_make(folder)) is not None:
        there, why = refused
        raise UserError(f"cannot make a study in {shown(folder)}: {shown(there)} {why}. Set STUDIES_DIR to a folder.")


def check_study_name(name: str) -> None:
    """Raises UserError unless `name` can name a new or an old study."""
    if len(name) > MAX_NAME_CHARACTERS:
        raise UserError(f"STUDY: a name of {len(name)} characters; at most {MAX_NAME_CHARACTERS} are allowed.")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        path = Path(name)
        if "/" in name and path.name not in ("", ".."):
            # diagnose alone takes STUDY/TRIAL.
            path = path.parent if path.name.isdecimal() and path.parent.name and not path.is_dir() else path
            remedy, there = f"STUDY={path.name}", path.parent.resolve()
            is_elsewhere = path.is_dir() and there != studies_dir().resolve()
            remedy = f"STUDIES_DIR={shlex.quote(str(there))} {remedy}" if is_elsewhere else f"its name alone, {remedy}"
            raise UserError(f"STUDY={name!r} cannot name a study: it is a path. Write {remedy}.")
        raise UserError(
            f"STUDY={name!r} cannot name a study: use letters, digits, '.', '-' and '_'; the first is not '.' or '-'."
        )
    if name == LATEST:
        raise UserError(f"STUDY={LATEST} means the study that was made last. Choose another STUDY= name.")


def check_folder_name(study: Study) -> None:
    """Raises UserError for a folder that was renamed so that STUDY cannot name it."""
    try:
        check_study_name(study.name)
    except UserError as refused:
        raise UserError(f"{shown(study.path)}: {refused} Rename the folder.") from None


def new_study_name(space_name: str, now: datetime) -> str:
    """Return a free name such as plateau-1125-0310 (month, day, hour, minute), with -2, -3 ... when taken."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", space_name).lstrip(".-")[:80] or "study"
    return next(name for name in _numbered(f"{stem}-{now:%m%d-%H%M}") if not os.path.lexists(studies_dir() / name))


def _numbered(name: str) -> Iterator[str]:
    return chain([name], (f"{name}-{number}" for number in count(2)))


def create_study(
    name: str,
    document: Mapping[str, Any],
    *,
    beside: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    is_chosen: bool = True,
    claim: Callable[[Study], None] | None = None,
) -> Study:
    """Return the new study `name` with `document` as its study.json; it appears whole or not at all.

    beside: further documents that it is made with, by file name.
    is_chosen: by a person; a name of the program's own that was taken meanwhile becomes NAME-2, NAME-3 ...
    claim: takes the name elsewhere too, or raises StudyExistsError. Raises UserError when the name is taken or not
    allowed, or the folder cannot be made.
    """
    check_study_name(name)
    for free in [name] if is_chosen else _numbered(name):
        try:
            return _create(free, {**beside, "study.json": {**document, "name": free}}, claim)
        except StudyExistsError:
            if is_chosen:
                raise
    raise AssertionError("some name is free")


def _create(name: str, documents: Mapping[str, Mapping[str, Any]], claim: Callable[[Study], None] | None) -> Study:
    study = Study(studies_dir() / name)
    if os.path.lexists(study.path):
        raise study_exists(name)
    temporary = study.path.with_name(f".{name}.{secrets.token_hex(4)}.tmp")
    with as_user_error(OSError, f"cannot make a study in {shown(study.path.parent)}", "Set STUDIES_DIR to a folder."):
        temporary.mkdir(parents=True)
    made = temporary
    try:
        (temporary / "steps").mkdir()
        for file, document in documents.items():
            write_document(temporary / file, document)
        try:
            temporary.rename(study.path)
        except OSError:
            # Someone made it meanwhile: a rename never replaces a folder that holds something.
            if os.path.lexists(study.path):
                raise study_exists(name) from None
            raise
        made = study.path
        sync_folder(study.path.parent)
        if claim is not None:
            claim(study)
    except BaseException as error:
        if isinstance(error, OSError) and made == temporary:
            error.filename = str(study.path)  # the message must not name the temporary folder, which is gone
        shutil.rmtree(made, ignore_errors=True)
        raise
    return study


def remove_if_empty(study: Study) -> bool:
    """Remove a study without trials, so that its name is free again; return whether it was one."""
    is_empty = not study.trials()
    if is_empty:
        shutil.rmtree(study.path, ignore_errors=True)
    return is_empty


class StudyExistsError(UserError):
    """A new study was asked for under a name that is taken."""


def study_exists(name: str) -> StudyExistsError:
    """Return the error for a new study under a name that is taken."""
    going_on = dict.fromkeys(RESUMED_KINDS, f"make resume STUDY={name}") | {
        "attribute": "the same make attribute again"
    }
    command = going_on.get(_kind(Study(studies_dir() / name)) or "")
    remedy = f"Go on with it: {command}; or choose" if command else "Choose"
    return StudyExistsError(f"study {name} exists. {remedy} another STUDY= name.")


def check_has_baseline(study: Study) -> None:
    """Raises UserError for a run of train and for an attribution on its own: they have no trials beside a baseline."""
    kind = study.document()["kind"]
    if kind not in RESUMED_KINDS:
        raise UserError(f"study {study.name} is of kind {kind}, without trials beside a baseline. Name a search.")


def list_studies() -> list[Study]:
    """Return every study, the newest first, an original before its copies; those of unknown age come last."""
    folder = studies_dir()
    if not folder.is_dir():
        return []
    found = [Study(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    return sorted((study for study in found if file_type(study.study_json) == S_IFREG), key=_age, reverse=True)


def _age(study: Study) -> tuple[datetime, bool]:
    """Return when the study was made, and whether its folder still has the name that it was made under."""
    try:
        document = study.document()
    except UserError:
        return _UNKNOWN, False
    created_at = datetime.fromisoformat(document["created_at"])
    created_at = created_at if created_at.tzinfo else created_at.replace(tzinfo=UTC)
    if created_at > datetime.now(UTC) + MOST_AHEAD:
        created_at = _UNKNOWN
    # A copy is as old as its original, which comes before it: "latest" must not mean somebody's backup.
    return created_at, document["name"] == study.name


def time_to_make() -> datetime:
    """Return the created_at of a new study: now, or right after the newest one where the clock was set back.

    LATEST is the study with the latest of these times.
    """
    newest = (_age(study)[0] + timedelta(microseconds=1) for study in list_studies()[:1])
    return max([datetime.now(UTC), *newest])


def find_study(name: str) -> Study | None:
    """Return the study of that name, whole or not; None when there is none."""
    check_study_name(name)
    study = Study(studies_dir() / name)
    return study if file_type(study.study_json) == S_IFREG else None


def open_study(name_or_latest: str) -> Study:
    """Return the study of that name, or for 'latest' the one that search or baseline made last.

    Raises UserError when there is none, or its study.json cannot be read.
    """
    found = None if name_or_latest == LATEST else find_study(name_or_latest)
    if found is not None:
        found.document()
        return found
    studies = list_studies()
    where = f"{shown(studies_dir())}/"
    if not studies:
        raise UserError(f"there is no study in {where} yet. Make one with: make search SPACE=plateau")
    if name_or_latest != LATEST:
        known = [study.name for study in studies]
        near = did_you_mean(name_or_latest, known) or " make list shows them."
        raise UserError(f"no study named '{name_or_latest}' in {where}.{near}")
    # A training run or an attribution between two commands must not change which study they are about.
    latest = next((study for study in studies if _kind(study) in RESUMED_KINDS), None)
    if latest is None:
        for study in studies:
            study.document()  # a damaged one may be the search that is meant
        raise UserError(f"{where} holds no search and no baseline yet. Make one with: make search SPACE=plateau")
    check_folder_name(latest)
    return latest


def _kind(study: Study) -> str | None:
    try:
        return str(study.document()["kind"])
    except UserError:
        return None
