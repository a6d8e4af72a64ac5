"""The episode state machine, driven by hand: what it asks for, when it ends, what it records."""

from __future__ import annotations

import pytest

from rise_ray.mdp import FinishReason, Place, StopReason, state_at
from rise_ray.rollout.episode import Completion, Episode, Request, failed_trajectory
from tests.unit.rollout.episodes import PLAN, PROBLEM, answer, chat, rolled, spec, verdict


def _start(**changes: object) -> tuple[Episode, Request, Request]:
    episode = Episode(spec(**changes), chat(), weight_version=4)
    attempt, candidates = episode.start()
    assert (attempt.candidates, candidates.candidates) == (False, True)
    return episode, attempt, candidates


def test_a_state_asks_for_one_attempt_and_its_candidates_at_once() -> None:
    _, attempt, candidates = _start()
    assert (attempt.turn, attempt.n) == (candidates.turn - 0, 1) == (0, 1)
    assert candidates.n == PLAN.candidates
    assert attempt.prompt_ids == candidates.prompt_ids == chat().prompt_ids(spec().prompt)


def test_a_right_answer_ends_the_episode_where_asked() -> None:
    trajectory = rolled(spec(), ["it is 6", "it is 7"])
    assert trajectory.stop_reason is StopReason.SUCCESS
    assert [t.attempt.text for t in trajectory.turns] == ["it is 6", "it is 7"]


def test_a_right_answer_does_not_end_the_episode_where_not_asked() -> None:
    trajectory = rolled(spec(stop_on_success=False), ["it is 7"] * 3)
    assert trajectory.stop_reason is StopReason.MAX_TURNS
    assert len(trajectory.turns) == PLAN.turns


def test_every_turn_but_the_last_has_its_feedback() -> None:
    trajectory = rolled(spec(), ["it is 6"] * 3)
    assert [bool(turn.feedback_ids) for turn in trajectory.turns] == [True, True, False]


def test_a_state_without_room_for_a_response_ends_the_episode() -> None:
    prompt = len(chat().prompt_ids(spec().prompt))
    room = prompt + PLAN.sampling.max_tokens + 5  # the first state fits, the second does not
    trajectory = rolled(spec(max_model_len=room), ["it is 6"])
    assert trajectory.stop_reason is StopReason.CONTEXT_OVERFLOW
    (turn,) = trajectory.turns
    assert turn.feedback_ids == ()  # no further state was visited
    assert len(turn.candidates) == PLAN.candidates


def test_a_window_is_what_must_fit() -> None:
    prompt = len(chat().prompt_ids(spec().prompt))
    room = prompt + PLAN.sampling.max_tokens + 5
    trajectory = rolled(spec(max_model_len=room, window=1), ["it is 6"] * 3)
    assert trajectory.stop_reason is StopReason.MAX_TURNS


def test_a_prompt_without_room_is_a_trajectory_without_turns() -> None:
    episode = Episode(spec(max_model_len=10), chat(), 0)
    assert (episode.start(), episode.done) == ([], True)
    trajectory = episode.trajectory()
    assert (trajectory.stop_reason, trajectory.turns) == (StopReason.CONTEXT_OVERFLOW, ())


def test_a_failed_check_ends_an_episode_that_could_have_ended_in_success() -> None:
    trajectory = rolled(spec(), ["crash"])
    assert trajectory.stop_reason is StopReason.ERROR
    assert trajectory.error == "verifier: the checker crashed"


def test_a_failed_check_is_recorded_where_the_episode_goes_on_anyway() -> None:
    trajectory = rolled(spec(stop_on_success=False), ["crash", "it is 6", "it is 7"])
    assert trajectory.stop_reason is StopReason.MAX_TURNS
    assert trajectory.turns[0].attempt.verdict == verdict("crash")
    assert trajectory.error is None


def test_a_failed_check_of_a_candidate_ends_nothing() -> None:
    trajectory = rolled(spec(), ["it is 7"], candidates="crash")
    assert trajectory.stop_reason is StopReason.SUCCESS
    assert {c.verdict.outcome.value for c in trajectory.turns[0].candidates} == {"error"}


def test_candidates_hold_up_no_turn_and_the_episode_waits_for_them_at_its_end() -> None:
    episode, attempt, candidates = _start(turns=2)
    second, late = answer(episode, attempt, "it is 6")
    assert answer(episode, second, "it is 5") == []
    assert not episode.done
    answer(episode, late, "it is 1", "it is 2")
    assert not episode.done
    answer(episode, candidates, "it is 3", "it is 4")
    assert episode.done
    said = [[c.text for c in turn.candidates] for turn in episode.trajectory().turns]
    assert said == [["it is 3", "it is 4"], ["it is 1", "it is 2"]]


def test_candidates_late_after_an_error_still_end_the_episode() -> None:
    episode, attempt, candidates = _start()
    assert answer(episode, attempt, "crash") == []
    assert not episode.done
    answer(episode, candidates, "it is 7", "it is 7")
    assert episode.done
    assert episode.trajectory().stop_reason is StopReason.ERROR


def test_verdicts_stay_with_their_candidates() -> None:
    episode, attempt, candidates = _start()
    answer(episode, candidates, "it is 7", "it is 1")
    answer(episode, attempt, "it is 7")
    outcomes = [c.verdict.outcome.value for c in episode.trajectory().turns[0].candidates]
    assert outcomes == ["correct", "incorrect"]
    episode, _, candidates = _start()
    episode.completed(candidates, [])
    with pytest.raises(ValueError, match="zip"):
        episode.verified(candidates, [verdict("it is 7")])


def test_candidates_may_belong_to_the_first_state_only() -> None:
    trajectory = rolled(spec(first_state_only=True, candidates=5), ["no"] * 3)
    assert [len(turn.candidates) for turn in trajectory.turns] == [5, 0, 0]
    without = rolled(spec(candidates=0), ["no"] * 3)
    assert [len(turn.candidates) for turn in without.turns] == [0, 0, 0]


def test_sampled_ids_are_never_made_again_from_text() -> None:
    # One token per letter: not what the tokenizer gives for this text.
    tokenizer, end = chat().tokenizer, chat().end_of_turn
    text = "the answer is 6"
    letters = tuple(i for c in text for i in tokenizer.encode(c, add_special_tokens=False))
    assert letters != chat().response_ids(text)[:-1]
    episode, attempt, _ = _start()
    assert episode.completed(attempt, [Completion((*letters, end), FinishReason.STOP)]) == [text]
    second, _ = episode.verified(attempt, [verdict(text)])
    third, _ = answer(episode, second, "it is 5")
    start = len(attempt.prompt_ids)
    for later in (second, third):
        assert later.prompt_ids[: start + len(letters) + 1] == (
            *attempt.prompt_ids,
            *letters,
            end,
        )


def test_a_truncated_attempt_is_ended_by_the_feedback() -> None:
    episode, attempt, _ = _start()
    second, _ = answer(episode, attempt, "~it is")
    other, attempt, _ = _start()
    ended, _ = answer(other, attempt, "it is")
    assert second.prompt_ids == ended.prompt_ids


@pytest.mark.parametrize("window", [None, 1, 2])
def test_requests_are_the_states_of_the_trajectory(window: int | None) -> None:
    episode = Episode(spec(window=window), chat(), 0)
    requests, asked = episode.start(), []
    while requests:
        asked.append(requests[0].prompt_ids)
        attempt, candidates = requests
        answer(episode, candidates, "no", "no")
        requests = answer(episode, attempt, f"it is {len(asked)}")
    trajectory = episode.trajectory()
    assert asked == [
        state_at(trajectory.prompt_ids, trajectory.turns, turn, window).token_ids
        for turn in range(3)
    ]


def _seeds(**changes: object) -> list[int]:
    sample = changes.pop("sample", 0)
    trajectory = rolled(spec(sample, **changes), ["no"] * 3)
    return [a.seed for t in trajectory.turns for a in (t.attempt, *t.candidates)]


def test_every_response_has_its_own_seed_that_a_second_run_gives_again() -> None:
    seeds = _seeds()
    assert len(set(seeds)) == len(seeds) == 9
    assert _seeds() == seeds
    for change in (
        {"sample": 1},
        {"seed": 8},
        {"place": Place("iteration", 2, "collect")},
        {"place": Place("iteration", 1, "eval")},
    ):
        assert not set(_seeds(**change)) & set(seeds)


def test_a_candidate_has_the_seed_that_the_engine_sampled_it_with() -> None:
    # vLLM gives sample i of a request the request's seed plus i.
    episode, attempt, candidates = _start()
    answer(episode, candidates, "no", "no")
    answer(episode, attempt, "it is 7")
    turn = episode.trajectory().turns[0]
    assert [c.seed for c in turn.candidates] == [candidates.seed, candidates.seed + 1]
    assert turn.attempt.seed == attempt.seed


def test_the_record_names_its_problem_its_weights_and_its_plan() -> None:
    episode, attempt, candidates = _start(window=2)
    answer(episode, candidates, "no", "~no")
    answer(episode, attempt, "it is 7")
    trajectory = episode.trajectory()
    assert trajectory.id == spec().id == "run/iteration=1/collect/p0/0"
    assert (trajectory.problem, trajectory.window) == (PROBLEM, 2)
    turn = trajectory.turns[0]
    assert {a.weight_version for a in (turn.attempt, *turn.candidates)} == {4}
    assert [c.finish_reason.value for c in turn.candidates] == ["stop", "length"]


def test_an_episode_that_was_set_aside_has_no_turns_and_says_why() -> None:
    trajectory = failed_trajectory(spec(3), "lost with 3 workers")
    assert trajectory.id == spec(3).id
    assert (trajectory.turns, trajectory.stop_reason) == ((), StopReason.ERROR)
    assert trajectory.error == "lost with 3 workers"
