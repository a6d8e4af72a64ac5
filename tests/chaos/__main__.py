"""Kill the parts of a real run at random moments, and count what it costs.

    python -m tests.chaos jobs/quickstart.yaml --kills 12 --seed 0 name=chaos iterations=1

Starts a Ray cluster of several nodes on this machine, runs `rise-ray run CONFIG --resume` on it,
and kills rollout workers, verifiers, their child processes, training workers, a whole node and the
driver, by a plan that depends only on the config, N and the seed. In the end it compares the
store with the config, checks every verdict again, and looks for what was left behind. Exit status
0: nothing was lost, doubled, ended as error, false or left over, no check failed but the one that
a killed child process was at, every kill was done and the run finished.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import rich.console

from rise_ray.cli.arguments import ArgumentParser
from rise_ray.config.loading import load_config
from rise_ray.config.settings import RunConfig
from rise_ray.errors import ConfigError, RiseError, StoreError
from rise_ray.run.journal import Run, run_folder
from rise_ray.text import terminal_text
from tests.chaos.attack import Attack
from tests.chaos.audit import audit, planned_episodes
from tests.chaos.leftovers import left_in_cluster, left_on_machine
from tests.chaos.nodes import Nodes
from tests.chaos.plan import plan_kills
from tests.chaos.processes import adopt_orphans, shared_memory_files
from tests.chaos.report import Result, broken, table

_LAST_LINES = 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    started = time.monotonic()
    # As Ctrl-C does: the `with` blocks end what was started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))

    def say(text: str) -> None:
        print(terminal_text(f"{time.monotonic() - started:6.1f} s  {text}"), flush=True)

    try:
        config = load_config(options.config, options.overrides)
        result = _attack(config, options, say)
    except RiseError as error:
        print(terminal_text(f"chaos: error: {error}"), file=sys.stderr)
        return error.exit_code
    rich.console.Console(highlight=False).print(table(result))
    found = broken(result)
    for sentence in found:
        print(terminal_text(f"BROKEN: {sentence}"))
    return 1 if found else 0


def _attack(config: RunConfig, options: argparse.Namespace, say: Callable[[str], None]) -> Result:
    kills = plan_kills(config, options.kills, options.seed)
    nodes = Nodes(config, options.nodes)
    planned = planned_episodes(config)
    storage = _require_new(config)
    log = storage / f"{config.name}-chaos.log"
    command = ["run", options.config, *options.overrides, "--resume"]
    adopt_orphans()
    shared_memory = shared_memory_files()
    with nodes:
        say(f"{options.nodes} nodes and a head at {nodes.address}; the drivers write to {log}")
        attack = Attack(command, config, planned, kills, nodes, log, options.deadline, say)
        outcome = attack.run()
        if outcome.status == 0:
            say("the run has finished")
        else:
            say(f"the run did not finish; its last lines:\n{_last_lines(log)}")
        leftovers = left_in_cluster(nodes.environment)
    leftovers += left_on_machine(shared_memory)
    run = Run(config, resume=True, create=False)
    requeued = sum(
        stage["requeued_episodes"] for key, stage in run.stages.items() if key in planned
    )
    result = Result(outcome, audit(run, planned), requeued, leftovers)
    if broken(result):
        say(f"the nodes' logs are kept in {nodes.folder}")
    else:
        nodes.remove_files()
    return result


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])


def _require_new(config: RunConfig) -> Path:
    """The folder for the run folder. What is counted must have happened here."""
    folder = run_folder(config)
    if not folder.is_local:
        raise ConfigError(f"`storage` = {config.storage}: chaos watches a local folder")
    if folder.exists():
        raise StoreError(f"{folder.uri}: is there already; choose another `name`")
    storage = Path(folder.path).parent
    storage.mkdir(parents=True, exist_ok=True)
    return storage


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings to change")
    parser.add_argument("--kills", type=int, required=True, help="how many")
    parser.add_argument("--seed", type=int, required=True, help="of the plan")
    parser.add_argument("--nodes", type=int, default=2, help="worker nodes (default: 2)")
    parser.add_argument(
        "--deadline", type=float, default=3600.0, help="of the run, in seconds (default: 3600)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
