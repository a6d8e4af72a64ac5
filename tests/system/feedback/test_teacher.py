"""Teachers: their answers become verified candidates in the student's tokens, or a clear error."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rise_ray.config.settings import SamplingConfig
from rise_ray.config.teacher import ModelTeacher as ModelTeacherConfig
from rise_ray.config.teacher import OpenAITeacher as OpenAITeacherConfig
from rise_ray.config.teacher import ReferenceTeacher as ReferenceTeacherConfig
from rise_ray.errors import TeacherError
from rise_ray.feedback.teacher import OpenAITeacher, Spending, Student, make_teacher
from rise_ray.mdp import Attempt, FinishReason, Outcome, Trajectory, WeightVersion
from rise_ray.rollout.chat import ChatFormat, load_tokenizer
from rise_ray.rollout.episode import failed_trajectory
from rise_ray.rollout.pool import RolloutPool
from rise_ray.tasks.countdown import FEEDBACK, Countdown
from tests.system.conftest import MAX_MODEL_LEN
from tests.system.feedback.fake_endpoint import USAGE, FakeEndpoint, Messages, serving
from tests.system.rollout.conftest import make_specs

KEY_ENV = "RISE_RAY_TEST_KEY"
WRONG = r"\boxed{ 1 + 1 }"
EPISODES, TURNS = 6, 2
STATES = EPISODES * TURNS


@pytest.fixture(scope="module")
def student(tiny_model: WeightVersion, verifiers: list[Any]) -> Student:
    tokenizer = load_tokenizer(tiny_model.checkpoint, None, False)
    return Student(Countdown(), ChatFormat(tokenizer, "tiny"), verifiers)


@pytest.fixture(scope="module")
def rolled(pair: RolloutPool) -> list[Trajectory]:
    """Episodes of the student, and one that failed."""
    *specs, failed = make_specs(EPISODES + 1, candidates=0)
    lost = failed_trajectory(failed, "lost")
    return [*sorted(pair.roll(specs), key=lambda t: t.id), lost]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEndpoint]:
    """It solves a problem that was tried before, and fails at a new one."""
    solutions = {p.question: Countdown().reference_response(p) for p in Countdown().load("dev")}

    def answer(messages: Messages) -> str:
        return solutions[messages[0]["content"]] if len(messages) > 1 else WRONG

    monkeypatch.setenv(KEY_ENV, "not-a-key")
    with serving(FakeEndpoint(answer)) as served:
        yield served


def free() -> Spending:
    """Spending that nobody keeps."""
    return Spending(0, lambda tokens: None)


MakeTeacher = Callable[..., OpenAITeacher]


@pytest.fixture
def make_openai(student: Student, endpoint: FakeEndpoint) -> MakeTeacher:
    def make(spending: Spending | None = None, **settings: object) -> OpenAITeacher:
        given = {"kind": "openai", "model": "fake-model", "base_url": endpoint.base_url}
        config = OpenAITeacherConfig(**(given | {"api_key_env": KEY_ENV} | settings))
        return OpenAITeacher(student, config, 3, spending or free())

    return make


def candidates(trajectories: list[Trajectory]) -> list[Attempt]:
    """The one candidate of each state, in order."""
    found = [turn.candidates for t in trajectories for turn in t.turns]
    assert all(len(of_state) == 1 for of_state in found)
    return [candidate for (candidate,) in found]


def check_untouched(improved: list[Trajectory], rolled: list[Trajectory]) -> None:
    """The same trajectories and attempts in the same order, and the failed one as it was."""
    assert [t.id for t in improved] == [t.id for t in rolled]
    assert [[u.attempt for u in t.turns] for t in improved] == [
        [u.attempt for u in t.turns] for t in rolled
    ]
    assert improved[-1] == rolled[-1]


def test_the_reference_teacher_gives_the_verified_solution_in_every_state(
    student: Student, rolled: list[Trajectory]
) -> None:
    teacher = make_teacher(student, ReferenceTeacherConfig(kind="reference"), None, 0, free())
    improved = list(teacher.improve(rolled))
    check_untouched(improved, rolled)
    for answer in candidates(improved):
        assert answer.verdict.outcome is Outcome.CORRECT
        assert answer.token_ids == student.chat.response_ids(answer.text)
        assert (answer.weight_version, answer.finish_reason) == (-1, FinishReason.STOP)


def test_an_endpoints_answers_become_verified_candidates_in_the_students_tokens(
    student: Student, rolled: list[Trajectory], endpoint: FakeEndpoint, make_openai: MakeTeacher
) -> None:
    spending = free()
    teacher = make_openai(spending)
    improved = list(teacher.improve(rolled))
    check_untouched(improved, rolled)
    found = candidates(improved)
    outcomes = [answer.verdict.outcome for answer in found]
    assert outcomes == [Outcome.INCORRECT, Outcome.CORRECT] * EPISODES
    for answer in found:
        assert answer.token_ids == student.chat.response_ids(answer.text)
        assert answer.weight_version == -1
    assert spending.tokens == STATES * USAGE["total_tokens"]
    assert endpoint.keys == {"Bearer not-a-key"}
    asked = {tuple((m["role"], m["content"]) for m in r["messages"]) for r in endpoint.requests}
    for t in rolled[:-1]:
        first = (("user", t.problem.question),)
        again = (("assistant", t.turns[0].attempt.text), ("user", FEEDBACK))
        assert {first, first + again} <= asked
    assert len({r["seed"] for r in endpoint.requests}) == STATES


def test_half_a_character_in_an_endpoints_answer_ends_no_run(
    rolled: list[Trajectory], endpoint: FakeEndpoint, make_openai: MakeTeacher
) -> None:
    endpoint.answer = lambda messages: "well \ud83d"
    for answer in candidates(list(make_openai().improve(rolled))):
        assert answer.text == r"well \ud83d"
        assert answer.verdict.outcome is Outcome.UNPARSEABLE


def test_requests_are_bounded_in_number_and_spaced_in_time(
    rolled: list[Trajectory], endpoint: FakeEndpoint, make_openai: MakeTeacher
) -> None:
    endpoint.delay_s = 0.4
    list(make_openai(concurrency=3).improve(rolled))
    assert endpoint.most_at_once == 3
    endpoint.arrivals.clear()
    endpoint.delay_s = 0.0
    before = time.monotonic()
    list(make_openai(requests_per_minute=600).improve(rolled))
    assert len(endpoint.arrivals) == STATES
    assert max(endpoint.arrivals) - before > 0.1 * (STATES - 1)


def test_refused_requests_are_tried_again(
    rolled: list[Trajectory], endpoint: FakeEndpoint, make_openai: MakeTeacher
) -> None:
    endpoint.refusals = [500, 429, 503]
    spending = free()
    teacher = make_openai(spending, max_retries=3)
    assert len(candidates(list(teacher.improve(rolled)))) == STATES
    assert len(endpoint.requests) == STATES + 3
    assert spending.tokens == STATES * USAGE["total_tokens"]


def test_an_endpoint_that_goes_on_refusing_stops_the_run(
    rolled: list[Trajectory], endpoint: FakeEndpoint, make_openai: MakeTeacher
) -> None:
    endpoint.refusals = [500] * 1000
    refused = r"fake-model at http.*InternalServerError.*provided: Bearer \*\*\*.*resume"
    with pytest.raises(TeacherError, match=refused):  # the endpoint repeats the key, the error not
        list(make_openai(max_retries=1).improve(rolled))


def test_an_endpoint_that_cannot_be_reached_is_named(
    rolled: list[Trajectory], make_openai: MakeTeacher
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(TeacherError, match=f"{url}: APIConnectionError"):
            list(make_openai(base_url=url, max_retries=0).improve(rolled))


def test_an_endpoint_slower_than_the_deadline_stops_the_run(
    rolled: list[Trajectory], endpoint: FakeEndpoint, make_openai: MakeTeacher
) -> None:
    endpoint.delay_s = 30.0
    with pytest.raises(TeacherError, match="TimeoutError"):
        list(make_openai(deadline_s=0.2, max_retries=0).improve(rolled))


def test_an_endpoint_that_drips_stops_the_run(
    rolled: list[Trajectory], endpoint: FakeEndpoint, make_openai: MakeTeacher
) -> None:
    endpoint.blanks = 200
    # Ours, or on a busy machine the client's own (APITimeoutError): without ours it is answered.
    with pytest.raises(TeacherError, match=r"fake-model at http.*TimeoutError"):
        list(make_openai(deadline_s=1.0, max_retries=0).improve(rolled))


def test_a_spent_budget_stops_the_run_and_counts_what_was_spent_before(
    rolled: list[Trajectory], endpoint: FakeEndpoint, make_openai: MakeTeacher
) -> None:
    each = USAGE["total_tokens"]
    recorded: list[int] = []
    spending = Spending(2 * each, recorded.append)
    with pytest.raises(TeacherError, match=r"`teacher\.token_budget` = 50 tokens is spent"):
        list(make_openai(spending, token_budget=5 * each, concurrency=1).improve(rolled))
    assert len(endpoint.requests) == 3
    assert recorded == [5 * each]


def test_an_endpoint_without_token_usage_is_refused(
    rolled: list[Trajectory], endpoint: FakeEndpoint, make_openai: MakeTeacher
) -> None:
    endpoint.usage = None
    with pytest.raises(TeacherError, match="reports no token usage"):
        list(make_openai().improve(rolled))


def test_a_missing_key_is_named_before_any_request(
    endpoint: FakeEndpoint, make_openai: MakeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_ENV)
    with pytest.raises(TeacherError, match=f"{KEY_ENV} is not set"):
        make_openai()


def test_a_model_teacher_answers_from_its_own_pool(
    student: Student, pair: RolloutPool, rolled: list[Trajectory]
) -> None:
    config = ModelTeacherConfig(
        kind="model",
        path="tiny",
        max_model_len=MAX_MODEL_LEN,
        sampling=SamplingConfig(max_tokens=16),
    )
    improved = list(make_teacher(student, config, pair, 5, free()).improve(rolled))
    again = list(make_teacher(student, config, pair, 5, free()).improve(rolled))
    check_untouched(improved, rolled)
    assert improved == again
    for answer in candidates(improved):
        assert answer.weight_version == -1
        assert answer.verdict.outcome is not Outcome.ERROR
    own = {turn.attempt.text for t in rolled for turn in t.turns}
    assert own.isdisjoint(answer.text for answer in candidates(improved))


def test_a_state_too_long_for_the_teachers_context_gets_no_candidate_and_costs_no_worker(
    student: Student, pair: RolloutPool, rolled: list[Trajectory]
) -> None:
    first = max(len(t.prompt_ids) for t in rolled)
    config = ModelTeacherConfig(
        kind="model", path="tiny", max_model_len=first + 16, sampling=SamplingConfig(max_tokens=16)
    )
    improved = list(make_teacher(student, config, pair, 5, free()).improve(rolled))
    assert [[len(u.candidates) for u in t.turns] for t in improved[:-1]] == [[1, 0]] * EPISODES
