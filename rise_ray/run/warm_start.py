"""The warm start: a model made from nothing if asked for, and demonstrations as examples.

RISE starts from a model that can already try (arXiv 2407.18219, section 5); where there is none,
it is first fine-tuned on the task's demonstrations, by the same trainer.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rise_ray.cluster.deadline import SideProcess
from rise_ray.config.settings import RunConfig, ScratchConfig
from rise_ray.errors import DataError
from rise_ray.mdp import MAIN_TRACK, Example, Message, Place, Problem, Provenance, Span, derive_seed
from rise_ray.models.locate import shared_model
from rise_ray.models.scratch import make_scratch_model
from rise_ray.rollout.chat import ChatFormat
from rise_ray.store.files import Folder
from rise_ray.tasks.base import Task

Chat = tuple[Problem, list[Message]]


def demonstrate(config: RunConfig, task: Task) -> list[Chat]:
    """The warm start's chats, from the training split and the run's seed."""
    assert config.warm_start is not None
    rng = random.Random(derive_seed(config.seed, "demonstrations"))
    problems = task.load(config.split)
    if config.warm_start.problems is not None:
        problems = rng.sample(problems, min(config.warm_start.problems, len(problems)))
    return list(task.demonstrations(problems, config.warm_start.examples, rng))


def initial_model(config: RunConfig, task: Task, chats: Sequence[Chat], folder: Folder) -> str:
    """The model that the warm start trains: the given one, or a new one written to `folder`."""
    scratch = config.model.scratch
    if scratch is None:
        assert config.model.path is not None
        return shared_model(config.model.path)
    texts = [message.content for _, chat in chats for message in chat]
    seed = derive_seed(config.seed, "scratch") % 2**32

    arguments = (scratch, task.vocabulary(), texts, config.model.max_model_len, seed, folder)
    # The driver stays free of torch.
    with closing(SideProcess(write_scratch_model, num_cpus=0.25)) as process:
        process.do("making the first model", config.ray.task_deadline_s, *arguments)
    return folder.uri


def write_scratch_model(
    scratch: ScratchConfig,
    words: list[str] | None,
    texts: list[str],
    max_model_len: int,
    seed: int,
    folder: Folder,
) -> None:
    """`make_scratch_model`, whose files are put into `folder`."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model"
        make_scratch_model(scratch, words, texts, max_model_len, seed, path)
        folder.upload(path)


def demonstration_examples(
    chats: Sequence[Chat], chat: ChatFormat, max_tokens: int
) -> tuple[list[Example], int]:
    """Chats as examples with a loss on every assistant turn, built like rollouts' states.

    And how many chats were longer than `max_tokens` and left out.

    Raises:
        DataError: all of them were, or there are no chats.
    """
    if not chats:
        raise DataError("the task gave no demonstrations to warm-start with")
    examples = [_example(number, *item, chat) for number, item in enumerate(chats)]
    fitting = [example for example in examples if len(example.input_ids) <= max_tokens]
    if not fitting:
        raise DataError(
            f"all {len(examples)} demonstrations are longer than `model.max_model_len` = "
            f"{max_tokens} tokens (the shortest has {min(len(e.input_ids) for e in examples)})"
        )
    return fitting, len(examples) - len(fitting)


def _example(number: int, problem: Problem, messages: list[Message], chat: ChatFormat) -> Example:
    first = next(n for n, message in enumerate(messages) if message.role == "assistant")
    prompt, rest = messages[:first], messages[first:]
    ids = list(chat.prompt_ids(prompt))
    spans = []
    for message in rest:
        if message.role == "assistant":
            response = chat.response_ids(message.content)
            spans.append(Span(len(ids), len(ids) + len(response), 1.0))
            ids += response
        else:
            ids += chat.feedback_ids(prompt, message.content, ids[-1:])
    name = f"demonstration/{number}"
    return Example(
        id=name,
        input_ids=tuple(ids),
        spans=tuple(spans),
        provenance=Provenance(
            source="demonstration",
            rule="demonstration",
            trajectory_id=name,
            problem_id=problem.id,
            place=Place(MAIN_TRACK, 0, "demonstrations"),
            turn=len(spans) - 1,
            candidate=-1,
            reward=None,
            seed=0,
            weight_version=-1,
            verifier_version="",
        ),
    )
