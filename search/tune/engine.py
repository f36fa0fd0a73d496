"""The engine: runs trials into a study folder by Ray Tune. The study's own files are the record, not Ray's."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from pydantic import SecretStr
from ray import tune
from ray.air.execution._internal import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune import Callback, CheckpointConfig
from ray.tune.execution import tune_controller
from ray.tune.experiment import Trial

from results.confirmation.attempt import Attempt, load_attempts, trials_found
from results.ranking import leaderboard, ranked_trials
from results.study.atomic import storage_error_words
from results.study.ledger import Ledger
from results.study.lock import SCRATCH, remove_unfinished
from results.winner import find_winner
from search.cluster.node_watch import NodeWatch
from search.cluster.storage_hold import TableMirror
from search.cluster.study_storage import CHECKPOINTS, checkpoint_root
from search.options import Options
from search.terminal.live_view import StudyView
from search.terminal.signals import INTERRUPTED, TERMINATED, Interrupts
from search.tune.asha import TokenASHA
from search.tune.local_ray import running_ray
from search.tune.optuna_searcher import OBJECTIVE, TrialSearcher
from search.tune.recorder import StudyRecorder, oom_counter_of
from search.tune.resources import Slots
from search.tune.start_watch import StartWatch
from trainable.checkpoint.checkpoint_store import CheckpointStore
from trainable.config import TrialConfig
from trainable.data.node_cache import share_inputs
from trainable.errors import MachineError, UserError, as_user_error, count_words, full_reason
from trainable.ray_trainable import SearchTrial
from trainable.run import RunSpec

LEAVE = "leave"
"""A file in the study's scratch folder that asks running trials to save."""
LEAVE_PATIENCE_S = 20.0
CLUSTER_FAILURES = 2
"""One more than on a single machine, so that a lost node does not end a trial that has failed by itself once. On MPS a
worker whose memory has grown ends itself, which counts as a failure."""
BEST_KEPT = 3
"""The last checkpoints of the best completed trials are kept, of at least this many and of the baseline."""


def run_study(
    searcher: TrialSearcher,
    spec: RunSpec,
    *,
    baseline: TrialConfig,
    slots: Slots,
    options: Options,
    view: StudyView,
    interrupts: Interrupts,
    callbacks: Sequence[Callback],
    again: str,
) -> None:
    """Run the searcher's trials into the view's study; again: the command that goes on with them.

    baseline: runs of it, on any seed, are ended by a non-finite loss alone.

    After a signal it returns too, with the running trials marked interrupted. Raises UserError when the study can no
    longer be written, and MachineError when Ray does not start or ends; what was measured until then is kept.
    """
    study, ledger, log = view.study, view.ledger, searcher.log
    attempts = load_attempts(study)
    root, pruned = checkpoint_root(study, options.storage), set[int]()
    prune = partial(prune_checkpoints, root, ledger, attempts, best_kept=best_kept_of(study.document()))
    recorder = StudyRecorder(
        ledger,
        log,
        view,
        checkpoints_of=lambda trial_id: CheckpointStore(root=root, trial_id=trial_id),
        planned_run=searcher.planned_run,
        on_ended=lambda trial_id: prune(pruned, saving=trial_id),
        evaluation_timeout_s=options.evaluation_timeout_s,
        # On other machines only Ray knows how a worker died.
        oom_counter_of=oom_counter_of if slots.address is None else lambda _: None,
        mirror=TableMirror(study, options.storage, view.say) if options.storage else None,
    )
    # The last process may have died between a verdict and its row.
    recorder.end_late_stops()
    scratch = study.path / SCRATCH
    node_watch = [NodeWatch(view)] if slots.address else []
    # Workers on other nodes could not see the file: they lose at most CHECKPOINT_INTERVAL_S.
    leave_path = scratch / LEAVE if slots.address is None else None
    leave = StopOnSignal(interrupts, recorder, leave_path, say=view.say)
    try:
        with running_ray(slots, view.say) as logs:
            shared = {
                **_shared_by_trials(spec, slots, options),
                "baseline": asdict(baseline),
                "leave_path": leave_path,
                # Trackers keep a trial's config, and the URI may hold a password.
                "checkpoint_root": SecretStr(root),
            }
            view.ray_is_up = True
            watch = StartWatch(slots, logs, say=view.say)
            # Entered again, because ray.init() replaces the SIGTERM handler when it joins a cluster.
            with interrupts, rays_own_faults(again):
                if interrupts.code is not None:
                    raise KeyboardInterrupt
                tune_controller.RayActorManager = ActorManager
                # Not a Tuner: it pickles searcher, scheduler and callbacks for a restore that studies never use.
                tune.run(
                    tune.with_resources(SearchTrial, slots.a_trial),
                    name="tune",
                    storage_path=str(scratch),
                    config=shared,
                    metric=OBJECTIVE,
                    mode="min",
                    search_alg=searcher,
                    scheduler=TokenASHA(log),
                    callbacks=[recorder, *node_watch, *callbacks, watch, leave],
                    num_samples=searcher.trials_left,
                    max_concurrent_trials=slots.count,
                    # On a cluster a trial may get the worker of a lost node, and Tune does not retry one that fails
                    # in its reset.
                    reuse_actors=slots.address is None,
                    max_failures=CLUSTER_FAILURES if slots.address is not None or slots.on_mps else 1,
                    raise_on_failed_trial=False,
                    checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
                    trial_name_creator=lambda trial: f"trial_{trial.config['trial_id']}",
                    trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}",
                    verbose=0,
                )
    except KeyboardInterrupt:
        if recorder.storage_error is None and recorder.input_fault is None:
            interrupts.code = interrupts.code or INTERRUPTED
    except SystemExit:
        # SIGTERM came while ray.init() had its own handler in place.
        interrupts.code = interrupts.code or TERMINATED
    finally:
        recorder.interrupt()
        shutil.rmtree(scratch, ignore_errors=True)
        prune()
        if recorder.mirror is not None:
            recorder.mirror.close()
        # A worker that is killed while it saves leaves a temporary file.
        remove_unfinished(study.path / CHECKPOINTS)
    if searcher.exhausted:
        view.say(
            "the search is over: every other configuration has been run, or is as large as one that ran out of memory"
        )
    if recorder.storage_error is not None:
        raise UserError(storage_error_words(recorder.storage_error, study.path, again=again, is_certain=True))
    if recorder.input_fault is not None:
        fault, remedy = recorder.input_fault
        raise UserError(f"{fault}; what was measured so far is kept. {remedy}: {again}")


class ActorManager(RayActorManager):  # type: ignore[misc]
    """Tune's, for which some errors of Ray's, such as a kill by its memory monitor, end the search: here one worker."""

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, RayActorError | RayTaskError):
            exception = RayActorError(error_msg=str(exception))
        super()._actor_task_failed(tracked_actor_task, exception)


@dataclass(eq=False)
class StopOnSignal(Callback):  # type: ignore[misc]
    """Ends tune.run() between two of its rounds, after a signal or when the study can no longer be written.

    Ray's own way out waits for each trial's step() to return, which is its next evaluation. Here a file asks the
    running trials to save, they look for it after every step, and are waited for as long as a step and a save may take.
    """

    interrupts: Interrupts
    recorder: StudyRecorder
    leave_path: Path | None
    say: Callable[[str], None]
    _asked_at: float | None = None
    _saved: set[str] = field(default_factory=set)

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Note a trial that has saved and returned."""
        if result["left"]:
            self._saved.add(trial.trial_id)

    def on_step_end(self, *, trials: list[Any], **info: Any) -> None:
        """Raise KeyboardInterrupt once all have saved: after an Exception Tune would clean up, slowly."""
        if self.recorder.storage_error is not None:
            raise KeyboardInterrupt
        if self.interrupts.code is None and self.recorder.input_fault is None:
            return
        running = {trial.trial_id for trial in trials if trial.status == Trial.RUNNING}
        if self._asked_at is None and self.leave_path is not None and running:
            self._asked_at = time.monotonic()
            self.leave_path.parent.mkdir(parents=True, exist_ok=True)
            self.leave_path.touch()
            self.say(f"saving {count_words(len(running), 'running trial')} ...")
        if self._asked_at is None or running <= self._saved or time.monotonic() - self._asked_at > LEAVE_PATIENCE_S:
            raise KeyboardInterrupt


def best_kept_of(document: Mapping[str, Any]) -> int:
    """Return how many of the best trials keep a checkpoint: one may win once those before it are proven worse."""
    confirm = (document.get("settings") or {}).get("confirm")
    return max(BEST_KEPT, confirm["top"] + 1 if confirm else 0)


def prune_checkpoints(
    root: str,
    ledger: Ledger,
    attempts: Sequence[Attempt],
    gone: set[int] | None = None,
    *,
    best_kept: int,
    saving: int | None = None,
) -> None:
    """Delete the checkpoints of ended runs below `root`, except the last one of runs that are still needed.

    Needed are the search's best that are not proven worse, the winner, candidates of a confirmation, and the baseline.

    gone: the trials without any checkpoint, added to, so that a remote store is not asked again. saving: a trial that
    has just ended; unless it has completed, its worker may still be writing.
    """
    gone = set() if gone is None else gone
    trials = ledger.trials()
    board = [row["trial_id"] for row in leaderboard(ranked_trials(trials)) if row["status"] == "completed"]
    out = trials_found("worse", attempts) | {row["trial_id"] for row in trials if row["is_baseline"]}
    kept = {*[trial_id for trial_id in board if trial_id not in out][:best_kept]}
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
def rays_own_faults(again: str) -> Iterator[None]:
    """Turn Ray's errors, and its own files', into MachineError or UserError that name `again`, the command to go on."""
    try:
        yield
    except (ray.exceptions.RayError, ConnectionError, TimeoutError) as error:
        raise MachineError(
            f"Ray ended while the trials ran: {full_reason(error)}; what was measured so far is kept. "
            f"Check the machine's memory. Then go on with: {again}"
        ) from None
    except OSError as error:
        # From a file of Tune's; the recorder catches those of the study's.
        raise UserError(storage_error_words(error, again=again)) from None


def _shared_by_trials(spec: RunSpec, slots: Slots, options: Options) -> dict[str, Any]:
    """Return what every trial is given; on a cluster with copies of the inputs in STORAGE. Raises UserError."""
    storage = options.storage
    with as_user_error(OSError, f"STORAGE={storage}: the inputs cannot be copied there"):
        inputs = share_inputs(spec, storage) if slots.address and storage else None
    return {
        "spec": replace(spec, device=slots.device or spec.device),
        "shared_inputs": inputs,
        "checkpoint_interval_s": options.checkpoint_interval_s,
        "evaluation_timeout_s": options.evaluation_timeout_s,
        "threads": slots.threads,
        "memory_frac": slots.memory_frac,
    }
