"""The command starts itself anew with variables that a process's start reads; a program that calls it does not."""

import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
    import os, sys
    from allranks.launch.node.start_anew import start_anew
    known = os.environ.get("OF_THE_START", "nothing")
    print(os.getpid(), known, *sys.argv[1:])
    start_anew({"OF_THE_START": "all"} if known == "nothing" else {})
"""


@pytest.mark.parametrize(("name", "words"), [("allranks", ["nothing", "all"]), ("theirs.py", ["nothing"])])
def test_only_the_command_is_started_anew_in_the_same_process_with_the_same_arguments(tmp_path, name, words):
    (tmp_path / name).write_text(textwrap.dedent(SCRIPT))
    argv = [sys.executable, str(tmp_path / name), "train", "a b.yaml"]
    run = subprocess.run(argv, capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert [line.split(" ", 2)[1:] for line in lines] == [[word, "train a b.yaml"] for word in words]
    assert len({line.split()[0] for line in lines}) == 1


def test_with_nothing_to_set_it_goes_on(tmp_path):
    (tmp_path / "allranks").write_text("from allranks.launch.node.start_anew import start_anew\nstart_anew({})\n")
    subprocess.run([sys.executable, str(tmp_path / "allranks")], check=True, timeout=60)
