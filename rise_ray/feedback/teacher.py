"""Distillation: who answers in the states that the student visited (RISE, section 4.1).

A teacher takes a stream of finished trajectories and gives each back with its answers as the
candidates of every visited state. The reference teacher is the data set's own worked solution;
the OpenAI teacher is any compatible endpoint; the model teacher is a second rollout pool.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rise_ray.config.secrets import redact
from rise_ray.config.teacher import ModelTeacher as ModelTeacherConfig
from rise_ray.config.teacher import NoTeacher, TeacherConfig
from rise_ray.config.teacher import OpenAITeacher as OpenAITeacherConfig
from rise_ray.config.teacher import ReferenceTeacher as ReferenceTeacherConfig
from rise_ray.errors import DataError, TeacherError
from rise_ray.feedback.base import feedback_of
from rise_ray.feedback.constant import Constant
from rise_ray.mdp import (
    Attempt,
    FinishReason,
    Message,
    StopReason,
    Trajectory,
    Verdict,
    derive_seed,
)
from rise_ray.rollout.chat import ChatFormat
from rise_ray.rollout.episode import EpisodePlan, EpisodeSpec
from rise_ray.rollout.pool import RolloutPool
from rise_ray.tasks.base import Task
from rise_ray.verify.actor import VerifierHandle
from rise_ray.verify.client import verify_all

TEACHER_VERSION = -1
_BATCH = 64  # trajectories that the teacher works on at once
_LONGEST_BACK_OFF_S = 120.0  # that the client heeds, where an endpoint asks for it


class Teacher(Protocol):
    """Improves states: fills in the candidates of trajectories."""

    def improve(self, trajectories: Iterable[Trajectory]) -> Iterator[Trajectory]:
        """Each trajectory with the teacher's answers; those that ended as `error` unchanged."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """A teacher's response to one state."""

    text: str
    finish_reason: FinishReason
    seed: int


@dataclass
class Spending:
    """What an endpoint's answers have cost the whole run."""

    tokens: int
    """Prompt and completion tokens, those before a resume included."""
    record: Callable[[int], None]
    """Keeps them for a resume; called after every batch of answers, also after a failed one."""


@dataclass(frozen=True, slots=True)
class Student:
    """What turns a teacher's text into candidates: the student's tokens, the verifier."""

    task: Task
    chat: ChatFormat
    verifiers: Sequence[VerifierHandle]

    def messages(self, trajectory: Trajectory, turn: int) -> list[Message]:
        """The state of `turn` as chat messages, for a teacher with another tokenizer."""
        feedback = feedback_of(trajectory.feedback, self.task, trajectory.problem)
        first = 0 if trajectory.window is None else max(0, turn - (trajectory.window - 1))
        messages = self.task.prompt(trajectory.problem)
        for earlier in trajectory.turns[first:turn]:
            said = feedback.text(trajectory.problem, earlier.attempt)
            assert said is not None  # or the episode had not gone on
            messages += [Message("assistant", earlier.attempt.text), Message("user", said)]
        return messages

    def with_answers(
        self, answered: Sequence[tuple[Trajectory, dict[int, Answer]]]
    ) -> list[Trajectory]:
        """Trajectories with verified answers (by turn) as candidates, tokenized by the student."""
        items = [
            (trajectory.problem, answer.text)
            for trajectory, answers in answered
            for answer in answers.values()
        ]
        verdicts = iter(verify_all(self.verifiers, items))
        results = []
        for trajectory, answers in answered:
            turns = list(trajectory.turns)
            for turn, answer in answers.items():
                candidate = self._candidate(answer, next(verdicts))
                turns[turn] = replace(turns[turn], candidates=(candidate,))
            results.append(replace(trajectory, turns=tuple(turns)))
        return results

    def _candidate(self, answer: Answer, verdict: Verdict) -> Attempt:
        ids = self.chat.response_ids(answer.text)
        truncated = answer.finish_reason is FinishReason.LENGTH
        return Attempt(
            text=answer.text,
            token_ids=ids[:-1] if truncated else ids,
            finish_reason=answer.finish_reason,
            verdict=verdict,
            weight_version=TEACHER_VERSION,
            seed=answer.seed,
            role="teacher",
        )


class ReferenceTeacher:
    """The data set's own worked solution, in every state."""

    def __init__(self, student: Student) -> None:
        self._student = student

    def improve(self, trajectories: Iterable[Trajectory]) -> Iterator[Trajectory]:
        """See `Teacher`.

        Raises:
            DataError: a problem has no worked solution.
        """
        for batch in _batches(trajectories):
            yield from self._student.with_answers([(t, self._answers(t)) for t in batch])

    def _answers(self, trajectory: Trajectory) -> dict[int, Answer]:
        text = self._student.task.reference_response(trajectory.problem)
        if text is None:
            raise DataError(
                f"problem {trajectory.problem.id}: has no worked solution for `teacher: reference`"
            )
        answer = Answer(text, FinishReason.STOP, 0)
        return dict.fromkeys(range(len(trajectory.turns)), answer)


class ModelTeacher:
    """Another model on a second rollout pool."""

    def __init__(
        self, student: Student, pool: RolloutPool, config: ModelTeacherConfig, seed: int
    ) -> None:
        self._student = student
        self._pool = pool
        self._config = config
        self._seed = seed
        self._asked = 0
        self._errors = 0

    def improve(self, trajectories: Iterable[Trajectory]) -> Iterator[Trajectory]:
        """See `Teacher`; a state whose answer failed at the teacher gets no candidate.

        `max_error_share` is of all states so far: the last batch may be a single one.
        """
        for batch in _batches(trajectories):
            specs = [self._spec(t, turn) for t in batch for turn in range(len(t.turns))]
            self._asked += len(specs)
            answers = {a.id: a for a in self._pool.roll(specs, self._asked, self._errors)}
            self._errors += sum(a.stop_reason is StopReason.ERROR for a in answers.values())
            ids = iter(specs)
            said = [
                (t, {turn: answers[next(ids).id] for turn in range(len(t.turns))}) for t in batch
            ]
            yield from self._student.with_answers(
                [
                    (t, {turn: _first_answer(a) for turn, a in by_turn.items() if a.turns})
                    for t, by_turn in said
                ]
            )

    def _spec(self, trajectory: Trajectory, turn: int) -> EpisodeSpec:
        plan = EpisodePlan(
            run=f"{trajectory.id}/turn={turn}",
            place=trajectory.place,
            seed=self._seed,
            turns=1,
            window=None,
            stop_on_success=False,
            candidates=0,
            first_state_only=True,
            last_feedback=False,
            sampling=self._config.sampling,
            max_model_len=self._config.max_model_len,
        )
        prompt = tuple(self._student.messages(trajectory, turn))
        return EpisodeSpec(plan, trajectory.problem, turn, prompt, Constant(""))


class OpenAITeacher:
    """Any OpenAI-compatible endpoint: bounded concurrency and rate, retries, a token budget.

    Args:
        student, config, seed, spending: as of `make_teacher`.

    Raises:
        TeacherError: the key is missing.
    """

    def __init__(
        self, student: Student, config: OpenAITeacherConfig, seed: int, spending: Spending
    ) -> None:
        from openai import AsyncOpenAI

        key = os.environ.get(config.api_key_env)
        if not key:
            raise TeacherError(
                f"`teacher.api_key_env`: the environment variable {config.api_key_env} is not set"
            )
        self._student = student
        self._config = config
        self._key = key
        self._seed = seed
        self._spending = spending
        self._next_start = 0.0
        tries_s = 2 * config.deadline_s * (1 + config.max_retries)
        self._longest_s = tries_s + _LONGEST_BACK_OFF_S * config.max_retries
        self._connect = lambda: AsyncOpenAI(
            api_key=key,
            base_url=config.base_url,
            max_retries=config.max_retries,
            timeout=config.deadline_s,
        )

    def improve(self, trajectories: Iterable[Trajectory]) -> Iterator[Trajectory]:
        """See `Teacher`.

        Raises:
            TeacherError: the endpoint cannot be reached or refuses, after retries; or the
                budget is spent.
        """
        for batch in _batches(trajectories):
            try:
                answered = asyncio.run(self._answer_all(batch))
            finally:
                self._spending.record(self._spending.tokens)
            yield from self._student.with_answers(answered)

    async def _answer_all(
        self, batch: Sequence[Trajectory]
    ) -> list[tuple[Trajectory, dict[int, Answer]]]:
        async with self._connect() as client:
            places = asyncio.Semaphore(self._config.concurrency)
            wanted = [(t, turn) for t in batch for turn in range(len(t.turns))]
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._answer(client, places, t, turn))
                        for t, turn in wanted
                    ]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        answers = dict(zip(((t.id, turn) for t, turn in wanted), tasks, strict=True))
        return [
            (t, {turn: answers[t.id, turn].result() for turn in range(len(t.turns))}) for t in batch
        ]

    async def _answer(
        self, client: Any, places: asyncio.Semaphore, trajectory: Trajectory, turn: int
    ) -> Answer:
        from openai import OpenAIError

        config = self._config
        seed = derive_seed(self._seed, "teacher", trajectory.id, turn) % 2**31
        messages = self._student.messages(trajectory, turn)
        async with places:
            await self._await_rate()
            if self._spending.tokens >= config.token_budget:
                raise TeacherError(
                    f"teacher {config.model}: `teacher.token_budget` = {config.token_budget} "
                    f"tokens is spent ({self._spending.tokens}); raise it and resume"
                )
            try:
                # The client's own deadline is of every byte: an endpoint may drip for ever.
                async with asyncio.timeout(self._longest_s):
                    reply = await client.chat.completions.create(
                        model=config.model,
                        messages=[{"role": m.role, "content": m.content} for m in messages],
                        temperature=config.temperature,
                        max_tokens=config.max_tokens,
                        seed=seed,
                    )
            except (OpenAIError, TimeoutError) as error:
                raise TeacherError(
                    f"teacher {config.model} at {config.base_url or 'the OpenAI endpoint'}: "
                    f"{type(error).__name__}: {redact(str(error), self._key)}; check `teacher` "
                    "and resume"
                ) from error
        return self._read(reply, trajectory, turn, seed)

    def _read(self, reply: Any, trajectory: Trajectory, turn: int, seed: int) -> Answer:
        where = f"teacher {self._config.model}: {trajectory.id} turn {turn}"
        if reply.usage is None:
            raise TeacherError(f"{where}: the endpoint reports no token usage: no budget can hold")
        self._spending.tokens += reply.usage.total_tokens
        choice = reply.choices[0]
        try:
            reason = FinishReason(choice.finish_reason)
        except ValueError:
            raise TeacherError(f"{where}: ended with `{choice.finish_reason}`") from None
        text = choice.message.content or ""
        # An answer may end within a character; no tokenizer takes a lone surrogate.
        return Answer(text.encode("utf-8", "backslashreplace").decode(), reason, seed)

    async def _await_rate(self) -> None:
        """Space the starts of requests evenly under `requests_per_minute`."""
        if self._config.requests_per_minute is None:
            return
        now = time.monotonic()
        start = max(now, self._next_start)
        self._next_start = start + 60 / self._config.requests_per_minute
        await asyncio.sleep(start - now)


def make_teacher(
    student: Student,
    config: TeacherConfig,
    pool: RolloutPool | None,
    seed: int,
    spending: Spending,
) -> Teacher:
    """The configured teacher.

    Args:
        student: whose states it answers in.
        config: which one.
        pool: the second pool, of a model teacher.
        seed: of its samples.
        spending: of an endpoint, for its budget.
    """
    match config:
        case ReferenceTeacherConfig():
            return ReferenceTeacher(student)
        case OpenAITeacherConfig():
            return OpenAITeacher(student, config, seed, spending)
        case ModelTeacherConfig():
            assert pool is not None
            return ModelTeacher(student, pool, config, derive_seed(seed, "teacher"))
        case NoTeacher():
            raise ValueError("self-distillation has no teacher")


def _first_answer(trajectory: Trajectory) -> Answer:
    attempt = trajectory.turns[0].attempt
    return Answer(attempt.text, attempt.finish_reason, attempt.seed)


def _batches(trajectories: Iterable[Trajectory]) -> Iterator[list[Trajectory]]:
    """Batches of the trajectories to improve; those that ended as `error` have no turns."""
    source = iter(trajectories)
    while batch := list(itertools.islice(source, _BATCH)):
        assert all(t.turns or t.stop_reason is StopReason.ERROR for t in batch)
        yield batch
