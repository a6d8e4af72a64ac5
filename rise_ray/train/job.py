"""A training as a value: what it depends on, what each rank is sent, what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from rise_ray.config.settings import TrainConfig
from rise_ray.store.examples import ExampleManifest
from rise_ray.train.packing import PackingPlan

STATE_VERSION = "3"
"""Of a state that ranks go on from, and of what its step number counts: another packing plan is
another version."""


@dataclass(frozen=True)
class TrainJob:
    """Everything a training depends on."""

    name: str
    """Unique under `storage`, for example `iteration=1`."""
    config: TrainConfig
    base: str
    """The model to start from: a Hugging Face folder, a URI of one, or a hub name."""
    examples: str
    """The examples folder (`rise_ray.store.examples`)."""
    output: str
    """The checkpoint folder to write; it appears whole or not at all."""
    storage: str
    """Ray Train's own files, with the state that ranks go on from; removed when they go."""
    seed: int
    """Of the packing plan."""
    token_budget: int | None
    """Train on this many tokens (no padding), rounded to whole steps, instead of `epochs`."""
    dtype: Literal["auto", "float32", "bfloat16"]
    """Of the written checkpoint; `auto`: what is trained in."""
    trust_remote_code: bool
    parity_sequences: tuple[tuple[int, ...], ...]
    """Token ids whose log-probabilities under the final weights go into `parity.json`."""
    chat_template: str
    """The text of the template that the model is asked with; the checkpoint has it, too."""
    card: dict[str, str]
    """Facts for the model card."""
    log: Callable[[dict[str, object]], None] | None = None
    """Called on rank 0 about every 2 s with since_step, step, steps, loss, lr, grad_norm,
    skipped_steps (so far) and tokens_per_s. The loss is the mean of the steps after `since_step`,
    up to `step`; a training that goes on from a state calls first with the state's step as
    `since_step`."""


@dataclass(frozen=True)
class TrainResult:
    """What a training did. Losses are means over the first and the last tenth of the steps."""

    steps: int
    tokens: int
    """Trained on, without padding, over all ranks and epochs."""
    computed_tokens: int
    """Passed through the model for it: fewer than `tokens` where prefixes were shared."""
    loss_tokens: int
    seconds: float
    """Of the steps alone, without start-up and checkpoint (of the last start, if it resumed)."""
    start_seconds: float
    """Until the first of these steps."""
    total_seconds: float
    first_loss: float
    last_loss: float
    tokens_per_second: float
    resumed_at: int
    """The step that the last start went on from; 0 if no worker failed."""
    skipped_steps: int
    """Whose gradient was not finite: they changed nothing."""


@dataclass(frozen=True)
class WorkerTask:
    """What each rank is sent."""

    job: TrainJob
    manifest: ExampleManifest
    plan: PackingPlan
    rows_per_pass: int
    """Rows of a rank in one forward pass; the rest of a step's is gradient accumulation."""
    deepspeed: dict[str, Any]
    dtype: Literal["float32", "bfloat16"]
    """Of the written checkpoint."""
    state: str
    """Says what a state is of: ranks go on from one with the same only."""


@dataclass(frozen=True)
class WorkerResult:
    """What rank 0 returns; `error` is set where a repeat could only fail the same way."""

    error: str | None = None
    losses: list[float] = field(default_factory=list)
    resumed_at: int = 0
    skipped_steps: int = 0
    seconds: float = 0.0
    """Of the steps."""
    since_steps: float = 0.0
    """Seconds since the first of these steps began."""
