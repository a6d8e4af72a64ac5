"""Looks at a config before anything starts: no Ray, no engine, nothing written.

`rise-ray check` makes every step, prints what each found, and shows the run in numbers;
`rise-ray run` makes the same steps first and stops at the first that fails.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from rise_ray.cli.access import (
    NotCheckedError,
    check_endpoint,
    load_model_tokenizer,
    load_problems,
    look_at_run,
)
from rise_ray.cli.estimate import Lengths, estimate
from rise_ray.config.settings import RunConfig, TrainConfig
from rise_ray.config.teacher import ModelTeacher, OpenAITeacher
from rise_ray.errors import DataError, RiseError, StoreError
from rise_ray.mdp import Problem
from rise_ray.models.locate import resolve_dtype
from rise_ray.rollout.chat import ChatFormat
from rise_ray.rollout.collect import specs_for
from rise_ray.run.journal import STATE, Run
from rise_ray.run.plans import eval_plan, iteration_problems, of_kind, roll_plan, teacher_of
from rise_ray.run.specs import Evaluate, Roll
from rise_ray.run.tracks import stages_of
from rise_ray.tasks import load_task
from rise_ray.tasks.base import Task
from rise_ray.text import terminal_text
from rise_ray.train.deepspeed_config import checkpoint_dtype, deepspeed_config

_MOST_PROMPTS = 1000  # looked at in each split
_MOST_DEMONSTRATIONS = 100


class Status(StrEnum):
    """What a step of the check found."""

    OK = "ok"
    FAILED = "failed"  # a run would stop here
    NOT_CHECKED = "not checked"  # it cannot be known here, or not before the run


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check."""

    status: Status
    subject: str
    detail: str


def check(config: RunConfig) -> bool:
    """Print what every step finds and the run in numbers. Returns whether nothing failed."""
    inspection = Inspection(config)
    failed = False
    for finding in inspection.findings():
        line = f"{finding.status.value:<13}{finding.subject:<15}{finding.detail}"
        print(terminal_text(line), flush=True)
        failed = failed or finding.status is Status.FAILED
    print()
    for subject, sentence in estimate(
        config, inspection.stages, inspection.problem_counts, inspection.lengths
    ):
        print(terminal_text(f"{subject:<14} {sentence}"))
    return not failed


def preflight(config: RunConfig, resume: bool) -> Run:
    """What a run does first: every step of `check`, unless the run is finished already.

    The run that is returned is not created yet where its folder is free.

    Raises:
        RiseError: of the first step that fails.
    """
    try:
        run = look_at_run(config, resume)
    except NotCheckedError as skipped:
        raise skipped.error or StoreError(str(skipped)) from skipped
    if run.finished:
        return run
    for _, step in Inspection(config).steps():
        try:
            step()
        except NotCheckedError as skipped:
            if skipped.error is not None:
                raise skipped.error from skipped
    return run


class Inspection:
    """The steps over one config; later ones use what earlier ones loaded."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.stages = stages_of(config)
        self.lengths: Lengths | None = None
        self._task: Task | None = None
        self._problems: dict[str, list[Problem]] = {}
        self._chat: ChatFormat | None = None

    @property
    def problem_counts(self) -> dict[str, int]:
        """Problems of each split that could be loaded."""
        return {split: len(problems) for split, problems in self._problems.items()}

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        """Subject and step, the cheap ones first. A step returns its finding or raises."""
        steps = [("DeepSpeed", self._deepspeed), ("data", self._data)]
        if self.config.warm_start:
            steps.append(("warm start", self._demonstrations))
        if teacher_of(self.stages) is not None:
            steps.append(("teacher", self._teacher))
        return [*steps, ("model", self._model), ("prompts", self._prompts)]

    def findings(self) -> Iterator[Finding]:
        for subject, step in [("run folder", self._run_folder), *self.steps()]:
            try:
                yield Finding(Status.OK, subject, step())
            except NotCheckedError as skipped:
                yield Finding(Status.NOT_CHECKED, subject, str(skipped))
            except RiseError as error:
                yield Finding(Status.FAILED, subject, str(error))

    def _run_folder(self) -> str:
        run = look_at_run(self.config, resume=True)
        where = run.folder.uri
        if run.finished:
            return f"{where} holds this run, finished: `rise-ray run` shows its results again"
        if run.folder.exists(STATE):
            return f"{where} holds this run, unfinished: go on with --resume"
        return f"{where} is free"

    def _deepspeed(self) -> str:
        config = self.config
        jobs: dict[str, TrainConfig] = {"train": config.train} if config.iterations else {}
        if config.warm_start:
            jobs["warm_start.train"] = config.warm_start.train
        found = []
        for name, job in jobs.items():
            deepspeed_config(job)
            checkpoint_dtype(job, config.model.dtype)
            dtype = resolve_dtype(job.precision, job.num_gpus)
            found.append(f"`{name}`: ZeRO-3 in {dtype}, {job.workers} workers")
        return "; ".join(found) or "nothing is trained"

    def _data(self) -> str:
        config = self.config
        task = load_task(config.task)
        splits = [config.split] if config.iterations or config.warm_start else []
        for split in dict.fromkeys([*splits, config.evaluation.split]):
            self._problems[split] = load_problems(task, split)
        self._task = task
        if config.iterations:
            iteration_problems(config, self._problems[config.split], 1)
        counts = (f"{count:,} problems in `{s}`" for s, count in self.problem_counts.items())
        return f"{config.task.name}: {', '.join(counts)}"

    def _demonstrations(self) -> str:
        assert self.config.warm_start is not None
        task, problems = self._loaded_task(), self._problems[self.config.split]
        count = min(self.config.warm_start.examples, _MOST_DEMONSTRATIONS)
        chats = list(task.demonstrations(problems, count, random.Random(0)))
        if not chats:
            raise DataError(f"task {task.name} has no demonstrations for `warm_start`")
        return f"{self.config.warm_start.examples:,} demonstrations (looked at {len(chats)})"

    def _teacher(self) -> str:
        teacher = teacher_of(self.stages)
        if isinstance(teacher, OpenAITeacher):
            return check_endpoint(teacher)
        if isinstance(teacher, ModelTeacher):
            load_model_tokenizer(teacher.path, None, self.config.model.trust_remote_code)
            return f"model {teacher.path}"
        task, problems = self._loaded_task(), self._problems[self.config.split]
        for problem in problems:
            if task.reference_response(problem) is None:
                raise DataError(
                    f"problem {problem.id}: has no worked solution, which `teacher: reference` "
                    "needs; remove the problem or take another teacher"
                )
        return f"a worked solution for each of {len(problems):,} problems"

    def _model(self) -> str:
        model = self.config.model
        if model.scratch is not None:
            return f"a new {model.scratch.architecture.get('model_type')}, by the warm start"
        assert model.path is not None
        tokenizer = load_model_tokenizer(model.path, model.chat_template, model.trust_remote_code)
        self._chat = ChatFormat(tokenizer, model.path)
        return f"{model.path}: its chat template expresses several turns"

    def _prompts(self) -> str:
        task = self._loaded_task()
        if self.config.model.scratch is not None:
            raise NotCheckedError("the warm start makes the tokenizer")
        if self._chat is None:
            raise NotCheckedError("needs the model's tokenizer")
        lengths = []
        rolls, evaluations = of_kind(Roll, self.stages), of_kind(Evaluate, self.stages)
        plans = [(self.config.evaluation.split, eval_plan(self.config, evaluations[0].place))]
        plans += [(self.config.split, roll_plan(self.config, roll, 0)) for roll in rolls[:1]]
        for split, plan in plans:
            problems = self._problems[split][:_MOST_PROMPTS]
            specs = specs_for(plan, task, self._chat, problems, samples=1)
            lengths += [(len(self._chat.prompt_ids(s.prompt)), s) for s in specs]
        longest, spec = max(lengths, key=lambda item: item[0])
        said = [self._chat.feedback_ids(spec.prompt, text, ()) for text in spec.feedback.texts]
        asked = (question := plans[0][1].question) and self._chat.feedback_ids(
            spec.prompt, question.text, ()
        )
        self.lengths = Lengths(longest, max(map(len, said)), len(asked) + 1 if asked else 0)
        return f"the longest of {len(lengths):,} looked at has {longest:,} tokens and fits"

    def _loaded_task(self) -> Task:
        if self._task is None:
            raise NotCheckedError("needs the data")
        return self._task
