"""The parity probe accepts equal log-probabilities and says exactly what differs otherwise."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise_ray.errors import SyncError
from rise_ray.store.files import Folder
from rise_ray.sync.parity import (
    DEFAULT_TOLERANCE_NATS,
    ParityReference,
    ParityReport,
    Probed,
    check_moved,
    check_parity,
    drift_record,
    parity_sequences,
)

REFERENCE = ParityReference(((1, 2, 3), (4, 5)), ((-0.5, -1.0), (-2.0,)))


def check(got: object, tolerance: float = 0.001) -> object:
    return check_parity(REFERENCE, got, tolerance, "worker-3", 6)  # type: ignore[arg-type]


def test_equal_logprobs_pass_with_zero_difference() -> None:
    report = check(REFERENCE.logprobs)
    assert (report.mean, report.max) == (0.0, 0.0)


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
def test_a_malformed_reference_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "parity.json").write_text(text)
    with pytest.raises(SyncError, match="parity reference"):
        ParityReference.load(Folder(str(tmp_path)))


def test_probe_sequences_are_different_and_hold_a_response_after_the_longest_prompt() -> None:
    long, short, response = tuple(range(1000)), (1, 2), (7, 8, 9)
    chats = [(long, response), (short, response), (short, response), (short, long), (long, long)]
    found = parity_sequences(chats, max_model_len=2048, count=3)
    assert found == ((*long[-128:], *response), (*short, *response), (*short, *long[:254]))
    for ids in parity_sequences(chats, max_model_len=16):  # the engine has to generate one more
        assert len(ids) <= 15
        assert set(ids) & {*response, *long[:8]}


def probe(version: int, trainer: list[float], engine: list[float], ids: int = 0) -> Probed:
    """Of one sequence."""
    sequence = tuple(range(ids, ids + len(trainer) + 1))
    return Probed(version, ParityReference((sequence,), (tuple(trainer),)), (tuple(engine),))


TOKENS = 200


@pytest.mark.parametrize("update", [0.0, 0.001, 0.01, 0.02, 0.03, 0.05, 0.2])
def test_an_engine_with_the_new_weights_passes_after_any_update_however_it_rounds(
    update: float,
) -> None:
    """Trainer and engine err independently of each other and of the version, as in bfloat16."""
    rng = random.Random(0)
    for _ in range(100):
        old = [rng.uniform(-5, 0) for _ in range(TOKENS)]
        new = [value + rng.gauss(0, update) for value in old]
        trainer_old, engine_old, trainer_new, engine_new = (
            [value + rng.gauss(0, 0.01) for value in true] for true in (old, old, new, new)
        )
        check_moved(probe(3, trainer_old, engine_old), probe(4, trainer_new, engine_new), "w")


@pytest.mark.parametrize("update", [0.1, 0.04])  # in the mean below bfloat16's tolerance, too
def test_an_engine_that_kept_the_old_weights_is_named_whatever_the_tolerance(update: float) -> None:
    rng = random.Random(0)
    old = [rng.uniform(-5, 0) for _ in range(TOKENS)]
    new = [value + rng.gauss(0, update) for value in old]
    answers = [value + rng.gauss(0, 0.01) for value in old]
    before, stale = probe(3, old, answers), probe(4, new, answers)
    check_parity(stale.reference, stale.got, update, "rollout-1", 4)
    with pytest.raises(SyncError, match=r"^engine rollout-1 does not hold weight version 4: it "):
        check_moved(before, stale, "rollout-1")
    back = [value + rng.gauss(0, 0.01) for value in old]  # a restart: the same weights once more
    with pytest.raises(SyncError, match=r"like version 3 .* gone -?0\.0\d of the way"):
        check_moved(before, probe(4, new, back), "rollout-1")


def test_versions_that_answer_alike_are_not_told_apart() -> None:
    rng = random.Random(0)
    old = [rng.uniform(-5, 0) for _ in range(TOKENS)]
    answers = [value + rng.gauss(0, 0.01) for value in old]
    new = [value + rng.gauss(0, 0.005) for value in old]  # a tiny learning rate
    check_moved(probe(3, old, answers), probe(4, new, answers), "w")
    check_moved(probe(3, old, old), probe(4, old, old), "w")  # none at all, and exact arithmetic


def test_references_without_a_common_sequence_are_refused() -> None:
    with pytest.raises(SyncError, match="versions 3 and 4 have no sequence in common"):
        check_moved(probe(3, [-1.0], [-1.0]), probe(4, [-1.0], [-1.0], ids=50), "w")


def test_drift_is_logged_over_engines() -> None:
    reports = [ParityReport(0.01, 0.2), ParityReport(0.03, 0.1)]
    assert drift_record(reports) == {"mean": pytest.approx(0.02), "max": 0.2, "engines": 2}


def test_tolerances_are_the_documented_ones() -> None:
    assert DEFAULT_TOLERANCE_NATS == {"float32": 0.001, "bfloat16": 0.05}
