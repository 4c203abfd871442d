"""Requests in a run's folder: what is none does nothing, and who asks is told why there is no answer."""

import contextlib
import json
import os
import threading
from pathlib import Path

import pytest

from allranks.evidence.requests import (
    MAX_SECONDS,
    NoLauncher,
    Request,
    RequestFolder,
    ask_launcher,
    requests_folder,
)

NAME = "0123456789abcdef0123456789abcdef"


def put(folder: RequestFolder, output_dir: Path, content: str | bytes, name: str = f"{NAME}.json") -> Path:
    folder.take()  # makes it
    path = requests_folder(output_dir) / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_request_is_answered_and_nothing_is_left(tmp_path):
    folder, asked = RequestFolder(tmp_path), []
    over = threading.Event()

    def launcher() -> None:
        while not over.wait(0.01):
            if taken := folder.take():
                asked.extend(taken)
                folder.answer(taken, [{"node": 0, "ranks": []}], ["node 1 (gpu1)"])

    folder.take()
    thread = threading.Thread(target=launcher)
    thread.start()
    try:
        answer = ask_launcher(tmp_path, seconds=7.0, no_launcher=lambda: None)
    finally:
        over.set()
        thread.join()
    assert answer == {"summaries": [{"node": 0, "ranks": []}], "silent": ["node 1 (gpu1)"]}
    assert [one.seconds for one in asked] == [7.0]
    assert list(requests_folder(tmp_path).iterdir()) == []
    folder.close()
    assert list(tmp_path.iterdir()) == []


def test_those_who_ask_at_once_are_taken_together_and_no_more_than_a_number(tmp_path):
    folder = RequestFolder(tmp_path)
    for number in range(40):
        put_only = requests_folder(tmp_path)
        put_only.mkdir(parents=True, exist_ok=True)
        (put_only / f"{number:032x}.json").write_text('{"version": 1, "seconds": 2}')
    counts = [len(folder.take()) for _ in range(4)]
    assert counts == [16, 16, 8, 0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 1000,
        b'{"version": 2, "seconds": 5}',
        b'{"version": 1}',
        b'{"version": 1, "seconds": "5"}',
        b'{"version": 1, "seconds": true}',
        b'{"version": 1, "seconds": NaN}',
        b'{"version": 1, "seconds": 1e999}',
        b'{"version": 1, "seconds": 5}' + b" " * 5000,
    ],
)
def test_what_is_no_request_does_nothing_and_goes(tmp_path, content):
    folder = RequestFolder(tmp_path)
    path = put(folder, tmp_path, content)
    assert folder.take() == []
    assert not path.exists()


def test_a_request_says_for_how_long_and_nothing_else(tmp_path):
    folder = RequestFolder(tmp_path)
    put(folder, tmp_path, json.dumps({"version": 1, "seconds": 1e9, "pid": 1, "path": "/etc", "name": "../x"}))
    assert folder.take() == [Request(NAME, MAX_SECONDS)]
    put(folder, tmp_path, json.dumps({"version": 1, "seconds": -3}))
    assert folder.take() == [Request(NAME, 1.0)]


@pytest.mark.parametrize("name", ["x.json", f"{NAME}", f"{NAME}.json.json", f"{NAME.upper()}.json", f"{NAME}.txt"])
def test_files_of_others_are_left_alone(tmp_path, name):
    folder = RequestFolder(tmp_path)
    path = put(folder, tmp_path, '{"version": 1, "seconds": 5}', name)
    assert folder.take() == []
    assert path.exists()


def test_links_fifos_and_folders_are_not_followed_nor_waited_for(tmp_path):
    folder = RequestFolder(tmp_path)
    folder.take()
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text('{"version": 1, "seconds": 5}')
    path = requests_folder(tmp_path) / f"{NAME}.json"
    path.symlink_to(elsewhere)
    assert folder.take() == []
    assert elsewhere.exists() and not path.is_symlink()
    os.mkfifo(path)
    assert folder.take() == []
    path.mkdir()
    assert folder.take() == []


def test_an_answer_is_written_through_no_link(tmp_path):
    folder = RequestFolder(tmp_path)
    folder.take()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in (f".{NAME}.answer", f"{NAME}.answer"):
        (requests_folder(tmp_path) / name).symlink_to(victim)
    with contextlib.suppress(FileExistsError):
        folder.answer([Request(NAME, 5.0)], [{"node": 0}], [])
    assert victim.read_text() == "mine"


def test_the_folder_itself_may_be_no_link(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / f"{NAME}.json").write_text('{"version": 1, "seconds": 5}')
    run = tmp_path / "run"
    (run / "evidence").mkdir(parents=True)
    requests_folder(run).symlink_to(elsewhere)
    with pytest.raises(OSError):
        RequestFolder(run).take()
    assert (elsewhere / f"{NAME}.json").exists()


def test_of_very_many_ranks_those_that_have_room_are_answered(tmp_path):
    folder = RequestFolder(tmp_path)
    folder.take()
    large = "x" * 2**20
    folder.answer([Request(NAME, 5.0)], [{"node": node, "ranks": [], "t": large} for node in range(70)], [])
    path = requests_folder(tmp_path) / f"{NAME}.answer"
    said = json.loads(path.read_text())
    assert path.stat().st_size < 64 * 2**20
    assert len(said["summaries"]) + len(said["silent"]) == 70
    assert said["silent"][-1] == "node 69 (its answer has no room here)"


def test_who_asks_nobody_is_told_why(tmp_path):
    with pytest.raises(NoLauncher, match="as under Ray"):
        ask_launcher(tmp_path, seconds=1.0, no_launcher=lambda: None)
    with pytest.raises(NoLauncher, match="is gone"):
        ask_launcher(tmp_path, seconds=1.0, no_launcher=lambda: "it is gone")
    requests_folder(tmp_path).mkdir(parents=True)
    said = iter([None, None, "it went meanwhile"])
    with pytest.raises(NoLauncher, match="it went meanwhile"):
        ask_launcher(tmp_path, seconds=1.0, no_launcher=lambda: next(said))
    assert list(requests_folder(tmp_path).iterdir()) == []


def test_a_new_launcher_removes_what_the_one_before_left_and_takes_what_waits(tmp_path):
    folder = RequestFolder(tmp_path)
    for name in (f"{NAME}.answer", f".{NAME}.answer", f".{NAME}.json"):
        put(folder, tmp_path, "{}", name)
    put(folder, tmp_path, '{"version": 1, "seconds": 5}')
    later = RequestFolder(tmp_path)
    assert [path.name for path in requests_folder(tmp_path).iterdir()] == [f"{NAME}.json"]
    assert len(later.take()) == 1
