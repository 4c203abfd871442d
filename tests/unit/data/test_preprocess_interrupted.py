"""Ctrl-C while a data set is prepared: it appears whole or not at all, and the command says so."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from allranks.cli.main import main
from tests.unit.data.conftest import make_tokenizer, save_model_folder

PREPROCESS = """
import os, signal, sys, threading, time
import allranks.data
from allranks.cli.main import main

moment, number = sys.argv.pop(1), int(sys.argv.pop(1))
real = allranks.data.prepare
main_thread = threading.get_ident()

def stop_when_it_reads():
    # The main thread waits for an answer: its innermost frame is that of a pipe.
    while "_answer" not in (frame := sys._current_frames()[main_thread]).f_code.co_name:
        time.sleep(0.001)
    os.kill(os.getpid(), number)

def prepare(cfg, report):
    def tell(line):
        report(line)
        if moment == "waiting" and "tokenizing" in line:
            threading.Thread(target=stop_when_it_reads, daemon=True).start()
        elif moment in line:
            os.kill(os.getpid(), number)
    return real(cfg, report=tell)

allranks.data.prepare = prepare
main()
"""


@pytest.mark.parametrize(
    ("num_processes", "moment", "number"),
    [
        (1, "packing", signal.SIGINT),
        (2, "packing", signal.SIGTERM),
        (2, "tokenizing", signal.SIGINT),
        (2, "waiting", signal.SIGINT),
        (2, "waiting", signal.SIGTERM),
    ],
)
def test_a_signal_leaves_no_half_data_set_and_no_process(tmp_path, monkeypatch, capfd, num_processes, moment, number):
    model = save_model_folder(tmp_path / "model", make_tokenizer())
    rows = [{"instruction": f"say {one}", "output": f"{one}"} for one in range(3000)]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "c.yaml").write_text(
        f"base_model: {model}\nlearning_rate: 1e-4\ndatasets:\n  - {{path: d.jsonl, type: alpaca}}\n"
        f"dataset_prepared_path: prepared\ndataset_num_proc: {num_processes}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", PREPROCESS, moment, str(int(number)), "preprocess", "c.yaml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "ALLRANKS_TEST_MARK": str(tmp_path)},
    )
    assert done.returncode == 130, done.stderr
    assert "interrupted: the data set was not prepared; those that were prepared before are kept" in done.stderr
    assert "Traceback" not in done.stderr and "prepared:" not in done.stdout
    assert not [path for path in (tmp_path / "prepared").rglob("*") if path.suffix != ".lock"]
    assert not _marked_processes(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as again:  # here, where all is imported
        main(["preprocess", "c.yaml"])
    shown = capfd.readouterr()
    assert again.value.code == 0 and "prepared:" in shown.out, shown.err


def _marked_processes(mark):
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("ALLRANKS_TEST_MARK") == mark:
                found.append(process)
    return found
