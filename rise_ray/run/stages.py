"""The stages of a run: each does one thing with the real parts and journals its result.

The actors that a stage needs are `rise_ray.run.actors`'s business.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, Self

from rise_ray.cluster.connection import this_node
from rise_ray.cluster.deadline import in_task
from rise_ray.errors import user_error
from rise_ray.evaluate.compare import standard_comparisons
from rise_ray.evaluate.metrics import EvalResult, eval_record, evaluate
from rise_ray.mdp import Phase, Problem, WeightVersion, derive_seed
from rise_ray.models.locate import locate_tokenizer
from rise_ray.relabel.job import write_relabeled
from rise_ray.report.console import Console
from rise_ray.report.html import write_report
from rise_ray.report.tracking import PhaseLog, start_tracker
from rise_ray.rollout.chat import ChatFormat, load_chat
from rise_ray.rollout.collect import roll_phase, specs_for
from rise_ray.rollout.episode import EpisodeSpec
from rise_ray.run.actors import Actors, given_model
from rise_ray.run.journal import REPORT, Run
from rise_ray.run.plans import (
    collect_plan,
    control_plan,
    eval_plan,
    evaluated_models,
    iteration_problems,
    stage_name,
)
from rise_ray.run.versions import package_versions
from rise_ray.run.warm_start import demonstrate, demonstration_examples, initial_model
from rise_ray.store.examples import write_example_parts
from rise_ray.store.files import Folder
from rise_ray.sync.parity import parity_sequences
from rise_ray.tasks import load_task
from rise_ray.train.job import TrainJob, train

Result = dict[str, Any]

logger = logging.getLogger(__name__)


class Stages:
    """The parts of one run and what is done with them. Use as a context manager."""

    def __init__(self, run: Run, console: Console) -> None:
        self.config = run.config
        self.run = run
        self.console = console
        self.task = load_task(run.config.task)
        self._tracker = start_tracker(run.config, run.folder)
        self._actors = Actors(run, console, self.task, self._probe)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        try:
            try:
                self._actors.stop()
            finally:
                self._tracker.close()
        except Exception as failure:
            if error is None:
                raise
            # What ended the run is to be told, and a stop has an exit status of its own.
            logger.warning("the run was not ended tidily: %s", user_error(failure) or failure)

    def base(self) -> WeightVersion:
        """The model that iteration 1 starts from: warm-started, or as it is."""
        if self.config.warm_start is None:
            workers = self.config.rollout.workers
            parity = self.run.folder / "base"
            deadline_s = self.config.ray.task_deadline_s
            return given_model(self.config.model, workers, parity, self._probe, deadline_s)
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
            student = chat if phase is Phase.COLLECT else None
            return self._roll(weights, student, specs, iteration, phase)

        self._stage(stage_name(phase, iteration), "collect", work)

    def relabel(self, iteration: int, phase: Phase) -> Folder:
        """Turn stored trajectories into an examples folder."""
        name = stage_name(phase, iteration)
        output = self.run.folder / "examples" / name

        def work(log: PhaseLog) -> Result:
            first = 1 if self.config.data == "pooled" else iteration
            self._actors.make_room()
            result = in_task(
                "relabeling",
                self.config.ray.task_deadline_s,
                write_relabeled,
                self.run.trajectories,
                [
                    (number, phase, self._sealed(stage_name(phase, number), "collect"))
                    for number in range(first, iteration + 1)
                ],
                self.config.relabel,
                self.config.model.max_model_len,
                derive_seed(self.config.seed, "relabel", name),
                output,
                num_cpus=0,
                scheduling_strategy=this_node(),
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
            counts = self._roll(weights, None, specs, iteration, phase)
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
        records = self._tracker.records()
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
            log = self._tracker.begin(stage, phase)
            self.console.begin(stage, phase)
            started = time.monotonic()
            result = work(log)
            result["seconds"] = time.monotonic() - started
            log(result)
            self._tracker.flush()
            self.console.end(result["seconds"])
            return result

        return self.run.stage(f"{stage}/{phase}", timed)

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
        if self.config.rollout.release_during_training:
            self._actors.release_workers()
        with self.console.following(self._tracker):
            result = train(job)
        return asdict(result)

    def _roll(
        self,
        weights: WeightVersion,
        student: ChatFormat | None,
        specs: Sequence[EpisodeSpec],
        iteration: int,
        phase: Phase,
    ) -> Result:
        before = self._actors.counters()
        counts = roll_phase(
            self._actors.roller(weights, student),
            specs,
            self.run.trajectories,
            iteration,
            phase,
            self.config.verify.max_error_share,
            self.console.rolled,
        )
        after = self._actors.counters()
        lost = {name: after[name] - before[name] for name in after}
        return {**counts, **lost, **self._actors.drift()}

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
        path = locate_tokenizer(weights.checkpoint)
        return load_chat(path, self.config.model, weights.checkpoint)

    def _problems(self, split: str) -> list[Problem]:
        if split not in self._loaded:
            self._loaded[split] = self.task.load(split)
        return self._loaded[split]

    @cached_property
    def _loaded(self) -> dict[str, list[Problem]]:
        return {}

    def _probe(self, chat: ChatFormat) -> tuple[tuple[int, ...], ...]:
        """The parity probe's sequences: held-out problems, each with a response."""
        chats = [
            (
                chat.prompt_ids(self.task.prompt(problem)),
                chat.response_ids(self.task.reference_response(problem) or problem.reference),
            )
            for problem in self._problems(self.config.evaluation.split)[:64]
        ]
        return parity_sequences(chats, self.config.model.max_model_len)

    def _card(self, stage: str, start: str) -> dict[str, str]:
        return {
            "run": self.config.name,
            "stage": stage,
            "started from": start,
            "task": self.config.task.name,
            "seed": str(self.config.seed),
        }
