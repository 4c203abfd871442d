import subprocess
import sys

from allranks.doctor.log_tail import last_lines, read_from


def test_what_the_ranks_said_is_not_pushed_out_by_torchruns_report(tmp_path):
    """Of the real torchrun, whose rank ends before it can tell of itself."""
    (tmp_path / "p.py").write_text("import there_is_no_such_module\n")
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "p.py"]
    done = subprocess.run(words, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=100)
    assert "ChildFailedError" in done.stdout and "Root Cause" in done.stdout
    lines = last_lines(f"of before\n{done.stdout}")
    assert "ModuleNotFoundError: No module named 'there_is_no_such_module'" in lines
    assert not any("ChildFailedError" in line or "Root Cause" in line for line in lines)


def test_torchruns_report_is_shown_where_there_is_nothing_else():
    report = "Traceback (most recent call last):\n  raise ChildFailedError(\ntorch.ChildFailedError: \n====\np FAILED\n"
    assert last_lines(report)[-1] == "p FAILED"
    other = "Traceback (most recent call last):\n  File y\nRendezvousTimeoutError\n"
    assert last_lines(other)[-1] == "RendezvousTimeoutError"
    assert last_lines("") == []


def test_of_a_log_of_gigabytes_its_end_is_read(tmp_path):
    log = tmp_path / "rank.log"
    with log.open("wb") as file:
        file.seek(2**31)
        file.write(b"\nValueError: at the end\n")
    text = read_from(log)
    assert len(text) < 2**23 and text.endswith("\nValueError: at the end\n")
    assert read_from(log, 2**31 + 1) == "ValueError: at the end\n"
