"""Examples on storage: what is written comes back, in a seeded order, verified."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from rise_ray.errors import DataError, StoreError, TrainError
from rise_ray.mdp import Example, Place, Provenance, Span
from rise_ray.store.examples import (
    EXAMPLE_SCHEMA,
    EXAMPLES_PER_PART,
    examples_from_table,
    examples_to_table,
    loss_token_count,
    read_lengths,
    read_manifest,
    read_part,
    write_example_parts,
)
from rise_ray.store.files import Folder


def example(number: int = 0, tokens: int = 6, *spans: Span) -> Example:
    provenance = Provenance(
        source="candidate",
        rule="better",
        trajectory_id=f"run/iteration=1/collect/p{number}/0",
        problem_id=f"p{number}",
        place=Place("iteration", 1, "collect"),
        turn=2,
        candidate=3,
        reward=1.0,
        seed=2**62 + number,
        weight_version=0,
        verifier_version="v1",
    )
    return Example(f"e{number}", tuple(range(tokens)), spans or (Span(2, 5, 1.5),), provenance)


def folder(path: Path) -> Folder:
    return Folder(str(path / "examples"))


def test_a_table_gives_the_same_examples_back() -> None:
    examples = [example(0), example(1, 9, Span(1, 3, 0.5), Span(5, 9, 2.0))]
    table = examples_to_table(examples)
    assert table.schema.equals(EXAMPLE_SCHEMA, check_metadata=True)
    assert examples_from_table(table) == examples


def test_an_example_that_was_never_checked_has_no_reward_and_not_zero() -> None:
    shown = example()
    shown = replace(shown, provenance=replace(shown.provenance, reward=None))
    table = examples_to_table([shown, example(1)])
    assert table["reward"].to_pylist() == [None, 1.0]
    assert examples_from_table(table)[0] == shown


def test_a_first_token_has_no_prefix_and_so_no_loss() -> None:
    assert loss_token_count([Span(0, 1, 1.0), Span(1, 3, 1.0), Span(4, 6, 1.0)]) == 4


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ((Span(2, 7, 1.0),), "leaves its 6 tokens"),
        ((Span(3, 3, 1.0),), "overlaps"),
        ((Span(1, 4, 1.0), Span(3, 5, 1.0)), "overlaps"),
        ((Span(1, 4, float("nan")),), "not finite"),
        ((Span(0, 1, 1.0),), "no token with a prefix"),
    ],
)
def test_malformed_spans_are_refused_by_name(spans: tuple[Span, ...], message: str) -> None:
    with pytest.raises(DataError, match=f"example e7: .*{message}"):
        examples_to_table([example(7, 6, *spans)])


def test_parts_hold_every_example_once_in_an_order_of_the_seed_alone(tmp_path: Path) -> None:
    examples = [example(number) for number in range(EXAMPLES_PER_PART + 10)]
    shuffled = random.Random(0).sample(examples, len(examples))

    def written(name: str, examples: list[Example], seed: int) -> list[Example]:
        target = folder(tmp_path / name)
        manifest = write_example_parts(target, examples, seed)
        assert [part.examples for part in manifest.parts] == [EXAMPLES_PER_PART, 10]
        assert read_manifest(target) == manifest
        return [e for part in manifest.parts for e in examples_from_table(read_part(target, part))]

    first = written("a", examples, 1)
    assert sorted(first, key=lambda e: e.id) == sorted(examples, key=lambda e: e.id)
    assert first != examples
    assert written("b", shuffled, 1) == first
    assert written("c", examples, 2) != first


def test_mean_weight_is_the_mean_of_the_examples_mean_span_weight(tmp_path: Path) -> None:
    # Not per loss token and not per span: an example counts once, however long it is.
    examples = [
        example(0, 50, Span(1, 50, 4.0)),
        example(1, 6, Span(1, 2, 1.0), Span(3, 4, 3.0)),
    ]
    assert write_example_parts(folder(tmp_path), examples, 0).mean_weight == 3.0


def test_lengths_are_in_file_order(tmp_path: Path) -> None:
    manifest = write_example_parts(folder(tmp_path), [example(n, 6 + n) for n in range(20)], seed=3)
    (lengths,) = read_lengths(folder(tmp_path), manifest)
    examples = examples_from_table(read_part(folder(tmp_path), manifest.parts[0]))
    assert lengths.tokens.tolist() == [len(e.input_ids) for e in examples]
    assert lengths.loss_tokens.tolist() == [3] * 20


def test_no_examples_and_equal_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="no examples"):
        write_example_parts(folder(tmp_path), [], 0)
    with pytest.raises(DataError, match="same id: e1"):
        write_example_parts(folder(tmp_path), [example(1), example(2), example(1)], 0)
    zero, less = (replace(example(1), spans=(Span(1, 2, weight),)) for weight in (0.0, -1.0))
    with pytest.raises(DataError, match="e1: no token with a prefix carries loss"):
        write_example_parts(folder(tmp_path), [zero], 0)
    with pytest.raises(TrainError, match="mean weight"):
        write_example_parts(folder(tmp_path), [less], 0)


def test_a_folder_without_its_manifest_is_unfinished(tmp_path: Path) -> None:
    write_example_parts(folder(tmp_path), [example()], 0)
    folder(tmp_path).remove("manifest.json")
    with pytest.raises(StoreError, match=r"manifest\.json"):
        read_manifest(folder(tmp_path))


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    write_example_parts(folder(tmp_path), [example()], 0)
    content = json.loads(folder(tmp_path).read("manifest.json")) | {"schema_version": "0"}
    folder(tmp_path).write("manifest.json", json.dumps(content).encode())
    with pytest.raises(StoreError, match="schema version 0"):
        read_manifest(folder(tmp_path))


def test_a_replaced_part_is_an_error_and_not_data(tmp_path: Path) -> None:
    target = folder(tmp_path)
    manifest = write_example_parts(target, [example(1)], 0)
    write_example_parts(folder(tmp_path / "other"), [example(2)], 0)
    target.write("part-00000.parquet", folder(tmp_path / "other").read("part-00000.parquet"))
    with pytest.raises(StoreError, match="not what manifest"):
        read_part(target, manifest.parts[0])


def test_any_changed_byte_of_a_part_is_found(tmp_path: Path) -> None:
    target = folder(tmp_path)
    (part,) = write_example_parts(target, [example(n) for n in range(3)], 0).parts
    content = target.read(part.name)
    for place in range(0, len(content), 37):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        target.write(part.name, bytes(changed))
        with pytest.raises(StoreError, match="not what manifest"):
            read_part(target, part)


def test_lengths_that_were_changed_make_no_plan(tmp_path: Path) -> None:
    target = folder(tmp_path)
    manifest = write_example_parts(target, [example(n, 6 + n) for n in range(4)], 0)
    write_example_parts(folder(tmp_path / "other"), [example(n, 7 + n) for n in range(4)], 0)
    target.write("part-00000.parquet", folder(tmp_path / "other").read("part-00000.parquet"))
    with pytest.raises(StoreError, match=r"part-00000\.parquet: damaged: its lengths"):
        read_lengths(target, manifest)
    target.write("part-00000.parquet", b"PAR1")
    with pytest.raises(StoreError, match=r"part-00000\.parquet: cannot be read"):
        read_lengths(target, manifest)


def test_a_changed_manifest_is_an_error(tmp_path: Path) -> None:
    target = folder(tmp_path)
    write_example_parts(target, [example()], 0)
    content = target.read("manifest.json")
    assert b'"mean_weight": 1.5' in content
    target.write("manifest.json", content.replace(b'"mean_weight": 1.5', b'"mean_weight": 9.5'))
    with pytest.raises(StoreError, match=r"manifest\.json: damaged: .*delete the folder"):
        read_manifest(target)
