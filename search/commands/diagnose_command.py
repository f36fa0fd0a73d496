"""`make diagnose`: finds what is wrong with a study, a trial, a checkpoint, a folder of them, or a training log."""

from dataclasses import replace
from pathlib import Path

from results.diagnosis.logs.training_log import log_in, read_training_log
from results.diagnosis.of_checkpoint import report_of_checkpoints
from results.diagnosis.of_study import report_of_study, report_of_trial
from results.diagnosis.render import Report, plain_text, render, report_of_trace, to_json
from results.diagnosis.run_view import Context
from results.diagnosis.trace_plot import plot_trace
from results.study.folder import LATEST, Study, list_studies, open_study
from results.study.paths import expanded, picture_path
from search.options import Options
from search.setup.inputs import check_inputs, load_text
from search.terminal.console import Preparing, Terminal
from trainable.checkpoint.checkpoint_path import (
    CHECKPOINT_SUFFIXES,
    INDEX_SUFFIX,
    TORCH_SAVE_STARTS,
    checkpoint_files,
    checkpoint_folders,
    is_safetensors,
)
from trainable.errors import UserError, as_user_error, did_you_mean
from trainable.model.model_names import PRESETS, check_model_name, vocab_size_of
from trainable.regular_files import file_type


def diagnose_command(options: Options, terminal: Terminal) -> int:
    """Diagnose TARGET (default: STUDY, else the latest); 0 whatever is found."""
    target = options.target or options.study or LATEST
    with Preparing(terminal.console) as progress:
        progress(f"looking at {target}", 0.0)
        report, picture = _report(target, options, progress)
    if terminal.console.is_terminal:
        terminal.console.print(render(report))
    else:
        terminal.say(plain_text(report))
    trace, drawn = report.trace, None
    if trace is not None:
        drawn = terminal.picture(picture, lambda path: plot_trace(trace, report.findings, path))
    terminal.document({**to_json(report), "picture": drawn})
    return 0


def _report(target: str, options: Options, progress: Preparing) -> tuple[Report, Path]:
    """Return the report and the path of its picture: in the study, or in the folder of pictures."""
    study, trial_id = _study_and_trial(target)
    if study is not None:
        if trial_id is None:
            return report_of_study(study), study.path / "diagnosis.png"
        return report_of_trial(study, trial_id), study.path / f"diagnosis-{trial_id}.png"
    path = _path(target)
    picture = picture_path(path, "diagnosis")
    if not (path.is_file() or path.is_dir()):  # a pipe or a device is neither
        known = [study.name for study in list_studies()]
        raise UserError(f"TARGET={target} is not a study, STUDY/TRIAL, file or folder.{did_you_mean(target, known)}")
    if path.name.endswith(INDEX_SUFFIX):
        path = path.parent
    if path.is_dir():
        newest = [path, *checkpoint_folders(path)][-1]
        # Adapters without their base predict nothing, and beside them lies the log of their Trainer.
        is_adapter = (newest / "adapter_config.json").is_file()
        if is_adapter or (newest == path and not any(map(_is_checkpoint, path.iterdir()))):
            path = log_in(newest)
    if path.is_dir() or _is_checkpoint(path):
        return _checkpoints(target, path, options, progress), picture
    context = _context(options.gpt2_model_name)
    return report_of_trace(read_training_log(path), context=context), picture


def _context(model_name: str | None) -> Context:
    """Return what the name of the model says of a log."""
    if model_name is None:
        return Context()
    if model_name.startswith((".", "/", "~")):  # a hub's name is not looked up for a log
        check_model_name(model_name)
    return Context(pretrained=model_name not in PRESETS, vocab_size=vocab_size_of(model_name))


def _is_checkpoint(path: Path) -> bool:
    if not path.is_file():  # whoever opens a pipe waits for its writer
        return False
    if path.suffix.lower() in CHECKPOINT_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(4).startswith(TORCH_SAVE_STARTS) or is_safetensors(path)
    except OSError:
        return False  # the log's reader says why


def _path(target: str) -> Path:
    path = expanded(target, "TARGET")
    with as_user_error(OSError, f"TARGET={target} cannot be opened", "Name a study, STUDY/TRIAL, a file or a folder."):
        file_type(path)
    return path


def _study_and_trial(target: str) -> tuple[Study | None, int | None]:
    path = _path(target)
    study = Study(path if path.is_dir() else path.parent)
    if study.study_json.is_file():
        # A file of a study stands for it, such as its search.log, which is no log of one run.
        if path == study.path or path.is_file():
            return study, None
        if path.name.isdecimal():
            return study, int(path.name)
    name, slash, trial = target.partition("/")
    # Before a file or folder of the name here, which ./NAME means: the next steps print names of studies.
    is_known = name == LATEST or name in {study.name for study in list_studies()}
    if not is_known or (slash and not trial.isdecimal()):
        return None, None
    return open_study(name), int(trial) if slash else None


def _checkpoints(target: str, path: Path, options: Options, progress: Preparing) -> Report:
    files = checkpoint_files(path) if path.is_dir() else [path]
    inputs = check_inputs(options, progress=progress)
    progress("loading torch", 0.0)
    from trainable.checkpoint.checkpoint import read_checkpoint
    from trainable.checkpoint.exam.examine import examine_checkpoints, in_order_of_steps

    paths, unread = in_order_of_steps(files)
    model_name = options.gpt2_model_name or read_checkpoint(paths[-1]).model_name
    # Another script's file does not name its tokenizer: without GPT2_MODEL_NAME no text can be tokenized.
    corpus = load_text(replace(inputs, model_name=model_name), progress)[2] if model_name is not None else None
    facts = examine_checkpoints(paths, tokens=corpus.val if corpus else None, model_name=model_name)
    entropy = corpus.unigram_entropy if corpus else None
    text = inputs.source_words
    return report_of_checkpoints(target, facts, unread=unread, unigram_entropy=entropy, text=text)
