"""`make help`: lists every variable with its meaning, in groups."""

from collections.abc import Mapping

from rich.table import Table

from search.options import FIELDS, Options, describe_variable, describe_variables
from search.terminal.console import Terminal
from trainable.config import ENV_NAMES
from trainable.errors import redacted

GROUPS: Mapping[str, tuple[str, ...]] = {
    "what is searched": (
        "SPACE", "STUDY", "TRIALS", "BUDGET_TOKENS", "BUDGET_TIME", "BASELINE", "WARM_START", "CONFIRM",
        "SKIP_PREFLIGHT", "FORCE",
    ),
    "your model and text": (
        "GPT2_MODEL_NAME", "TRAINING_DATA_SOURCE", "VALIDATION_DATA_SOURCE", "DOCUMENTS", "CHECKPOINT_PATH",
        "SAMPLE_PROMPT", "MODEL_TYPE",
    ),
    "the machine": (
        "DEVICE", "CONCURRENCY", "THREADS", "GPU_FRACTION", "GRADIENT_CHECKPOINTING", "COMPILE",
        "CHECKPOINT_INTERVAL_S", "EVALUATION_TIMEOUT_S", "ADDRESS", "STORAGE", "STUDIES_DIR", "CACHE_DIR",
    ),
    "trackers": ("TENSORBOARD", "OPTUNA_STORAGE", "MLFLOW", "WANDB"),
    "train": (
        "WEIGHTS_ONLY", "RESUME_STEPS", "RESUME_LR", "EVAL_BLOCK_SIZE", "EVAL_TOKENS", "EVAL_INTERVAL",
        "ENABLE_CHECKPOINTS", "CHECKPOINT_INTERVAL", "SAVE_MODEL", "USE_LR_WARMUP",
    ),
    "other commands": (
        "COMPARE", "TOP", "SEEDS", "FROM", "TO", "FORMAT", "OUT", "DTYPE", "MERGE", "TARGET", "RANGE", "CLEAN",
        "STEPS", "EXPORTED_FROM",
    ),
}  # fmt: skip
HYPERPARAMETERS_HEADING = "hyperparameters (pinned for a whole search where they are set)"


def variable_groups() -> dict[str, list[tuple[str, str]]]:
    """Return (name, meaning) of every variable by its group's heading, the hyperparameters last."""
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(FIELDS)
    groups = {heading: [(name, describe_variable(name)) for name in names] for heading, names in GROUPS.items()}
    return {**groups, HYPERPARAMETERS_HEADING: [one for one in describe_variables() if one[0] in ENV_NAMES]}


def variables_command(options: Options, terminal: Terminal) -> int:
    """Print the variables; one that is set is shown with its value."""
    groups = variable_groups()
    width = max(len(name) for group in groups.values() for name, _ in group)
    for heading, variables in groups.items():
        terminal.say(f"\n{heading}")
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=width + 2, no_wrap=True)
        for name, meaning in variables:
            value = redacted(options.texts.get(name, ""))
            table.add_row(f"  {name}", f"{meaning}; now {value}" if value else meaning)
        terminal.console.print(table)
    terminal.document({"variables": dict(describe_variables())})
    return 0
