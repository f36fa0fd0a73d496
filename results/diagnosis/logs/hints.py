"""What the lines around a log's table say of the run's configuration. A hint may be wrong; what was measured wins."""

import re

_INT = r"(\d{1,3}(?:,\d{3})+|\d+)(?![.\w])"
_IS = r"['\"]?(?:\W{1,6}| \.{6,} )(?<!-)"
"""Not of -1, which leaves a setting open."""
_FALSE = r"(?:(?:false|none|null|no|off|0)\b|''|\"\")"
_IS_SET = rf"(?!\W{{1,4}}{_FALSE})"
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32"}

MAX_DIGITS = 15
"""A longer number is none of a configuration."""

_VALUES = {
    "vocab_size": rf"vocab(?:ulary)?[_ ]?size{_IS}{_INT}",
    "lr_schedule": r"(?:lr_?|learning[_ ]rate[_ ])?sched(?:ule|uler)(?:_type|_name)?['\"]?\s*[:=]+\s*['\"]?"
    r"(?:SchedulerType\.)?([\w+-]+)",
    "warmup_steps": rf"warm-?up(?:[_ ](?:steps|iters))?{_IS}{_INT}",
    "precision": rf"(?:d_?type|precision){_IS}(?:torch\.)?(bf16|bfloat16|fp16|float16|half|fp32|float32)\b(?!-mixed)",
    "total_steps": r"(?:training[_ ]steps|max[_ ]?(?:steps|iters)|(?<!\w)iters|num[_ ](?:training[_ ])?steps"
    rf"|total[_ ](?:optimization[_ ]|training[_ ])?steps){_IS}{_INT}",
    "learning_rate": r"(?:(?<!min[_ ])(?<!end[_ ])(?<!final[_ ])(?<!head[_ ])learning[_ ]rate|max[_ ]lr|peak[_ ]lr"
    rf"|(?<![\w-])lr){_IS}(\d*\.?\d+(?:e[-+]?\d+)?)",
    "epochs": rf"num[_ ](?:train[_ ])?epochs{_IS}{_INT}",
    "batch_size": rf"(?<!eval_)batch[_ ]size{_IS}{_INT}",
    "block_size": rf"(?:block[_ ]size|seq(?:uence)?[_ ]len(?:gth)?|context[_ ]length){_IS}{_INT}",
}
"""By name: a pattern whose group is the value."""
_FROM_SCRATCH = (
    rf"(?:from[_ -]scratch|random(?:ly)?[- ]init|random weights|init_from\W+scratch|pretrained\W{{1,4}}{_FALSE})"
)
_PRETRAINED = (
    r"(?:from_pretrained|loading weights file|checkpoint weights were used"
    r"|(?<!not )pre-?trained(?!\w*[_ ]tokenizer)|init_from\W+gpt2"
    r"|model[_ ]name(?:_or_path)?\W{1,5}(?:[\w-]+/)?gpt-?2|fine-?tun(?:e|ed|ing)(?![a-z])"
    rf"|base_?model\b|\bunsloth\b|\bq?lora\b|\badapters?\b){_IS_SET}"
)
_RESUMED = (
    r"\b(?:(?<!not )(?<!to )resum(?:ed?|ing)\b|continu(?:e|ing) from|restored? from"
    rf"|load(?:ed|ing) checkpoint(?! shards)){_IS_SET}"
)
_GPT2 = r"(?<![a-z])gpt-?2(?![a-z\d])(?![-_ ]?(?:tokenizer|bpe|vocab|search))"
_HINTS = tuple(
    (name, re.compile(pattern.encode(), re.I), value)
    for name, pattern, value in (
        *((name, pattern, None) for name, pattern in _VALUES.items()),
        ("pretrained", _FROM_SCRATCH, "no"),
        ("pretrained", _PRETRAINED, "yes"),
        ("model", _GPT2, "gpt2"),
        ("resumed", _RESUMED, "yes"),
    )
)


def read_hints(line: bytes, *, is_name: bool = False) -> dict[str, str]:
    """Return what a line outside the table says of the run's configuration; the first pattern of a name wins.

    is_name: the line is the file's name, which says what the model is and nothing more.
    """
    hints: dict[str, str] = {}
    if is_name:
        line = line.replace(b"_", b" ")
    for name, pattern, value in _HINTS:
        if (is_name and name not in ("pretrained", "model")) or (name == "pretrained" and b"okenizer" in line):
            continue
        match = None if name in hints else pattern.search(line)
        text = match and (value or _text(name, match[1]))
        if text:
            hints[name] = text
    return hints


def _text(name: str, found: bytes) -> str | None:
    text = found.decode("ascii", "replace").lower()
    if name == "precision":
        return _PRECISIONS.get(text, text)
    if name in ("lr_schedule", "learning_rate"):
        return text
    number = text.replace(",", "")
    return number if len(number) <= MAX_DIGITS else None
