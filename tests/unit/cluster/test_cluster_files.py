"""The files that a user submits or launches agree with Ray's schema, the locks and each other."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from rise_ray.cluster.connection import required_resources
from rise_ray.cluster.stop import DEADLINE_S
from rise_ray.config.loading import load_config
from rise_ray.config.settings import RunConfig

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
GPU_JOBS = [ROOT / "jobs" / name for name in ("gsm8k_8b.yaml", "math_8b.yaml")]
IMAGE_ROOT = "/opt/rise-ray"


@pytest.fixture(scope="module")
def aws() -> dict[str, Any]:
    return dict(yaml.safe_load((CLUSTER / "aws.yaml").read_text()))


@pytest.fixture(scope="module")
def ray_job() -> dict[str, Any]:
    return _kuberay("RayJob")


def _kuberay(kind: str) -> dict[str, Any]:
    """The one document of a kind in the KubeRay file."""
    documents = yaml.safe_load_all((CLUSTER / "kuberay-rayjob.yaml").read_text())
    (document,) = (dict(document) for document in documents if document["kind"] == kind)
    return document


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_loads_says_what_it_is_for_and_how_to_run_it(path: Path) -> None:
    load_config(path)
    comment = re.match(r"(#.*\n)+", path.read_text())
    assert comment is not None
    assert f"jobs/{path.name}" in comment[0] or "make quickstart" in comment[0]
    assert f"`{path.name}`" in (ROOT / "jobs" / "README.md").read_text()


def test_every_job_has_a_run_folder_of_its_own() -> None:
    names = [load_config(path).name for path in JOBS]
    assert len(set(names)) == len(names)


def test_the_plain_quick_start_differs_from_the_quick_start_in_its_recipe_only() -> None:
    strong, plain = (load_config(ROOT / "jobs" / f"quickstart{s}.yaml") for s in ("", "_plain"))
    differ = {key for key in _differences(strong, plain) if not key.startswith("recipe.")}
    assert differ == {"name", "problems", "train.epochs", "evaluation.window"}
    assert (plain.iterations, plain.problems, plain.train.epochs) == (2, 700, 3)
    recipe = plain.recipe.model_dump()
    assert recipe["window"] == 2
    rule = {"name": "improved", "filter": "success", "tau": 0.5, "centering": "state"}
    assert rule.items() <= recipe["rule"].items()


@pytest.mark.parametrize("path", GPU_JOBS, ids=lambda path: path.name)
def test_the_8b_jobs_take_turns_on_8_gpus_with_the_published_settings(path: Path) -> None:
    config = load_config(path)
    assert required_resources(config, None)["GPU"] == 8
    assert config.rollout.release_during_training
    assert config.rollout.workers.max_workers * config.rollout.workers.num_gpus == 8
    train = config.train
    assert (train.lr, train.min_lr_ratio, train.warmup_ratio) == (1e-5, 0.0, 0.04)
    assert (train.batch_tokens, train.weight_decay) == (64 * 2048, 0.0)
    assert (train.precision, train.gradient_checkpointing) == ("bfloat16", True)
    assert config.recipe.model_dump()["candidates"] == 16
    assert (config.evaluation.turns, config.evaluation.window) == (5, 2)
    # Two turns of a window, their feedback and a prompt of a quarter of the context fit it.
    longest = max(config.rollout.sampling.max_tokens, config.evaluation.sampling.max_tokens)
    assert 2 * longest + config.model.max_model_len // 4 < config.model.max_model_len


def test_aws_is_valid_by_rays_own_schema(aws: dict[str, Any]) -> None:
    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(aws, json.loads(schema.read_text()))
    assert aws["head_node_type"] in aws["available_node_types"]


def test_aws_mounts_files_that_exist_and_all_that_its_setup_installs(aws: dict[str, Any]) -> None:
    mounts = aws["file_mounts"]
    missing = [source for source in mounts.values() if not (ROOT / source).exists()]
    assert not missing
    home = f"/home/{aws['auth']['ssh_user']}/rise-ray"
    assert mounts == {f"{home}/{source}": source for source in mounts.values()}
    for lock in re.findall(r"-r ~/rise-ray/(\S+)", "\n".join(aws["setup_commands"])):
        assert any(Path(lock).is_relative_to(source) for source in mounts.values()), lock


def test_aws_runs_whole_shell_commands(aws: dict[str, Any]) -> None:
    commands = [line for key, lines in aws.items() if key.endswith("commands") for line in lines]
    assert len(commands) > 5
    for command in commands:  # a `#` in plain YAML text would cut one off in the middle
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_aws_nodes_cost_nothing_until_a_job_asks_for_them(aws: dict[str, Any]) -> None:
    workers = {n: t for n, t in aws["available_node_types"].items() if n != aws["head_node_type"]}
    assert workers
    assert all(node["min_workers"] == 0 for node in workers.values())
    assert aws["available_node_types"]["head"]["resources"]["CPU"] == 0


def test_no_dashboard_listens_beyond_the_head(aws: dict[str, Any]) -> None:
    assert not any("dashboard-host" in line for line in aws["head_start_ray_commands"])


def test_only_the_runs_pods_and_the_operator_reach_the_ray_jobs_pods(
    ray_job: dict[str, Any],
) -> None:
    policy = _kuberay("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    selected = policy["podSelector"]["matchLabels"]
    cluster = ray_job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert selected.items() <= group["template"]["metadata"]["labels"].items()
    among, operator = policy["ingress"]
    assert among == {"from": [{"podSelector": {"matchLabels": selected}}]}
    (peer,) = operator["from"]
    label = {"app.kubernetes.io/component": "kuberay-operator"}
    assert peer["podSelector"]["matchLabels"] == label
    assert [port["port"] for port in operator["ports"]] == [8265]
    # By default a pod of its own submits, which the policy would keep out.
    assert ray_job["spec"]["submissionMode"] == "HTTPMode"


def test_aws_secrets_reach_the_shell_that_starts_ray_and_no_file(tmp_path: Path) -> None:
    lines = re.findall(r"^  # (- grep .*)$", (CLUSTER / "aws.yaml").read_text(), re.MULTILINE)
    (tmp_path / "aws").write_text('#!/bin/sh\necho "$@" | grep -o "rise-ray/[A-Z_]*"\n')
    (tmp_path / "aws").chmod(0o755)
    shell = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    (tmp_path / ".bashrc").touch()
    for command in yaml.safe_load("\n".join(lines)) * 2:  # a second `ray up` adds nothing
        subprocess.run(["bash", "-c", command], env=shell, check=True)
    bashrc = (tmp_path / ".bashrc").read_text()
    assert bashrc.count("export") == bashrc.count("=$(aws ") == 2
    show = "source ~/.bashrc; echo $HF_TOKEN $WANDB_API_KEY"
    shown = subprocess.run(["bash", "-c", show], env=shell, check=True, stdout=subprocess.PIPE)
    assert shown.stdout == b"rise-ray/HF_TOKEN rise-ray/WANDB_API_KEY\n"


def test_a_stopped_job_has_the_time_that_a_graceful_stop_takes(
    aws: dict[str, Any], ray_job: dict[str, Any]
) -> None:
    variable = "RAY_JOB_STOP_WAIT_TIME_S"
    (at_aws,) = re.findall(rf"{variable}=(\d+) ray start", aws["head_start_ray_commands"][-1])
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    (at_kuberay,) = [entry["value"] for entry in head["env"] if entry["name"] == variable]
    assert min(int(at_aws), int(at_kuberay)) > DEADLINE_S


def test_the_ray_job_starts_a_job_of_the_image_with_valid_overrides(
    ray_job: dict[str, Any],
) -> None:
    assert (ray_job["apiVersion"], ray_job["kind"]) == ("ray.io/v1", "RayJob")
    command, verb, path, *rest = shlex.split(ray_job["spec"]["entrypoint"])
    assert (command, verb) == ("rise-ray", "run")
    job = ROOT / Path(path).relative_to(IMAGE_ROOT)
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert f"WORKDIR {IMAGE_ROOT}" in dockerfile
    assert "COPY jobs jobs" in dockerfile
    config = load_config(job, [word for word in rest if not word.startswith("--")])
    assert config.storage.startswith("s3://")
    assert config.ray.autoscaling
    # A retry starts a new cluster: without --resume it would refuse the half-done run.
    assert ray_job["spec"]["backoffLimit"] == 0 or "--resume" in rest


def test_the_ray_jobs_gpu_pods_can_hold_what_its_run_asks_for(ray_job: dict[str, Any]) -> None:
    spec = ray_job["spec"]
    cluster = spec["rayClusterSpec"]
    assert spec["shutdownAfterJobFinishes"]
    assert cluster["enableInTreeAutoscaling"]
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"]) == (0, 0)
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    limits = container["resources"]["limits"]
    needed = required_resources(load_config(ROOT / "jobs" / "gsm8k_8b.yaml"), None)
    assert group["maxReplicas"] * int(limits["nvidia.com/gpu"]) >= needed["GPU"]
    assert group["maxReplicas"] * int(limits["cpu"]) >= needed["CPU"]


def test_the_ray_job_runs_the_image_and_the_ray_that_are_pinned(ray_job: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray_version,) = (
        requirement.partition("==")[2]
        for requirement in project["dependencies"]
        if requirement.startswith("ray[")
    )
    cluster = ray_job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray_version == _pins(ROOT / "requirements" / "gpu.lock")["ray"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {c["image"] for g in groups for c in g["template"]["spec"]["containers"]}
    assert images == {f"YOUR-REGISTRY/rise-ray:{project['version']}"}


def test_the_s3_lock_fits_the_gpu_lock() -> None:
    ours, gpu = _pins(CLUSTER / "s3.lock"), _pins(ROOT / "requirements" / "gpu.lock")
    assert ours["s3fs"] == gpu["fsspec"]  # s3fs takes the fsspec of its own release only
    moved = {name for name in ours.keys() & gpu.keys() if ours[name] != gpu[name]}
    assert moved == {"python-dateutil"}


def test_the_image_copies_files_that_exist_and_does_not_run_as_root() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    sources = [
        word
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    assert sources
    assert not [source for source in sources if not (ROOT / source).exists()]
    assert [line for line in lines if line.startswith("USER ")][-1] != "USER root"


def _pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", lock.read_text(), re.MULTILINE))


def _differences(one: RunConfig, other: RunConfig) -> set[str]:
    ours, theirs = _flat(one.model_dump()), _flat(other.model_dump())
    return {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
