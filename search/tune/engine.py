"""The engine: runs trials into a study folder by Ray Tune. The study's own files are the truth, Ray's are not."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from pydantic import SecretStr
from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.experiment import Trial

from results.confirmation.attempt import Attempt
from results.confirmation.confirmation_file import load_attempts
from results.ranking import leaderboard, ranked_trials
from results.study.atomic import is_storage_error, storage_error_words
from results.study.folder import Study
from results.study.ledger import Ledger
from results.study.own_files import remove_unfinished
from results.winner import find_winner
from search.cluster.node_watch import MirrorTables, NodeWatch
from search.cluster.study_storage import CHECKPOINTS, TableMirror, checkpoint_root
from search.terminal.live_view import StudyView
from search.terminal.signals import Interrupts
from search.tune.asha import TokenASHA
from search.tune.local_ray import running_ray
from search.tune.oom_kills import NO_COUNTER, oom_counter_of
from search.tune.optuna_searcher import OBJECTIVE
from search.tune.recorder import StudyRecorder
from search.tune.resources import Slots
from search.tune.start_watch import StartWatch
from search.tune.workload import Workload
from trainable.checkpoint.checkpoint_store import CheckpointStore
from trainable.data.corpus import cache_dir
from trainable.data.node_cache import SharedInputs, share_inputs
from trainable.data.remote_files import reason
from trainable.errors import MachineError, UserError
from trainable.ray_trainable import SearchTrial
from trainable.run import RunSpec

INTERRUPTED, TERMINATED = 130, 143
LEAVE = "leave"
"""A file in Ray's folder of the study: it asks the running trials to save."""
LEAVE_PATIENCE_S = 20.0
CLUSTER_FAILURES = 2
"""One more than on a single machine, so that losing its node does not end a trial that has failed by itself once. On
MPS a worker whose memory has grown ends itself so."""
KEPT_CHECKPOINTS = 3
"""Final checkpoints of so many best completed trials are kept, and the baseline's."""


def run_study(
    study: Study,
    work: Workload,
    spec: RunSpec,
    *,
    slots: Slots,
    ledger: Ledger,
    view: StudyView,
    interrupts: Interrupts,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Run the work's trials, writing `study` as it goes.

    Interrupted by a signal it returns as well, with the running trials noted as interrupted. Raises UserError when the
    study cannot be written any more and MachineError when Ray does not start or ends, with all that was measured kept.
    """
    log = work.searcher.log
    attempts = load_attempts(study)
    root, pruned = checkpoint_root(study, slots.storage), set[int]()
    recorder = StudyRecorder(
        ledger,
        log,
        view,
        checkpoints_of=lambda trial_id: CheckpointStore(root=root, trial_id=trial_id),
        planned_run=work.planned_run,
        on_ended=lambda trial_id: prune_checkpoints(root, ledger, attempts, pruned, saving=trial_id),
        evaluation_timeout_s=slots.evaluation_timeout_s,
        # Of workers on other machines Ray alone can tell.
        oom_counter_of=oom_counter_of if slots.address is None else lambda _: NO_COUNTER,
    )
    # A verdict may have come right before the last process died.
    recorder.end_late_stops()
    scratch = study.path / "ray"
    mirror = TableMirror(study, slots.storage, view.say) if slots.storage else None
    followers: list[Callback] = [MirrorTables(mirror)] if mirror else []
    followers += [NodeWatch(view)] if slots.address else []
    tune_config = TuneConfig(
        metric=OBJECTIVE,
        mode="min",
        search_alg=work.searcher,
        scheduler=TokenASHA(log),
        num_samples=work.trials_count,
        max_concurrent_trials=slots.count,
        # A trial that gets the worker of a node just lost would fail for good: Tune retries none that is being reset.
        reuse_actors=slots.address is None,
        trial_name_creator=lambda trial: f"trial_{trial.config['trial_id']}",
        trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}",
    )
    leave_path = scratch / LEAVE if slots.address is None else None
    (scratch / LEAVE).unlink(missing_ok=True)
    leave = StopOnSignal(interrupts, recorder, leave_path, say=view.say)
    try:
        with running_ray(slots, view.say) as logs:
            shared = _shared_inputs(spec, slots)
            view.ray_is_up()
            # Once more: joining a cluster, ray.init() takes SIGTERM for itself.
            with interrupts:
                if interrupts.code is not None:
                    raise KeyboardInterrupt
                watch = StartWatch(slots, logs, say=view.say)
                callbacks = [recorder, *followers, *callbacks, watch, leave]
                tuner = _tuner(study, work, spec, shared, slots, tune_config, callbacks, scratch)
                with rays_own_faults(study):
                    tuner.fit()
    except KeyboardInterrupt:
        if recorder.storage_error is None and recorder.input_fault is None:
            interrupts.code = interrupts.code or INTERRUPTED
    except SystemExit:
        # Ray's own handler, where SIGTERM came while ray.init() had put it in place.
        interrupts.code = interrupts.code or TERMINATED
    finally:
        recorder.interrupt()
        shutil.rmtree(scratch, ignore_errors=True)
        prune_checkpoints(root, ledger, attempts)
        if mirror is not None:
            mirror.close()
        # A worker may have been killed while it saved.
        remove_unfinished(study.path / CHECKPOINTS)
    if work.searcher.exhausted:
        view.say(
            "the search is over: every other configuration has been run, or is as large as one that ran out of memory"
        )
    if recorder.storage_error is not None:
        words = storage_error_words(recorder.storage_error, study.path)
        raise UserError(f"{words}. Then go on with: make resume STUDY={study.name}")
    if recorder.input_fault is not None:
        remedy = "It is made again by" if str(cache_dir()) in recorder.input_fault else "Restore it, then go on with"
        raise UserError(
            f"{recorder.input_fault}; what was measured so far is kept. {remedy}: make resume STUDY={study.name}"
        )


class StopOnSignal(Callback):  # type: ignore[misc]
    """Leaves fit() between two of its rounds once a signal came or the study cannot be written any more.

    Ray's own way out waits for the trials' step(). Each running trial is asked to save before, by a file that it looks
    for after each step, and waited for as long as a step and a save may take.
    """

    def __init__(
        self, interrupts: Interrupts, recorder: StudyRecorder, leave_path: Path | None, *, say: Callable[[str], None]
    ) -> None:
        self._interrupts = interrupts
        self._recorder = recorder
        self._leave_path = leave_path
        self._say = say
        self._asked_at: float | None = None
        self._saved: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray pickles callbacks for a restore that studies never use."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note who has saved because it was asked to."""
        if result["left"]:
            self._saved.add(trial.trial_id)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Raise KeyboardInterrupt: fit() cleans up, slowly, after an Exception alone."""
        if self._recorder.storage_error is not None:
            raise KeyboardInterrupt
        if self._interrupts.code is None and self._recorder.input_fault is None:
            return
        running = {trial.trial_id for trial in trials if trial.status == Trial.RUNNING}
        if self._asked_at is None and self._leave_path is not None and running:
            self._asked_at = time.monotonic()
            self._leave_path.parent.mkdir(parents=True, exist_ok=True)
            self._leave_path.touch()
            self._say(f"saving {len(running)} running trial{'s' if len(running) > 1 else ''} ...")
        if self._asked_at is None or running <= self._saved or time.monotonic() - self._asked_at > LEAVE_PATIENCE_S:
            raise KeyboardInterrupt


def prune_checkpoints(
    root: str,
    ledger: Ledger,
    attempts: Sequence[Attempt] = (),
    gone: set[int] | None = None,
    *,
    saving: int | None = None,
) -> None:
    """Delete the checkpoints below `root` of ended runs but the last ones of those worth going on from.

    These are the search's best, whoever won or is being confirmed, and the baseline. A run that confirms or attributes
    is over when it has ended.

    gone: trials that have none any more, added to; a store far away is not asked about them again. saving: a trial that
    has just ended, whose last checkpoint may still be on its way where it has not completed.
    """
    gone = set() if gone is None else gone
    trials = ledger.trials()
    board = leaderboard(ranked_trials(trials))
    kept = {row["trial_id"] for row in [row for row in board if row["status"] == "completed"][:KEPT_CHECKPOINTS]}
    kept |= find_winner(trials, attempts).kept_checkpoints
    for row in trials:
        is_saving = row["trial_id"] == saving and row["status"] != "completed"
        if row["status"] in ("running", "interrupted") or row["trial_id"] in gone or is_saving:
            continue
        store = CheckpointStore(root=root, trial_id=row["trial_id"])
        with suppress(OSError):
            if row["trial_id"] in kept:
                store.keep_newest()
            else:
                store.delete()
                gone.add(row["trial_id"])


@contextmanager
def rays_own_faults(study: Study) -> Iterator[None]:
    """Tell what is no fault of a trial, of the study or of this program in a line. Raises MachineError, UserError."""
    again = f"Then go on with: make resume STUDY={study.name}"
    try:
        yield
    except (ray.exceptions.RayError, ConnectionError, TimeoutError) as error:
        raise MachineError(
            f"Ray ended while the trials ran: {reason(error)}; what was measured so far is kept. "
            f"Check the machine's memory. {again}"
        ) from None
    except OSError as error:
        # What Tune writes for itself; the recorder keeps the errors of the study's own files.
        if not is_storage_error(error):
            raise
        raise UserError(f"{storage_error_words(error)}. {again}") from None


def _shared_inputs(spec: RunSpec, slots: Slots) -> SharedInputs | None:
    """Return copies of what a node may lack, where there may be other nodes. Raises UserError."""
    if slots.address is None or slots.storage is None:
        return None
    try:
        return share_inputs(spec, slots.storage)
    except OSError as error:
        raise UserError(f"STORAGE={slots.storage}: the inputs cannot be copied there: {reason(error)}.") from None


def _failures(slots: Slots) -> int:
    return CLUSTER_FAILURES if slots.address is not None or slots.on_mps else 1


def _tuner(
    study: Study,
    work: Workload,
    spec: RunSpec,
    shared_inputs: SharedInputs | None,
    slots: Slots,
    tune_config: TuneConfig,
    callbacks: list[Callback],
    scratch: Path,
) -> Tuner:
    shared: dict[str, Any] = {
        # Workers on other nodes could not see it: there the last checkpoint of CHECKPOINT_INTERVAL_S counts.
        "leave_path": scratch / LEAVE if slots.address is None else None,
        "spec": replace(spec, device=slots.device or spec.device),
        "shared_inputs": shared_inputs,
        "baseline": asdict(work.baseline),
        # Trackers keep a trial's config, and the URI may hold a password.
        "checkpoint_root": SecretStr(checkpoint_root(study, slots.storage)),
        "checkpoint_interval_s": slots.checkpoint_interval_s,
        "evaluation_timeout_s": slots.evaluation_timeout_s,
        "threads": slots.threads,
        "memory_frac": slots.memory_frac,
    }
    return Tuner(
        tune.with_resources(SearchTrial, slots.a_trial),
        param_space=shared,
        tune_config=tune_config,
        run_config=RunConfig(
            name="tune",
            storage_path=str(scratch),
            callbacks=callbacks,
            verbose=0,
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            failure_config=FailureConfig(max_failures=_failures(slots)),
        ),
    )
