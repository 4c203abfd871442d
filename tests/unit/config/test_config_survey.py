"""`benchmarks/configs.py`: a folder of configs, each accepted, refused by its reasons, or crashed."""

from benchmarks import configs

REST = "base_model: m\nlearning_rate: 1e-4\ndatasets:\n  - {path: d.jsonl, type: alpaca}\n"


def test_a_folder_of_configs_is_counted(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name, text in {
        "good.yaml": f"{REST}lora_r: 8\n",
        "sub/two.yml": f"{REST}qat: {{a: 1}}\nlerning_rate: 1\n",
        "sub/one.yaml": f"{REST}qat: {{a: 1}}\n",
        "other.yaml": f"{REST}rl: dpo\n",
        "sub/notes.txt": "no config",
    }.items():
        (tmp_path / name).write_text(text)
    found = configs.survey(tmp_path)
    assert found.accepted["good.yaml"][0].startswith("note: sequence_len is not given")
    assert list(found.accepted) == ["good.yaml"] and "lora_r: has no effect" in found.accepted["good.yaml"][1]
    assert list(found.refused) == ["other.yaml", "sub/one.yaml", "sub/two.yml"] and not found.crashed
    assert found.out_of_scope == ["other.yaml"]
    (most, number), second = found.reasons().most_common()
    assert (most.partition(":")[0], number) == ("qat", 2) and second[0].startswith("lerning_rate: unknown key")

    def broken(*_, **__):
        raise RuntimeError("a fault")

    monkeypatch.setattr("allranks.config.load_config", broken)
    assert "RuntimeError: a fault" in configs.survey(tmp_path / "sub").crashed["one.yaml"]
