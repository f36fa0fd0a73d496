"""`make train`: one configuration, without Ray, from step 0 or from a checkpoint."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from results.model_card import model_row
from results.study.atomic import storage_error_words, write_document
from results.study.document_model import INPUT_VARIABLES
from results.study.folder import Study, create_study, find_study, list_studies, open_study, studies_dir
from results.study.ledger import Ledger
from results.study.lock import hold
from results.study.paths import shown
from results.study.planned_run import PlannedRun
from results.winner import start_val_loss
from results.words import config_words, list_words, loss_words, token_words, trial_loss_words
from search.options import Options
from search.setup.finish import SavedModel, sample_study, save_run_model
from search.setup.preflight_run import Preflight, check_preflight
from search.setup.reopen import differences_of_inputs
from search.setup.run_checkpoints import NEWEST_KEPT, RunCheckpoints
from search.setup.study_record import start_losses
from search.setup.train_plan import (
    THE_RATE,
    TrainPlan,
    make_train_plan,
    resumption_words,
    train_document,
    with_winner_of,
)
from search.terminal.console import Preparing, Terminal
from search.terminal.next_steps import ending_document, going_on
from search.terminal.signals import Interrupts
from search.terminal.summary import sample_lines
from trainable.config import DOCUMENTED, HYPERPARAMETERS, variable_of
from trainable.errors import UserError, count_words, nearest
from trainable.rows import MetricsRow, Start, StepRow, TrialStatus, Verdict
from trainable.stability import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trainable.model.lora import AdapterBase
    from trainable.run import RunSpec
    from trainable.state import TrainState

PROGRESS_INTERVAL_STEPS = 25
SPEED_WINDOW_STEPS = 100
OF_ADAPTERS = tuple(name for name in HYPERPARAMETERS if name.startswith("lora_"))
EXIT_CODES: dict[TrialStatus, int] = {"completed": 0, "unstable": 1, "interrupted": 130}


def train_command(options: Options, terminal: Terminal) -> int:
    """Train one configuration, or the winner of STUDY; return the exit code."""
    asked, options = options, with_winner_of(options)
    if options is asked and options.study and find_study(options.study) is None:
        _say_name(options.study, options, terminal)
    with Preparing(terminal.console) as progress:
        plan = make_train_plan(options, progress)
        # Of a run that goes on from a checkpoint, _header() says whether the text is another one.
        if options is not asked and plan.checkpoint is None and asked.typed.isdisjoint(INPUT_VARIABLES.values()):
            source = open_study(str(asked.study))
            if changed := differences_of_inputs(source.document(), plan.loaded.facts):
                terminal.say(f"study {source.name}: {'; '.join(changed)}. This run's losses are not to be compared")
        # Built on the CPU to check that all fits together, because preflight needs the device's memory.
        begun = _begin(plan, replace(plan.loaded.spec, compile_mode="off", device="cpu"))
        if options.save_model is not None and begun.adapter_base is not None and not options.merge:
            from trainable.model.save_folder import adapters_base_name

            adapters_base_name(begun.adapter_base)  # raises where adapters cannot be written alone
        del begun
    from trainable.preflight.memory import CheckpointRoom

    # The newest ones, the best, and one being written.
    room = CheckpointRoom(folder=studies_dir(), count=NEWEST_KEPT + 2) if plan.checkpoint_interval_steps else None
    preflight = Preflight(
        loaded=plan.loaded, config=plan.config, largest=plan.config, room=room, checkpoint=plan.checkpoint
    )
    check_preflight(preflight, terminal)
    with _memory_told(plan):
        state = _begin(plan, plan.loaded.spec)
    # Of a winner's run the name is the program's own.
    is_chosen = options is asked and options.study is not None
    study = create_study(plan.name, train_document(plan), is_chosen=is_chosen)
    tokens_before = state.tokens_seen
    terminal.say(*_header(plan, state))
    checkpoints = RunCheckpoints(
        folder=study.checkpoint_dir(0),
        interval_steps=plan.checkpoint_interval_steps,
        model_name=plan.loaded.inputs.model_name,
        corpus_fingerprint=plan.loaded.spec.corpus.fingerprint,
    )
    with hold(study), Interrupts() as interrupts:
        try:
            status = _train(plan, state, study, checkpoints, terminal, interrupts)
        except OSError as error:
            raise UserError(storage_error_words(error, study.path, again=going_on(study))) from None
    last = state.model, state.adapter_base
    del state  # the optimizer's moments, twice the model
    saved = _save_model(plan, last, checkpoints, study, status, terminal)
    del last
    if status == "completed":
        # A resumed run's start has the checkpoint's weights, with which the inputs must be loaded again.
        sample_study(study, options, terminal, plan.loaded if plan.checkpoint is None else None)
    row = study.trials()[0]
    loss = trial_loss_words(row) if status == "unstable" else f"end {loss_words(row['val_loss'])}"
    if status == "interrupted":
        loss = f"{loss_words(row['val_loss'])} when last evaluated"
    start = f"start {loss_words(start_val_loss(study.document()))}"
    tokens = token_words(row["tokens_seen"] - tokens_before)
    terminal.say(
        f"{status}: {start} → {loss}, {tokens} tokens; study {shown(study.path)}",
        checkpoints.words,
        *sample_lines(study),
    )
    terminal.warn(checkpoints.warning)
    terminal.document(
        {
            **ending_document(study, terminal),
            "status": status,
            "trial": row,
            "start_val_loss": start_val_loss(study.document()),
            "worse_than_start": checkpoints.warning is not None,
            "best_checkpoint": checkpoints.best_path and str(checkpoints.best_path),
            "model": saved and str(saved.folder),
        }
    )
    unsaved = 2 if status == "completed" and options.save_model is not None and saved is None else 0
    return (status == "interrupted" and interrupts.code) or EXIT_CODES[status] or unsaved


def _say_name(name: str, options: Options, terminal: Terminal) -> None:
    """Print that no study has the name. Raises UserError where that study's winner was meant which has one like it."""
    near = nearest(name, [study.name for study in list_studies()])
    if near is not None and not (options.explicit_hyperparameters() or options.checkpoint_path):
        raise UserError(
            f"no study is named '{name}'. Did you mean '{near}'? To train the documented configuration under "
            f"that name, set one of its hyperparameters, such as LEARNING_RATE={DOCUMENTED.learning_rate:g}."
        )
    line = f"no study is named {name} yet: the variables' configuration is trained under that name"
    terminal.say(None if near else line)
    terminal.warn(f"{line}. Did you mean '{near}'?" if near else None)


def _begin(plan: TrainPlan, spec: "RunSpec") -> "TrainState":
    import torch

    from trainable.device.device_memory import prepare_memory
    from trainable.run import resume_run, start_run

    if plan.options.threads is not None:
        torch.set_num_threads(plan.options.threads)
    prepare_memory(torch.device(spec.device))
    if plan.checkpoint is not None:
        state = resume_run(spec, plan.config, plan.checkpoint)
        state.active_s = 0.0  # those of the run before are in its own study
        return state
    return start_run(spec, plan.config)


def _header(plan: TrainPlan, state: "TrainState") -> list[str]:
    spec, config, device = plan.loaded.spec, plan.config, plan.loaded.device_info
    lines = [
        f"model {spec.model_name} on {device.type} ({device.name}), {config.precision}; "
        f"{token_words(len(spec.corpus.train))} training tokens",
        *plan.loaded.text_lines,
        f"{config_words(asdict(config))}, {count_words(config.training_steps, 'step')}, seed {config.seed}",
    ]
    # A command of FORMAT=cli names them all.
    typed = plan.options.typed if "EXPORTED_FROM" not in plan.options.typed else ()
    for setting, names in ((f"LR_SCHEDULE={config.lr_schedule}", THE_RATE), ("USE_LORA=False", OF_ADAPTERS)):
        unread = [variable_of(name) for name in names if not config.reads(name)]
        if unread := [name for name in unread if name in typed]:
            lines.append(f"note: {setting} does not read {list_words(unread)}")
    if plan.options.resume_steps is not None and "TRAINING_STEPS" in plan.options.typed:
        lines.append("note: RESUME_STEPS sets the run's length; TRAINING_STEPS is not read")
    if plan.checkpoint is not None:
        lines += resumption_words(plan.checkpoint, config, corpus_fingerprint=spec.corpus.fingerprint)
    if state.compile_note:
        lines.append(state.compile_note)
    return lines


def _save_model(
    plan: TrainPlan,
    last: "tuple[PreTrainedModel, AdapterBase | None]",
    checkpoints: RunCheckpoints,
    study: Study,
    status: TrialStatus,
    terminal: Terminal,
) -> SavedModel | None:
    """Write the model of the lowest validation loss to SAVE_MODEL; last: the final model and its adapters' base."""
    options = plan.options
    if options.save_model is None:
        return None
    if status != "completed":
        terminal.say(f"no model was written to {options.save_model}: the run is {status}, not completed")
        return None
    from trainable.checkpoint.checkpoint import read_checkpoint
    from trainable.run import load_run_model

    (model, adapters_on), trial = last, study.trials()[0]
    if checkpoints.best_step not in (None, trial["optimizer_steps"]):
        if checkpoints.best_path is None:
            terminal.say("without checkpoints (ENABLE_CHECKPOINTS=False) the last step's model is the one to save")
        else:
            spec, best = plan.loaded.spec, read_checkpoint(checkpoints.best_path)
            model, adapters_on = load_run_model(spec, plan.config, best)
            model, trial = model.to(spec.device), model_row(study, trial)
    try:
        saved = save_run_model(model, plan.loaded, study, trial, folder=options.save_model, adapters_on=adapters_on)
    except UserError as error:
        # After hours of training what came of them is still printed, and how to write the model.
        terminal.warn(f"error: {error}")
        return None
    terminal.say(saved.words)
    return saved


def _train(
    plan: TrainPlan,
    state: "TrainState",
    study: Study,
    checkpoints: RunCheckpoints,
    terminal: Terminal,
    interrupts: Interrupts,
) -> TrialStatus:
    """Train to the end, an unstable loss or a signal, and write the study's tables; return how it ended."""
    from trainable.loop import train

    ledger, log = Ledger(study), TrainLog(plan.config.training_steps, say=terminal.say)
    begun_at_step, last_step, spec = state.optimizer_steps, plan.config.training_steps, plan.loaded.spec
    eval_steps = range(0, last_step + 1, plan.options.eval_interval)
    status: TrialStatus = "completed"
    verdict = None
    ledger.start_trial(PlannedRun(trial_id=0, purpose="train", config=plan.config), started_at=datetime.now(UTC))
    try:
        with _memory_told(plan):
            for row in train(state, spec.corpus, spec.protocol, eval_steps=eval_steps):
                log.tell(row)
                match row:
                    case StepRow():
                        ledger.add_steps(0, [row])
                        checkpoints.after_step(state)
                    case MetricsRow():
                        if not checkpoints.evaluations:
                            losses = start_losses(Start(val_loss=row.val_loss, train_loss=row.train_loss))
                            write_document(study.study_json, {**study.document(), "start": losses})
                        ledger.add_metrics(0, row, None)
                        checkpoints.after_evaluation(state, ledger.metrics())
                    case Verdict():
                        status, verdict = "unstable", row
                        break
                # After the last step only its evaluation is left, which is worth waiting for.
                if interrupts.code is not None and state.optimizer_steps < last_step:
                    status = "interrupted"
                    break
        if status != "unstable":
            checkpoints.at_end(state, begun_at_step=begun_at_step)
    except BaseException as error:
        status = "out_of_memory" if isinstance(error, UserError) else "failed"
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else status
        raise
    finally:
        now, names = datetime.now(UTC), ("optimizer_steps", "tokens_seen", "active_s")
        reached = {name: getattr(state, name) for name in names}
        if status == "interrupted":
            ledger.interrupt(now, **reached)
        else:
            ledger.end_trial(0, status=status, verdict=verdict, ended_at=now, **reached)
    return status


@contextmanager
def _memory_told(plan: TrainPlan) -> Iterator[None]:
    """Turn an out-of-memory error into a UserError."""
    from trainable.device.device_memory import is_out_of_memory

    spec, config = plan.loaded.spec, plan.config
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"BATCH_SIZE={config.batch_size} x BLOCK_SIZE={config.block_size} does not fit in {spec.device} memory. "
            "Lower BATCH_SIZE and raise GRAD_ACCUM_STEPS by the same factor."
        ) from error


class TrainLog:
    """Turns the rows of one run into lines for `say`."""

    def __init__(self, training_steps: int, *, say: Callable[[str], None]) -> None:
        self._training_steps = training_steps
        self._say = say
        self._started_at = time.monotonic()
        # A window, because one stall lowers a mean since the start for the rest of the run.
        self._step_times_s: deque[float] = deque(maxlen=SPEED_WINDOW_STEPS)

    def tell(self, row: StepRow | MetricsRow | Finding | Verdict) -> None:
        """Print the lines of a row."""
        match row:
            case StepRow(optimizer_steps=step):
                self._step_times_s.append(row.step_time_s)
                if step % PROGRESS_INTERVAL_STEPS == 0:
                    left_m = (self._training_steps - step) / self._steps_per_s() / 60
                    self._say(
                        f"{self._at(step)} | {self._steps_per_s():.2f} steps/sec | ETA: {left_m:.1f}m | "
                        f"loss {row.train_loss:.4f} | grad norm {row.grad_norm:.4f}"
                    )
            case MetricsRow():
                self._say(
                    f"{self._at(row.optimizer_steps)}: train loss {row.train_loss:.4f}, val loss {row.val_loss:.4f} | "
                    f"LR: {row.learning_rate:.2e} | {time.monotonic() - self._started_at:.1f}s "
                    f"({self._steps_per_s():.2f} steps/sec)"
                )
            case Finding():
                self._say(f"step {row.step}: {row.kind}: {row.evidence}")
            case Verdict():
                self._say(f"step {row.step}: stopped, {row.reason}: {row.evidence}")

    def _at(self, step: int) -> str:
        return f"step {step}/{self._training_steps} ({100 * step / self._training_steps:.1f}%)"

    def _steps_per_s(self) -> float:
        return len(self._step_times_s) / sum(self._step_times_s) if self._step_times_s else 0.0
