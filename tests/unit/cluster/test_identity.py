import pytest

from allranks.cluster.identity import identify, refuse_part_of_a_job
from allranks.errors import UsageError

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "71", "SLURM_STEP_ID": "0", "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_STEP_NODELIST": "gpu[07-09]",
}  # fmt: skip
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "job-1",
}  # fmt: skip


def test_nothing_set_means_alone():
    assert identify({}).alone


def test_torchrun():
    me = identify(TORCHRUN)
    assert (me.rank, me.world_size, me.local_rank, me.local_world_size, me.node_rank) == (3, 4, 1, 2, 1)
    assert (me.master_addr, me.master_port, me.source) == ("10.0.0.1", 29500, "torchrun")


def test_torchrun_inside_a_slurm_step_wins():
    assert identify({**SRUN, **TORCHRUN}).source == "torchrun"


def test_srun_takes_the_first_node_and_one_port_for_all_ranks():
    me = identify(SRUN)
    assert (me.rank, me.world_size, me.node_rank, me.local_world_size) == (4, 5, 2, 1)
    assert me.master_addr == "gpu07"
    first = identify({**SRUN, "SLURM_PROCID": "0", "SLURM_NODEID": "0"})
    assert first.master_port == me.master_port and first.local_world_size == 2
    assert identify({**SRUN, "SLURM_JOB_ID": "72"}).master_port != me.master_port


def test_a_batch_script_is_no_slurm_step():
    assert identify({"SLURM_JOB_ID": "71", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}).alone


def test_mpirun_on_one_node_needs_no_address():
    me = identify(MPIRUN)
    assert (me.rank, me.world_size, me.master_addr) == (1, 2, "127.0.0.1")
    assert me.master_port == identify({**MPIRUN, "OMPI_COMM_WORLD_RANK": "0"}).master_port


@pytest.mark.parametrize("step", ["0", "3"])
def test_srun_with_pmi2_is_a_slurm_step(step):
    """srun --mpi=pmi2 sets PMI's rank and size, and no local ones."""
    me = identify({**SRUN, "SLURM_STEP_ID": step, "PMI_RANK": "4", "PMI_SIZE": "5", "PMI_FD": "9"})
    assert me == identify({**SRUN, "SLURM_STEP_ID": step})


def test_hydra_inside_a_slurm_step_goes_by_its_own_variables():
    """Its proxies are the tasks of the step; the ranks are their children, and inherit its SLURM_PROCID."""
    hydra = {"PMI_RANK": "4", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "3", "MASTER_ADDR": "a"}
    me = identify({**SRUN, **hydra})
    assert (me.rank, me.world_size, me.local_rank, me.local_world_size, me.source) == (4, 8, 1, 3, "PMI")


def test_pmi_without_local_ranks_is_refused_where_slurm_does_not_know_them():
    with pytest.raises(UsageError, match="MPI_LOCALRANKID is not set"):
        identify({**SRUN, "PMI_RANK": "3", "PMI_SIZE": "5"})


def test_nodes_that_the_launcher_does_not_count_are_not_made_up():
    spread = {**MPIRUN, "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_NODE_RANK": "1", "MASTER_ADDR": "a"}
    assert identify(spread).node_rank is None
    assert identify(MPIRUN).node_rank == 0
    by_hand = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    me = identify(by_hand)
    assert (me.local_world_size, me.node_rank) == (None, None)
    assert identify({**by_hand, "LOCAL_WORLD_SIZE": "2"}).node_rank is None
    assert identify({**by_hand, "LOCAL_WORLD_SIZE": "4"}).node_rank == 0
    bare = {name: value for name, value in SRUN.items() if name not in ("SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE")}
    me = identify(bare)
    assert (me.local_world_size, me.node_rank) == (None, None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"RANK": "4"}, r"rank 4 is not below the world size 4.*--node-rank"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR not set"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE='four' is not a whole number"),
        ({"LOCAL_RANK": "2"}, "local rank 2 is not below the 2 processes"),
    ],
)
def test_contradictions_are_named(change, expected):
    with pytest.raises(UsageError, match=expected):
        identify({**TORCHRUN, **change})


def test_rank_without_world_size_is_refused():
    with pytest.raises(UsageError, match="WORLD_SIZE"):
        identify({"RANK": "0"})


def test_mpirun_over_several_nodes_needs_an_address():
    with pytest.raises(UsageError, match="MASTER_ADDR"):
        identify({**MPIRUN, "OMPI_COMM_WORLD_SIZE": "4"})


def test_deepspeeds_launcher_has_names_of_its_own():
    names = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    me = identify({**names, "CROSS_RANK": "1", "CROSS_SIZE": "2", "LOCAL_SIZE": "2"})
    assert (me.local_world_size, me.node_rank, me.source) == (2, 1, "DeepSpeed's launcher")


@pytest.mark.parametrize(
    ("around", "number"), [(SRUN, "SLURM_PROCID=4"), (MPIRUN, "OMPI_COMM_WORLD_RANK=1")], ids=["srun", "mpirun"]
)
def test_ranks_exported_by_a_job_script_contradict_those_of_the_launcher(around, number):
    size = "5" if around is SRUN else "2"
    exported = {"RANK": "0", "WORLD_SIZE": size, "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    with pytest.raises(UsageError, match=f"RANK=0, but {number}: .*unset RANK and WORLD_SIZE"):
        identify({**around, **exported})
    # torchrun in a step numbers as it likes.
    assert identify({**around, **exported, "TORCHELASTIC_RUN_ID": "none"}).source == "torchrun"


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "::1"])
def test_an_address_that_leads_every_node_to_itself_is_refused(address):
    with pytest.raises(UsageError, match=f"MASTER_ADDR={address}, but Slurm started 5 ranks on several nodes"):
        identify({**SRUN, "MASTER_ADDR": address})
    with pytest.raises(UsageError, match="but Open MPI started 4 ranks"):
        identify({**MPIRUN, "OMPI_COMM_WORLD_SIZE": "4", "MASTER_ADDR": address})
    assert identify({**MPIRUN, "MASTER_ADDR": address}).master_addr == address


def test_one_process_of_a_batch_job_would_train_alone():
    job = {"SLURM_JOB_ID": "71", "SLURM_NTASKS": "4"}
    with pytest.raises(UsageError, match=r"4 tasks, but this process was not started by srun .* `srun python"):
        refuse_part_of_a_job(job)
    refuse_part_of_a_job({})
    refuse_part_of_a_job({**job, "SLURM_NTASKS": "1"})
    refuse_part_of_a_job({**job, **SRUN})
    refuse_part_of_a_job({**job, **TORCHRUN})
