"""Whatever is damaged in a run folder: one clear error with a remedy, or a repair that says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rise_ray.errors import ModelError, StoreError, SyncError
from rise_ray.mdp import Place
from rise_ray.models.locate import locate_model
from rise_ray.report.tracking import read_metrics
from rise_ray.run.journal import Run
from rise_ray.run.lineage import open_run
from rise_ray.run.repair import is_whole, lost_stages, repair
from rise_ray.store.examples import read_lengths, read_manifest, read_part
from rise_ray.store.files import Folder
from rise_ray.sync.parity import ParityReference
from tests.unit.store import hand_made

COLLECTED = "trajectories/iteration=1/phase=collect"
EXAMPLES = "examples/iteration-1"
CHECKPOINT = "checkpoints/iteration=1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return hand_made.make_run(str(tmp_path_factory.mktemp("runs")))


@pytest.fixture
def run(whole: Run, tmp_path: Path) -> Iterator[Run]:
    """The run folder, as good as new for each test."""
    folder, kept = Path(whole.folder.path), tmp_path / "kept"
    shutil.copytree(folder, kept)
    yield _reopen(whole)
    shutil.rmtree(folder)
    kept.rename(folder)


def _reopen(run: Run) -> Run:
    return Run(run.config, resume=True)


def _read_trajectories(run: Run) -> object:
    sealed = run.stages["iteration-1/collect"]["parts_sha256"]
    return list(run.trajectories.read(Place("iteration", 1, "collect"), sealed))


def _train(run: Run) -> object:
    folder = run.folder / EXAMPLES
    manifest = read_manifest(folder)
    return read_lengths(folder, manifest), [read_part(folder, part) for part in manifest.parts]


def _load_model(run: Run) -> object:
    return locate_model(f"{run.folder.uri}/{CHECKPOINT}")


def _probe(run: Run) -> object:
    return ParityReference.load(run.folder / CHECKPOINT)


def _lost(path: str) -> Callable[[Run], None]:
    def damage(run: Run) -> None:
        folder, name = _place(run, path)
        folder.remove(name)

    return damage


def _cut(path: str) -> Callable[[Run], None]:
    def damage(run: Run) -> None:
        folder, name = _place(run, path)
        folder.write(name, folder.read(name)[:-4])

    return damage


def _place(run: Run, path: str) -> tuple[Folder, str]:
    """A file's folder and name; a name that ends in `*` is the first that begins so."""
    parent, _, name = path.rpartition("/")
    folder = run.folder / parent if parent else run.folder
    if name.endswith("*"):
        name = next(n for n in folder.names() if n.startswith(name[:-1]))
    return folder, name


@pytest.mark.parametrize(
    ("damage", "use", "error", "said"),
    [
        (_cut(f"{COLLECTED}/part-*"), _read_trajectories, StoreError, "delete it and resume"),
        (_lost(f"{COLLECTED}/part-*"), _read_trajectories, StoreError, "its 0 parts .*--resume"),
        (_cut(f"{EXAMPLES}/part-00000.parquet"), _train, StoreError, "delete the folder and go on"),
        (_lost(f"{EXAMPLES}/part-00000.parquet"), _train, StoreError, "delete the folder and go"),
        (_cut(f"{EXAMPLES}/manifest.json"), _train, StoreError, "delete the folder and go on"),
        (_lost(f"{EXAMPLES}/manifest.json"), _train, StoreError, "manifest.json: cannot be read"),
        (_cut("state.json"), _reopen, StoreError, "state.json: damaged journal: .*restore it"),
        (_lost("state.json"), _reopen, StoreError, r"state\.json is missing"),
        (
            _cut("metrics.jsonl"),
            lambda r: read_metrics(r.folder),
            StoreError,
            "delete it and go on",
        ),
        (_lost("metrics.jsonl"), lambda r: read_metrics(r.folder), StoreError, "is missing; go on"),
        (_cut(f"{CHECKPOINT}/model.safetensors"), _load_model, ModelError, "restore it"),
        (_lost(f"{CHECKPOINT}/model.safetensors"), _load_model, ModelError, "weights are missing"),
        (_lost(CHECKPOINT), _load_model, ModelError, "iteration=1: there is no such folder"),
        (
            _cut(f"{CHECKPOINT}/parity.json"),
            _probe,
            SyncError,
            "parity.json: not a parity reference",
        ),
        (_lost(f"{CHECKPOINT}/parity.json"), _probe, StoreError, "parity.json: cannot be read"),
    ],
)
def test_what_is_damaged_is_an_error_where_it_is_used_and_never_less_data(
    run: Run,
    damage: Callable[[Run], None],
    use: Callable[[Run], object],
    error: type[Exception],
    said: str,
) -> None:
    use(run)  # whole, it can be used
    damage(run)
    with pytest.raises(error, match=said):
        use(run)


@pytest.mark.parametrize(
    ("damage", "lost", "said"),
    [
        (_lost(f"{COLLECTED}/part-*"), ["iteration-1/collect"], "trajectories are not whole"),
        (_lost("trajectories"), None, "trajectories are not whole"),
        (_lost(f"{EXAMPLES}/manifest.json"), ["iteration-1/relabel"], r"lack manifest\.json"),
        (_lost(f"{EXAMPLES}/part-00000.parquet"), ["iteration-1/relabel"], "lack part-00000"),
        (_lost(EXAMPLES), ["iteration-1/relabel"], r"lack manifest\.json"),
    ],
)
def test_a_stage_whose_data_went_away_is_done_again_when_the_run_goes_on(
    run: Run, damage: Callable[[Run], None], lost: list[str] | None, said: str
) -> None:
    assert repair(run) == []
    stages = list(run.stages)
    damage(run)
    assert not is_whole(run)
    expected = lost or [key for key in stages if key.split("/")[1] in ("collect", "eval")]
    assert sorted(lost_stages(run)) == sorted(expected)
    found = repair(run)
    assert len(found) == len(expected)
    assert all(
        key in line and "made again" in line for key, line in zip(expected, found, strict=True)
    )
    assert said.replace("\\", "") in found[0]
    assert set(_reopen(run).stages) == set(stages) - set(expected)


def test_deleting_a_damaged_part_and_going_on_gives_the_same_data(run: Run) -> None:
    before = _read_trajectories(run)
    _cut(f"{COLLECTED}/part-*")(run)
    _lost(f"{COLLECTED}/part-*")(run)  # what the error says to do
    repair(run)
    hand_made.roll(run, "iteration-1/collect", Place("iteration", 1, "collect"))
    assert _read_trajectories(run) == before
    assert is_whole(run)


def test_deleting_a_damaged_examples_folder_and_going_on_gives_the_same_data(run: Run) -> None:
    before = read_manifest(run.folder / EXAMPLES)
    _cut(f"{EXAMPLES}/manifest.json")(run)
    with pytest.raises(StoreError, match="delete the folder"):
        repair(run)
    _lost(EXAMPLES)(run)
    repair(run)
    hand_made.relabel(
        run, "iteration-1", list(run.trajectories.read(Place("iteration", 1, "collect")))
    )
    assert read_manifest(run.folder / EXAMPLES) == before


def test_a_run_goes_on_with_other_settings_of_how_it_is_done(run: Run) -> None:
    config = hand_made.config_of(
        run.config.storage, "rollout.workers.max_workers=7", "ray.num_cpus=3"
    )
    (found,) = repair(Run(config, resume=True))
    assert "`rollout.workers.max_workers`, `ray.num_cpus`" in found
    assert open_run(run.folder).config == config
    assert is_whole(Run(config, resume=True))


def test_a_lost_or_changed_config_is_written_again(run: Run) -> None:
    whole = run.folder.read("config.yaml")
    for damage in (_lost("config.yaml"), _cut("config.yaml")):
        damage(run)
        assert [line.partition(":")[0] for line in repair(_reopen(run))] == ["config.yaml"]
        assert run.folder.read("config.yaml") == whole


def test_lost_metrics_come_back_from_the_journal_and_what_is_gone_is_said(run: Run) -> None:
    before = read_metrics(run.folder)
    _lost("metrics.jsonl")(run)
    (said,) = repair(run)
    assert "lacked base/eval" not in said or "single steps are lost" in said
    restored = read_metrics(run.folder)
    assert [{**r, "time": 0} for r in restored] == [{**r, "time": 0} for r in before]


def test_records_that_a_crash_took_come_back_alone(run: Run) -> None:
    lines = run.folder.read("metrics.jsonl").splitlines(keepends=True)
    run.folder.write("metrics.jsonl", b"".join(lines[:-2]))
    (said,) = repair(run)
    assert "rejection_sampling-2/eval, run/report" in said
    assert len(read_metrics(run.folder)) == len(lines)


def test_records_of_another_schema_version_are_refused(run: Run) -> None:
    content = run.folder.read("metrics.jsonl")
    run.folder.write(
        "metrics.jsonl", content.replace(b'"schema_version": "1"', b'"schema_version": "0"')
    )
    with pytest.raises(StoreError, match="records of schema version 0"):
        read_metrics(run.folder)


def test_a_killed_writers_half_files_are_swept(run: Run) -> None:
    half = Path(run.folder.path) / "checkpoints" / f".{'0' * 32}.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert repair(run) == []
    assert not half.exists()


def test_every_file_of_a_run_folder_carries_its_schema_version(run: Run) -> None:
    # Hugging Face's own files have its versions; the page is for people.
    foreign = {"report.html", "config.json", "model.safetensors"}
    files = [p for p in Path(run.folder.path).rglob("*") if p.is_file() and p.name not in foreign]
    assert {p.suffix for p in files} == {".json", ".jsonl", ".parquet", ".yaml"}
    assert all(b"schema_version" in p.read_bytes() for p in files)
