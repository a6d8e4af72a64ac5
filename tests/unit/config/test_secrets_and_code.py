"""No secret in a config or text, no code from a model folder, nothing that steers a terminal."""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import verify_gold
from rise_ray.cli import check
from rise_ray.cli import main as cli
from rise_ray.config.loading import parse_config
from rise_ray.config.secrets import redact, secrets_in
from rise_ray.errors import ConfigError, ModelError
from rise_ray.models.locate import locate_model
from rise_ray.report.console import Console
from rise_ray.report.tracking import _flat
from rise_ray.rollout.chat import load_tokenizer
from rise_ray.sync.parity import reference_logprobs
from rise_ray.text import printable, terminal_text
from tests.chaos import __main__ as chaos
from tests.unit.problem_files import write_tokenizer

MINIMAL = "{name: d, task: {name: countdown}, model: {path: m}}"
SECRET = "pl4nted-s3cret-value"
OPENAI = "recipe.teacher={kind: openai, model: m}"
AWS_ID = "AKIAPLANTED0PLANTED0"
AWS_SECRET = "wJal/K7/abc+planted"

# Clears the screen, renames the window, rings, writes backwards, overwrites the line.
ATTACK = "\x1b[2J\x1b]0;owned\x07 \x9b31m \u202egnp.exe\u202c \u2066x\u2069 \r\ndone\x00\x08\ud800"


def steers(text: str) -> set[str]:
    """Characters of `text`, but for line ends, that a terminal might obey or hide."""
    hidden = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    return {c for c in text if unicodedata.category(c) in hidden and c != "\n"}


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(MINIMAL, list(overrides), source="my.yaml")
    shown = "".join(traceback.format_exception(caught.value))  # what `--debug` prints
    assert str(caught.value) in shown
    return shown


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (
            [OPENAI, f"recipe.teacher.base_url=https://me:{SECRET}@host/v1"],
            "recipe.teacher.base_url",
        ),
        (
            [OPENAI, f"recipe.teacher.base_url=https://host/v1?api-key={SECRET}"],
            "recipe.teacher.base_url",
        ),
        ([f"storage=s3://key:{SECRET}@bucket/runs"], "storage"),
        ([f"storage=https://host/x?a=b&X-Amz-Signature={SECRET}"], "storage"),
        ([f"model.path=https://me:{SECRET}@host/model"], "model.path"),
        ([f"ray.address=ray://me:{SECRET}@host:10001"], "ray.address"),
        ([f"rollout.workers.env.HF_TOKEN={SECRET}"], "rollout.workers.env.HF_TOKEN"),
        ([f"rollout.workers.env.WANDB_API_KEY={SECRET}"], "rollout.workers.env.WANDB_API_KEY"),
        (["rollout.workers.env.DB_PASSWORD=12345678"], "rollout.workers.env.DB_PASSWORD"),
        (
            [f"rollout.workers.env.AWS_SECRET_ACCESS_KEY={SECRET}"],
            "rollout.workers.env.AWS_SECRET_ACCESS_KEY",
        ),
        (
            [f"rollout.workers.env.HTTPS_PROXY=http://me:{SECRET}@proxy:3128"],
            "rollout.workers.env.HTTPS_PROXY",
        ),
        (
            [f"recipe.teacher={{kind: model, path: m, workers: {{env: {{MY_SECRET: {SECRET}}}}}}}"],
            "recipe.teacher.workers.env.MY_SECRET",
        ),
        ([f"rollout.workers.vllm.hf_token={SECRET}"], "rollout.workers.vllm.hf_token"),
        ([f"task.options.password={SECRET}"], "task.options.password"),
        ([f"task.options.path=hub-{SECRET}", f"task.options.token={SECRET}"], "task.options.token"),
        ([OPENAI, f"recipe.teacher.api_key={SECRET}"], "recipe.teacher.api_key"),
        ([OPENAI, f"recipe.teacher.api_key_env={SECRET}"], "recipe.teacher.api_key_env"),
        ([f"wandb.tags=[a, 'https://me:{SECRET}@host']"], "wandb.tags"),
        ([f"task.options.note=sk-proj-{SECRET}"], "task.options.note"),
        ([f"task.options.sources=[{{password: {SECRET}}}]"], "task.options.sources.password"),
        ([f"task.options.sources=[[{{password: {SECRET}}}]]"], "task.options.sources.password"),
        ([f"task.options.sources=[[a, ['https://me:{SECRET}@host']]]"], "task.options.sources"),
        ([f"task.options.password={{a: {SECRET}}}"], "task.options.password"),
        ([f"task.options.passwords=[{SECRET}]"], "task.options.passwords"),
        ([f"task.options={{password:{SECRET}}}"], "task.options.***"),  # no space: YAML's name
        ([f"task.options={{'https://me:{SECRET}@host': 1}}"], "task.options.***"),
        ([f"task.options.clientSecret={SECRET}"], "task.options.clientSecret"),
        ([f"task.options.HF_TOKEN_READ={SECRET}"], "task.options.HF_TOKEN_READ"),
        (
            [f"task.options.headers={{Authorization: Bearer {SECRET}}}"],
            "task.options.headers.Authorization",
        ),
        ([f"task.options.headers={{X-Api-Key: {SECRET}}}"], "task.options.headers.X-Api-Key"),
        ([f"task.options.headers=['X-Api-Key: {SECRET}']"], "task.options.headers"),
        ([f"task.options.headers=[Authorization, Bearer {SECRET}]"], "task.options.headers"),
        ([f"task.options.arguments=[--api-key={SECRET}]"], "task.options.arguments"),
        ([f"rollout.workers.env.DB_PASS={SECRET}"], "rollout.workers.env.DB_PASS"),
        ([f"rollout.workers.env.HF_TOKEN_READ={SECRET}"], "rollout.workers.env.HF_TOKEN_READ"),
        ([f"rollout.workers.env.MYTOKEN={SECRET}"], "rollout.workers.env.MYTOKEN"),
        ([f"rollout.workers.env.MYSQL_PWD={SECRET}"], "rollout.workers.env.MYSQL_PWD"),
        ([f"storage=s3://{AWS_ID}:{AWS_SECRET}@bucket"], "storage"),
        ([f"storage=s3://me:{AWS_SECRET}@bucket/runs"], "storage"),
        ([f"storage=ftp://me@corp:{SECRET}@host/runs"], "storage"),
        ([f"task.options.user={AWS_ID}"], "task.options.user"),
        ([OPENAI, "recipe.teacher.api_key_env=LLM_AUTH"], "recipe.teacher.api_key_env"),
    ],
)
def test_a_secret_in_a_config_is_refused_by_its_key_and_never_shown(
    overrides: list[str], key: str
) -> None:
    message = refusal(*overrides)
    assert f"my.yaml: `{key}`: " in message
    assert not any(s in message for s in (SECRET, AWS_ID, AWS_SECRET, "12345678"))
    assert "environment" in message


@pytest.mark.parametrize("value", [SECRET, f"[[{SECRET}]]", f"{{a: 'x {SECRET}.'}}"])
def test_a_value_of_a_secret_variable_is_refused_wherever_it_is(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse_config(MINIMAL, [f"task.options.note={value}"], source="my.yaml")
    monkeypatch.setenv("PLANTED_API_KEY", SECRET)
    message = refusal(f"task.options.note={value}")
    assert "my.yaml: `task.options.note" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([f"name.password={SECRET}"], "override 'name.password': `name` is a value, not a group"),
        (
            [f"recipe.teacher.api_key:{SECRET}"],
            "override 'recipe.teacher.api_key': write it as key.sub=value",
        ),
        (
            [f"recipe.teacher.api_key:{SECRET}=="],
            "override 'recipe.teacher.api_key': the value is not valid",
        ),
        ([f"recipe.teacher.api_key:{SECRET}="], "`recipe.teacher.***`: holds a secret"),
        ([SECRET], "override '...': write it as key.sub=value"),
        ([f"train.lr={SECRET}"], "`train.lr`: Input should be a valid number"),
        ([f"train.betas=[{SECRET}]"], "`train.betas.0`: Input should be a valid number"),
        ([f"name=x {SECRET}"], "`name`: String should match pattern"),
        ([f"wandb={SECRET}"], "`wandb`: Input should be a valid dictionary"),
        (
            [f"recipe.teacher={{kind: {SECRET}}}"],
            "`recipe.teacher.kind`: allowed: 'none', 'reference',",
        ),
        ([f"train.secret_lr={{a: {SECRET}}}"], "`train.secret_lr`: unknown setting"),
    ],
)
def test_no_refused_value_is_repeated(overrides: list[str], said: str) -> None:
    message = refusal(*overrides)
    assert said in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "line", ["*{}", "!{} x", "!{}!x y", "&{0} 1\nb: &{0} 2", "!!int {}", "!!bool {}", "[{}\nb: c"]
)
def test_what_is_no_yaml_is_not_repeated(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"a: {line.format(SECRET)}", [], source="my.yaml")
    shown = "".join(traceback.format_exception(caught.value))
    assert "not valid YAML" in shown
    assert SECRET not in shown


@pytest.mark.parametrize(
    "settings",
    [
        {"env": {"TOKENIZERS_PARALLELISM": "false", "NCCL_IB_PKEY_INDEX": "1"}},
        {"vllm": {"hf_token": True, "max_num_batched_tokens": 4096}},
        {"architecture": {"eos_token": "<end>", "max_tokens": 3}},
        {"base_url": "http://127.0.0.1:8000/v1", "api_key_env": "MY_KEY"},
        {"storage": "s3://bucket/a:b@c", "path": "user@host/data.jsonl", "key": "id"},
        {"a": "http://127.0.0.1:8000/v1?x=a@b", "b": "http://[::1]:8000/a@b", "c": "ssh://me@host"},
        {"env": {"VLLM_MULTI_STREAM_GEMM_TOKEN_THRESHOLD": "64", "HF_TOKEN_PATH": "/run/token"}},
        {"env": {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "NCCL_IB_PKEY": "2"}, "password": None},
        {"env": {"VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE": "163840", "VLLM_USE_FASTOKENS": "yes"}},
        {"resources": {"accelerator_type:A100": 1}, "prompt": "Token: what the bearer has shown"},
        {"api_key_env": "OPENAI_API_KEY", "rows_per_pass": 2, "notes": ["eos_token=<end>", "a: b"]},
    ],
)
def test_what_only_sounds_like_a_secret_is_no_reason_to_refuse(settings: dict[str, Any]) -> None:
    assert list(secrets_in(settings)) == []


def test_a_value_that_is_no_yaml_is_not_repeated() -> None:
    message = refusal(f"rollout.workers.env.HF_TOKEN=[{SECRET}")
    assert SECRET not in message
    assert "rollout.workers.env.HF_TOKEN" in message


@pytest.mark.parametrize(
    "text",
    [
        f"connect to https://me:{SECRET}@host/v1: refused",
        f"GET https://host/v1?api_key={SECRET}&x=1: 403",
        f"Incorrect API key provided: sk-{SECRET}",
        f"the server said {SECRET}.",
        "token hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345 is invalid",
        f"the id {AWS_ID} does not exist",
        f"cannot write to s3://me:{AWS_SECRET}@bucket/runs",
        "authorization: bearer AbCdEf.0123-4567: refused",
    ],
)
def test_secrets_are_blotted_out_of_texts(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_API_KEY", SECRET)
    shown = terminal_text(text)
    assert "***" in shown
    assert not any(s in shown for s in (SECRET, AWS_ID, AWS_SECRET, "AbCdEf"))


def test_other_texts_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_KEY", "run")  # would take every "run" with it
    monkeypatch.setenv("PLANTED", SECRET)  # not named like a secret
    for text in (f"run {SECRET}", "s3://bucket/a:b@c", "http://host:8000/v1?split=test", "key=1"):
        assert redact(text) == text


@given(st.text(st.characters()))
def test_no_text_steers_a_terminal(text: str) -> None:
    shown = printable(text, keep="")
    assert not steers(shown)
    assert "\n" not in shown
    shown.encode()


@pytest.fixture
def warnings_shown() -> Iterator[Console]:
    logger = logging.getLogger("rise_ray")
    before, logger.handlers = logger.handlers, []  # other tests' consoles would print it too
    console = Console()
    console.show_warnings()
    yield console
    logger.handlers = before


def test_the_console_prints_one_line_whatever_a_text_holds(
    warnings_shown: Console, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_API_KEY", SECRET)
    text = f"{ATTACK} [bold]:bug: {SECRET}"
    warnings_shown.step(text)
    logging.getLogger("rise_ray.rollout.pool").warning("worker is lost: %s", text)
    warnings_shown.results([], [], f"runs/{text}/report.html")
    printed = capsys.readouterr().out
    assert not steers(printed)
    assert SECRET not in printed
    assert "[bold]:bug:" in printed
    step, warning, nothing, report = printed.splitlines()
    assert warning.split("  ", 2)[2].strip().startswith("warning: worker is lost: \\x1b[2J")
    assert nothing == "Nothing was evaluated yet."
    assert step.split("    ", 1)[1].startswith("\\x1b[2J")
    assert report.startswith("Report: runs/")


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (cli.main, ["run", "x.yaml", "--teacher.api_key={}"], "unknown option --teacher.api_key\n"),
        (cli.main, ["lineage", "x", "--problem", "p", "a.key={}"], "unrecognized argument a.key\n"),
        (chaos.main, ["x.yaml", "--kills=1", "--seed=0", "--api_key={}"], "option --api_key\n"),
        (chaos.main, ["x.yaml", "--seed=0", "--kills", "sk-{}"], "invalid int value: '***'\n"),
        (verify_gold.main, ["math", "x.jsonl", "--api_key={}"], "unknown option --api_key\n"),
        (verify_gold.main, ["math", "x", "--api_key", "{}"], "unknown option --api_key\n"),
        (verify_gold.main, ["sk-{}\x1b[2J"], "invalid choice: '***\\x1b[2J'"),
    ],
)
def test_no_command_repeats_a_secret_of_its_arguments(
    main: Callable[[list[str]], int],
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([argument.format(SECRET) for argument in arguments])
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in printed
    assert SECRET not in printed
    assert not steers(printed)


def test_a_defect_in_a_thread_neither_steers_the_terminal_nor_tells_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ValueError(f"{ATTACK}: {SECRET}")

    monkeypatch.setenv("PLANTED_API_KEY", SECRET)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    assert cli.main(["run", "nothing.yaml"]) == 2
    for work in (fail, sys.exit):  # the latter is a thread's way to end
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    printed = capsys.readouterr().err
    assert "in fail\n" in printed
    assert "ValueError: \\x1b[2J" in printed
    assert "SystemExit" not in printed
    assert not steers(printed)
    assert SECRET not in printed


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_errors_neither_steer_the_terminal_nor_tell_secrets(
    debug: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ModelError(f"model {ATTACK}: {SECRET} https://me:pa55word@host")

    monkeypatch.setenv("PLANTED_API_KEY", SECRET)
    monkeypatch.setattr(cli, "load_config", fail)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    try:
        assert cli.main(["run", "x.yaml", *debug]) == 1
    except ModelError as error:  # what Python does with an exception that ends the process
        assert debug
        sys.excepthook(type(error), error, error.__traceback__)
    printed = capsys.readouterr().err
    assert "\\x1b[2J" in printed
    assert not steers(printed)
    assert SECRET not in printed
    assert "pa55word" not in printed


def test_the_check_prints_what_data_and_models_say_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse_config(
        MINIMAL, [f"storage={tmp_path}", f"model.path={json.dumps('./' + ATTACK)}"], source="x"
    )
    assert not check.check(config)
    printed = capsys.readouterr().out
    assert "\\x1b[2J" in printed
    assert not steers(printed)


def test_wandb_is_told_numbers_under_our_own_names_and_nothing_else() -> None:
    record = {
        **{"stage": "base", "phase": "eval", "model": "base", "time": 1.0, "problems": 3},
        **{"feedback": ATTACK, "split": SECRET, "window": None},
        "sampling": {"temperature": 1.0, "note": ATTACK},
        "metrics": {"m1@t1": {"value": 0.4, "low": 0.3, "high": 0.5}, "p1": {"value": None}},
        "counts": {"trajectories": 3, "errors": {ATTACK: 1, "a/b/c": 2}},
    }
    assert _flat(record) == {
        "eval/base/problems": 3,
        "eval/base/temperature": 1.0,
        "eval/base/m1@t1": 0.4,
        "eval/base/trajectories": 3,
    }


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_weights_in_a_pickle_are_refused_without_being_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ModelError, match=rf"{name}.*could run code.*only safetensors"):
        locate_model(str(tmp_path))


def test_plain_transformers_reads_no_pickle_either(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=8, num_attention_heads=1, num_key_value_heads=1, **shape)
    model = LlamaForCausalLM(config)
    config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        reference_logprobs(str(tmp_path), [(1, 2)], "float32", False)


def test_code_that_comes_with_a_model_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    folder = write_tokenizer(tmp_path / "model")
    code = f"open({str(marker)!r}, 'w')\nclass Trap: pass\n"
    (folder / "trap.py").write_text(code)
    mapped = {"AutoConfig": "trap.Trap", "AutoModelForCausalLM": "trap.Trap"}
    (folder / "config.json").write_text(json.dumps({"model_type": "trap", "auto_map": mapped}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Trap", "auto_map": {"AutoTokenizer": ["trap.Trap", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(str(folder), None, trust_remote_code=False)
    with pytest.raises(ModelError, match="cannot be loaded"):
        reference_logprobs(str(folder), [(1, 2)], "float32", trust_remote_code=False)
    assert not marker.exists()


def test_a_chat_template_has_no_way_out_of_its_sandbox(tmp_path: Path) -> None:
    from rise_ray.rollout.chat import ChatFormat

    escape = "{{ cycler.__init__.__globals__.os.system('exit 1') }}"
    tokenizer = load_tokenizer(str(write_tokenizer(tmp_path, escape)), None, False)
    with pytest.raises(ModelError, match=r"chat template|unsafe"):
        ChatFormat(tokenizer, "m")
