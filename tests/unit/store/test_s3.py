"""A run folder on S3: all that is written there comes back, and what is lost is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from rise_ray.errors import StoreError
from rise_ray.mdp import Place
from rise_ray.models.locate import locate_model
from rise_ray.run.journal import Run
from rise_ray.run.lineage import example_lineage, open_run, training_rows
from rise_ray.run.repair import is_whole, repair
from rise_ray.store.examples import read_lengths, read_manifest, read_part
from rise_ray.store.files import Folder
from rise_ray.sync.parity import ParityReference
from tests.object_store import BUCKET
from tests.unit.store import hand_made


@pytest.fixture(scope="module")
def run(s3: None) -> Run:
    return hand_made.make_run(f"s3://{BUCKET}/runs")


def test_a_run_folder_on_s3_is_whole_and_goes_on(run: Run) -> None:
    assert run.folder.uri.startswith("s3://")
    reopened = Run(run.config, resume=True)
    assert is_whole(reopened)
    assert repair(reopened) == []
    for place in (Place("iteration", 1, "collect"), Place("rejection_sampling", 2, "collect")):
        stored = sorted(run.trajectories.read(place), key=lambda t: t.id)
        assert stored == hand_made.episodes(place)
    folder = run.folder / "examples" / "iteration-2"
    manifest = read_manifest(folder)
    (lengths,) = read_lengths(folder, manifest)
    assert lengths.tokens.tolist() == read_part(folder, manifest.parts[0])["tokens"].to_pylist()


def test_a_checkpoint_on_s3_is_copied_to_the_node_that_loads_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    checkpoint = run.folder / "checkpoints" / "iteration=2"
    copy = Path(locate_model(checkpoint.uri))
    assert (copy / "model.safetensors").read_bytes() == hand_made.WEIGHTS
    assert ParityReference.load(checkpoint) == ParityReference.load(Folder(str(copy)))


def test_a_lost_object_is_found_and_its_stage_done_again(run: Run) -> None:
    sealed = run.stages["iteration-2/collect"]["parts_sha256"]
    (part,) = run.trajectories.parts(Place("iteration", 2, "collect"))
    run.trajectories.folder_of(Place("iteration", 2, "collect")).remove(part)
    with pytest.raises(StoreError, match="its 0 parts are not those"):
        list(run.trajectories.read(Place("iteration", 2, "collect"), sealed))
    assert [line.split(":")[0] for line in repair(run)] == ["iteration-2/collect"]
    hand_made.roll(run, "iteration-2/collect", Place("iteration", 2, "collect"))
    assert run.stages["iteration-2/collect"]["parts_sha256"] == sealed
    assert is_whole(Run(run.config, resume=True))


def test_lineage_reads_a_run_on_s3(run: Run) -> None:
    record = open_run(run.folder)
    rows = list(training_rows(record))
    found = example_lineage(record, rows[0].example.id)
    assert {line["trajectory"] for line in found} == {rows[0].example.provenance.trajectory_id}
