"""The command `rise-ray`: run a config, evaluate a model, check, ask a lineage, compare seeds."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rise_ray import __version__
from rise_ray.cli.arguments import ArgumentParser
from rise_ray.cluster.stop import Stopped, handle_signals, stop_signals
from rise_ray.config.loading import load_config
from rise_ray.config.settings import RunConfig
from rise_ray.errors import user_error
from rise_ray.text import terminal_text

_PACKAGE = Path(__file__).parents[1]
_RUN = """\
Run a config: collect, relabel, train, evaluate, report. A run does, in this order:

  warm-start   if configured: fine-tune the model on the task's demonstrations
  base         evaluate the model on held-out problems, one attempt after another
  iteration-N  what the recipe does in its iteration N; of RISE:
               collect: the model answers over several turns, and improved answers are sampled
               relabel: stored trajectories become weighted examples
               train:   reward-weighted fine-tuning with DeepSpeed ZeRO-3
               eval:    the new weights on the same held-out problems
  TRACK-N      the same of each control, on as many sampled tokens
  report       the results with 95% intervals, as a table and as report.html

Everything is in the run folder <storage>/<name>. Ctrl-C, SIGTERM or a crash loses the episodes that
were under way; --resume does the rest, also with other workers, deadlines, retries or budgets. A
folder that holds any other run is left as it is. A finished run shows its results again.
"""
_EVAL = "Evaluate one model with a config's task and protocol, in a run folder of its own."
_CHECK = """\
Check a config without starting anything: settings, data, model, chat template, prompts, teacher,
run folder. Then show the run in numbers and the Ray resources that it needs.
"""
_LINEAGE = """\
Show where a training row came from, or what came of a problem, as JSON lines.

--example gives the example's trajectory, turn, candidate and sampling seed, the weights that wrote
it and their checkpoint, the verifier's version and verdict, the relabel rule, the SHA-256 of the
run's config, and the text. --problem gives every training row that came from the problem. Nothing
is changed; what is read is verified.
"""
_COMPARE = """\
Compare runs that differ in their seed alone. Prints every model's figures over all seeds, and the
paired differences over all and of each, as Markdown tables with 95% intervals.

The intervals resample the seeds and the problems. Nothing is changed; what is read is verified.
"""
_EPILOG = f"""\
any setting is overridden as key.sub=value (the value is YAML):
  rise-ray run jobs/quickstart.yaml seed=1 name=quickstart-1 train.lr=5e-4
  rise-ray run jobs/gsm8k_8b.yaml storage=s3://bucket/runs ray.autoscaling=true --resume
  rise-ray eval jobs/quickstart.yaml --model runs/quickstart/checkpoints/iteration=2

every setting with its meaning and default, those of recipes in {_PACKAGE / "recipes"}:
  {_PACKAGE / "config" / "settings.py"}

exit status: 0 done, 1 the run failed, 2 the command or the config is wrong,
130 stopped by Ctrl-C, 143 stopped by SIGTERM
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status; the epilog of `--help` lists them."""
    sys.excepthook = _show_traceback
    threading.excepthook = _show_traceback_of_thread
    options = _parser().parse_args(arguments)
    try:
        with stop_signals():
            return int(options.command(options))
    except Stopped as stopped:
        _complain(f"{stopped}; the same command with --resume goes on")
        return stopped.exit_code
    except Exception as error:
        ours = user_error(error)
        if ours is None or options.debug:
            raise
        _complain(f"error: {ours}")
        return ours.exit_code


def _complain(message: str) -> None:
    print(terminal_text(f"rise-ray: {message}"), file=sys.stderr)


def _show_traceback(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(terminal_text(text), file=sys.stderr, end="")


def _show_traceback_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_type is not SystemExit:  # a thread's way to end, to Python too
        _show_traceback(ended.exc_type, ended.exc_value, ended.exc_traceback)


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
        "controls=[]",
        f"model.path={json.dumps(options.model)}",
    ]
    return _execute(load_config(options.config, overrides), options)


def _execute(config: RunConfig, options: argparse.Namespace) -> int:
    # vLLM and DeepSpeed print banners on import; the run's own lines are the output.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from rise_ray.cli.check import preflight
    from rise_ray.cluster.connection import connected, in_job_copy
    from rise_ray.report.console import Console
    from rise_ray.report.tracking import read_metrics
    from rise_ray.run.journal import LAST_STAGE, REPORT, Run
    from rise_ray.run.owner import ownership
    from rise_ray.run.plans import teacher_workers
    from rise_ray.run.repair import is_whole, repair
    from rise_ray.run.stages import Stages
    from rise_ray.run.tracks import stages_of

    console = Console()
    console.show_warnings()
    run = preflight(config, options.resume)
    console.line(f"run {config.name} in {run.folder.uri}")
    if in_job_copy(run.folder.uri):
        console.step("which Ray deletes: to keep it, give `storage` as an absolute path or a URI")
    if run.finished and (is_whole(run) or not options.resume):
        comparisons = run.stages[LAST_STAGE]["comparisons"]
        console.results(read_metrics(run.folder), comparisons, f"{run.folder.uri}/{REPORT}")
        return 0
    # The folder is made when Ray is there: what fails before leaves nothing behind.
    with connected(config, teacher_workers(stages_of(config)), options.debug):
        handle_signals()  # Ray took SIGTERM over
        with ownership(run.folder, console.line):
            run = Run(config, options.resume)
            for repaired in repair(run):
                console.line(repaired)
            with Stages(run, console) as stages:
                stages.do_all()
    return 0


def _check(options: argparse.Namespace) -> int:
    from rise_ray.cli.check import check

    return 0 if check(load_config(options.config, options.overrides)) else 1


def _lineage(options: argparse.Namespace) -> int:
    from rise_ray.run.lineage import example_lineage, open_run, problem_lineage
    from rise_ray.store.files import Folder

    record = open_run(Folder(options.run_folder))
    if options.example is not None:
        lines = example_lineage(record, options.example)
    else:
        lines = problem_lineage(record, options.problem)
    for line in lines:
        print(json.dumps(line))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from rise_ray.cli.compare import compare_seeds, markdown, write_files

    found = compare_seeds(options.seeds)
    write_files(found, options.json, options.picture)
    print(terminal_text(markdown(found)))
    return 0


def _parser() -> ArgumentParser:
    any_command = ArgumentParser(add_help=False)
    any_command.add_argument(
        "--debug", action="store_true", help="tracebacks and all processes' logs"
    )
    of_config = ArgumentParser(add_help=False, parents=[any_command])
    of_config.add_argument("config", help="YAML file of settings")
    of_config.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="settings to change"
    )
    of_run = ArgumentParser(add_help=False, parents=[of_config])
    of_run.add_argument(
        "--resume",
        action="store_true",
        help="go on with an unfinished run of the same config (or start it)",
    )
    as_written = argparse.RawDescriptionHelpFormatter
    shown: dict[str, Any] = {"epilog": _EPILOG, "formatter_class": as_written}
    parser = ArgumentParser(
        prog="rise-ray",
        description="Teach a language model to improve its own answers over turns "
        "(RISE, arXiv 2407.18219) on Ray, vLLM and DeepSpeed.",
        **shown,
    )
    parser.add_argument("--version", action="version", version=f"rise-ray {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")

    def add(name: str, parent: ArgumentParser, about: str, function: object) -> ArgumentParser:
        summary = about.partition(".")[0].strip().replace("\n", " ")
        command: ArgumentParser = commands.add_parser(
            name, parents=[parent], help=summary, description=about, **shown
        )
        command.set_defaults(command=function)
        return command

    add("run", of_run, _RUN, _run)
    evaluate = add("eval", of_run, _EVAL, _eval)
    evaluate.add_argument("--model", required=True, help="folder, URI or hub name")
    evaluate.add_argument("--name", help="of the run folder (default: eval-<model>)")
    add("check", of_config, _CHECK, _check)
    lineage = add("lineage", any_command, _LINEAGE, _lineage)
    lineage.add_argument("run_folder", help="a run's folder, <storage>/<name>: path or URI")
    asked = lineage.add_mutually_exclusive_group(required=True)
    asked.add_argument("--example", metavar="ID", help="where did this training row come from?")
    asked.add_argument("--problem", metavar="ID", help="which training rows came from it?")
    compare = add("compare", any_command, _COMPARE, _compare)
    compare.add_argument(
        "--seeds", nargs="+", required=True, metavar="RUN", help="run folders, <storage>/<name>"
    )
    compare.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    compare.add_argument("--picture", metavar="FILE", help="draw accuracy by turn there, as SVG")
    return parser


if __name__ == "__main__":
    sys.exit(main())
