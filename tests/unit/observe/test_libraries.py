"""What libraries print goes to rank 0's log; what we say, and errors, reach the terminal."""

import logging
import os
import subprocess
import sys
import warnings

import pytest

from allranks.errors import ConfigError
from allranks.observe import libraries_aside

RANK = """
import logging, sys, warnings
from allranks.observe import Progress, libraries_aside, redirect_rank_output, say

with libraries_aside():
    # As DeepSpeed does when it is imported: a logger that holds the stream of that moment.
    logger = logging.getLogger("lib")
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.warning("before the log")
    print("a bar: 100%", file=sys.stderr)
    redirect_rank_output(0)
    logger.warning("after it")
    warnings.warn("will be removed", FutureWarning)
    say("ours")
    say("ours, an error", file=sys.stderr)
    Progress(2, logging_steps=1).note("a note")
    if len(sys.argv) > 1:
        raise RuntimeError("broken here")
print("the end")
"""
NOISE = ("before the log", "a bar: 100%", "after it", "FutureWarning: will be removed")


def rank_0(folder, *arguments):
    env = os.environ | {"ALLRANKS_LOG_DIR": str(folder)}
    return subprocess.run([sys.executable, "-c", RANK, *arguments], env=env, capture_output=True, text=True)


def test_noise_is_in_the_log_in_order_and_not_on_the_terminal(tmp_path):
    done = rank_0(tmp_path)
    assert done.stdout.splitlines() == ["ours", "a note", "the end"]
    assert done.stderr.splitlines() == ["ours, an error"]
    log = (tmp_path / "rank-00000.log").read_text()
    places = [log.index(noise) for noise in NOISE]
    assert places == sorted(places) and "ours" not in log


def test_an_error_that_nobody_expected_is_on_the_terminal_too(tmp_path):
    done = rank_0(tmp_path, "fail")
    assert "RuntimeError: broken here" in done.stderr and "will be removed" not in done.stderr
    assert "RuntimeError: broken here" in (tmp_path / "rank-00000.log").read_text()


def test_where_there_is_no_log_noise_is_shown_only_before_an_error_that_is_not_ours(capsys):
    with libraries_aside():
        print("noise")
        warnings.warn("noise", stacklevel=1)
        logging.getLogger("nobody configured").warning("noise")
    with pytest.raises(ConfigError), libraries_aside():
        print("noise")
        raise ConfigError("c.yaml: told")
    assert capsys.readouterr() == ("", "")
    with pytest.raises(RuntimeError), libraries_aside():
        print("the reason")
        raise RuntimeError
    assert capsys.readouterr() == ("", "the reason\n")


def test_streams_are_as_before_afterwards():
    before = sys.stdout, sys.stderr
    with libraries_aside():
        assert sys.stdout is not before[0] and not sys.stderr.isatty() and sys.stdout.encoding
    assert (sys.stdout, sys.stderr) == before
