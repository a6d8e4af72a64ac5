"""In which order a run's stages are done: as declared, or with trainings beside all else.

A training has the ranks, every other stage the rollout workers and the driver. Where both stay, a
control's training goes on beside what the run's own recipe rolls, and the other way round. What a
stage gives does not depend on when it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from rise_ray.run.plans import compared_stages, next_to_roll, of_kind
from rise_ray.run.specs import Evaluate, Report, Roll, Rows, Spec, Train, WarmStart, Weights
from rise_ray.run.tracks import Do


def needs(spec: Spec, stages: Sequence[Spec]) -> set[str]:
    """The keys of the stages whose results a stage is made of; all are declared before it."""
    earlier = stages[: stages.index(spec)]
    match spec:
        case WarmStart():
            return set()
        case Rows():
            keys = {str(place) for place in spec.sources}
        case Train():
            keys = {str(spec.rows), *_trained(spec.start, earlier), *_budget(spec, earlier)}
        case Roll():
            keys = {*_trained(spec.weights, earlier), *_budget(spec, earlier)}
        case Evaluate():
            keys = _trained(spec.weights, earlier)
        case Report():
            return {other.key for other in earlier}
    return keys & {other.key for other in earlier}


def _trained(weights: Weights, stages: Sequence[Spec]) -> set[str]:
    """The stage that makes some weights; none makes a base that was given."""
    if weights.iteration == 0:
        return {spec.key for spec in of_kind(WarmStart, stages)}
    return {spec.key for spec in of_kind(Train, stages) if spec.weights == weights}


def _budget(spec: Roll | Train, stages: Sequence[Spec]) -> set[str]:
    """The stages that spend what this one may spend, too."""
    return {other.key for other in compared_stages(spec, stages)}


def do_with_trainings_beside(
    stages: Sequence[Spec],
    do: Do,
    leave_room: Callable[[], None],
    stop_training: Callable[[], None],
    stop_rolling: Callable[[], None],
) -> None:
    """Do every stage as soon as what it needs is done, trainings in a thread of their own.

    What ends one stage ends all.

    Args:
        leave_room: called before all else waits for a training, which may wait for resources.
        stop_training, stop_rolling: called where the other kind of stage has failed: what is under
            way is to end soon, by an error.
    """
    order = _Order(stages)

    def ended(training: Future[None]) -> None:
        if _error(training) is not None:
            stop_rolling()

    with ThreadPoolExecutor(1, "trainings") as thread:
        try:
            while order.waiting:
                for training in order.ready_trainings():
                    order.trainings[training.key] = future = thread.submit(do, training)
                    future.add_done_callback(ended)
                spec = order.next()
                if spec is None:
                    leave_room()
                    wait(order.under_way(), return_when=FIRST_COMPLETED)
                else:
                    do(spec)
                    order.has_done(spec)
        except BaseException as error:
            failures = [_error(training) for training in order.trainings.values()]
            thread.shutdown(wait=False, cancel_futures=True)
            stop_training()
            cause = next((failure for failure in failures if failure is not None), error)
            if isinstance(error, KeyboardInterrupt) or cause is error:
                raise
            raise cause from None  # the other one was stopped because of it


class _Order:
    """Which stage comes next: of those that may be done, the first declared one.

    But for one whose episodes are begun already (`next_to_roll`), which goes before it.
    """

    def __init__(self, stages: Sequence[Spec]) -> None:
        self._stages = stages
        self.waiting = list(stages)
        self._done: set[str] = set()
        self._begun: Spec | None = None
        self.trainings: dict[str, Future[None]] = {}
        """Handed to the thread, by key; they take turns there."""

    def ready_trainings(self) -> list[Train]:
        """Those to hand to the thread."""
        ready: list[Train] = []
        for spec in of_kind(Train, self.waiting):
            handed = self._done | self.trainings.keys() | {earlier.key for earlier in ready}
            if needs(spec, self._stages) <= handed:
                ready.append(spec)
        self.waiting = [spec for spec in self.waiting if spec not in ready]
        return ready

    def next(self) -> Spec | None:
        """The next stage that is no training; None: trainings have to end first."""
        for key in self.trainings.keys() - self._done:
            if self.trainings[key].done():
                self.trainings[key].result()
                self._done.add(key)
        ready = [
            spec
            for spec in self.waiting
            if not isinstance(spec, Train) and needs(spec, self._stages) <= self._done
        ]
        if not ready:
            return None
        chosen = self._begun if self._begun in ready else ready[0]
        assert chosen is not None
        self.waiting.remove(chosen)
        return chosen

    def under_way(self) -> list[Future[None]]:
        """Trainings whose end nothing has been made of yet."""
        return [self.trainings[key] for key in self.trainings.keys() - self._done]

    def has_done(self, spec: Spec) -> None:
        """A stage that is no training has ended."""
        self._done.add(spec.key)
        self._begun = None
        if isinstance(spec, Roll | Evaluate):
            self._begun = next_to_roll(self._stages, spec)


def _error(training: Future[None]) -> BaseException | None:
    """What a training has ended by, if it is none of the good ends."""
    return training.exception() if training.done() and not training.cancelled() else None
