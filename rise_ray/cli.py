"""The command `rise-ray`: run a config, evaluate a model with it, or check it.

rise-ray run jobs/quickstart.yaml
rise-ray run jobs/gsm8k_cpu.yaml task.options.path=train.jsonl --resume
rise-ray eval jobs/quickstart.yaml --model runs/quickstart/checkpoints/iteration=3
rise-ray check jobs/gsm8k_8b.yaml
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from rise_ray import __version__
from rise_ray.config import RunConfig, load_config
from rise_ray.errors import RiseError

_EPILOG = """\
Any setting is overridden on the command line as key.sub=value (the value is YAML):
  rise-ray run jobs/quickstart.yaml seed=1 name=quickstart-1 train.lr=5e-4
Every setting with its meaning and default: rise_ray/config.py.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 1 (the run failed) or 2 (the config is wrong)."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except RiseError as error:
        if options.debug:
            raise
        print(f"rise-ray: error: {error}", file=sys.stderr)
        return error.exit_code


def _run(options: argparse.Namespace) -> int:
    return _execute(load_config(options.config, options.overrides), options)


def _eval(options: argparse.Namespace) -> int:
    name = options.name or f"eval-{options.model.rstrip('/').rsplit('/', 1)[-1]}"
    overrides = [
        *options.overrides,
        f"name={''.join(c if c.isalnum() or c in '._-' else '-' for c in name)}",
        "iterations=0",
        "warm_start=null",
        "model.scratch=null",
        "control.enabled=false",
        f"model.path={options.model}",
    ]
    return _execute(load_config(options.config, overrides), options)


def _execute(config: RunConfig, options: argparse.Namespace) -> int:
    # vLLM and DeepSpeed print banners on import; the run's own lines are the output.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from rise_ray.cluster import connected
    from rise_ray.console import Console
    from rise_ray.driver import execute
    from rise_ray.stages import Stages
    from rise_ray.store.run import Run

    console = Console()
    run = Run(config, resume=options.resume)
    console.line(f"run {config.name} in {run.folder.uri}")
    with connected(config, options.debug), Stages(run, console) as stages:
        execute(stages)
    return 0


def _check(options: argparse.Namespace) -> int:
    from rise_ray.check import check

    return 0 if check(load_config(options.config, options.overrides)) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rise-ray",
        description="Teach a language model to improve its own answers over turns "
        "(RISE, arXiv 2407.18219) on Ray, vLLM and DeepSpeed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rise-ray {__version__}")
    commands = parser.add_subparsers(title="commands", required=True)
    run = _command(commands, "run", "run a config: collect, relabel, train, evaluate, report", _run)
    evaluate = _command(
        commands, "eval", "evaluate one model with a config's task and protocol", _eval
    )
    evaluate.add_argument("--model", required=True, help="folder, URI or hub name")
    evaluate.add_argument("--name", help="of the run folder (default: eval-<model>)")
    for command in (run, evaluate):
        command.add_argument(
            "--resume",
            action="store_true",
            help="go on with an unfinished run of the same config (or start it)",
        )
    _command(
        commands, "check", "check a config, its data, model and resources; run nothing", _check
    )
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    function: object,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings to change")
    parser.add_argument("--debug", action="store_true", help="tracebacks and all processes' logs")
    parser.set_defaults(command=function)
    return parser


if __name__ == "__main__":
    sys.exit(main())
