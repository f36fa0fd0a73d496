import subprocess
import sys

import pytest

from search.options import parse_range
from trainable.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2.0M-2.5M", (2_000_000, 2_500_000)),
        ("500K-1M", (500_000, 1_000_000)),
        ("500k-1m", (500_000, 1_000_000)),
        ("0-20000", (0, 20_000)),
        ("1,000-2_000", (1000, 2000)),
        ("1e6-2.5e6", (1_000_000, 2_500_000)),
        (" 1.5K - 2K ", (1500, 2000)),
        ("1G–2G", (1_000_000_000, 2_000_000_000)),
        ("1.2345K-2K", (1234, 2000)),
    ],
)
def test_ranges(text: str, expected: tuple[int, int]) -> None:
    assert parse_range(text) == expected


@pytest.mark.parametrize(
    "text", ["", "2M", "2M-", "-2M", "2M-3X", "a-b", "1-2-3", "-1-2", "2M..3M", "nan-inf", "2,0M-2,5M"]
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a range of token positions\. Write it as 2\.0M-2\.5M"):
        parse_range(text)


@pytest.mark.parametrize("text", ["2M-1M", "5-5", "1M-1000K"])
def test_a_range_must_end_after_it_starts(text: str) -> None:
    with pytest.raises(UserError, match="must end after it starts"):
        parse_range(text)


def test_a_range_is_read_without_torch_or_matplotlib() -> None:
    code = "import sys; from search.options import parse_range; parse_range('1-2'); "
    code += "print({'torch', 'matplotlib'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"
