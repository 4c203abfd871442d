"""Every writer of ours on a small disk that is full, read-only or gone: `python -m tests.disk_faults PLACE BYTES`.

Prints a JSON object: what each said, and what was left. For tests/unit/test_disk.py, which mounts the disk at PLACE.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allranks.checkpoint.state import RunState
from allranks.disk import refuse_unwritable
from allranks.errors import AllranksError
from allranks.export.publish import new_folder
from allranks.observe import EventLog
from allranks.observe.events import ExitEvent, WarningEvent
from tests.unit.train.test_checkpoint import make, step


def main(place: Path, size: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    filling = place / "filling"

    def happens(name: str, action: Callable[[], object], *, free: int | None = None) -> None:
        if free is not None:
            filling.write_bytes(bytes(size - _used(place) - free))
        try:
            action()
            said = ""
        except AllranksError as error:
            said = f"{type(error).__name__}: {error}"
        found[name] = [said, sorted(path.name for path in place.rglob("*"))]
        if free is not None:
            filling.unlink()

    happens("full", lambda: refuse_unwritable(place / "run"), free=0)
    (place / "run").rmdir()
    happens("saved", lambda: _save(place), free=36_864)
    happens("saved behind", lambda: _save(place, asynchronous=True), free=36_864)
    (place / "export").mkdir()
    (place / "export" / "old").touch()
    happens("exported", lambda: _export(place / "export"), free=40_960)

    log = EventLog(place / "events.jsonl", 0)
    filling.write_bytes(bytes(size - _used(place) - 4096))
    for number in range(100):
        log.write(WarningEvent(step=number, message="x" * 100))
    filling.unlink()
    log.write(ExitEvent(code=0))
    lines = log.path.read_text().splitlines()
    found["events"] = [len(lines), lines[-1]]
    log.close()

    _run("mount", "-o", "remount,ro", place)
    happens("read-only", lambda: refuse_unwritable(place / "run"))
    happens("read-only save", lambda: _save(place))
    _run("mount", "-o", "remount,rw", place)
    _run("umount", "-l", place)
    place.rmdir()
    place.touch()  # in its way, so that it is not simply made anew
    happens("vanished", lambda: _save(place, number=2))
    return found


def _save(place: Path, *, asynchronous: bool = False, number: int = 1) -> None:
    checkpointer = make(place / "checkpoints", asynchronous=asynchronous)
    step(checkpointer)
    checkpointer.save(number, RunState(number, {}))
    checkpointer.wait()


def _export(out: Path) -> None:
    with new_folder(out, replace=True) as folder:
        (folder / "model.safetensors").write_bytes(bytes(100_000))


def _used(place: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in place.rglob("*") if path.is_file())


def _run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True)


if __name__ == "__main__":
    print("RESULT" + json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
