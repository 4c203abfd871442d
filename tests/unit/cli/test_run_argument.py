import subprocess
import sys

import pytest

from allranks.observe import RunDir

_LOOKING = ("status", "top", "verify", "stacks", "bundle")


def allranks(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "allranks", *arguments], capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("command", _LOOKING)
def test_what_is_no_run_is_told_alike_by_every_command_and_without_the_terminals_commands(command, tmp_path):
    done = allranks(command, "none\x1b[31m", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: none\ufffd[31m is no folder on this node: name the run's output_dir or config, on a node whose "
        "disk has it\n"
    )


@pytest.mark.parametrize("command", ["status", "verify", "stacks"])
def test_every_command_that_looks_at_a_run_takes_its_config_too(command, tmp_path):
    lines = ("base_model: m", "datasets: [{path: d.jsonl, type: alpaca}]", "learning_rate: 1e-4", "output_dir: its-run")
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    done = allranks(command, "c.yaml", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: its-run is no folder on this node"), done.stderr


def test_a_bundle_goes_into_a_folder_that_is_there(tmp_path):
    RunDir(tmp_path / "run").logs(0).mkdir(parents=True)
    done = allranks("bundle", "run", "-o", "none/b.tar.gz", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --output none/b.tar.gz: there is no folder none; make it, or name another file\n"
