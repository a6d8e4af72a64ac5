"""The page is whole, self-contained, and safe whatever a model wrote."""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser
from typing import Any

import pytest

from rise_ray.evaluate.compare import standard_comparisons
from rise_ray.evaluate.metrics import eval_record, evaluate
from rise_ray.mdp import Trajectory
from rise_ray.report.examples import first_of_each_kind
from rise_ray.report.html import duration, write_report
from tests.unit.evaluate.builders import trajectory
from tests.unit.report import run

ATTACK = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>]]></style></svg>&lt;\"'{{ 7*7 }}"
    "\x1b[2J\x00\u202e\u2066\ud800"
)


def page(**changes: Any) -> str:
    arguments = {
        **{"config": run.CONFIG, "records": [], "comparisons": [], "trajectories": []},
        "versions": {"ray": "2.60.0"},
    }
    return write_report(**{**arguments, **changes})


@pytest.fixture(scope="module")
def full() -> str:
    results = run.results()
    return page(
        records=run.records(results),
        comparisons=run.comparisons(results),
        trajectories=run.episodes("iteration-2"),
    )


class Elements(HTMLParser):
    """Collects tags, attributes, ids and unclosed elements."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_has_every_section(full: str) -> None:
    titles = re.findall(r"<h2>(.*?)</h2>", full)
    assert titles == [
        *("What was found", "Results", "Accuracy turn by turn", "What a right answer costs"),
        *(
            "How answers move",
            "What was left out",
            "Training",
            "What each track was trained on",
            "Data",
            "Time",
            "Examples",
        ),
        *("How to read this", "Settings and versions"),
    ]
    assert full.count("<svg") == 3
    assert re.search(r"<p>The control rejection_sampling-2 comes to [\d.]+% by ", full)
    assert "p1@t5 (oracle)" in full
    assert "ray 2.60.0" in full
    assert "tau: 0.5" in full


def test_how_sure_it_is_has_a_section_where_that_was_asked(full: str) -> None:
    results = run.results(asked=True)
    html = page(records=run.records(results), comparisons=run.comparisons(results))
    assert "<h2>How sure it is</h2>" in html
    assert "the surest of 5 first answers <small>best5@t1(sure)</small>" in html
    assert "first answer of which it is sure" in html
    assert all(f">{way}</text>" in html for way in ("sequential", "until sure", "the surest"))
    assert "<h2>How sure it is</h2>" not in full
    assert ">until sure</text>" not in full


def test_the_page_asks_nothing_of_the_network_and_runs_nothing(full: str) -> None:
    elements = Elements(full)
    assert elements.open == []
    assert not elements.tags & {"script", "link", "img", "iframe", "object", "embed", "form"}
    for name, value in elements.attributes:
        assert name != "src"
        assert not name.startswith("on")
        if name.endswith("href"):
            assert value is not None
            assert value.startswith("#")
    assert not re.search(r"@import|url\((?!#)", full)


def test_ids_of_the_pictures_do_not_meet(full: str) -> None:
    ids = [value for name, value in Elements(full).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_text_of_models_problems_and_settings_is_escaped() -> None:
    results = run.results()
    records = run.records(results)
    for record in records:
        if record["phase"] == "eval":
            record["counts"]["errors"] = {ATTACK: 1}
            record["split"] = ATTACK
    records[-1] |= {"model": ATTACK}
    html = page(
        config={**run.CONFIG, "name": ATTACK},
        records=records,
        trajectories=[trajectory("5 7", question=ATTACK, text=ATTACK)],
        versions={ATTACK: ATTACK},
    )
    elements = Elements(html)
    assert not elements.tags & {"script", "img"}
    hidden = {"Cc", "Cf", "Cs"}
    assert not [c for c in html if c != "\n" and unicodedata.category(c) in hidden]
    assert "{{ 7*7 }}" in html  # text, and no template
    html.encode()
    assert html.count("&lt;script&gt;") >= 8


def test_equal_data_give_the_same_bytes(full: str) -> None:
    results = run.results()
    again = page(
        records=run.records(results),
        comparisons=run.comparisons(results),
        trajectories=run.episodes("iteration-2"),
    )
    assert again == full


def test_a_run_without_results_has_a_page_that_says_so() -> None:
    assert "Nothing was evaluated yet." in page()


def test_the_smallest_protocol_and_missing_metrics_have_a_page() -> None:
    for answers in ("7", "!"):
        runs = [trajectory(answers, answers)]
        result = evaluate(runs, turns=1, parallel=1, bootstrap=100, seed=0)
        comparisons = standard_comparisons(
            {"base": result, "control": result}, ["base"], bootstrap=100, seed=0
        )
        record = eval_record("base", "dev", result, feedback="none", window=1, sampling={})
        html = page(records=[record], comparisons=comparisons, trajectories=runs)
        assert ("not measured" in html.lower()) == (answers == "!")


def test_examples_are_the_first_of_their_kind_by_problem_id() -> None:
    runs: list[Trajectory] = [
        trajectory("5 7", problem="b"),
        trajectory("5 7", problem="a"),
        trajectory("7 7", problem="d"),
        trajectory("7 !", problem="c"),
    ]
    kinds = first_of_each_kind(runs)
    assert [(kind.example.problem.id, kind.count, kind.total) for kind in kinds] == [
        ("a", 2, 3),
        ("d", 1, 3),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.54, "2.5 s"),
        (42, "42 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text
