import importlib.metadata
import json
import random
import subprocess

import pytest

import allranks
from allranks.launch.manifest import (
    REMOVED,
    code_state,
    launch_options,
    make_manifest,
    node_start,
    package_versions,
    started_node,
    write_manifest,
)
from allranks.launch.spec.options import LaunchOptions, resolve
from tests.planted_secrets import LOOK_ALIKES, SHAPELESS, SHAPES, core


def manifest(**changes):
    settings = {
        "run_id": "r",
        "argv": ["allranks", "train", "c.yaml"],
        "config": {},
        "config_source": "c.yaml",
        "fingerprint": None,
        "nodes": {},
        "command": [],
        "environment": {},
    }
    return make_manifest(**(settings | changes))


def test_secrets_are_removed_by_name_and_by_shape():
    hub = "hf_" + "a" * 34
    made = manifest(
        argv=["allranks", "train", "c.yaml", f"--base-model=https://user:pass1234@host/{hub}"],
        config={"wandb_api_key": "0123456789", "special_tokens": {"pad_token": "<pad>"}, "datasets": [{"path": hub}]},
        environment={"HF_TOKEN": "short", "NCCL_DEBUG": "INFO", "TORCH_NOTE": hub, "HOME": "/root", "HF_HOME": "/hf"},
        command=["torchrun", f"--base-model={hub}"],
    )
    text = json.dumps(made)
    for secret in (hub, "pass1234", "0123456789", "short"):
        assert secret not in text
    assert made["config"]["special_tokens"] == {"pad_token": "<pad>"}
    assert made["environment"] == {
        "HF_HOME": "/hf",
        "HF_TOKEN": REMOVED,
        "NCCL_DEBUG": "INFO",
        "TORCH_NOTE": REMOVED,
    }


def everywhere(secret, name="hub_token"):
    """A manifest into which `secret` was planted in every way that a user might."""
    words = ["train", f"--{name}", secret, f"--{name}={secret}", f"--env={name}={secret}", "--seed", "7"]
    environment = {f"HF_{name.upper()}": secret, "NCCL_DEBUG": "INFO"}
    files = {"launch/accelerate.yaml": f"{name}: {secret}\nnum_machines: 2\n", "hosts": f"{name}={secret} slots=2\n"}
    start = node_start(processes=2, command=words, environment=environment, files=files)
    return manifest(
        argv=words,
        config={name: secret, "overrides_of_model_config": {name: secret, "list": [{name: secret}]}, "seed": 7},
        environment=environment,
        command=words,
        nodes={"0": started_node("gpu0", start), "1": started_node("gpu1", start)},
        launch={"launcher_args": [f"--{name}={secret}"]},
    )


@pytest.mark.parametrize("shape", [*SHAPES, *SHAPELESS])
@pytest.mark.parametrize("name", ["hub_token", "password", "api_key"])
def test_a_planted_secret_is_nowhere_and_the_rest_is_still_there(shape, name):
    secret = core((SHAPES | SHAPELESS)[shape](random.Random(f"{shape} {name}")))
    made = everywhere(secret, name)
    text = json.dumps(made)
    assert secret not in text and json.dumps(secret)[1:-1] not in text
    assert made["argv"][-2:] == ["--seed", "7"] == made["nodes"]["1"]["command"][-2:]
    assert made["config"]["seed"] == 7 and made["environment"]["NCCL_DEBUG"] == "INFO"
    assert "num_machines: 2" in made["nodes"]["0"]["files"]["launch/accelerate.yaml"]
    assert "slots=2" in made["nodes"]["0"]["files"]["hosts"]


@pytest.mark.parametrize("shape", [*SHAPES, *SHAPELESS])
def test_what_the_environment_calls_a_secret_is_removed_without_a_name(shape):
    secret = core((SHAPES | SHAPELESS)[shape](random.Random(shape)))
    made = manifest(
        argv=["train", "--note", f"see {secret}"],
        config={"model_kwargs": {"note": secret}},
        command=["x", secret],
        environment={"WANDB_API_KEY": secret, "NCCL_NOTE": secret},
    )
    assert secret not in json.dumps(made)


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_what_only_looks_like_a_secret_stays(text):
    made = manifest(
        argv=["train", "--revision", text], config={"revision_of_model": text}, fingerprint=text, command=["x", text]
    )
    assert made["argv"][-1] == made["command"][-1] == made["config"]["revision_of_model"] == text
    assert made["data_fingerprint"] == text


@pytest.mark.parametrize(
    "options",
    [
        {"nproc_per_node": 2, "max_restarts": 3},
        {"nnodes": "2", "node_rank": 1, "master_addr": "10.0.0.1", "master_port": 6001, "nproc_per_node": 4},
        {"nnodes": "1:3", "rdzv_backend": "c10d", "rdzv_endpoint": "[fd00::1]:29400", "rdzv_id": "job"},
        {"launcher_args": ("--rdzv-conf", "timeout=60"), "grace_seconds": 10.0},
    ],
)
def test_the_options_recorded_make_the_same_launch(options):
    launch = resolve(LaunchOptions(**options), num_gpus=0)
    recorded = json.loads(json.dumps(launch_options(launch)))
    recorded["launcher_args"] = tuple(recorded["launcher_args"])
    node_rank = {"node_rank": launch.node_rank} if launch.max_nodes > 1 else {}
    assert resolve(LaunchOptions(**recorded, **node_rank), num_gpus=0) == launch


def test_versions_of_what_matters_are_recorded():
    versions = package_versions()
    assert versions["allranks"] == allranks.__version__
    assert {"torch", "transformers", "peft", "numpy"} <= versions.keys()


def test_a_checkout_reports_its_commit_and_a_copy_elsewhere_none(tmp_path, monkeypatch):
    package = tmp_path / "repo" / "allranks"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    git = ["git", "-C", str(package.parent), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    monkeypatch.setattr(allranks, "__file__", str(package / "__init__.py"))
    assert code_state() is None, "not tracked: the commit of the repository around it is not ours"
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert code_state() == {"commit": head, "dirty": False}
    (package / "__init__.py").write_text("changed = 1\n")
    assert code_state() == {"commit": head, "dirty": True}


def test_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "run" / "manifest.json"
    write_manifest(path, {"run": "1"})
    write_manifest(path, {"run": "2"})
    assert json.loads(path.read_text()) == {"run": "2"}
    assert [file.name for file in path.parent.iterdir()] == ["manifest.json"]


def test_half_a_package_has_no_version(monkeypatch):
    """As a folder of metadata without its file: the nodes compare versions, which are text."""
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["torch>=2.6", "numpy"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: None if name == "torch" else "1")
    found = package_versions()
    assert found["numpy"] == "1" and "torch" not in found
