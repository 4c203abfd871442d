"""Ctrl-C at any moment: one line that says what was left undone, exit code 130, no traceback."""

import ast
import json
import os
import signal
import subprocess
import sys

import pytest

from allranks import exit_codes, interrupt

# A fresh process for each moment would import the same again and again: at each a fork of the one that goes on to its
# end, so that another moment costs next to nothing. A moment is an import, counted, from the first that the way in does
# itself; each is as far again.
AT_EVERY_MOMENT = """
import json, os, signal, sys, tempfile
from allranks.cli.main import main

def forked(work):
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            work()
            return None
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return code, said.read()

class Moments:
    seen, following = 0, 1
    def find_spec(self, name, path=None, target=None):
        self.seen += 1
        if self.seen < self.following:
            return
        self.following = 2 * self.seen
        done = forked(self.interrupted)
        if done is not None:
            print(json.dumps([self.seen, *done]), file=runs, flush=True)
    def interrupted(self):
        self.following = sys.maxsize
        os.kill(os.getpid(), signal.SIGINT)

def command():
    sys.argv = ["allranks", *words]
    sys.meta_path.insert(0, Moments())
    main()

words = json.loads(sys.argv[1])
with tempfile.TemporaryFile("w+") as runs:
    whole = forked(command)
    runs.seek(0)
    print(json.dumps([whole, [json.loads(line) for line in runs]]))
"""


@pytest.fixture
def folder(tmp_path):
    rows = [{"instruction": f"say {number}", "output": f"{number}"} for number in range(4)]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "c.yaml").write_text(
        "base_model: no-such-model\nlearning_rate: 1e-4\ndatasets:\n  - {path: d.jsonl, type: alpaca}\n"
    )
    return tmp_path


SUBMIT = ["submit", "c.yaml", "--scheduler", "slurm", "--nodes", "2"]


@pytest.mark.parametrize(
    ("words", "undone"),
    [
        (["--help"], "nothing was started"),
        (["config", "show", "c.yaml"], "nothing was started"),
        (["train", "c.yaml"], "no rank was started; checkpoints are as they were"),
        (["run", "--nnodes", "2", "--", "-m", "x"], "the program was not started"),
        (["qwen", "lora", "-m", "m", "-d", "d.jsonl", "--deepspeed", "none"], "no rank was started"),
        (["preprocess", "c.yaml"], "the data set was not prepared; those that were prepared before are kept"),
        (["export", "run"], "nothing was exported; the run and its checkpoints are as they were"),
        (["merge-lora", "no-run"], "nothing was started"),
        ([*SUBMIT, "--dry-run"], "no job was submitted"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_ctrl_c_amid_the_imports_of_a_command(folder, words, undone):
    (folder / "run").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", AT_EVERY_MOMENT, json.dumps(words)], capture_output=True, text=True, cwd=folder
    )
    (code, text), runs = json.loads(done.stdout)
    assert code in (0, 1, 2) and "interrupted:" not in text, text
    assert len(runs) > 5
    lines = []
    for number, code, text in runs:
        assert "Traceback" not in text and "Exception ignored" not in text, (number, text)
        # Where signals would be handed on to ranks they have a name.
        said = [line for line in text.splitlines() if line.startswith(("interrupted: ", "SIGINT: "))]
        assert (code, len(said)) == (130, 1), (number, text)
        lines += said
    assert lines[0] == "interrupted: nothing was started"
    assert any(line.startswith(f"interrupted: {undone}") for line in lines), lines


SENT_WHILE_IT_WORKS = """
import os, signal, sys
import typer
from allranks.cli import commands, main
from allranks.errors import AllranksError

how = sys.argv.pop()

def work():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.sigtimedwait([], 60)
    except KeyboardInterrupt:
        if how == "other":
            raise ImportError("cannot import what was being imported")
        if how == "ours":
            raise AllranksError("a failure that Ctrl-C caused") from None
        if how == "again":
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 60)
        if how == "lost":
            sys.exit(1)
        raise

def load(name):
    app = commands.new_app()
    app.command(name)(work)
    command = typer.main.get_command(app)
    command.callback = commands._interruptible(name, command.callback)
    return command

commands.load_command = load
main.main()
"""


@pytest.mark.parametrize("how", ["plain", "other", "ours", "again", "lost"])
def test_whatever_becomes_of_it_while_a_command_works(how):
    done = subprocess.run(
        [sys.executable, "-c", SENT_WHILE_IT_WORKS, "export", how], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 128 + signal.SIGINT and "Traceback" not in done.stderr, done.stderr
    assert done.stderr == "\ninterrupted: nothing was exported; the run and its checkpoints are as they were\n"


# Python imports `sitecustomize` before it looks for what `-m` names.
AT_A_MOMENT = """
import os, signal, sys
class Moment:
    left = int(os.environ["MOMENT"])
    def find_spec(self, name, path=None, target=None):
        if name.startswith("allranks.") and name not in ("allranks.entry_points", "allranks.interrupt"):
            Moment.begun = True
        if Moment.begun:
            Moment.left -= 1
            if Moment.left == 0:
                os.kill(os.getpid(), signal.SIGINT)
    begun = False
sys.meta_path.insert(0, Moment())
"""


@pytest.mark.parametrize("module", ["allranks", "allranks.cli.train", "allranks.train", "allranks.compat.qwen"])
@pytest.mark.parametrize("moment", [1, 10, 60])
@pytest.mark.parametrize("rank", [None, "1"])
def test_ctrl_c_amid_the_imports_of_python_m(tmp_path, module, moment, rank):
    if rank is not None and (moment != 60 or module == "allranks"):
        return
    (tmp_path / "sitecustomize.py").write_text(AT_A_MOMENT)
    env = os.environ | {"PYTHONPATH": str(tmp_path), "MOMENT": str(moment)} | ({"RANK": rank} if rank else {})
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, env=env)
    assert done.returncode == 130, done.stderr
    assert done.stderr == ("" if rank else "\ninterrupted: nothing was started\n")


def test_a_command_that_ignores_it_goes_on(tmp_path):
    """As behind nohup, or in the background of a shell without job control."""
    (tmp_path / "sitecustomize.py").write_text(AT_A_MOMENT)
    done = subprocess.run(
        [sys.executable, "-m", "allranks", "--version"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "MOMENT": "60"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (done.returncode, done.stderr) == (0, "")


# It presses again, as anybody would: Python loses an interrupt that comes while it tidies up after an object.
FAKE_SBATCH = """#!/bin/sh
kill -INT $PPID
sleep 5
kill -INT $PPID
exec sleep 60
"""


def test_ctrl_c_while_the_scheduler_is_asked_says_that_the_job_may_be_there(folder):
    tools = folder / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text(FAKE_SBATCH)
    (tools / "sbatch").chmod(0o755)
    env = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-m", "allranks", *SUBMIT], capture_output=True, text=True, cwd=folder, env=env, timeout=50
    )
    assert done.returncode == 130
    assert "interrupted: sbatch was asked already: `squeue --me` shows" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["-c", "from allranks.cli.main import main"], ["-m", "allranks", "--version"]])
def test_next_to_nothing_is_imported_before_it_is_answered(words, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("""
import sys
sys.dont_write_bytecode = True
class Until:
    def find_spec(self, name, path=None, target=None):
        global before
        if name == "allranks":  # what came before is Python's own
            before = set(sys.modules)
        if name == "allranks.cli.commands":
            self.tell()
    def tell(self):
        print(sorted(set(sys.modules) - before - {"sitecustomize"}), file=sys.stderr)
        sys.meta_path.remove(self)
until = Until()
sys.meta_path.insert(0, until)
""")
    code = [words[0], words[1] + "; import sitecustomize; sitecustomize.until.tell()"] if words[0] == "-c" else words
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, *code], capture_output=True, text=True, env=env)
    imported = ast.literal_eval(done.stderr.splitlines()[0])
    ours = {"allranks", "allranks.cli", "allranks.cli.main", "allranks.entry_points", "allranks.interrupt"}
    # The last two once it is answered.
    assert set(imported) <= ours | {"__future__", "allranks.__main__", "allranks.quick_imports", "gc"}, imported


def test_the_exit_code_is_the_one_that_is_written_down():
    assert interrupt.EXIT_CODE == exit_codes.INTERRUPTED
