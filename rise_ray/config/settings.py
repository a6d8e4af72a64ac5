"""Every setting of a run, typed, with its default and meaning.

`rise_ray.config.loading` reads them from YAML. Imports neither torch nor Ray nor vLLM.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rise_ray.config.base import Settings
from rise_ray.config.recipe import AnyRecipe, OwnRecipe, load_own_recipe
from rise_ray.mdp import MAIN_TRACK


class TaskConfig(Settings):
    """What is solved."""

    name: str
    """`countdown`, `gsm8k`, `math`, or the import path of your own (`package.module:Class`)."""
    options: dict[str, Any] = {}
    """Keyword arguments of the task's class, for example `path` (hub name or local JSONL)."""


class ScratchConfig(Settings):
    """A model made from nothing, for a warm start."""

    architecture: dict[str, Any]
    """A Hugging Face model config as a mapping; `model_type` is required, `vocab_size` is set."""
    tokenizer: Literal["word", "bpe"] = "word"
    """`word`: the task's closed vocabulary; `bpe`: byte-level BPE trained on demonstrations."""
    vocab_size: int = Field(default=4096, ge=300)
    """Size of a `bpe` vocabulary (the `word` vocabulary is the task's)."""


class ModelConfig(Settings):
    """The model that learns."""

    path: str | None = None
    """A Hugging Face folder, hub name, URI, or `package:countdown-base` for the packaged model."""
    scratch: ScratchConfig | None = None
    """Make the model instead of loading it (needs `warm_start`). Exactly one of the two."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of rollouts and checkpoints; `auto`: float32 on CPU, bfloat16 on GPU."""
    max_model_len: int = Field(default=2048, ge=16)
    """Longest state plus response, in tokens."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you trust its author."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("give exactly one of `path` and `scratch`")
        return self


class SamplingConfig(Settings):
    """How responses are sampled."""

    temperature: float = Field(default=1.0, ge=0.0)
    """0 is greedy."""
    later_temperature: float | None = Field(default=None, ge=0.0)
    """In states after the first; null: `temperature`."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus sampling; 1 is off."""
    max_tokens: int = Field(default=512, ge=1)
    """Most new tokens of one response."""

    def at(self, turn: int) -> SamplingConfig:
        """How responses to the state of `turn` (0 is the first) are sampled."""
        if turn == 0 or self.later_temperature is None:
            return self
        return self.model_copy(update={"temperature": self.later_temperature})


class WorkersConfig(Settings):
    """Ray actors that host vLLM."""

    min_workers: int = Field(default=1, ge=1)
    """Workers without which a rollout phase does not start."""
    max_workers: int = Field(default=1, ge=1)
    """Workers asked of Ray (and so of its autoscaler) while there are episodes to roll."""
    num_cpus: float = Field(default=1.0, ge=0)
    """Of each worker. Ray sets its OpenMP threads from it."""
    num_gpus: float = Field(default=0.0, ge=0)
    """Of each worker; must cover `vllm.tensor_parallel_size`."""
    resources: dict[str, float] = {}
    """Custom Ray resources of each worker, for example to pick a node type."""
    episodes_in_flight: int = Field(default=64, ge=1)
    """Episodes that one worker runs at once."""
    vllm: dict[str, Any] = {}
    """Passed to vLLM's `EngineArgs` as they are (`tensor_parallel_size`, `enforce_eager`, ...)."""
    env: dict[str, str] = {}
    """Environment variables of each worker, set before vLLM is imported. Secrets are refused:
    they come from the nodes' own environment."""
    start_deadline_s: float = Field(default=600.0, gt=0)
    """Longest wait for `min_workers` workers with a loaded engine."""
    progress_deadline_s: float = Field(default=300.0, gt=0)
    """A worker that answers nothing for this long is killed and replaced."""
    max_attempts: int = Field(default=3, ge=1)
    """Workers an episode may be lost with before it is set aside as `error`."""
    max_error_share: float = Field(default=0.05, ge=0, le=1)
    """Share of a phase's episodes that may end as `error` before the run stops."""

    @model_validator(mode="after")
    def _ordered(self) -> WorkersConfig:
        if self.min_workers > self.max_workers:
            raise ValueError("`min_workers` is greater than `max_workers`")
        return self


class RolloutConfig(Settings):
    """How episodes are rolled; which ones, the recipe says."""

    workers: WorkersConfig = WorkersConfig()
    """The pool."""
    release_during_training: bool = True
    """Stop the workers while training runs, so that it has their CPUs or GPUs."""
    sampling: SamplingConfig = SamplingConfig()
    """Of every response."""


WALL_SHARE = 4.0
"""The deadline of a check is CPU time, which a busy machine does not take; by the clock it has so
many times as long."""


class VerifyConfig(Settings):
    """The actors that check answers."""

    actors: int = Field(default=1, ge=1)
    """Verifier actors."""
    num_cpus: float = Field(default=0.1, ge=0)
    """Of each actor."""
    processes: int = Field(default=1, ge=1)
    """Child processes of each actor that check at once; one more is for when a check lasts."""
    deadline_s: float = Field(default=5.0, gt=0)
    """CPU time for one answer, and four times as long by the clock: the child is killed then, and
    the verdict is `error`."""
    progress_deadline_s: float = Field(default=120.0, gt=0)
    """A verifier that has answers to check and settles none for this long is restarted."""
    memory_mib: int = Field(default=1024, ge=256)
    """Address space of a child process."""
    max_error_share: float = Field(default=0.05, ge=0, le=1)
    """Share of a phase's verdicts that may be `error` before the run stops."""

    @model_validator(mode="after")
    def _ordered(self) -> VerifyConfig:
        if self.progress_deadline_s <= WALL_SHARE * self.deadline_s:
            raise ValueError(
                f"`progress_deadline_s` must be greater than {WALL_SHARE:g} times `deadline_s`"
            )
        return self


class TrainConfig(Settings):
    """Reward-weighted fine-tuning with DeepSpeed ZeRO-3 under Ray Train."""

    workers: int = Field(default=2, ge=1)
    """Ray Train workers (ranks)."""
    num_cpus: float = Field(default=1.0, ge=0)
    """Of each worker."""
    num_gpus: float = Field(default=0.0, ge=0)
    """Of each worker: 0 or 1."""
    resources: dict[str, float] = {}
    """Custom Ray resources of each worker."""
    release_during_rollouts: bool = True
    """Stop the workers between trainings, so that rollouts have their CPUs or GPUs."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data; a fraction stops in the middle of one."""
    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Where the cosine schedule ends, as a share of `lr`."""
    warmup_ratio: float = Field(default=0.04, ge=0, lt=1)
    """Share of the steps that warm up linearly."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    max_skipped_steps: int = Field(default=3, ge=0)
    """Steps in a row whose gradient is not finite; each is skipped, and one more ends the run."""
    batch_tokens: int = Field(default=131_072, ge=1)
    """Tokens of one optimizer step over all ranks (packed rows x row_tokens)."""
    row_tokens: int = Field(default=2048, ge=8)
    """Length of a packed row; an example longer than this is an error."""
    rows_per_pass: int = Field(default=1, ge=1)
    """Packed rows in one forward pass of a rank; the rest is gradient accumulation."""
    shared_prefixes: bool = True
    """Compute the tokens that a trajectory's examples begin with alike once for all of them, where
    that saves any and each layer attends to all tokens. The result is the same; longer rows share
    more. A step then has fewer or shorter rows, as many as train on `batch_tokens`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on GPU, float32 on CPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    attn_implementation: Literal["sdpa", "eager", "flex_attention"] = "sdpa"
    """Transformers' attention; each builds the block-causal mask from position ids."""
    deepspeed: dict[str, Any] = {}
    """Merged over the DeepSpeed config that rise-ray makes; ZeRO stage 3 stays."""
    deepspeed_file: str | None = None
    """A DeepSpeed JSON file, merged before `deepspeed`."""
    max_failures: int = Field(default=2, ge=0)
    """Restarts after a worker died or hung."""
    checkpoint_every_s: float = Field(default=300.0, ge=0)
    """Seconds between the states that restarted workers go on from, longer where to save one takes
    more than a twentieth of that; 0: as often as losses are looked at."""
    start_deadline_s: float = Field(default=86_400.0, gt=0)
    """Longest wait for the workers' resources."""
    step_deadline_s: float = Field(default=1800.0, gt=0)
    """Longest wait of a worker for the others, in a step or a checkpoint, or for its rows."""
    progress_deadline_s: float = Field(default=3600.0, gt=0)
    """Workers that have their resources and give no sign of life for this long are started again:
    while they load the model, in a step, a checkpoint, or the writing of the weights."""

    @model_validator(mode="after")
    def _whole_rows(self) -> TrainConfig:
        rows, rest = divmod(self.batch_tokens, self.row_tokens)
        if rest or rows % (self.workers * self.rows_per_pass):
            raise ValueError(
                "`batch_tokens` must be a multiple of `row_tokens` x `workers` x `rows_per_pass`"
            )
        return self


class WarmStartConfig(Settings):
    """Supervised fine-tuning on the task's demonstrations before the first iteration."""

    examples: int = Field(ge=1)
    """Demonstration chats."""
    problems: int | None = Field(default=None, ge=1)
    """Training problems they are made of; null: all."""
    train: TrainConfig = TrainConfig()
    """Its own training settings."""


class ReferenceConfig(Settings):
    """The process that computes a given model's probe reference, once, by plain Hugging Face."""

    num_cpus: float = Field(default=1.0, ge=1)
    """Also its threads. It holds the whole model in memory."""
    num_gpus: int = Field(default=0, ge=0)
    """Over which the model is spread, before rollout workers start (a teacher's: beside the
    students' least); 0: on the CPU, beside the workers."""
    resources: dict[str, float] = {}
    """Custom Ray resources, for example to pick a node type."""


class SyncConfig(Settings):
    """How new weights reach running engines."""

    backend: Literal["object_store", "nccl", "ipc"] = "object_store"
    """`object_store` is rise-ray's (CPU and GPU); `nccl` and `ipc` are vLLM's own (GPU)."""
    bucket_bytes: int = Field(default=256 * 2**20, ge=2**12)
    """Most bytes of tensors sent at once."""
    deadline_s: float = Field(default=600.0, gt=0)
    """Of one sync of one engine."""
    parity_tolerance: float | None = Field(default=None, gt=0)
    """Largest mean difference of log-probabilities between trainer and engine, in nats;
    null: 0.001 in float32, 0.05 in bfloat16."""
    reference: ReferenceConfig = ReferenceConfig()
    """A large model (70B) needs more than the defaults: GPUs, or many CPUs."""


class CertaintyQuestion(Settings):
    """What a model is asked about an answer of its own; it answers with one of two words."""

    text: str = 'Did you answer this correctly? Reply "yes" or "no".'
    """The user's message after the answer."""
    right: str = "yes"
    """What is to be said of a right answer, one token."""
    wrong: str = "no"
    """What is to be said of a wrong one."""

    @property
    def words(self) -> tuple[str, str]:
        return self.right, self.wrong


class EvaluationConfig(Settings):
    """Held-out measurement of the base and of every iteration."""

    split: str = "test"
    """Choose settings on `dev`; report `test`."""
    problems: int | None = Field(default=None, ge=1)
    """So many problems of the split, drawn, the same in every run; null: all."""
    samples: int = Field(default=1, ge=1)
    """Independent repetitions on each problem."""
    turns: int = Field(default=5, ge=1)
    """Attempts of a sequential run, never stopped (m1@tK)."""
    parallel: int = Field(default=5, ge=1)
    """Independent first answers (mK@t1, pass@K)."""
    window: int | None = Field(default=None, ge=1)
    """Turns a state shows, the current one included; null shows all."""
    feedback: str = "constant"
    """What is said between turns: `constant` or `neutral` (the task's sentence), `oracle` (whether
    the answer was right: such figures are no longer the model's own), or one of the task's own."""
    sampling: SamplingConfig = SamplingConfig()
    """Of both."""
    question: CertaintyQuestion | None = None
    """Asked about every answer, which is then known with the model's own P(right): `sure`. Null:
    nothing is asked."""
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples of the 95% intervals."""


class WandbConfig(Settings):
    """Weights & Biases."""

    project: str = "rise-ray"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; null: your default."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online with an API key in the environment or ~/.netrc, else offline."""
    tags: list[str] = []
    """Of the run."""


class RayConfig(Settings):
    """The Ray cluster."""

    address: str | None = None
    """Null: the cluster of this Ray job or of `RAY_ADDRESS`, else a local instance of its own.
    `local`: always an instance of its own; else the address of a running cluster (`auto`)."""
    autoscaling: bool = False
    """The cluster adds nodes on demand: what it lacks at the start is not an error yet."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of an own local instance; null: what the machine has."""
    object_store_mib: int | None = Field(default=None, ge=80)
    """Object store of an own local instance; null: Ray's default."""
    task_deadline_s: float = Field(default=7200.0, gt=0)
    """Longest wait for a task of the run itself, from its submission to its end: relabeling, a
    parity reference, the making of a model from scratch, a write of the measurements."""


class RunConfig(Settings):
    """A whole run."""

    schema_version: Literal["1"] = "1"
    """Of this form of settings; a config without it is taken to be of this version."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the run folder, of W&B's run, and part of every trajectory id."""
    storage: str = "runs"
    """The folder or URI (`s3://`, `gs://`) that holds the run folder `<storage>/<name>`."""
    seed: int = Field(default=0, ge=0)
    """Every sample, shuffle and split derives from it."""
    task: TaskConfig
    model: ModelConfig
    warm_start: WarmStartConfig | None = None
    """Fine-tune the model on demonstrations first; null: start from the model as it is."""
    recipe: OwnRecipe = Field(default_factory=lambda: load_own_recipe({}))
    """The method (default: `rise`), by its name in `rise_ray/recipes/`, with its own settings."""
    controls: tuple[AnyRecipe, ...] = ()
    """Recipes on tracks of their own, with the same problems and as many sampled tokens."""
    iterations: int = Field(default=2, ge=0)
    """Of the recipe and of each control; 0 only warms up and evaluates."""
    problems: int | None = Field(default=None, ge=1)
    """Training problems of each iteration, drawn without repeats; null: all."""
    split: str = "train"
    """Split that trajectories are collected on."""
    start_from: Literal["base", "last"] = "base"
    """Each iteration fine-tunes the base (warm-started) model or the last iteration's."""
    data: Literal["fresh", "pooled"] = "pooled"
    """Each iteration trains on its own trajectories or on all so far."""
    rollout: RolloutConfig = RolloutConfig()
    verify: VerifyConfig = VerifyConfig()
    train: TrainConfig = TrainConfig()
    sync: SyncConfig = SyncConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    wandb: WandbConfig | None = None
    """Track the run in W&B; null: only metrics.jsonl."""
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.model.scratch and not self.warm_start:
            raise ValueError("`model.scratch` needs `warm_start`")
        for control in self.controls:
            if control.track is None and ":" in control.name:
                raise ValueError(f"`controls`: `{control.name}` needs a `track`, its stages' name")
        tracks = [MAIN_TRACK, *(control.track or control.name for control in self.controls)]
        if self.recipe.track is not None:
            raise ValueError(f"`recipe.track`: the run's own track is `{MAIN_TRACK}`")
        if len(set(tracks)) < len(tracks):
            raise ValueError("`controls`: two tracks have the same name; give one a `track`")
        trains = bool(self.iterations or self.warm_start)
        if trains and self.split == self.evaluation.split:
            raise ValueError(
                f"`split` and `evaluation.split` are both `{self.split}`: a model is not measured "
                "on what it was trained on"
            )
        if self.sync.backend != "object_store" and not self.rollout.workers.num_gpus:
            raise ValueError(
                f"`sync.backend: {self.sync.backend}` needs `rollout.workers.num_gpus`"
            )
        vllm = self.rollout.workers.vllm
        if self.sync.backend == "ipc" and {
            vllm.get("tensor_parallel_size", 1),
            vllm.get("pipeline_parallel_size", 1),
        } != {1}:
            raise ValueError(
                "`sync.backend: ipc` reaches engines of one process on one GPU: set "
                "`tensor_parallel_size` and `pipeline_parallel_size` in `rollout.workers.vllm` to 1"
            )
        for key, train in (("train", self.train), ("warm_start.train", self.warm_start)):
            settings = train.train if isinstance(train, WarmStartConfig) else train
            if settings and settings.row_tokens < self.model.max_model_len:
                raise ValueError(
                    f"`{key}.row_tokens` must be at least `model.max_model_len`: "
                    "an example must fit a packed row"
                )
        return self
