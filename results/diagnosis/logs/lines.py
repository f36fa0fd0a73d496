"""What one line of a training log says: patterns for the lines of `make train` and of other trainers. No state."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from operator import attrgetter

# 3,2145,2 is a list: none of its parts is taken for the number.
_INT = rb"\d{1,3}(?:,\d{3})+(?!,?\d)|\d++(?!,\d)"
_COUNT = rb"\d+(?:\.\d+)?k\b|%b" % _INT
# Atomic: without it "2.00e" (a line cut short) would be read as 2. after backtracking.
_NUMBER = rb"(?>[-+]?(?:nan|inf(?:inity)?|(?:(?:%b)(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?))(?!\w)" % _INT
# Behind a digit a number cannot begin: a search from every digit of a long run would take the square of its length.
_PLAIN = rb"(?<![\d.,])(?P<number>[\d.,]*\d)"
_ASSIGN = rb"['\"]?\s*(?:[:=]|\bis\b)?\s*(?:(?:j?np\.)?(?:tensor|array|float\d+)\(|\[)?\s*['\"]?\s*"

EPOCH_HEADER = re.compile(rb"\W{0,12}epoch\W{1,3}(\d+)", re.I)
MAX_LINE_BYTES = 4096
MAX_STEP = 10**15
"""A larger number is no step: of an address, a hash, a time in nanoseconds."""
MEASURED = (1e-9, 1e15)
"""Seconds, epochs and steps a second outside are none; 0 is what a short one rounds to."""

_ALIKE = bytes.maketrans(b"123456789", b"000000000")
MOST_SHAPES = 1024


@lru_cache(maxsize=4)
def _shape(line: bytes) -> bytes:
    return line.translate(_ALIKE)


class _Pattern:
    """A pattern that is looked for once in all lines that differ in their digits alone, as most of a log's do."""

    def __init__(self, pattern: bytes) -> None:
        self.compiled = re.compile(pattern, re.I)
        self._starts = lru_cache(MOST_SHAPES)(lambda shape: [found.start() for found in self.compiled.finditer(shape)])

    def finditer(self, line: bytes) -> Iterator[re.Match[bytes]]:
        return filter(None, (self.compiled.match(line, start) for start in self._starts(_shape(line))))

    def search(self, line: bytes) -> re.Match[bytes] | None:
        return next(self.finditer(line), None)

    def sub(self, change: Callable[[re.Match[bytes]], bytes], line: bytes) -> bytes:
        return self.compiled.sub(change, line) if self._starts(_shape(line)) else line


_ANSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")
_STEP = _Pattern(
    rb"(?<![\w/])(?:global[_ ]?|train[_ ]?|opt(?:imizer)?[_ ]?)?"
    rb"(step|iter(?:ation)?|it|(?:num_)?updates?|(?<!eval )batch|(?<!\w )steps)\b(?:/max_steps)?(?:\.\.\. \()?"
    rb"['\"]?\s*[:=#|]?\s*\[?\s*['\"]?(%b)(?:\s*(?:/|of)\s*(%b))?" % (_COUNT, _COUNT)
)
"""Of plurals only `steps: 10`: "total steps" and "accumulation steps" are settings."""
_HEADING = re.compile(rb"(?:(?:\[|[=-]{2,} )%b|%b.{0,40}:\s*$)" % ((_STEP.compiled.pattern,) * 2), re.I)
"""A step above a block of indented lines, or above the losses of an evaluation."""
_BARE_STEP = _Pattern(rb"\A(\d+) \| ")
_COUNTED = _Pattern(
    rb"(?:(?<=[\])])(?<!val\))\s*[\[(] *(?=[\d/ ]+[\])])"
    rb"|(?<![\w.])(?=[\d.k]+(?:it)?/ *[\d.k]+(?: batches| steps| \(epoch|it)\b))([\d.]+k?)(?:it)?/ *([\d.]+k?)"
)
"""In brackets behind others, Epoch:[0/19](100/24681) or [1][200/735]; 200/2983 batches, 1.25kit/10.0kit."""
_BAR = _Pattern(rb"(?<!\d)(\d+)/(\d+)\s*\[(?:(\d+):)?(\d+):(\d+)<")
_OTHER_BAR = re.compile(rb"\s*(?!epoch|train|step|iter)[a-z][^|]{0,80}:\s+\d{1,3}%\|", re.I)
"""tqdm's bar of something else: a download, a tokenizer, an evaluation. The training loop's mostly has no words."""
_LOSS = _Pattern(
    rb"(?:(?<![^\W_])([a-z]++)[ _/.:-]{1,2})?"
    rb"(?:(?<![a-z])(?:loss(?:/train/total)?|nll(?![ _-]?loss))|(?:Language)?Cross[_-]?Entropy(?:Loss)?)"
    rb"(?:(?:[ _/]| ?[\[(])([a-z]+)[\])]?)?(?: \(curr\))?(?!-\d)%b(%b)" % (_ASSIGN, _NUMBER)
)
"""Not of a file's name: weights-01-val_loss-3.21.h5."""
_BOTH = _Pattern(
    rb"(?:loss train: *|train(?:ing)?/val(?:idation)? loss\W{0,3})(%b)(?:, *val: *| ?/ ?)(%b)" % ((_NUMBER,) * 2)
)
"""litgpt's "loss train: 2.85, val: 2.86", and "train/val loss 3.41/3.52"."""
_TERSE = _Pattern(rb"\A\s*(?:s:)?(\d+)\s+(train|val|trl|tel)[ :]\s*(%b)" % _NUMBER)
"""A row of llm.c's main.log, "s:250 tel:6.12", or of build-nanogpt's log.txt, "250 val 6.12"."""
_PERPLEXITY = _Pattern(
    rb"(?:(?<![^\W_])([a-z]++)[ _/.:-]{1,2})?"
    rb"(?<![a-z])(?:ppl|perplexity|(bp[bc]|bits[_ /]per[_ ](?:byte|char\w*)))%b(%b)" % (_ASSIGN, _NUMBER)
)
_IS_NAMED = _Pattern(rb"loss|ntropy|nll|ppl|perplexity|bp[bc]|bits")
"""What a text without losses mostly lacks: the patterns for them take twenty times as long."""
_BARE_LOSS = _Pattern(rb"(?<![\w.])(train(?:ing)?|val(?:id(?:ation)?)?|eval)\s*[:=]?\s*(%b)" % _NUMBER)
_OF_EVALUATION = _Pattern(
    rb"(?<![\w/.-])(?:validat(?:ion|e|ing)|valid|val|eval(?:uat(?:ion|ed|ing))?)(?:\s*[])|:>-]+\s*(?![\d.n])"
    rb"|\s+(?:loss )?(?:at|after|on|metrics|results?|step|iter(?:ation)?|epoch|batch)\b)"
)
"""A line's own heading, "[eval] step 10 loss 3.21" or "| valid | loss 3.21"; not a number's name, "val acc 0.3"."""
_IN_BITS = re.compile(rb"[ (]{0,2}bits?\b(?!(?:[ /_]*(?:per[ /_]*)?\w+)?\W{0,3}\d)", re.I)
"""A loss's unit; "bits per byte 1.1" is another number's name."""
_LEARNING_RATE = _Pattern(
    rb"(?<![\w])(?:learning[-_ ]rate|lr)(?:-\w*adam\w*)?(?:[-_/ ]?\(?(?:0|group ?0)\)?)?%b(%b)" % (_ASSIGN, _NUMBER)
)
_ROUNDED = re.compile(rb"0?\.0{3,}")
"""A learning rate printed with too few decimals to be seen; one that is 0 is printed as 0.0 or 0.00e+00."""
_GRAD_NORM = _Pattern(
    rb"(?<![\w])(?:(?:total_)?(?:grad(?:ient)?s?[_ /-]?(?:l2[_ ]?)?)?norm|g_?norm|grad)%b(%b)" % (_ASSIGN, _NUMBER)
)
_STEPS_PER_S = _Pattern(rb"%b\s*(?:steps?|it(?:er(?:ation)?)?s?|updates?)\s*(?:/|per )\s*s(?:ec(?:ond)?)?\b" % _PLAIN)
_STEPS_PER_S_KEY = _Pattern(
    rb"(?<!\w)(?:train[_ ])?(?:steps?|it)(?:/|_per_)s(?:ec(?:ond)?)?['\"]?\s*[:= ]\s*['\"]?([\d.,]*\d)"
)
_MS_OR_S = rb"(?P<unit>ms|s)"
_S_PER_STEP = _Pattern(rb"%b\s*%b(?:ec)?\s*/\s*(?:step|it(?:er(?:ation)?)?)\b" % (_PLAIN, _MS_OR_S))
_STEP_TIME = _Pattern(
    rb"(?<![\w])(?:(?:iter(?:ation)?|step|batch)[_ ]?time|dt|time(?=[^s]{0,40}ms))%b(?P<number>[\d.,]*\d)\s*%b\b"
    % (_ASSIGN, _MS_OR_S)
)
_STEP_TIME_UNIT = _Pattern(rb"(?:iter(?:ation)?|step)(?: time)? \(%b\): *(?P<number>[\d.,]*\d)" % _MS_OR_S)
_ELAPSED = _Pattern(
    rb"(?<![\w])(?:elapsed(?:[_ ]time)?|train[_ ]time|total[_ ]time|wall(?:[_ ]?(?:time|clock))?|runtime)"
    rb"%b(?P<number>[\d.,]*\d)\s*(?P<unit>ms|s|sec|m|min|h)\b" % _ASSIGN
)
_BARE_MS = _Pattern(rb"(?<!\w)%b ?ms\b" % _PLAIN)
_BARE_S = _Pattern(rb"(?<![\w:<])(?<!ETA )(?<!ETA: )(?<!ETA:)(?<!took )%b ?s(?:ec(?:onds)?)?\b(?!\s*/)" % _PLAIN)
_COMPOUND = _Pattern(
    rb"(?<![\w.,:])(?:(\d+) ?h(?:ours?|rs?)?[ ,]*)?(\d+) ?m(?:in(?:ute)?s?)?[ ,]*(\d+(?:\.\d+)?) ?s(?:ec(?:ond)?s?)?\b"
)
"""1m 2.5s: its seconds alone would seem a time that rises and falls."""
_EVALUATION_TIME = _Pattern(rb"\b(?:val|eval)\w* time%b[\d.,]*\d ?m?s\b" % _ASSIGN)
_CLOCK = _Pattern(rb"((?:elapsed|wall)[a-z_ ]*[:= ]+)(?:(\d+):)?(\d+):(\d\d(?:\.\d+)?)(?![:\d])")
_ETA = _Pattern(rb"\bETA:?\s*(?P<number>[\d.]+)\s*(?P<unit>s|m|h)\b")
_TIMES = (
    *(("step_time_s", pattern) for pattern in (_STEP_TIME_UNIT, _S_PER_STEP, _STEP_TIME)),
    *(("elapsed_s", _ELAPSED), ("eta_s", _ETA)),
)
"""By the field that they say, the surest first."""
_EPOCH = _Pattern(rb"(?<![\w])epoch(?:\(train\))?['\"]?\s*[:=#]?\s*\[?['\"]?\s*([\d.]+)")
_TIME_STAMP = _Pattern(rb"\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d{1,6})?")
_SUMMARY = re.compile(rb"train_runtime'?\"?\s*:\s*['\"]?([\d.]+)")
_SUMMARY_SPEED = re.compile(rb"train_steps_per_second'?\"?\s*:\s*['\"]?([\d.]+)")

_DIGIT_COMMA = re.compile(rb"\d,\d")
_DECIMAL_COMMA = re.compile(
    rb"(?:loss(?:[ _/:]+(?:train|val|eval|test)[a-z]*)?|entropy)%b[-+]?\d+,\d+(?:e[-+]?\d+)?(?![.,]?\w)" % _ASSIGN, re.I
)
"""No loss is printed as thousands without decimals."""
_PERPLEXITY_COMMA = re.compile(rb"(?:ppl|perplexity)%b\d+,\d{3}(?![.,]?\w)" % _ASSIGN, re.I)
"""A perplexity may be of thousands: it is where the line has a point, or a comma in its step."""
_DECIMAL_POINT = re.compile(rb"\d\.\d")
_NO_THOUSANDS = re.compile(rb"(?<![\d.,])(?<!\d:)(?:0,\d+|\d+,(?!\d{3}(?!\d))\d+)(?:e[-+]?\d+)?(?![.,]?\w)", re.I)
_SEPARATOR = re.compile(rb"(?<=\d)[.,](?=\d)")
_SWAPPED = {b".": b",", b",": b"."}

VAL_WORDS = frozenset(b"val valid validation validate eval evaluation test dev held heldout holdout va vld tel".split())
_TRAIN_WORDS = frozenset(b"train training ce xent batch step mean avg average curr current".split())
_VERBS = (b"", b"is", b"was", b"value")
_KNOWN_WORDS = VAL_WORDS | _TRAIN_WORDS | {b"loss", b"total", b"lm"}
OTHER_WORDS = frozenset(
    b"best min minimum max lowest final last prev previous initial start scale scaler aux z kl moe balance balancing"
    b" router reg target expected patience delta improved".split()
)
LOSS_NAMES = ("train_loss", "val_loss", "train_perplexity", "val_perplexity", "train_bits", "val_bits")
_losses_of = attrgetter(*LOSS_NAMES)
_SECONDS = {b"ms": 0.001, b"s": 1.0, b"sec": 1.0, b"m": 60.0, b"min": 60.0, b"h": 3600.0}


@dataclass(slots=True)
class LogRow:
    """What a line, or several of one step, recorded; None is not said. Losses in nats/token."""

    line: int = 0
    run: str = ""
    """Its name in a table of several."""
    step: int | None = None
    total_steps: int | None = None
    is_bar: bool = False
    """The step comes from a tqdm bar, which may be another loop's."""
    iteration: int | None = None
    """Of micro-batches, where the line names steps too; the step itself where it names an iteration alone."""
    epoch: float | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    train_perplexity: float | None = None
    val_perplexity: float | None = None
    train_bits: float | None = None
    """Per byte or character."""
    val_bits: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    steps_per_s: float | None = None
    """As printed."""
    step_time_s: float | None = None
    """Of one step, as printed."""
    elapsed_s: float | None = None
    bare_s: float | None = None
    """Seconds without a word: since the start, or of a step."""
    bar_s: float | None = None
    """A tqdm bar's clock, in whole seconds."""
    eta_s: float | None = None
    stamp_s: float | None = None
    after_restart: bool = False
    """The log says before it that the run was resumed."""
    at_line_end: str = ""
    """The field whose number touches the line's end: perhaps cut short."""

    @property
    def has_loss(self) -> bool:
        """Whether a loss is there, or the perplexity or bits that it is computed from."""
        return _losses_of(self) != (None,) * len(LOSS_NAMES)

    @property
    def says_something(self) -> bool:
        """Whether anything beside the step is there."""
        numbers = (self.grad_norm, self.learning_rate, self.steps_per_s, self.step_time_s, self.elapsed_s, self.bar_s)
        return self.has_loss or any(number is not None for number in numbers)


def with_decimal_points(line: bytes) -> bytes:
    """Return the line; one with decimal commas, as half of the world prints 3,2145, with points in their place."""
    if not _DIGIT_COMMA.search(line):
        return line
    # A line without a loss says it by a comma that cannot be of thousands, where no point is a decimal one.
    is_told = _NO_THOUSANDS.search(line) or (
        _PERPLEXITY_COMMA.search(line) and not any(b"," in step[0] for step in _STEP.compiled.finditer(line))
    )
    if not _DECIMAL_COMMA.search(line) and (_DECIMAL_POINT.search(line) or not is_told):
        return line
    # A step has no decimals: its commas, where it has any, are thousands.
    line = _STEP.compiled.sub(lambda step: step[0].replace(b",", b""), line)
    return _SEPARATOR.sub(lambda separator: _SWAPPED[separator[0]], line)


def read_line(line: bytes, *, step: int | None = None) -> LogRow | None:
    """Return what a line recorded, or None when it is no row of a log.

    step: of the heading above the line, where it stands under one.
    """
    line = _bare(line)
    # A substring is found a hundred times as fast as a pattern, and most lines hold none.
    if (b"train_runtime" in line and _SUMMARY.search(line)) or (b"%|" in line and _OTHER_BAR.match(line)):
        return None
    row = LogRow(step=step)
    _read_step(row, line)
    _read_losses(row, line)
    if row.step is None and not row.has_loss:
        return None
    for name, pattern in (("learning_rate", _LEARNING_RATE), ("grad_norm", _GRAD_NORM)):
        match = pattern.search(line)
        if match and not (name == "learning_rate" and _ROUNDED.fullmatch(match[1])):
            _set(row, name, match, 1, line)
    _read_times(row, line)
    return row if row.says_something else None


def read_heading(line: bytes) -> int | None:
    """Return the step that a line without losses says the next lines are of, or None."""
    if b"[" not in line and line[:1] not in (b"=", b"-") and not line.rstrip().endswith(b":"):
        return None
    match = _HEADING.search(_bare(line))
    return _step(match[2] or match[5]) if match else None


def _bare(line: bytes) -> bytes:
    line = line[:MAX_LINE_BYTES]
    return (_ANSI.sub(b"", line) if b"\x1b" in line else line).strip()


def read_summary(line: bytes) -> int | None:
    """Return the steps of the whole run as a Hugging Face Trainer's last line implies them."""
    runtime, speed = _SUMMARY.search(line), _SUMMARY_SPEED.search(line)
    steps = _float(runtime[1]) * _float(speed[1]) if runtime and speed else 0.0
    return round(steps) if 0 < steps <= MAX_STEP else None


def _read_step(row: LogRow, line: bytes) -> None:
    bar = _BAR.search(line) if b"[" in line else None
    found = iteration = None
    for match in _STEP.finditer(line):
        iteration = match if iteration is None and match[1].lower().startswith(b"it") else iteration
        # "iter 100 step 25": with accumulation iterations are not optimizer steps.
        if found is None or (match[1].lower() == b"step" and found[1].lower() != b"step"):
            found = match
    row.iteration = _step(iteration[2]) if iteration else None
    if bar:
        row.is_bar = found is None
        hours, minutes, seconds = (_float(part or b"0") for part in bar.groups()[2:])
        row.bar_s = if_measured(hours * 3600 + minutes * 60 + seconds)
        row.step, row.total_steps = _step(bar[1]), _step(bar[2])
    if found:
        row.step = _step(found[2])
        row.total_steps = _step(found[3]) if found[3] else None
    elif not bar and (bare := _BARE_STEP.search(line)):
        row.step = _step(bare[1])
    elif not bar and b"/" in line and (counted := _COUNTED.search(line)):
        row.step, row.total_steps = _step(counted[1]), _step(counted[2])
    if epoch := _EPOCH.search(line):
        row.epoch = _measured(epoch[1])


def _read_losses(row: LogRow, line: bytes) -> None:
    if terse := _TERSE.search(line):
        row.step = _step(terse[1])
        _set(row, "train_loss" if terse[2].lower() in (b"train", b"trl") else "val_loss", terse, 3, line)
        return
    unnamed = None
    is_named = _IS_NAMED.search(line)
    if is_named and (both := _BOTH.search(line)):
        _set(row, "train_loss", both, 1, line)
        _set(row, "val_loss", both, 2, line)
    losses = _LOSS.finditer(line) if is_named else ()
    # "policy_loss -0.1 loss 0.3": what no name is known of is a part of the whole.
    for match in sorted(losses, key=lambda match: (match[1] or b"loss").lower() not in _KNOWN_WORDS):
        before, after = (match[1] or b"").lower(), (match[2] or b"").lower()
        words = {*_words_before(line, match), after}
        if words & OTHER_WORDS:
            continue
        if words & VAL_WORDS:
            name = "val_loss"
        elif words & _TRAIN_WORDS or after in _VERBS:
            name = "train_loss"
        else:
            continue
        first = getattr(row, name) is None
        _set(row, name, match, 3, line)
        if first and _IN_BITS.match(line, match.end()):
            setattr(row, name, getattr(row, name) * math.log(2))
        unnamed = match.start(3) if after in _VERBS and before not in _TRAIN_WORDS else unnamed
    for match in _PERPLEXITY.finditer(line) if is_named else ():
        if not (words := _words_before(line, match)) & OTHER_WORDS:
            side = "val" if words & VAL_WORDS else "train"
            _set(row, f"{side}_{'bits' if match[2] else 'perplexity'}", match, 3, line)
    if not row.has_loss and row.step is not None and b"rain" in line.lower():
        # "step 10 | train 3.21 | val 3.40"
        for match in _BARE_LOSS.finditer(line):
            _set(row, "val_loss" if match[1].lower() in VAL_WORDS else "train_loss", match, 2, line)
    has_val = (row.val_loss, row.val_perplexity, row.val_bits) != (None, None, None)
    if unnamed is not None and not has_val and _OF_EVALUATION.search(line[:unnamed]):
        row.val_loss, row.train_loss = row.train_loss, None
    if row.val_loss is not None and row.train_loss is None and row.train_perplexity is not None:
        # "val loss 3.21, ppl 24.8"
        row.val_perplexity, row.train_perplexity = row.val_perplexity or row.train_perplexity, None


def _words_before(line: bytes, match: re.Match[bytes]) -> set[bytes]:
    """The two words before a loss's or a perplexity's name: "best val loss" is none of the row's."""
    near = line[max(0, match.start() - 12) : match.start()].replace(b"_", b" ")
    return {near.rstrip(b" -").rpartition(b" ")[2].lower(), (match[1] or b"").lower()}


def _set(row: LogRow, name: str, match: re.Match[bytes], group: int, line: bytes) -> None:
    text = match[group]
    if getattr(row, name) is not None:
        return
    setattr(row, name, _float(text))
    # A loss that has its decimals loses little by a cut; an exponent may be missing from the others.
    has_decimals = name.endswith("loss") and len(text.partition(b".")[2]) >= 2
    is_word = text[-1:].isalpha()  # "nan" is whole
    if match.end(group) == len(line) and not has_decimals and not is_word:
        row.at_line_end = name


def _read_times(row: LogRow, line: bytes) -> None:
    line = _CLOCK.sub(_in_seconds, _COMPOUND.sub(_in_seconds, _EVALUATION_TIME.sub(lambda _: b"", line)))
    if speed := _STEPS_PER_S.search(line) or _STEPS_PER_S_KEY.search(line):
        row.steps_per_s = _measured(speed[1])
    for name, pattern in _TIMES:
        if getattr(row, name) is None and (match := pattern.search(line)):
            setattr(row, name, if_measured(_float(match["number"]) * _SECONDS[match["unit"].lower()]))
    if row.step_time_s is None and row.elapsed_s is None:
        if bare_ms := _BARE_MS.search(line):
            row.step_time_s = if_measured(_float(bare_ms[1]) / 1000)
        elif bare_s := _BARE_S.search(line):
            row.bare_s = _measured(bare_s[1])
    if stamp := _TIME_STAMP.search(line[:80]):
        # What is of no calendar is a version or an identifier.
        with suppress(ValueError):
            row.stamp_s = (datetime.fromisoformat(stamp[0].decode().replace("/", "-")) - datetime.min).total_seconds()


def _in_seconds(match: re.Match[bytes]) -> bytes:
    *before, hours, minutes, seconds = match.groups(b"0")
    return b"%b%.2fs" % (b"".join(before), 3600 * _float(hours) + 60 * _float(minutes) + _float(seconds))


def _step(text: bytes) -> int | None:
    value = 1000 * _float(text[:-1]) if text[-1:] in b"kK" else _float(text)
    return round(value) if value <= MAX_STEP else None


def _measured(text: bytes) -> float | None:
    return if_measured(_float(text))


def if_measured(value: float) -> float | None:
    """Return a time, an epoch or a speed, None for what can be none."""
    return value if value == 0 or MEASURED[0] <= value <= MEASURED[1] else None


def _float(text: bytes) -> float:
    try:
        return float(text.replace(b",", b""))
    except ValueError:
        # "1.2.3": a version, an address; no measurement.
        return float("nan")
