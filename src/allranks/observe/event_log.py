"""The writer of a rank's events, one JSON object a line."""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from allranks.disk import disk_error
from allranks.observe.enduring import say
from allranks.observe.events import Event

_COMPARED_BYTES = 2**12  # dozens of events, each with its time


class EventLog:
    """Appends the events of one rank to `path`; every event is in the file when `write` returns.

    Each line is `{"t": unix seconds, "rank": …, "kind": …, "run": run id, …}`. The run id comes from ALLRANKS_RUN_ID,
    which the launcher sets anew at each start: a resumed run appends to the same file.
    """

    def __init__(self, path: str | Path, rank: int, *, run_id: str | None = None) -> None:
        self.path = Path(path)
        self.rank = rank
        self.run_id = run_id or os.environ.get("ALLRANKS_RUN_ID")
        self._failed = self._torn = False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            # The run before was killed in the middle of a line: keep our first event from being glued to it.
            os.write(self._fd, b"\n")
        self.start_offset = os.fstat(self._fd).st_size
        """Bytes in the file before the first event of this log."""

    def write(self, event: Event) -> None:
        """Append one event, with the time, the rank and the run; non-finite numbers become "nan", "inf", "-inf".

        Never raises for a full or vanished disk: losing the record must not lose the run. It says so once on stderr.
        """
        head: dict[str, Any] = {"t": round(time.time(), 6), "rank": self.rank, "kind": event.kind}
        if self.run_id:
            head["run"] = self.run_id
        line = json.dumps(_jsonable(head | event.own_fields()), separators=(",", ":"), ensure_ascii=False) + "\n"
        content = (b"\n" if self._torn else b"") + line.encode("utf-8", "replace")
        written = 0
        try:
            # One write system call on a descriptor opened for appending: nothing to flush, also before os._exit.
            while written < len(content):  # of a line that does not fit on the disk, the rest is refused with a reason
                written += os.write(self._fd, content[written:])
            self._torn = False
        except OSError as error:
            self._torn = self._torn or written > 0
            if not self._failed:
                told = disk_error(error, f"events of rank {self.rank} are lost", self.path)
                say(f"warning: {told or error}; the run goes on", file=sys.stderr)
            self._failed = True

    def is_in_place(self) -> bool:
        """Whether `path` still leads to what this log has written: not where a mount went away or it was moved."""
        try:
            start = max(0, os.fstat(self._fd).st_size - _COMPARED_BYTES)
            with self.path.open("rb") as file:
                file.seek(start)
                return file.read(_COMPARED_BYTES) == os.pread(self._fd, _COMPARED_BYTES, start)
        except OSError:
            return False

    def close(self) -> None:
        os.close(self._fd)


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        # JSON has no NaN; Python's own spelling of it is not JSON, and other readers refuse the whole line.
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return _jsonable(value.item())
    return str(value)
