"""What is refused before Ray is asked for anything."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from allranks.config import RunConfig
from allranks.errors import AllranksError, UsageError
from allranks.launch.ray_train import cluster
from allranks.launch.ray_train.cluster import _connect, _reach, _remove_stale_folders, _started_here, require_ray
from allranks.launch.ray_train.start import _refuse_options, start_ray, with_launcher
from allranks.launch.spec.options import LaunchOptions
from allranks.launch.spec.where import NodeOptions
from tests.ports import free_port


def test_without_ray_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'allranks\[ray\]'"):
        require_ray()


def test_an_address_where_nobody_answers_is_named():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(AllranksError, match=rf"no Ray cluster answers at {address}: Connection refused"):
        _reach(address)


@pytest.mark.parametrize("address", ["node0", "node0:", "http://node0:8265/", ":x"])
def test_an_address_of_another_form_is_refused(address):
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        _reach(address)


def test_ray_client_is_refused_with_the_way_that_works():
    with pytest.raises(UsageError, match="ray job submit"):
        _connect("ray://head:10001", Path("unused"), {"CPU": 1, "GPU": 0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nnodes": "2"}, "--nnodes is not for --launcher ray"),
        ({"nproc_per_node": 4}, "use --ray-num-workers"),
        ({"max_restarts": 1}, "use --ray-max-failures"),
        ({"launcher_args": ("--tee", "3")}, "no torchrun below Ray"),
        ({"master_addr": "h"}, "--ray-address"),
    ],
)
def test_options_of_other_launchers_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        _refuse_options(LaunchOptions(**options), NodeOptions())


def test_a_restart_after_a_hang_needs_one_that_ray_may_make():
    pytest.importorskip("ray")
    keys = {"base_model": "m", "datasets": [{"path": "d", "type": "chat_template"}], "learning_rate": 0.1}
    cfg = RunConfig.from_resolved({**keys, "max_steps": 9, "on_hang": "restart", "ray_max_failures": 0}, source="-")
    with pytest.raises(UsageError, match="on_hang: restart with ray_max_failures: 0"):
        start_ray(cfg, LaunchOptions(), NodeOptions())


def test_inside_another_launcher_it_is_refused(monkeypatch):
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "h",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="this process is rank 1 of 2"):
        _refuse_options(LaunchOptions(), NodeOptions())


def test_what_killed_drivers_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_TEMPORARY", tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {f"allranks-ray-{gone.pid}-abc", f"allranks-ray-{os.getpid()}-abc", "allranks-ray-of-somebody", "ray"}
    for name in names:
        (tmp_path / name).mkdir()
    _remove_stale_folders()
    assert {path.name for path in tmp_path.iterdir()} == names - {f"allranks-ray-{gone.pid}-abc"}


def test_the_launcher_wins_over_the_file_and_contradicts_no_option():
    assert with_launcher({}, None) == {}
    assert with_launcher({"max_steps": "2"}, "ray") == {"max_steps": "2", "use_ray": "true"}
    assert with_launcher({}, "torchrun") == {"use_ray": "false"}
    with pytest.raises(UsageError, match="contradicts --launcher torchrun"):
        with_launcher({"use_ray": "true"}, "torchrun")


def test_hosts_are_rays_own():
    with pytest.raises(UsageError, match="Ray's cluster says which nodes there are"):
        _refuse_options(LaunchOptions(), NodeOptions(hosts="node[0-3]"))


def test_the_cluster_of_ray_start_is_found_while_it_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert _started_here() is None
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        assert _started_here() == address
    assert _started_here() is None, "the head has ended without removing its file"
