"""The lab itself: its nodes are apart where nodes are apart, its faults are faults, and it leaves nothing behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.lab import CommandFailed, Lab, ground, missing
from tests.patience import TIMEOUT_SECONDS

REPOSITORY = Path(__file__).parents[2]


def test_nodes_know_each_other_by_name_and_log_in_to_each_other(lab):
    for index, node in enumerate(lab.nodes):
        peer = lab.nodes[(index + 1) % len(lab.nodes)]
        command = [
            "ssh",
            "-o",
            "BatchMode=yes",
            peer.name,
            "hostname; getent ahostsv4 $(hostname) | cut -d' ' -f1 | uniq",
        ]
        assert node.run(command, check=True, timeout=TIMEOUT_SECONDS).stdout.split() == [peer.name, peer.ip]


def test_nodes_have_their_own_disk_and_processes_and_share_one_folder(lab):
    first, second, _ = lab.nodes
    (lab.shared / "all").write_text("seen by all")
    first.write("/tmp/file", "mine")
    first.write(Path(__file__), "skewed")
    assert first.run(["cat", "/tmp/file", __file__, lab.shared / "all"], check=True).stdout == "mineskewedseen by all"
    assert second.run(["cat", "/tmp/file"]).returncode == 1
    assert second.run(["head", "-c3", __file__], check=True).stdout == '"""'

    process = first.popen(["sleep", "1000"])
    assert [found.argv for found in first.processes()] == [("sleep", "1000")]
    assert second.processes() == []
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM
    assert first.processes() == []


def test_a_command_gets_a_login_environment_and_its_words_arrive_intact(lab):
    words = ["a b", "$(id)", ";", "'\"", "new\nline", ""]
    done = lab.node(1).run([sys.executable, "-c", "import sys; print(sys.argv[1:])", *words], check=True)
    assert done.stdout == f"{words}\n"
    environment = lab.node(1).run(["env"], env={"EXTRA": "a\nb"}, check=True).stdout
    assert "EXTRA=a\nb\n" in environment
    assert "PYTEST" not in environment
    with pytest.raises(CommandFailed, match="No such file"):
        lab.node(1).run(["ls", "/nowhere"], check=True)


def reaches(lab, source, target, seconds=10):
    return lab.node(source).run(["ping", "-c1", f"-W{seconds}", lab.node(target).name]).returncode == 0


def open_port(lab, source, target, port, command, seconds=20):
    """Run bash's `command` with a connection as its descriptor 3; exit code 124: no answer within `seconds`."""
    script = f"exec 3<>/dev/tcp/{lab.node(target).ip}/{port}; {command}"
    return lab.node(source).run(["timeout", str(seconds), "bash", "-c", script])


def test_network_faults(lab):
    lab.cut(1)
    assert not reaches(lab, 0, 1, seconds=1)
    assert reaches(lab, 0, 2)
    lab.heal(1)
    assert reaches(lab, 0, 1)

    lab.drop_port(1, 22)
    assert open_port(lab, 0, 1, 22, "true", seconds=1).returncode == 124
    assert reaches(lab, 0, 1)
    lab.heal(1)
    lab.refuse_port(1, 22)
    assert "Connection refused" in open_port(lab, 0, 1, 22, "true").stderr
    lab.heal(1)
    assert open_port(lab, 0, 1, 22, "true").returncode == 0

    try:
        lab.delay(1, "30ms")
    except NotImplementedError:  # a kernel without netem
        pass
    else:
        shown = lab.node(0).run(["ping", "-c1", lab.node(1).name], check=True).stdout
        assert float(shown.split("time=")[1].split()[0]) >= 60
        lab.heal(1)

    lab.lose(1, 1.0)
    assert not reaches(lab, 0, 1, seconds=1)
    lab.heal(1)
    lab.limit(1, "10mbit")
    assert "rate 10Mbit" in lab.node(1).run(["tc", "qdisc", "show", "dev", "eth0"], check=True).stdout
    lab.heal(1)
    assert "tbf" not in lab.node(1).run(["tc", "qdisc", "show", "dev", "eth0"], check=True).stdout


def test_a_full_disk_a_frozen_node_and_a_crash(lab):
    node = lab.node(1)
    node.fill_disk()
    assert "No space left" in node.run(["sh", "-c", "head -c1000000 /dev/zero >/root/file"]).stderr
    assert node.run(["sh", "-c", f"echo >{lab.shared}/file"]).returncode == 0
    node.free_disk()
    assert node.run(["sh", "-c", "head -c1000000 /dev/zero >/root/file"]).returncode == 0

    process = node.popen(["sleep", "1000"])
    lab.freeze(1)
    assert reaches(lab, 0, 1)
    greeting = "read -r line <&3"
    assert open_port(lab, 0, 1, 22, greeting, seconds=1).returncode == 124  # the kernel accepts, and sshd says nothing
    lab.thaw(1)
    assert open_port(lab, 0, 1, 22, greeting).returncode == 0

    lab.kill(1)
    assert process.wait(10) == -signal.SIGKILL
    assert not reaches(lab, 0, 1, seconds=1)
    with pytest.raises(RuntimeError, match="node1 is down"):
        node.run(["true"])
    lab.restart(1)
    assert node.run(["ls", "/root/file"]).returncode == 2
    assert lab.node(0).run(["ssh", "-o", "BatchMode=yes", "node1", "hostname"], check=True).stdout == "node1\n"


def test_a_node_gets_no_more_of_a_core_than_it_is_given(lab):
    program = (
        "import time\n"
        "began, used = time.monotonic(), time.process_time()\n"
        "while time.monotonic() < began + 2: pass\n"
        "print(time.process_time() - used)\n"
    )
    lab.limit_cpu(1, 0.2)
    # The kernel's own count of what it had in two seconds, which is 0.4 s and a period or two.
    assert float(lab.node(1).run([sys.executable, "-c", program], check=True).stdout) < 0.6


def test_restore_puts_everything_right(lab):
    lab.cut(0)
    lab.freeze(1)
    lab.node(2).rename("other")
    lab.node(0).popen(["sleep", "1000"])
    lab.restore()
    assert [node.run(["hostname"], check=True).stdout for node in lab.nodes] == ["node0\n", "node1\n", "node2\n"]
    assert [node.processes() for node in lab.nodes] == [[], [], []]
    assert reaches(lab, 0, 1)
    lab.power_off(1)
    lab.restore()
    assert reaches(lab, 0, 1)


def traces(name):
    """What is left of lab `name` on this machine: folders, mounts, processes with a mount of it in their namespace."""
    found = [path for path in (ground.FILES / name, ground.cgroups() / name) if path.exists()]
    for mounts in Path("/proc").glob("[0-9]*/mounts"):
        try:
            if name in mounts.read_text():
                found.append(mounts)
        except OSError:  # the process has ended meanwhile
            continue
    return found


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_lab_leaves_nothing_behind_and_the_lab_of_a_killed_owner_is_removed_at_the_next_start():
    with Lab(nodes=1) as small:
        assert traces(small.name)
        script = "from tests.cluster.lab import Lab\nwith Lab(nodes=2) as lab: print(lab.name, flush=True); input()"
        owner = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        orphan = owner.stdout.readline().strip()
        assert ground.remove_stale() == [], "the lab of a living owner was removed"
        owner.kill()
        owner.communicate()
        assert traces(orphan)
        with Lab(nodes=1):
            assert traces(orphan) == []
    assert traces(small.name) == []


def test_slurm_runs_jobs_on_all_nodes_and_is_there_again_after_a_crash(lab):
    slurm = lab.slurm()
    head = lab.node(0)
    shown = head.run(
        ["srun", "-N3", "--gpus-per-node=4", "sh", "-c", "echo $(hostname) $CUDA_VISIBLE_DEVICES"], check=True
    )
    assert sorted(shown.stdout.splitlines()) == [f"{node.name} 0,1,2,3" for node in lab.nodes]
    script = f"#!/bin/sh\n#SBATCH --nodes=3 --output={lab.shared}/slurm.out\nsrun hostname\nexit 3\n"
    job = head.run(["sbatch", "--parsable"], input=script, check=True).stdout
    assert slurm.wait(job.strip()).exit_code == 3
    assert sorted((lab.shared / "slurm.out").read_text().split()) == [node.name for node in lab.nodes]
    assert [node.processes() for node in lab.nodes] == [[], [], []]
    lab.kill(2)
    lab.restore()
    assert len(head.run(["srun", "-N3", "hostname"], check=True).stdout.split()) == 3


def test_the_stand_in_for_pbs_starts_tasks_as_openpbs_does_and_says_what_it_is(lab):
    pbs = lab.pbs()
    head = lab.node(0)
    assert "stand-in" in head.run(["qsub", "--version"], check=True).stdout
    program = (
        "import os, sys; print(os.environ['PBS_NODENUM'], sys.argv[1:], os.environ['OWN'], 'SCRIPT' in os.environ)"
    )
    lines = [
        "#!/bin/bash",
        "#PBS -l select=3:ncpus=1:ngpus=4 -l place=scatter",
        "#PBS -N lab -j oe",
        "pwd; cat $PBS_NODEFILE; export SCRIPT=1",
        f"""pbsdsh -- {sys.executable} -c "{program}" 'a b' '$(id)' $'new\\nline'""",
        "pbsdsh -n 1 -- false; echo pbsdsh $?; pbsdsh -o -- sleep 1000",
        "exit 7",
    ]
    script = lab.shared / "job.sh"
    script.write_text("\n".join(lines))
    done = head.run(["qsub", "-W", "block=true", "-v", "OWN='a,b'", script], cwd=lab.shared)
    assert (done.returncode, done.stdout) == (7, "1.node0\n")
    output = (lab.shared / "lab.o1").read_text().splitlines()
    assert output[:4] == ["/root", "node0", "node1", "node2"]
    assert sorted(output[4:7]) == [f"{rank} ['a b', '$(id)', 'new\\nline'] a,b False" for rank in range(3)]
    assert output[7:] == ["pbsdsh: task 0x00000000 exit status 1", "pbsdsh 0"]
    assert [node.processes() for node in lab.nodes] == [[], [], []], "the end of the script ends all tasks"

    script.write_text("trap 'echo asked; wait' TERM\npbsdsh -- sleep 1000 & wait\n")
    job = head.run(["qsub", "-l", "select=3:ncpus=1", "-l", "place=scatter", script], cwd=lab.shared).stdout.strip()
    while len(lab.node(2).processes()) != 1:
        time.sleep(0.05)
    head.run(["qdel", job], check=True)
    assert pbs.wait(job).exit_code == 143  # bash's, of a wait that SIGTERM interrupted
    assert "asked" in (lab.shared / "job.sh.o2").read_text()
    assert [node.processes() for node in lab.nodes] == [[], [], []]


def test_a_shell_on_the_first_node_ends_with_the_lab():
    if reason := missing():
        pytest.skip(reason)
    command = [sys.executable, "-m", "tests.cluster.lab", "--nodes", "2", "--", "ssh", "node1", "hostname; exit 5"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert (done.stdout, done.returncode) == ("node1\n", 5)
    shared = done.stderr.split("shared by all: ")[1].split(";")[0]
    assert traces(Path(shared).parent.name) == []
