r"""Countdown-3: reach a target with three numbers. Checking is easy, finding is hard.

The quick start's task: small enough that a half-million-parameter model learns on a laptop to
improve its own answers. A problem, and a response as the task wants it:

    Use 5 6 and 9 to make 21 .
    6 * 5 = 30 , 30 - 9 = 21 correct . \boxed{ ( 6 * 5 ) - 9 }

The verdict word (`correct`, `too low`, `too high`) is the model's own and may be wrong.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from rise_ray.config.base import Settings
from rise_ray.errors import DataError
from rise_ray.feedback.oracle import Oracle
from rise_ray.mdp import Message, Outcome, Problem, Verdict, derive_seed
from rise_ray.tasks.arithmetic import OPERATIONS, parse_expression
from rise_ray.tasks.boxed import last_boxed

NUMBERS = range(1, 13)
VALUES = range(1, 100)
TARGETS = range(10, 100)
FEEDBACK = "Please check and try again ."
ORACLE = Oracle(right="correct .", wrong="Please try again .")
WORDS = (
    *("Use", "and", "to", "make", ".", "+", "-", "*", "=", ",", "(", ")", r"\boxed{", "}"),
    *("correct", "too", "low", "high", "Please", "check", "try", "again"),
)
TARGET_SHARE = 0.6
"""Of a demonstration's attempts that reach the target."""
NEAREST = 4
"""The others reach one of this many nearest values."""
TURNS, TURN_WEIGHTS = (1, 3, 5), (30, 35, 35)
"""Attempts in a demonstration, and how often of 100."""
SPLIT_SHARES = {"test": 0.19, "dev": 0.16, "train": 0.65}
"""Of the number multisets, by hash: 552, 464 and 1,894 problems."""
UNSOLVABLE = "test_unsolvable"
"""The split of as many problems with the numbers of `test` that have no solution."""

_CLAIM = re.compile(r"\b(?:correct|too\s+low|too\s+high)\b")


@dataclass(frozen=True, slots=True)
class Chain:
    """A left-to-right calculation: `(a first b) second c`."""

    a: int
    first: str
    b: int
    second: str
    c: int

    @property
    def middle(self) -> int:
        return OPERATIONS[self.first](self.a, self.b)

    @property
    def value(self) -> int:
        return OPERATIONS[self.second](self.middle, self.c)

    @property
    def is_legal(self) -> bool:
        """Every value is 1-99 and nothing is multiplied by 1."""
        return (
            self.middle in VALUES
            and self.value in VALUES
            and not (self.first == "*" and 1 in (self.a, self.b))
            and not (self.second == "*" and 1 in (self.middle, self.c))
        )

    @property
    def expression(self) -> str:
        return f"( {self.a} {self.first} {self.b} ) {self.second} {self.c}"

    def response(self, target: int) -> str:
        """The response that works this chain out, with a right verdict word."""
        gap = self.value - target
        verdict = "correct" if gap == 0 else "too low" if gap < 0 else "too high"
        return (
            f"{self.a} {self.first} {self.b} = {self.middle} , "
            f"{self.middle} {self.second} {self.c} = {self.value} {verdict} . "
            rf"\boxed{{ {self.expression} }}"
        )


@cache
def chains(numbers: tuple[int, ...]) -> Mapping[int, tuple[Chain, ...]]:
    """Every legal chain over the three numbers in any order, by the value that it reaches."""
    reached: dict[int, list[Chain]] = {}
    for a, b, c in sorted(set(itertools.permutations(numbers))):
        for first, second in itertools.product(OPERATIONS, repeat=2):
            chain = Chain(a, first, b, second, c)
            if chain.is_legal:
                reached.setdefault(chain.value, []).append(chain)
    return {value: tuple(reached[value]) for value in sorted(reached)}


class Countdown(Settings):
    """The task. Its problems are all that exist: 2,910 in three splits, none left out."""

    name: ClassVar[str] = "countdown"

    def load(self, split: str) -> list[Problem]:
        """All problems of `train`, `dev` or `test`, in a fixed order that is no order of size.

        All problems of one number multiset are in one split. In `test_unsolvable` no answer is
        right: what a model says of its answers there is all there is to measure.
        """
        if split not in (*SPLIT_SHARES, UNSOLVABLE):
            allowed = ", ".join((*SPLIT_SHARES, UNSOLVABLE))
            raise DataError(f"countdown: no split `{split}` (allowed: {allowed})")
        targets = _unreachable if split == UNSOLVABLE else _reachable
        problems = [
            _problem(numbers, target)
            for numbers in itertools.combinations_with_replacement(NUMBERS, 3)
            if _split(numbers) == split.removesuffix("_unsolvable")
            for target in targets(numbers)
        ]
        return sorted(problems, key=lambda problem: derive_seed("order", problem.id))

    def prompt(self, problem: Problem) -> list[Message]:
        return [Message("user", problem.question)]

    def feedback(self, problem: Problem) -> str:
        """The same for every problem and after right and wrong answers."""
        return FEEDBACK

    def own_feedback(self, problem: Problem) -> dict[str, Oracle]:
        """The oracle in words that the closed vocabulary has."""
        return {"oracle": ORACLE}

    def check(self, problem: Problem, response: str) -> Verdict:
        """Judge the boxed expression: the given numbers, each once, and the target's value.

        `answer` is the expression's normal form; intermediate values are not restricted.
        """
        target = problem.data["target"]
        boxed = last_boxed(response)
        claim = _claim(response if boxed is None else response[: response.rfind(r"\boxed")])
        if boxed is None:
            return Verdict(Outcome.UNPARSEABLE, None, r"no \boxed{} with an answer", claim)
        try:
            expression = parse_expression(boxed)
        except ValueError as error:
            return Verdict(Outcome.UNPARSEABLE, None, f"the boxed expression: {error}", claim)
        outcome, reason = Outcome.CORRECT, f"makes {target}"
        if sorted(expression.numbers) != sorted(problem.data["numbers"]):
            outcome, reason = Outcome.INCORRECT, "does not use each given number once"
        elif expression.value != target:
            outcome, reason = Outcome.INCORRECT, f"makes {expression.value}, not {target}"
        return Verdict(outcome, expression.text, reason, claim)

    def reference_response(self, problem: Problem) -> str | None:
        """One of the problem's solutions, worked out."""
        return problem.solution

    def demonstrations(
        self, problems: Sequence[Problem], count: int, rng: random.Random
    ) -> Iterator[tuple[Problem, list[Message]]]:
        """`count` deliberately imperfect chats: see the constants at the top.

        A chat's attempts are independent of each other; arithmetic and verdicts are right.
        """
        for _ in range(count):
            problem = rng.choice(problems)
            turns = rng.choices(TURNS, TURN_WEIGHTS)[0]
            messages = self.prompt(problem)
            for turn in range(turns):
                if turn:
                    messages.append(Message("user", FEEDBACK))
                messages.append(Message("assistant", _imperfect_attempt(problem, rng)))
            yield problem, messages

    def vocabulary(self) -> list[str]:
        """Every word of questions, responses and feedback; 0-99 are one word each."""
        return [*map(str, range(100)), *WORDS]


def _split(numbers: tuple[int, ...]) -> str:
    position = derive_seed("countdown", *numbers) / 2**63
    for split, share in SPLIT_SHARES.items():
        position -= share
        if position < 0:
            return split
    return "train"


def _reachable(numbers: tuple[int, ...]) -> list[int]:
    return [target for target in chains(numbers) if target in TARGETS]


def _unreachable(numbers: tuple[int, ...]) -> list[int]:
    """As many targets that no expression has as there are ones that a chain reaches, by hash."""
    values = {
        value
        for a, b, c in itertools.permutations(numbers)
        for one, other in itertools.product(OPERATIONS.values(), repeat=2)
        for value in (other(one(a, b), c), one(a, other(b, c)))
    }
    missed = [target for target in TARGETS if target not in values]
    missed.sort(key=lambda target: derive_seed("unsolvable", *numbers, target))
    return missed[: len(_reachable(numbers))]


def _problem(numbers: tuple[int, ...], target: int) -> Problem:
    """Without a solution its reference is empty."""
    identity = "-".join(map(str, ("countdown", *numbers, target)))
    shown = list(numbers)
    random.Random(derive_seed("shown", identity)).shuffle(shown)
    choices = chains(numbers).get(target)
    drawn = random.Random(derive_seed("reference", *numbers, target))
    reference = drawn.choice(choices) if choices else None
    return Problem(
        id=identity,
        task=Countdown.name,
        question=f"Use {shown[0]} {shown[1]} and {shown[2]} to make {target} .",
        reference=reference.expression if reference else "",
        solution=reference.response(target) if reference else None,
        data={"numbers": shown, "target": target},
    )


def _imperfect_attempt(problem: Problem, rng: random.Random) -> str:
    target = problem.data["target"]
    reachable = chains(tuple(sorted(problem.data["numbers"])))
    value = target
    if rng.random() >= TARGET_SHARE:
        others = sorted((v for v in reachable if v != target), key=lambda v: (abs(v - target), v))
        value = rng.choice(others[:NEAREST])
    return rng.choice(reachable[value]).response(target)


def _claim(text: str) -> bool | None:
    claims = _CLAIM.findall(text)
    return claims[-1] == "correct" if claims else None
