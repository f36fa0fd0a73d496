"""The plan of `make train`: one run, from the variables, a checkpoint or a study's winner. It is checked, not run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, get_args

from results.export import winner_env
from results.study.document_model import RunOption
from results.study.folder import LATEST, Study, find_study, list_studies, new_study_name, open_study
from results.winner import winner_of
from results.words import list_words, value_words
from search.cluster.study_storage import fetch_checkpoint, open_or_fetch_study
from search.options import LENGTHS, Options, check_lora, parse_options, with_default_warmup, with_newest_schedule
from search.setup.inputs import Loaded, check_inputs, load_inputs
from search.setup.plan import study_name
from search.setup.reopen import check_there
from search.setup.study_record import study_document
from search.terminal.console import Preparing
from search.terminal.next_steps import last_checkpoint, with_remedy
from spaces.budget import Budget, budget_of
from trainable.config import DOCUMENTED, ENV_NAMES, HYPERPARAMETERS, TrialConfig, config_from, make_config, variable_of
from trainable.errors import UserError, as_user_error
from trainable.model.model_names import check_model_name, check_model_target
from trainable.schedule import learning_rate_at

if TYPE_CHECKING:
    from trainable.checkpoint.checkpoint import Checkpoint


DEFAULT_EVAL_TOKENS = 16_384
DOCUMENTED_RESUME_STEPS = 2000
WITHOUT_HORIZON = ("constant", "warmup_constant")
"""Schedules whose rate does not depend on the length of the run."""
SAID_BY_A_CHECKPOINT = ("USE_LR_WARMUP", "WEIGHTS_ONLY")
"""Besides the hyperparameters."""
THE_RATE = ("learning_rate", "lr_schedule", "warmup_steps", "min_lr_frac", "decay_frac")


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """One run, decided and checked."""

    name: str
    config: TrialConfig
    loaded: Loaded
    checkpoint: "Checkpoint | None"
    """From which the run continues; None when it starts at step 0."""

    @property
    def options(self) -> Options:
        """What the user set."""
        return self.loaded.inputs.options

    @property
    def checkpoint_interval_steps(self) -> int | None:
        """None keeps no checkpoints."""
        return self.options.checkpoint_interval if self.options.enable_checkpoints else None


def length_asked(study: Study, options: Options) -> Budget | None:
    """Return the length that BUDGET_TOKENS, BUDGET_TIME or STEPS give a run of the study's winner; None for its own.

    Raises UserError for a time in a study of tokens.
    """
    if options.steps is not None:
        winner = winner_of(study).trial
        return Budget(tokens=options.steps * config_from(winner).tokens_per_step) if winner else None
    own = budget_of(study.document())
    budget = own.asked(options.budget_tokens, options.budget_time)
    return None if budget == own else budget


def with_winner_of(options: Options) -> Options:
    """Return the options with the winner's configuration where STUDY names a search or a baseline.

    Other variables override it, and the run's own name is made from the study's. Its schedule is stretched over the
    length that is asked for. RESUME_STEPS and RESUME_LR=hold go on from its last checkpoint.
    """
    asked = options.study
    if not asked:
        return options
    study = None if asked == LATEST else find_study(asked)
    goes_on = options.resume_steps is not None or options.resume_lr == "hold"
    if goes_on and options.checkpoint_path is None and (options.storage or list_studies()):
        # Its checkpoint may be in STORAGE, and so may the study itself.
        study, options = open_or_fetch_study(options)
    elif study is None and (options.lengths or asked == LATEST):
        # A name that is free is the new run's, which has no winner to stretch.
        study = open_study(asked)
    if study is None:
        return options
    if study.document()["kind"] == "train" and not goes_on:
        if options.lengths:
            raise UserError(
                f"{options.lengths[0]} stretches the winner of a search, and study {study.name} is a run of train. "
                "RESUME_STEPS=500 goes on with it for 500 steps; another STUDY= name with TRAINING_STEPS begins anew."
            )
        return options
    other_lengths = [name for name in ("TRAINING_STEPS", "RESUME_STEPS", "RESUME_LR") if name in options.texts]
    if options.lengths and other_lengths:
        raise UserError(
            f"{options.lengths[0]} and {other_lengths[0]} set the length of the same run. Unset one of them."
        )
    own = {name: text for name, text in options.texts.items() if name not in ("STUDY", *LENGTHS)}
    with with_remedy(study):
        winner = winner_env(study, length_asked(study, options))
    held = winner.keys() - {"EXPORTED_FROM", *options.typed}
    others = [name for name, text in winner.items() if name in held and own.get(name, text) != text]
    if options.exported_from is not None and others:
        # The shell holds another winner, which would be trained under this study's name.
        raise UserError(f"STUDY={study.name}: its winner has another {list_words(others)}.")
    if goes_on and "CHECKPOINT_PATH" not in own:
        # It has the configuration in it.
        winner = {name: text for name, text in winner.items() if name not in (*ENV_NAMES, *SAID_BY_A_CHECKPOINT)}
        trial = winner_of(study).trial
        assert trial is not None
        place = options.storage or study.path
        with as_user_error(OSError, f"checkpoints in {place} cannot be read", "Set STORAGE to where they are."):
            checkpoint = last_checkpoint(study, trial["trial_id"], options.storage)
        if checkpoint is None and options.storage is not None:
            checkpoint = fetch_checkpoint(study, options.storage, trial["trial_id"])
        if checkpoint is None:
            remedy = "Unset RESUME_STEPS and RESUME_LR to train it from its start"
            raise UserError(f"STUDY={study.name}: no checkpoint of its winner was kept to go on from. {remedy}.")
        winner["CHECKPOINT_PATH"] = str(checkpoint)
    check_there({name: text for name, text in winner.items() if name not in own})
    name = new_study_name(f"train-{study.name.removeprefix('train-')}", datetime.now())
    texts = {**{name: text for name, text in winner.items() if text}, **own, "STUDY": name}
    return parse_options(with_newest_schedule(texts, own), typed=options.typed)


def make_train_plan(options: Options, progress: Preparing) -> TrainPlan:
    """Return the run that the variables ask for. Raises UserError; nothing is written before it returns."""
    if named := options.lengths:
        raise UserError(f"{named[0]} stretches a study's winner (STUDY=...); any other run takes TRAINING_STEPS.")
    given = options.explicit_hyperparameters()
    path, weights_only, resume_steps = options.checkpoint_path, options.weights_only, options.resume_steps
    hold_rate = options.resume_lr == "hold"
    asked = {"RESUME_STEPS": resume_steps, "RESUME_LR=hold": hold_rate, "WEIGHTS_ONLY": weights_only}
    named = [name for name, value in asked.items() if value]
    if path is None and named:
        raise UserError(f"{named[0]} is set but CHECKPOINT_PATH is not. Set CHECKPOINT_PATH, or unset {named[0]}.")
    if weights_only and len(named) > 1:
        raise UserError(f"{named[0]} goes on from a step and WEIGHTS_ONLY starts at step 0. Unset one of them.")
    # Checked here, before the text is read; with a checkpoint the configuration depends on the checkpoint's.
    config = make_config(DOCUMENTED, with_default_warmup(given, DOCUMENTED)) if path is None or weights_only else None
    if options.save_model is not None:
        check_model_target(options.save_model)
    name = study_name(options, "train")
    inputs = check_inputs(options, progress=progress)
    checkpoint = None
    if path is not None:
        progress("reading the checkpoint", 0.0)
        from trainable.checkpoint.checkpoint import read_checkpoint

        checkpoint = read_checkpoint(path)
    if checkpoint is not None and checkpoint.model_name and options.gpt2_model_name is None:
        check_model_name(checkpoint.model_name)
        inputs = replace(inputs, model_name=checkpoint.model_name)
    if config is None:
        assert checkpoint is not None
        config = resumed_config(given, checkpoint, resume_steps=resume_steps, hold_rate=hold_rate)
    check_lora(given, uses_lora=config.use_lora)
    loaded = load_inputs(
        inputs,
        block_size=options.eval_block_size,
        eval_tokens=options.eval_tokens or max(DEFAULT_EVAL_TOKENS, options.eval_block_size),
        init_from=path if weights_only else None,
        progress=progress,
    )
    return TrainPlan(name=name, config=config, loaded=loaded, checkpoint=None if weights_only else checkpoint)


def train_document(plan: TrainPlan) -> dict[str, Any]:
    """Return the run's study.json, without what it starts from."""
    folder = plan.options.save_model
    texts = {**plan.options.texts, **({"SAVE_MODEL": str(folder)} if folder else {})}
    asked = {
        "kind": "train",
        "run_options": {name: texts[name] for name in get_args(RunOption) if name in texts},
        "evaluation": {},
        "budget_tokens": plan.config.training_steps * plan.config.tokens_per_step,
        "baseline": {"name": "train", **asdict(plan.config)},
        "seed": plan.config.seed,
        "trials_planned": 1,
    }
    return study_document(plan.name, asked, loaded=plan.loaded, slots={"slots": 1})


def resumed_config(
    given: Mapping[str, Any], checkpoint: "Checkpoint", *, resume_steps: int | None, hold_rate: bool
) -> TrialConfig:
    """Return the configuration to continue with: the given values in the checkpoint's, or else in the documented one.

    hold_rate keeps the learning rate of the checkpoint's step. Raises UserError for a checkpoint without a step.
    """
    base, step = checkpoint.config or DOCUMENTED, checkpoint.step_to_continue_from
    values = dict(given)
    if resume_steps is not None:
        values["training_steps"] = step + resume_steps
    elif checkpoint.config is None:
        values.setdefault("training_steps", step + DOCUMENTED_RESUME_STEPS)
    if hold_rate:
        values |= _held_rate(given, checkpoint)
    return make_config(base, with_default_warmup(values, base))


def resumption_words(checkpoint: "Checkpoint", config: TrialConfig, *, corpus_fingerprint: str) -> list[str]:
    """Return lines on the step the run continues from, whether bit for bit, and how its learning rate goes on."""
    step, before = checkpoint.step_to_continue_from, checkpoint.config
    where = f"resumed from {checkpoint.path} at step {step}"
    if before is None or checkpoint.ours is None:
        return [f"{where}, with its weights; the optimizer starts from zero"]
    changed = [
        f"{name} {value_words(getattr(config, name))} (was {value_words(getattr(before, name))})"
        for name in HYPERPARAMETERS
        if name != "training_steps" and getattr(config, name) != getattr(before, name)
    ]
    same_text = checkpoint.ours["corpus_fingerprint"] == corpus_fingerprint
    same_plan = config.training_steps == before.training_steps or config.lr_schedule in WITHOUT_HORIZON
    if same_text and same_plan and not changed:
        return [f"{where}, exactly as it was left"]
    lines = [f"{where}, with its optimizer, random numbers and data position"]
    if changed:
        lines.append(f"changed since: {', '.join(changed)}")
    lines.append(_rate_words(step, before, config))
    if not same_text:
        lines.append("the checkpoint's text or tokenizer was another one: its losses cannot be compared with these")
    return lines


def _held_rate(given: Mapping[str, Any], checkpoint: "Checkpoint") -> dict[str, Any]:
    named = [name for name in THE_RATE if name in given]
    if named:
        variable = variable_of(named[0])
        raise UserError(f"RESUME_LR=hold keeps the checkpoint's own rate, and {variable} sets another. Unset one.")
    if checkpoint.config is None:
        remedy = "Set LEARNING_RATE and LR_SCHEDULE=constant"
        raise UserError(f"RESUME_LR=hold: {checkpoint.path} is not ours and does not say its rate. {remedy}.")
    rate = learning_rate_at(checkpoint.step_to_continue_from, checkpoint.config)
    if rate == 0:
        raise UserError("RESUME_LR=hold: the run's learning rate had come to 0. Unset RESUME_LR.")
    return {"learning_rate": rate, "lr_schedule": "constant", "warmup_steps": 0}


def _rate_words(step: int, before: TrialConfig, config: TrialConfig) -> str:
    was, now = learning_rate_at(step, before), learning_rate_at(step, config)
    ended = "ended at" if step >= before.training_steps else "had come to"
    line = f"the rate continues at {now:.2e}; the run before {ended} {was:.2e}"
    if config.training_steps == before.training_steps or config.lr_schedule in WITHOUT_HORIZON:
        return line
    return (
        f"{line}. The schedule's horizon is now {config.training_steps} steps (it was {before.training_steps}); "
        f"RESUME_LR=hold stays at {was:.2e}."
    )
