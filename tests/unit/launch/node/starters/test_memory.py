"""The allocator of ranks on CPUs."""

import platform
import subprocess
import sys
import textwrap

import pytest

from allranks.launch.node.starters import Place, starting
from allranks.launch.node.starters.memory import allocator_variables, gives_huge_pages_on_request
from allranks.launch.spec.options import LaunchOptions, resolve
from allranks.launch.spec.program import Program, engine
from allranks.observe import RunDir

SET = {
    "MALLOC_MMAP_THRESHOLD_": "16777216",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def started(tmp_path, monkeypatch, program, *, num_gpus=0, **env):
    """The variables that our ranks on this node are given, of the allocator."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    launch = resolve(LaunchOptions(nproc_per_node=2), num_gpus=num_gpus)
    variables = starting(launch, program, Place(RunDir(tmp_path), 0, (2,))).variables
    return {name: value for name, value in variables.items() if name in SET}


def test_our_ranks_on_cpus_give_back_what_they_free(tmp_path, monkeypatch):
    assert started(tmp_path, monkeypatch, engine(tmp_path / "c.yaml")) == SET


def test_neither_gpus_nor_programs_of_others_are_touched(tmp_path, monkeypatch):
    assert started(tmp_path, monkeypatch, engine(tmp_path / "c.yaml"), num_gpus=2) == {}
    assert started(tmp_path, monkeypatch, Program("script", "train.py")) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "1"),
        ("MALLOC_ARENA_MAX", "2"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072"),
    ],
)
def test_nothing_is_set_beside_what_the_user_has_set(tmp_path, monkeypatch, name, value):
    assert started(tmp_path, monkeypatch, engine(tmp_path / "c.yaml"), **{name: value}) == {}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's variables")
def test_a_rank_holds_less_for_it():
    """As FSDP does it: blocks of 20 MB made and freed, with a small one between them that stays."""
    program = """
        import ctypes, re
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        size, larger = 20 * 2**20, 24 * 2**20
        def held():
            return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])
        def made(size):
            block = libc.malloc(size)
            ctypes.memset(block, 1, size)
            return block
        libc.free(made(larger))  # after it glibc takes smaller blocks than this out of an arena
        before = held()
        blocks = []
        for _ in range(10):
            blocks.append(made(size))
            libc.malloc(200_000)
        for block in blocks:
            libc.free(block)
        print(held() - before)
    """
    held = {}
    for name, variables in {"ours": allocator_variables(0, {}), "glibc's": {}}.items():
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], env=variables, capture_output=True, text=True, check=True
        )
        held[name] = int(run.stdout)
    assert held["ours"] < 8000 and held["glibc's"] > 100_000  # KiB


def test_other_tunables_of_glibc_are_kept():
    own = {"GLIBC_TUNABLES": "glibc.cpu.x86_rep_movsb_threshold=4096"}
    variables = allocator_variables(0, own)
    assert variables["GLIBC_TUNABLES"] == "glibc.cpu.x86_rep_movsb_threshold=4096:glibc.malloc.hugetlb=1"


def gives_huge_pages_to_who_asks():
    """Whether the kernel does, and this C library can ask."""
    library, release = platform.libc_ver()
    knows = library == "glibc" and tuple(map(int, release.split("."))) >= (2, 35)
    return knows and gives_huge_pages_on_request()


@pytest.mark.skipif(not gives_huge_pages_to_who_asks(), reason="needs glibc 2.35 and huge pages for who asks")
def test_large_blocks_lie_on_huge_pages():
    program = """
        import ctypes, re
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        for size in [64 * 2**20] + 64 * [2**20]:  # one that is a mapping of its own, and a heap that grows
            ctypes.memset(libc.malloc(size), 1, size)
        print(sum(map(int, re.findall(r"AnonHugePages:\\s+(\\d+)", open("/proc/self/smaps").read()))))
    """
    huge = {}
    for name, variables in {"ours": allocator_variables(0, {}), "glibc's": {}}.items():
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], env=variables, capture_output=True, text=True, check=True
        )
        huge[name] = int(run.stdout)
    assert huge["glibc's"] == 0 and huge["ours"] > 100 * 2**10  # KiB


@pytest.mark.parametrize(
    ("told", "gives"), [("always [madvise] never", True), ("[always] madvise never", False), (None, False)]
)
def test_the_kernel_says_whether_it_gives_huge_pages_on_request(tmp_path, monkeypatch, told, gives):
    monkeypatch.setattr("allranks.launch.node.starters.memory._MODE", tmp_path / "enabled")
    if told is not None:
        (tmp_path / "enabled").write_text(told)
    assert gives_huge_pages_on_request() is gives
