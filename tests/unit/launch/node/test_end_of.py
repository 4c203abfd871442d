"""The end of a child is seen by a descriptor of it, and where there is none."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from allranks.launch.node.end_of import end_of


def _forbidden(pid: int) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.mark.parametrize("has_descriptor", (True, False))
def test_a_child_is_waited_for_in_turns_until_it_ends(has_descriptor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_descriptor:
        monkeypatch.setattr(os, "pidfd_open", _forbidden)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with subprocess.Popen([sys.executable, "-c", "input(); raise SystemExit(7)"], stdin=subprocess.PIPE) as child:
        with end_of(child, 0.02) as ends:
            assert not ends() and not ends()
            assert child.stdin is not None
            child.stdin.write(b"\n")
            child.stdin.close()
            while not ends():
                pass
        assert child.returncode == 7
    assert len(list(Path("/proc/self/fd").iterdir())) == before
