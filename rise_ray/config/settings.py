"""Every setting of a run, typed, with its default and meaning.

`rise_ray.config.loading` reads them from YAML. Imports neither torch nor Ray nor vLLM.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """A group of settings: unknown keys are refused, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus sampling; 1 is off."""
    max_tokens: int = Field(default=512, ge=1)
    """Most new tokens of one response."""


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
    """How trajectories are collected."""

    workers: WorkersConfig = WorkersConfig()
    """The pool."""
    release_during_training: bool = True
    """Stop the workers while training runs, so that it has their CPUs or GPUs."""
    turns: int = Field(default=2, ge=1)
    """Attempts per trajectory (RISE: 2 in the first iterations, up to 5)."""
    window: int | None = Field(default=None, ge=1)
    """Turns a state shows, the current one included; null shows all."""
    stop_on_success: bool = True
    """End a trajectory at its first right answer."""
    candidates: int = Field(default=16, ge=0)
    """Improved responses sampled at every visited state (RISE's N)."""
    sampling: SamplingConfig = SamplingConfig()
    """Of attempts and candidates."""


class NoTeacher(Settings):
    """Self-distillation: the model samples its own candidates."""

    kind: Literal["none"] = "none"


class ReferenceTeacher(Settings):
    """Distillation from the data set's own worked solutions."""

    kind: Literal["reference"]


class OpenAITeacher(Settings):
    """Distillation from an OpenAI-compatible endpoint."""

    kind: Literal["openai"]
    model: str
    """The model's name at the endpoint."""
    base_url: str | None = None
    """The endpoint; null is OpenAI's own."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key, named like a secret (`LLM_API_KEY`). The key
    itself is never configured."""
    temperature: float = Field(default=0.7, ge=0)
    """The paper's 0.7."""
    max_tokens: int = Field(default=512, ge=1)
    """Most new tokens of one answer."""
    concurrency: int = Field(default=16, ge=1)
    """Requests under way at once."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Rate limit; null is none."""
    max_retries: int = Field(default=5, ge=0)
    """Of the `openai` client, with its exponential back-off."""
    deadline_s: float = Field(default=120.0, gt=0)
    """Longest silence of the endpoint in a request. One that drips may take twice as long."""
    token_budget: int = Field(default=10_000_000, ge=1)
    """Prompt and completion tokens of the whole run; the run stops when it is spent."""


class ModelTeacher(Settings):
    """Distillation from another model on a second pool."""

    kind: Literal["model"]
    path: str
    """A Hugging Face folder, hub name or URI."""
    max_model_len: int = Field(default=2048, ge=16)
    """Of the teacher's engine."""
    workers: WorkersConfig = WorkersConfig()
    """The second pool."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.7)
    """The paper's 0.7."""


TeacherConfig = Annotated[
    NoTeacher | ReferenceTeacher | OpenAITeacher | ModelTeacher, Field(discriminator="kind")
]


class VerifyConfig(Settings):
    """The actors that check answers."""

    actors: int = Field(default=1, ge=1)
    """Verifier actors."""
    num_cpus: float = Field(default=0.1, ge=0)
    """Of each actor."""
    processes: int = Field(default=1, ge=1)
    """Child processes of each actor."""
    deadline_s: float = Field(default=5.0, gt=0)
    """Of one answer; the child is killed then and the verdict is `error`."""
    progress_deadline_s: float = Field(default=120.0, gt=0)
    """A verifier that has answers to check and settles none for this long is restarted."""
    memory_mib: int = Field(default=1024, ge=256)
    """Address space of a child process."""
    max_error_share: float = Field(default=0.05, ge=0, le=1)
    """Share of a phase's verdicts that may be `error` before the run stops."""

    @model_validator(mode="after")
    def _ordered(self) -> VerifyConfig:
        if self.progress_deadline_s <= self.deadline_s:
            raise ValueError("`progress_deadline_s` must be greater than `deadline_s`")
        return self


class RelabelConfig(Settings):
    """How stored trajectories become weighted examples (pure; can be run again)."""

    strategy: Literal["self_distill", "distill"] = "self_distill"
    """Where improved responses come from: the model's candidates, or the teacher."""
    states: Literal["all", "last"] = "all"
    """Relabel every visited state (the paper) or a trajectory's last (the released code)."""
    filter: Literal["all", "better", "best", "success", "revision"] = "all"
    """Which responses enter: RISE's four, or `revision` (see `rise_ray.relabel.select`)."""
    wrong_weight: float = Field(default=1.5, ge=0)
    """With `revision`: factor on the weight of a state's one new wrong response."""
    tau: float = Field(default=0.4, gt=0)
    """Temperature of the reward weights, w = exp(reward / tau)."""
    centering: Literal["none", "problem", "state"] = "none"
    """Subtract from the reward nothing, the problem's mean, or the mean of the state's samples."""
    unparseable_reward: float = Field(default=0.0, ge=-1, le=0)
    """Reward of a response without a readable answer (the released code: -1 on GSM8K)."""
    drop_duplicates: bool = True
    """Keep one of several equal responses in the same state."""
    drop_degenerate: bool = True
    """Drop a response with a word more than 150 times or longer than 300 characters."""


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
    batch_tokens: int = Field(default=131_072, ge=1)
    """Tokens of one optimizer step over all ranks (packed rows x row_tokens)."""
    row_tokens: int = Field(default=2048, ge=8)
    """Length of a packed row; an example longer than this is an error."""
    rows_per_pass: int = Field(default=1, ge=1)
    """Packed rows in one forward pass of a rank; the rest is gradient accumulation."""
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
    """Seconds between the states that restarted workers go on from."""
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


class EvaluationConfig(Settings):
    """Held-out measurement of the base and of every iteration."""

    split: str = "test"
    """Choose settings on `dev`; report `test`."""
    problems: int | None = Field(default=None, ge=1)
    """The first so many problems of the split; null: all."""
    samples: int = Field(default=1, ge=1)
    """Independent repetitions on each problem."""
    turns: int = Field(default=5, ge=1)
    """Attempts of a sequential run, never stopped (m1@tK)."""
    parallel: int = Field(default=5, ge=1)
    """Independent first answers (mK@t1, pass@K)."""
    window: int | None = Field(default=None, ge=1)
    """Turns a state shows, the current one included; null shows all."""
    sampling: SamplingConfig = SamplingConfig()
    """Of both."""
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples of the 95% intervals."""


class ControlConfig(Settings):
    """Single-turn rejection-sampling fine-tuning at the same budget, as a control."""

    enabled: bool = False
    """Train and evaluate it beside RISE: same base, same number of sampled responses and of
    trained tokens in every iteration, one random right answer per problem."""


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
    iterations: int = Field(default=2, ge=0)
    """RISE iterations; 0 only warms up and evaluates."""
    problems: int | None = Field(default=None, ge=1)
    """Training problems of each iteration, drawn without repeats; null: all."""
    split: str = "train"
    """Split that trajectories are collected on."""
    start_from: Literal["base", "last"] = "base"
    """Each iteration fine-tunes the base (warm-started) model or the last iteration's."""
    data: Literal["fresh", "pooled"] = "pooled"
    """Each iteration trains on its own trajectories or on all so far."""
    rollout: RolloutConfig = RolloutConfig()
    teacher: TeacherConfig = NoTeacher()
    verify: VerifyConfig = VerifyConfig()
    relabel: RelabelConfig = RelabelConfig()
    train: TrainConfig = TrainConfig()
    sync: SyncConfig = SyncConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    control: ControlConfig = ControlConfig()
    wandb: WandbConfig | None = None
    """Track the run in W&B; null: only metrics.jsonl."""
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.model.scratch and not self.warm_start:
            raise ValueError("`model.scratch` needs `warm_start`")
        if self.relabel.strategy == "distill" and self.teacher.kind == "none":
            raise ValueError("`relabel.strategy: distill` needs a `teacher`")
        if self.relabel.strategy == "self_distill" and self.teacher.kind != "none":
            raise ValueError("a `teacher` is given, but `relabel.strategy` is `self_distill`")
        if self.relabel.strategy == "self_distill" and not self.rollout.candidates:
            raise ValueError("`relabel.strategy: self_distill` needs `rollout.candidates` >= 1")
        if self.relabel.filter == "revision" and self.relabel.strategy != "self_distill":
            raise ValueError("`relabel.filter: revision` needs `relabel.strategy: self_distill`")
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
