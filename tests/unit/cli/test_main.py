import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from allranks.cli.command_words import WORDS, meant_command
from allranks.cli.commands import COMMANDS, load_command


def allranks(*arguments, **settings):
    return subprocess.run([sys.executable, "-m", "allranks", *arguments], capture_output=True, text=True, **settings)


def test_help_lists_every_command_in_one_line_each():
    shown = allranks("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_loaded_and_explains_itself_with_an_example(name):
    assert load_command(name).name == name
    done = allranks(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "example" in done.stdout.lower() and f"allranks {name}" in done.stdout


def test_commands_of_later_versions_are_not_there():
    for name in ("report",):
        assert allranks(name).returncode == 2
        assert importlib.util.find_spec(f"allranks.cli.{name}") is None


ALL = {*COMMANDS, "chat", "generate", "evaluate", "init"}


@pytest.mark.parametrize(
    ("word", "command"),
    [
        *(
            ("trian", "train"),
            ("Train", "train"),
            ("finetune", "train"),
            ("sft", "train"),
            ("pre-process", "preprocess"),
        ),
        *(
            ("inference", "chat"),
            ("infrence", "chat"),
            ("webui", "chat"),
            ("eval", "evaluate"),
            ("merge_lora", "merge-lora"),
        ),
        *(("tokenize", "preprocess"), ("sbatch", "submit"), ("schema", "config"), ("fetch", "demo"), ("xyzzy", None)),
    ],
)
def test_a_word_that_is_no_command_leads_to_the_one_that_was_meant(word, command):
    assert meant_command(word, ALL) == command


def test_only_commands_that_there_are_are_named():
    for word in WORDS:
        assert meant_command(word, COMMANDS) in {*COMMANDS, None}
    assert meant_command("inference", {"generate"}) == "generate" and not set(WORDS) & set(COMMANDS)


def test_an_error_of_the_users_is_one_message_on_stderr_and_exit_2(tmp_path):
    done = allranks("train", str(tmp_path / "missing.yaml"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "missing.yaml" in done.stderr and "Traceback" not in done.stderr


def test_wrong_usage_is_exit_2():
    done = allranks("trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: trian: no such command; did you mean `allranks train`? `allranks --help` lists all\n"
    assert allranks("--no-such-option").returncode == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("check", "missing.yaml", "--json"), "missing.yaml: no such file"),
        (("check", "missing.yaml", "--json", "--quick", "--deep"), "--quick and --deep exclude each other"),
        (("verify", "--json"), "Missing argument"),
        (("status", "missing", "--json"), "missing is no folder"),
    ],
)
def test_a_program_that_asks_for_json_reads_of_an_error_too(words, told, tmp_path):
    done = allranks(*words, cwd=tmp_path)
    said = json.loads(done.stdout)
    assert done.returncode == said["exit_code"] == 2 and not said["refused"]
    assert told in said["error"] and told in done.stderr


def test_what_is_not_ours_asks_for_no_json(tmp_path):
    done = allranks("run", "--no-such-option", "--", "missing.py", "--json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_needs_nothing_that_takes_long(arguments):
    """Rich alone would cost 0.1 s; pydantic is typer's own."""
    code = (
        "import atexit, sys\n"
        "from allranks.cli.main import main\n"
        "slow = ('rich', 'numpy', 'torch', 'yaml', 'psutil')\n"
        "atexit.register(lambda: print([name for name in slow if name in sys.modules], file=sys.stderr))\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
def test_output_that_does_not_fit_on_its_disk_is_no_success():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "allranks", "doctor", "--check-rules"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "error: a part of what this command printed was not written: No space left on device",
    )
