"""What a disk refuses is one message: what could not be done, why, where, how much room there is, what to do."""

import contextlib
import errno
import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from allranks import disk, durable
from allranks.disk import disk_error, disk_told, refuse_unwritable, told_to_user
from allranks.errors import DataError, DiskError, RefusedError
from allranks.listing import si_bytes
from tests.small_disk import run_on_small_disk

HOST = socket.gethostname()
SIZE = 204_800


@pytest.mark.parametrize("number", sorted(disk._MEANINGS), ids=errno.errorcode.get)
def test_the_whole_family_is_told_with_reason_path_node_and_advice(tmp_path, number):
    path = tmp_path / "gone" / "file"
    with pytest.raises(DiskError) as told, disk_told("step 3 is not saved", tmp_path):
        raise OSError(number, os.strerror(number), str(path))
    text = str(told.value)
    assert text.startswith("step 3 is not saved: ") and os.strerror(number) in text and f"{path} on {HOST}" in text
    assert text.endswith(("start again", "another folder", "another disk")), "the one next action comes last"
    assert told.value.errno == number and told.value.exit_code == 1
    assert (" are free" in text) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert "\n" not in text and "Traceback" not in text


def test_a_full_disk_says_how_much_is_needed_and_free_and_what_helps_here(tmp_path):
    _, total = disk.room(tmp_path)
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    told = disk_error(error, "no", tmp_path, needed_bytes=lambda: 3_200_000_000, remedy="lower save_total_limit")
    assert "3.2 GB are needed there" in str(told) and f"of {si_bytes(total)} are free" in str(told)
    assert str(told).endswith("Lower save_total_limit")


def test_the_folder_that_vanished_is_named():
    path = Path("/nowhere/run/checkpoints/step-00000001/state.json")
    assert "/nowhere is gone (No such file" in str(disk_error(FileNotFoundError(2, "", str(path)), "no", path))


@pytest.mark.parametrize(
    "text",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",  # safetensors, tokenizers
        'IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })',
        "failed: [Errno 28] No space left on device",
    ],
)
def test_the_reason_is_found_in_the_text_of_another_librarys_error(tmp_path, text):
    assert disk_error(RuntimeError(text), "no", tmp_path).errno == errno.ENOSPC


def test_the_reason_is_found_behind_another_error(tmp_path):
    with pytest.raises(DiskError, match="the disk is full"), disk_told("no", tmp_path):
        try:
            raise OSError(errno.ENOSPC, "")
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0")  # noqa: B904


@pytest.mark.parametrize("text", ["[enforce fail at inline_container.cc:668] .", "1024 requested and 0 written"])
def test_where_a_library_hides_the_reason_the_disk_is_asked(tmp_path, text):
    assert disk_error(OSError(text), "no", tmp_path / "away" / "x").errno == errno.ENOSPC
    (tmp_path / "file").touch()
    assert disk_error(OSError(text), "no", Path("/proc/1/x")).errno in (errno.ENOENT, errno.EACCES, errno.EPERM)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "nvidia-smi"),  # a program
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        PermissionError(errno.EPERM, "Operation not permitted"),  # a signal, a namespace
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        RuntimeError("shape mismatch"),
        ValueError("[Errno 2] in the middle of nothing"),
    ],
)
def test_what_is_of_no_disk_stays_what_it_is(error):
    assert told_to_user(error, "no") is None


def test_errors_that_are_told_already_and_what_they_hide_stay(tmp_path):
    with pytest.raises(DataError, match=r"^mend it$"), disk_told("no", tmp_path):
        raise DataError("mend it")
    try:
        try:
            raise OSError(errno.ENOSPC, "")
        except OSError:
            raise KeyError("of its own") from None
    except KeyError as error:
        assert disk_error(error, "no", tmp_path) is None


def test_a_real_full_device():
    said = r"no: the disk is full \(No space left on device\): /dev/full on "
    with pytest.raises(DiskError, match=said), disk_told("no", Path("/dev/full")):
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")


@contextlib.contextmanager
def largest_file(num_bytes):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_names_its_file_and_leaves_the_old_one(tmp_path):
    durable.write(tmp_path / "file", "old")
    with largest_file(5000), pytest.raises(DiskError) as told, disk_told("no", tmp_path):
        durable.write(tmp_path / "file", bytes(10_000))
    assert f"no file may grow that large (File too large): {tmp_path}/file on" in str(told.value)
    assert "ulimit -f" in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


def test_a_folder_is_tried_by_writing_into_it(tmp_path):
    refuse_unwritable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    with (
        largest_file(100),
        pytest.raises(RefusedError, match=rf"output_dir: {tmp_path} cannot be written on {HOST}: File"),
    ):
        refuse_unwritable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts in a namespace of its own, which takes root")
def test_a_disk_without_room_for_another_file_is_not_called_full_of_bytes(tmp_path):
    code = "import sys; from pathlib import Path; from allranks.disk import refuse_unwritable; "
    code += "refuse_unwritable(Path(sys.argv[1]) / 'run')"
    few = f"mount -t tmpfs -o size=100M,nr_inodes=2 tmpfs {tmp_path} && touch {tmp_path}/one"
    words = ["unshare", "--mount", "sh", "-c", f'{few} && exec "$@"', "sh", sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(words, capture_output=True, text=True, timeout=60).stderr
    assert "it takes no further file, for all its 2 inodes are in use (df -i)" in said and "are free" not in said


@pytest.fixture(scope="module")
def happened(tmp_path_factory):
    """What each writer said on a real disk that was full, read-only or gone, and what was left on it."""
    place = tmp_path_factory.mktemp("small") / "disk"
    output = run_on_small_disk(place, SIZE, "tests.disk_faults", SIZE)
    assert "Exception ignored" not in output, "one message of each fault, from Python 3.13 on, too"
    return json.loads(output.rpartition("RESULT")[2])


def test_a_full_disk_is_named_before_anything_starts(happened):
    said, left = happened["full"]
    assert "RefusedError: output_dir: " in said and "No space left on device; 0 bytes of 204.8 kB are free" in said
    assert left == ["filling", "run"]


@pytest.mark.parametrize("how", ["saved", "saved behind"])
def test_a_checkpoint_on_a_full_disk(happened, how):
    said, left = happened[how]
    assert said.startswith("DiskError: step 1 is not saved: the disk is full (No space left on device): ")
    assert f"step-00000001 on {HOST}; 49.9 kB are needed there; 36.9 kB of 204.8 kB are free. Free some room" in said
    assert "lower save_total_limit" in said and "--auto-resume-from-checkpoints true" in said and "rank" not in said
    assert left == ["checkpoints", "filling"], "the partial folder is removed"


def test_an_export_on_a_full_disk_leaves_the_one_that_it_was_to_replace(happened):
    said, left = happened["exported"]
    assert "export is not written: the disk is full" in said and "of 204.8 kB are free" in said
    assert left == ["checkpoints", "export", "filling", "old"]


def test_events_are_written_again_once_there_is_room(happened):
    lines, last = happened["events"]
    assert 5 < lines < 40 and json.loads(last)["kind"] == "exit"


def test_a_read_only_disk(happened):
    assert "cannot be written" in happened["read-only"][0] and "Read-only file system" in happened["read-only"][0]
    said = happened["read-only save"][0]
    assert "step 1 is not saved: the file system is read-only (Read-only file system): " in said and "dmesg" in said


def test_a_disk_that_vanished(happened):
    said, left = happened["vanished"]
    assert "DiskError: step 2 is not saved" in said and "mounted" in said and left == []
