"""The stages of a run: each does one thing with the real parts and journals its result.

The actors that a stage needs are `rise_ray.run.actors`'s business.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from functools import cache, cached_property, partial
from typing import Any, Self

from rise_ray.config.settings import TrainConfig
from rise_ray.config.teacher import NoTeacher, TeacherConfig
from rise_ray.errors import user_error
from rise_ray.evaluate.compare import standard_comparisons
from rise_ray.evaluate.metrics import EVALUATION, EvalResult, eval_record, evaluate
from rise_ray.mdp import MAIN_TRACK, Message, Place, WeightVersion, derive_seed
from rise_ray.models.locate import locate_tokenizer
from rise_ray.relabel.rule import Asked, Asking, Rule
from rise_ray.report.console import Console
from rise_ray.report.html import write_report
from rise_ray.report.tracking import PhaseLog, start_tracker
from rise_ray.report.versions import package_versions
from rise_ray.rollout.chat import ChatFormat, load_chat
from rise_ray.rollout.collect import roll_phase, specs_for
from rise_ray.rollout.episode import EpisodeSpec
from rise_ray.run.actors import Actors, add_reference, given_model
from rise_ray.run.journal import REPORT, Run
from rise_ray.run.order import do_with_trainings_beside
from rise_ray.run.plans import (
    affordable_candidates,
    compared_stages,
    eval_plan,
    evaluated_models,
    evaluation_problems,
    iteration_problems,
    next_to_roll,
    of_kind,
    roll_plan,
)
from rise_ray.run.specs import BASE, Evaluate, Report, Roll, Rows, Spec, Train, WarmStart, Weights
from rise_ray.run.tracks import stages_of
from rise_ray.run.warm_start import demonstrate, demonstration_examples, initial_model
from rise_ray.store.examples import write_example_parts
from rise_ray.store.files import Folder
from rise_ray.sync.parity import parity_sequences
from rise_ray.tasks import load_task
from rise_ray.train.fit import train
from rise_ray.train.job import TrainJob

Result = dict[str, Any]

logger = logging.getLogger(__name__)


class Stages:
    """The parts of one run and what is done with them. Use as a context manager."""

    def __init__(self, run: Run, console: Console) -> None:
        self.config = run.config
        self.run = run
        self.console = console
        self.stages = stages_of(run.config)
        self.task = load_task(run.config.task)
        self._problems = cache(self.task.load)
        self._tracker = start_tracker(run.config, run.folder)
        self._actors = Actors(run, console, self.task, self._probe)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        try:
            with closing(self._tracker):
                self._actors.stop()
        except Exception as failure:
            if error is None:
                raise
            # What ended the run is to be told, and a stop has an exit status of its own.
            logger.warning("the run was not ended tidily: %s", user_error(failure) or failure)

    def do_all(self) -> None:
        """Do every stage that the journal lacks, trainings beside the others where both have room.

        That is where neither workers nor ranks are released for the other's sake.
        """
        config = self.config
        if config.rollout.release_during_training or config.train.release_during_rollouts:
            for spec in self.stages:
                self.do(spec)
            return
        do_with_trainings_beside(
            self.stages,
            self.do,
            leave_room=self._actors.shrink_pools,
            stop_training=self._actors.stop_training,
            stop_rolling=self._actors.stop_rolling,
        )

    def do(self, spec: Spec) -> None:
        """Do a stage, unless the journal has it."""
        match spec:
            case WarmStart():
                self._stage(spec.key, self._warm_start)
            case Roll():
                self._stage(spec.key, lambda log: self._collect(spec))
            case Rows():
                self._stage(spec.key, lambda log: self._relabel(spec))
            case Train():
                self._stage(spec.key, lambda log: self._fine_tune(spec, log))
            case Evaluate():
                self._stage(spec.key, lambda log: self._evaluate(spec))
            case Report():
                self._report(spec)

    def _collect(self, spec: Roll) -> Result:
        """Roll the iteration's problems, with candidates or a teacher's answers."""
        self._actors.start_relabeler()  # beside the rollouts
        return self._roll(spec, spec.episodes.teacher)

    def _relabel(self, spec: Rows) -> Result:
        """Turn stored trajectories into an examples folder."""
        self._actors.make_room()
        result = self._actors.start_relabeler().do(
            "relabeling",
            self.config.ray.task_deadline_s,
            self.run.trajectories,
            {place: self._sealed(str(place)) for place in spec.sources},
            spec.rule,
            self.config.model.max_model_len,
            derive_seed(self.config.seed, "relabel", spec.name),
            self._examples(spec.name),
            self._asked(spec.rule),
        )
        self.console.step(f"{result.manifest.examples:,} examples")
        return {
            "examples": result.manifest.examples,
            "data_tokens": result.data_tokens,
            "mean_weight": result.manifest.mean_weight,
            "dropped": result.dropped,
        }

    def _asked(self, rule: Rule) -> Asked | None:
        """The question of a rule that has one, in the tokens of the run's chats."""
        if not isinstance(rule, Asking):
            return None
        chat, question = self._chat(self._version(BASE)), rule.question
        ids = chat.feedback_ids([Message("user", "question")], question.text, ())
        return Asked(ids, chat.end_of_turn, chat.label_ids(question.words))

    def _fine_tune(self, spec: Train, log: PhaseLog) -> Result:
        """Fine-tune on the examples; where it is compared, on as many tokens as the other track."""
        own = {"epochs": spec.epochs, "lr": spec.lr}
        given = {key: value for key, value in own.items() if value is not None}
        settings, budget = self.config.train.model_copy(update=given), None
        if spec.like is not None:
            budget = sum(int(trained["tokens"]) for trained in self._compared(spec))
        (rows,) = (rows for rows in of_kind(Rows, self.stages) if rows.place == spec.rows)
        start, examples = self._version(spec.start), self._examples(rows.name)
        return self._train(spec.name, settings, start, examples, spec.weights, budget, log)

    def _evaluate(self, spec: Evaluate) -> Result:
        """Measure weights on the held-out problems by RISE's protocol."""
        protocol = self.config.evaluation
        counts = self._roll(spec, NoTeacher())
        record = eval_record(
            spec.model,
            protocol.split,
            self._result(spec.place, counts["parts_sha256"]),
            feedback=protocol.feedback,
            window=protocol.window,
            sampling=protocol.sampling.model_dump(exclude_none=True),
        )
        self.console.scores(record)
        return {**counts, **record}

    def _report(self, spec: Report) -> None:
        """Compare the models problem by problem, write the page, print the table."""
        protocol = self.config.evaluation
        models = evaluated_models(self.stages)
        sealed = {model: self._sealed(f"{model}/{EVALUATION}") for model in models}
        results = {model: self._result(models[model], sealed[model]) for model in models}
        own = [model for model, place in models.items() if place.track == MAIN_TRACK]
        comparisons = standard_comparisons(
            results, own, bootstrap=protocol.bootstrap, seed=self.config.seed
        )
        records = self._tracker.records()
        if not self.run.finished:
            last = own[-1]
            page = write_report(
                config=self.config.model_dump(mode="json"),
                records=records,
                comparisons=comparisons,
                trajectories=self.run.trajectories.read(models[last], sealed[last]),
                versions=package_versions(),
            )
            self.run.folder.write(REPORT, page.encode())
            self._stage(spec.key, lambda log: {"comparisons": comparisons})
        self.console.results(records, comparisons, f"{self.run.folder.uri}/{REPORT}")

    def _stage(self, key: str, work: Callable[[PhaseLog], Result]) -> None:
        """Do a stage if the journal lacks it: timed, measured, journaled."""
        stage, phase = key.split("/")

        def timed() -> Result:
            log = self._tracker.begin(stage, phase)
            self.console.stage(f"{stage}: {phase}")
            started = time.monotonic()
            result = work(log)
            result["seconds"] = time.monotonic() - started
            log(result)
            self._tracker.flush()
            self.console.step(f"done in {result['seconds']:.0f} s")
            return result

        self.run.stage(key, timed)

    @cached_property
    def _given(self) -> WeightVersion:
        """The model that iteration 1 starts from where there is no warm start."""
        config = self.config
        version = given_model(config.model, self.run.folder / "base")
        workers, deadline_s = config.rollout.workers, config.ray.task_deadline_s
        start = partial(self._actors.start_workers, version)
        reference = config.sync.reference
        add_reference(version, config.model, workers, reference, self._probe, deadline_s, start)
        return version

    def _version(self, weights: Weights) -> WeightVersion:
        if weights.iteration == 0 and self.config.warm_start is None:
            return self._given
        checkpoint = self._checkpoint(weights).uri
        return WeightVersion(weights.iteration, checkpoint, checkpoint)

    def _warm_start(self, log: PhaseLog) -> Result:
        warm_start = self.config.warm_start
        assert warm_start is not None
        chats = demonstrate(self.config, self.task)
        start = initial_model(self.config, self.task, chats, self.run.folder / "scratch")
        given = WeightVersion(0, start, start)
        chat = self._chat(given)
        examples, too_long = demonstration_examples(chats, chat, self.config.model.max_model_len)
        self.console.step(f"{len(examples):,} demonstrations, {too_long:,} too long and left out")
        folder = self._examples("warm-start")
        write_example_parts(folder, examples, derive_seed(self.config.seed, "demonstrations"))
        result = self._train("warm-start", warm_start.train, given, folder, BASE, None, log)
        return {**result, "examples": len(examples), "too_long": too_long}

    def _train(
        self,
        name: str,
        settings: TrainConfig,
        start: WeightVersion,
        examples: Folder,
        makes: Weights,
        token_budget: int | None,
        log: PhaseLog,
    ) -> Result:
        chat = self._chat(start)
        job = TrainJob(
            name=name,
            config=settings,
            base=start.checkpoint,
            examples=examples.uri,
            output=self._checkpoint(makes).uri,
            storage=(self.run.folder / "train").uri,
            seed=derive_seed(self.config.seed, "train", name),
            token_budget=token_budget,
            dtype=self.config.model.dtype,
            trust_remote_code=self.config.model.trust_remote_code,
            parity_sequences=self._probe(chat),
            chat_template=chat.tokenizer.chat_template,
            card={
                "run": self.config.name,
                "stage": name,
                "started from": start.checkpoint,
                "task": self.config.task.name,
                "seed": str(self.config.seed),
            },
            log=log,
        )
        if self.config.rollout.release_during_training:
            self._actors.release_workers()
        with self.console.following(self._tracker):
            stay = not settings.release_during_rollouts
            result = train(job, self._actors.ranks if stay else None)
        return asdict(result)

    def _roll(self, spec: Roll | Evaluate, teacher: TeacherConfig) -> Result:
        version = self._version(spec.weights)
        chat = self._chat(version)
        before = self._actors.counters()
        counts = roll_phase(
            self._actors.roller(version, chat, teacher, self._ahead(spec, chat)),
            self._episodes(spec, chat),
            self.run.trajectories,
            spec.place,
            self.config.verify.max_error_share,
            self.console.rolled,
        )
        after = self._actors.counters()
        spent = {name: after[name] - before.get(name, 0) for name in after}
        return {**counts, **spent, **self._actors.drift()}

    def _ahead(self, spec: Roll | Evaluate, chat: ChatFormat) -> list[EpisodeSpec]:
        """What the next stage is to roll, where that may begin before this one's end."""
        following = next_to_roll(self.stages, spec)
        if following is None or following.key in self.run.stages:
            return []
        stored = self.run.trajectories.ids(following.place)
        return [e for e in self._episodes(following, chat) if e.id not in stored]

    def _episodes(self, spec: Roll | Evaluate, chat: ChatFormat) -> list[EpisodeSpec]:
        """On the iteration's problems, or by RISE's protocol on the held-out ones."""
        config = self.config
        if isinstance(spec, Evaluate):
            problems = evaluation_problems(config, self._problems(config.evaluation.split))
            plan, samples = eval_plan(config, spec.place), config.evaluation.samples
        else:
            available = self._problems(config.split)
            problems = iteration_problems(config, available, spec.place.iteration)
            plan, samples = roll_plan(config, spec, self._candidates(spec)), 1
        return specs_for(plan, self.task, chat, problems, samples)

    def _candidates(self, spec: Roll) -> int:
        """Responses beside the attempt: the recipe's number, or what its budget allows."""
        if spec.episodes.candidates is not None:
            return spec.episodes.candidates
        return affordable_candidates(spec, self._compared(spec))

    def _compared(self, spec: Roll | Train) -> list[Result]:
        """The results of the stages of its kind in the same iteration of the compared track."""
        return [self.run.stages[other.key] for other in compared_stages(spec, self.stages)]

    def _sealed(self, key: str) -> str:
        """The digest of a finished stage's trajectories: none may be missing when they are read."""
        return str(self.run.stages[key]["parts_sha256"])

    def _result(self, place: Place, sealed: str) -> EvalResult:
        protocol = self.config.evaluation
        return evaluate(
            self.run.trajectories.read(place, sealed),
            turns=protocol.turns,
            parallel=protocol.parallel,
            bootstrap=protocol.bootstrap,
            seed=self.config.seed,
        )

    def _checkpoint(self, weights: Weights) -> Folder:
        return self.run.folder / "checkpoints" / weights.name

    def _examples(self, name: str) -> Folder:
        return self.run.folder / "examples" / name

    def _chat(self, weights: WeightVersion) -> ChatFormat:
        path = locate_tokenizer(weights.checkpoint)
        return load_chat(path, self.config.model, weights.checkpoint)

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
