"""`rise-ray check`: what a run would stop at is found before anything starts."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rise_ray.cli.access import connection_failure
from rise_ray.cli.check import Finding, Inspection, Status, check, preflight
from rise_ray.config.loading import parse_config
from rise_ray.config.settings import RunConfig
from rise_ray.errors import ClusterError, DataError, ModelError, RiseError, StoreError, TeacherError
from rise_ray.run.journal import Run
from tests.unit.problem_files import (
    FIRST_TURN_ONLY,
    ONE_USER_TURN,
    gsm8k_rows,
    write_rows,
    write_tokenizer,
)

Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def make(tmp_path: Path, model: Path) -> Make:
    """A config that has nothing wrong, changed by overrides."""
    rows = write_rows(tmp_path / "rows.jsonl", gsm8k_rows(80))

    def config(*overrides: str) -> RunConfig:
        text = f"""
name: r
storage: {tmp_path / "runs"}
task: {{name: gsm8k, options: {{path: {rows}}}}}
model: {{path: {model}, max_model_len: 256}}
iterations: 1
problems: 20
recipe: {{candidates: 4, turns: 3}}
rollout: {{sampling: {{max_tokens: 20}}}}
train: {{batch_tokens: 1024, row_tokens: 256}}
evaluation: {{sampling: {{max_tokens: 20}}, turns: 3, parallel: 3}}
"""
        return parse_config(text, list(overrides), source="test")

    return config


@pytest.fixture
def listener() -> Iterator[int]:
    """A port that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that takes none, and that nobody else can take."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        yield unused.getsockname()[1]


def _findings(config: RunConfig) -> dict[str, Finding]:
    return {finding.subject: finding for finding in Inspection(config).findings()}


def _failure(config: RunConfig, subject: str) -> str:
    """What the check says of its one failure; a run stops with the same words."""
    failed = {s: f.detail for s, f in _findings(config).items() if f.status is Status.FAILED}
    assert set(failed) == {subject}
    with pytest.raises(RiseError) as caught:
        preflight(config, resume=False)
    assert str(caught.value) == failed[subject]
    assert not Path(config.storage, config.name).exists()
    return failed[subject]


def test_a_good_config_passes_and_nothing_is_made(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    assert check(make())
    assert not preflight(make(), resume=False).finished
    assert sorted(tmp_path.iterdir()) == before
    printed = capsys.readouterr().out
    assert "failed" not in printed
    assert "20 problems x (3 turns + 4 candidates at each) = up to 300 responses" in printed
    assert "1,024 tokens = 4 rows of 256: 2 workers x 1 rows x 2 passes" in printed
    assert "of 2 models:" in printed
    assert "CPU at the same time at least" in printed


def test_controls_are_named_by_their_tracks(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    variant = "{name: variant, track: again, rule: {name: improved}}"
    assert check(make(f"controls=[{{name: rejection_sampling}}, {variant}]"))
    assert "on pooled data; beside it rejection_sampling, again\n" in capsys.readouterr().out


def test_the_longest_state_counts_every_turn_that_is_shown(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    inspection = Inspection(make())
    list(inspection.findings())
    assert inspection.lengths is not None
    prompt, feedback = inspection.lengths.prompt, inspection.lengths.feedback
    check(make())
    three_turns = prompt + 2 * (20 + feedback) + 20
    assert f"at most {three_turns} tokens" in capsys.readouterr().out
    asking = make("evaluation.question={text: Are you sure, right: <user>, wrong: <assistant>}")
    inspection = Inspection(asking)
    list(inspection.findings())
    assert inspection.lengths is not None
    assert inspection.lengths.question == 8  # <end> <user> Are you sure <end> <assistant> <user>
    check(asking)
    assert f"at most {three_turns + inspection.lengths.question} tokens" in capsys.readouterr().out
    check(make("recipe.window=2", "evaluation.window=2"))
    assert f"at most {prompt + 20 + feedback + 20} tokens" in capsys.readouterr().out
    check(make("model.max_model_len=80"))
    assert "end as context_overflow" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"question": "What', "rows.jsonl:3: not valid JSON"),
        ("[1, 2]", "rows.jsonl:3: a row must be a JSON object"),
        ({"question": "What is 1 ?", "answer": "It is 1 ."}, "rows.jsonl:3: column `answer` has"),
        ({"question": "What is 1 ?", "answer": "It is 1 .\n####  "}, "rows.jsonl:3: column"),
        ({"question": "What is 1 ?"}, "rows.jsonl:3: column `answer` is missing"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_its_line(
    make: Make, tmp_path: Path, row: object, said: str
) -> None:
    rows = gsm8k_rows(80)
    write_rows(tmp_path / "rows.jsonl", [*rows[:2], row, *rows[2:]])
    assert said in _failure(make(), "data")


def test_a_data_file_that_cannot_be_read_is_named(make: Make, tmp_path: Path) -> None:
    missing = tmp_path / "missing.jsonl"
    assert f"{missing}: cannot be read" in _failure(make(f"task.options.path={missing}"), "data")
    (tmp_path / "folder.jsonl").mkdir()
    config = make(f"task.options.path={tmp_path / 'folder.jsonl'}")
    assert "folder.jsonl: cannot be read" in _failure(config, "data")


def test_too_few_problems_are_found(make: Make) -> None:
    assert "split `train` has only" in _failure(make("problems=1000"), "data")


def test_a_missing_or_empty_model_folder_is_named(make: Make, tmp_path: Path) -> None:
    config = make(f"model.path={tmp_path / 'nothing'}")
    assert _failure(config, "model") == f"model {tmp_path / 'nothing'}: there is no such folder"
    (tmp_path / "empty").mkdir()
    config = make(f"model.path={tmp_path / 'empty'}")
    assert "empty: the folder has no config.json" in _failure(config, "model")


def test_a_model_folder_without_weights_is_refused(make: Make, tmp_path: Path) -> None:
    (write_tokenizer(tmp_path / "model") / "model.safetensors").unlink()
    config = make(f"model.path={tmp_path / 'model'}")
    assert "model: the folder holds no weights" in _failure(config, "model")


def test_a_damaged_tokenizer_is_named(make: Make, tmp_path: Path) -> None:
    (write_tokenizer(tmp_path / "model") / "tokenizer.json").write_text("{")
    config = make(f"model.path={tmp_path / 'model'}")
    assert "its tokenizer cannot be loaded" in _failure(config, "model")


@pytest.mark.parametrize("template", [FIRST_TURN_ONLY, ONE_USER_TURN, "{% for %}"])
def test_a_chat_template_that_cannot_express_two_user_turns_is_refused(
    make: Make, tmp_path: Path, template: str
) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(template)
    said = _failure(make(f"model.chat_template={path}"), "model")
    assert "its chat template cannot" in said
    assert "name another template in `model.chat_template`" in said


def test_a_missing_chat_template_is_named(make: Make, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "model", template=None)
    config = make(f"model.path={tmp_path / 'model'}")
    assert "its tokenizer has no chat template" in _failure(config, "model")
    config = make(f"model.chat_template={tmp_path / 'none.jinja'}")
    assert "none.jinja: No such file" in _failure(config, "model")


def test_a_prompt_that_is_longer_than_the_context_is_named(make: Make, tmp_path: Path) -> None:
    long = {"question": "word " * 300, "answer": "#### 1"}
    write_rows(tmp_path / "rows.jsonl", [*gsm8k_rows(80), long])
    said = _failure(make(), "prompts")
    assert said.startswith("problem gsm8k-")
    assert "does not fit `model.max_model_len` = 256; change one of them" in said


def test_deepspeed_settings_that_contradict_the_config_are_refused(make: Make) -> None:
    config = make("train.deepspeed={zero_optimization: {stage: 2}}")
    assert "rise-ray trains with stage 3" in _failure(config, "DeepSpeed")
    config = make("train.precision=bfloat16", "model.dtype=float32")
    assert "training is in bfloat16" in _failure(config, "DeepSpeed")


OPENAI = "recipe.teacher={{kind: openai, model: big, api_key_env: A_KEY, base_url: 'http://127.0.0.1:{}/v1'}}"


def test_a_teachers_key_has_to_be_set(
    make: Make, listener: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(OPENAI.format(listener))
    monkeypatch.delenv("A_KEY", raising=False)
    assert "the environment variable A_KEY is not set" in _failure(config, "teacher")
    monkeypatch.setenv("A_KEY", "secret")
    finding = _findings(config)["teacher"]
    assert finding.status is Status.OK
    assert "secret" not in finding.detail


def test_a_teacher_that_does_not_answer_stops_a_run_but_not_a_check_from_elsewhere(
    make: Make, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    config = make(OPENAI.format(closed_port))
    assert _findings(config)["teacher"].status is Status.NOT_CHECKED
    with pytest.raises(TeacherError, match=rf"127\.0\.0\.1:{closed_port}/v1: cannot be reached"):
        preflight(config, resume=False)


NO_SOLUTIONS = """
from rise_ray.tasks.gsm8k import Gsm8k

class NoSolutions(Gsm8k):
    def reference_response(self, problem):
        return None
"""


def test_a_reference_teacher_needs_a_worked_solution_of_every_problem(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["recipe.teacher={kind: reference}"]
    assert _findings(make(*settings))["teacher"].status is Status.OK
    (tmp_path / "no_solutions.py").write_text(NO_SOLUTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    config = make(*settings, "task.name=no_solutions:NoSolutions")
    assert "has no worked solution, which `teacher: reference` needs" in _failure(config, "teacher")


def test_names_on_a_hub_that_is_away_are_not_checked(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make("model.path=some-org/some-model", "task.options={path: some-org/some-data}")
    findings = _findings(config)
    assert findings["data"].status is Status.NOT_CHECKED
    assert findings["model"].status is Status.NOT_CHECKED
    assert findings["prompts"].status is Status.NOT_CHECKED
    assert check(config)
    with pytest.raises(DataError, match="some-org/some-data: cannot be loaded from the hub"):
        preflight(config, resume=False)


def test_a_run_says_that_a_name_is_neither_a_folder_nor_on_the_hub(make: Make) -> None:
    with pytest.raises(ModelError, match="some-org/some-model \\(no folder here"):
        preflight(make("model.path=some-org/some-model"), resume=False)


def test_a_folder_that_holds_another_run_is_refused_and_left(make: Make) -> None:
    run = Run(make("seed=1"), resume=False)
    before = {name: run.folder.read(name) for name in run.folder.names()}
    with pytest.raises(StoreError, match=r"holds another run \(`seed` is 1 there and 0 here\)"):
        preflight(make(), resume=True)
    assert _findings(make())["run folder"].status is Status.FAILED
    assert {name: run.folder.read(name) for name in run.folder.names()} == before


def test_an_unfinished_run_needs_resume_and_the_check_says_so(make: Make) -> None:
    Run(make(), resume=False)
    assert "go on with --resume" in _findings(make())["run folder"].detail
    with pytest.raises(StoreError, match="go on with --resume"):
        preflight(make(), resume=False)
    preflight(make(), resume=True)


def test_a_finished_run_is_not_checked_again(make: Make, tmp_path: Path) -> None:
    run = Run(make(), resume=False)
    run.stage("run/report", lambda: {"comparisons": []})
    (tmp_path / "rows.jsonl").unlink()
    assert preflight(make(), resume=False).finished


def test_a_folder_that_cannot_be_written_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = make(f"storage={tmp_path / 'file' / 'runs'}")
    with pytest.raises(StoreError, match=r"cannot be written: .*file is a file; change `storage`"):
        preflight(config, resume=False)
    assert _findings(config)["run folder"].status is Status.FAILED


def test_a_storage_that_cannot_be_reached_stops_a_run_but_not_a_check(make: Make) -> None:
    config = make("storage=nosuch://bucket/runs")
    assert _findings(config)["run folder"].status is Status.NOT_CHECKED
    with pytest.raises(StoreError, match="`storage`: nosuch://bucket/runs: ValueError"):
        preflight(config, resume=False)


def test_a_model_or_data_under_a_uri_is_looked_for(make: Make) -> None:
    said = _failure(make("model.path=memory://bucket/model"), "model")
    assert said.startswith("model memory://bucket/model: there is no config.json")
    config = make("model.path=nosuch://bucket/model")
    assert _findings(config)["model"].status is Status.NOT_CHECKED
    with pytest.raises(ModelError, match="nosuch://bucket/model: ValueError"):
        preflight(config, resume=False)
    assert "nosuch://b/rows.jsonl: cannot be read" in _failure(
        make("task.options.path=nosuch://b/rows.jsonl"), "data"
    )


def test_a_model_from_nothing_is_checked_as_far_as_it_goes(make: Make) -> None:
    config = make(
        "model={max_model_len: 256, scratch: {tokenizer: bpe, architecture: {model_type: llama}}}",
        "warm_start={examples: 10, train: {batch_tokens: 1024, row_tokens: 256}}",
    )
    findings = _findings(config)
    assert findings["model"].status is Status.OK
    assert findings["warm start"].status is Status.OK
    assert findings["prompts"].status is Status.NOT_CHECKED


def test_a_dead_address_is_told_at_once(closed_port: int, listener: int) -> None:
    assert connection_failure(f"http://127.0.0.1:{listener}") is None
    assert connection_failure(f"http://127.0.0.1:{closed_port}") is not None
    assert connection_failure("http://127.0.0.1:port") is not None
    assert connection_failure("not a url") is not None


def test_no_ray_at_the_given_address_is_told_at_once(make: Make, closed_port: int) -> None:
    from rise_ray.cluster.connection import connected

    config = make(f"ray.address='127.0.0.1:{closed_port}'")
    with (
        pytest.raises(ClusterError, match=f"no Ray cluster at `127.0.0.1:{closed_port}`"),
        connected(config, None, debug=False),
    ):
        pass
