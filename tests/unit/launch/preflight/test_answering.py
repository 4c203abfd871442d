"""A file system that hangs is told before anything of a start touches it."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from allranks.errors import RefusedError
from allranks.launch.preflight import answering
from allranks.launch.preflight.answering import refuse_what_does_not_answer
from tests.patience import TIMEOUT_SECONDS


def test_a_path_that_hangs_is_named_and_others_are_not(tmp_path, monkeypatch):
    # The time of the first is as long as it takes, that of the second is over when its turn comes.
    clock = iter((0.0, 0.0, 3600.0))
    monkeypatch.setattr(answering, "_SECONDS", TIMEOUT_SECONDS)
    monkeypatch.setattr(answering, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    over = threading.Event()
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: over.wait(60) if str(path) == "/dead" else exists(path))
    try:
        with pytest.raises(RefusedError, match=r"^output_dir /dead: no answer in .* the file system there hangs"):
            refuse_what_does_not_answer(
                [{"purpose": "model", "path": str(tmp_path)}, {"purpose": "output_dir", "path": "/dead"}]
            )
    finally:
        over.set()
    monkeypatch.undo()
    refuse_what_does_not_answer([{"purpose": "data", "path": str(tmp_path / "not there")}])
