import json
import os
import shutil
import tempfile
import traceback
from pathlib import Path

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


@pytest.mark.parametrize(
    "name",
    ["/etc/hostname", "../step-00000004/x", "hf/../../x", "..", ".", "", "hf//x", "hf/./x", "hf/", "a\0b", "COMPLETE"],
)
def test_a_marker_that_names_something_outside_of_its_folder_is_damaged(tmp_path, name):
    path = make(tmp_path, 5)
    marker = commit.read_marker(path)
    commit.write_marker(path, marker | {"files": marker["files"] | {name: {"bytes": 0, "sha256": ""}}})
    [problem] = commit.verify(path)
    assert "is damaged" in problem and repr(name) in problem


def test_links_out_of_the_folder_are_damage_and_links_inside_are_not(tmp_path):
    path = make(tmp_path, 5)
    shard = path / "__0_0.distcp"
    shard.rename(path / "hf" / "shard")
    shard.symlink_to("hf/shard")
    assert commit.verify(path) == []
    outside = (path / "hf" / "shard").rename(tmp_path / "elsewhere")
    shard.unlink()
    shard.symlink_to(outside)
    [problem] = commit.verify(path)
    assert f"{shard}: a symbolic link leads out of the checkpoint's folder" in problem
    (path / "hf" / "config.json").unlink()
    (path / "hf").rmdir()
    (tmp_path / "config.json").write_text("{}")
    (path / "hf").symlink_to(tmp_path)
    assert len(commit.verify(path)) == 3, "the shard, the folder and the file in it"
    (path / "hf").unlink()
    (path / "hf").symlink_to("hf")
    assert len(commit.verify(path)) == 3, "the shard, the folder and the file in it"


def test_a_link_that_the_marker_does_not_list_is_damage_too(tmp_path):
    path = make(tmp_path, 5)
    (tmp_path / "secret").write_text("somebody else's")
    (path / "hf" / "tokenizer.json").symlink_to(tmp_path / "secret")
    [problem] = commit.verify(path)
    assert f"{path / 'hf' / 'tokenizer.json'}: a symbolic link leads out" in problem


def test_the_checkpoint_itself_may_be_reached_by_a_link(tmp_path):
    path = make(tmp_path, 5)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert commit.verify(path) == []


def test_what_is_brought_replaces_links_and_not_what_they_name(tmp_path):
    path = make(tmp_path, 5, complete=False)
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "config.json").write_text("somebody else's")
    (path / "hf" / "config.json").unlink()
    (path / "hf").rmdir()
    (path / "hf").symlink_to(tmp_path / "away")
    commit.way_for(path, "hf/config.json").write_text("brought")
    assert (tmp_path / "away" / "config.json").read_text() == "somebody else's"
    assert (path / "hf" / "config.json").read_text() == "brought" and not (path / "hf").is_symlink()


def without_root(do):
    """Run `do` as an ordinary user, to whom permissions apply."""
    if os.geteuid() != 0:
        do()
        return
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            do()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def anybodys():
    """A folder that an ordinary user may reach and write; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_a_link_to_another_disk_is_left_whole_and_the_next_is_removed(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    for step in (10, 20, 30, 40):
        make(checkpoints, step)
    link = commit.checkpoint_path(checkpoints, 10)
    link.rename(tmp_path / "another-disk")
    link.symlink_to(tmp_path / "another-disk")
    failed = {}
    removed = commit.prune(checkpoints, 2, failed=lambda path, error: failed.update({path: error}))
    assert [commit.step_of(path) for path in removed] == [20]
    assert list(failed) == [link] and "symbolic link" in str(failed[link])
    assert [commit.step_of(path) for path in commit.complete_checkpoints(checkpoints)] == [40, 30, 10]
    assert commit.verify(link) == []


@pytest.mark.parametrize("locked", [".", "hf"])
def test_one_with_a_locked_folder_is_left_whole_and_the_next_is_removed(anybodys, locked):
    def prune():
        for step in (10, 20, 30, 40):
            make(anybodys, step)
        path = commit.checkpoint_path(anybodys, 10)
        (path / locked).chmod(0o555)
        failed = []
        for _ in range(2):
            commit.prune(anybodys, 2, failed=lambda path, error: failed.append((path, str(error))))
        (path / locked).chmod(0o755)
        assert [commit.step_of(path) for path in commit.complete_checkpoints(anybodys)] == [40, 30, 10]
        assert commit.verify(path) == []
        assert [path for path, _ in failed] == [path, path]
        assert str(path / locked) in failed[0][1] or locked == "."

    without_root(prune)


def test_one_of_which_nothing_could_be_removed_keeps_its_marker(tmp_path, monkeypatch):
    path = make(tmp_path, 10)

    def busy(*arguments, **options):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(shutil, "rmtree", busy)
    with pytest.raises(OSError, match="busy"):
        commit.remove(path)
    assert commit.verify(path) == []


def test_one_of_which_something_is_gone_does_not_look_whole(tmp_path, monkeypatch):
    path = make(tmp_path, 10)

    def half(folder):
        (folder / "hf" / "config.json").unlink()
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(OSError, match="busy"):
        commit.remove(path)
    assert commit.complete_checkpoints(tmp_path) == []
