"""Next steps: commands for the user to type as printed, chosen by the state of the study."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from results.attribution.attribution_values import Attribution, load_attribution
from results.attribution.design import changed_settings, config_of
from results.export import make_words, search_command, train_command
from results.ranking import ranked_trials
from results.report.facts.study_facts import edges_of
from results.samples import samples_json
from results.study.document_model import run_variables
from results.study.folder import Study
from results.study.lock import hold
from results.winner import Winner, winner_of
from results.words import amount_words, list_words
from search.terminal.console import Terminal, print_line
from spaces.budget import budget_of
from spaces.read.space_files import SPACES_DIRECTORY
from trainable.checkpoint.checkpoint_path import saved_steps
from trainable.config import BEFORE, HYPERPARAMETERS, config_from, variable_of
from trainable.data.remote_files import below, local_folder
from trainable.errors import NothingToDoError, UserError
from trainable.model.model_names import positions_of
from trainable.regular_files import file_type
from trainable.rows import ENDINGS

MOST_SEEDS = 50
"""A confirmation with more seeds costs more than a search, and is not suggested."""
LONGER = 10
"""Times a trial's budget: the run that a search is for, once nothing of it is left to search."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command, and what it is for."""

    command: str
    purpose: str


def next_steps(study: Study) -> list[Step]:
    """Return the next steps, the most useful first. Raises UserError when a file is damaged."""
    document, rows = study.document(), study.trials()
    winner = winner_of(study)
    name, ended = study.name, sum(row["status"] in ENDINGS for row in ranked_trials(rows))
    if document["kind"] == "train":
        return _after_training(study, document, rows[0], winner) if rows else []
    if document["kind"] == "attribute":
        command = search_command(document, "SPACE=plateau")
        return [Step(command=command, purpose="search around the documented configuration")]
    if ended < document["trials_planned"]:
        return [Step(command=f"make resume STUDY={name}", purpose="go on where it was interrupted")]
    if winner.under_way is not None:
        return [Step(command=f"make confirm STUDY={name}", purpose="go on with the confirmation")]
    diagnose = Step(command=f"make diagnose TARGET={name}", purpose="find what keeps the trials from a lower loss")
    wider = _wider(study) if document["kind"] == "search" else []
    if winner.trial is None or winner.worse_than_start:
        return [diagnose, *wider]
    own = _own(study, document, winner.trial["trial_id"])
    if document["kind"] == "baseline" and winner.standing == "baseline_alone":
        command = search_command(document, f"{_space_words(document, winner.trial)} BASELINE={name}")
        return [*own, Step(command=command, purpose="search for settings that beat it")]
    return [*_about(study, document, winner, diagnose, own), *wider]


@contextmanager
def with_remedy(study: Study) -> Iterator[None]:
    """Add remedy() to the error that says that there is nothing to do yet."""
    try:
        yield
    except NothingToDoError as error:
        raise UserError(f"{error}{remedy(study)}") from None


def remedy(study: Study) -> str:
    """Return the first next step as the end of an error, or raise UserError that says who does the study just now."""
    with hold(study):
        steps = next_steps(study)[:1]
    return "".join(f" {step.purpose[0].upper()}{step.purpose[1:]}: {step.command}" for step in steps)


def _space_words(document: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """Return what names the space whose baseline was run alone, so that a search of it fits the model."""
    path = Path((document.get("space") or {}).get("path", ""))
    space = path.stem if path.parent == SPACES_DIRECTORY else str(path) if path.is_file() else "plateau"
    block = document.get("settings", {}).get("pins", {}).get("block_size")
    if space == "plateau" and plateau_block(document["model"]) is not None:
        block = baseline["block_size"]
    return make_words({"SPACE": space, "BLOCK_SIZE": block and f"{block}"})


def plateau_block(model: str) -> str | None:
    """Return the BLOCK_SIZE without which the plateau space has longer blocks than the model reads, None if it fits."""
    limit = positions_of(model)
    return f"{limit}" if limit is not None and limit < BEFORE.block_size else None


def _own(study: Study, document: Mapping[str, Any], trial_id: int) -> list[Step]:
    """Return the steps that write a trial's model and train it again; one step where its checkpoint was not kept."""
    name = study.name
    if _is_kept(study, document.get("storage"), trial_id):
        what = "write the trained model as a folder that transformers loads"
        model = Step(command=f"make model STUDY={name}", purpose=what)
        return [model, Step(command=f"make train STUDY={name}", purpose="train that configuration again")]
    purpose = "train that configuration again and write its model: no checkpoint of it was kept"
    return [Step(command=train_again(study, study.path / f"model-{trial_id}"), purpose=purpose)]


def _is_kept(study: Study, storage: str | None, trial_id: int) -> bool:
    try:
        # An object store is not asked for a line to print.
        return bool((storage and not local_folder(storage)) or last_checkpoint(study, trial_id, storage))
    except OSError:
        # What cannot be reached is not empty: make model says what is wrong with it.
        return True


def last_checkpoint(study: Study, trial_id: int, storage: str | None = None) -> Path | None:
    """Return the newest checkpoint of a trial, in the study or in a storage that is a folder; None without one.

    Raises OSError.
    """
    # Of two of the same step the study's own is taken.
    places = [*([local_folder(below(storage, study.name))] if storage else []), study.path]
    folders = (Study(place).checkpoint_dir(trial_id) for place in places if place)
    # Not by glob(), to which a folder that cannot be reached is an empty one.
    paths = [path for folder in folders if file_type(folder) for path in folder.iterdir()]
    found = {step: path for path in paths for step in saved_steps([path.name])}
    return found[max(found)] if found else None


def train_again(study: Study, folder: Path) -> str:
    """Return the command that trains a study's winner again and writes its model to the folder."""
    return f"{train_command(study, winner_of(study))} {make_words({'SAVE_MODEL': str(folder)})}"


def _after_training(study: Study, document: Mapping[str, Any], row: dict[str, Any], winner: Winner) -> list[Step]:
    diagnose = Step(
        command=f"make diagnose TARGET={study.name}/0", purpose="find what is wrong with the run, if anything"
    )
    if winner.worse_than_start:
        return [diagnose]
    if row["status"] == "completed":
        return [_own(study, document, 0)[0], diagnose]
    command = going_on(study)
    if row["status"] in ENDINGS or command is None:
        return [diagnose]
    return [Step(command=command, purpose="go on from its last checkpoint")]


def going_on(study: Study) -> str | None:
    """Return the command that goes on from the newest checkpoint of a run of train, None without one."""
    checkpoint, document = last_checkpoint(study, 0), study.document()
    if checkpoint is None:
        return None
    # The checkpoint has the model and the hyperparameters, and not what they are trained and evaluated on.
    values = {"CHECKPOINT_PATH": None, **run_variables(document)} | {
        "CHECKPOINT_PATH": str(checkpoint),
        "GPT2_MODEL_NAME": None,
        # An export of the study that it began from sets True.
        "WEIGHTS_ONLY": document["checkpoint_path"] and "False",
        "EVAL_BLOCK_SIZE": str(document["evaluation"]["block_size"]),
        "EVAL_TOKENS": str(document["evaluation"]["tokens"]),
        **document.get("run_options", {}),
    }
    return f"make train {make_words(values)}"


def _about(study: Study, document: Mapping[str, Any], winner: Winner, diagnose: Step, own: list[Step]) -> list[Step]:
    name = study.name
    add = f"make resume STUDY={name} TRIALS=+{len(ranked_trials(study.trials()))}"
    more = [Step(command=add, purpose="run more trials")] if has_more(document) else []
    # BASELINE takes a study's settings, not its model and text.
    search = search_command(document, f"SPACE=schedule BASELINE={name}")
    further = Step(command=search, purpose="search the LR schedule around it")
    is_over = (document.get("space") or {}).get("name") == "schedule"
    if is_over:
        own_budget = budget_of(document)
        tokens, device_s = own_budget.tokens, own_budget.device_s
        longer = own_budget.asked(None if device_s else LONGER * tokens, device_s and LONGER * device_s)
        train = f"make train STUDY={name} {longer.setting}"
        further = Step(command=train, purpose=f"train it {LONGER} times as long, its schedule stretched")
    match winner.standing:
        case "proven":
            return [*_rival(study, winner), *own, *_why(study, winner), further]
        case "unproven":
            return [*_proof(study, winner, more), *own, *_why(study, winner), further]
        case "no_comparison":
            return [diagnose, *own]
    return [*more, diagnose, *own, *([further] if is_over else [])]


def _why(study: Study, winner: Winner) -> list[Step]:
    """Return what finds the setting that did it, or what has been found; none where only one was changed."""
    assert winner.trial is not None
    assert winner.baseline is not None
    known = load_attribution(study)
    # Of an earlier winner it explains nothing about this one.
    if known and known.after_name == winner.name:
        return _without_costs(study, winner.trial, known)
    if len(changed_settings(config_from(winner.baseline), config_from(winner.trial))) < 2:
        return []
    return [Step(command=f"make attribute STUDY={study.name}", purpose="find which of the changed settings did it")]


def _without_costs(study: Study, trial: Mapping[str, Any], found: Attribution) -> list[Step]:
    """Return the step that trains the trial without the changes that are proven to have cost it something."""
    shares = {change: effect.shapley for change, effect in enumerate(found.effects)}
    costs = {change: one.mean for change, one in shares.items() if one and one.is_proven and one.mean > 0.0}
    if not costs:
        return []
    document, own = study.document(), config_from(trial)
    try:
        config = budget_of(document).sized(config_of(own, config_from(document["baseline"]), found.settings, costs))
    except UserError:  # of a shape whose speed was measured for the attribution alone
        return []
    changed = [name for name in HYPERPARAMETERS if config.reads(name) and getattr(config, name) != getattr(own, name)]
    words = make_words({variable_of(name): f"{getattr(config, name)}" for name in changed})
    names = list_words([found.settings[change].name for change in costs])
    purpose = f"train it without {names}, which cost it {amount_words(sum(costs.values()))} nats/token"
    return [Step(command=f"make train STUDY={study.name} {words}", purpose=purpose)]


def has_more(document: Mapping[str, Any]) -> bool:
    """Return whether more trials can be run: of a search, and not where every configuration has been run."""
    is_grid = document.get("searcher", {}).get("name") == "grid"
    return document["kind"] == "search" and not is_grid and not document.get("exhausted")


def _proof(study: Study, winner: Winner, more: list[Step]) -> list[Step]:
    command = f"make confirm STUDY={study.name}"
    if winner.verdict is None:
        completed = [row for row in ranked_trials(study.trials()) if row["status"] == "completed"]
        best = "the best two" if len(completed) > 2 else "it"
        return [Step(command=command, purpose=f"prove it: train {best} and the baseline again on fresh seeds")]
    needed, is_behind = winner.verdict.seeds_needed, (winner.verdict.mean_difference or 0.0) > 0.0
    if needed is None or needed > MOST_SEEDS:
        return more
    purpose = f"prove it {'worse ' if is_behind else ''}with about {needed} seeds"
    assert winner.attempt is not None
    # Beside another candidate it would have half the alpha, and need more seeds.
    is_alone = len(winner.attempt.candidates) == 1
    confirm = Step(command=f"{command}{' TOP=1' if is_alone else ''} SEEDS={needed}", purpose=purpose)
    return [*more, confirm] if is_behind else [confirm]


def _rival(study: Study, winner: Winner) -> list[Step]:
    """Return the step that confirms a trial which came first in the search after another was proven."""
    best = winner.search_best
    if best is None or best["is_baseline"] or best["trial_id"] in winner.confirmed:
        return []
    purpose = f"confirm trial {best['trial_id']}, which came first in the search"
    return [Step(command=f"make confirm STUDY={study.name}", purpose=purpose)]


def _wider(study: Study) -> list[Step]:
    words = [edge["words"] for edge in edges_of(study)]
    if not words:
        return []
    # Not NAME.toml, which may be the space file that was searched.
    command = f"make -s export STUDY={study.name} FORMAT=toml > {study.name}-wider.toml"
    return [Step(command=command, purpose=f"write a space file to change: {'; '.join(words)}")]


def ending_document(study: Study, terminal: Terminal) -> dict[str, Any]:
    """Print the next steps; return what every command that has run trials says of the study as JSON."""
    following = say_next(next_steps(study), terminal)
    return {"study": study.name, "path": str(study.path), "samples": samples_json(study), "next": following}


def say_next(steps: Sequence[Step], terminal: Terminal) -> list[dict[str, str]]:
    """Print the steps, each as it is typed, and return them for a program."""
    if steps:
        terminal.say("", "next:")
    document = [{"command": terminal.typed(step.command), "purpose": step.purpose} for step in steps]
    for one in document:
        # On a line of its own and unbroken, so that it can be copied.
        terminal.console.print(Text(f"  {one['command']}"), soft_wrap=True)
        print_line(terminal.console, Text(one["purpose"], style="dim"), indent=6)
    return document
