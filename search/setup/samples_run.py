"""Has start, baseline and best continue one prompt, a model at a time: people look at text, not only at nats."""

from dataclasses import replace
from typing import Any

from results.samples import Sample, Samples, load_samples, write_samples
from results.study.folder import Study
from results.winner import Winner, winner_of
from search.cluster.study_storage import model_checkpoint
from search.options import Options
from search.setup.inputs import Loaded
from search.setup.reopen import load_inputs_of
from search.terminal.console import Preparing, Terminal
from trainable.config import config_from
from trainable.errors import UserError

Row = dict[str, Any]


def sample_study(study: Study, options: Options, terminal: Terminal, loaded: Loaded | None = None) -> None:
    """Write samples.json, unless it is of SAMPLE_PROMPT, the baseline and the winner already.

    loaded: the study's inputs, where they are at hand. A fault of sampling is told in a line and stops nothing. Raises
    UserError when there is a samples.json and it is damaged.
    """
    winner, known = winner_of(study), load_samples(study)
    prompt = options.sample_prompt or (known.prompt if known else None)
    if winner.trial is None or (known and (known.prompt, known.trial_ids) == (prompt, _trial_ids(winner))):
        return
    try:
        with Preparing(terminal.console) as progress:
            loaded = loaded or load_inputs_of(study, options, progress)
            write_samples(study, _samples(study, winner, prompt, loaded, options.storage, progress))
    except KeyboardInterrupt:
        terminal.say(f"interrupted before the samples were written; make resume STUDY={study.name} does it")
    except Exception as error:
        # The trials took hours and their samples take seconds: whatever these break on, the report is still written.
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        terminal.say(f"no samples were written: {' '.join(reason.split())}")


def _trial_ids(winner: Winner) -> tuple[int | None, int | None]:
    """Return whose models are sampled beside the start, as Samples.trial_ids."""
    baseline, best = _completed_baseline(winner), winner.trial
    return baseline["trial_id"] if baseline else None, best["trial_id"] if best else None


def _completed_baseline(winner: Winner) -> Row | None:
    baseline = winner.baseline
    return baseline if baseline is not None and baseline["status"] == "completed" else None


def _samples(
    study: Study, winner: Winner, prompt: str | None, loaded: Loaded, storage: str | None, progress: Preparing
) -> Samples:
    from trainable.sampling import SAMPLE_TOKENS, TEMPERATURE, default_prompt

    what, seed = "continuing the sample prompt", study.document()["seed"]
    text = prompt or default_prompt(loaded.tokenizer, loaded.spec.corpus.val)
    baseline, best = _completed_baseline(winner), winner.trial
    assert best is not None

    def of_trial(trial: Row) -> Sample:
        try:
            continued = _continued(study, trial, text, loaded, storage)
        except UserError as error:
            return Sample(why=str(error), trial_id=trial["trial_id"])
        return Sample(text=continued, trial_id=trial["trial_id"])

    progress(what, 0.0)
    start = Sample(text=_continued(study, None, text, loaded, storage))
    progress(what, 1 / 3)
    is_alone = best["purpose"] == "train"
    of_baseline = of_trial(baseline) if baseline else Sample(why="the baseline has not completed")
    progress(what, 2 / 3)
    is_baseline = baseline is not None and best["trial_id"] == baseline["trial_id"]
    return Samples(
        prompt=text,
        seed=seed,
        tokens=SAMPLE_TOKENS,
        temperature=TEMPERATURE,
        start=start,
        baseline=None if is_alone else of_baseline,
        best=of_baseline if is_baseline else of_trial(best),
    )


def _continued(study: Study, trial: Row | None, prompt: str, loaded: Loaded, storage: str | None) -> str:
    """Return how the trial's model, or what every trial starts from, continues the prompt. Raises UserError."""
    import torch

    from trainable.device.device_memory import release_memory
    from trainable.run import load_run_model
    from trainable.sampling import sample

    document = study.document()
    seed, device = document["seed"], torch.device(loaded.spec.device)
    if trial is None:
        config = replace(config_from(document["baseline"]), seed=seed, use_lora=False)
        model, _ = load_run_model(loaded.spec, config, None)
    else:
        checkpoint = model_checkpoint(study, storage, trial)
        model, _ = load_run_model(loaded.spec, config_from(trial), checkpoint)
        del checkpoint  # the optimizer's moments, twice the model
    text = sample(model.to(device), loaded.tokenizer, prompt, seed=seed)
    del model
    release_memory(device)
    return text
