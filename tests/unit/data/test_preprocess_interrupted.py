"""Ctrl-C while a data set is prepared: it appears whole or not at all, and the command says so."""

import json
import subprocess
import sys

import pytest

from tests.unit.data.conftest import make_tokenizer, save_model_folder

PREPROCESS = """
import os, signal
import allranks.data
from allranks.cli.main import main

real = allranks.data.prepare

def prepare(cfg, report):
    def tell(line):
        if line.startswith("packing"):
            os.kill(os.getpid(), signal.SIGINT)
    return real(cfg, report=tell)

allranks.data.prepare = prepare
main()
"""


@pytest.mark.parametrize("num_processes", [1, 2])
def test_ctrl_c_leaves_no_half_data_set(tmp_path, num_processes):
    model = save_model_folder(tmp_path / "model", make_tokenizer())
    rows = [{"instruction": f"say {number}", "output": f"{number}"} for number in range(9)]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "c.yaml").write_text(
        f"base_model: {model}\nlearning_rate: 1e-4\ndatasets:\n  - {{path: d.jsonl, type: alpaca}}\n"
        f"dataset_prepared_path: prepared\ndataset_num_proc: {num_processes}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", PREPROCESS, "preprocess", "c.yaml"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 130, done.stderr
    assert "interrupted: the data set was not prepared; those that were prepared before are kept" in done.stderr
    assert "Traceback" not in done.stderr and "prepared:" not in done.stdout
    assert not list((tmp_path / "prepared").rglob("*.npy"))
    assert not list((tmp_path / "prepared").rglob("manifest.json"))
    again = subprocess.run(
        [sys.executable, "-m", "allranks", "preprocess", "c.yaml"], capture_output=True, text=True, cwd=tmp_path
    )
    assert again.returncode == 0 and "prepared:" in again.stdout, again.stderr
