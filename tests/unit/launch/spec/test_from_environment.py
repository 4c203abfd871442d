"""A node whose environment speaks of several never trains alone: it takes its place, or refuses and names who spoke."""

import itertools
from pathlib import Path

import pytest

from allranks.cluster import node_variables
from allranks.cluster.alone import refuse_one_node_of_several
from allranks.cluster.identity import identify
from allranks.cluster.node_variables import SCHEDULERS, SETTERS
from allranks.errors import AllranksError, UsageError
from allranks.launch.run import run_program
from allranks.launch.spec.everywhere import Everywhere
from allranks.launch.spec.from_environment import tell, with_environment
from allranks.launch.spec.options import LaunchOptions, resolve
from allranks.launch.spec.where import NodeOptions, find_nodes
from allranks.launch.start import start as train
from allranks.train.__main__ import main as train_as_rank

TWO = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
VALUES = {"nnodes": "2", "node_rank": "1", "master_addr": "10.0.0.1", "master_port": "7000", "nproc_per_node": "1"}
VALUES |= {"rdzv_backend": "c10d", "rdzv_endpoint": "10.0.0.1:7000", "rdzv_id": "job", "max_restarts": "3"}
PLACE = ("nnodes", "node_rank", "master_addr", "rdzv_endpoint")
SLURM = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[0-1]", "SLURM_JOB_NUM_NODES": "2", "SLURMD_NODENAME": "n0"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "2"}
TASKS = {**SLURM, **STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "n[0-1]", "SLURM_LOCALID": "0"}


@pytest.fixture(autouse=True)
def _no_files(monkeypatch, tmp_path):
    monkeypatch.setattr(node_variables, "DEEPSPEED_HOSTFILE", tmp_path / "job-hostfile")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def options(env, nodes=None, **given):
    found, notes = with_environment(LaunchOptions(**given), nodes or NodeOptions(), env)
    tell(notes)
    return found


def num_nodes(env, **given):
    """How many nodes a run with these variables has; what refuses it is raised."""
    found = options(env, **given)
    everywhere = find_nodes(NodeOptions(), found, ["train", "c.yaml"], env)
    if isinstance(everywhere, Everywhere):
        return len(everywhere.hosts)
    return resolve(found, num_gpus=0).max_nodes


def alone_with(env):
    """What a rank does that a launcher of the user's own, or none, started with these variables."""
    refuse_one_node_of_several(identify(env), env)


@pytest.mark.parametrize("setter", SETTERS, ids=lambda setter: setter.name)
@pytest.mark.parametrize("spelling", [0, -1])
def test_every_part_of_a_place_leads_to_several_nodes_or_is_refused_by_name(setter, spelling):
    names = {option: names[spelling] for option, names in setter.variables.items()}
    for length in range(1, len(names) + 1):
        for told in itertools.combinations(names, length):
            env = {names[option]: VALUES[option] for option in told}
            if not set(told) & set(PLACE):
                assert num_nodes(env) == 1
                continue
            try:
                assert num_nodes(env) == 2
            except AllranksError as error:
                assert error.exit_code == 2
                assert any(names[option] in str(error) for option in told), (env, error)
            with pytest.raises(UsageError) as error:
                alone_with(env)
            assert any(names[option] in str(error.value) for option in told), (env, error.value)


EXAMPLES = {
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NNODES": "2",
    "LSB_HOSTS": "n0 n0 n1 n1",
    "FLUX_JOB_NNODES": "2",
    "JSM_NAMESPACE_SIZE": "2",
    "MV2_COMM_WORLD_SIZE": "2",
    "HOROVOD_SIZE": "2",
    "SM_HOSTS": '["algo-1", "algo-2"]',
}
ONE = {"SM_HOSTS": '["algo-1"]', "LSB_HOSTS": "n0 n0"}


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: scheduler.variable)
def test_what_else_says_that_there_are_several_nodes_is_refused_with_the_options_to_give(scheduler, tmp_path):
    path = tmp_path / "hosts"
    path.write_text("n0 4 queue\nn0 4 queue\nn1 4 queue\n")
    name = scheduler.variable
    env = {name: EXAMPLES.get(name, str(path))}
    with pytest.raises(UsageError, match=name) as error:
        num_nodes(env)
    assert scheduler.instead in str(error.value) and "--nnodes 1" in str(error.value)
    assert num_nodes(env, nnodes="1") == 1
    with pytest.raises(UsageError, match=name):
        alone_with({"SLURM_JOB_ID": "17", **env} if name == "SLURM_JOB_NUM_NODES" else env)
    alone_with({**env, "NNODES": "1"})
    path.write_text("n0\nn0\n")
    env[name] = ONE.get(name, "1") if name in EXAMPLES else str(path)
    assert num_nodes(env) == 1
    alone_with(env)


def test_deepspeeds_host_file_is_one_of_them(monkeypatch, tmp_path):
    (tmp_path / "job-hostfile").write_text("worker-0 slots=8\nworker-1 slots=8\n")
    with pytest.raises(UsageError, match=r"--hostfile .*job-hostfile"):
        num_nodes({})


RANKS = {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "n0"}
RANKS |= {"MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}


@pytest.mark.parametrize(
    "variables",
    [{"NNODES": "2"}, {"PET_NNODES": "2:4"}, SLURM, {**TASKS, "SLURM_STEP_NUM_TASKS": "1"}, {"FLUX_JOB_NNODES": "2"}],
)
def test_a_launcher_that_started_one_node_where_the_environment_says_several_is_refused(variables):
    alone_with(RANKS)
    with pytest.raises(UsageError, match="torchrun started 8 rank"):
        alone_with({**RANKS, **variables})
    alone_with({**RANKS, **variables, "WORLD_SIZE": "16"})  # several nodes
    alone_with({**RANKS, **variables, "ALLRANKS_RUN_ID": "of ours"})


def test_the_only_task_of_a_step_in_a_job_of_several_nodes_is_refused_unless_it_says_so():
    step = {**SLURM, **STEP, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
    step |= {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "n0", "SLURM_NODEID": "0"}
    with pytest.raises(UsageError, match=r"SLURM_JOB_NUM_NODES=2 \(Slurm\) means 2 nodes"):
        alone_with(step)
    alone_with({**step, "NNODES": "1"})


def test_ranks_in_a_pbs_job_of_several_nodes(tmp_path):
    path = tmp_path / "nodefile"
    path.write_text("n0\nn1\n")
    with pytest.raises(UsageError, match="PBS_NODEFILE"):
        alone_with({"PBS_JOBID": "7", "PBS_NODEFILE": str(path)})


def accelerate_file(tmp_path, machines=2):
    path = tmp_path / "hf" / "accelerate" / "default_config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(
        f"compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nmachine_rank: 1\nmain_process_ip: 10.0.0.1\n"
        f"main_process_port: 29500\nnum_machines: {machines}\nnum_processes: {machines}\n"
    )
    return path, {"HF_HOME": str(tmp_path / "hf")}


def test_accelerates_own_file_is_taken_where_it_says_several_machines(tmp_path, capsys):
    path, env = accelerate_file(tmp_path)
    found = options(env)
    assert (found.launcher, found.accelerate_config) == ("accelerate", str(path))
    said = capsys.readouterr().err
    assert str(path) in said and "--nnodes 1 trains on this node alone" in said
    launch = resolve(found, num_gpus=0)
    assert (launch.max_nodes, launch.node_rank, launch.address, launch.port) == (2, 1, "10.0.0.1", 29500)
    assert num_nodes(env, nnodes="1") == 1
    with pytest.raises(UsageError, match=f"{path}: num_machines: 2"):
        num_nodes(env, launcher="torchrun")
    with pytest.raises(UsageError, match=f"{path}: num_machines: 2"):
        alone_with(env)
    alone_with({**env, "NNODES": "1"})
    alone_with({**env, "ACCELERATE_MIXED_PRECISION": "no"})  # `accelerate launch --num_machines 1`


def test_accelerates_own_file_for_one_machine_or_in_pieces_changes_nothing(tmp_path):
    path, env = accelerate_file(tmp_path, machines=1)
    assert options(env) == LaunchOptions()
    path.write_text("num_machines: [2")
    assert options(env) == LaunchOptions()


def test_the_file_and_the_variables_must_agree_or_one_is_told(tmp_path):
    _, env = accelerate_file(tmp_path, machines=4)
    found, notes = with_environment(LaunchOptions(), NodeOptions(), {**env, **TWO})
    assert found.nnodes == "2" and any("num_machines: 4 is not used: this run has --nnodes 2" in note for note in notes)


def test_what_was_taken_is_said_with_the_option_that_it_is(capsys):
    env = {**TWO, "MASTER_PORT": "7000", "GPUS_PER_NODE": "4"}
    found = options(env)
    assert found == LaunchOptions(nnodes="2", node_rank=1, master_addr="10.0.0.1", master_port=7000, nproc_per_node=4)
    assert capsys.readouterr().err == (
        "note: taken from the environment: NNODES=2 (--nnodes), NODE_RANK=1 (--node-rank), MASTER_ADDR=10.0.0.1 "
        "(--master-addr), MASTER_PORT=7000 (--master-port), GPUS_PER_NODE=4 (--nproc-per-node); --nnodes 1 trains on "
        "this node alone\n"
    )


def test_the_command_line_wins_and_a_contradiction_is_told(capsys):
    found = options(TWO, nnodes="3", node_rank=2)
    assert (found.nnodes, found.node_rank, found.master_addr) == ("3", 2, "10.0.0.1")
    said = capsys.readouterr().err
    assert "NNODES=2 is not used: --nnodes 3 was given" in said and "NODE_RANK=1 is not used: --node-rank 2" in said
    assert num_nodes(TWO, nnodes="1") == 1
    assert options(TWO, rdzv_endpoint="b:1", nnodes="2", rdzv_backend="c10d").master_addr is None


def test_named_nodes_win(capsys):
    found = options({**TWO, "NPROC_PER_NODE": "8"}, NodeOptions(hosts="a,b,c"))
    assert found == LaunchOptions(nproc_per_node=8)
    assert "NNODES=2, NODE_RANK=1, MASTER_ADDR=10.0.0.1 not used" in capsys.readouterr().err


def test_torchruns_elastic_variables():
    env = {"PET_NNODES": "1:3", "PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": "10.0.0.1:29400", "PET_RDZV_ID": "j"}
    launch = resolve(options(env), num_gpus=0)
    assert (launch.min_nodes, launch.max_nodes, launch.backend, launch.rdzv_id) == (1, 3, "c10d", "j")


def test_torchruns_other_variables_are_handed_on_or_told(capsys):
    env = {"PET_RDZV_CONF": "timeout=9", "PET_TEE": "3"}
    assert options(env).launcher_args == ("--rdzv-conf", "timeout=9")
    assert options(env, launcher_args=("--rdzv_conf=x=1",)).launcher_args == ("--rdzv_conf=x=1",)
    assert options(env, launcher="deepspeed").launcher_args == ()
    options(env)
    assert "PET_TEE is not used: rank 0 is shown" in capsys.readouterr().err


def test_a_start_over_ssh_that_names_no_nodes_is_warned_of(monkeypatch, capfd):
    ssh = {"SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}
    options(ssh)
    assert "warning: this node trains alone: it was started over ssh" in capfd.readouterr().err
    for env in ({**ssh, "SSH_TTY": "/dev/pts/0"}, {**ssh, "NNODES": "1"}, {**ssh, **TWO}, {**ssh, **SLURM}):
        options(env)
    options(ssh, nnodes="1")
    options(ssh, NodeOptions(hosts="a,b"))
    assert "trains alone: it was" not in capfd.readouterr().err
    monkeypatch.setattr("os.isatty", lambda descriptor: descriptor == 0)
    options(ssh)
    assert capfd.readouterr().err == ""


def test_a_master_address_that_is_this_machine_says_nothing():
    for address in ("localhost", "127.0.0.1", "::1"):
        assert num_nodes({"MASTER_ADDR": address, "MASTER_PORT": "29500"}) == 1
    assert num_nodes({"NNODES": "1", "NODE_RANK": "0", "MASTER_ADDR": "a"}) == 1


def test_the_nodes_that_another_one_started_do_not_look_again():
    assert options({**TWO, "ALLRANKS_ONE_VOICE": "1"}) == LaunchOptions()


def test_in_a_batch_script_the_job_says_which_nodes_there_are(capsys):
    # As Qwen's page prints it; SLURM_NODEID is 0 there.
    script = {**SLURM, "NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "n0", "MASTER_PORT": "6001"}
    assert num_nodes(script) == 2
    found = options(script)
    assert found == LaunchOptions(master_port=6001)
    assert "need not be set: this starts on all 2 nodes of Slurm job 17" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({**SLURM, "NNODES": "1"}, "NNODES=1, but Slurm job 17 has 2 node"),
        ({**SLURM, "NNODES": "4", "NODE_RANK": "0"}, "NNODES=4, but Slurm job 17 has 2 node"),
        ({**SLURM, "NODE_RANK": "1"}, "NODE_RANK=1 is set and NNODES is not"),
        ({**TASKS, **TWO, "NODE_RANK": "0"}, "NODE_RANK=0, but Slurm says that this is node 1"),
        ({"NNODES": "2"}, r"NNODES=2 also needs NODE_RANK \(0 on the first node, then 1, 2, …\) and MASTER_ADDR"),
        (
            {"NNODES": "2", "MASTER_ADDR": "a", "RANK": "1"},
            "RANK=1 counts processes .* a node's own number is NODE_RANK",
        ),
        ({**TWO, "NODE_RANK": "2"}, "NODE_RANK=2 with NNODES=2: node ranks go from 0 to 1"),
        ({"NNODES": "1", "NODE_RANK": "1"}, "NODE_RANK=1 with NNODES=1: a single node has rank 0"),
        ({**TWO, "NNODES": "two"}, "NNODES='two': expected a whole number of at least 1"),
        ({**TWO, "NNODES": "0"}, "NNODES='0'"),
        ({**TWO, "NODE_RANK": "-1"}, "NODE_RANK='-1'"),
        ({**TWO, "MASTER_PORT": "http"}, "MASTER_PORT='http'"),
        ({**TWO, "MASTER_PORT": "66001"}, "MASTER_PORT=66001: expected 1 to 65535"),
        ({"GPUS_PER_NODE": "gpu:8"}, "GPUS_PER_NODE='gpu:8'"),
        ({**TWO, "PET_NNODES": "3"}, "NNODES=2 and PET_NNODES=3 are both set and contradict each other"),
    ],
)
def test_a_wrong_environment_is_refused(env, message):
    with pytest.raises(UsageError, match=message):
        num_nodes(env)


def test_slurms_own_number_may_be_handed_on_in_a_task():
    assert num_nodes({**TASKS, **TWO}) == 2


def test_each_node_of_a_job_by_hand_in_steps_of_one_task():
    assert options({**TASKS, **TWO, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}).node_rank == 1
    first = {**TWO, "NODE_RANK": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NODEID": "0"}
    assert options({**TASKS, **first}).node_rank == 0


def test_pbs_nodes_by_hand_do_not_need_the_node_file_that_only_the_first_has():
    assert num_nodes({**TWO, "PBS_JOBID": "7", "PBS_NODEFILE": "/no/such/file"}) == 2


@pytest.mark.parametrize("start", ["train", "run", "rank"])
def test_every_way_in_asks(start, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NNODES", "2")
    (tmp_path / "c.yaml").write_text("base_model: m\nlearning_rate: 1e-4\ndatasets:\n  - {path: d, type: alpaca}\n")
    if start == "rank":
        with pytest.raises(SystemExit) as exit:
            train_as_rank([str(tmp_path / "c.yaml")])
        assert exit.value.code == 2 and "NNODES=2 is set" in capsys.readouterr().err
        return
    with pytest.raises(UsageError, match="NNODES=2 also needs"):
        if start == "train":
            train(tmp_path / "c.yaml", {}, LaunchOptions())
        else:
            run_program(["-m", "http.server"], LaunchOptions(), NodeOptions(), tmp_path)


def test_nothing_is_taken_where_ray_says_which_nodes_there_are(tmp_path, monkeypatch, capsys):
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("allranks.launch.start.start_ray", lambda cfg, options, nodes, argv, smoke: options)
    (tmp_path / "c.yaml").write_text(
        "use_ray: true\nbase_model: m\nlearning_rate: 1e-4\ndatasets:\n  - {path: d, type: alpaca}\n"
    )
    assert train(tmp_path / "c.yaml", {}, LaunchOptions()) == LaunchOptions()
    assert capsys.readouterr().err == ""


def test_the_documentation_lists_every_variable():
    page = (Path(__file__).parents[4] / "docs" / "nodes.md").read_text()
    names = {name for setter in SETTERS for names in setter.variables.values() for name in names}
    names |= {scheduler.variable for scheduler in SCHEDULERS}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
