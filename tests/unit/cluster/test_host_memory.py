"""Who bounds the memory of this host, and what the kernel has killed: by proc and both versions of cgroups."""

import resource

from allranks.cluster.memory import Kills, killed_since, memory_kills, memory_limit

GIB = 2**30


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {
    "proc/meminfo": "MemTotal:       67108864 kB\nMemFree: 1 kB\n",
    "proc/vmstat": "nr_free_pages 1\noom_kill 7\n",
}


def version_2(root, kills, limit="4294967296"):
    """As in a Slurm step or a pod: the limit may be above the process's own cgroup."""
    own = "sys/fs/cgroup/system.slice/job_7/step_0"
    return tree(
        root,
        {
            **MACHINE,
            "proc/self/cgroup": "0::/system.slice/job_7/step_0\n",
            f"{own}/memory.max": "max\n",
            f"{own}/memory.events": f"low 0\nhigh 0\nmax 12\noom 3\noom_kill {kills}\noom_group_kill 0\n",
            "sys/fs/cgroup/system.slice/job_7/memory.max": limit,
        },
    )


def version_1(root, kills, limit=4 * GIB):
    own = "sys/fs/cgroup/memory/docker/abc"
    return tree(
        root,
        {
            **MACHINE,
            "proc/self/cgroup": "5:cpuset:/docker/abc\n4:memory:/docker/abc\n0::/\n",
            f"{own}/memory.limit_in_bytes": str(limit),
            f"{own}/memory.oom_control": f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )


def test_the_smallest_limit_counts_and_says_who_sets_it(tmp_path):
    for number, make in enumerate((version_1, version_2)):
        limit = memory_limit(make(tmp_path / f"{number}", 0))
        assert (limit.num_bytes, limit.source) == (4 * GIB, "the cgroup's limit")
    limit = memory_limit(tree(tmp_path / "none", MACHINE))
    assert (limit.num_bytes, limit.source) == (64 * GIB, "the machine's memory")


def test_what_the_kernel_killed_since(tmp_path):
    for number, make in enumerate((version_1, version_2)):
        root = make(tmp_path / f"{number}", 2)
        before = memory_kills(root)
        assert before == Kills(2, 7)
        assert killed_since(before, root) == ""
        make(root, 3)
        assert killed_since(before, root) == "its cgroup ran out of memory (the cgroup's limit: 4.0 GiB)"
    root = tree(tmp_path / "machine", MACHINE)
    before = memory_kills(root)
    assert before == Kills(None, 7) and killed_since(before, root) == ""
    tree(root, {"proc/vmstat": "oom_kill 8\n"})
    assert killed_since(before, root) == "this machine ran out of memory"


def test_a_kernel_that_tells_nothing(tmp_path):
    assert memory_kills(tmp_path) == Kills(None, None)
    assert killed_since(Kills(None, None), tmp_path) is None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    assert soft != resource.RLIM_INFINITY or memory_limit(tmp_path) is None


def test_lines_of_cgroups_that_no_kernel_writes_are_left_out(tmp_path):
    files = {"proc/self/cgroup": "\n0\n1:memory\n0::/job\n", "sys/fs/cgroup/job/memory.max": "1024"}
    assert memory_limit(tree(tmp_path, files)).num_bytes == 1024


def test_this_machine_has_a_limit():
    assert memory_limit().num_bytes > 2**20
