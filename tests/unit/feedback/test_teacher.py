"""Teachers without their endpoint or pool: what their replies become, and how errors count."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from threading import Event
from threading import enumerate as enumerate_threads
from types import SimpleNamespace

import pytest

from rise_ray.config.teacher import ModelTeacher as ModelTeacherConfig
from rise_ray.config.teacher import OpenAITeacher as OpenAITeacherConfig
from rise_ray.errors import TeacherError
from rise_ray.feedback.beside import BESIDE
from rise_ray.feedback.teacher import (
    Answer,
    ModelTeacher,
    OpenAITeacher,
    Spending,
    State,
    Teacher,
)
from rise_ray.mdp import FinishReason, Message, Trajectory
from rise_ray.rollout.episode import EpisodeSpec, failed_trajectory
from tests.system.feedback.fake_endpoint import FakeEndpoint, serving
from tests.unit.rollout.episodes import rolled, spec


def openai_teacher(
    monkeypatch: pytest.MonkeyPatch, recorded: list[int], **settings: object
) -> OpenAITeacher:
    monkeypatch.setenv("RISE_RAY_TEST_KEY", "not-a-key")
    given = {"kind": "openai", "model": "m", "api_key_env": "RISE_RAY_TEST_KEY"} | settings
    student = SimpleNamespace(messages=lambda *state: [Message("user", "?")], with_answers=None)
    config, spending = OpenAITeacherConfig(**given), Spending(0, recorded.append)
    return OpenAITeacher(student, config, 0, spending)  # type: ignore[arg-type]


def read(content: str | None, monkeypatch: pytest.MonkeyPatch) -> Answer:
    teacher = openai_teacher(monkeypatch, [])
    choice = SimpleNamespace(finish_reason="length", message=SimpleNamespace(content=content))
    reply = SimpleNamespace(usage=SimpleNamespace(total_tokens=10), choices=[choice])
    return teacher._read(reply, SimpleNamespace(id="t"), 0, seed=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain \U0001f600", "plain \U0001f600"),
        ("half an emoji \ud83d", r"half an emoji \ud83d"),
        (None, ""),
    ],
)
def test_the_text_of_an_answer_can_be_encoded(
    content: str | None, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = read(content, monkeypatch)
    assert answer == Answer(text, FinishReason.LENGTH, 5)


class LosingPool:
    """A pool that loses every episode; it notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def roll(self, specs: Sequence[EpisodeSpec], total: int, errors: int) -> list[Trajectory]:
        self.asked.append((len(specs), total, errors))
        return [failed_trajectory(spec, "lost") for spec in specs]


def test_a_model_teachers_share_of_errors_is_of_all_its_states() -> None:
    pool = LosingPool()
    student = SimpleNamespace(messages=lambda *_: (), with_answers=lambda rolled, answers: rolled)
    config = ModelTeacherConfig(kind="model", path="m")
    teacher = ModelTeacher(student, pool, config, 0)  # type: ignore[arg-type]
    trajectories = [rolled(spec(sample), ["it is 7"]) for sample in range(66)]
    assert list(teacher.improve(trajectories)) == trajectories
    assert pool.asked == [(64, 64, 0), (2, 66, 64)]


class Waiting(Teacher):
    """A teacher that answers nothing, once it may."""

    def __init__(self) -> None:
        student = SimpleNamespace(with_answers=lambda rolled, answers: rolled)
        super().__init__(student)  # type: ignore[arg-type]
        self.may_answer = Event()
        self.asked = Event()
        self.stopped = False

    def _answers(self, states: Sequence[State]) -> list[None]:
        self.asked.set()
        assert self.may_answer.wait(timeout=60)
        if self.stopped:
            raise CancelledError
        return [None] * len(states)

    def _stop(self) -> None:
        self.stopped = True
        self.may_answer.set()


TRAJECTORIES = [rolled(spec(sample), ["it is 7"]) for sample in range(5 * 64 + 1)]


def test_students_go_on_while_the_teacher_answers_and_do_not_leave_it_far_behind() -> None:
    teacher, improved, most = Waiting(), 0, 0

    def students() -> Iterator[Trajectory]:
        nonlocal most
        for number, trajectory in enumerate(TRAJECTORIES):
            if number == 2 * 64:
                assert teacher.asked.wait(timeout=60)
                teacher.may_answer.set()
            most = max(most, number - improved)
            yield trajectory

    for improved, trajectory in enumerate(teacher.improve(students()), start=1):
        assert trajectory == TRAJECTORIES[improved - 1]
    assert improved == len(TRAJECTORIES)
    assert 2 * 64 <= most <= 3 * 64


@pytest.mark.parametrize("students_fail", [False, True])
def test_a_teacher_whose_answers_nobody_waits_for_ends(students_fail: bool) -> None:
    teacher = Waiting()

    def students() -> Iterator[Trajectory]:
        yield from TRAJECTORIES[:64]
        assert teacher.asked.wait(timeout=60)
        if students_fail:
            raise KeyError("theirs")
        teacher.may_answer.set()
        yield from TRAJECTORIES[64:]

    improved = teacher.improve(students())
    if students_fail:
        with pytest.raises(KeyError, match="theirs"):
            next(improved)
    else:
        assert next(improved) == TRAJECTORIES[0]
        improved.close()  # type: ignore[attr-defined]
    assert teacher.stopped
    assert BESIDE not in {thread.name for thread in enumerate_threads()}


def test_what_fails_in_a_teacher_is_its_callers_and_it_is_asked_nothing_more() -> None:
    class Failing(Waiting):
        asked_times = 0

        def _answers(self, states: Sequence[State]) -> list[None]:
            self.asked_times += 1
            raise TeacherError("refused")

    teacher = Failing()
    with pytest.raises(TeacherError, match="refused"):
        list(teacher.improve(TRAJECTORIES))
    assert teacher.asked_times == 1


def test_a_run_that_is_stopped_does_not_wait_for_an_endpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded: list[int] = []

    def students() -> Iterator[Trajectory]:
        yield from TRAJECTORIES[:64]
        while not endpoint.requests:
            time.sleep(0.05)
        raise KeyboardInterrupt

    with serving(FakeEndpoint(lambda messages: "never", delay_s=600.0)) as endpoint:
        teacher = openai_teacher(monkeypatch, recorded, base_url=endpoint.base_url)
        with pytest.raises(KeyboardInterrupt):
            next(teacher.improve(students()))
        assert BESIDE not in {thread.name for thread in enumerate_threads()}
        assert recorded == [0]
