"""`make train`: one configuration, without Ray, from step 0 or from a checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from results.model_card import model_row
from results.samples import samples_json
from results.study.folder import Study, create_study, studies_dir
from results.study.json_documents import write_document
from results.study.ledger import Ledger
from results.study.paths import shown
from results.study.planned_run import PlannedRun
from results.winner import start_val_loss
from results.words import config_words, loss_words, token_words, trial_loss_words
from search.options import Options
from search.setup.folder_of_run import SavedModel, save_run_model
from search.setup.preflight_record import Sharing
from search.setup.preflight_run import PREFLIGHT_FAILED, passes_preflight
from search.setup.resumption import resumption_words
from search.setup.run_checkpoints import KEPT_CHECKPOINTS, RunCheckpoints
from search.setup.samples_run import sample_study
from search.setup.study_record import start_losses
from search.setup.train_plan import TrainPlan, make_train_plan, train_document, with_winner_of
from search.terminal.console import Preparing, Terminal
from search.terminal.next_steps import next_document, say_next
from search.terminal.signals import Interrupts
from search.terminal.summary import sample_lines
from search.terminal.train_log import TrainLog
from trainable.errors import UserError
from trainable.rows import MetricsRow, Start, StepRow, TrialStatus, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trainable.model.lora import AdapterBase
    from trainable.preflight.disk import CheckpointRoom
    from trainable.run import RunSpec
    from trainable.state import TrainState

EXIT_CODES: dict[TrialStatus, int] = {"completed": 0, "unstable": 1, "interrupted": 130}


def train_command(options: Options, terminal: Terminal) -> int:
    """Train one configuration, or the winner of STUDY where that is a study; return the exit code."""
    options = with_winner_of(options)
    with Preparing(terminal.console) as progress:
        plan = make_train_plan(options, progress)
        # On the CPU: whether all fits together shows there too, and preflight needs the device's memory.
        begun = _begin(plan, replace(plan.loaded.spec, compile_mode="off", device="cpu"))
        if plan.save_model is not None and begun.adapter_base is not None and not plan.merge:
            _check_adapters_alone(begun.adapter_base)
        del begun
    if not passes_preflight(
        options,
        plan.inputs,
        plan.loaded,
        plan.config,
        largest=plan.config,
        sharing=Sharing(),
        room=_room(plan),
        terminal=terminal,
        checkpoint=plan.checkpoint,
    ):
        return PREFLIGHT_FAILED
    with _memory_told(plan):
        state = _begin(plan, plan.loaded.spec)
    study = create_study(plan.name, train_document(plan), is_chosen=options.study is not None)
    plan = replace(plan, name=study.name)
    for line in _header(plan, state):
        terminal.say(line)
    checkpoints = RunCheckpoints(
        folder=study.checkpoint_dir(0),
        interval_steps=plan.checkpoint_interval_steps,
        model_name=plan.inputs.model_name,
        corpus_fingerprint=plan.loaded.spec.corpus.fingerprint,
    )
    with Interrupts() as interrupts:
        status = _train(plan, state, study, checkpoints, terminal, interrupts)
    last = state.model, state.adapter_base
    del state  # the optimizer's moments, twice the model
    saved = _save_model(plan, last, checkpoints, study, status, terminal)
    del last
    if status == "completed":
        # What a resumed run starts from are its checkpoint's weights, which the study's inputs are to be read with.
        sample_study(study, options, terminal, plan.loaded if plan.checkpoint is None else None)
    row = study.trials()[0]
    loss = trial_loss_words(row) if status == "unstable" else f"end {loss_words(row['val_loss'])}"
    start = f"start {loss_words(start_val_loss(study.document()))}"
    terminal.say(f"{status}: {start} → {loss}, {token_words(row['tokens_seen'])} tokens; study {shown(study.path)}")
    for line in filter(None, [checkpoints.words, *sample_lines(study)]):
        terminal.say(line)
    if checkpoints.warning:
        terminal.console.print(Text(checkpoints.warning, style="bold red"), soft_wrap=True)
    say_next(study, terminal)
    terminal.document(
        {
            "next": next_document(study, terminal),
            "study": study.name,
            "path": str(study.path),
            "status": status,
            "trial": row,
            "start_val_loss": start_val_loss(study.document()),
            "worse_than_start": checkpoints.warning is not None,
            "best_checkpoint": checkpoints.best_path and str(checkpoints.best_path),
            "model": saved and str(saved.folder),
            "samples": samples_json(study),
        }
    )
    return (status == "interrupted" and interrupts.code) or EXIT_CODES[status]


def _room(plan: TrainPlan) -> "CheckpointRoom | None":
    from trainable.preflight.disk import CheckpointRoom

    # The newest ones, the best, and one being written.
    return CheckpointRoom(folder=studies_dir(), count=KEPT_CHECKPOINTS + 2) if plan.checkpoint_interval_steps else None


def _begin(plan: TrainPlan, spec: "RunSpec") -> "TrainState":
    import torch

    from trainable.device.device_memory import prepare_memory
    from trainable.run import resume_run, start_run

    prepare_memory(torch.device(spec.device))
    if plan.checkpoint is not None:
        return resume_run(spec, plan.config, plan.checkpoint)
    return start_run(spec, plan.config)


def _check_adapters_alone(base: "AdapterBase") -> None:
    from trainable.model.save_folder import adapters_base_name

    adapters_base_name(base)


def _header(plan: TrainPlan, state: "TrainState") -> list[str]:
    facts, config, device = plan.loaded.corpus_facts, plan.config, plan.loaded.device_info
    lines = [
        f"model {plan.inputs.model_name} on {device.type} ({device.name}), {config.precision}; "
        f"{token_words(facts['train_tokens'])} training tokens",
        *plan.inputs.text_lines,
        *plan.loaded.separator_notes,
        f"{config_words(asdict(config))}, {config.training_steps} steps, seed {config.seed}",
    ]
    if plan.checkpoint is not None:
        lines += resumption_words(plan.checkpoint, config, corpus_fingerprint=facts["fingerprint"])
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
    """Write the model of the lowest validation loss to SAVE_MODEL; last: the run's, and what its adapters are on."""
    if plan.save_model is None:
        return None
    if status != "completed":
        terminal.say(f"no model was written to {plan.save_model}: the run is {status}, not completed")
        return None
    (model, adapters_on), trial = last, study.trials()[0]
    if checkpoints.best_path is None:
        if checkpoints.best_step not in (None, trial["optimizer_steps"]):
            terminal.say("without checkpoints (ENABLE_CHECKPOINTS=False) the last step's model is the one to save")
    elif checkpoints.best_step != trial["optimizer_steps"]:
        model, adapters_on = _model_at(plan, checkpoints.best_path)
        trial = model_row(study, trial)
    saved = save_run_model(
        model,
        plan.loaded,
        study,
        trial,
        folder=plan.save_model,
        adapters_on=adapters_on,
        dtype=plan.dtype,
        merge=plan.merge,
    )
    terminal.say(saved.words)
    return saved


def _model_at(plan: TrainPlan, path: Path) -> "tuple[PreTrainedModel, AdapterBase | None]":
    from trainable.checkpoint.checkpoint import read_checkpoint
    from trainable.run import load_run_model

    model, adapters_on = load_run_model(plan.loaded.spec, plan.config, read_checkpoint(path))
    return model.to(plan.loaded.spec.device), adapters_on


def _train(
    plan: TrainPlan,
    state: "TrainState",
    study: Study,
    checkpoints: RunCheckpoints,
    terminal: Terminal,
    interrupts: Interrupts,
) -> TrialStatus:
    ledger = Ledger(study)
    begun_at_step = state.optimizer_steps
    ledger.start_trial(PlannedRun(trial_id=0, purpose="train", config=plan.config), started_at=datetime.now(UTC))
    try:
        status, verdict = _follow(plan, state, study, checkpoints, ledger, terminal, interrupts)
        if status != "unstable":
            checkpoints.at_end(state, begun_at_step=begun_at_step)
    except BaseException as error:
        ended: TrialStatus = "out_of_memory" if isinstance(error, UserError) else "failed"
        _close(ledger, state, "interrupted" if isinstance(error, KeyboardInterrupt) else ended, None)
        raise
    _close(ledger, state, status, verdict)
    return status


def _follow(
    plan: TrainPlan,
    state: "TrainState",
    study: Study,
    checkpoints: RunCheckpoints,
    ledger: Ledger,
    terminal: Terminal,
    interrupts: Interrupts,
) -> tuple[TrialStatus, Verdict | None]:
    log = TrainLog(plan.config.training_steps, say=terminal.say)
    for row in _rows(plan, state):
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
                return "unstable", row
        # After the last step only its evaluation is left, which is shorter than doing the run again.
        if interrupts.code is not None and state.optimizer_steps < plan.config.training_steps:
            return "interrupted", None
    return "completed", None


def _close(ledger: Ledger, state: "TrainState", status: TrialStatus, verdict: Verdict | None) -> None:
    if status == "interrupted":
        ledger.interrupt(datetime.now(UTC))
        return
    ledger.end_trial(
        0,
        status=status,
        verdict=verdict,
        ended_at=datetime.now(UTC),
        optimizer_steps=state.optimizer_steps,
        tokens_seen=state.tokens_seen,
        active_s=state.active_s,
    )


def _rows(plan: TrainPlan, state: "TrainState") -> Iterator[Any]:
    from trainable.loop import train

    spec, config = plan.loaded.spec, plan.config
    eval_steps = range(0, config.training_steps + 1, plan.eval_interval_steps)
    with _memory_told(plan):
        yield from train(state, spec.corpus, spec.protocol, eval_steps=eval_steps)


@contextmanager
def _memory_told(plan: TrainPlan) -> Iterator[None]:
    """Raise UserError in the place of an error of memory."""
    from trainable.device.device_memory import is_out_of_memory

    spec, config = plan.loaded.spec, plan.config
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"BATCH_SIZE={config.batch_size} x BLOCK_SIZE={config.block_size} does not fit in {spec.device} memory. "
            "Lower BATCH_SIZE and raise GRAD_ACCUM_STEPS by the same factor."
        ) from error
