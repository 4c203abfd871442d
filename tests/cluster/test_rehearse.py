"""`allranks rehearse` as a user types it: two nodes, with keys that this machine cannot do as they are written."""

import json

import yaml

from tests.cluster.conftest import start_allranks
from tests.patience import TIMEOUT_SECONDS


def test_a_run_for_gpus_is_rehearsed_from_its_config_to_its_export(base_config, tmp_path):
    keys = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True, "val_set_size": 0.1}
    keys |= {"fsdp_version": 2, "dp_shard_size": 8, "dp_replicate_size": 2}
    keys |= {"flash_attention": True, "optimizer": "adamw_torch_fused", "bf16": True, "output_dir": str(tmp_path / "o")}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(base_config | keys))
    process = start_allranks("rehearse", "c.yaml", "--keep", "kept", "--json", cwd=tmp_path)
    output = process.communicate(timeout=TIMEOUT_SECONDS)[0]
    assert process.returncode == 0, output
    told = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert [(one["name"], one["state"]) for one in told["phases"]] == [
        (name, "ok") for name in ("model", "config", "data", "train", "resume", "export")
    ]
    text = {one["name"]: one["text"] for one in told["phases"]}
    assert "2 node(s) met, 2 rank(s)" in text["train"] and "on 1 rank(s)" in text["resume"]
    assert text["export"] == "adapter: adapter_model.safetensors"
    for key in ("attn_implementation", "bf16", "dp_shard_size", "datasets"):
        assert any(line.startswith(key) for line in told["replaced"]), told["replaced"]
    assert told["left_to_prove"] and not (tmp_path / "o").exists()
