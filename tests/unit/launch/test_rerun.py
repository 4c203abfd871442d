"""Starting again from a manifest: what is taken from it, what the user's options change, what is told and refused."""

import json
from dataclasses import replace

import pytest

from allranks.config import load_config
from allranks.config.load import resolve_mapping
from allranks.errors import UsageError
from allranks.launch import rerun as module
from allranks.launch.manifest import launch_options, make_manifest, node_start, started_node, write_manifest
from allranks.launch.rerun import from_manifest
from allranks.launch.spec.options import LaunchOptions, resolve
from allranks.launch.spec.where import NodeOptions

TWO_NODES = LaunchOptions(nnodes="2", node_rank=0, master_addr="10.0.0.1", master_port=6001, max_restarts=2)


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Writes the manifest of a run of two nodes with 2 and 1 processes; `changes` are the config's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("PBS_JOBID", raising=False)

    def record(options=TWO_NODES, environment=None, manifest=None, **changes):
        flat = {
            "base_model": "m",
            "learning_rate": 1e-4,
            "output_dir": str(tmp_path / "out"),
            "datasets": [{"path": "d.jsonl", "type": "alpaca"}],
            "seed": 7,
        }
        environment = environment or {}
        accounts = {
            str(rank): started_node(
                f"gpu{rank}", node_start(processes=processes, command=["torchrun"], environment=environment, files={})
            )
            for rank, processes in enumerate((2, 1))
        }
        made = make_manifest(
            run_id="r1",
            argv=["allranks", "train", "c.yaml"],
            config=resolve_mapping(flat | changes).flat(),
            config_source="c.yaml",
            fingerprint="f" * 64,
            nodes=accounts,
            command=["torchrun"],
            environment=environment,
            launch=launch_options(resolve(options, num_gpus=0)),
        )
        path = tmp_path / "out" / "manifest.json"
        write_manifest(path, made | (manifest or {}))
        return path

    return record


def again(path, overrides=None, options=None, *, chosen=(), env=None, nodes=None):
    return from_manifest(
        path,
        overrides or {},
        options or LaunchOptions(),
        nodes or NodeOptions(),
        chosen=chosen,
        env={} if env is None else env,
    )


def test_the_same_config_into_a_directory_of_its_own(record, tmp_path, capsys):
    path = record()
    made = again(path)
    first = json.loads(path.read_text())["config"]
    assert made.config == tmp_path / "out-again" / "from-manifest.yaml"
    assert load_config(made.config).flat() == first | {"output_dir": str(tmp_path / "out-again")}
    assert made.fingerprint == "f" * 64
    out, err = capsys.readouterr()
    assert "run r1" in out and "3 rank(s) on 2 node(s)" in out
    assert err == "" or "changed since commit" in err, "nothing else has changed"


def test_a_run_directory_is_as_good_as_its_manifest_and_options_win(record, tmp_path):
    path = record()
    made = again(path.parent, {"output-dir": str(tmp_path / "new"), "max-steps": "5"})
    assert made.config == tmp_path / "new" / "from-manifest.yaml"
    cfg = load_config(made.config, {"output-dir": str(tmp_path / "new"), "max-steps": "5"})
    assert (cfg.checkpoint.output_dir, cfg.optimizer.max_steps) == (str(tmp_path / "new"), 5)
    assert made.fingerprint == "f" * 64
    assert again(path, {"datasets.0.path": "other.jsonl"}).fingerprint is None
    assert again(path, {"base-model": "other"}).fingerprint is None


def test_the_launch_is_the_recorded_one_on_each_node(record):
    path = record()
    node0 = again(path, options=LaunchOptions(node_rank=0), chosen={"node_rank"}).options
    assert (node0.nnodes, node0.master_addr, node0.master_port) == ("2", "10.0.0.1", 6001)
    assert (node0.nproc_per_node, node0.max_restarts, node0.node_rank) == (2, 2, 0)
    node1 = again(path, options=LaunchOptions(node_rank=1), chosen={"node_rank"}).options
    assert (node1.nproc_per_node, node1.node_rank) == (1, 1)
    assert resolve(node1, num_gpus=0).endpoint == "10.0.0.1:6001"


def test_options_of_the_user_win(record):
    path = record()
    given = LaunchOptions(node_rank=0, master_addr="10.9.9.9", nproc_per_node=4, max_restarts=0)
    made = again(path, options=given, chosen={"node_rank", "master_addr", "nproc_per_node", "max_restarts"}).options
    assert (made.nnodes, made.master_addr, made.master_port) == ("2", "10.9.9.9", None)
    assert (made.nproc_per_node, made.max_restarts) == (4, 0)
    port = again(path, options=LaunchOptions(master_port=7), chosen={"master_port"}).options
    assert (port.master_addr, port.master_port) == ("10.0.0.1", 7)
    alone = again(path, options=LaunchOptions(nnodes="1"), chosen={"nnodes"}).options
    assert (alone.master_addr, alone.nproc_per_node) == (None, 2)
    assert resolve(alone, num_gpus=0).world_size == 2
    everywhere = again(path, nodes=NodeOptions(hosts="a,b")).options
    assert (everywhere.nnodes, everywhere.master_addr, everywhere.nproc_per_node) == (None, None, None)
    assert everywhere.max_restarts == 2


@pytest.mark.parametrize(
    ("manifest", "options", "chosen"),
    [
        ({"launch": {"launcher": "ray", "grace_seconds": 60.0}}, None, ()),
        ({}, LaunchOptions(launcher="ray"), ("launcher",)),
    ],
    ids=["as recorded", "asked for"],
)
def test_with_ray_the_nodes_are_those_of_its_cluster(record, manifest, options, chosen):
    found = again(record(manifest=manifest, use_ray=True), options=options, chosen=chosen).options
    assert found.launcher == "ray"
    assert (found.nnodes, found.nproc_per_node, found.master_addr, found.max_restarts) == (None, None, None, 0)


def test_what_all_nodes_share_of_nccl_is_set_as_it_was_and_the_rest_is_told(record, capsys):
    then = {"NCCL_BUFFSIZE": "2097152", "NCCL_IB_DISABLE": "1", "NCCL_SOCKET_IFNAME": "eth7", "HF_TOKEN": "x" * 20}
    path = record(environment=then, network={"infiniband": "off"})
    env = {"NCCL_DEBUG": "WARN"}
    again(path, env=env)
    assert env == {"NCCL_DEBUG": "WARN", "NCCL_BUFFSIZE": "2097152"}, "the config itself brings the other"
    out, err = capsys.readouterr()
    assert "network:    NCCL_BUFFSIZE=2097152, as then" in out
    assert "warning: NCCL_SOCKET_IFNAME: eth7 then, not set now" in err
    assert "warning: NCCL_DEBUG: not set then, WARN now" in err


def test_other_code_and_packages_are_told_field_by_field(record, capsys, monkeypatch):
    path = record(manifest={"python": "3.9.1", "directory": "/elsewhere", "code": {"commit": "abc", "dirty": False}})
    versions = module.package_versions()
    monkeypatch.setattr(module, "package_versions", lambda: versions | {"torch": "1.0", "new": "2"})
    again(path)
    err = capsys.readouterr().err
    assert "warning: python: 3.9.1 then, " in err
    assert f"warning: package torch: {versions['torch']} then, 1.0 now" in err
    assert "warning: package new: none then, 2 now" in err
    assert "warning: code: commit abc then, " in err
    assert "warning: directory: /elsewhere then, " in err
    assert err.count("\n") == 5


def test_a_removed_secret_must_be_given_again(record):
    path = record(overrides_of_model_config={"auth_token": "hf_" + "a" * 34, "x": 1})
    with pytest.raises(
        UsageError, match=r"overrides_of_model_config.auth_token held a secret, .*give it again, as in --"
    ):
        again(path)
    made = again(path, {"overrides_of_model_config.auth_token": "again"})
    assert made.config.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory; give manifest.json"),
        ("{", "not JSON"),
        ("[]", "no manifest of allranks"),
        ("{}", "no manifest of allranks"),
        ('{"run": "r", "config": null}', "a program that `allranks run` started"),
    ],
)
def test_what_is_no_manifest(tmp_path, text, message):
    path = tmp_path / "m.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message):
        again(path)


def test_a_record_is_no_consent_to_run_a_models_code(record, tmp_path):
    path = record(trust_remote_code=True)
    with pytest.raises(UsageError, match=r"trust_remote_code: true: .*model m\. .*give --trust-remote-code true"):
        again(path)
    assert not (tmp_path / "out-again").exists()
    made = again(path, {"trust-remote-code": "true"})
    assert load_config(made.config, {"trust-remote-code": "true"}).model.trust_remote_code
    assert not load_config(made.config).model.trust_remote_code, "nor is the config that it leaves"


def test_a_record_starts_no_program_through_the_launchers_options(record, capsys):
    path = record(replace(TWO_NODES, launcher_args=("--no-python", "/tmp/planted.sh")))
    assert again(path).options.launcher_args == ()
    assert "warning: launcher options --no-python /tmp/planted.sh then, not taken" in capsys.readouterr().err
    given = LaunchOptions(launcher_args=("--log-dir", "x"))
    assert again(path, {"output_dir": "o"}, given, chosen={"launcher_args"}).options.launcher_args == ("--log-dir", "x")
    assert "launcher options" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["NET", "TUNER", "PROFILER", "ENV", "GIN", "RMA"])
def test_a_record_loads_no_library_into_nccl(record, name):
    env: dict[str, str] = {}
    again(record(environment={f"NCCL_{name}_PLUGIN": "/tmp/planted.so"}), env=env)
    assert env == {}
