"""The parity probe: do an engine's weights give the trainer's log-probabilities?

A checkpoint carries `parity.json`: a few token sequences (prompts with a response each, where
training changes a model most) and the log-probability that the trainer gave to every token after
the first. After each sync every engine scores the same sequences. A difference above the
tolerance means that it does not hold those weights, whatever the transfer said. A tolerance wide
enough for bfloat16 would let unchanged weights pass after a small update, so an engine has to have
moved from the old version to the new one as well (`check_moved`).
"""

from __future__ import annotations

import itertools
import json
import math
import uuid
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from rise_ray.cluster.imports import uncollected
from rise_ray.config.settings import ReferenceConfig
from rise_ray.errors import ModelError, SyncError
from rise_ray.models.locate import locate_model
from rise_ray.store.files import Folder

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

PARITY_FILE = "parity.json"
SCHEMA_VERSION = "1"
_MOST_TOKENS = 256  # of a sequence
DEFAULT_TOLERANCE_NATS = {"float32": 0.001, "bfloat16": 0.05}
"""The largest accepted mean difference, by an engine's dtype."""
_LEAST_MOVE = 3.0
"""By how many times an engine's drift from the trainer two versions must differ to be told apart.

Both versions' references have errors of that size. From three times on, an engine with the new
weights has moved by 0.8 of the way or more, and one with the old weights not at all."""
_LEAST_SHARE = 0.5
"""Of the way from the old version to the new: nearer to the new."""


@dataclass(frozen=True, slots=True)
class ParityReference:
    """Token sequences, and log p(token | tokens before it) in nats of all but the first token.

    Raises:
        SyncError: the two do not fit each other, or a log-probability is not a finite number.
    """

    sequences: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        lengths = [len(sequence) - 1 for sequence in self.sequences]
        if not lengths or min(lengths) < 1 or lengths != [len(row) for row in self.logprobs]:
            raise SyncError(
                "parity reference: needs sequences of two tokens or more, and a log-probability "
                f"for each token after the first; got {lengths} expected and "
                f"{[len(row) for row in self.logprobs]} given"
            )
        if not all(math.isfinite(value) for row in self.logprobs for value in row):
            raise SyncError("parity reference: a log-probability is not a finite number")

    def save(self, checkpoint: Folder) -> None:
        """Write it into a checkpoint folder."""
        content = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        checkpoint.write(PARITY_FILE, json.dumps(content, allow_nan=False).encode())

    @classmethod
    def load(cls, checkpoint: Folder) -> ParityReference:
        """Read it from a checkpoint folder.

        Raises:
            SyncError: what is there is no reference.
        """
        text = checkpoint.read(PARITY_FILE)
        try:
            content = json.loads(text)
            if content["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"its schema version is not {SCHEMA_VERSION}")
            return TypeAdapter(cls).validate_python(content)
        except (ValueError, KeyError, TypeError) as error:
            raise SyncError(
                f"{checkpoint.uri}/{PARITY_FILE}: not a parity reference: {error!r}; restore it"
            ) from error


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Absolute differences of log-probabilities, in nats, over the probe's tokens."""

    mean: float
    max: float


@dataclass(frozen=True, slots=True)
class Probed:
    """A weight version's reference, and what an engine that holds it answered to the probe."""

    version: int
    reference: ParityReference
    got: tuple[tuple[float, ...], ...]


def parity_sequences(
    chats: Iterable[tuple[Sequence[int], Sequence[int]]], max_model_len: int, count: int = 8
) -> tuple[tuple[int, ...], ...]:
    """The first `count` different sequences of a prompt's end and its response's beginning.

    `chats` are token ids of prompts and of a response to each, two or more together. The engines
    of `max_model_len` have to be able to generate one token more. Half of a sequence's tokens at
    most are the prompt's: a response is always in it.
    """
    most = min(_MOST_TOKENS, max_model_len - 1)
    cut = ((*prompt[-(most // 2) :], *response)[:most] for prompt, response in chats)
    return tuple(itertools.islice(dict.fromkeys(cut), count))


def drift_record(reports: Collection[ParityReport]) -> dict[str, float]:
    """Drift of some engines as a metric, in nats: the mean of their means, and the largest."""
    return {
        "mean": math.fsum(report.mean for report in reports) / len(reports),
        "max": max(report.max for report in reports),
        "engines": len(reports),
    }


def check_parity(
    reference: ParityReference,
    got: Sequence[Sequence[float]],
    tolerance: float,
    engine_name: str,
    version: int,
) -> ParityReport:
    """Compare the log-probabilities that an engine `got` with the trainer's, in the same order.

    `tolerance` is the largest accepted mean absolute difference, in nats; `version` is the weight
    version that the engine should hold.

    Raises:
        SyncError: the mean difference is above the tolerance, or not a number; it names the
            engine, the version, mean and maximum, and the token that differs most.
    """
    if [len(row) for row in got] != [len(row) for row in reference.logprobs]:
        raise SyncError(f"engine {engine_name}: scored other tokens than the parity probe's")
    expected, found = np.concatenate(reference.logprobs), np.concatenate(got)
    differences = np.abs(found - expected)
    differences[np.isnan(differences)] = np.inf  # NaN would pass any comparison
    mean, worst = float(differences.mean()), int(differences.argmax())
    if mean > tolerance:
        tokens = [
            (row, at) for row, ids in enumerate(reference.sequences) for at in range(1, len(ids))
        ]
        row, position = tokens[worst]
        raise SyncError(
            f"engine {engine_name} does not hold weight version {version}: its log-probabilities "
            f"differ from the trainer's by {mean:.3g} nats in the mean and "
            f"{differences[worst]:.3g} at most (tolerance of the mean: {tolerance:g}); the worst "
            f"is token {reference.sequences[row][position]} at position {position} of probe "
            f"sequence {row}: trainer {expected[worst]:.4f}, engine {found[worst]:.4f}"
        )
    return ParityReport(mean, float(differences[worst]))


def check_moved(before: Probed, now: Probed, engine_name: str) -> None:
    """Refuse an engine that still answers like the version before, whatever the tolerance.

    From version to version the trainer's log-probabilities of a token change by u, the engine's by
    v. In both, what engine and trainer compute differently cancels out. With the new weights v is
    u, with the old ones it is 0: `<u, v> / <u, u>`, the share of the way that the engine has gone,
    has to be 0.5 or more.

    Versions that differ by less than `_LEAST_MOVE` times the engine's drift at the old one (root
    mean squares) answer alike, and are not told apart: as after a step with a tiny learning rate.

    Raises:
        SyncError: the share is too small; or the references have no sequence in common.
    """
    old, new = _by_sequence(before), _by_sequence(now)
    common = [ids for ids in old if ids in new]
    if not common:
        raise SyncError(
            f"the parity references of weight versions {before.version} and {now.version} have no "
            "sequence in common, so an engine that kept the old one would not be found out: they "
            "are not of one run"
        )
    first, second = (np.concatenate([of[ids] for ids in common], axis=1) for of in (old, new))
    trainer_move, engine_move = second - first
    drift = first[1] - first[0]
    expected = trainer_move @ trainer_move
    if expected <= _LEAST_MOVE**2 * (drift @ drift):
        return
    share = trainer_move @ engine_move / expected
    if share < _LEAST_SHARE:
        raise SyncError(
            f"engine {engine_name} does not hold weight version {now.version}: it still answers "
            f"like version {before.version} (it has gone {share:.2f} of the way between the two, "
            f"whose log-probabilities differ by {math.sqrt(expected / len(drift)):.3g} nats)"
        )


def _by_sequence(probed: Probed) -> dict[tuple[int, ...], NDArray[np.float64]]:
    """For each sequence of the probe, [2, tokens]: log-probabilities of trainer and engine."""
    reference = probed.reference
    rows = zip(reference.sequences, reference.logprobs, probed.got, strict=True)
    return {ids: np.array([trainer, engine]) for ids, trainer, engine in rows}


def engine_logprobs(
    engine: LLMEngine, sequences: Sequence[Sequence[int]]
) -> tuple[tuple[float, ...], ...]:
    """Log p of every token after the first, as an idle vLLM engine computes it.

    Raises:
        SyncError: other requests are under way, whose outputs this would swallow.
    """
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input

    if engine.has_unfinished_requests():
        raise SyncError("the parity probe needs an engine without requests under way")
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    requests = {f"parity-{uuid.uuid4().hex}": tokens_input(list(ids)) for ids in sequences}
    for request_id, prompt in requests.items():
        engine.add_request(request_id, prompt, params)
    scored: dict[str, tuple[float, ...]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                positions = zip(
                    output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True
                )
                scored[output.request_id] = tuple(at[token].logprob for token, at in positions)
    return tuple(scored[request_id] for request_id in requests)


def reference_logprobs(
    model_path: str,
    sequences: Sequence[Sequence[int]],
    dtype: str,
    trust_remote_code: bool,
    on_gpus: bool = False,
) -> ParityReference:
    """The reference of a checkpoint, by plain Hugging Face on the CPU or spread over all GPUs.

    Imports torch: in the driver, use `make_reference`.

    Raises:
        ModelError: the model cannot be loaded.
    """
    with uncollected():
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_path,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            device_map="auto" if on_gpus else None,
        ).eval()
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"model {model_path}: cannot be loaded: {error}") from error
    return ParityReference(tuple(map(tuple, sequences)), sequence_logprobs(model, sequences))


def sequence_logprobs(
    model: Any, sequences: Sequence[Sequence[int]]
) -> tuple[tuple[float, ...], ...]:
    """Log-probabilities (nats) of each token after a sequence's first, by a Hugging Face model.

    Under ZeRO-3 every rank has to call this: each forward gathers the weights from all of them.
    """
    import torch

    device = next(model.parameters()).device
    rows = []
    for sequence in sequences:
        ids = torch.tensor([sequence], dtype=torch.int64, device=device)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
        logprobs = torch.log_softmax(logits[0, :-1].float(), dim=-1)
        rows.append(tuple(logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()))
    return tuple(rows)


def make_reference(
    checkpoint: str,
    sequences: Sequence[Sequence[int]],
    dtype: str,
    trust_remote_code: bool,
    deadline_s: float,
    config: ReferenceConfig,
) -> ParityReference:
    """`reference_logprobs` of a folder, URI or hub name, in a process of its own.

    Raises:
        ClusterError: it took longer than `deadline_s`, the wait for its CPU included.
    """
    from rise_ray.cluster.deadline import SideProcess  # Ray: the probe itself has no use for it

    def score() -> ParityReference:
        path = locate_model(checkpoint)
        return reference_logprobs(path, sequences, dtype, trust_remote_code, bool(config.num_gpus))

    with closing(SideProcess(score, **config.model_dump())) as process:
        return process.do(f"the parity reference of {checkpoint}", deadline_s)
