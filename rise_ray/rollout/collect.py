"""Rolling one phase: specs in, trajectories committed to the store, counts out.

What is stored already is not rolled again, so the same call after a crash does only the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rise_ray.errors import DataError, RolloutError
from rise_ray.feedback.base import feedback_of
from rise_ray.mdp import FinishReason, Outcome, Place, Problem, StopReason, Trajectory
from rise_ray.rollout.chat import ChatFormat
from rise_ray.rollout.episode import EpisodePlan, EpisodeSpec
from rise_ray.store.commit import Committer
from rise_ray.store.trajectories import TrajectoryStore
from rise_ray.tasks.base import Task


@dataclass
class Tally:
    """Counts over the trajectories of a phase, of what was sampled in it.

    A check that failed is in no accuracy.
    """

    trajectories: int = 0
    stop_reasons: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    tokens: int = 0
    first_responses: int = 0
    first_tokens: int = 0
    right: Counter[int] = field(default_factory=Counter)
    judged: Counter[int] = field(default_factory=Counter)

    def add(self, trajectory: Trajectory) -> None:
        self.trajectories += 1
        self.stop_reasons[trajectory.stop_reason.value] += 1
        for number, turn in enumerate(trajectory.turns, start=1):
            if not turn.attempt.sampled:
                continue  # counted where it was
            outcome = turn.attempt.verdict.outcome
            if outcome not in (Outcome.ERROR, Outcome.PARTIAL):
                self.judged[number] += 1
                self.right[number] += outcome is Outcome.CORRECT
            for response in (turn.attempt, *turn.candidates):
                sampled = len(response.token_ids) - response.given
                self.outcomes[response.verdict.outcome.value] += 1
                self.truncated += response.finish_reason is FinishReason.LENGTH
                self.tokens += sampled
                if number == 1:
                    self.first_responses += 1
                    self.first_tokens += sampled

    @property
    def verdicts(self) -> int:
        """Responses that were given to a verifier."""
        return self.outcomes.total() - self.outcomes[Outcome.PARTIAL.value]

    def record(self) -> dict[str, Any]:
        """As fields of a metrics record."""
        return {
            "trajectories": self.trajectories,
            "episode_errors": self.stop_reasons[StopReason.ERROR.value],
            "context_overflow": self.stop_reasons[StopReason.CONTEXT_OVERFLOW.value],
            "verdicts": self.verdicts,
            "verdict_errors": self.outcomes[Outcome.ERROR.value],
            "truncated": self.truncated,
            "tokens": self.tokens,
            "first_responses": self.first_responses,
            "first_tokens": self.first_tokens,
            "outcomes": dict(self.outcomes),
            "stop_reasons": dict(self.stop_reasons),
            "accuracy": {f"acc@t{n}": self.right[n] / self.judged[n] for n in sorted(self.judged)},
        }


def specs_for(
    plan: EpisodePlan, task: Task, chat: ChatFormat, problems: Sequence[Problem], samples: int
) -> list[EpisodeSpec]:
    """`samples` episodes on each problem.

    Raises:
        ConfigError: the task has no such feedback.
        DataError: a prompt leaves no room for a response in the model's context.
        ModelError: the tokenizer splits a word that the plan's question wants.
    """
    if plan.question is not None:
        chat.label_ids(plan.question.words)
    specs = []
    for problem in problems:
        prompt = tuple(task.prompt(problem))
        length = len(chat.prompt_ids(prompt))
        if length + plan.sampling.max_tokens > plan.max_model_len:
            raise DataError(
                f"problem {problem.id}: its prompt has {length} tokens; with `max_tokens` = "
                f"{plan.sampling.max_tokens} it does not fit `model.max_model_len` = "
                f"{plan.max_model_len}; change one of them, or remove the problem"
            )
        feedback = feedback_of(plan.feedback, task, problem)
        specs += [EpisodeSpec(plan, problem, sample, prompt, feedback) for sample in range(samples)]
    return specs


def roll_phase(
    roll: Callable[[Sequence[EpisodeSpec], int, int], Iterable[Trajectory]],
    specs: Sequence[EpisodeSpec],
    store: TrajectoryStore,
    place: Place,
    max_verdict_error_share: float,
    progress: Callable[[int, int, Tally], None],
) -> dict[str, Any]:
    """Roll the episodes that are not stored yet, commit them as they end, count and seal them all.

    What has ended when this is interrupted or fails is stored first.

    Args:
        roll: runs specs, of so many in the phase, so many of which ended as `error` before;
            `RolloutPool.roll`, with a teacher behind it or not.
        specs: of the whole phase.
        max_verdict_error_share: of all verdicts; more stop the phase.
        progress: called with (episodes done, of all, counts of this call's).

    Returns:
        The counts; `parts_sha256` seals the phase: `TrajectoryStore.read` verifies against it.

    Raises:
        RolloutError: too many checks failed, or trajectories are missing in the end.
        StoreError: a part that is there is damaged, or no part can be written.
    """
    total, tally, stored = Tally(), Tally(), set()
    for trajectory in store.read(place):  # of a call that was interrupted
        total.add(trajectory)
        stored.add(trajectory.id)
    missing = [spec for spec in specs if spec.id not in stored]
    errors = total.stop_reasons[StopReason.ERROR.value]
    with Committer(store) as committer:
        for trajectory in roll(missing, len(specs), errors) if missing else ():
            committer.add(trajectory)
            if trajectory.place != place:
                continue  # rolled ahead, and counted by the phase that finds it stored
            total.add(trajectory)
            tally.add(trajectory)
            progress(total.trajectories, len(specs), tally)
    sealed = store.seal(place)
    held = len(store.ids(place))
    if not held == total.trajectories == len(specs):
        raise RolloutError(
            f"{store.folder_of(place).uri}: holds {held} trajectories, {len(specs)} were rolled; "
            "delete the folder and resume"
        )
    errors = total.outcomes[Outcome.ERROR.value]
    if errors > max_verdict_error_share * total.verdicts:
        raise RolloutError(
            f"{errors} of {total.verdicts} checks failed, more than `verify.max_error_share` = "
            f"{max_verdict_error_share:g} allows; the trajectories' verdicts say why"
        )
    return {
        **total.record(),
        "rolled": tally.trajectories,
        "rolled_tokens": tally.tokens,
        "parts_sha256": sealed,
    }
