"""`allranks train` and its ranks: several nodes, signals, crashes. Real torchrun agents and ranks on this machine.

Two nodes that train to the end are in test_record.py."""

import signal
import time

import psutil
import pytest

from allranks.observe import RunDir, read_events
from allranks.observe.events import StepEvent
from allranks.preflight.certificate import PARTS, read_certificate
from tests.patience import TIMEOUT_SECONDS
from tests.ports import free_port

# More steps than any of these tests lets run.
ENDLESS = {"max_steps": 100_000, "num_epochs": 1000, "lr_scheduler": "constant"}


@pytest.fixture
def two_nodes(start, tmp_path):
    """Start the same run as two nodes of one process each, which join on 127.0.0.1; returns both launchers."""

    def start_both(*arguments: str, only_node_1: tuple[str, ...] = (), **keys: object):
        port = str(free_port())
        place = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port)
        more = ((), only_node_1)
        return [start(*place, "--node-rank", str(node), *arguments, *more[node], **keys) for node in (0, 1)]

    return start_both


def finish(*launchers) -> list[str]:
    """What they printed, after they ended by themselves."""
    try:
        return [launcher.communicate(timeout=TIMEOUT_SECONDS)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()


def wait_for_steps(directory: RunDir, launcher, *, ranks: int, steps: int = 2) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not all(
        sum(isinstance(event, StepEvent) for event in read_events(directory.events(rank))) >= steps
        for rank in range(ranks)
    ):
        assert launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes_of(launcher) -> list[psutil.Process]:
    return psutil.Process(launcher.pid).children(recursive=True)


def rank_process(launcher, rank: int) -> psutil.Process:
    (found,) = [
        process
        for process in processes_of(launcher)
        if "allranks.train" in process.cmdline() and process.environ().get("RANK") == str(rank)
    ]
    return found


def test_a_smoke_run_of_two_nodes_proves_it_and_leaves_a_certificate(two_nodes, tmp_path):
    launchers = two_nodes("--smoke")
    outputs = finish(*launchers)
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    run = RunDir(tmp_path / "run")
    certificate = read_certificate(run.certificate)
    assert all(f"go: certificate {certificate.sha256[:12]}" in output for output in outputs)
    for point in ("losses", "weights", "checkpoint", "transport"):
        assert f"\n  ok      {point}" in outputs[0]
    assert "the ranks ran on the CPU" in outputs[0]
    assert set(certificate.parts) == set(PARTS) and set(certificate.parts["nodes"]) == {"node 0", "node 1"}
    assert [path.name for path in run.path.iterdir() if path.is_dir()] == ["smoke"], "its folder alone"
    assert not any(RunDir(run.smoke).checkpoints.iterdir())


def test_a_signal_to_one_node_preempts_both(two_nodes, tmp_path):
    launchers = two_nodes(**ENDLESS)
    wait_for_steps(RunDir(tmp_path / "run"), launchers[0], ranks=2)
    launchers[1].send_signal(signal.SIGTERM)
    outputs = finish(*launchers)
    assert [launcher.returncode for launcher in launchers] == [75, 75], outputs
    assert list((tmp_path / "run" / "checkpoints").glob("step-*/COMPLETE"))


@pytest.mark.thorough
@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_saves_and_the_run_goes_on_later(start, run_forked, tmp_path, ranks):
    launcher = start("--nproc-per-node", str(ranks), **ENDLESS)
    wait_for_steps(RunDir(tmp_path / "run"), launcher, ranks=ranks)
    launcher.send_signal(signal.SIGINT)
    (output,) = finish(launcher)
    assert launcher.returncode == 75, output
    done = len(list((tmp_path / "run" / "checkpoints").glob("step-*/COMPLETE")))
    assert done == 1, output
    step = max(e.step for e in read_events(RunDir(tmp_path / "run").events(0)) if isinstance(e, StepEvent))
    result = run_forked(auto_resume_from_checkpoints=True, **{**ENDLESS, "max_steps": step + 1})
    assert max(result.losses()) == step + 1


@pytest.mark.thorough
def test_nothing_outlives_a_killed_launcher(start, tmp_path):
    launcher = start("--nproc-per-node", "2", **ENDLESS)
    wait_for_steps(RunDir(tmp_path / "run"), launcher, ranks=2)
    family = processes_of(launcher)
    assert len(family) >= 3
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(family, timeout=TIMEOUT_SECONDS)
    assert not alive


@pytest.mark.thorough
def test_a_killed_rank_is_named(start, tmp_path):
    launcher = start("--nproc-per-node", "2", **ENDLESS)
    wait_for_steps(RunDir(tmp_path / "run"), launcher, ranks=2)
    rank_process(launcher, 1).kill()
    (output,) = finish(launcher)
    assert launcher.returncode == 1, output
    assert "error: rank 1 (node 0) failed first: killed by SIGKILL" in output


def test_a_node_that_never_comes_is_told_with_address_and_port(start, tmp_path):
    port = str(free_port())
    place = ("--nnodes", "2", "--node-rank", "0", "--master-addr", "127.0.0.1", "--master-port", port)
    launcher = start(*place, "--nproc-per-node", "1", "--join-timeout", "2")
    (output,) = finish(launcher)
    assert launcher.returncode == 3, output
    assert f"1 of 2 nodes have come to 127.0.0.1:{port}; missing: node 1; gave up after 2 s" in output
    assert f"nc -zv 127.0.0.1 {port}" in output
    assert "Traceback" not in output


def test_nodes_that_disagree_are_refused_before_anything_is_loaded(two_nodes, tmp_path):
    launchers = two_nodes(**ENDLESS, only_node_1=("--learning-rate", "0.123"))
    outputs = finish(*launchers)
    assert [launcher.returncode for launcher in launchers] == [3, 3], outputs
    for output in outputs:
        assert "learning_rate: 0.01 on node 0" in output and "0.123 on node 1" in output, output
    assert not list((tmp_path / "run" / "events").glob("*"))


def test_a_killed_launcher_ends_the_other_node_which_names_it(two_nodes, tmp_path):
    launchers = two_nodes(**ENDLESS)
    wait_for_steps(RunDir(tmp_path / "run"), launchers[0], ranks=2)
    family = processes_of(launchers[0]) + processes_of(launchers[1])
    launchers[1].kill()
    output, _ = finish(*launchers)
    assert launchers[0].returncode == 1, output
    assert "node 1 (" in output and "was lost: the connection was closed" in output
    assert "the ranks of this node were ended" in output
    _, alive = psutil.wait_procs(family, timeout=TIMEOUT_SECONDS)
    assert not alive


def test_a_rank_killed_on_one_node_is_named_on_the_other(two_nodes, tmp_path):
    launchers = two_nodes(**ENDLESS)
    wait_for_steps(RunDir(tmp_path / "run"), launchers[0], ranks=2)
    killed = rank_process(launchers[1], 1)
    killed.kill()
    outputs = finish(*launchers)
    assert [launcher.returncode for launcher in launchers] == [1, 1], outputs
    assert all("rank 1 (node 1) failed first: killed by SIGKILL" in output for output in outputs), outputs
    assert str(killed.pid) in outputs[1], outputs


def test_restarted_ranks_go_on_from_their_checkpoint(start, strike, tmp_path):
    keys = {**ENDLESS, "max_steps": 12, "save_strategy": "steps", "save_steps": 5}
    strike(8, rank=1, awaits=(tmp_path / "run/checkpoints/*/COMPLETE",))
    launcher = start("--nproc-per-node", "2", "--max-restarts", "1", **keys)
    (output,) = finish(launcher)
    assert launcher.returncode == 0, output
    steps = [event.step for event in read_events(RunDir(tmp_path / "run").events(0)) if isinstance(event, StepEvent)]
    assert steps == [*range(1, 8), *range(6, 13)], output


@pytest.mark.thorough
def test_an_error_of_all_ranks_is_one_clear_message(run, tmp_path):
    # What only a rank that has loaded the model can know.
    keys = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["no_such_module"]}
    result = run("--nproc-per-node", "2", expect=2, **keys)
    assert "no_such_module" in result.output and "Traceback" not in result.output
    (told,) = [line for line in result.output.splitlines() if line.startswith("error (rank 0): ")]
    assert result.output.count(told.removeprefix("error (rank 0): ")) == 1, result.output
    assert ": its message is above\n" in result.output
    assert "the same command would end in the same way; once that is mended" in result.output


def test_an_output_directory_that_cannot_be_written(run, tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    result = run(output_dir=blocked / "run", expect=3)
    assert result.output.startswith("error: output_dir") and "Traceback" not in result.output


def test_a_run_that_goes_on_is_not_started_a_second_time(start, run, tmp_path):
    launcher = start(**ENDLESS)
    wait_for_steps(RunDir(tmp_path / "run"), launcher, ranks=1)
    second = run("--auto-resume-from-checkpoints", "true", expect=3)
    assert f"in use by a run that has not ended (pid {launcher.pid} on" in second.output
    assert launcher.poll() is None
    launcher.kill()
    launcher.wait()


@pytest.mark.thorough
def test_axolotls_own_form_meets_by_c10d_and_a_node_that_is_lost_is_named(start, tmp_path):
    """torchrun deals the ranks out, and tells nobody of a node that has gone."""
    words = ("--nnodes", "2", "--nproc_per_node", "1", "--rdzv_id", "job", "--rdzv_backend", "c10d")
    words = ("--launcher", "torchrun", "--", *words, "--rdzv_endpoint", f"127.0.0.1:{free_port()}")
    launchers = [start(*words, **ENDLESS) for _ in range(2)]
    wait_for_steps(RunDir(tmp_path / "run"), launchers[0], ranks=2)
    launchers[1].kill()
    output, _ = launchers[0].communicate(timeout=TIMEOUT_SECONDS)
    assert launchers[0].returncode == 1, output
    assert f"(pid {launchers[1].pid}) was lost: the connection was closed" in output
    launchers[1].communicate()
