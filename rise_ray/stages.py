"""The stages of a run: each does one thing with the real parts and journals its result.

What a stage needs (verifiers, workers, a teacher) starts when it is first used, so a resumed run
that only lacks its report starts no engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, Self

import ray

from rise_ray.config import ModelConfig, ModelTeacher, WorkersConfig
from rise_ray.console import Console
from rise_ray.evaluate.compare import standard_comparisons
from rise_ray.evaluate.metrics import EvalResult, eval_record, evaluate
from rise_ray.mdp import Phase, Problem, Trajectory, derive_seed
from rise_ray.models.locate import locate_tokenizer, resolve_dtype, shared_model
from rise_ray.plans import (
    collect_plan,
    control_plan,
    eval_plan,
    evaluated_models,
    iteration_problems,
    stage_name,
)
from rise_ray.relabel.job import write_relabeled
from rise_ray.report.html import write_report
from rise_ray.rollout.chat import ChatFormat, load_tokenizer
from rise_ray.rollout.collect import roll_phase, specs_for
from rise_ray.rollout.episode import EpisodeSpec
from rise_ray.rollout.pool import RolloutPool
from rise_ray.rollout.teacher import OpenAITeacher, Student, Teacher, make_teacher
from rise_ray.rollout.worker import WeightVersion
from rise_ray.store.examples import write_example_parts
from rise_ray.store.files import Folder
from rise_ray.store.run import REPORT, Run
from rise_ray.sync.parity import PARITY_FILE, parity_sequences, reference_in_task
from rise_ray.tasks import load_task
from rise_ray.track import PhaseLog, start_tracker
from rise_ray.train.job import TrainJob, train
from rise_ray.verify.actor import VerifierHandle, start_verifiers
from rise_ray.versions import package_versions
from rise_ray.warmstart import demonstrate, demonstration_examples, initial_model

Result = dict[str, Any]


class Stages:
    """The parts of one run and what is done with them. Use as a context manager."""

    def __init__(self, run: Run, console: Console) -> None:
        self.config = run.config
        self.run = run
        self.console = console
        self.task = load_task(run.config.task)
        self._tracker = start_tracker(run.config, run.folder)
        self._pool: RolloutPool | None = None
        self._teacher_pool: RolloutPool | None = None
        self._teacher: Teacher | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for pool in (self._pool, self._teacher_pool):
            if pool is not None:
                pool.release()
        for verifier in self.__dict__.get("_verifiers", ()):
            verifier.stop()
        ray.get(self._tracker.close.remote())

    def base(self) -> WeightVersion:
        """The model that iteration 1 starts from: warm-started, or as it is."""
        if self.config.warm_start is None:
            workers = self.config.rollout.workers
            return self._given_model(self.config.model, workers, self.run.folder / "base")
        self._stage("warm-start", "train", self._warm_start)
        checkpoint = self._checkpoint(Phase.COLLECT, 0).uri
        return WeightVersion(0, checkpoint, checkpoint)

    def collect(self, iteration: int, phase: Phase, weights: WeightVersion) -> None:
        """Roll the iteration's problems on-policy, with candidates or a teacher's answers."""

        def work(log: PhaseLog) -> Result:
            plan = (
                collect_plan(self.config, iteration)
                if phase is Phase.COLLECT
                else control_plan(self.config, iteration, self._responses_per_problem(iteration))
            )
            problems = iteration_problems(self.config, self._problems(self.config.split), iteration)
            chat = self._chat(weights)
            specs = specs_for(plan, self.task, chat, problems, samples=1)
            roll = self._roller(weights, chat if phase is Phase.COLLECT else None)
            counts = self._roll(roll, specs, iteration, phase)
            return {**counts, **self._teacher_cost()}

        self._stage(stage_name(phase, iteration), "collect", work)

    def relabel(self, iteration: int, phase: Phase) -> Folder:
        """Turn stored trajectories into an examples folder."""
        name = stage_name(phase, iteration)
        output = self.run.folder / "examples" / name

        def work(log: PhaseLog) -> Result:
            first = 1 if self.config.data == "pooled" else iteration
            result = write_relabeled(
                self.run.trajectories,
                [
                    (number, phase, self._sealed(stage_name(phase, number), "collect"))
                    for number in range(first, iteration + 1)
                ],
                self.config.relabel,
                self.config.model.max_model_len,
                derive_seed(self.config.seed, "relabel", name),
                output,
            )
            self.console.step(f"{result.manifest.examples:,} examples")
            return {
                "examples": result.manifest.examples,
                "mean_weight": result.manifest.mean_weight,
                "dropped": result.dropped,
            }

        self._stage(name, "relabel", work)
        return output

    def train(
        self, iteration: int, phase: Phase, examples: Folder, start: WeightVersion
    ) -> WeightVersion:
        """Fine-tune `start` on the examples; the control on as many tokens as RISE had."""
        name = stage_name(phase, iteration)
        output = self._checkpoint(phase, iteration)

        def work(log: PhaseLog) -> Result:
            rise = self.run.stages.get(f"{stage_name(Phase.COLLECT, iteration)}/train")
            budget = int(rise["tokens"]) if rise and phase is Phase.CONTROL else None
            return self._train(
                TrainJob(
                    name=name,
                    config=self.config.train,
                    base=start.checkpoint,
                    examples=examples.uri,
                    output=output.uri,
                    storage=(self.run.folder / "train").uri,
                    seed=derive_seed(self.config.seed, "train", name),
                    token_budget=budget,
                    dtype=self.config.model.dtype,
                    trust_remote_code=self.config.model.trust_remote_code,
                    parity_sequences=self._probe(self._chat(start)),
                    card=self._card(name, start.checkpoint),
                    log=log,
                )
            )

        self._stage(name, "train", work)
        return WeightVersion(iteration, output.uri, output.uri)

    def evaluate(self, model: str, weights: WeightVersion) -> None:
        """Measure weights on the held-out problems by RISE's protocol."""
        iteration, phase = evaluated_models(self.config)[model]

        def work(log: PhaseLog) -> Result:
            protocol = self.config.evaluation
            problems = self._problems(protocol.split)[: protocol.problems]
            chat = self._chat(weights)
            plan = eval_plan(self.config, iteration, phase)
            specs = specs_for(plan, self.task, chat, problems, protocol.samples)
            counts = self._roll(self._roller(weights, None), specs, iteration, phase)
            record = eval_record(
                model,
                protocol.split,
                self._result(iteration, phase, counts["parts_sha256"]),
                feedback=self.task.feedback(problems[0]),
                window=protocol.window,
                sampling=protocol.sampling.model_dump(),
            )
            self.console.scores(record)
            return {**counts, **record}

        self._stage(model, "eval", work)

    def report(self) -> None:
        """Compare the models problem by problem, write the page, print the table."""
        protocol = self.config.evaluation
        models = evaluated_models(self.config)
        sealed = {model: self._sealed(model, "eval") for model in models}
        results = {model: self._result(*models[model], sealed[model]) for model in models}
        comparisons = standard_comparisons(
            results, bootstrap=protocol.bootstrap, seed=self.config.seed
        )
        records = ray.get(self._tracker.records.remote())
        if not self.run.finished:
            last = [model for model in models if model != "control"][-1]
            page = write_report(
                config=self.config.model_dump(mode="json"),
                records=records,
                comparisons=comparisons,
                trajectories=self.run.trajectories.read(*models[last], sealed[last]),
                versions=package_versions(),
            )
            self.run.folder.write(REPORT, page.encode())
            self._stage("run", "report", lambda log: {"comparisons": comparisons})
        self.console.results(records, comparisons, f"{self.run.folder.uri}/{REPORT}")

    def _stage(self, stage: str, phase: str, work: Callable[[PhaseLog], Result]) -> Result:
        """Do a stage if the journal lacks it: timed, measured, journaled."""

        def timed() -> Result:
            log = PhaseLog(self._tracker, stage, phase)
            self.console.begin(stage, phase)
            started = time.monotonic()
            result = work(log)
            result["seconds"] = time.monotonic() - started
            log(result)
            ray.get(self._tracker.flush.remote())
            self.console.end(result["seconds"])
            return result

        return self.run.stage(f"{stage}/{phase}", timed)

    def _given_model(
        self, model: ModelConfig, workers: WorkersConfig, parity: Folder
    ) -> WeightVersion:
        """A model that was not trained here, as version 0.

        Its probe reference is made once, by plain Hugging Face.
        """
        assert model.path is not None
        checkpoint = shared_model(model.path)
        if not parity.exists(PARITY_FILE):
            path = locate_tokenizer(checkpoint)
            tokenizer = load_tokenizer(path, model.chat_template, model.trust_remote_code)
            sequences = self._probe(ChatFormat(tokenizer, checkpoint))
            dtype = resolve_dtype(model.dtype, workers.num_gpus)
            trust = model.trust_remote_code
            reference_in_task(checkpoint, sequences, dtype, trust).save(parity)
        return WeightVersion(0, checkpoint, parity.uri)

    def _warm_start(self, log: PhaseLog) -> Result:
        warm_start = self.config.warm_start
        assert warm_start is not None
        chats = demonstrate(self.config, self.task)
        start = initial_model(self.config, self.task, chats, self.run.folder / "scratch")
        chat = self._chat(WeightVersion(0, start, start))
        examples, too_long = demonstration_examples(chats, chat, self.config.model.max_model_len)
        self.console.step(f"{len(examples):,} demonstrations, {too_long:,} too long and left out")
        folder = self.run.folder / "examples" / "warm-start"
        write_example_parts(folder, examples, derive_seed(self.config.seed, "demonstrations"))
        result = self._train(
            TrainJob(
                name="warm-start",
                config=warm_start.train,
                base=start,
                examples=folder.uri,
                output=self._checkpoint(Phase.COLLECT, 0).uri,
                storage=(self.run.folder / "train").uri,
                seed=derive_seed(self.config.seed, "train", "warm-start"),
                token_budget=None,
                dtype=self.config.model.dtype,
                trust_remote_code=self.config.model.trust_remote_code,
                parity_sequences=self._probe(chat),
                card=self._card("warm-start", start),
                log=log,
            )
        )
        return {**result, "examples": len(examples), "too_long": too_long}

    def _train(self, job: TrainJob) -> Result:
        if self._pool is not None and self.config.rollout.release_during_training:
            self._pool.release()
        with self.console.following(self._tracker):
            result = train(job)
        return asdict(result)

    def _roll(
        self,
        roll: Callable[[Sequence[EpisodeSpec]], Iterable[Trajectory]],
        specs: Sequence[EpisodeSpec],
        iteration: int,
        phase: Phase,
    ) -> Result:
        before = self._losses()
        counts = roll_phase(
            roll,
            specs,
            self.run.trajectories,
            iteration,
            phase,
            self.config.verify.max_error_share,
            self.console.rolled,
        )
        lost, requeued = (n - b for n, b in zip(self._losses(), before, strict=True))
        return {**counts, "lost_workers": lost, "requeued_episodes": requeued}

    def _losses(self) -> tuple[int, int]:
        """Workers that were lost and episodes that went back to the queue, since the start."""
        return (0, 0) if self._pool is None else (self._pool.lost_workers, self._pool.requeued)

    def _roller(
        self, weights: WeightVersion, student: ChatFormat | None
    ) -> Callable[[Sequence[EpisodeSpec]], Iterable[Trajectory]]:
        """Rolls episodes with `weights`; for a `student` with a teacher, its answers are added."""

        def roll(specs: Sequence[EpisodeSpec]) -> Iterable[Trajectory]:
            pool = self._pool_with(weights)
            self.console.rolling()
            trajectories = pool.roll(specs)
            if student is None or self.config.teacher.kind == "none":
                return trajectories
            return self._teacher_of(student).improve(trajectories)

        return roll

    def _pool_with(self, weights: WeightVersion) -> RolloutPool:
        """The pool, started or synced to `weights`."""
        config = self.config
        if self._pool is None:
            self._pool = RolloutPool(
                weights,
                config.model,
                config.rollout.workers,
                config.sync,
                self._verifiers,
                derive_seed(config.seed, "engine"),
            )
            self.console.step("starting rollout workers")
            self._pool.wait_ready()
        elif self._pool.version != weights:
            started = time.monotonic()
            self._pool.sync(weights)
            seconds = time.monotonic() - started
            self.console.step(f"synced weights, parity checked ({seconds:.1f} s)")
        return self._pool

    def _teacher_of(self, chat: ChatFormat) -> Teacher:
        """The run's teacher; the student's tokens are the same in all iterations."""
        config = self.config
        if self._teacher is None:
            if isinstance(config.teacher, ModelTeacher):
                self._teacher_pool = self._start_teacher_pool(config.teacher)
            student = Student(self.task, chat, self._verifiers)
            self._teacher = make_teacher(
                student, config.teacher, self._teacher_pool, config.seed, self._teacher_spent()
            )
        return self._teacher

    def _teacher_cost(self) -> Result:
        """What an endpoint's answers in this stage cost, for the budget of the whole run."""
        if not isinstance(self._teacher, OpenAITeacher):
            return {}
        return {"teacher_tokens": self._teacher.spent - self._teacher_spent()}

    def _teacher_spent(self) -> int:
        return sum(result.get("teacher_tokens", 0) for result in self.run.stages.values())

    def _start_teacher_pool(self, teacher: ModelTeacher) -> RolloutPool:
        model = ModelConfig(
            path=teacher.path,
            max_model_len=teacher.max_model_len,
            trust_remote_code=self.config.model.trust_remote_code,
        )
        pool = RolloutPool(
            self._given_model(model, teacher.workers, self.run.folder / "teacher"),
            model,
            teacher.workers,
            self.config.sync,
            self._verifiers,
            derive_seed(self.config.seed, "teacher"),
            label="teacher",
        )
        self.console.step("starting teacher workers")
        pool.wait_ready()
        return pool

    def _responses_per_problem(self, iteration: int) -> int:
        """What RISE sampled in this iteration, per problem: the control's budget."""
        collected = self.run.stages[f"{stage_name(Phase.COLLECT, iteration)}/collect"]
        return max(1, round(collected["verdicts"] / collected["trajectories"]))

    def _sealed(self, stage: str, phase: str) -> str:
        """The digest of a finished stage's trajectories: none may be missing when they are read."""
        return str(self.run.stages[f"{stage}/{phase}"]["parts_sha256"])

    def _result(self, iteration: int, phase: Phase, sealed: str) -> EvalResult:
        protocol = self.config.evaluation
        return evaluate(
            self.run.trajectories.read(iteration, phase, sealed),
            turns=protocol.turns,
            parallel=protocol.parallel,
            bootstrap=protocol.bootstrap,
            seed=self.config.seed,
        )

    def _checkpoint(self, phase: Phase, iteration: int) -> Folder:
        name = "control" if phase is Phase.CONTROL else "iteration"
        return self.run.folder / "checkpoints" / f"{name}={iteration}"

    def _chat(self, weights: WeightVersion) -> ChatFormat:
        model = self.config.model
        path = locate_tokenizer(weights.checkpoint)
        tokenizer = load_tokenizer(path, model.chat_template, model.trust_remote_code)
        return ChatFormat(tokenizer, weights.checkpoint)

    def _problems(self, split: str) -> list[Problem]:
        if split not in self._loaded:
            self._loaded[split] = self.task.load(split)
        return self._loaded[split]

    @cached_property
    def _loaded(self) -> dict[str, list[Problem]]:
        return {}

    @cached_property
    def _verifiers(self) -> list[VerifierHandle]:
        return start_verifiers(self.config.task, self.config.verify)

    def _probe(self, chat: ChatFormat) -> tuple[tuple[int, ...], ...]:
        """The parity probe's sequences: held-out prompts."""
        problems = self._problems(self.config.evaluation.split)
        return parity_sequences([chat.prompt_ids(self.task.prompt(p)) for p in problems[:64]])

    def _card(self, stage: str, start: str) -> dict[str, str]:
        return {
            "run": self.config.name,
            "stage": stage,
            "started from": start,
            "task": self.config.task.name,
            "seed": str(self.config.seed),
        }
