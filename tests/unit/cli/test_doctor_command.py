"""`allranks doctor` as it is typed: what it prints, and how it ends."""

import io
import json
import os
import subprocess
import sys

import pytest

from allranks.cli.main import main
from tests.exam.score import graded, questions

LOG = "step 1\n[rank3]: OSError: [Errno 28] No space left on device: '/data/x'\n"


@pytest.fixture
def doctor(capsys):
    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main(["doctor", *map(str, words)])
        told = capsys.readouterr()
        return ended.value.code, told.out, told.err

    return run


def test_known_ends_with_0_and_unknown_with_1(doctor, tmp_path):
    log = tmp_path / "train.log"
    log.write_text(LOG)
    code, out, _ = doctor(log)
    assert code == 0 and "rank 3" in out and f"{log}:2 | OSError" in out
    log.write_text("step 1\nstep 2\n")
    code, out, _ = doctor(log)
    assert code == 1 and out.startswith("unknown")
    log.write_text("step 1\nstep 2\nTraining completed\n")
    code, out, _ = doctor(log)
    assert code == 0 and out.startswith("nothing failed: ")


def test_json_is_one_object(doctor, tmp_path):
    log = tmp_path / "train.log"
    log.write_text(LOG)
    code, out, _ = doctor(log, "--json")
    told = json.loads(out)
    assert code == 0 and (told["cause"], told["rank"], told["evidence"][0]["line"]) == ("disk-full", 3, 2)
    assert told["restart"]["verdict"] == "hopeless" and len(told["restart"]["fingerprint"]) == 16


def test_wrong_usage_ends_with_2(doctor, tmp_path):
    for words, told in (([], "name a run"), ([tmp_path / "none.log"], "no such file"), ([tmp_path], "no log in it")):
        code, out, err = doctor(*words)
        assert code == 2 and told in err and out == ""


@pytest.mark.parametrize("options", [[], ["--follow"]])
def test_standard_input_is_read(doctor, monkeypatch, options):
    read, write = os.pipe()
    os.write(write, LOG.encode())
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(pipe))
        code, out, _ = doctor("-", *options)
    assert code == 0 and "<stdin>:2" in out


def test_no_control_character_of_a_log_is_printed(doctor, tmp_path):
    log = tmp_path / "\x1b[2Jname.log"
    log.write_bytes(b"[rank3]: OSError: [Errno 28] No space left on device: '/\x1b]0;x\x07\x9b2J\x08\x00\xff'\n")
    code, out, _ = doctor(log)
    assert code == 0 and all(char.isprintable() or char == "\n" for char in out)


def test_a_question_of_the_exam_is_graded():
    assert {grade for grade, _ in map(graded, list(questions("a"))[:3])} <= {"right", "right, likely"}


RULE = """
[[rule]]
id = "{id}"
kind = "cause"
title = "the scratch disk of rack 7 is being cleaned"
patterns = ['''{pattern}''']
certainty = "sure"
meaning = "It is cleaned on Mondays."
remedy = "Start again at noon."
not_proven = "That it is Monday."
look_at = "The rack."
sources = ["https://example.org/rack7"]
restart = "may-pass"
cases = ['''scratchd: cleaning, come again''']
near_misses = ['''scratchd: clean''']
"""


@pytest.mark.parametrize(
    ("id", "pattern", "log"),
    [
        ("scratch-cleaned", "scratchd: cleaning", "scratchd: cleaning, come again\n"),
        ("disk-full", "No space left", LOG),
    ],
)
def test_rules_of_a_users_own_judge_too_and_go_before_ours_of_the_same_id(tmp_path, id, pattern, log):
    (tmp_path / "train.log").write_text(log)
    (tmp_path / "own.toml").write_text(RULE.format(id=id, pattern=pattern))
    command = [sys.executable, "-m", "allranks", "doctor", "train.log", "--rules", "own.toml"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0 and "rack 7" in ended.stdout and "Start again at noon" in ended.stdout, ended.stderr


def test_rules_that_are_wrong_are_refused_before_a_log_is_read(doctor, tmp_path):
    (tmp_path / "train.log").write_text(LOG)
    (tmp_path / "own.toml").write_text("[[rule]]\nid = 7\n")
    code, out, err = doctor(tmp_path / "train.log", "--rules", tmp_path / "own.toml")
    assert code == 2 and "own.toml: rule number 1" in err and out == ""
