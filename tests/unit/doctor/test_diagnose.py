"""Which of all that went wrong was the cause: with rules of the test's own, so that others do not change the answer."""

import bz2
import codecs
import gzip
import lzma
import random

import pytest

from allranks.doctor.diagnose import diagnose
from allranks.doctor.diagnosis import HOPELESS, Restart, judged
from allranks.doctor.read_logs import diagnosis_of_logs, diagnosis_of_text, read_log
from allranks.doctor.reading.index import Index
from allranks.doctor.reading.scanner import Scanner
from allranks.doctor.reading.sources import Source, sources
from allranks.doctor.ruleset import load_rules
from allranks.errors import UsageError

RULES = """
[[rule]]
id = "out-of-memory"
kind = "cause"
title = "GPU memory ran out"
patterns = ['''CUDA out of memory''']
certainty = "sure"
meaning = "m"
remedy = "r"
not_proven = "n"
look_at = "l"
restart = "hopeless"
sources = ["s"]
cases = ["c"]
near_misses = ["n"]

[[rule]]
id = "unreachable"
kind = "cause"
title = "no answer from {host}"
patterns = ['''[Cc]onnect(?:ion)? to (?P<host>[\\w.]+) .{0,40}refused''']
certainty = "sure"
meaning = "m"
remedy = "r"
not_proven = "n"
look_at = "l"
restart = "may-pass"
contradicted_by = ['''telnet works''']
sources = ["s"]
cases = ["c"]
near_misses = ["n"]

[[rule]]
id = "slow-disk"
kind = "cause"
title = "slow"
patterns = ['''the disk is slow''']
context = ['''checkpoint is written''']
within = 3
certainty = "likely"
meaning = "m"
remedy = "r"
not_proven = "n"
look_at = "l"
restart = "may-pass"
explains = ["unreachable"]
sources = ["s"]
cases = ["c"]
near_misses = ["n"]

[[rule]]
id = "unhandled"
kind = "symptom"
title = "an error without detail"
patterns = ['''unhandled system error''']
meaning = "m"
remedy = "look further"
not_proven = "n"
look_at = "l"
restart = "may-pass"
sources = ["s"]
cases = ["c"]
near_misses = ["n"]

[[rule]]
id = "watchdog"
kind = "consequence"
title = "watchdogs of ranks that waited"
patterns = ['''Watchdog caught collective operation timeout''']
meaning = "m"
sources = ["s"]
cases = ["c"]
near_misses = ["n"]
"""
WATCHDOG = (
    "[rank{}]:[E626 06:34:44.903 ProcessGroupNCCL.cpp:616] [Rank {}] Watchdog caught collective operation timeout"
)
TRACEBACK = """Traceback (most recent call last):
  File "/home/u/train.py", line 12, in step
    raise ValueError("CUDA out of memory, says this source line")
  File "/usr/lib/python3.11/site-packages/torch/nn/modules/module.py", line 15, in call
ValueError: bad batch 17
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    file = tmp_path_factory.mktemp("rules") / "rendezvous.toml"
    file.write_text(RULES)
    return Index(load_rules(file))


@pytest.fixture
def doctor(index):
    return lambda text: diagnosis_of_text(text, index)


@pytest.fixture
def of_files(index, tmp_path):
    def told(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.log").write_text(text)
        return diagnose([read_log(source, index) for source in sources([tmp_path])])

    return told


def labelled(rank, text):
    return "".join(f"[rank{rank}]: {line}\n" for line in text.splitlines())


def test_consequences_never_win_though_they_come_first(doctor):
    text = "".join(WATCHDOG.format(rank, rank) + "\n" for rank in (0, 1, 2)) + "[rank3]: CUDA out of memory\n"
    told = doctor(text)
    assert (told.cause, told.rank, told.certainty) == ("out-of-memory", 3, "sure")
    assert told.evidence[0].line == 4
    assert [(one.id, one.num_lines, one.ranks) for one in told.explained] == [("watchdog", 3, (0, 1, 2))]


def test_the_earliest_rank_wins_and_others_are_explained(doctor):
    text = labelled(3, TRACEBACK) + labelled(1, TRACEBACK.replace("17", "18")) + "[rank0]: CUDA out of memory\n"
    told = doctor(text)
    assert (told.cause, told.rank, told.evidence[0].text) == ("exception", 3, "ValueError: bad batch 17")
    assert told.evidence[0].line == 5
    assert "line 12 of /home/u/train.py" in told.remedy  # not the library's frame, and not the source line's words


def test_interleaved_tracebacks_are_read_by_their_writers(doctor):
    one, other = labelled(3, TRACEBACK).splitlines(), labelled(5, TRACEBACK.replace("17", "18")).splitlines()
    told = doctor("\n".join(line for pair in zip(one, other, strict=True) for line in pair))
    assert (told.rank, told.evidence[0].text) == (3, "ValueError: bad batch 17")


def test_a_traceback_that_is_cut_off_where_it_raises_tells_what_it_raises(doctor):
    cut = """\
[rank6]: Traceback (most recent call last):
[rank6]:   File "/work/train.py", line 504, in load
[rank6]:     raise ValueError(f"no state of {kind} at {path}")
"""
    told = doctor(cut)
    assert (told.cause, told.rank) == ("exception", 6)
    assert told.evidence[0].line == 3
    assert doctor(cut.replace("ValueError", "subprocess.CalledProcessError")).cause is None
    assert doctor(cut + "[rank6]: ValueError: no state of adam at /x\n").evidence[0].line == 4
    asserted = doctor(cut.replace("raise ValueError(", "assert found, ("))
    assert (asserted.cause, asserted.rank, asserted.evidence[0].line) == ("exception", 6, 3)


def test_what_was_raised_first_is_the_cause_of_a_chain(doctor):
    chain = TRACEBACK + "\nDuring handling of the above exception, another exception occurred:\n\n"
    chain += TRACEBACK.replace("ValueError: bad batch 17", "RuntimeError: cannot go on")
    assert doctor(chain).evidence[0].text == "ValueError: bad batch 17"
    assert doctor(labelled(2, chain)).evidence[0].text == "ValueError: bad batch 17"


@pytest.mark.parametrize(
    "after",
    [
        "{'loss': 1.2}\n{'loss': 1.1}\n{'loss': 1.0}\n",
        "{'train_runtime': 12.0}\n",
        "NCCL INFO comm 0x1 - Init COMPLETE\n",
    ],
)
def test_what_the_run_lived_through_is_no_cause(doctor, after):
    text = "connect to node0 was refused, retrying\n"
    assert doctor(text).cause == "unreachable"
    told = doctor(text + after)
    assert told.cause is None and told.ended_well == ("train_runtime" in after)
    assert told.certainty == ("likely" if told.ended_well else "unknown")


def test_a_failure_after_the_run_went_on_counts_and_that_before_does_not(doctor):
    text = "connect to node0 was refused\n{'loss': 1.2, 'step': 40}\n{'loss': 1.1}\n{'loss': 1.0}\nCUDA out of memory\n"
    assert doctor(text).cause == "out-of-memory"


def test_losses_that_are_no_number_are_no_progress(doctor):
    assert doctor("CUDA out of memory\n" + "{'loss': nan}\n" * 5).cause == "out-of-memory"


def test_a_context_is_needed_near_by_and_of_the_same_rank(doctor):
    assert doctor("checkpoint is written\n\nthe disk is slow\n").cause == "slow-disk"
    assert doctor("checkpoint is written\n" + "\n" * 9 + "the disk is slow\n").cause is None
    assert doctor("[rank1]: checkpoint is written\n[rank2]: the disk is slow\n").cause is None


def test_what_a_cause_explains_does_not_win(doctor):
    text = "connect to node0 was refused\ncheckpoint is written\nthe disk is slow\n"
    assert doctor(text).cause == "slow-disk"


def test_what_contradicts_a_cause_makes_it_likely_only(doctor):
    told = doctor("connect to node0 was refused\n")
    assert (told.certainty, told.title) == ("sure", "no answer from node0")
    assert doctor("telnet works\nconnect to node0 was refused\n").certainty == "likely"


def test_a_symptom_is_no_cause_but_is_told(doctor):
    told = doctor("NCCL WARN unhandled system error\n")
    assert (told.cause, told.symptom, told.certainty) == (None, "unhandled", "unknown")
    assert told.remedy == "look further"


def test_only_consequences_say_that_the_cause_is_elsewhere(doctor):
    told = doctor(WATCHDOG.format(0, 0))
    assert told.cause is None and "allranks doctor" in told.remedy


def test_times_decide_between_logs_whatever_their_names(of_files):
    told = of_files(
        a_rank0="2025-01-01 10:00:09,000 - connect to node1 was refused\n",
        b_rank1="2025-01-01 10:00:01,000 - CUDA out of memory\n",
    )
    assert (told.cause, told.rank, told.certainty) == ("out-of-memory", 1, "sure")


def test_clocks_are_aligned_by_what_both_saw(of_files):
    there = "2025-01-01 {} - node:1:2 [0] NCCL INFO ncclCommInitRank commId 0x5f - Init COMPLETE\n"
    told = of_files(
        a_rank0=there.format("10:00:00,000") + "2025-01-01 10:05:09,000 - connect to node1 was refused\n",
        b_rank1=there.format("11:00:00,000") + "2025-01-01 11:05:01,000 - CUDA out of memory\n",
    )
    assert (told.cause, told.rank) == ("out-of-memory", 1)


def test_without_times_the_earlier_step_was_first(tmp_path):
    for rank, first in ((0, 6), (1, 5)):
        lines = (f"step {step} loss {'nan' if step >= first else '0.5'}\n" for step in range(1, 9))
        (tmp_path / f"rank-0000{rank}.log").write_text("".join(lines))
    told = diagnosis_of_logs([tmp_path])
    assert (told.cause, told.rank, told.evidence[0].text) == ("nan-loss", 1, "step 5 loss nan")


def test_without_times_what_ranks_tell_of_the_same_step_is_of_none_of_them(tmp_path):
    for rank in range(3):
        name = tmp_path / f"rank-0000{rank}.log"
        name.write_text("".join(f"step {step} loss {'nan' if step >= 5 else '0.5'}\n" for step in range(1, 9)))
    told = diagnosis_of_logs([tmp_path])
    assert (told.cause, told.rank, told.node) == ("nan-loss", None, None)


def test_without_times_two_causes_in_two_logs_are_not_sure(of_files):
    told = of_files(a_rank0="connect to node1 was refused\n", b_rank1="CUDA out of memory\n")
    assert told.certainty == "likely" and len(told.others) == 1


def test_torchruns_report_names_the_rank_where_nothing_else_does(doctor):
    text = "CUDA out of memory\nRoot Cause (first observed failure):\n[0]:\n  time      : 2025-01-01_10:00:00\n"
    text += "  host      : node7\n  rank      : 11 (local_rank: 3)\n  exitcode  : 1 (pid: 12)\n"
    told = doctor(text)
    assert (told.rank, told.node) == (11, "node7")


def test_the_same_failure_at_the_same_step_twice_is_hopeless(doctor):
    first = doctor("{'step': 40, 'loss': 1.0}\nglobal_step=40\nconnect to node0 was refused by 10.0.0.1:4711\n").restart
    again = doctor("global_step=40\nconnect to node0 was refused by 10.9.0.3:1234\n").restart
    later = doctor("global_step=80\nconnect to node0 was refused by 10.9.0.3:1234\n").restart
    assert first.fingerprint == again.fingerprint and first.verdict == "may-pass"
    assert judged(again, [first]).verdict == HOPELESS
    assert judged(later, [first]).verdict == "may-pass"
    assert judged(Restart("may-pass", ""), [Restart("may-pass", "")]).verdict == "may-pass"


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_pieces_of_any_size_tell_the_same(index, size):
    text = (
        labelled(1, "step 1\n\x1b[31mred\x1b[0m\n") * 30
        + labelled(3, TRACEBACK)
        + "[rank0]: CUDA \x1b[1mout of memory\n"
    ).encode()
    whole = Scanner(index, Source(None, "x"))
    whole.feed(text, at_end=True)
    scanner = Scanner(index, Source(None, "x"))
    for start in range(0, len(text), size):
        scanner.feed(text[start : start + size])
    assert scanner.so_far() == whole.read
    scanner.feed(b"", at_end=True)
    assert scanner.read == whole.read
    assert len(whole.read.hits) == 1 and len(whole.read.tracebacks) == 1


def test_lines_are_numbered_as_editors_do_in_a_log_of_many_pieces(index):
    chance = random.Random(3)
    lines = [f"[rank{chance.randrange(8)}]: step {n} " + "x" * chance.randrange(120) for n in range(40_000)]
    places = sorted(chance.sample(range(40_000), 5))
    for place in places[:4]:
        lines[place] = f"[rank{place % 8}]: CUDA out of memory {place}"
    text = "\n".join(lines).encode()
    scanner = Scanner(index, Source(None, "x"))
    for start in range(0, len(text), 300_000):
        scanner.feed(text[start : start + 300_000])
    scanner.feed(b"", at_end=True)
    assert [(hit.line.number, hit.line.rank) for hit in scanner.read.hits] == [(p + 1, p % 8) for p in places[:4]]
    assert scanner.read.num_lines == 40_000
    assert scanner.read.marks[-1].line.number == 40_000


def test_carriage_returns_part_what_is_written_over(doctor):
    told = doctor("[rank2]:  10%|#  | 1/10 [00:01<00:09]\r[rank2]: CUDA out of memory\r\nmore\r\n")
    assert (told.cause, told.rank, told.evidence[0].text, told.evidence[0].line) == (
        "out-of-memory",
        2,
        "CUDA out of memory",
        1,
    )


@pytest.mark.parametrize(
    "begins", [b"", b"\x00\xff\xfe\x1b[2J\x07" * 300, b"x" * 3_000_000, b"\r" * 100_000, b"\n" * 10]
)
def test_hostile_bytes_are_read_past_and_never_shown(index, begins):
    told = diagnosis_of_text(begins + b" CUDA out of memory \x1b]0;title\x07\x9b\x00\xff\x08" + begins, index)
    assert told.cause == "out-of-memory"
    assert all(one.text.isprintable() and len(one.text) < 5000 for one in told.evidence)


def test_gz_and_what_is_cut_off_are_read_as_far_as_it_goes(index, tmp_path):
    packed = gzip.compress(b"step 1\nCUDA out of memory\n" + random.Random(0).randbytes(10_000))
    (tmp_path / "whole.log.gz").write_bytes(packed)
    (tmp_path / "cut.log.gz").write_bytes(packed[: len(packed) // 2])
    for name in ("whole.log.gz", "cut.log.gz"):
        [source] = sources([tmp_path / name])
        read = read_log(source, index)
        assert [hit.rule.id for hit in read.hits] == ["out-of-memory"]
        assert bool(read.broken) == (name == "cut.log.gz")


@pytest.mark.parametrize(("end", "pack"), [("xz", lzma.compress), ("bz2", bz2.compress)])
def test_other_packed_logs_are_read_too_as_far_as_they_go(index, tmp_path, end, pack):
    packed = pack(b"step 1\nCUDA out of memory\n" + random.Random(0).randbytes(10_000))
    (tmp_path / f"whole.log.{end}").write_bytes(packed)
    (tmp_path / f"cut.log.{end}").write_bytes(packed[:-20])
    cut, whole = (read_log(source, index) for source in sources([tmp_path]))
    assert [hit.line.number for hit in whole.hits] == [2]
    assert not whole.broken
    assert cut.broken


@pytest.mark.parametrize(("begin", "told"), [(b"\x28\xb5\x2f\xfd", "zstdcat"), (b"PK\x03\x04", "unzip -p")])
def test_what_cannot_be_unpacked_here_is_told_with_what_unpacks_it(index, tmp_path, begin, told):
    (tmp_path / "a.log").write_bytes(begin + bytes(100))
    with pytest.raises(UsageError, match=told):
        read_log(sources([tmp_path / "a.log"])[0], index)
    (tmp_path / "b.log").write_text("CUDA out of memory\n")
    (_, why), (hits, well) = (
        (read.hits, read.broken) for read in (read_log(one, index) for one in sources([tmp_path]))
    )
    assert told in why and hits and not well, "of a folder the others are read, and what was not is told"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_logs_in_utf_16_are_read(index, tmp_path, encoding, pack):
    text = "".join(f"step {step} \u2014 \U0001f600\r\n" for step in range(40_000)) + "CUDA out of memory\r\n"
    written = (codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b"") + text.encode(encoding)
    (tmp_path / "a.log").write_bytes(pack(written))
    [read] = (read_log(source, index) for source in sources([tmp_path / "a.log"]))
    assert [(hit.rule.id, hit.line.number) for hit in read.hits] == [("out-of-memory", 40_001)]


def test_the_names_of_logs_tell_rank_and_node(tmp_path):
    for name in (
        "logs/node-1/rank-00012.log",
        "x/attempt_0/3/stderr.log",
        "slurm-123_4.out",
        "worker_7.log",
        "data.bin",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x\n")
    found = {source.path.name: (source.rank, source.local_rank, source.node) for source in sources([tmp_path])}
    assert found == {
        "rank-00012.log": (12, None, "1"),
        "stderr.log": (None, 3, None),
        "slurm-123_4.out": (None, None, None),
        "worker_7.log": (7, None, None),
    }


@pytest.mark.parametrize(
    ("name", "rank", "node"),
    [
        ("lora-rank-16/train.log", None, None),
        ("qwen_rank_8/lora_rank_8.log", None, None),
        ("rank-16-run/node_experiments/run.log", None, None),
        ("job-7/rank-3/stderr.log", 3, None),
        ("node-2/train_rank3.log", 3, "2"),
        ("run-node1-rank3.log", 3, "node1"),
        ("gpu_node7.log", None, "node7"),
    ],
)
def test_an_adapters_rank_and_other_words_in_names_are_no_rank_and_no_node(tmp_path, name, rank, node):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("x\n")
    (source,) = sources([tmp_path])
    assert (source.rank, source.node) == (rank, node)


def test_what_is_not_there_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        sources([tmp_path / "none.log"])
    with pytest.raises(UsageError, match="no log in it"):
        sources([tmp_path])


def test_the_programs_own_text_in_a_traceback_is_no_progress():
    log = """[rank1]: Traceback (most recent call last):
[rank1]:   File "/home/ana/train.py", line 16, in training_step
[rank1]:     if self.state.global_step == 2: raise RuntimeError(loss=2)
[rank1]:     loss=1.2, global_step=2
[rank1]: RuntimeError: no sample has the number 64
"""
    told = diagnosis_of_text(log)
    assert (told.cause, told.rank) == ("exception", 1)


@pytest.mark.parametrize(
    "end",
    [
        "slurmstepd: error: *** STEP 5.0 ON node1 CANCELLED AT 2026-01-01T00:00:00 ***",
        "W0101 00:00:00.000000 41 torch/distributed/elastic/agent/server/api.py:719] "
        "Received Signals.SIGTERM death signal, shutting down workers",
    ],
)
def test_an_end_from_outside_is_the_cause_unless_the_program_failed_before_it(end):
    failed = """Traceback (most recent call last):
  File "/home/ana/train.py", line 16, in training_step
    go()
ValueError: no sample has the number 64
srun: error: node1: task 1: Exited with exit code 1
"""
    assert diagnosis_of_text(f"{failed}{end}\n").cause == "exception"
    assert diagnosis_of_text(f"{end}\n").cause in ("slurm-cancelled", "sigterm-from-outside")


def test_a_step_that_srun_ends_after_a_task_failed_was_not_cancelled_by_anyone():
    failed = "srun: error: node07: task 5: Exited with exit code 1\n"
    ended = """\
slurmstepd: error: *** STEP 8841.0 ON node07 CANCELLED AT 2026-11-01T10:00:14 ***
srun: error: node07: tasks 3,7: Killed
srun: Force Terminated StepId=8841.0
"""
    assert diagnosis_of_text(ended).cause in ("slurm-cancelled", "rank-sigkill")
    assert diagnosis_of_text(failed + ended).cause is None
    assert diagnosis_of_text(
        failed + "slurmstepd: error: *** JOB 8841 ON node07 CANCELLED AT 2026-11-01T10:00:14 ***\n"
    ).cause


def test_steps_after_a_notice_of_an_end_to_come_do_not_take_it_back():
    log = """spot-watch: instance-action {"action": "terminate", "time": "2026-04-02T11:04:01Z"}
[rank3] received SIGTERM at step 900
"""
    assert diagnosis_of_text(log).cause == "spot-reclaimed"


def test_torchruns_report_shows_what_the_first_raised_and_what_the_others_did():
    def entry(rank, raised):
        return f"""[{rank}]:
  rank      : {rank} (local_rank: {rank})
  exitcode  : 1 (pid: 4{rank})
  traceback : Traceback (most recent call last):
    File "/home/ana/train.py", line 3, in main
      step()
  {raised}

"""

    report = (
        "train.py FAILED\nFailures:\n"
        + entry(0, "TypeError: no batch came")
        + "Root Cause (first observed failure):\n"
        + entry(1, "ValueError: no sample has the number 64")
    )
    told = diagnosis_of_text(report)
    assert (told.cause, told.rank) == ("exception", 1)
    assert "no sample has the number 64" in told.evidence[0].text


@pytest.mark.parametrize("level", ["WARNING", "WARN"])
def test_a_warning_of_python_logging_does_not_win_over_what_the_program_failed_of(doctor, level):
    warned = f"[2026-11-29 10:06:20,391] [{level}] [some.environment] CUDA out of memory\n"
    raised = 'Traceback (most recent call last):\n  File "a.py", line 19, in load\n    go()\nValueError: bad path\n'
    told = doctor(warned + raised)
    assert (told.cause, told.certainty) == ("exception", "likely")
    assert doctor(raised.replace("ValueError: bad path", "RuntimeError: CUDA out of memory")).certainty == "sure"
    assert doctor(warned).certainty == "likely"


@pytest.mark.parametrize(
    "line",
    [
        "Will ignore error and continue. Error: [Errno 13] Permission denied: '/cache/x'",
        "[Errno 28] No space left on device: '/x' (this error will be ignored)",
        "non-fatal error: [Errno 13] Permission denied: '/x'",
        "Could not write: [Errno 30] Read-only file system: '/x', continuing without it",
    ],
)
def test_what_says_itself_that_the_program_goes_on_is_no_cause(line):
    assert diagnosis_of_text(line).cause is None


def test_what_was_raised_is_a_cause_whatever_it_says_of_errors():
    log = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n    f()\n'
    assert diagnosis_of_text(f"{log}PermissionError: [Errno 13] Permission denied: '/error ignored'").cause
