"""`allranks submit` with stand-ins for sbatch and qsub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from allranks.cli.commands import load_command
from allranks.config.names import known_keys

CONFIG = """
base_model: somewhere
datasets: [{path: data.jsonl, type: alpaca}]
learning_rate: 1e-3
sequence_len: 512
output_dir: out
"""


@pytest.fixture
def submit(tmp_path):
    """Runs the command where sbatch and qsub keep the script they get, and answer as they do."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "bin").mkdir()
    for name, answer in (("sbatch", "4711"), ("qsub", "4711.server")):
        stand_in = tmp_path / "bin" / name
        stand_in.write_text(
            '#!/bin/bash\nfor script; do true; done\ncp "$script" "$KEPT"\nenv >"$KEPT.env"\n'
            f'printf "%s\\n" "$@" >"$KEPT.argv"\necho {answer}\n'
        )
        stand_in.chmod(0o755)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        env = {
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
            "KEPT": str(tmp_path / "kept"),
            "PWD": str(tmp_path),
            **environment,
        }
        command = [sys.executable, "-m", "allranks", "submit", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    return run


BASE = ("config.yaml", "--scheduler", "slurm", "--nodes", "4")


def test_what_is_submitted_is_what_is_kept_and_what_a_dry_run_shows(submit, tmp_path):
    shown = submit(*BASE, "--dry-run")
    assert shown.returncode == 0 and shown.stderr == ""
    assert list((tmp_path / "out").rglob("*")) == [tmp_path / "out" / "launch"]
    done = submit(*BASE)
    assert done.returncode == 0, done.stderr
    (script,) = (tmp_path / "out" / "launch").glob("submit-*.sh")
    assert script.read_text() == (tmp_path / "kept").read_text() == shown.stdout
    log = tmp_path / "out" / "launch" / "slurm-4711.log"
    for line in ("job:        4711", f"log:        tail -F {log}", f"script:     {script}", "squeue --jobs 4711"):
        assert line in done.stdout
    assert f'#SBATCH --output="{tmp_path}/out/launch/slurm-%j.log"'.replace('"', "") in shown.stdout.replace('"', "")


def test_json_is_for_programs(submit, tmp_path):
    done = submit("config.yaml", "--scheduler=pbs", "--nodes=4", "--json")
    told = json.loads(done.stdout)
    assert told["job"] == "4711.server" and told["log"] == str(tmp_path / "out/launch/pbs-4711.server.log")
    assert Path(told["script"]).read_text().startswith("#!/bin/bash\n#PBS -N config\n")


def last_command(text: str) -> str:
    return next(line for line in text.splitlines() if " -m allranks train " in line).partition(" -m allranks ")[2]


def test_words_that_are_not_its_own_go_to_train_and_are_checked(submit):
    keys = ("--max-steps", "2", "--sample_packing", "--dry-run", "--output-dir", "else where")
    shown = submit(*BASE, *keys, "--", "--rdzv-conf", "timeout=9", "--max-restarts", "1")
    assert last_command(shown.stdout) == (
        "train config.yaml --max-steps 2 --sample_packing --output-dir 'else where' -- --rdzv-conf timeout=9 "
        "--max-restarts 1 &"
    )
    assert "else where/launch/slurm-%j.log" in shown.stdout
    for words in (("--max-step", "2"), ("--learning-rate", "fast"), ("--", "--learning-rate", "fast")):
        done = submit(*BASE, *words)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and words[-2] in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nnodes", "4"), "--nnodes: the job's nodes are known when it starts; give --nodes"),
        (("--", "--node-rank", "0"), "--node-rank: the job's nodes are known when it starts; leave it out"),
        (("--requeue", "--auto-resume-from-checkpoints", "false"), "--requeue goes on from the newest checkpoint"),
        (("--requeue", "--resume-from-checkpoint", "x"), "excludes"),
        (("--scheduler", "lsf"), "--scheduler lsf: expected slurm or pbs"),
        (("--pbs-flavour", "pro"), "--pbs-flavour pro: expected openpbs or torque"),
        (("--job-name", "a\nb"), "--job-name"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(submit, tmp_path, words, message):
    done = submit(*BASE, *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_requeued_job_resumes_and_has_all_the_time_to_save(submit):
    shown = submit(*BASE, "--requeue", "--signal-before", "900", "--dry-run").stdout
    assert last_command(shown) == "train config.yaml --auto-resume-from-checkpoints true --grace-seconds 900 &"
    assert "#SBATCH --requeue\n" in shown and "#SBATCH --signal=B:USR1@900\n" in shown
    shown = submit(*BASE, "--signal-before", "900", "--dry-run", "--", "--grace-seconds", "60").stdout
    assert last_command(shown) == "train config.yaml -- --grace-seconds 60 &"
    assert "#SBATCH --no-requeue\n" in shown


def test_exported_variables_cross_to_the_other_nodes(submit):
    exports = ("--export", "HF_TOKEN", "--export", "A=b c")
    shown = submit(*BASE, *exports, "--dry-run", HF_TOKEN="hf_secret").stdout
    assert last_command(shown) == "train config.yaml --export HF_TOKEN --export A &"
    assert "\nexport A='b c'\n" in shown and "hf_secret" not in shown
    alone = submit(
        "config.yaml", "--scheduler", "pbs", "--nodes", "1", *exports, "--dry-run", HF_TOKEN="hf_secret"
    ).stdout
    assert last_command(alone) == "train config.yaml &" and "#PBS -v HF_TOKEN\n" in alone


def test_variables_that_win_over_the_script_do_not_reach_sbatch(submit, tmp_path):
    assert "SBATCH_QOS would" in submit(*BASE, "--directive", "--qos=low", SBATCH_QOS="high").stderr
    done = submit(*BASE, "--time", "1:00:00", SBATCH_TIMELIMIT="1", SBATCH_QOS="high", HF_TOKEN="hf_secret")
    assert "SBATCH_TIMELIMIT would change what the script asks for" in done.stderr
    handed_on = (tmp_path / "kept.env").read_text()
    assert "SBATCH_QOS=high" in handed_on and "HF_TOKEN" in handed_on and "SBATCH_TIMELIMIT" not in handed_on
    assert "hf_secret" not in (tmp_path / "kept").read_text() + done.stdout + done.stderr


def test_a_name_that_is_not_utf8(submit, tmp_path):
    name = os.fsdecode(b"caf\xe9.yaml")
    (tmp_path / name).write_text(CONFIG)
    assert submit(name, *BASE[1:]).returncode == 0
    assert b"train 'caf\xe9.yaml' &" in (tmp_path / "kept").read_bytes()


def test_a_scheduler_that_refuses_or_is_not_there(submit, tmp_path):
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho invalid partition >&2\nexit 1\n")
    done = submit(*BASE)
    assert done.returncode == 1 and done.stderr.startswith("invalid partition\nerror: sbatch refused the job")
    (tmp_path / "bin" / "qsub").unlink()
    done = submit("config.yaml", "--scheduler", "pbs", "--nodes", "2")
    assert done.returncode == 2 and "qsub is not here" in done.stderr and "--dry-run" in done.stderr


def test_no_option_hides_a_config_key():
    names = {name for param in load_command("submit").params for name in param.opts}
    assert not {f"--{key.replace('_', '-')}" for key in known_keys()} & names


def test_it_needs_neither_torch_nor_numpy(submit, tmp_path):
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print([n for n in ('torch', 'numpy', 'transformers') if n in sys.modules]))\n"
        "from allranks.cli.main import main\n"
        f"main(['submit', *{BASE!r}, '--dry-run'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith('exit "$code"\n[]\n'), done.stdout + done.stderr
