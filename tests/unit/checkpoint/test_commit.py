import json

import pytest

from allranks.checkpoint import commit
from allranks.errors import CheckpointError


def make(checkpoints, step, *, complete=True):
    path = commit.checkpoint_path(checkpoints, step)
    (path / "hf").mkdir(parents=True)
    (path / "__0_0.distcp").write_bytes(bytes(range(256)) * 40)
    (path / "hf" / "config.json").write_text("{}")
    if complete:
        files = ["__0_0.distcp", "hf/config.json"]
        commit.commit(path, {name: commit.digest(path / name) for name in files}, step=step)
    return path


def test_only_marked_checkpoints_are_complete_newest_first(tmp_path):
    old, new = make(tmp_path, 90), make(tmp_path, 100)
    cut_off = make(tmp_path, 110, complete=False)
    (tmp_path / "step-abc").mkdir()
    assert commit.complete_checkpoints(tmp_path) == [new, old]
    assert commit.incomplete_checkpoints(tmp_path) == [cut_off]
    assert commit.complete_checkpoints(tmp_path / "missing") == []


def test_a_sound_checkpoint_has_no_problems(tmp_path):
    assert commit.verify(make(tmp_path, 5)) == []


def test_a_truncated_file_is_named_with_its_sizes(tmp_path):
    path = make(tmp_path, 5)
    shard = path / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    [problem] = commit.verify(path)
    assert "__0_0.distcp" in problem and "10239 bytes, expected 10240" in problem


def test_a_flipped_bit_is_found(tmp_path):
    path = make(tmp_path, 5)
    shard = path / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    [problem] = commit.verify(path)
    assert "__0_0.distcp" in problem and "changed" in problem


def test_a_missing_file_and_a_missing_or_damaged_marker_are_found(tmp_path):
    path = make(tmp_path, 5)
    (path / "hf" / "config.json").unlink()
    assert "missing" in commit.verify(path)[0]
    (path / commit.MARKER).write_text('{"files": [')
    assert "damaged" in commit.verify(path)[0]
    (path / commit.MARKER).unlink()
    assert "no COMPLETE file" in commit.verify(path)[0]


def test_the_parts_of_all_ranks_together_cover_every_file(tmp_path):
    path = make(tmp_path, 5)
    (path / "__0_0.distcp").write_bytes(b"x")
    files = commit.read_marker(path)["files"]
    parts = [commit.verify_files(path, files, part=part, parts=3) for part in range(3)]
    assert [name for sound, _ in parts for name in sound] == ["hf/config.json"]
    assert [name for _, problems in parts for name in problems] == ["__0_0.distcp"]


def test_the_marker_lists_its_facts(tmp_path):
    marker = json.loads((make(tmp_path, 7) / commit.MARKER).read_text())
    assert marker["step"] == 7 and marker["files"]["__0_0.distcp"]["bytes"] == 10240


@pytest.mark.parametrize(
    ("keep", "protected", "left"), [(2, [], [30, 40]), (1, [10], [10]), (2, [10], [10, 40]), (9, [], [10, 20, 30, 40])]
)
def test_prune_keeps_the_newest_and_the_protected(tmp_path, keep, protected, left):
    for step in (10, 20, 30, 40):
        make(tmp_path, step)
    commit.prune(tmp_path, keep, {commit.checkpoint_path(tmp_path, step) for step in protected})
    assert sorted(commit.step_of(path) for path in commit.complete_checkpoints(tmp_path)) == left
    assert commit.incomplete_checkpoints(tmp_path) == []


def test_a_directory_of_another_name_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="step-00000100"):
        commit.step_of(tmp_path / "checkpoint-100")
