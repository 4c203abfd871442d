"""What a rank makes of the network section, and what it compares with the other ranks."""

import os

from allranks.cluster.identity import Identity
from allranks.config.load import resolve_mapping
from allranks.observe import RunDir
from allranks.train import network
from allranks.train.network import equal_settings, set_up_network

FLAT = {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "d", "type": "alpaca"}]}
RANK = Identity(3, 4, 1, 2, 1, "127.0.0.1", 29500, "torchrun")


def config(**network):
    return resolve_mapping({**FLAT, "network": network})


def test_under_a_launcher_of_the_users_own_the_rank_does_it_all(tmp_path):
    env = {"NCCL_DEBUG": "WARN"}
    told = set_up_network(config(infiniband="off", buffer_size=8388608, debug="INFO"), RANK, RunDir(tmp_path), env)
    assert env["NCCL_IB_DISABLE"] == "1" and env["NCCL_BUFFSIZE"] == "8388608"
    assert told == ["NCCL_DEBUG=WARN is set: the config's INFO is not taken"]
    assert "NCCL_DEBUG_FILE" not in env, "warnings belong into the rank's log"


def test_a_verbose_nccl_logs_to_a_file_of_each_ranks_own(tmp_path):
    run = tmp_path / "100% run"
    env = {}
    assert set_up_network(config(debug="INFO"), RANK, RunDir(run), env) == []
    assert env["NCCL_DEBUG_FILE"] == str(tmp_path / "100%% run" / "logs" / "node-1" / "nccl" / "rank-00003.%p.log")
    assert (run / "logs" / "node-1" / "nccl").is_dir()
    env = {
        "NCCL_DEBUG": "info",
        "ALLRANKS_LOG_DIR": str(tmp_path / "logs"),
        "ALLRANKS_RUN_ID": "r",
        "NCCL_TIMEOUT": "1",
    }
    assert set_up_network(config(), RANK, RunDir(run), env) == [], "the launcher has told it"
    assert env["NCCL_DEBUG_FILE"].startswith(str(tmp_path / "logs" / "nccl"))
    env = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": "/mine"}
    set_up_network(config(), RANK, RunDir(run), env)
    assert env["NCCL_DEBUG_FILE"] == "/mine"


def test_on_gpus_nccl_logs_what_verify_reads_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "count_gpus", lambda env: 8)
    own = str(tmp_path / "logs" / "node-1" / "nccl" / "rank-00003.%p.log")
    env = {}
    set_up_network(config(), RANK, RunDir(tmp_path), env)
    assert (env["NCCL_DEBUG"], env["NCCL_DEBUG_SUBSYS"], env["NCCL_DEBUG_FILE"]) == (
        "INFO",
        "INIT,BOOTSTRAP,ENV,NET",
        own,
    )
    assert network.nccl_log_file(env).name == f"rank-00003.{os.getpid()}.log"
    env = {"NCCL_DEBUG_SUBSYS": "COLL"}
    set_up_network(config(debug="INFO"), RANK, RunDir(tmp_path), env)
    assert (env["NCCL_DEBUG_SUBSYS"], env["NCCL_DEBUG_FILE"]) == ("COLL", own)
    env = {"NCCL_DEBUG": "WARN"}
    set_up_network(config(), RANK, RunDir(tmp_path), env)
    assert env["NCCL_DEBUG"] == "WARN" and "NCCL_DEBUG_FILE" not in env and network.nccl_log_file(env) is None
    monkeypatch.setattr(network, "count_gpus", lambda env: 0)
    env = {}
    set_up_network(config(), RANK, RunDir(tmp_path), env)
    assert not {name for name in env if name.startswith("NCCL_DEBUG")}


def test_what_ranks_compare():
    env = {"NCCL_BUFFSIZE": "0x200000", "NCCL_SOCKET_IFNAME": "ens5", "NCCL_IB_DISABLE": "0", "NCCL_PROTO": "simple"}
    equal = equal_settings(config(interface="lo"), env)
    assert equal["base_model"] == "m"
    assert {name: value for name, value in equal.items() if name.startswith("NCCL_")} == {
        "NCCL_BUFFSIZE": "2097152",
        "NCCL_PROTO": "SIMPLE",
    }
    assert equal == equal_settings(config(interface="eth0"), env)
