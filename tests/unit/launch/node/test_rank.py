"""A rank of anyone's program: its output, its arguments and its exit code are the program's."""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def rank(tmp_path):
    def start(number, *words, terminal=""):
        return subprocess.run(
            [sys.executable, "-m", "allranks.launch.node.rank", *words],
            env={**os.environ, "RANK": str(number), "ALLRANKS_LOG_DIR": str(tmp_path), "ALLRANKS_TERMINAL": terminal},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return start


def test_all_output_of_a_rank_is_in_its_log(rank, tmp_path):
    done = rank(3, "executable", "sh", "-c", 'echo "out $1"; echo err >&2; exit 7', "sh", "a b;$(c)\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
    assert (tmp_path / "rank-00003.log").read_text() == "out a b;$(c)\n\nerr\n"


def test_scripts_and_modules_are_started_as_python_starts_them(rank, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "script.py").write_text("import sys, os; print(sys.argv, sys.path[0])")
    (tmp_path / "module.py").write_text("import sys; print(sys.argv[1:], __name__)")
    rank(1, "script", "folder/script.py", "--x")
    rank(1, "module", "module", "-m")
    assert (tmp_path / "rank-00001.log").read_text().splitlines() == [
        f"['folder/script.py', '--x'] {tmp_path}/folder",
        "['-m'] __main__",
    ]


def test_rank_0_writes_where_the_launcher_shows_it(rank, tmp_path):
    (tmp_path / "terminal").touch()
    rank(0, "executable", "echo", "hello", terminal=str(tmp_path / "terminal"))
    assert (tmp_path / "terminal").read_text() == "hello\n"


def test_an_executable_that_is_not_on_this_node(rank, tmp_path):
    assert rank(1, "executable", "no-such-program").returncode == 127
    assert "error: no-such-program: No such file" in (tmp_path / "rank-00001.log").read_text()
