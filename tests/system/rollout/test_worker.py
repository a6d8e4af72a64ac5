"""Workers have everything answered that an episode asks for, on real Ray, vLLM and verifiers."""

from __future__ import annotations

from dataclasses import replace

from rise_ray.feedback.oracle import Oracle
from rise_ray.mdp import Attempt, Outcome, Source, StopReason, Trajectory
from rise_ray.rollout.episode import Question, Start
from rise_ray.rollout.pool import RolloutPool
from tests.system.rollout.conftest import make_specs

QUESTION = Question("sure", "Please check .", ("correct", "again"))


def _responses(trajectory: Trajectory, first: int = 0) -> list[Attempt]:
    return [a for turn in trajectory.turns[first:] for a in (turn.attempt, *turn.candidates)]


def _sampled(trajectory: Trajectory, first: int = 0) -> list[tuple[tuple[int, ...], int]]:
    return [(a.token_ids, a.seed) for a in _responses(trajectory, first)]


def test_a_fork_samples_what_the_episode_that_it_left_sampled(pair: RolloutPool) -> None:
    specs = make_specs(6, turns=3)
    whole = {t.id: t for t in pair.roll(specs)}
    forks = [
        replace(spec, start=Start(whole[spec.id].turns[:1]), source=Source(spec.id, 1, 0))
        for spec in specs
    ]
    rolled = list(pair.roll(forks))
    assert len(rolled) == len(specs)
    for fork in rolled:
        assert _sampled(fork, first=1) == _sampled(whole[fork.id], first=1)
        assert fork.source == Source(fork.id, 1, 0)
        assert not fork.turns[0].attempt.sampled


def test_every_response_is_asked_the_plans_question_and_checked_only_where_asked(
    pair: RolloutPool,
) -> None:
    specs = make_specs(6)
    plan = replace(specs[0].plan, question=QUESTION, check=False)
    rolled = list(pair.roll([replace(spec, plan=plan) for spec in specs]))
    plain = {t.id: t for t in pair.roll(specs)}
    for trajectory in rolled:
        assert trajectory.stop_reason is StopReason.MAX_TURNS
        assert _sampled(trajectory) == _sampled(plain[trajectory.id])  # asking changes no sample
        for response in _responses(trajectory):
            assert set(response.scores) == {"logprob", "sure"}
            assert max(response.scores.values()) < 0.0
            assert response.verdict.outcome is Outcome.PARTIAL
    checked = {r.verdict.outcome for t in plain.values() for r in _responses(t)}
    assert checked
    assert not checked & {Outcome.PARTIAL, Outcome.ERROR}


def test_an_oracle_speaks_on_the_worker(pair: RolloutPool) -> None:
    specs = make_specs(6)
    told = [replace(spec, feedback=Oracle("correct .", "again .")) for spec in specs]
    rolled = list(pair.roll(told))
    assert {(t.feedback, t.stop_reason) for t in rolled} == {("oracle", StopReason.MAX_TURNS)}
    assert {t.turns[0].attempt.verdict.outcome for t in rolled} == {Outcome.UNPARSEABLE}
    plain = {t.id: t for t in pair.roll(specs)}
    for trajectory in rolled:  # the random model's answers are wrong: both say so or nothing
        first, other = trajectory.turns[0], plain[trajectory.id].turns[0]
        assert first.attempt.token_ids == other.attempt.token_ids
        assert len(first.feedback_ids) < len(other.feedback_ids)
