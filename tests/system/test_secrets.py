"""A run that fails, told with `--debug`, at an endpoint that repeats the key: nobody else does.

Meanwhile all of its Ray's processes listen on the loopback interface only.

A run that ends well is looked through in `test_submitted_run.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.system.feedback.fake_endpoint import FakeEndpoint, serving
from tests.system.miniature import JOB, REPOSITORY, SETTINGS
from tests.system.planted import SECRETS, holders_of_secrets
from tests.system.processes import is_loopback, listening

SMALL = ["iterations=1", "controls=[]", "problems=12", "evaluation.problems=4"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_failed_run_in_debug_leaves_none_though_the_endpoint_repeats_it(tmp_path: Path) -> None:
    # Ray's sockets lie in here, and their paths may have 107 characters.
    logs = Path(tempfile.mkdtemp(prefix="ray-"))
    with serving(FakeEndpoint(lambda messages: "", refusals=[401] * 100)) as endpoint:
        teacher = f"{{kind: openai, model: fake, base_url: '{endpoint.base_url}'}}"
        recipe = f"recipe={{name: rise, turns: 2, teacher: {teacher}}}"
        settings = [*SETTINGS, *SMALL, recipe, "wandb={mode: offline}", f"storage={tmp_path}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "rise_ray.cli.main", "run", str(JOB), *settings, "--debug"],
            cwd=REPOSITORY,
            env={**os.environ, **SECRETS, "RAY_TMPDIR": str(logs)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with listening(process.pid) as sockets:
            said, _ = process.communicate()
        assert endpoint.keys == {f"Bearer {SECRETS['OPENAI_API_KEY']}"}
    assert process.returncode == 1
    assert "Traceback" in said
    assert "Incorrect API key provided: Bearer ***" in said
    assert holders_of_secrets(tmp_path, logs, output=said) == []
    assert {"gcs_server", "raylet"} <= {name for name, _ in sockets}
    assert {(name, ip) for name, ip in sockets if not is_loopback(ip)} == set()
    shutil.rmtree(logs)
