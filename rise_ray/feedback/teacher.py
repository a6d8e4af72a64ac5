"""Distillation: who answers in the states that the student visited (RISE, section 4.1).

A teacher takes a stream of finished trajectories and gives each back with its answers as the
candidates of every visited state. The reference teacher is the data set's own worked solution;
the OpenAI teacher is any compatible endpoint; the model teacher is a second rollout pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from rise_ray.config import teacher as settings
from rise_ray.config.secrets import redact
from rise_ray.config.teacher import TeacherConfig
from rise_ray.errors import DataError, TeacherError
from rise_ray.feedback.base import feedback_of
from rise_ray.feedback.beside import Beside
from rise_ray.feedback.constant import Constant
from rise_ray.mdp import (
    Attempt,
    FinishReason,
    Message,
    StopReason,
    Trajectory,
    Verdict,
    derive_seed,
    shown_turns,
)
from rise_ray.rollout.chat import ChatFormat
from rise_ray.rollout.episode import EpisodePlan, EpisodeSpec
from rise_ray.rollout.pool import RolloutPool
from rise_ray.tasks.base import Task
from rise_ray.verify.actor import VerifierHandle
from rise_ray.verify.client import verify_all

TEACHER_VERSION = -1
_BATCH = 64  # trajectories that the teacher works on at once
_AHEAD = 2  # batches that wait for it, before the students do
_LONGEST_BACK_OFF_S = 120.0  # that the client heeds, where an endpoint asks for it


State = tuple[Trajectory, int]
"""A visited state, by its trajectory and its turn, from 0."""


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
        messages = self.task.prompt(trajectory.problem)
        for earlier in shown_turns(trajectory.turns, turn, trajectory.window):
            said = feedback.text(trajectory.problem, earlier.attempt)
            assert said is not None  # or the episode had not gone on
            messages += [Message("assistant", earlier.attempt.text), Message("user", said)]
        return messages

    def with_answers(
        self, trajectories: Sequence[Trajectory], answers: Sequence[Answer | None]
    ) -> list[Trajectory]:
        """Trajectories with a verified answer to each of their states, in order, as candidate."""
        problems = (t.problem for t in trajectories for _ in t.turns)
        asked = zip(problems, answers, strict=True)
        items = [(problem, answer.text) for problem, answer in asked if answer]
        verdicts = iter(verify_all(self.verifiers, items))
        candidates = iter(
            [(self._candidate(answer, next(verdicts)),) if answer else () for answer in answers]
        )
        return [
            replace(
                t,
                turns=tuple(
                    replace(u, candidates=next(candidates) or u.candidates) for u in t.turns
                ),
            )
            for t in trajectories
        ]

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


class Teacher(ABC):
    """Improves states: fills in the candidates of trajectories."""

    def __init__(self, student: Student) -> None:
        self._student = student

    def improve(self, trajectories: Iterable[Trajectory]) -> Iterator[Trajectory]:
        """Each trajectory with the teacher's answers; those without a turn are unchanged.

        The students go on while the teacher answers: it has a thread of its own, and they are
        `_AHEAD` batches ahead of it at most.

        Raises:
            DataError: a problem has no worked solution, for a teacher that needs one.
            TeacherError: the endpoint cannot be reached or refuses, after retries; or the
                budget is spent.
        """
        source, waiting = iter(trajectories), deque[Future[list[Trajectory]]]()
        with Beside(self._improved, self._stop) as beside:
            while batch := list(itertools.islice(source, _BATCH)):
                waiting.append(beside.do(batch))
                while waiting and (len(waiting) > _AHEAD or waiting[0].done()):
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    def _improved(self, batch: Sequence[Trajectory]) -> list[Trajectory]:
        states = [(t, turn) for t in batch for turn in range(len(t.turns))]
        return self._student.with_answers(batch, self._answers(states))

    @abstractmethod
    def _answers(self, states: Sequence[State]) -> Sequence[Answer | None]:
        """To each state; None where it failed at the teacher: the state gets no candidate."""

    @abstractmethod
    def _stop(self) -> None:
        """From another thread: `_answers` is to end by an error, now and from now on."""


class ReferenceTeacher(Teacher):
    """The data set's own worked solution, in every state."""

    def _answers(self, states: Sequence[State]) -> list[Answer]:
        answers = []
        for problem in (trajectory.problem for trajectory, _ in states):
            text = self._student.task.reference_response(problem)
            if text is None:
                raise DataError(
                    f"problem {problem.id}: has no worked solution for `teacher: reference`"
                )
            answers.append(Answer(text, FinishReason.STOP, 0))
        return answers

    def _stop(self) -> None:
        """Nothing of it takes long."""


class ModelTeacher(Teacher):
    """Another model on a second rollout pool."""

    def __init__(
        self, student: Student, pool: RolloutPool, config: settings.ModelTeacher, seed: int
    ) -> None:
        super().__init__(student)
        self._pool = pool
        self._config = config
        self._seed = seed
        self._asked = 0
        self._errors = 0

    def _answers(self, states: Sequence[State]) -> list[Answer | None]:
        """`max_error_share` is of all states so far: the last batch may be a single one."""
        specs = [self._spec(*state) for state in states]
        self._asked += len(specs)
        rolled = {t.id: t for t in self._pool.roll(specs, self._asked, self._errors)}
        self._errors += sum(t.stop_reason is StopReason.ERROR for t in rolled.values())
        first = [next((t.attempt for t in rolled[spec.id].turns), None) for spec in specs]
        return [Answer(a.text, a.finish_reason, a.seed) if a else None for a in first]

    def _stop(self) -> None:
        self._pool.stop()

    def _spec(self, trajectory: Trajectory, turn: int) -> EpisodeSpec:
        plan = EpisodePlan(
            run=f"{trajectory.id}/turn={turn}",
            place=trajectory.place,
            seed=self._seed,
            sampling=self._config.sampling,
            max_model_len=self._config.max_model_len,
        )
        prompt = tuple(self._student.messages(trajectory, turn))
        return EpisodeSpec(plan, trajectory.problem, turn, prompt, Constant(""))


class OpenAITeacher(Teacher):
    """Any OpenAI-compatible endpoint: bounded concurrency and rate, retries, a token budget.

    Raises:
        TeacherError: the key is missing.
    """

    def __init__(
        self, student: Student, config: settings.OpenAITeacher, seed: int, spending: Spending
    ) -> None:
        super().__init__(student)
        key = os.environ.get(config.api_key_env)
        if not key:
            raise TeacherError(
                f"`teacher.api_key_env`: the environment variable {config.api_key_env} is not set"
            )
        self._config = config
        self._key = key
        self._seed = seed
        self._spending = spending
        self._next_start = 0.0
        self._stopped = False
        self._answering: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        tries_s = 2 * config.deadline_s * (1 + config.max_retries)
        self._longest_s = tries_s + _LONGEST_BACK_OFF_S * config.max_retries

    def _answers(self, states: Sequence[State]) -> list[Answer]:
        try:
            return asyncio.run(self._answer_all(states))
        finally:
            self._spending.record(self._spending.tokens)

    def _stop(self) -> None:
        self._stopped = True
        if self._answering is not None:
            loop, task = self._answering
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(task.cancel)

    async def _answer_all(self, states: Sequence[State]) -> list[Answer]:
        from openai import AsyncOpenAI

        task = asyncio.current_task()
        assert task is not None
        self._answering = asyncio.get_running_loop(), task
        if self._stopped:
            raise asyncio.CancelledError
        config = self._config
        places = asyncio.Semaphore(config.concurrency)
        async with AsyncOpenAI(
            api_key=self._key,
            base_url=config.base_url,
            max_retries=config.max_retries,
            timeout=config.deadline_s,
        ) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._answer(client, places, *state)) for state in states
                    ]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

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
    student: Student, config: TeacherConfig, pool: RolloutPool | None, seed: int, spending: Spending
) -> Teacher:
    """The teacher of `config`; `pool` is the second one, of a model teacher."""
    match config:
        case settings.ReferenceTeacher():
            return ReferenceTeacher(student)
        case settings.OpenAITeacher():
            return OpenAITeacher(student, config, seed, spending)
        case settings.ModelTeacher():
            assert pool is not None
            return ModelTeacher(student, pool, config, derive_seed(seed, "teacher"))
        case settings.NoTeacher():
            raise ValueError("self-distillation has no teacher")
