"""Rolling a phase: only what is missing is rolled, all of it is counted, failures are named."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rise_ray.errors import DataError, ModelError, RolloutError, StoreError
from rise_ray.feedback.constant import Constant
from rise_ray.mdp import Place, Trajectory
from rise_ray.rollout.collect import Tally, roll_phase, specs_for
from rise_ray.rollout.episode import EpisodeSpec, Question, Start, failed_trajectory
from rise_ray.store.files import Folder
from rise_ray.store.trajectories import TrajectoryStore
from rise_ray.tasks.countdown import Countdown
from tests.unit.rollout.episodes import PLAN, chat, completion, rolled, spec

SPECS = [spec(sample) for sample in range(6)]


@pytest.fixture
def store(tmp_path: Path) -> TrajectoryStore:
    return TrajectoryStore(Folder(str(tmp_path / "trajectories")))


def _roll(specs: Sequence[EpisodeSpec], *_: int) -> Iterator[Trajectory]:
    return (rolled(spec, ["it is 6", "it is 7"]) for spec in reversed(specs))


def _phase(store: TrajectoryStore, roll: Any = _roll, share: float = 0.05) -> dict[str, Any]:
    return roll_phase(
        roll, SPECS, store, Place("iteration", 1, "collect"), share, lambda *progress: None
    )


def test_a_phase_is_stored_whole_and_counted(store: TrajectoryStore) -> None:
    result = _phase(store)
    assert store.ids(Place("iteration", 1, "collect")) == {spec.id for spec in SPECS}
    # Per episode: two attempts and two candidates for each of them, one of the four right.
    assert result["trajectories"] == result["rolled"] == 6
    assert result["verdicts"] == 36
    assert result["outcomes"] == {"incorrect": 30, "correct": 6}
    assert result["accuracy"] == {"acc@t1": 0.0, "acc@t2": 1.0}
    assert result["stop_reasons"] == {"success": 6}
    lengths = [
        (number, len(response.token_ids))
        for trajectory in store.read(Place("iteration", 1, "collect"))
        for number, turn in enumerate(trajectory.turns, 1)
        for response in (turn.attempt, *turn.candidates)
    ]
    tokens = sum(length for _, length in lengths)
    assert result["tokens"] == result["rolled_tokens"] == tokens
    # What one first answer costs, as a control is told: of the attempt and two candidates each.
    assert result["first_responses"] == 18
    first = sum(length for number, length in lengths if number == 1)
    assert 0 < first < tokens
    assert result["first_tokens"] == first


def test_a_resumed_phase_rolls_only_what_is_missing(store: TrajectoryStore) -> None:
    def interrupted(specs: Sequence[EpisodeSpec], *_: int) -> Iterator[Trajectory]:
        yield from _roll(specs[:4])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _phase(store, interrupted)
    assert store.ids(Place("iteration", 1, "collect")) == {
        spec.id for spec in SPECS[:4]
    }  # what had ended
    asked: list[str] = []

    def rest(specs: Sequence[EpisodeSpec], total: int, errors: int) -> Iterable[Trajectory]:
        asked.extend(spec.id for spec in specs)
        assert (total, errors) == (6, 0)
        return _roll(specs)

    resumed = _phase(store, rest)
    assert asked == [spec.id for spec in SPECS[4:]]
    assert (resumed["rolled"], resumed["trajectories"]) == (2, 6)
    again = _phase(store, pytest.fail)  # nothing is missing: nothing is rolled
    assert again == {**resumed, "rolled": 0, "rolled_tokens": 0}


def test_what_is_rolled_ahead_is_stored_and_counted_where_it_belongs(
    store: TrajectoryStore,
) -> None:
    following = [spec(sample, place=Place("iteration", 2, "collect")) for sample in range(6)]

    def further(specs: Sequence[EpisodeSpec], *_: int) -> Iterator[Trajectory]:
        ahead = _roll(following[:2])
        yield next(ahead)
        yield from _roll(specs)
        yield next(ahead)

    counts = _phase(store, further)
    assert counts == _phase(store, pytest.fail) | {
        "rolled": 6,
        "rolled_tokens": counts["rolled_tokens"],
    }
    place = following[0].plan.place
    assert store.ids(place) == {spec.id for spec in following[:2]}
    later = roll_phase(_roll, following, store, place, 0.05, lambda *progress: None)
    assert (later["rolled"], later["trajectories"]) == (4, 6)
    assert later["tokens"] == counts["tokens"]


def test_progress_counts_what_was_stored_before(store: TrajectoryStore) -> None:
    store.write(Place("iteration", 1, "collect"), list(_roll(SPECS[:4])))
    seen: list[tuple[int, int]] = []
    roll_phase(
        *(_roll, SPECS, store, Place("iteration", 1, "collect"), 0.05),
        lambda done, total, tally: seen.append((done, total)),
    )
    assert seen == [(5, 6), (6, 6)]


def test_an_episode_that_ended_is_stored_while_the_others_still_run(store: TrajectoryStore) -> None:
    def slow(specs: Sequence[EpisodeSpec], *_: int) -> Iterator[Trajectory]:
        yield from _roll(specs[:2])
        deadline = time.monotonic() + 60
        while (
            len(store.ids(Place("iteration", 1, "collect"))) < 2
        ):  # nothing else has to end for it
            assert time.monotonic() < deadline, "episodes that ended wait for the next one"
            time.sleep(0.01)
        yield from _roll(specs[2:])

    assert _phase(store, slow)["trajectories"] == 6


def test_a_phase_that_cannot_be_stored_stops_with_the_cause(
    store: TrajectoryStore, tmp_path: Path
) -> None:
    (tmp_path / "trajectories").write_text("a file in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        _phase(store)


def test_a_finished_phase_is_sealed(store: TrajectoryStore) -> None:
    sealed = _phase(store)["parts_sha256"]
    (part,) = store.parts(Place("iteration", 1, "collect"), sealed)
    store.folder_of(Place("iteration", 1, "collect")).remove(part)
    with pytest.raises(StoreError, match="not those that the journal names"):
        store.parts(Place("iteration", 1, "collect"), sealed)
    repaired = _phase(store)  # rolled again: the same episodes, the same seeds
    assert (repaired["rolled"], repaired["parts_sha256"]) == (6, sealed)


def test_an_episode_that_never_came_back_is_an_error(store: TrajectoryStore) -> None:
    with pytest.raises(RolloutError, match=r"holds 5 trajectories, 6 were rolled.*resume"):
        _phase(store, lambda specs, *_: _roll(specs[1:]))


def test_too_many_failed_checks_stop_the_phase_and_say_the_share(store: TrajectoryStore) -> None:
    def crashing(specs: Sequence[EpisodeSpec], *_: int) -> Iterator[Trajectory]:
        yield rolled(specs[0], ["crash"])
        yield from _roll(specs[1:])

    result = _phase(store, crashing, share=0.04)  # 1 of 33
    assert (result["verdict_errors"], result["episode_errors"]) == (1, 1)
    with pytest.raises(RolloutError, match=r"1 of 33 checks failed.*max_error_share` = 0\.03"):
        _phase(store, share=0.03)


def test_the_share_of_failed_episodes_is_of_the_phase_also_in_a_resumed_one(
    store: TrajectoryStore,
) -> None:
    store.write(
        Place("iteration", 1, "collect"), [failed_trajectory(SPECS[0], "lost"), *_roll(SPECS[1:4])]
    )
    asked: list[tuple[int, int, int]] = []

    def rest(specs: Sequence[EpisodeSpec], total: int, errors: int) -> Iterable[Trajectory]:
        asked.append((len(specs), total, errors))
        return _roll(specs)

    _phase(store, rest)
    assert asked == [(2, 6, 1)]


def test_a_failed_check_is_in_no_accuracy() -> None:
    tally = Tally()
    tally.add(rolled(spec(stop_on_success=False), ["crash", "it is 7", "it is 6"]))
    tally.add(rolled(spec(stop_on_success=False), ["it is 7", "it is 7", "it is 6"]))
    tally.add(failed_trajectory(spec(), "lost"))
    record = tally.record()
    assert record["accuracy"] == {"acc@t1": 1.0, "acc@t2": 1.0, "acc@t3": 0.0}
    assert (record["verdict_errors"], record["episode_errors"]) == (1, 1)


def test_what_was_sampled_elsewhere_is_not_counted_again() -> None:
    whole = rolled(spec(stop_on_success=False), ["it is 6", "it is 7", "it is 6"])
    opening = chat().response_ids("it is ")[:-1]
    fork = spec(start=Start(whole.turns[:1], opening), candidates=0, stop_on_success=False)
    tally = Tally()
    tally.add(rolled(fork, ["7", "it is 6"]))
    sampled = [len(completion(text).token_ids) for text in ("7", "it is 6")]
    record = tally.record()
    assert record["tokens"] == sum(sampled)
    assert (record["first_responses"], record["verdicts"]) == (0, 2)
    assert record["accuracy"] == {"acc@t2": 1.0, "acc@t3": 0.0}


def test_responses_that_were_not_to_be_checked_are_no_verdicts() -> None:
    tally = Tally()
    tally.add(rolled(spec(check=False), ["it is 7"] * 3))
    record = tally.record()
    assert (record["verdicts"], record["outcomes"]) == (0, {"partial": 9})
    assert record["accuracy"] == {}


def test_a_question_whose_words_are_split_is_refused_before_anything_is_rolled() -> None:
    task = Countdown()
    plan = replace(PLAN, question=Question("sure", "Sure ?", ("perhaps", "never")))
    with pytest.raises(ModelError, match="`perhaps` is"):
        specs_for(plan, task, chat(), task.load("dev")[:1], samples=1)


def test_truncated_responses_are_counted() -> None:
    tally = Tally()
    tally.add(rolled(spec(), ["~it is 6", "it is 7"], candidates="~no"))
    assert tally.record()["truncated"] == 5


def test_every_problem_is_rolled_once_for_each_sample() -> None:
    task = Countdown()
    problems = task.load("dev")[:3]
    specs = specs_for(PLAN, task, chat(), problems, samples=2)
    assert [(s.problem.id, s.sample) for s in specs] == [
        (problem.id, sample) for problem in problems for sample in (0, 1)
    ]
    assert len({s.id for s in specs}) == 6
    assert specs[0].feedback == Constant(task.feedback(problems[0]))


def test_a_prompt_that_does_not_fit_is_named_before_anything_is_rolled() -> None:
    task = Countdown()
    problem = task.load("dev")[0]
    length = len(chat().prompt_ids(task.prompt(problem)))
    fits = length + PLAN.sampling.max_tokens
    assert specs_for(replace(PLAN, max_model_len=fits), task, chat(), [problem], samples=1)
    with pytest.raises(DataError, match=f"{problem.id}: its prompt has {length} tokens"):
        specs_for(replace(PLAN, max_model_len=fits - 1), task, chat(), [problem], samples=1)
