"""A power cut at any moment of a run leaves every checkpoint whole or not committed, and none that was told is lost."""

import json
import os
from pathlib import Path

import pytest

from allranks.checkpoint import commit
from allranks.checkpoint.state import RunState
from allranks.export.publish import new_folder
from allranks.observe import RunDir
from allranks.train.checkpoint import Checkpointer
from allranks.train.resume import archive_newer
from allranks.train.storage import ALONE
from tests.power_cut import recorded
from tests.unit.train.test_checkpoint import make


def write_hf(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"a": list(range(50))}))
    (folder / "templates").mkdir()
    (folder / "templates" / "one.jinja").write_text("x" * 100)


def whole_ones(checkpoints: Path) -> set[int]:
    """The steps that count as committed, each of them verified."""
    found = commit.complete_checkpoints(checkpoints)
    for path in found:
        assert commit.verify(path) == []
        assert json.loads((path / "state.json").read_text())["step"] == commit.step_of(path)
    return {commit.step_of(path) for path in found}


def saver(checkpoints: Path, **options: object) -> Checkpointer:
    return make(checkpoints, write_extras=write_hf, **options)


def test_saves_one_after_the_other_with_a_limit(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    sure: set[int] = set()

    def check(place: Path) -> None:
        found = whole_ones(place / "checkpoints")
        assert not sure or found, "a run never falls below what it was told to be committed"
        assert max(found, default=0) >= max(sure, default=0)

    with recorded(run, tmp_path / "cuts", check) as disk:
        checkpointer = saver(run / "checkpoints", keep=1)
        for step in (1, 2):
            checkpointer.save(step, RunState(step, {}))
            sure.add(step)
            disk.cut_now()
    assert whole_ones(run / "checkpoints") == {2}
    assert len(disk.operations) > 30


def test_the_save_of_a_step_that_is_there_already(tmp_path):
    saver(tmp_path / "checkpoints").save(1, RunState(1, {}))
    with recorded(tmp_path / "checkpoints", tmp_path / "cuts", whole_ones):
        saver(tmp_path / "checkpoints").save(1, RunState(1, {}))


def test_nothing_is_synced_twice(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with recorded(run, tmp_path / "cuts", lambda place: None) as disk:
        saver(run / "checkpoints").save(1, RunState(1, {}))
    synced = [line.removeprefix("fsync ") for line in disk.operations if line.startswith("fsync")]
    step = run / "checkpoints" / "step-00000001"
    once = {str(path) for path in step.rglob("*") if path.name != commit.MARKER}
    assert all(synced.count(path) == 1 for path in once), synced
    assert synced.count(str(step)) == 2, "once for what is listed, once for the marker"
    assert synced.count(str(run / "checkpoints")) == 1
    assert synced.count(str(run)) == 1


def test_steps_that_are_set_aside(tmp_path):
    run = RunDir(tmp_path / "run")
    for step in (1, 2, 3):
        saver(run.checkpoints).save(step, RunState(step, {}))

    with recorded(run.path, tmp_path / "cuts", lambda place: whole_ones(place / "checkpoints")) as disk:
        archive_newer(run, 1, ALONE, lambda text: None)
        disk.check = lambda place: _equal(whole_ones(place / "checkpoints"), {1})


def test_an_export(tmp_path):
    top = tmp_path / "top"
    (top / "old").mkdir(parents=True)
    (top / "old" / "config.json").write_text("old")

    def check(place: Path) -> None:
        out = place / "out"
        _equal(out.exists() and sorted(_texts(out)), out.exists() and ["shard 1", "shard 2", "{}"])

    with recorded(top, tmp_path / "cuts", check) as disk:
        with new_folder(top / "out") as folder:
            (folder / "config.json").write_text("{}")
            (folder / "deep").mkdir()
            for number in (1, 2):
                (folder / "deep" / f"{number}").write_text(f"shard {number}")
        disk.check = lambda place: [check(place), _equal((place / "out").exists(), True)]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_export_that_replaces_another_one(tmp_path, monkeypatch, can_exchange):
    """Both are there until the new one is; one of them is whatever happens."""
    if not can_exchange:  # as on NFS
        monkeypatch.setattr("allranks.durable._exchanged", lambda one, other: False)
    top = tmp_path / "top"
    (top / "out").mkdir(parents=True)
    (top / "out" / "config.json").write_text("old")

    def check(place: Path) -> None:
        found = {tuple(sorted(_texts(folder))) for folder in place.iterdir()}
        assert found & {("old",), ("new", "shard")}
        if can_exchange:
            assert sorted(_texts(place / "out")) in (["old"], ["new", "shard"])

    with recorded(top, tmp_path / "cuts", check) as disk:
        with new_folder(top / "out", replace=True) as folder:
            (folder / "config.json").write_text("new")
            (folder / "model").write_text("shard")
        disk.check = lambda place: _equal(sorted(_texts(place / "out")), ["new", "shard"])
    assert [path.name for path in top.iterdir()] == ["out"]


def _texts(folder: Path) -> list[str]:
    return [Path(where, name).read_text() for where, _, names in os.walk(folder) for name in names]


def _equal(found: object, expected: object) -> None:
    assert found == expected


@pytest.mark.parametrize("lost", ["sync of files", "sync of folders"])
def test_these_tests_would_find_a_save_that_does_not_sync(tmp_path, monkeypatch, lost):
    name = {"sync of files": "sync_files", "sync of folders": "sync_folder"}[lost]
    monkeypatch.setattr(f"allranks.durable.{name}", lambda *arguments: None)
    with pytest.raises(AssertionError, match="before operation"):
        test_saves_one_after_the_other_with_a_limit(tmp_path)
