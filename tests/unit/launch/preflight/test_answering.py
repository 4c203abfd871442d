"""A file system that hangs is told before anything of a start touches it."""

import threading
from pathlib import Path

import pytest

from allranks.errors import RefusedError
from allranks.launch.preflight import answering
from allranks.launch.preflight.answering import refuse_what_does_not_answer


def test_a_path_that_hangs_is_named_and_others_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "_SECONDS", 0.2)
    over = threading.Event()
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: over.wait(60) if str(path) == "/dead" else exists(path))
    try:
        with pytest.raises(RefusedError, match=r"^output_dir /dead: no answer in .* the file system there hangs"):
            refuse_what_does_not_answer(
                [{"purpose": "output_dir", "path": "/dead"}, {"purpose": "model", "path": str(tmp_path)}]
            )
    finally:
        over.set()
    refuse_what_does_not_answer([{"purpose": "data", "path": str(tmp_path / "not there")}])
