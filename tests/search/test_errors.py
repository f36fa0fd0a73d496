"""Every mistake is one line that names it, exit code 2, told before torch is loaded, and leaves no study behind."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SPACE = """
trials = 4
[budget]
tokens = 12_800
[evaluation]
tokens = 256
count = 4
[baseline]
batch_size = 4
block_size = 32
[search]
learning_rate = {{ log_uniform = [1e-5, 1e-2] }}
{}
"""


class Bomb:
    """What a pickle with code in it holds: loading it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.target), "w")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Broken things to name: texts, checkpoints, model folders, space files, and a study whose name is taken."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "empty.txt").write_text("")
    (folder / "latin1.txt").write_bytes("gr\xfc\xdfe\n".encode("latin-1") * 100)
    (folder / "lines.jsonl").write_text('{"text": "Hello there."}\n')
    (folder / "short.txt").write_text("Hello there.\n")
    (folder / "no_text").mkdir()
    (folder / "empty.pt").write_bytes(b"")
    (folder / "garbage.pt").write_bytes(b"these are not tensors" * 10)
    (folder / "cut.pt").write_bytes(b"PK\x03\x04" + bytes(200))
    (folder / "bomb.pt").write_bytes(pickle.dumps({"model_state_dict": Bomb(folder / "ran")}))
    (folder / "no_config").mkdir()
    (folder / "bad_config").mkdir()
    (folder / "bad_config" / "config.json").write_text("{not json")
    (folder / "a_file").write_text("")
    (folder / "studies" / "taken").mkdir(parents=True)
    for name, lines in {
        "unknown_key": "[searcher]\nnmae = 'tpe'",
        "unknown_rule": "[stability]\nmedian_stps = 5",
        "bad_rule": "[stability]\nmedian_steps = -5",
        "too_large": "batch_size = { choice = [4, 4096] }",
    }.items():
        (folder / f"{name}.toml").write_text(SPACE.format(lines))
    (folder / "not_toml.toml").write_text("trials = = 4")
    return folder


CHEAP = [
    # Variables.
    ("run SPCE=plateau", "there is no variable 'SPCE'. Did you mean 'SPACE'?"),
    ("run plateau", "'plateau' is not of the form NAME=value."),
    ("run TRIALS=many", "TRIALS='many' is not a whole number"),
    ("run TRIALS=0", "TRIALS='0' must be at least 1. TRIALS: a search: number of trials"),
    ("run BUDGET_TOKENS=lots", "BUDGET_TOKENS='lots' is not a number of tokens"),
    ("run BUDGET_TOKENS=10", "a budget of 10 tokens is less than one step of 4096 tokens"),
    ("run BATCH_SIZE=0", "batch_size (BATCH_SIZE) is 0; it must be at least 1"),
    ("run BATCH_SIZE=8.5", "BATCH_SIZE='8.5' is not a whole number"),
    ("run BATCH_SIZE=1000000000000000000000000000000", "batch_size (BATCH_SIZE) is about 2^100"),
    ("run LEARNING_RATE=-1", "learning_rate (LEARNING_RATE) is -1"),
    ("run LEARNING_RATE=nan", "learning_rate (LEARNING_RATE) is nan"),
    ("run LR_SCHEDULE=cosin", "lr_schedule (LR_SCHEDULE) has no choice 'cosin'"),
    ("run PRECISION=fp8", "precision (PRECISION) has no choice 'fp8'. Known: bf16, fp16, fp32."),
    ("run DROPOUT=1", "dropout (DROPOUT) is 1; it must be at least 0 and at most 0.99"),
    ("run SEED=-1", "seed (SEED) is -1; it must be at least 0"),
    ("run CONCURRENCY=999999", "CONCURRENCY=999999: at most 16 trials share a CPU core, "),
    ("run CONCURRENCY=0", "CONCURRENCY='0' must be at least 1."),
    ("run GPU_FRACTION=2", "GPU_FRACTION='2' must be at most 1. GPU_FRACTION: search: share of a CUDA GPU"),
    ("run DEVICE=tpu", "DEVICE='tpu' is not a device. Choose cuda, mps or cpu"),
    ("run MODEL_TYPE=bert", "MODEL_TYPE=bert is not known. Known: gpt2."),
    ("run USE_LORA=maybe", "USE_LORA='maybe' must be True or False."),
    ("run LORA_RANK=0", "lora_rank (LORA_RANK) is 0; it must be at least 1"),
    ("run LORA_TARGETS=a;b", "lora_targets (LORA_TARGETS) is 'a;b'; it must be auto, all-linear, or layer names"),
    ("run USE_LR_WARMUP=maybe", "USE_LR_WARMUP='maybe' must be True or False."),
    ("run USE_LR_WARMUP=True LR_SCHEDULE=constant", "USE_LR_WARMUP=True contradicts LR_SCHEDULE=constant"),
    (
        "run STUDY=../nowhere-at-all",
        "STUDY='../nowhere-at-all' cannot name a study: it is a path. Write its name alone, STUDY=nowhere-at-all",
    ),
    ("run LR=3e-4", "there is no variable 'LR'. Did you mean 'LEARNING_RATE'?"),
    ("run STUDY=latest", "STUDY=latest means the study that was made last"),
    ("run STUDY=taken", "study taken exists. Choose another STUDY= name."),
    ("run BASELINE=nobody", "BASELINE=nobody is no built-in configuration, file, folder or study. Known: before, doc"),
    (f"run BASELINE={'n' * 300}", "nnn: File name too long. Name a .env file, a checkpoint, a folder or a study."),
    (f"run BASELINE={'n' * 300}.env", ".env: File name too long. Name a .env file, a checkpoint, a folder or a study."),
    ("run SPACE=platau", "no space named 'platau' in spaces/. Did you mean 'plateau'?"),
    ("run SPACE=before_after TRIALS=5", "TRIALS=5: spaces/before_after.toml is a grid, and all of its 16 cells run"),
    (
        "run SPACE=before_after TRIALS=auto",
        "spaces/before_after.toml with TRIALS=auto: trials is auto, and the cells of",
    ),
    (
        "run TRIALS=autto",
        "TRIALS='autto' is not a whole number. TRIALS: a search: number of trials, the baseline included, or auto",
    ),
    ("baseline COMPARE=documented", "COMPARE=documented is the baseline itself. Unset it, or name another."),
    ("baseline COMPARE=after", "COMPARE=after is not known. Known: before, documented."),
    ("train TRAINING_STEPS=0", "training_steps (TRAINING_STEPS) is 0; it must be at least 1"),
    ("train LR_SCHEDULE=linear WARMUP_STEPS=5000", "warmup_steps=5000 is longer than the run of training_steps=2000"),
    ("train RESUME_STEPS=100", "RESUME_STEPS is set but CHECKPOINT_PATH is not."),
    ("train WEIGHTS_ONLY=True", "WEIGHTS_ONLY is set but CHECKPOINT_PATH is not."),
    ("train CHECKPOINT_INTERVAL=0", "CHECKPOINT_INTERVAL='0' must be at least 1."),
    ("train EVAL_INTERVAL=often", "EVAL_INTERVAL='often' is not a whole number"),
    ("train EVAL_BLOCK_SIZE=1", "EVAL_BLOCK_SIZE='1' must be at least 2."),
    ("train EVAL_TOKENS=5", "EVAL_TOKENS=5 is less than a block of 128."),
    ("train ENABLE_CHECKPOINTS=perhaps", "ENABLE_CHECKPOINTS='perhaps' must be True or False."),
    ("train STUDY=nobody STEPS=100", "there is no study in"),
    ("train STEPS=100", "STEPS stretches a study's winner (STUDY=...); any other run takes TRAINING_STEPS."),
    ("export STUDY=nobody", "there is no study in"),
    ("compare STUDY=a,a", "compare needs two different studies or more"),
    ("attribute STUDY=taken FROM=before", "STUDY=taken attributes its winner; FROM and TO are documented"),
    ("export FORMAT=yaml", "FORMAT=yaml is not known."),
    ("model DTYPE=bf1", "DTYPE=bf1 is not known. Did you mean 'bf16'?"),
    ("attribute FROM=befor", "FROM=befor is not known. Did you mean 'before'?"),
    ("audit RANGE=5-2", "RANGE=5-2 must end after it starts"),
    ("run CONCURRENCY=auto ADDRESS=auto", "CONCURRENCY=auto measures this machine"),
    ("run CONFIRM=1 SEEDS=1", "SEEDS=1: one seed has no scatter, so it proves nothing."),
    ("run CONFIRM=1 SEEDS=2000", "SEEDS='2000' must be at most 1000."),
    ("run CONFIRM=1 TOP=0", "TOP='0' must be at least 1."),
    ("run OPTUNA_STORAGE=oracl://host/x", "OPTUNA_STORAGE='oracl://host/x' is not a database that can be opened"),
    ("run OPTUNA_STORAGE={}/absent/x.db", "must be a file in a folder that exists"),
    ("run MLFLOW=http://host", "MLFLOW is set but mlflow is not installed"),
    ("run STORAGE=nowhere://x", "STORAGE=nowhere://x: "),
    # Paths.
    ("run STUDIES_DIR={}/a_file", "a_file' is not a folder"),
    ("run STUDIES_DIR={}/a_file/studies", "a_file is not a folder. Set STUDIES_DIR to a folder."),
    ("run CACHE_DIR={}/a_file", "CACHE_DIR"),
    ("run CACHE_DIR=~nobody_at_all/x", "CACHE_DIR"),
    ("run GPT2_MODEL_NAME={}/absent", "absent: no such folder"),
    ("run GPT2_MODEL_NAME={}/a_file", "a_file is a file, not a model folder"),
    ("run GPT2_MODEL_NAME={}/no_config", "no_config: the folder has no config.json"),
    ("run GPT2_MODEL_NAME={}/bad_config", "bad_config: the folder has no config.json that can be read"),
    ("run TRAINING_DATA_SOURCE={}/absent.txt", "absent.txt does not exist"),
    ("run TRAINING_DATA_SOURCE={}/empty.txt", "empty.txt is empty"),
    ("run TRAINING_DATA_SOURCE={}/latin1.txt", "latin1.txt is not UTF-8 text: line 1, byte 2"),
    ("run TRAINING_DATA_SOURCE={}/no_text", "no_text: the folder holds no text file"),
    (
        "train CHECKPOINT_PATH={}/absent.pt",
        "absent.pt does not exist. Name a .pt, .bin or .safetensors file, or a folder made by save_pretrained",
    ),
    ("train CHECKPOINT_PATH={}/no_text", "no_text has none of model.safetensors, pytorch_model.bin; it holds nothing."),
    ("train CHECKPOINT_PATH={}/empty.pt", "empty.pt is empty"),
    ("diagnose TARGET={}/empty.txt GPT2_MODEL_NAME=./nowhere", "GPT2_MODEL_NAME=./nowhere: no such folder."),
    ("train SAVE_MODEL={0}/empty.pt/model", "empty.pt is not a folder. Name another folder."),
    (
        "run BASELINE=docmented",
        "BASELINE=docmented is no built-in configuration, file, folder or study. Did you mean 'doc",
    ),
    ("run LR_SCHEDULE=WSD", "lr_schedule (LR_SCHEDULE) has no choice 'WSD'. Did you mean 'wsd'?"),
    ("run STORAGE=s3://", "STORAGE=s3:// names no bucket. Write it as s3://bucket/prefix."),
    (
        "run ADDRESS=10.0.0.5",
        "ADDRESS=10.0.0.5: no Ray cluster answers there (it names no port). Write auto or HOST:6379",
    ),
    (
        "run TRAINING_DATA_SOURCE=https://a.org/b.txt",
        "TRAINING_DATA_SOURCE=https://a.org/b.txt is a URL. Name a file or",
    ),
    (
        "train CHECKPOINT_PATH={}/model.safetensors.index.json",
        "lists the files of a folder's weights. Name the folder: ",
    ),
    ("train CHECKPOINT_PATH=~nobody_at_all/a.pt", "CHECKPOINT_PATH='~nobody_at_all/a.pt': there is no such user"),
    ("run CHECKPOINT_PATH={}/garbage.pt", "garbage.pt is damaged or not a file of torch.save"),
    # Space files.
    ("run SPACE={}/absent.toml", "absent.toml'"),
    ("run SPACE={}/unknown_key.toml", "unknown_key.toml: [searcher] has an unknown key 'nmae'. Did you mean 'name'?"),
    ("run SPACE={}/unknown_rule.toml", "median_stps"),
    ("run SPACE={}/bad_rule.toml", "median_steps is -5"),
    ("run SPACE={}/too_large.toml", "tokens a step, and every trial is first evaluated after"),
    ("run SPACE={}/not_toml.toml", "not_toml.toml: not valid TOML"),
]
"""Told without torch."""

WITH_TORCH = [
    ("run TRAINING_DATA_SOURCE={}/short.txt", "the corpus is too short"),
    ("run BLOCK_SIZE=2048 BUDGET_TOKENS=8M", "is longer than the 256 positions of GPT2_MODEL_NAME="),
    (
        "train EVAL_BLOCK_SIZE=2048",
        "narrow. Set EVAL_BLOCK_SIZE, or the space's [evaluation] block_size, to 256 or less",
    ),
    ("train BLOCK_SIZE=2048", "block_size=2048 is longer than the 256 positions of GPT2_MODEL_NAME="),
    ("train CHECKPOINT_PATH={}/cut.pt", "cut.pt is damaged or not a file of torch.save"),
    ("train CHECKPOINT_PATH={}/bomb.pt", "was refused and nothing of it ran: it holds Python objects"),
    ("run SPACE=smoke CHECKPOINT_PATH={}/bomb.pt", "was refused and nothing of it ran: it holds Python objects"),
    ("run DEVICE=mps", "DEVICE=mps is not available here"),
    ("audit TRAINING_DATA_SOURCE={0}/lines.jsonl CLEAN={0}/clean.jsonl", "CLEAN cannot rewrite JSON or CSV."),
    ("audit CLEAN={}/a_file", "a_file exists. Nothing is overwritten: name a new file."),
    ("audit CLEAN={}/absent/clean.txt", "absent is not a folder. Make it, or name another."),
]
"""These ask for what only a loaded model, text or device can tell."""


def asked(command: str, files: Path) -> tuple[list[str], dict[str, str]]:
    return command.format(files).split(), {}


@pytest.fixture(scope="module")
def cheap(batch: Any, files: Path) -> list[Any]:
    cases: list[Any] = batch([asked(command, files) for command, _ in CHEAP], STUDIES_DIR=str(files / "studies"))
    return cases


@pytest.fixture(scope="module")
def costly(batch: Any, files: Path) -> list[Any]:
    cases: list[Any] = batch([asked(command, files) for command, _ in WITH_TORCH], STUDIES_DIR=str(files / "studies"))
    return cases


def check(case: Any, message: str) -> None:
    assert case.code == 2, (case.code, case.stderr)
    errors = [line for line in case.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, case.stderr
    assert message in errors[0]
    assert case.stderr.splitlines()[-1] == errors[0]
    assert "Traceback" not in case.stderr


@pytest.mark.parametrize("index", range(len(CHEAP)), ids=[command for command, _ in CHEAP])
def test_a_mistake_is_one_line_without_torch(index: int, cheap: list[Any]) -> None:
    check(cheap[index], CHEAP[index][1])
    assert cheap[index].stderr.count("\n") == 1
    assert "torch" not in cheap[index].heavy
    assert "ray" not in cheap[index].heavy


@pytest.mark.parametrize("index", range(len(WITH_TORCH)), ids=[command for command, _ in WITH_TORCH])
def test_a_mistake_that_needs_torch_is_one_line_too(index: int, costly: list[Any]) -> None:
    check(costly[index], WITH_TORCH[index][1])


def test_no_study_is_left_and_nothing_ran(cheap: list[Any], costly: list[Any], files: Path) -> None:
    assert [path.name for path in (files / "studies").iterdir()] == ["taken"]
    assert list((files / "studies" / "taken").iterdir()) == []
    assert not (files / "ran").exists()


def test_the_bomb_is_one(files: Path) -> None:
    """The file that is refused does run code where nobody refuses it."""
    loaded = pickle.loads((files / "bomb.pt").read_bytes())
    loaded["model_state_dict"].close()
    assert (files / "ran").exists()
    (files / "ran").unlink()


def test_with_json_the_error_is_the_document(batch: Any, files: Path) -> None:
    [case] = batch([(["run", "--json", "SPACE=platau"], {})])
    assert case.code == 2
    assert '"error": "no space named' in case.stdout
    assert case.stderr.startswith("error: no space named 'platau'")
