"""What a run folder has lost since its journal was written, and what of it can be made again.

A stage is journaled when its data are whole on storage. What went away afterwards is looked for by
names alone when the run goes on, since what is there is verified whenever it is read. Missing
trajectories are rolled again, examples relabeled again, metrics taken from the journal. What cannot
be made again is an error where it is read.
"""

from __future__ import annotations

from typing import Any

from rise_ray.report.tracking import METRICS, new_record, read_metrics, write_metrics
from rise_ray.run.journal import CONFIG, Run
from rise_ray.run.plans import of_kind, rolling
from rise_ray.run.specs import Rows
from rise_ray.run.tracks import stages_of
from rise_ray.store.examples import MANIFEST, read_manifest
from rise_ray.store.files import Folder


def lost_stages(run: Run) -> dict[str, str]:
    """Journaled stages whose data are not whole: what is wrong, by the stage's key.

    Raises:
        StoreError: the folder cannot be looked at, or a manifest is damaged.
    """
    lost, done = {}, run.stages
    declared = [spec for spec in stages_of(run.config) if spec.key in done]
    for spec in rolling(declared):
        if not run.trajectories.is_whole(spec.place, done[spec.key]["parts_sha256"]):
            lost[spec.key] = "its stored trajectories are not whole"
    for rows in of_kind(Rows, declared):
        missing = _missing_examples(run.folder / "examples" / rows.name)
        if missing:
            lost[rows.key] = f"its examples lack {missing}"
    return lost


def is_whole(run: Run) -> bool:
    """Whether `repair` would find nothing to do but to sweep."""
    return run.config_is_whole() and not (lost_stages(run) or _unmeasured(run))


def repair(run: Run) -> list[str]:
    """Prepare a run folder whose driver is gone for going on; what was found, for the user.

    Lost stages are taken out of the journal, so that they are done again; what is still there of
    their trajectories is kept.
    """
    run.folder.sweep()
    found = []
    for key, reason in lost_stages(run).items():
        run.forget(key)
        found.append(f"{key}: {reason}: what is missing is made again")
    if not run.config_is_whole():
        changed = ", ".join(f"`{key}`" for key, _, _ in run.changed_settings())
        other = f"the run goes on with other settings than before: {changed}"
        same = "was lost or changed, or lacks settings that came since: written again"
        found.append(f"{CONFIG}: {other if changed else same}")
        run.write_config()
    unmeasured = _unmeasured(run)
    if unmeasured:
        records = _records(run)
        for key in unmeasured:
            stage, phase = key.split("/")
            records.append(new_record(stage, phase, run.stages[key]))
        write_metrics(run.folder, records)
        found.append(
            f"{METRICS}: lacked {', '.join(unmeasured)}: their results are back from the journal, "
            "their single steps are lost"
        )
    return found


def _missing_examples(folder: Folder) -> str | None:
    """The first file that an examples folder lacks."""
    names = set(folder.names())
    if MANIFEST not in names:
        return MANIFEST
    return next((p.name for p in read_manifest(folder).parts if p.name not in names), None)


def _records(run: Run) -> list[dict[str, Any]]:
    return read_metrics(run.folder) if run.folder.exists(METRICS) else []


def _unmeasured(run: Run) -> list[str]:
    """Journaled stages without their last record in `metrics.jsonl`, which is their result."""
    measured = {f"{r['stage']}/{r['phase']}" for r in _records(run) if "seconds" in r}
    return [key for key in run.stages if key not in measured]
