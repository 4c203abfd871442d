import pytest

from allranks.cluster.allocation import find_allocation
from allranks.errors import UsageError

SLURM = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "gpu[03-04],n1", "SLURM_JOB_NUM_NODES": "3"}


def names(allocation):
    return [host.name for host in allocation.hosts]


def test_no_scheduler_no_allocation():
    assert find_allocation({}) is None


def test_slurm_batch_script():
    found = find_allocation({**SLURM, "SLURM_PROCID": "0", "SLURM_NTASKS": "24", "SLURM_GPUS_ON_NODE": "8"})
    assert (found.scheduler, found.job_id, names(found), found.gpus_per_node) == (
        "slurm",
        "17",
        ["gpu03", "gpu04", "n1"],
        8,
    )
    assert str(found) == "Slurm job 17"


@pytest.mark.parametrize(("text", "gpus"), [("4", 4), ("h200:4", 4), ("a100:2,v100:1", 3)])
def test_gpus_as_slurm_writes_them(text, gpus):
    assert find_allocation({**SLURM, "SLURM_GPUS_PER_NODE": text}).gpus_per_node == gpus


def test_a_step_of_one_task_may_start_all_nodes_and_one_of_several_is_a_rank():
    step = {**SLURM, "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}
    assert names(find_allocation({**step, "SLURM_STEP_NUM_TASKS": "1"})) == ["gpu03", "gpu04", "n1"]
    assert find_allocation({**step, "SLURM_STEP_NUM_TASKS": "3"}) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SLURM_JOB_NODELIST": ""}, "SLURM_JOB_NODELIST is not set"),
        ({"SLURM_JOB_NUM_NODES": "2"}, "SLURM_JOB_NUM_NODES=2, but SLURM_JOB_NODELIST=gpu[03-04],n1 names 3"),
        ({"SLURM_JOB_NODELIST": "$(reboot)"}, "SLURM_JOB_NODELIST: '$(reboot)' is not a host name"),
        ({"SLURM_HET_SIZE": "2"}, "heterogeneous"),
        ({"SLURM_GPUS_PER_NODE": "many"}, "SLURM_GPUS_PER_NODE='many': expected a number of GPUs"),
    ],
)
def test_contradictions_of_slurms_variables_are_named(changes, said):
    with pytest.raises(UsageError) as error:
        find_allocation({**SLURM, **changes})
    assert said in str(error.value)


def test_pbs_node_file_lists_a_node_once_for_each_process(tmp_path):
    path = tmp_path / "nodefile"
    path.write_text("b.cluster\nb.cluster\na.cluster\na.cluster\n")
    found = find_allocation({"PBS_JOBID": "9.server", "PBS_NODEFILE": str(path)})
    assert (found.scheduler, str(found), names(found)) == ("pbs", "PBS job 9.server", ["b.cluster", "a.cluster"])


def test_pbs_without_its_node_file(tmp_path):
    with pytest.raises(UsageError, match="PBS_NODEFILE is not set"):
        find_allocation({"PBS_JOBID": "9"})
    with pytest.raises(UsageError, match="does not exist here"):
        find_allocation({"PBS_JOBID": "9", "PBS_NODEFILE": str(tmp_path / "gone")})


def test_ranks_of_mpirun_inside_pbs_are_no_heads(tmp_path):
    assert find_allocation({"PBS_JOBID": "9", "OMPI_COMM_WORLD_RANK": "0"}) is None
