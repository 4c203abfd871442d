"""A file is read once on a node, by whichever process comes first, and again when it has changed."""

import hashlib
import os
import threading
import time

import pytest

from allranks import digests
from allranks.digests import file_sha256

LARGE = 2**20 + 1


@pytest.fixture
def read(tmp_path, monkeypatch):
    """The names of the files that were read, in order."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)  # the files of these tests have just been made
    names, whole = [], digests._read
    monkeypatch.setattr(digests, "_read", lambda file: names.append(file.name) or whole(file))
    return names


def test_a_large_file_is_read_once_until_it_changes(tmp_path, read):
    file = tmp_path / "data.jsonl"
    file.write_bytes(bytes(LARGE))
    assert file_sha256(file) == file_sha256(file) == hashlib.sha256(bytes(LARGE)).hexdigest()
    assert read == ["data.jsonl"]
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_bytes(bytes(LARGE - 1) + b"x")  # the same size, and the time is set back
    os.utime(file, ns=times)
    assert file_sha256(file) == hashlib.sha256(bytes(LARGE - 1) + b"x").hexdigest()
    assert len(read) == 2


def test_processes_that_come_at_the_same_time_read_it_once_together(tmp_path, read):
    file = tmp_path / "data.jsonl"
    file.write_bytes(bytes(LARGE))
    found = []
    threads = [threading.Thread(target=lambda: found.append(file_sha256(file))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1 and read == ["data.jsonl"]


def test_a_file_that_was_written_just_now_is_not_remembered(tmp_path, read, monkeypatch):
    """It could change again within the clock's smallest step, and look the same."""
    monkeypatch.setattr(digests, "_SETTLED_NS", 10**18)
    file = tmp_path / "data.jsonl"
    file.write_bytes(bytes(LARGE))
    assert file_sha256(file) == file_sha256(file) and len(read) == 2
    assert file.stat().st_mtime_ns < time.time_ns()


def test_a_home_that_cannot_be_written_costs_only_the_reading(tmp_path, read, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    file = tmp_path / "data.jsonl"
    file.write_bytes(bytes(LARGE))
    assert file_sha256(file) == file_sha256(file) and len(read) == 2


def test_a_small_file_leaves_nothing(tmp_path, read):
    (tmp_path / "small").write_text("x")
    assert file_sha256(tmp_path / "small") == hashlib.sha256(b"x").hexdigest()
    assert not (tmp_path / "cache").exists()
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "none")
