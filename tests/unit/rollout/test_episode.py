"""The episode state machine, driven by hand: what it asks for, when it ends, what it records."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rise_ray.config.settings import SamplingConfig
from rise_ray.feedback.oracle import Oracle
from rise_ray.mdp import FinishReason, Outcome, Place, Source, StopReason, state_ids
from rise_ray.rollout.episode import Episode, Question, Start, failed_trajectory
from rise_ray.rollout.requests import Check, Completion, Request, Sample, ScoreLabels
from tests.unit.rollout.episodes import (
    LOGPROB,
    PLAN,
    PROBLEM,
    answer,
    chat,
    completion,
    rolled,
    samples,
    spec,
    verdict,
)


def _start(**changes: object) -> tuple[Episode, Sample, Sample]:
    episode = Episode(spec(**changes), chat(), weight_version=4)
    attempt, candidates = samples(episode.start())
    assert (attempt.candidates, candidates.candidates) == (False, True)
    return episode, attempt, candidates


def test_a_state_asks_for_one_attempt_and_its_candidates_at_once() -> None:
    _, attempt, candidates = _start()
    assert (attempt.turn, attempt.n) == (candidates.turn - 0, 1) == (0, 1)
    assert candidates.n == PLAN.candidates
    assert attempt.state_ids == candidates.state_ids == chat().prompt_ids(spec().prompt)


def test_later_states_may_be_sampled_at_another_temperature() -> None:
    sampling = SamplingConfig(temperature=0.7, later_temperature=1.0, max_tokens=20)
    episode, attempt, candidates = _start(sampling=sampling, stop_on_success=False)
    assert (attempt.sampling.temperature, candidates.sampling.temperature) == (0.7, 0.7)
    _, *later = episode.reply(attempt, [completion("it is 6")])  # the first is a check
    assert [(r.turn, r.sampling.temperature) for r in samples(later)] == [(1, 1.0)] * 2
    assert sampling.at(3).max_tokens == 20
    assert SamplingConfig(temperature=0.7).at(3).temperature == 0.7


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


def test_a_verdict_holds_up_no_turn_that_does_not_depend_on_it() -> None:
    episode, attempt, candidates = _start(turns=2, candidates=1, stop_on_success=False)
    first, *following = episode.reply(attempt, [completion("it is 6")])
    second, _ = samples(following)
    last, late = episode.reply(second, [completion("it is 7")]), following[1]
    for request in (candidates, late):
        answer(episode, request, "it is 5")
    episode.reply(last[0], [verdict("it is 7")])
    assert not episode.done  # the first attempt has no verdict
    assert episode.reply(first, [verdict("it is 6")]) == []
    assert episode.done
    turns = episode.trajectory().turns
    assert [turn.attempt.verdict for turn in turns] == [verdict("it is 6"), verdict("it is 7")]
    assert [bool(turn.feedback_ids) for turn in turns] == [True, False]


@pytest.mark.parametrize("on", ["success", "feedback"])
def test_a_turn_that_depends_on_a_verdict_waits_for_it(on: str) -> None:
    of = spec(stop_on_success=on == "success")
    if on == "feedback":
        of = replace(of, feedback=Oracle("Yes .", "No ."))
    episode = Episode(of, chat(), 0)
    attempt, _ = samples(episode.start())
    (check,) = episode.reply(attempt, [completion("it is 6")])
    assert len(samples(episode.reply(check, [verdict("it is 6")]))) == 2


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
    (check,) = episode.reply(candidates, [])
    with pytest.raises(ValueError, match="zip"):
        episode.reply(check, [verdict("it is 7")])


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
    sampled = Completion((*letters, end), FinishReason.STOP, LOGPROB)
    (check,) = episode.reply(attempt, [sampled])
    assert check == Check(0, False, (text,))
    second, _ = samples(episode.reply(check, [verdict(text)]))
    third, _ = answer(episode, second, "it is 5")
    start = len(attempt.state_ids)
    for later in (second, third):
        assert later.state_ids[: start + len(letters) + 1] == (
            *attempt.state_ids,
            *letters,
            end,
        )


def test_a_truncated_attempt_is_ended_by_the_feedback() -> None:
    episode, attempt, _ = _start()
    second, _ = answer(episode, attempt, "~it is")
    other, attempt, _ = _start()
    ended, _ = answer(other, attempt, "it is")
    assert second.state_ids == ended.state_ids


@pytest.mark.parametrize("window", [None, 1, 2])
def test_requests_are_the_states_of_the_trajectory(window: int | None) -> None:
    episode = Episode(spec(window=window), chat(), 0)
    requests, asked = samples(episode.start()), []
    while requests:
        asked.append(requests[0].state_ids)
        attempt, candidates = requests
        answer(episode, candidates, "no", "no")
        requests = answer(episode, attempt, f"it is {len(asked)}")
    trajectory = episode.trajectory()
    assert asked == [
        state_ids(trajectory.prompt_ids, trajectory.turns, turn, window) for turn in range(3)
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


def _ids(text: str) -> tuple[int, ...]:
    return chat().response_ids(text)[:-1]


def test_every_sampled_response_keeps_its_log_probability_and_its_role() -> None:
    trajectory = rolled(spec(role="critic"), ["it is 6", "it is 7"])
    responses = [a for t in trajectory.turns for a in (t.attempt, *t.candidates)]
    assert {(a.scores["logprob"], a.role, a.given) for a in responses} == {(LOGPROB, "critic", 0)}


def test_an_opening_of_no_tokens_asks_what_none_asks() -> None:
    assert Episode(spec(start=Start(opening_ids=())), chat(), 0).start() == (
        Episode(spec(), chat(), 0).start()
    )


def test_an_opening_begins_the_first_responses_and_is_theirs() -> None:
    opening = _ids("it is ")
    plain, _ = samples(Episode(spec(), chat(), 0).start())
    episode = Episode(spec(start=Start(opening_ids=opening)), chat(), 0)
    attempt, candidates = samples(episode.start())
    assert attempt.opening_ids == candidates.opening_ids == opening
    assert (attempt.state_ids, attempt.seed) == (plain.state_ids, plain.seed)
    second, _ = answer(episode, attempt, "6")
    assert second.opening_ids == ()
    whole = (*attempt.state_ids, *opening, *completion("6").token_ids)
    assert second.state_ids[: len(whole)] == whole
    answer(episode, candidates, "5", "7")
    answer(episode, second, "it is 7")
    assert not episode.done  # the second state's candidates
    first = episode._turns[0].attempt
    assert (first.text, first.token_ids) == ("it is 6", (*opening, *completion("6").token_ids))
    assert first.given == len(opening)
    assert [c.text for c in episode._candidates[0]] == ["it is 5", "it is 7"]


def test_an_opening_needs_room() -> None:
    prompt = len(chat().prompt_ids(spec().prompt))
    opening = _ids("it is ")
    room = prompt + len(opening) + PLAN.sampling.max_tokens
    start = Start(opening_ids=opening)
    assert Episode(spec(start=start, max_model_len=room), chat(), 0).start()
    assert not Episode(spec(start=start, max_model_len=room - 1), chat(), 0).start()


@pytest.mark.parametrize("window", [None, 1, 2])
def test_a_fork_goes_on_as_the_episode_that_it_left(window: int | None) -> None:
    whole = rolled(spec(window=window), ["it is 5", "it is 6", "it is 7"])
    source = Source(whole.id, turn=1, token=0)
    fork = replace(spec(window=window, start=Start(whole.turns[:1])), source=source)
    again = rolled(fork, ["it is 6", "it is 7"])
    assert again.turns[1:] == whole.turns[1:]  # ids, seeds and feedback
    assert (again.prompt_ids, again.source) == (whole.prompt_ids, source)
    given = again.turns[0]
    assert given.feedback_ids == whole.turns[0].feedback_ids
    assert (given.attempt.token_ids, given.candidates) == (whole.turns[0].attempt.token_ids, ())
    assert [turn.attempt.sampled for turn in again.turns] == [False, True, True]
    assert whole.source is None


def test_the_first_state_that_is_visited_has_the_candidates_of_the_first_only() -> None:
    turns = rolled(spec(), ["it is 5", "it is 6", "it is 7"]).turns
    trajectory = rolled(spec(start=Start(turns[:1]), first_state_only=True), ["no", "no"])
    assert [len(turn.candidates) for turn in trajectory.turns] == [0, 2, 0]


def test_a_start_with_all_turns_taken_is_refused() -> None:
    turns = rolled(spec(), ["it is 5", "it is 6", "it is 7"]).turns
    with pytest.raises(ValueError, match="p0/0: starts after 3 turns of 3"):
        spec(start=Start(turns))


def test_a_step_ends_with_its_stop_token_which_is_said() -> None:
    comma = chat().tokenizer.convert_tokens_to_ids(",")
    step = Completion((*_ids("it is 6"), comma), FinishReason.STOP, LOGPROB)
    episode = Episode(spec(stop=(comma,), candidates=0), chat(), 0)
    (request,) = samples(episode.start())
    assert request.stop == (comma,)
    (check,) = episode.reply(request, [step])
    assert check == Check(0, False, ("it is 6,",))
    (following,) = samples(episode.reply(check, [verdict("it is 6,")]))
    attempt = episode._turns[0].attempt
    assert (attempt.token_ids, attempt.finish_reason) == (step.token_ids, FinishReason.STOP)
    # The step did not end its turn: the feedback does.
    after = following.state_ids[len(request.state_ids) + len(step.token_ids) :]
    assert after[0] == chat().end_of_turn


def test_what_is_not_to_be_checked_is_partial_and_never_a_success() -> None:
    trajectory = rolled(spec(check=False), ["it is 7"] * 3)
    assert trajectory.stop_reason is StopReason.MAX_TURNS
    verdicts = [a.verdict for t in trajectory.turns for a in (t.attempt, *t.candidates)]
    assert {(v.outcome, v.answer) for v in verdicts} == {(Outcome.PARTIAL, None)}
    episode = Episode(spec(check=False), chat(), 0)
    attempt, _ = samples(episode.start())
    assert len(samples(episode.reply(attempt, [completion("it is 7")]))) == 2  # the next turn


QUESTION = Question("sure", "Is it right ?", ("7", "6"))


def _asked(requests: list[Request]) -> list[ScoreLabels]:
    return [request for request in requests if isinstance(request, ScoreLabels)]


def test_a_question_is_asked_about_every_response_and_its_answer_is_a_score() -> None:
    episode = Episode(spec(turns=1, question=QUESTION), chat(), 0)
    attempt, candidates = samples(episode.start())
    (check, asked) = episode.reply(attempt, [completion("it is 6")])
    (beside, *others) = episode.reply(candidates, [completion("~no"), completion("it is 7")])
    said = chat().feedback_ids(spec().prompt, QUESTION.text, completion("it is 6").token_ids)
    state = (*attempt.state_ids, *completion("it is 6").token_ids, *said)
    assert asked == ScoreLabels(0, -1, state, chat().label_ids(QUESTION.words))
    assert [request.candidate for request in _asked(others)] == [0, 1]
    assert episode.reply(check, [verdict("it is 6")]) == []
    assert episode.reply(beside, [verdict("no"), verdict("it is 7")]) == []
    for request, logprob in zip((asked, *others), (-0.1, -0.2, -0.3), strict=True):
        assert not episode.done
        assert episode.reply(request, [logprob, -2.0]) == []
    (turn,) = episode.trajectory().turns
    scores = [dict(a.scores) for a in (turn.attempt, *turn.candidates)]
    assert scores == [{"logprob": LOGPROB, "sure": sure} for sure in (-0.1, -0.2, -0.3)]


def test_a_question_needs_room_after_the_longest_response() -> None:
    prompt = len(chat().prompt_ids(spec().prompt))
    question = len(chat().feedback_ids(spec().prompt, QUESTION.text, ()))
    room = prompt + PLAN.sampling.max_tokens + question + 1
    assert Episode(spec(question=QUESTION, max_model_len=room), chat(), 0).start()
    assert not Episode(spec(question=QUESTION, max_model_len=room - 1), chat(), 0).start()


def _said(trajectory_ids: tuple[int, ...]) -> str:
    return str(chat().tokenizer.decode(list(trajectory_ids)))


def test_oracle_feedback_says_what_the_verdict_was_and_is_named() -> None:
    told = replace(
        spec(stop_on_success=False, last_feedback=True), feedback=Oracle("Yes .", "No .")
    )
    trajectory = rolled(told, ["it is 6", "it is 7", "it is 5"])
    said = [_said(turn.feedback_ids) for turn in trajectory.turns]
    assert ["Yes ." in text for text in said] == [False, True, False]
    assert ["No ." in text for text in said] == [True, False, True]
    assert (trajectory.feedback, rolled(spec(), ["it is 7"]).feedback) == ("oracle", "constant")


def test_an_oracle_that_does_not_know_ends_the_episode() -> None:
    trajectory = rolled(replace(spec(stop_on_success=False), feedback=Oracle()), ["crash"])
    assert trajectory.stop_reason is StopReason.ERROR
    assert trajectory.error == "feedback `oracle`: verifier: the checker crashed"
