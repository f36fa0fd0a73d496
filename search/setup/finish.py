"""What every command that has run trials writes at its end: the samples, the best configuration and the report.

Samples: start, baseline and best continue one prompt, a model at a time, for people who judge text and not nats.
"""

from dataclasses import replace
from typing import Any

from results.export import write_best
from results.report.page import write_reports
from results.samples import Sample, Samples, load_samples, write_samples
from results.study.folder import RESUMED_KINDS, Study
from results.winner import winner_of
from search.cluster.study_storage import TableMirror, model_checkpoint
from search.options import Options
from search.setup.inputs import Loaded
from search.setup.reopen import load_inputs_of
from search.terminal.console import Preparing, Terminal
from search.terminal.signals import ending_in_order
from trainable.config import config_from
from trainable.errors import UserError

Row = dict[str, Any]


def finish_study(
    study: Study, options: Options, terminal: Terminal, *, samples: bool, loaded: Loaded | None = None
) -> None:
    """Write the best configuration, with `samples` those too, and the report, and copy all into STORAGE.

    loaded: the study's inputs, if they are loaded.
    """
    # A SIGTERM while samples are written must not leave the report of fewer trials.
    with ending_in_order():
        try:
            if samples:
                sample_study(study, options, terminal, loaded)
        finally:
            with terminal.console.status("writing the report ..."):
                write_answer(study)
                if options.storage is not None:
                    TableMirror(study, options.storage, terminal.say).close()


def write_answer(study: Study) -> dict[str, Any]:
    """Write best.env, best.json and the report, all of the same winner; return the report's facts."""
    if winner_of(study).trial is not None:
        write_best(study)
    return write_reports(study)


def sample_study(study: Study, options: Options, terminal: Terminal, loaded: Loaded | None) -> None:
    """Write samples.json, unless it holds SAMPLE_PROMPT, the baseline and the winner already.

    loaded: the study's inputs, if they are loaded. A failure is one line and stops nothing; only a damaged samples.json
    raises UserError.
    """
    winner, known = winner_of(study), load_samples(study)
    best, baseline = winner.trial, winner.baseline
    if best is None:
        return
    if baseline is not None and baseline["status"] != "completed":
        baseline = None
    prompt = options.sample_prompt or (known.prompt if known else study.document().get("sample_prompt"))
    sampled = baseline and baseline["trial_id"], best["trial_id"]
    if known is not None and (known.prompt, known.trial_ids) == (prompt, sampled):
        return
    try:
        with Preparing(terminal.console) as progress:
            loaded = loaded or load_inputs_of(study, options, progress)
            write_samples(study, _samples(study, baseline, best, prompt, loaded, progress))
    except KeyboardInterrupt:
        again = f"; make resume STUDY={study.name} does it" if study.document()["kind"] in RESUMED_KINDS else ""
        terminal.say(f"interrupted before the samples were written{again}")
    except Exception as error:
        # The trials took hours and the samples take seconds: whatever fails here, the report is still written.
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        terminal.say(f"no samples were written: {' '.join(reason.split())}")


def _samples(
    study: Study, baseline: Row | None, best: Row, prompt: str | None, loaded: Loaded, progress: Preparing
) -> Samples:
    from trainable.sampling import SAMPLE_TOKENS, TEMPERATURE, default_prompt

    what, seed = "continuing the sample prompt", study.document()["seed"]
    text = prompt or default_prompt(loaded.tokenizer, loaded.spec.corpus.val)

    def of_trial(trial: Row) -> Sample:
        try:
            return Sample(text=_continued(study, trial, text, loaded), trial_id=trial["trial_id"])
        except UserError as error:
            return Sample(why=str(error), trial_id=trial["trial_id"])

    progress(what, 0.0)
    start = Sample(text=_continued(study, None, text, loaded))
    progress(what, 1 / 3)
    of_baseline = of_trial(baseline) if baseline else Sample(why="the baseline has not completed")
    progress(what, 2 / 3)
    return Samples(
        prompt=text,
        seed=seed,
        tokens=SAMPLE_TOKENS,
        temperature=TEMPERATURE,
        start=start,
        baseline=None if best["purpose"] == "train" else of_baseline,
        best=of_baseline if baseline and best["trial_id"] == baseline["trial_id"] else of_trial(best),
    )


def _continued(study: Study, trial: Row | None, prompt: str, loaded: Loaded) -> str:
    """Return how the trial's model continues the prompt, or with None the start's. Raises UserError."""
    import torch

    from trainable.device.device_memory import release_memory
    from trainable.run import load_run_model
    from trainable.sampling import sample

    document = study.document()
    seed, device = document["seed"], torch.device(loaded.spec.device)
    config = config_from(trial) if trial else replace(config_from(document["baseline"]), seed=seed, use_lora=False)
    checkpoint = model_checkpoint(study, loaded.inputs.options.storage, trial) if trial else None
    model, _ = load_run_model(loaded.spec, config, checkpoint)
    del checkpoint  # the optimizer's moments, twice the model
    text = sample(model.to(device), loaded.tokenizer, prompt, seed=seed)
    del model
    release_memory(device)
    return text
