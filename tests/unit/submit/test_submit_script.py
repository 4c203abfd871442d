"""The batch script, run by bash with stand-ins for the interpreter and the scheduler's commands."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from allranks.errors import AllranksError, UsageError
from allranks.submit import pbs, slurm
from allranks.submit.job import Job, JobOptions, check, job_name
from allranks.submit.script import render

# Does what the test says in $STAND_IN: it dumps what it was given, saves a "checkpoint" and waits for a signal.
INTERPRETER = """\
#!/usr/bin/python3
import json, os, pathlib, signal, sys
told = pathlib.Path(os.environ["TOLD"])
what = json.loads(os.environ["STAND_IN"])
received = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: received.append(number))
told.with_suffix(".tmp").write_text(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}))
told.with_suffix(".tmp").rename(told)
if what.get("wait"):
    while not received:
        signal.pause()
if what.get("lost") and "train" in sys.argv:
    pathlib.Path(os.environ["ALLRANKS_LOST_HOSTS"]).write_text(json.dumps(what["lost"]))
for path in what.get("saves", []):
    pathlib.Path(path).mkdir(parents=True)
    (pathlib.Path(path) / "COMPLETE").touch()
sys.exit(what["exit"])
"""
RECORDER = '#!/bin/sh\nprintf "%s\\n" "$0 $*" >>"$CALLS"\nexit {code}\n'
HOSTILE = [
    "two words",
    "it's",
    'a "quoted" word',
    "; touch injected",
    "$(touch injected)",
    "`touch injected`",
    "$HOME",
    "a\\b",
    "line one\nline two",
    "x\n#PBS -l select=99",
    "x\n#SBATCH --nodes=99",
    "tab\tand\rreturn",
    "-",
    "*",
    "~",
    "ü日本",
    "",
]


class Place:
    """A folder with stand-ins, and a way to run a script there."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.run = directory / "out $(touch injected) 'dir'"
        self.told = directory / "told.json"
        self.calls = directory / "calls"
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.python = self.bin / "py thon"
        self.add(self.python.name, INTERPRETER)
        for name in ("scontrol", "qrerun", "qsub"):
            self.add(name, RECORDER.format(code=0))

    def add(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def job(self, options: JobOptions | None = None, *train: str) -> Job:
        options = options or JobOptions(nodes=2)
        check(options, {"SET": "value"})
        return Job(options, "name", self.directory, self.run, str(self.python), train or ("c.yaml",))

    def start(self, text: str, *, exit: int = 0, **what: object) -> subprocess.Popen:
        self.told.unlink(missing_ok=True)
        script = self.directory / "script.sh"
        script.write_text(text)
        env = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(self.directory),
            "TOLD": str(self.told),
            "CALLS": str(self.calls),
            "STAND_IN": json.dumps({"exit": exit, **what}),
            "SLURM_JOB_ID": "77",
            "PBS_JOBID": "77.server",
        }
        # PBS starts jobs in the home directory.
        return subprocess.Popen(
            ["/bin/bash", str(script)],
            env=env,
            cwd="/",
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def finish(self, text: str, **what: object) -> int:
        process = self.start(text, **what)
        output, _ = process.communicate(timeout=60)
        assert not (self.directory / "injected").exists()
        self.output = output + "".join(path.read_text() for path in self.run.glob("launch/pbs-*.log"))
        return process.returncode

    def wait_until_trained(self, process: subprocess.Popen) -> dict:
        while not self.told.exists() and process.poll() is None:
            time.sleep(0.01)
        return json.loads(self.told.read_text())

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def place(tmp_path):
    directory = tmp_path / "it's a $(touch injected) folder"
    directory.mkdir()
    return Place(directory)


def scripts(job: Job) -> list[str]:
    path = job.launch / "submit-1.sh"
    return [
        render(job, slurm.dialect(job, job.launch / "submit-1.sh")),
        *(render(job, pbs.dialect(job, path, name)) for name in pbs.FLAVOURS),
    ]


def full_options(**changes: object) -> JobOptions:
    return JobOptions(
        **{
            "nodes": 4,
            "gpus_per_node": "8",
            "cpus_per_task": 32,
            "time": "1-02:03:04",
            "queue": "gpu",
            "account": "team",
            "directives": ("-m abe",),
            "modules": ("cuda/12", "it's"),
            "venv": "/a venv",
            "setup": ("ulimit -c 0",),
            "exports": ("A=it's", "SET"),
            "requeue": True,
            **changes,
        }
    )


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say(place):
    for options in (JobOptions(nodes=1, signal_before=0), JobOptions(nodes=2, requeue=True), full_options()):
        for text in scripts(place.job(options, "c.yaml", *HOSTILE)):
            done = subprocess.run(["shellcheck", "-"], input=text, capture_output=True, text=True)
            assert done.returncode == 0, text + done.stdout


@pytest.mark.parametrize("index", range(3))
def test_hostile_words_arrive_intact(place, index):
    exports = tuple(f"VALUE{number}={value}" for number, value in enumerate(HOSTILE))
    text = scripts(place.job(JobOptions(nodes=2, exports=exports), "c $(touch injected).yaml", *HOSTILE))[index]
    assert place.finish(text) == 0, place.output
    told = json.loads(place.told.read_text())
    assert told["argv"] == ["-m", "allranks", "train", "c $(touch injected).yaml", *HOSTILE]
    assert [told["env"][f"VALUE{number}"] for number in range(len(HOSTILE))] == HOSTILE
    assert told["cwd"] == str(place.directory)


def test_no_value_begins_a_line_that_a_scheduler_would_read(place):
    exports = tuple(f"VALUE{number}={value}" for number, value in enumerate(HOSTILE))
    for text in scripts(place.job(JobOptions(nodes=2, exports=exports), *HOSTILE)):
        lines = text.splitlines()
        last = max(number for number, line in enumerate(lines) if line.startswith(("#PBS", "#SBATCH")))
        assert all(line.startswith("#") for line in lines[: last + 1]), text
        assert "99" not in "".join(lines[: last + 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": 0}, "--nodes 0: expected 1 or more"),
        ({"name": "a b"}, "--job-name 'a b': expected a letter"),
        ({"name": "a\n#SBATCH --nodes=9"}, "--job-name"),
        ({"name": "-x"}, "--job-name"),
        ({"name": "x" * 65}, "at most 64"),
        ({"account": "me; rm"}, "--account"),
        ({"queue": "$(x)"}, "--queue"),
        ({"queue": "-x"}, "--queue"),
        ({"gpus_per_node": "0"}, "--gpus-per-node"),
        ({"gpus_per_node": "h200:8 --x"}, "--gpus-per-node"),
        ({"cpus_per_task": 0}, "--cpus-per-task"),
        ({"mem": "64"}, "--mem"),
        ({"time": "30"}, "--time '30': expected HH:MM:SS"),
        ({"time": "1:00\n:00"}, "--time"),
        ({"setup": ("a\nb",)}, "--setup"),
        ({"setup": ("#PBS -l select=9",)}, "--setup"),
        ({"setup": ("echo 'open",)}, "complete by itself"),
        ({"setup": ("echo \\",)}, "complete by itself"),
        ({"setup": ("cat <<END",)}, "complete by itself"),
        ({"setup": ("if true; then",)}, "complete by itself"),
        ({"directives": ("--x\n--y",)}, "--directive"),
        ({"directives": ("nodes=9",)}, "--directive"),
        ({"exports": ("A B=1",)}, "--export"),
        ({"exports": ("MISSING",)}, "MISSING: the variable is not set here"),
        ({"exports": ("HF_TOKEN=x",)}, "a secret does not belong there"),
        ({"exports": ("A=hf_abcdefghijklmnopqrstuv",)}, "a secret does not belong there"),
        ({"exports": ("BROKEN",)}, "line breaks"),
        ({"signal_before": -1}, "--signal-before -1"),
        ({"signal_before": 300, "time": "00:05:00"}, "not below --time"),
    ],
)
def test_what_no_scheduler_would_understand_is_refused(change, message):
    with pytest.raises(UsageError) as error:
        check(JobOptions(**{"nodes": 1, **change}), {"BROKEN": "a\nb"})
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["SECRET_TOKENS", "API_TOKENS", "HF_TOKENS", "Git_Tokens", "PGPASSWORD", "API_KEYS"])
def test_a_secret_is_not_written_into_the_script_whatever_its_name_looks_like(name):
    with pytest.raises(UsageError, match=f"--export {name}=…: .* a secret does not belong there"):
        check(JobOptions(nodes=2, exports=(f"{name}=x",)), {})
    check(JobOptions(nodes=2, exports=(name,)), {name: "x"})


def test_what_only_sounds_like_a_secret_may_be_written():
    check(JobOptions(nodes=2, exports=("TOKENIZERS_PARALLELISM=false", "MAX_TOKENS=9", "NUM_TOKENS=9")), {})


SLURMS = [
    "--nodes=9",
    "--nodes 9",
    "--node 9",
    "--nod=9",
    "-N 9",
    "-N9",
    "-HN9",
    "-H -N 9",
    "--ntasks=9",
    "-n9",
    "--nta=9",
]
SLURMS += ["--tasks-per-node=8", "--ntasks-per-gpu=1", "--time=1", "-t1", "--tim 1", "--output=x", "-ox", "--array=1-9"]
SLURMS += ["--export=NONE", "--export-file=x", "--exc", "--exclusive=user", "-D /", "--chd=/", "--wrap=x", "-F hosts"]
SLURMS += ["--job-n x", "--acc=x", "-p gpu", "--mem=1", "--no-req", "--req", "--sig=B:TERM", "--open-mode=truncate"]
PBSS = ["-N x", "-Nx", "-l walltime=1:00", "-lwalltime=1:00", "-l select=9", "-l nodes=9:ppn=1", "-l place=free", "-V"]
PBSS += ["-J 1-9", "-t 1-9", "-q x", "-hq x", "-l filesystems=home,walltime=1:00:00", "-l 'mem=1gb, select=2:ncpus=4'"]
PBSS += ["-l filesystems=home -l select=9", "-L tasks=9", "-r y", "-ry", "-v A=1", "-S /bin/csh", "-C #X", "-z", "-j n"]
PBSS += ["-l procs=64", "-l ncpus=9"]


def check_slurm(place, directive, **options):
    return slurm.dialect(place.job(JobOptions(nodes=2, directives=(directive,), **options)), place.run).directives


def check_pbs(place, directive, flavour="openpbs"):
    return pbs.dialect(place.job(JobOptions(nodes=2, directives=(directive,))), place.run, flavour).directives


def around(directive, harmless):
    """The directive alone, behind, before and between harmless ones, and quoted."""
    quoted = '"' + directive.replace(" ", '" "') + '"'
    return [directive, f"{harmless} {directive}", f"{directive} {harmless}", f"{harmless}  {quoted} {harmless}"]


@pytest.mark.parametrize("directive", SLURMS)
@pytest.mark.parametrize("harmless", ["--constraint=ib", "--comment 'a b'", "-w node[0-9]", "-C ib", "-H", "-s"])
def test_directives_that_contradict_the_script_are_refused_by_slurm_wherever_they_stand(place, directive, harmless):
    check_slurm(place, harmless)
    for text in around(directive, harmless):
        with pytest.raises(UsageError, match=r"--directive .*(use --|relies on it)"):
            check_slurm(place, text)


@pytest.mark.parametrize(
    "directive", ["--gpus=8", "-G8", "-G a100:8", "--gpus-per-task=1", "--gres=gpu:8", "--gre gpu:8"]
)
def test_gpus_are_said_once(place, directive):
    check_slurm(place, directive)
    with pytest.raises(UsageError, match="--gpus-per-node"):
        check_slurm(place, f"--constraint=ib {directive}", gpus_per_node="8")
    check_slurm(place, "--gres=lustre:1", gpus_per_node="8")


@pytest.mark.parametrize("directive", PBSS)
@pytest.mark.parametrize("harmless", ["-l filesystems=home", "-m abe", "-h", "-W umask=22", "-P project"])
def test_directives_that_contradict_the_script_are_refused_by_pbs_wherever_they_stand(place, directive, harmless):
    check_pbs(place, harmless)
    texts = around(directive, harmless) if "'" not in directive else [directive, f"{harmless} {directive}"]
    for text in texts:
        for flavour in pbs.FLAVOURS:
            with pytest.raises(UsageError, match=r"--directive .*(use --|relies on it)"):
                check_pbs(place, text, flavour)


@pytest.mark.parametrize("directive", ["--comment='x", "-Z 9", "-%", '--x="'])
def test_directives_that_no_scheduler_reads_are_refused(place, directive):
    for check_directive in (check_slurm, check_pbs):
        with pytest.raises(UsageError, match=r"no option -|not closed"):
            check_directive(place, directive)


def test_variables_of_sbatch_that_win_over_any_option_of_a_directive_are_dropped(place):
    job = place.job(JobOptions(nodes=2, directives=("--comment=x -C ib --qos low",)))
    env = {"SBATCH_QOS": "high", "SBATCH_CONSTRAINT": "eth", "SBATCH_DEBUG": "1"}
    assert slurm.environment(job, env) == ({"SBATCH_DEBUG": "1"}, ["SBATCH_CONSTRAINT", "SBATCH_QOS"])


def test_directives_of_sites_are_kept(place):
    job = place.job(JobOptions(nodes=2, directives=("--constraint=ib", "-w node[0-1]")))
    assert {"#SBATCH --constraint=ib", "#SBATCH -w node[0-1]"} <= set(
        slurm.dialect(job, job.launch / "submit-1.sh").directives
    )
    job = place.job(JobOptions(nodes=2, directives=("-l filesystems=home", "-W umask=22")))
    assert {"#PBS -l filesystems=home", "#PBS -W umask=22"} <= set(pbs.dialect(job, place.run, "openpbs").directives)


def test_what_openpbs_and_torque_are_asked_for(place):
    job = place.job(full_options(mem="64G", exclusive=True))
    assert pbs.dialect(job, place.run, "openpbs").directives[:7] == [
        "#PBS -N name",
        "#PBS -l select=4:ncpus=32:ngpus=8:mem=64gb:mpiprocs=1",
        "#PBS -l place=scatter:exclhost",
        "#PBS -l walltime=26:03:04",
        "#PBS -q gpu",
        "#PBS -A team",
        "#PBS -v SET",
    ]
    assert "#PBS -l nodes=4:ppn=32:gpus=8" in pbs.dialect(place.job(full_options()), place.run, "torque").directives
    for options in (full_options(mem="64G"), full_options(exclusive=True), full_options(gpus_per_node="h200:8")):
        with pytest.raises(UsageError):
            pbs.dialect(place.job(options), place.run, "torque")


def test_the_path_of_the_log_is_one_value_for_sbatch(place):
    job = Job(JobOptions(nodes=1), "name", place.directory, Path('/a "b" 50%j'), "python", ())
    assert (
        '#SBATCH --output="/a \\"b\\" 50%%j/launch/slurm-%j.log"'
        in slurm.dialect(job, job.launch / "submit-1.sh").directives
    )
    for refused in ("/a\n#SBATCH", "/a\\b"):
        with pytest.raises(UsageError, match="output_dir"):
            slurm.dialect(Job(JobOptions(nodes=1), "name", place.directory, Path(refused), "python", ()), place.run)


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_exit_code_is_the_runs(place, code):
    for text in scripts(place.job(JobOptions(nodes=2))):
        assert place.finish(text, exit=code) == code
    assert place.called() == []


def stop(place: Place, text: str, number: signal.Signals, *saves: Path, exit: int = 75) -> int:
    process = place.start(text, exit=exit, wait=True, saves=[str(path) for path in saves])
    place.wait_until_trained(process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    place.output = output
    return process.returncode


def test_a_signal_reaches_the_run_and_the_job_goes_back_into_the_queue(place):
    options = JobOptions(nodes=2, requeue=True)
    saved = place.run / "checkpoints"
    for number, text in enumerate(scripts(place.job(options))):
        place.calls.unlink(missing_ok=True)
        assert stop(place, text, signal.SIGUSR1, saved / f"step-{number:08d}") == 75, place.output
        (call,) = place.called()
        assert call.endswith("bin/scontrol requeue 77" if number == 0 else "bin/qrerun 77.server")


def test_without_the_right_to_requeue_pbs_gets_the_same_script_as_a_new_job(place):
    place.add("qrerun", RECORDER.format(code=1))
    text = scripts(place.job(JobOptions(nodes=2, requeue=True)))[1]
    assert stop(place, text, signal.SIGUSR1, place.run / "checkpoints/step-00000001") == 75
    script = place.run / "launch" / "submit-1.sh"
    assert place.called()[1].endswith(f"bin/qsub -W depend=afterany:77.server {script}")


def test_what_is_not_requeued(place):
    for text in scripts(place.job(JobOptions(nodes=2, requeue=True))):
        shutil.rmtree(place.run / "checkpoints", ignore_errors=True)
        assert stop(place, text, signal.SIGUSR1) == 75, "no checkpoint: the next start would save none either"
        assert stop(place, text, signal.SIGTERM, place.run / "checkpoints/step-00000001") == 75, "cancelled"
        assert place.finish(text, exit=1, saves=[str(place.run / "checkpoints/step-00000002")]) == 1, "failed"
        assert place.finish(text, exit=0, saves=[str(place.run / "checkpoints/step-00000003")]) == 0, "done"
    assert place.called() == []
    job = place.job(JobOptions(nodes=2))
    for text in scripts(job):
        shutil.rmtree(place.run / "checkpoints")
        assert stop(place, text, signal.SIGUSR1, place.run / "checkpoints/step-00000001") == 75, "not asked for"
    assert place.called() == []


def test_pbs_runs_are_told_to_stop_before_the_time_is_over(place):
    text = scripts(place.job(JobOptions(nodes=2, time="00:00:02", signal_before=1)))[1]
    assert place.finish(text, exit=75, wait=True) == 75


def test_set_up_runs_before_the_training_and_its_failure_ends_the_job(place):
    venv = place.directory / "a venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "activate").write_text("export ACTIVATED=$UNSET_BY_ME.yes\n")
    (place.directory / "bin" / "module").write_text('#!/bin/sh\nprintf "%s\\n" "module $*" >>"$CALLS"\n')
    (place.directory / "bin" / "module").chmod(0o755)
    options = JobOptions(nodes=2, modules=("it's",), venv=str(venv), setup=("export LINE='a b'",))
    for text in scripts(place.job(options)):
        assert place.finish(text) == 0, place.output
        told = json.loads(place.told.read_text())["env"]
        assert (told["ACTIVATED"], told["LINE"]) == (".yes", "a b")
    assert place.called()[0] == "module load it's"
    for text in scripts(place.job(JobOptions(nodes=2, setup=("false",)))):
        assert place.finish(text) != 0
        assert not place.told.exists()


def test_the_script_does_not_grow_with_the_nodes(place):
    small, large = (scripts(place.job(JobOptions(nodes=nodes))) for nodes in (1, 1024))
    assert [len(text) - len("024") for text in large] == [len(text) for text in small]


def test_variables_that_would_win_over_the_script_are_not_handed_to_sbatch(place):
    job = place.job(JobOptions(nodes=2, time="1:00:00"))
    env = {
        "SBATCH_TIMELIMIT": "1",
        "SBATCH_PARTITION": "p",
        "SBATCH_NO_REQUEUE": "1",
        "SBATCH_EXPORT": "NONE",
        "A": "b",
    }
    kept, dropped = slurm.environment(job, env)
    assert kept == {"SBATCH_PARTITION": "p", "A": "b"}
    assert dropped == ["SBATCH_EXPORT", "SBATCH_NO_REQUEUE", "SBATCH_TIMELIMIT"]


def test_job_ids():
    assert slurm.job_id("123\n") == "123" and slurm.job_id("123;cluster\n") == "123"
    assert pbs.job_id("123.head.example.org\n") == "123.head.example.org"
    for parts in (slurm, pbs):
        with pytest.raises(AllranksError, match="instead of a job"):
            parts.job_id("Welcome!\n")


@pytest.mark.parametrize(
    ("config", "name"),
    [("qwen-7b.yaml", "qwen-7b"), ("my run;$(x).yaml", "my-run-x"), ("7b.yaml", "allranks-7b"), ("ü.yaml", "allranks")],
)
def test_a_job_is_named_after_its_config(config, name):
    assert job_name(JobOptions(nodes=1), Path(config)) == name


@pytest.mark.parametrize("index", range(3))
def test_a_run_that_ended_for_a_lost_node_is_handed_to_what_requeues_it(place, index):
    job = place.job(JobOptions(nodes=2, requeue=True))
    job.launch.mkdir(parents=True)
    text = scripts(job)[index]
    stale = job.launch / f"lost-hosts-{'77' if index == 0 else '77.server'}.json"
    stale.write_text("of a start before")
    assert place.finish(text, exit=1) == 1
    assert json.loads(place.told.read_text())["argv"][:3] == ["-m", "allranks", "train"], "no lost host, no requeue"
    assert place.finish(text, exit=1, lost={"cause": "node-lost", "hosts": ["node1"]}) == 1
    scheduler, number = ("slurm", "77") if index == 0 else ("pbs", "77.server")
    told = json.loads(place.told.read_text())["argv"]
    assert told == ["-m", "allranks.submit.lost_node", scheduler, number, "2", str(stale), f"{job.launch}/submit-1.sh"]
    assert place.called() == []


@pytest.mark.parametrize("options", [JobOptions(nodes=2), JobOptions(nodes=1, requeue=True)])
def test_only_a_job_of_several_nodes_that_may_be_requeued_asks_for_lost_hosts(place, options):
    assert not any("ALLRANKS_LOST_HOSTS" in text for text in scripts(place.job(options)))
