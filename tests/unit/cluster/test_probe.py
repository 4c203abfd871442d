"""The probe on this machine, in every Python there is, and where something hangs, fails or lies."""

import ctypes
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import allranks
from allranks.cluster.interfaces import interfaces
from allranks.cluster.memory import memory_limit
from allranks.cluster.node_report import NodeReport
from allranks.cluster.probe import ProbeRequest, probe_this_node, read_report, source_text
from tests.recorded_nodes import ethernet, plain
from tests.unit.cluster.conftest import eventually

PYTHONS = sorted(Path("/root/.pyenv/versions").glob("3.*/bin/python3")) if os.access("/root/.pyenv", os.R_OK) else []


@pytest.fixture(scope="module")
def here() -> NodeReport:
    """This machine's report."""
    return probe_this_node(
        ProbeRequest(
            names=("localhost", "no-such-node.invalid", "", "x" * 300),
            paths=({"path": "/tmp", "purpose": "tmp"}, {"path": "/tmp/not/there", "purpose": "output_dir"}),
            packages=("torch", "no-such-package", "safetensor*"),
            deadline_seconds=60,
        )
    )


def test_everything_here_answers(here):
    assert here.unanswered == {} and here.unreadable == () and here.version == 1
    assert here.host == socket.gethostname() and here.uid == os.getuid()


def test_it_sees_the_interfaces_that_the_rest_sees(here):
    seen = [
        (nic.name, {entry.address for entry in nic.addresses}, nic.state == "up")
        for nic in here.interfaces
        if nic.addresses
    ]
    rest = [(nic.name, {each.partition("%")[0] for each in nic.addresses}, nic.is_running) for nic in interfaces()]
    assert seen == rest


def test_it_sees_the_machine_that_the_rest_sees(here):
    assert here.cpu.num_usable == len(os.sched_getaffinity(0))
    limit = memory_limit()
    bounds = [size for size in (here.memory.total, here.memory.cgroup_limit) if size is not None]
    assert limit is None or limit.source.startswith("ulimit") or min(bounds) == limit.num_bytes
    on = os.statvfs("/dev/shm")
    assert here.shm.total == on.f_blocks * on.f_frsize


def test_packages_are_told_and_not_imported(here):
    assert here.python.version == ".".join(map(str, sys.version_info[:3]))
    torch = importlib.metadata.distribution("torch")
    assert here.packages["torch"].version == torch.version
    assert Path(here.packages["torch"].path) == Path(str(torch.locate_file("")))
    assert here.packages["no-such-package"].version is None
    assert here.packages["safetensors"].version == importlib.metadata.version("safetensors")


def test_names_are_asked_of_this_nodes_resolver(here):
    assert "127.0.0.1" in here.names["localhost"] or "::1" in here.names["localhost"]
    assert here.names["no-such-node.invalid"] == here.names["x" * 300] == ()


def test_a_path_that_is_not_there_is_told_by_what_is_above_it(here):
    there, missing = here.paths
    assert there.exists and there.writable and there.free > 0
    assert missing.exists is False and missing.mount == there.mount and missing.writable


def test_a_package_without_metadata_costs_no_other_its_version(tmp_path):
    (tmp_path / "broken-1.dist-info").mkdir()
    (tmp_path / "whole-1.dist-info").mkdir()
    (tmp_path / "whole-1.dist-info/METADATA").write_text("Name: whole\nVersion: 1.5\n")
    request = ProbeRequest(sources=("packages",), packages=("broken", "whole"), deadline_seconds=60)
    report = probe_this_node(request, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert report.packages["whole"].version == "1.5" and report.packages["whole"].path == str(tmp_path)
    assert "broken" not in report.packages or report.packages["broken"].version is None


def test_the_code_has_its_commit(here):
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(allranks.__file__).parent
    )
    assert here.code.commit == (done.stdout.strip() or None)


@pytest.mark.parametrize("root", ["worktree", "packed", "detached"])
def test_without_git_the_commit_is_read_from_its_files(root, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    node = plain("n", cores=1, memory=2**30)
    if root == "worktree":
        node.files |= {
            "/code/wt/.git": "gitdir: ../main/.git/worktrees/wt",
            "/code/main/.git/worktrees/wt/HEAD": "ref: refs/heads/topic",
            "/code/main/.git/worktrees/wt/commondir": "../..",
            "/code/main/.git/refs/heads/topic": commit,
        }
    elif root == "packed":
        node.files |= {
            "/code/wt/.git/HEAD": "ref: refs/heads/main",
            "/code/wt/.git/packed-refs": f"{commit} refs/heads/main",
        }
    else:
        node.files |= {"/code/wt/.git/HEAD": commit}
    node.files["/code/wt/src/a.py"] = ""
    request = ProbeRequest(root=node.write(tmp_path), sources=("code",), code="/code/wt/src")
    report = probe_this_node(request)
    assert report.code.commit == commit and report.code.dirty is None
    (tmp_path / "code/wt/src/b.py").write_text("added = 1")
    assert probe_this_node(request).code.digest != report.code.digest is not None


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: path.parent.parent.name)
def test_every_python_runs_it_or_says_that_it_is_too_old(python, tmp_path):
    request = ProbeRequest(names=('a"b\n\\', "localhost"), packages=("pip",), deadline_seconds=60)
    done = subprocess.run([python, "-"], input=source_text(request).encode(), capture_output=True, cwd=tmp_path)
    report = read_report(done.stdout, done.stderr)
    assert done.stderr == b"" and report.python.version == python.parent.parent.name
    if sys.version_info[:2] > (3, 8) and int(report.python.version.split(".")[1]) < 8:
        assert report.unanswered == {"probe": f"needs Python 3.8 or newer; this is {report.python.version}"}
    else:
        assert report.unanswered == {} and report.packages["pip"].version
        assert set(report.names) == {'a"b\n\\', "localhost"}


def test_the_text_needs_nothing_of_ours_nor_of_the_folder_it_is_started_in(tmp_path):
    for name in ("json.py", "types.py", "selectors.py", "allranks.py"):
        (tmp_path / name).write_text("raise SystemExit('this is a file of the user')")
    done = subprocess.run(
        [sys.executable, "-S", "-"],
        input=source_text(ProbeRequest(sources=("system",))).encode(),
        capture_output=True,
    )
    assert json.loads(done.stdout)["host"] == socket.gethostname()


# What hangs, fails or lies. The deadline is one of the probe's; no test waits for more than it.

# All other sources, each a process of its own, have to answer before it.
OTHERS_SECONDS = 5
IGNORES_SIGTERM = """#!/bin/sh
trap '' TERM HUP INT
setsid sh -c 'trap "" TERM; while :; do sleep 100; done' &
sh -c 'while :; do sleep 100; done' &
echo '<nvidia_smi_log><gpu id="x">'
while :; do sleep 100; done
"""
STOPS_ITSELF = "#!/bin/sh\nkill -STOP $$\n"
CRASHES = "#!/bin/sh\necho Unable to determine the device handle: GPU is lost >&2\nkill -SEGV $$\n"
REFUSES = "#!/bin/sh\necho Failed to initialize NVML: Driver/library version mismatch\nexit 18\n"
FLOODS = "#!/bin/sh\nexec cat /dev/zero\n"
GARBLES = "#!/bin/sh\necho '<nvidia_smi_log><gpu id='\n"


def with_nvidia_smi(script: str, root: Path) -> str:
    node = ethernet()
    node.files["/proc/driver/nvidia/version"] = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue"
    node.files["/proc/driver/nvidia/gpus/0000:1b:00.0/information"] = "Model: \t NVIDIA H100\nGPU UUID: \t GPU-1"
    node.tools["nvidia-smi"] = script
    return node.write(root)


@pytest.mark.parametrize("script", [IGNORES_SIGTERM, STOPS_ITSELF])
def test_a_tool_that_hangs_is_named_and_gone(script, tmp_path, marked, monkeypatch):
    monkeypatch.setenv(*next(iter(marked.mark.items())))
    report = probe_this_node(ProbeRequest(root=with_nvidia_smi(script, tmp_path), deadline_seconds=OTHERS_SECONDS))
    assert report.unanswered == {
        "nvidia": f"did not answer in {OTHERS_SECONDS} s: nvidia-smi -q -x",
        "nvlinks": f"did not answer in {OTHERS_SECONDS} s: nvidia-smi nvlink --status",
    }
    assert report.cpu.num_cores == 8 and report.shm.total == 64 * 2**20, "the others have answered"
    assert [gpu.model for gpu in report.gpus] == ["NVIDIA H100"], "what the driver's files say is known all the same"
    assert marked() == []


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (CRASHES, "nvidia-smi ended with SIGSEGV: Unable to determine the device handle: GPU is lost"),
        (REFUSES, "nvidia-smi ended with exit code 18: Failed to initialize NVML: Driver/library version mismatch"),
        (FLOODS, "nvidia-smi wrote without an end"),
        (GARBLES, "nvidia-smi wrote what is no XML"),
    ],
)
def test_a_tool_that_fails_is_named_with_its_words(script, why, tmp_path):
    root = with_nvidia_smi(script, tmp_path)
    report = probe_this_node(ProbeRequest(root=root, sources=("nvidia", "system"), deadline_seconds=60))
    assert report.unanswered["nvidia"].startswith(why)
    assert len(report.gpus) == 1 and report.cpu.num_cores == 8


def test_who_ignores_the_deaths_of_children_is_not_told_that_all_went_well(tmp_path):
    root = with_nvidia_smi(CRASHES, tmp_path)
    text = source_text(ProbeRequest(root=root, sources=("nvidia",), deadline_seconds=60))

    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])

    done = subprocess.run([sys.executable, "-"], input=text.encode(), capture_output=True, preexec_fn=ignore)
    assert read_report(done.stdout).unanswered["nvidia"].startswith("nvidia-smi ended with SIGSEGV")


@pytest.mark.parametrize(
    ("script", "seconds", "told"),
    [
        (REFUSES.replace("echo", "sleep 1\necho", 1), 60, "Driver/library version mismatch"),
        (IGNORES_SIGTERM, 1, "did not answer in 1 s: nvidia-smi -q -x"),
    ],
)
def test_the_tools_of_gpus_may_have_longer_than_all_else(script, seconds, told, tmp_path):
    """Without persistence mode nvidia-smi starts each GPU anew, which takes seconds."""
    root = with_nvidia_smi(script, tmp_path)
    request = ProbeRequest(root=root, sources=("nvidia",), deadline_seconds=0.2, gpu_deadline_seconds=seconds)
    assert told in probe_this_node(request).unanswered["nvidia"]


def test_a_gpu_without_its_tool_is_no_node_without_gpus(tmp_path):
    node = ethernet()
    node.files["/proc/driver/nvidia/version"] = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue"
    report = probe_this_node(ProbeRequest(root=node.write(tmp_path), sources=("nvidia",)))
    assert report.unanswered == {"nvidia": "nvidia-smi is not installed"} and report.gpus is None


@pytest.mark.parametrize(("script", "has_answered"), [(IGNORES_SIGTERM, False), (REFUSES, True)])
def test_a_tool_on_the_path_is_asked_though_the_bus_shows_no_gpu(script, has_answered, tmp_path):
    """As in WSL. That it finds nothing, on a machine that has none, is no failure."""
    (tmp_path / "nvidia-smi").write_text(script.replace("setsid ", ""))
    (tmp_path / "nvidia-smi").chmod(0o755)
    request = ProbeRequest(sources=("nvidia", "pci"), deadline_seconds=60 if has_answered else OTHERS_SECONDS)
    report = probe_this_node(request, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    if any(Path("/dev").glob("nvidia[0-9]")):
        pytest.skip("this machine has GPUs")
    hangs = {"nvidia": f"did not answer in {OTHERS_SECONDS} s: nvidia-smi -q -x"}
    assert report.unanswered == ({} if has_answered else hangs)


def unshared(program: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run a program of Python in namespaces of its own, where it may mount what it likes."""
    return subprocess.run(["unshare", "--mount", "--net", sys.executable, "-c", program, *words], capture_output=True)


needs_namespaces = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("unshare") is None or not os.access("/dev/fuse", os.W_OK),
    reason="takes root, unshare and /dev/fuse to make something that hangs",
)


@needs_namespaces
def test_a_dead_mount_holds_up_nobody_else(tmp_path):
    program = """
import ctypes, os, sys
from allranks.cluster.probe import ProbeRequest, probe_this_node
where, alive, seconds = sys.argv[1:]
server = os.open("/dev/fuse", os.O_RDWR)  # and never answers
options = f"fd={server},rootmode=40000,user_id=0,group_id=0"
if ctypes.CDLL(None).mount(b"server:/export", where.encode(), b"fuse.sshfs", 0, options.encode()):
    sys.exit("cannot mount")
paths = [{"path": where + "/run", "purpose": "output_dir"}, {"path": alive, "purpose": "data"}]
print(__import__("json").dumps(probe_this_node(ProbeRequest(paths=paths, deadline_seconds=int(seconds))).to_message()))
"""
    (tmp_path / "dead").mkdir()
    done = unshared(program, str(tmp_path / "dead"), str(tmp_path), str(OTHERS_SECONDS))
    report = read_report(done.stdout, done.stderr)
    place = f"{tmp_path}/dead/run"
    assert report.unanswered == {f"paths: output_dir {place}": f"did not answer in {OTHERS_SECONDS} s: {place}"}
    dead, alive = report.paths
    assert (dead.type, dead.device, dead.network, dead.exists) == ("fuse.sshfs", "server:/export", True, None)
    assert alive.exists and alive.free > 0


@needs_namespaces
def test_a_resolver_that_never_answers_is_named_by_whom_it_was_asked_for(tmp_path):
    program = """
import ctypes, os, socket, subprocess, sys
from allranks.cluster.probe import ProbeRequest, probe_this_node
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
silent.bind(("127.0.0.1", 53))
for file, name in ((sys.argv[1], "/etc/resolv.conf"), (sys.argv[2], "/etc/hosts"), (sys.argv[3], "/etc/nsswitch.conf")):
    subprocess.run(["mount", "--bind", file, name], check=True)
names = ["node0", "node1.example", "node2.example"]
print(__import__("json").dumps(probe_this_node(ProbeRequest(names=names, deadline_seconds=2)).to_message()))
"""
    files = {
        "resolv.conf": "nameserver 127.0.0.1\n",
        "hosts": "10.0.0.1 node0\n",
        "nsswitch.conf": "hosts: files dns\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = unshared(program, *(str(tmp_path / name) for name in files))
    report = read_report(done.stdout, done.stderr)
    assert report.unanswered["names"] == "did not answer in 2 s: node1.example, node2.example"
    assert report.names == {"node0": ("10.0.0.1",)}


def command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    except OSError:
        return "sleep"  # gone meanwhile
    return " ".join(words)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_probe_that_is_killed_leaves_nothing_behind(number, tmp_path, marked):
    root = with_nvidia_smi(IGNORES_SIGTERM.replace("setsid ", ""), tmp_path)
    probe = subprocess.Popen(
        [sys.executable, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **marked.mark}
    )
    try:
        probe.stdin.write(source_text(ProbeRequest(root=root, deadline_seconds=100)).encode())
        probe.stdin.close()
        assert eventually(lambda: len(marked()) > 5)
        probe.send_signal(number)
        assert probe.wait() != 0 and probe.stdout.read() == b""
        # Of a killed probe the kernel ends all but what the tool itself has started.
        of_the_tool = ["sleep", "sh -c"] if number == signal.SIGKILL else []
        assert eventually(lambda: all(command(pid).startswith(tuple(of_the_tool)) for pid in marked()))
    finally:
        for pid in marked():
            os.kill(pid, signal.SIGKILL)


def test_a_node_on_which_nothing_more_can_be_started_still_answers(tmp_path):
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\n"
    request = ProbeRequest(root=ethernet().write(tmp_path), deadline_seconds=60)
    done = subprocess.run([sys.executable, "-"], input=(limited + source_text(request)).encode(), capture_output=True)
    report = read_report(done.stdout, done.stderr)
    assert report.cpu.num_cores == 8
    assert set(report.unanswered.values()) == {"could not be asked: Too many open files"}


def test_secrets_stay_where_they_are(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "q" * 30)
    monkeypatch.setenv("NCCL_NOTE", "see hf_" + "q" * 30)
    monkeypatch.setenv("https_proxy", "http://ana:s3/cr@t@proxy:3128")
    monkeypatch.setenv("ALL_PROXY", "ana:s3cret@proxy:1080")
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8,localhost")
    report = probe_this_node(ProbeRequest(sources=("environment", "leftovers"), deadline_seconds=60))
    assert report.environment["https_proxy"] == "http://<removed>@proxy:3128"
    assert report.environment["ALL_PROXY"] == "<removed>@proxy:1080"
    assert report.environment["NO_PROXY"] == "10.0.0.0/8,localhost"
    said = json.dumps(report.to_message())
    assert "q" * 30 not in said and "s3" not in said


def test_a_rank_of_an_earlier_run_is_found_and_who_asks_is_not(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("import sys; print(flush=True); sys.stdin.read()")
    rank = subprocess.Popen(
        [sys.executable, script, "--password", "hidden"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"},
    )
    try:
        rank.stdout.readline()
        report = probe_this_node(ProbeRequest(sources=("leftovers",), deadline_seconds=60))
    finally:
        rank.communicate()
    (found,) = [process for process in report.leftovers if process.pid == rank.pid]
    assert found.command.endswith(" train.py") and found.orphan is False and found.seconds is not None
    assert os.getpid() not in [process.pid for process in report.leftovers]


def test_who_asks_from_inside_a_launcher_finds_no_leftover_in_its_own_ranks(tmp_path):
    """As under `torchrun -m allranks.train`, where each rank is one of several on its node."""
    program = tmp_path / "torchrun"
    program.write_text(
        "import os, subprocess, sys\n"
        "env = {**os.environ, 'RANK': '0', 'LOCAL_RANK': '0', 'WORLD_SIZE': '2'}\n"
        "wait = [sys.executable, '-c', 'print(flush=True); input()']\n"
        "beside = subprocess.Popen(wait, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "beside.stdout.readline()\n"
        "print(beside.pid, flush=True)\n"
        "subprocess.run([sys.executable, '-'], env=env)\n"
        "beside.communicate(b'\\n')\n"
    )
    text = source_text(ProbeRequest(sources=("leftovers",), deadline_seconds=60))
    done = subprocess.run([sys.executable, program], input=text.encode(), capture_output=True)
    beside, _, answer = done.stdout.partition(b"\n")
    assert int(beside) not in [process.pid for process in read_report(answer, done.stderr).leftovers]


@pytest.mark.skipif(os.getuid() != 0 or not Path("/usr/bin/python3").exists(), reason="takes root to be somebody else")
def test_an_ordinary_user_gets_what_there_is_and_what_root_would_add(tmp_path):
    if ctypes.CDLL(None).access(b"/usr/bin/python3", os.X_OK):
        pytest.skip("no Python that others may run")
    request = ProbeRequest(paths=({"path": "/root/x", "purpose": "output_dir"},), deadline_seconds=60)
    done = subprocess.run(
        ["/usr/bin/python3", "-"],
        input=source_text(request).encode(),
        capture_output=True,
        user=65534,
        group=65534,
        cwd="/",
    )
    report = read_report(done.stdout, done.stderr)
    assert report.uid == 65534 and report.cpu.num_cores and report.interfaces
    assert report.paths[0].writable is False
    assert "root alone" in report.withheld["leftovers"] and report.unanswered == {}


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (b"", "ended without an answer: bash: python3: command not found"),
        (b"Welcome to node3\n{not json\n", "ended without an answer: bash: python3: command not found"),
        (b'{"version": 1, "host": "no', "ended without an answer: bash: python3: command not found"),
    ],
)
def test_half_an_answer_is_none(output, why):
    assert read_report(output, b"bash: python3: command not found\n").unanswered == {"probe": why}


def test_a_greeting_is_no_answer():
    assert read_report(b'Welcome {\n{"version": 1, "host": "n3"}\nlogout\n').host == "n3"


def test_a_python_that_is_not_there_is_said():
    report = probe_this_node(python="/no/such/python")
    assert report.unanswered["probe"].startswith("could not be started: ")
