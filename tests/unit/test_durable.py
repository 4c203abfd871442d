import errno
import os
from pathlib import Path

import pytest

from allranks import durable
from tests.power_cut import recorded


@pytest.fixture
def top(tmp_path):
    (tmp_path / "top").mkdir()
    return tmp_path / "top"


def states_of(name, seen):
    """A check that notes what `name` holds after a power cut: its text, or None."""

    def check(place):
        path = place / name
        seen.add(path.read_text() if path.is_file() else None)

    return check


def after_a_cut_now(disk, seen):
    seen.clear()
    disk.cut_now()
    return set(seen)


def test_a_write_is_there_whole_or_not_at_all(top, tmp_path):
    seen = set()
    with recorded(top, tmp_path / "cuts", states_of("a", seen)) as disk:
        durable.write(top / "a", "first")
        assert seen == {None, "first"}
        assert after_a_cut_now(disk, seen) == {"first"}
        durable.write(top / "a", "second")
        assert seen == {"first", "second"}
        assert after_a_cut_now(disk, seen) == {"second"}


def test_the_record_finds_a_write_without_syncs(top, tmp_path):
    seen = set()
    with recorded(top, tmp_path / "cuts", states_of("a", seen)):
        (top / "b").write_text("text")
        (top / "b").rename(top / "a")
    assert seen == {None, "", "te"}


def test_a_removal_and_a_new_folder_stay(top, tmp_path):
    (top / "a").write_text("text")
    with recorded(top, tmp_path / "cuts", lambda place: None) as disk:
        durable.remove_file(top / "a")
        durable.remove_file(top / "a")
        durable.make_folders(top / "b" / "c" / "d")
        disk.check = lambda place: [_true(not (place / "a").exists()), _true((place / "b" / "c" / "d").is_dir())]
    assert disk.operations[-1].startswith("fsync")


def _true(condition):
    assert condition


def test_a_tree_is_there_with_all_in_it(top, tmp_path):
    (top / "new" / "deep" / "er").mkdir(parents=True)
    for name in ("x", "deep/y", "deep/er/z"):
        (top / "new" / name).write_text(name)
    (top / "new" / "link").symlink_to("x")

    def check(place):
        if (place / "new").exists():
            assert {(place / "new" / name).read_text() for name in ("x", "deep/y", "deep/er/z")} == {
                "x",
                "deep/y",
                "deep/er/z",
            }

    (top / "new").rename(tmp_path / "aside")
    with recorded(top, tmp_path / "cuts", check) as disk:
        (tmp_path / "aside").rename(top / ".new")
        durable.sync_all(top / ".new")
        durable.rename(top / ".new", top / "new")
    synced = [line for line in disk.operations if line.startswith("fsync")]
    assert len(synced) == len(set(synced)) == 7, "three files, three folders and the one that they were put into"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_sync_folders_works(top, monkeypatch, number):
    real = os.fsync

    def fsync(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    durable.make_folders(top / "a" / "b")
    durable.write(top / "a" / "b" / "c", "text")
    durable.sync_all(top)
    assert (top / "a" / "b" / "c").read_text() == "text"


def test_a_disk_that_fails_is_no_such_file_system(top, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        durable.sync_folder(top)
