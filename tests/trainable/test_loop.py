"""The loop: which rows in which order, what a step does, and what never changes a run: evaluating it."""

import math
from collections.abc import Callable, Container
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainable.makers import MakeModel, MakeSpec, MakeTrial
from trainable import loop
from trainable.config import TrialConfig
from trainable.data.tokens import Corpus
from trainable.evaluation import eval_windows, evaluate, evaluate_start
from trainable.loop import TrainRow, train
from trainable.rows import MetricsRow, Start, StepRow, Verdict
from trainable.run import RunSpec, start_run, with_start
from trainable.schedule import learning_rate_at
from trainable.stability import Finding
from trainable.state import TrainState, leaves_out_steps


def run(spec: RunSpec, config: TrialConfig, eval_steps: Container[int] = ()) -> tuple[TrainState, list[TrainRow]]:
    state = start_run(spec, config)
    return state, list(train(state, spec.corpus, spec.protocol, eval_steps=eval_steps))


def steps_of(rows: list[TrainRow]) -> list[StepRow]:
    return [replace(row, step_time_s=0.0) for row in rows if isinstance(row, StepRow)]


def metrics_of(rows: list[TrainRow]) -> list[MetricsRow]:
    return [row for row in rows if isinstance(row, MetricsRow)]


def losses_of(rows: list[TrainRow]) -> list[float]:
    return [row.train_loss for row in steps_of(rows)]


def kinds_of(rows: list[TrainRow]) -> str:
    return "".join({StepRow: "s", MetricsRow: "M", Verdict: "V"}.get(type(row), "f") for row in rows)


def weights_of(state: TrainState) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in state.model.state_dict().values()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("eval_steps", "kinds"),
    [
        ((), "MssssssM"),
        ({2, 4}, "MssMssMssM"),
        ({6, 9}, "MssssssM"),
        (range(0, 100, 3), "MsssMsssM"),
        (range(100), "MsMsMsMsMsMsM"),
    ],
)
def test_rows_come_in_order(make_spec: MakeSpec, make_trial: MakeTrial, eval_steps: Container[int], kinds: str) -> None:
    _, rows = run(make_spec(), make_trial(), eval_steps)
    assert kinds_of(rows) == kinds
    assert [row.optimizer_steps for row in steps_of(rows)] == [1, 2, 3, 4, 5, 6]
    assert metrics_of(rows)[0].optimizer_steps == 0
    assert metrics_of(rows)[-1].optimizer_steps == 6


def test_rows_say_what_was_done(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    spec = make_spec()
    config = make_trial(lr_schedule="warmup_cosine", warmup_steps=2, grad_accum_steps=3)
    state, rows = run(spec, config, {4})
    steps, (first, middle, last) = steps_of(rows), metrics_of(rows)
    assert [row.tokens_seen for row in steps] == [192 * step for step in range(1, 7)]  # 4 x 16 x 3 tokens a step
    assert [row.learning_rate for row in steps] == [learning_rate_at(step, config) for step in range(6)]
    for row in (first, middle, last):
        assert row.tokens_seen == 192 * row.optimizer_steps
        assert row.learning_rate == learning_rate_at(row.optimizer_steps, config)
    losses = losses_of(rows)
    assert middle.train_loss == pytest.approx(sum(losses[:4]) / 4, rel=1e-12)
    assert last.train_loss == pytest.approx(sum(losses[4:]) / 2, rel=1e-12)
    assert (middle.grad_norm, last.grad_norm) == (steps[3].grad_norm, steps[5].grad_norm)
    assert last.val_loss == evaluate(state.model, eval_windows(spec.corpus.val, spec.protocol))
    assert (state.optimizer_steps, state.tokens_seen) == (6, 1152)


def test_the_first_evaluation_is_of_the_untrained_model(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    spec = make_spec()
    model = start_run(spec, make_trial()).model
    first, again = (metrics_of(run(spec, make_trial())[1])[0] for _ in range(2))
    assert first.val_loss == evaluate(model, eval_windows(spec.corpus.val, spec.protocol))
    assert first.train_loss == again.train_loss
    assert first.train_loss == pytest.approx(evaluate(model, eval_windows(spec.corpus.train, spec.protocol)), abs=0.05)
    assert first.tokens_seen == 0
    assert math.isnan(first.grad_norm)
    assert math.isnan(first.tokens_per_s)


def test_a_start_that_is_known_is_not_evaluated_again(
    make_spec: MakeSpec, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, config = make_spec(), make_trial()
    _, evaluated = run(spec, config, {3})
    spec = with_start(spec, config)
    first = metrics_of(evaluated)[0]
    assert spec.start == Start(val_loss=first.val_loss, train_loss=first.train_loss)
    state = start_run(spec, config)
    monkeypatch.delattr(loop, "evaluate_start")
    rows = list(train(state, spec.corpus, spec.protocol, eval_steps={3}, start=spec.known_start(config)))
    told = metrics_of(rows)[0]
    assert (told.val_loss, told.train_loss, told.optimizer_steps) == (first.val_loss, first.train_loss, 0)
    assert told.active_s == 0.0
    assert losses_of(rows) == losses_of(evaluated)
    assert [row.val_loss for row in metrics_of(rows)] == [row.val_loss for row in metrics_of(evaluated)]


def test_a_start_holds_for_the_weights_it_was_evaluated_of(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    """Random weights differ by seed; a pretrained model's are every configuration's, and adapters begin as nothing."""
    given, other = make_trial(), make_trial(seed=7, batch_size=2, use_lora=True)
    scratch = with_start(make_spec("tiny-scratch"), given)
    assert scratch.from_scratch
    assert scratch.known_start(replace(given, batch_size=2)) == scratch.start
    assert scratch.known_start(other) is None
    pretrained = with_start(make_spec(), given)
    assert pretrained.known_start(other) == pretrained.start
    adapted = start_run(pretrained, other)
    assert evaluate_start(adapted.model, pretrained.corpus, pretrained.protocol) == pretrained.start


def test_times_add_up(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    state, rows = run(make_spec(), make_trial(), {3})
    times = [row.step_time_s for row in rows if isinstance(row, StepRow)]
    first, middle, last = metrics_of(rows)
    assert min(times) > 0
    assert middle.tokens_per_s == pytest.approx(3 * 64 / sum(times[:3]), rel=1e-9)
    assert last.tokens_per_s == pytest.approx(3 * 64 / sum(times[3:]), rel=1e-9)
    assert 0 < first.active_s < middle.active_s < last.active_s == state.active_s
    assert last.active_s > sum(times)


@pytest.mark.parametrize("family", ["gpt2", "llama", "tiny-scratch"])
def test_it_learns(make_spec: MakeSpec, make_trial: MakeTrial, family: str) -> None:
    schedule = {"lr_schedule": "warmup_cosine", "warmup_steps": 5, "training_steps": 30}
    config = make_trial(learning_rate=1e-2, batch_size=8, **schedule)
    _, rows = run(make_spec(family), config)
    first, last = metrics_of(rows)
    assert last.val_loss < first.val_loss - 1.0
    assert last.train_loss < first.train_loss


def test_a_seed_is_a_run(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    spec, config = make_spec(), make_trial(dropout=0.2)
    state, rows = run(spec, config)
    again, rows_again = run(spec, config)
    other, rows_other = run(spec, replace(config, seed=1))
    assert steps_of(rows_again) == steps_of(rows)
    assert same(weights_of(again), weights_of(state))
    assert all(a != b for a, b in zip(losses_of(rows_other), losses_of(rows), strict=True))
    assert not same(weights_of(other), weights_of(state))


def test_a_seed_draws_the_batches(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    # Without dropout, and with weights from a folder, nothing else is left for the seed to change.
    first, second = (losses_of(run(make_spec(), make_trial(dropout=0.0, seed=seed))[1]) for seed in (0, 1))
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_evaluating_more_often_changes_nothing(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    config = make_trial(dropout=0.2)
    state, rows = run(make_spec(), config)
    often, rows_often = run(make_spec(), config, range(100))
    assert steps_of(rows_often) == steps_of(rows)
    assert same(weights_of(often), weights_of(state))
    assert metrics_of(rows_often)[-1].val_loss == metrics_of(rows)[-1].val_loss


def test_a_reader_between_the_rows_changes_nothing(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    spec, config = make_spec(), make_trial(dropout=0.2)
    state, rows = run(spec, config)
    read = start_run(spec, config)
    taken: list[TrainRow] = []
    for row in train(read, spec.corpus, spec.protocol, eval_steps=()):
        read.model.eval()
        taken.append(row)
    assert steps_of(taken) == steps_of(rows)
    assert same(weights_of(read), weights_of(state))


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_accumulated_micro_batches_are_one_batch(make_spec: MakeSpec, make_trial: MakeTrial, clip: float) -> None:
    config = make_trial(dropout=0.0, batch_size=8, training_steps=4, grad_clip_norm=clip)
    whole = steps_of(run(make_spec(), config)[1])
    parts = steps_of(run(make_spec(), replace(config, batch_size=2, grad_accum_steps=4))[1])
    for one, other in zip(whole, parts, strict=True):
        assert other.tokens_seen == one.tokens_seen
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-5)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)


def first_momentum(state: TrainState) -> float:
    """The L2 norm of Adam's first moments, a tenth of the first step's clipped gradient."""
    moments = [values["exp_avg"] for values in state.optimizer.state.values()]
    return float(torch.stack([moment.norm() for moment in moments]).norm())


def test_gradients_are_clipped_to_the_norm(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    for clip in (0.01, 0.1):
        state, rows = run(make_spec(), make_trial(training_steps=1, grad_clip_norm=clip, dropout=0.0))
        (step,) = steps_of(rows)
        assert step.grad_norm > 0.2  # before the clip
        assert first_momentum(state) == pytest.approx(0.1 * clip, rel=1e-3)


def test_a_clip_of_zero_is_none(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    off, rows_off = run(make_spec(), make_trial(grad_clip_norm=0))
    far, rows_far = run(make_spec(), make_trial(grad_clip_norm=1e6))
    assert steps_of(rows_off) == steps_of(rows_far)
    assert same(weights_of(off), weights_of(far))
    one, (_, step, _) = run(make_spec(), make_trial(grad_clip_norm=0, training_steps=1))
    assert isinstance(step, StepRow)
    assert first_momentum(one) == pytest.approx(0.1 * step.grad_norm, rel=1e-3)


def test_a_rate_of_zero_moves_nothing(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    config = make_trial(lr_schedule="linear", warmup_steps=3, min_lr_frac=0.0, training_steps=3, weight_decay=1.0)
    spec = make_spec()
    state = start_run(spec, config)
    before = weights_of(state)
    rows = train(state, spec.corpus, spec.protocol, eval_steps=())
    assert [type(next(rows)) for _ in range(2)] == [MetricsRow, StepRow]
    assert same(weights_of(state), before)
    next(rows)
    assert not same(weights_of(state), before)


def test_weight_decay_draws_weights_to_zero(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    def norm(weight_decay: float) -> float:
        state, _ = run(make_spec(), make_trial(weight_decay=weight_decay, learning_rate=1e-2))
        return float(state.model.get_input_embeddings().weight.detach().norm())

    assert norm(10.0) < 0.8 * norm(0.0)


def test_dropout_is_on_in_training_alone(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    _, rows = run(make_spec(), make_trial(dropout=0.5))
    _, rows_without = run(make_spec(), make_trial(dropout=0.0))
    assert metrics_of(rows)[0].val_loss == metrics_of(rows_without)[0].val_loss
    assert losses_of(rows)[0] != losses_of(rows_without)[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_as_fp32_does(make_spec: MakeSpec, make_trial: MakeTrial, precision: str) -> None:
    config = make_trial(dropout=0.0, training_steps=10)
    _, exact = run(make_spec(), config)
    state, rows = run(make_spec(), replace(config, precision=precision))
    assert losses_of(rows) == pytest.approx(losses_of(exact), rel=5e-3)
    assert losses_of(rows) != losses_of(exact)
    assert metrics_of(rows)[0].val_loss == metrics_of(exact)[0].val_loss  # evaluated in fp32
    assert metrics_of(rows)[-1].val_loss == pytest.approx(metrics_of(exact)[-1].val_loss, rel=5e-3)
    norms = [[row.grad_norm for row in steps_of(some)] for some in (rows, exact)]
    assert norms[0] == pytest.approx(norms[1], rel=5e-2)  # of the unscaled gradient
    assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}


def test_an_overflow_under_the_loss_scaler_is_skipped(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    spec, config = make_spec(), make_trial(precision="fp16", training_steps=30, dropout=0.0)
    state = start_run(spec, config)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**34)
    before = weights_of(state)
    rows: list[TrainRow] = []
    skipped = 0
    for row in train(state, spec.corpus, spec.protocol, eval_steps=()):
        rows.append(row)
        skipped += isinstance(row, StepRow) and same(weights_of(state), before)
    assert 0 < skipped < 25
    assert kinds_of(rows).replace("f", "") == "M" + "s" * 30 + "M"
    assert [math.isfinite(row.grad_norm) for row in steps_of(rows)] == [False] * skipped + [True] * (30 - skipped)
    assert all(math.isfinite(loss) for loss in losses_of(rows))
    assert metrics_of(rows)[-1].val_loss < metrics_of(rows)[0].val_loss


def exploding(make_trial: MakeTrial) -> TrialConfig:
    """A decay of 10 at a rate of 100 takes every weight times -999 a step, out of what fp32 can hold."""
    return make_trial(learning_rate=100.0, weight_decay=10.0, training_steps=40, grad_clip_norm=0.0)


def test_a_nan_ends_the_run_with_a_verdict(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    state, rows = run(make_spec(), exploding(make_trial))
    *_, step, verdict = rows
    assert isinstance(verdict, Verdict)
    assert isinstance(step, StepRow)
    assert verdict.reason == "nonfinite"
    assert verdict.step == step.optimizer_steps == state.optimizer_steps < 40
    assert not (math.isfinite(step.train_loss) and math.isfinite(step.grad_norm))
    assert "nan" in verdict.evidence or "inf" in verdict.evidence
    finite = [math.isfinite(row.train_loss) and math.isfinite(row.grad_norm) for row in steps_of(rows)]
    assert finite == [True] * (len(finite) - 1) + [False]
    assert kinds_of(rows).count("M") == 1


def test_an_evaluation_worse_than_guessing_is_a_divergence_and_no_number_is_nonfinite() -> None:
    def judged(val_loss: float, first_loss: float = -math.inf) -> str | None:
        row = MetricsRow(
            tokens_seen=1, optimizer_steps=1, val_loss=val_loss, train_loss=1.0, grad_norm=1.0,
            learning_rate=1.0, tokens_per_s=1.0, active_s=1.0,
        )  # fmt: skip
        verdict = loop._judge(row, vocab_size=300, first_loss=first_loss)
        return verdict.reason if verdict else None

    uniform = math.log(300)
    assert [judged(loss) for loss in (2.0, uniform + 0.99, uniform + 1.01)] == [None, None, "divergence"]
    assert [judged(loss) for loss in (math.nan, math.inf)] == ["nonfinite", "nonfinite"]
    # A pretrained model on text unlike its own starts above guessing, and gets better.
    assert [judged(loss, 9.0) for loss in (8.9, 9.99, 10.01)] == [None, None, "divergence"]


def test_weights_that_start_above_guessing_are_judged_by_their_own_start(
    make_spec: MakeSpec, make_trial: MakeTrial, make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    path = tmp_path / "hot.safetensors"
    save_file({name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}, path)
    spec = make_spec(init_from=path)
    _, rows = run(spec, make_trial(learning_rate=1e-3), range(100))
    losses = [row.val_loss for row in metrics_of(rows)]
    assert losses[0] > math.log(300) + 1.5
    assert losses[1] > math.log(300) + loop.WORSE_THAN_UNIFORM_NATS
    assert losses[-1] < losses[0]
    assert not any(isinstance(row, Verdict) for row in rows)


def test_a_nan_that_an_evaluation_sees_first_ends_it_too(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    _, rows = run(make_spec(), exploding(make_trial), range(100))
    *_, step, verdict = rows
    assert isinstance(verdict, Verdict)
    assert isinstance(step, StepRow)
    assert math.isfinite(step.train_loss)
    assert verdict.step == step.optimizer_steps
    assert verdict.evidence.startswith("validation loss ")
    assert all(math.isfinite(row.val_loss) for row in metrics_of(rows))


def test_random_weights_are_not_worse_than_guessing_under_a_small_tokenizer(
    make_spec: MakeSpec, make_trial: MakeTrial, corpus: Corpus
) -> None:
    # tiny-scratch starts at ln 2048 = 7.6; a short text's tokenizer has fewer ids, here 300: ln 300 + 1 = 6.7.
    assert corpus.vocab_size == 300
    _, rows = run(make_spec("tiny-scratch", corpus=corpus), make_trial(training_steps=4, learning_rate=1e-5))
    assert kinds_of(rows) == "MssssM"


def test_the_fused_optimizer_is_taken_under_a_loss_scaler_only_where_it_leaves_steps_out(
    make_spec: MakeSpec, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_fused(precision: str) -> bool:
        leaves_out_steps.cache_clear()
        return bool(start_run(make_spec(), make_trial(precision=precision)).optimizer.defaults["fused"])

    def steps_all_the_same(optimizer: torch.optim.AdamW) -> None:
        optimizer.param_groups[0]["params"][0].data.sub_(0.5)

    assert [is_fused(precision) for precision in ("fp32", "bf16", "fp16")] == [True, True, True]
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", steps_all_the_same)  # as MPS's kernel does
        assert [is_fused(precision) for precision in ("fp32", "bf16", "fp16")] == [True, True, False]
    leaves_out_steps.cache_clear()


class WaitsForTheDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation that on a GPU would wait until all that is queued is done."""

    WAITING = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.equal.default,
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.noted: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.WAITING:
            self.noted.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_waits_for_nothing_but_its_own_row(make_spec: MakeSpec, make_trial: MakeTrial, precision: str) -> None:
    spec = make_spec()
    state = start_run(spec, make_trial(dropout=0.2, precision=precision, grad_accum_steps=2))
    rows = train(state, spec.corpus, spec.protocol, eval_steps=())
    next(rows)
    next(rows)  # the first step makes the optimizer's state and looks at the model's head
    with WaitsForTheDevice() as waits:
        torch.ones(()).item()
        assert waits.noted == ["aten._local_scalar_dense.default"]
        waits.noted.clear()
        assert isinstance(next(rows), StepRow)
    assert waits.noted == []


def test_the_row_is_read_before_the_update_and_awaited_after_it(
    make_spec: MakeSpec, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, order = make_spec(), list[str]()
    state = start_run(spec, make_trial(training_steps=1))

    def begin_read(*scalars: torch.Tensor) -> Callable[[], list[float]]:
        order.append("begin")

        def read() -> list[float]:
            order.append("wait")
            return [float(scalar) for scalar in scalars]

        return read

    state.optimizer.register_step_post_hook(lambda *_: order.append("update"))
    monkeypatch.setattr(loop, "begin_read", begin_read)
    list(train(state, spec.corpus, spec.protocol, eval_steps=()))
    assert order == ["begin", "update", "wait"]


class Judge:
    """Flags step 2 and ends the run at step 3, in the place of the state's monitor."""

    first_loss = 5.7

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def update(self, *, step: int, **values: float) -> tuple[Finding, ...]:
        self.seen.append({"step": step, **values})
        flag, stop = Finding("spike", step, "flag", "high"), Finding("divergence", step, "stop", "higher still")
        return {2: (flag,), 3: (flag, stop)}.get(step, ())


def test_the_monitor_is_told_every_step_and_has_the_last_word(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    spec, judge = make_spec(), Judge()
    state = start_run(spec, make_trial())
    state.monitor = judge  # type: ignore[assignment]
    rows = list(train(state, spec.corpus, spec.protocol, eval_steps=range(100)))
    assert kinds_of(rows) == "MsMsfMsfV"
    assert rows[4] == Finding("spike", 2, "flag", "high")
    assert rows[-1] == Verdict(reason="divergence", step=3, evidence="higher still")
    told = [
        {"step": row.optimizer_steps, "loss": row.train_loss, "grad_norm": row.grad_norm, "skipped": False,
         "step_time_s": row.step_time_s}
        for row in rows if isinstance(row, StepRow)
    ]  # fmt: skip
    assert [{name: seen[name] for name in told[0]} for seen in judge.seen] == told


def test_a_reason_that_is_not_to_stop_is_told_and_training_goes_on(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    spec = make_spec()
    state = start_run(spec, make_trial())
    state.monitor = Judge()  # type: ignore[assignment]
    rows = list(train(state, spec.corpus, spec.protocol, eval_steps=(), stop_on=("nonfinite",)))
    assert kinds_of(rows) == "MssfsffsssM"
    assert rows[6] == Finding("divergence", 3, "stop", "higher still")
    ended = start_run(spec, exploding(make_trial))
    *rows, verdict = train(ended, spec.corpus, spec.protocol, eval_steps=range(100), stop_on=("nonfinite",))
    assert metrics_of(rows)[1].val_loss > 1000  # evaluated, worse than guessing, and let pass
    assert isinstance(verdict, Verdict)
    assert verdict.reason == "nonfinite"
