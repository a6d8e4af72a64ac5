"""The parity probe accepts equal log-probabilities and says exactly what differs otherwise."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise_ray.errors import SyncError
from rise_ray.store.files import Folder
from rise_ray.sync.parity import (
    ParityReference,
    check_parity,
    default_tolerance,
    parity_sequences,
)

REFERENCE = ParityReference(((1, 2, 3), (4, 5)), ((-0.5, -1.0), (-2.0,)))


def check(got: object, tolerance: float = 0.001) -> object:
    return check_parity(REFERENCE, got, tolerance, "worker-3", 6)  # type: ignore[arg-type]


def test_equal_logprobs_pass_with_zero_difference() -> None:
    report = check(REFERENCE.logprobs)
    assert (report.mean, report.max, report.tokens) == (0.0, 0.0, 3)


@given(st.lists(st.floats(-0.01, 0.01), min_size=3, max_size=3))
def test_the_mean_difference_over_all_tokens_decides(noise: list[float]) -> None:
    got = ((-0.5 + noise[0], -1.0 + noise[1]), (-2.0 + noise[2],))
    differences = [
        abs(x - y)
        for xs, ys in zip(got, REFERENCE.logprobs, strict=True)
        for x, y in zip(xs, ys, strict=True)
    ]
    mean = sum(differences) / 3
    report = check(got, tolerance=mean + 1e-12)
    assert report.mean == pytest.approx(mean)
    assert report.max == max(differences)
    if mean > 1e-9:
        with pytest.raises(SyncError):
            check(got, tolerance=mean / 2)


def test_a_mismatch_names_engine_version_figures_and_the_worst_token() -> None:
    with pytest.raises(SyncError) as caught:
        check(((-0.5, -1.3), (-2.1,)))
    message = str(caught.value)
    assert "engine worker-3 does not hold weight version 6" in message
    assert "by 0.133 nats in the mean and 0.3 at most" in message
    assert "token 3 at position 2 of probe sequence 0: trainer -1.0000, engine -1.3000" in message


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_logprob_that_is_no_number_never_passes(value: float) -> None:
    with pytest.raises(SyncError, match="worker-3"):
        check(((-0.5, value), (-2.0,)), tolerance=1e9)


@pytest.mark.parametrize("got", [(), ((-0.5, -1.0),), ((-0.5,), (-2.0,))])
def test_other_tokens_than_the_probe_never_pass(got: object) -> None:
    with pytest.raises(SyncError, match="worker-3: scored other tokens"):
        check(got)


def test_a_reference_survives_its_file(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "checkpoint"))
    REFERENCE.save(folder)
    assert folder.names() == ["parity.json"]
    assert ParityReference.load(folder) == REFERENCE


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "not json",
        '{"sequences": [[1, 2]], "logprobs": [[-1.0, -2.0]]}',
        '{"sequences": [[1]], "logprobs": [[]]}',
        '{"sequences": [], "logprobs": []}',
        '{"sequences": [[1, 2]], "logprobs": [[NaN]]}',
    ],
)
def test_a_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(SyncError, match="parity reference"):
        ParityReference.from_json(text, "parity.json")


def test_probe_sequences_are_different_scorable_and_short() -> None:
    ids = [[1], [1, 2], [1, 2], [], list(range(10)), [7, 8], [9, 9]]
    assert parity_sequences(ids, count=3, max_tokens=4) == ((1, 2), (0, 1, 2, 3), (7, 8))


def test_tolerances_are_the_documented_ones() -> None:
    assert default_tolerance("float32") == 0.001
    assert default_tolerance("bfloat16") == 0.05
    with pytest.raises(SyncError, match="float16"):
        default_tolerance("float16")
