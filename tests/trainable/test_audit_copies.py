import tracemalloc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from trainable.data.tokens import silent
from trainable.text_audit import copies
from trainable.text_audit.copies import duplicate_hits, overlap_hits
from trainable.text_audit.duplicates import MIN_DUPLICATE_TOKENS, find_duplicate_runs, find_overlap_runs
from trainable.text_audit.near import find_near_duplicates
from trainable.text_audit.ngrams import NGRAM_TOKENS, covered, hash_ngrams, hash_tokens, marks_between, union
from trainable.text_audit.repeats import find_repeats
from trainable.text_audit.shift import find_shifts
from trainable.text_audit.windows import BUCKETS, Windows, js_distance

Ids = npt.NDArray[np.uint16]


def planted(seed: int, copies: int = 12) -> Ids:
    """Random tokens with copied stretches of 20 to 400 of them."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 500, 20_000).astype(np.uint16)
    for _ in range(copies):
        length = int(rng.integers(20, 400))
        source, target = rng.integers(0, len(tokens) - length, 2)
        tokens[target : target + length] = tokens[source : source + length].copy()
    return tokens


def seen_before(tokens: Ids, n: int) -> npt.NDArray[np.bool_]:
    """The tokens that lie in an n-gram that occurs more than once."""
    places: dict[bytes, list[int]] = {}
    for i in range(len(tokens) - n + 1):
        places.setdefault(tokens[i : i + n].tobytes(), []).append(i)
    marks = np.zeros(len(tokens), dtype=bool)
    for where in places.values():
        if len(where) > 1:
            for i in where:
                marks[i : i + n] = True
    return marks


@pytest.mark.parametrize("seed", range(6))
def test_every_passage_of_50_tokens_that_occurs_twice_is_found(seed: int) -> None:
    tokens = planted(seed)
    runs = find_duplicate_runs(tokens, 18_000, np.zeros(len(tokens), dtype=bool), silent)
    for copy, original, length in runs.tolist():
        assert copy != original
        assert length >= MIN_DUPLICATE_TOKENS
        assert np.array_equal(tokens[copy : copy + length], tokens[original : original + length])
    both = np.concatenate([runs[:, [0, 2]], runs[:, [1, 2]]])
    found = covered(np.stack([both[:, 0], both.sum(axis=1)], axis=1), len(tokens))
    assert np.array_equal(found, seen_before(tokens, MIN_DUPLICATE_TOKENS))


@pytest.mark.parametrize("seed", range(6))
def test_every_validation_ngram_that_training_has_is_found(seed: int) -> None:
    tokens, split = planted(seed, copies=40), 14_000
    runs = find_overlap_runs(tokens, split, np.zeros(len(tokens), dtype=bool), silent)
    in_val = {tokens[i : i + NGRAM_TOKENS].tobytes() for i in range(split, len(tokens) - NGRAM_TOKENS + 1)}
    for here, there, length in runs.tolist():
        assert here + length <= split <= there
        assert np.array_equal(tokens[here : here + length], tokens[there : there + length])
    of_train = [i for i in range(split - NGRAM_TOKENS + 1) if tokens[i : i + NGRAM_TOKENS].tobytes() in in_val]
    found = covered(np.stack([runs[:, 0], runs[:, [0, 2]].sum(axis=1)], axis=1), len(tokens))
    expected = covered(np.array([(i, i + NGRAM_TOKENS) for i in of_train], dtype=np.int64).reshape(-1, 2), len(tokens))
    assert np.array_equal(found, expected)


def test_ngram_hashes_are_equal_where_the_ngrams_are() -> None:
    tokens = np.tile(np.arange(40, dtype=np.uint16), 3)
    hashes = hash_ngrams(hash_tokens(tokens), 32)
    assert len(hashes) == 120 - 31
    assert len(set(hashes.tolist())) == 40
    assert np.array_equal(hashes[:49], hashes[40:])


def test_copies_of_one_passage_are_one_finding() -> None:
    runs = np.array([[1000, 100, 80], [2000, 100, 80], [3000, 95, 85], [1500, 110, 20]])
    hits = {hit.first: hit for hit in duplicate_hits(runs, 10_000)}
    assert hits[1000].occurrences == 4
    assert hits[1000].removed.tolist() == [[1000, 1080], [2000, 2080], [3000, 3085]]
    assert hits[1000].original == (95, 180)
    assert hits[1500].original == (110, 130)


def test_a_copy_with_a_few_other_tokens_in_it_is_one_finding() -> None:
    hits = list(duplicate_hits(np.array([[1000, 100, 80], [1090, 192, 60]]), 10_000))
    assert [(hit.first, hit.end, hit.original) for hit in hits] == [(1000, 1150, (100, 252))]


def test_copies_across_the_split_are_overlaps() -> None:
    runs = np.array([[100, 9500, 60]])
    assert list(duplicate_hits(runs, 9000)) == []
    (hit,) = overlap_hits(runs)
    assert (hit.first, hit.end, hit.original, hit.removed.tolist()) == (9500, 9560, (100, 160), [[100, 160]])


@pytest.mark.parametrize("period", [1, 2, 7, 63])
def test_a_periodic_run_is_found_with_its_period(period: int) -> None:
    rng = np.random.default_rng(period)
    tokens = rng.integers(0, 500, 3000).astype(np.uint16)
    phrase = np.arange(600, 600 + period, dtype=np.uint16)
    tokens[1000:1600] = np.tile(phrase, 600 // period + 1)[:600]
    (hit,) = find_repeats(tokens)
    assert (hit.first, hit.end) == (1000, 1600)
    assert hit.removed.tolist() == [[1000 + period, 1600]]
    assert hit.occurrences == 600 // period


@pytest.mark.parametrize("offset", range(16))
def test_a_run_goes_on_where_its_phrase_changes_by_a_token(offset: int) -> None:
    tokens = np.random.default_rng(offset).integers(0, 500, 400).astype(np.uint16)
    tokens[100 + offset : 260 + offset] = np.tile(np.arange(600, 620), 8)
    tokens[260 + offset : 344 + offset] = np.resize([*range(600, 619), 700], 84)
    (hit,) = find_repeats(tokens)
    assert (hit.first, hit.end) == (100 + offset, 344 + offset)


def test_a_short_rule_is_no_repetition() -> None:
    tokens = np.random.default_rng(0).integers(0, 500, 3000).astype(np.uint16)
    tokens[1000:1040] = 7
    assert list(find_repeats(tokens)) == []


def test_near_duplicates_are_found_and_the_validation_side_stays() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 5000, 6000).astype(np.uint16)
    for target, source in ((2000, 1000), (5900, 300)):
        tokens[target : target + 100] = tokens[source : source + 100]
        tokens[target + 10 : target + 100 : 25] = 0
    first = np.arange(0, 6000, 100)
    pairs = find_near_duplicates(lambda low, high: tokens[low:high] + np.int32(1), first, first + 100, 5400, silent)
    assert [pair[:2] for pair in pairs] == [(3, 59), (20, 10)]
    assert all(similarity > 0.6 for *_, similarity in pairs)


@pytest.fixture
def make_windows() -> Callable[[npt.NDArray[np.float64]], Windows]:
    """Return a function that draws windows of 2,000 tokens from rows of bucket frequencies."""

    def make(frac: npt.NDArray[np.float64]) -> Windows:
        rng = np.random.default_rng(0)
        counts = np.stack([rng.multinomial(2000, row / row.sum()) for row in frac])
        count, none = len(frac), np.zeros(len(frac))
        first = np.arange(count) * 2000
        return Windows(
            first_token=first,
            window_tokens=2000,
            tokens=2000 * count,
            counts=counts,
            entropy=none,
            bytes_per_token=none,
            non_ascii_frac=none,
            duplicate_frac=none,
        )

    return make


def test_shifts(make_windows: Callable[[npt.NDArray[np.float64]], Windows]) -> None:
    usual = 1 / np.arange(1.0, BUCKETS + 1)
    other = usual[::-1]
    rows = np.tile(usual, (100, 1))
    assert find_shifts(make_windows(rows)) == []
    rows[40:43] = other
    (hit,) = find_shifts(make_windows(rows))
    assert (hit.first, hit.end) == (80_000, 86_000)
    rows[:] = usual
    rows[55:] = (usual + other) / 2
    (hit,) = find_shifts(make_windows(rows))
    assert (hit.first, hit.end) == (110_000, 200_000)
    assert find_shifts(make_windows(rows[:10])) == []


def test_js_distance_is_0_for_equal_and_1_for_disjoint_counts() -> None:
    counts = np.array([[2, 4, 0], [0, 0, 5], [3, 0, 1]])
    assert js_distance(counts, np.array([1, 2, 0])).round(12).tolist()[:2] == [0.0, 1.0]
    assert js_distance(counts, counts[2])[2] == 0.0


def test_a_template_is_known_across_the_blocks_that_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    template = rng.integers(0, 60_000, 24).astype(np.uint16)
    parts = [np.concatenate([template, rng.integers(0, 60_000, 37).astype(np.uint16)]) for _ in range(400)]
    tokens = np.concatenate(parts)
    # An n-gram of 32 has a quarter of a template or more in it when it starts 8 before the template's last token.
    is_start = np.zeros(len(tokens) + 61, dtype=bool)
    for first in range(0, len(tokens) + 61, 61):
        is_start[max(0, first - 24) : first + 17] = True
    for block in (1 << 18, 1000, 61):
        monkeypatch.setattr(copies, "BLOCK_TOKENS", block)
        covers, starts, hits = copies._templates(tokens)
        assert covers.tolist() == np.tile(np.arange(61) < 24, 400).tolist()
        assert np.flatnonzero(starts != is_start[: len(tokens)]).tolist() == list(range(len(tokens) - 24, len(tokens)))
        assert [hit.occurrences for hit in hits] == [400]


def test_a_long_text_takes_few_bytes_a_token() -> None:
    tokens = np.random.default_rng(0).integers(0, 60_000, 4_000_000).astype(np.uint16)
    some = np.array([[5, 9], [7, 3_000_000]])

    def peak(work: Callable[[], object]) -> float:
        tracemalloc.start()
        work()
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes / len(tokens)

    assert peak(lambda: covered(some, len(tokens))) < 3
    marks = covered(some, len(tokens))
    assert peak(lambda: marks_between(marks, some[:, 0], some[:, 1])) < 10
    # Tables of hashes take some 100 MB whatever the text's length.
    assert peak(lambda: copies._templates(tokens)) < 40


def test_spans_are_merged_and_cover() -> None:
    spans = np.array([[5, 9], [1, 3], [3, 4], [6, 7]])
    assert union(spans).tolist() == [[1, 4], [5, 9]]
    assert np.flatnonzero(covered(spans, 12)).tolist() == [1, 2, 3, 5, 6, 7, 8]
    assert union(np.zeros((0, 2), dtype=np.int64)).shape == (0, 2)
