"""`make train`: one configuration, without Ray; the owner's training.py and training_resume.py in one."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.study.folder import Study, create_study
from results.study.ledger import Ledger
from results.study.planned_run import PlannedRun
from results.words import config_words, loss_words, token_words, trial_loss_words
from search.options import Options, with_default_warmup
from search.setup.inputs import Inputs, Loaded, check_inputs, load_inputs
from search.setup.plan import study_name
from search.setup.preflight_run import PREFLIGHT_FAILED, passes_preflight
from search.setup.study_record import study_document
from search.terminal.console import Preparing, Terminal
from search.terminal.signals import Interrupts
from search.terminal.train_log import TrainLog
from trainable.checkpoint.checkpoint_path import checkpoint_name
from trainable.config import DOCUMENTED, TrialConfig, make_config
from trainable.errors import UserError
from trainable.model.model_names import check_model_name
from trainable.rows import MetricsRow, StepRow, TrialStatus, Verdict

if TYPE_CHECKING:
    from trainable.checkpoint.checkpoint import Checkpoint
    from trainable.state import TrainState

DEFAULT_EVAL_TOKENS = 16_384
DOCUMENTED_RESUME_STEPS = 2000
KEPT_CHECKPOINTS = 3
EXIT_CODES: dict[TrialStatus, int] = {"completed": 0, "unstable": 1, "interrupted": 130}


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """One run, decided and checked."""

    name: str
    config: TrialConfig
    inputs: Inputs
    loaded: Loaded
    checkpoint: "Checkpoint | None"
    """Where the run goes on from; None when it starts at step 0."""
    eval_interval_steps: int
    checkpoint_interval_steps: int | None


def train_command(options: Options, terminal: Terminal) -> int:
    """Train one configuration; return the exit code."""
    with Preparing(terminal.console) as progress:
        plan = make_train_plan(options, progress)
        _begin(plan)
    if not passes_preflight(
        options,
        plan.inputs,
        plan.loaded,
        plan.config,
        largest=plan.config,
        runs_at_once=1,
        terminal=terminal,
        checkpoint=plan.checkpoint,
    ):
        return PREFLIGHT_FAILED
    state = _begin(plan)
    study = create_study(plan.name, _document(plan))
    for line in _header(plan, state):
        terminal.say(line)
    with Interrupts() as interrupts:
        status = _train(plan, state, study, terminal, interrupts)
    row = study.trials()[0]
    loss = trial_loss_words(row) if status == "unstable" else f"val loss {loss_words(row['val_loss'])}"
    terminal.say(f"{status}: {loss}, {token_words(row['tokens_seen'])} tokens; {study.path}")
    terminal.document({"study": study.name, "path": str(study.path), "status": status, "trial": row})
    return (status == "interrupted" and interrupts.code) or EXIT_CODES[status]


def make_train_plan(options: Options, progress: Preparing) -> TrainPlan:
    """Return the run that the variables ask for. Raises UserError; nothing is written before it returns."""
    given = options.explicit_hyperparameters()
    weights_only = options.weights_only
    resume_steps = options.resume_steps
    path = options.checkpoint_path
    if path is None and (resume_steps or weights_only):
        what = "RESUME_STEPS" if resume_steps else "WEIGHTS_ONLY"
        raise UserError(f"{what} is set but CHECKPOINT_PATH is not. Set CHECKPOINT_PATH, or unset {what}.")
    if path is None:
        # Checked here because it costs nothing; with a checkpoint its own configuration has a say.
        _config(given, None, resume_steps)
    name = study_name(options, "train")
    inputs = check_inputs(options, progress=progress)
    checkpoint = _read(path, progress) if path else None
    if checkpoint is not None and checkpoint.model_name and options.gpt2_model_name is None:
        check_model_name(checkpoint.model_name)
        inputs = replace(inputs, model_name=checkpoint.model_name)
    config = _config(given, None if weights_only else checkpoint, resume_steps)
    loaded = load_inputs(
        inputs,
        block_size=options.eval_block_size,
        eval_tokens=options.eval_tokens or max(DEFAULT_EVAL_TOKENS, options.eval_block_size),
        stability={},
        init_from=path if weights_only else None,
        progress=progress,
    )
    return TrainPlan(
        name=name,
        config=config,
        inputs=inputs,
        loaded=loaded,
        checkpoint=None if weights_only else checkpoint,
        eval_interval_steps=options.eval_interval,
        checkpoint_interval_steps=options.checkpoint_interval if options.enable_checkpoints else None,
    )


def _read(path: Path, progress: Preparing) -> "Checkpoint":
    progress("reading the checkpoint", 0.0)
    from trainable.checkpoint.checkpoint import read_checkpoint

    return read_checkpoint(path)


def _config(given: dict[str, Any], checkpoint: "Checkpoint | None", resume_steps: int | None) -> TrialConfig:
    base = (checkpoint and checkpoint.config) or DOCUMENTED
    if checkpoint is not None and resume_steps is not None:
        given = {**given, "training_steps": checkpoint.optimizer_steps + resume_steps}
    elif checkpoint is not None and checkpoint.config is None and "training_steps" not in given:
        given = {**given, "training_steps": checkpoint.optimizer_steps + DOCUMENTED_RESUME_STEPS}
    return make_config(base, with_default_warmup(given, base))


def _begin(plan: TrainPlan) -> "TrainState":
    from trainable.device.device import keep_freed_pages
    from trainable.run import resume_run, start_run

    keep_freed_pages()
    if plan.checkpoint is not None:
        return resume_run(plan.loaded.spec, plan.config, plan.checkpoint)
    return start_run(plan.loaded.spec, plan.config)


def _document(plan: TrainPlan) -> dict[str, Any]:
    asked = {
        "kind": "train",
        "evaluation": {},
        "budget_tokens": plan.config.training_steps * plan.config.tokens_per_step,
        "baseline": {"name": "train", **asdict(plan.config)},
        "seed": plan.config.seed,
        "trials_planned": 1,
    }
    return study_document(plan.name, asked, loaded=plan.loaded, slots={"slots": 1})


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
        ours = "exactly as it was left" if plan.checkpoint.ours else "with its weights; the optimizer starts anew"
        lines.append(f"resumed from {plan.checkpoint.path} at step {state.optimizer_steps}, {ours}")
        if plan.checkpoint.ours and plan.checkpoint.ours["corpus_fingerprint"] != facts["fingerprint"]:
            lines.append("its text or tokenizer was another one: the weights go on, the losses do not compare")
    if state.compile_note:
        lines.append(state.compile_note)
    return lines


def _train(
    plan: TrainPlan, state: "TrainState", study: Study, terminal: Terminal, interrupts: Interrupts
) -> TrialStatus:
    ledger = Ledger(study)
    ledger.start_trial(PlannedRun(trial_id=0, purpose="train", config=plan.config), started_at=datetime.now(UTC))
    try:
        status, verdict = _follow(plan, state, study, ledger, terminal, interrupts)
        if status != "unstable" and plan.checkpoint_interval_steps:
            _save(plan, state, study)
    except BaseException as error:
        ended: TrialStatus = "out_of_memory" if isinstance(error, UserError) else "failed"
        _close(ledger, state, "interrupted" if isinstance(error, KeyboardInterrupt) else ended, None)
        raise
    _close(ledger, state, status, verdict)
    return status


def _follow(
    plan: TrainPlan, state: "TrainState", study: Study, ledger: Ledger, terminal: Terminal, interrupts: Interrupts
) -> tuple[TrialStatus, Verdict | None]:
    log = TrainLog(plan.config.training_steps, say=terminal.say)
    for row in _rows(plan, state):
        log.tell(row)
        match row:
            case StepRow():
                ledger.add_steps(0, [row])
                _maybe_save(plan, state, study)
            case MetricsRow():
                ledger.add_metrics(0, row, None)
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
    from trainable.device.device import is_out_of_memory
    from trainable.loop import train

    spec, config = plan.loaded.spec, plan.config
    eval_steps = range(0, config.training_steps + 1, plan.eval_interval_steps)
    try:
        yield from train(state, spec.corpus, spec.protocol, eval_steps=eval_steps)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"BATCH_SIZE={config.batch_size} x BLOCK_SIZE={config.block_size} does not fit in {spec.device} memory. "
            "Lower BATCH_SIZE and raise GRAD_ACCUM_STEPS by the same factor."
        ) from error


def _maybe_save(plan: TrainPlan, state: "TrainState", study: Study) -> None:
    if plan.checkpoint_interval_steps and state.optimizer_steps % plan.checkpoint_interval_steps == 0:
        _save(plan, state, study)


def _save(plan: TrainPlan, state: "TrainState", study: Study) -> None:
    from trainable.checkpoint.checkpoint import save_checkpoint

    folder = study.checkpoint_dir(0)
    save_checkpoint(
        state,
        folder / checkpoint_name(state.optimizer_steps),
        model_name=plan.inputs.model_name,
        corpus_fingerprint=plan.loaded.spec.corpus.fingerprint,
    )
    for stale in sorted(folder.glob("step_*.pt"))[:-KEPT_CHECKPOINTS]:
        stale.unlink()
