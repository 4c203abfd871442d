"""The loss of runs, adapters and models, beside what plain transformers computes example by example."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from allranks.cli.evaluate import _lines
from allranks.cli.main import main
from allranks.errors import ConfigError, UsageError
from allranks.export.export import export
from allranks.inference.evaluate import evaluate
from allranks.model.build import build_model
from tests.tiny_models import ARCHITECTURES, config_for, make_batch, one_process, saved_model
from tests.tiny_runs import LORA, train
from tests.unit.inference.conftest import CONVERSATIONS, keys_of, make_tokenizer, write_data


def reference(folder, base):
    """(loss by token, loss by example) of an exported model, with labels on the answers and their ends only."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    sums, counts = [], []
    for asked, said in CONVERSATIONS:
        prompt = tokenizer(f"w11 {asked} <end> w12 ")["input_ids"]
        answer = tokenizer(f"{said} <end>")["input_ids"]
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 : -1]
        sums.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum").item())
        counts.append(len(answer))
    means = [loss / count for loss, count in zip(sums, counts, strict=True)]
    return sum(sums) / sum(counts), sum(means) / len(means)


def close(found, expected):
    return found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("keys", [{}, LORA], ids=["full", "lora"])
def test_a_run_its_export_and_transformers_agree_by_token_and_by_example(tmp_path, base, keys):
    data = write_data(tmp_path / "test.jsonl")
    settings = keys_of(base, data, test_datasets=[{"path": str(data), "type": "chat_template"}], **keys)
    run = train(tmp_path / "run", "llama", tokenizer=make_tokenizer(), **settings).run
    export(run, tmp_path / "plain", merge=bool(keys))
    by_token, by_example = reference(tmp_path / "plain", base)

    done = evaluate(str(run), compare_base=True)
    (score,) = done.data
    assert (score.name, score.num_examples, score.num_target_tokens) == (str(data), 3, 13)
    assert close(score.score.loss, by_token) and close(score.score.example_loss, by_example)
    assert score.score.perplexity == pytest.approx(math.exp(by_token), rel=1e-4)
    before_by_token, before_by_example = reference(base, base)
    assert close(score.base.loss, before_by_token) and close(score.base.example_loss, before_by_example)
    assert abs(by_token - before_by_token) > 0.01, "the trained model must differ for this to show anything"

    written = export(run, tmp_path / "exported").folder
    exported = evaluate(str(written), files=[str(data)], compare_base=bool(keys))
    assert close(exported.data[0].score.loss, by_token) and exported.step is None
    assert not keys or close(exported.data[0].base.loss, before_by_token)


def test_data_sets_are_told_one_by_one_and_together(tmp_path, base):
    first, second = (
        write_data(tmp_path / "a.jsonl", CONVERSATIONS[:2]),
        write_data(tmp_path / "b.jsonl", CONVERSATIONS[2:]),
    )
    apart = evaluate(str(base), files=[str(first), str(second)])
    together = evaluate(str(base), files=[str(write_data(tmp_path / "all.jsonl"))])
    assert [one.num_examples for one in apart.data] == [2, 1]
    assert apart.total.num_target_tokens == together.data[0].num_target_tokens == 13
    assert close(apart.total.score.loss, together.data[0].score.loss) and together.total is None
    assert close(apart.total.score.example_loss, together.data[0].score.example_loss)
    assert not close(apart.data[0].score.loss, apart.data[1].score.loss)


def test_what_is_too_long_is_told_beside_the_loss(tmp_path, base):
    done = evaluate(str(base), files=[str(write_data(tmp_path / "d.jsonl"))], overrides={"sequence_len": "11"})
    assert (done.data[0].num_examples, done.data[0].num_left_out) == (2, 1)
    assert "2 examples, 6 target tokens; 1 records left out" in "\n".join(_lines(done))


def test_the_command_prints_json_and_lines_of_at_most_80_characters(tmp_path, base, capsys):
    data = write_data(tmp_path / "d.jsonl")
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(base), "--data", str(data), "--json"])
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    assert told["data"][0]["num_examples"] == 3 and told["data"][0]["loss"] > 0 and told["total"] is None
    done = evaluate(str(base), files=[str(data)])
    assert max(map(len, _lines(done)[3:])) <= 80


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere/at/all"], "does not exist"),
        (["{base}"], "has no evaluation data: give some with --data FILE"),
        (["{base}", "--step", "3", "--data", "{data}"], "chooses a checkpoint of a run"),
        (["{base}", "--compare", "base", "--data", "{data}"], "is a whole model"),
        (["{base}", "--compare", "other", "--data", "{data}"], "only `base`"),
        (["{base}", "--base-model", "x", "--data", "{data}"], "is a whole model"),
        (["{base}", "--data", "{data}", "--sequence-lne", "3"], "did you mean --sequence-len"),
        (["."], "holds neither a run's checkpoints nor"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_one_line(tmp_path, base, capsys, arguments, told):
    data = write_data(tmp_path / "d.jsonl")
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *(word.format(base=base, data=data) for word in arguments)])
    error = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and error.startswith("error: ") and told in error


def test_code_beside_a_model_runs_only_by_this_commands_own_word(tmp_path, base, capsys):
    data = write_data(tmp_path / "d.jsonl")
    settings = keys_of(base, data, trust_remote_code=True)
    run = train(tmp_path / "run", "llama", tokenizer=make_tokenizer(), **settings).run
    config = json.loads((base / "config.json").read_text())
    try:
        planted = {"model_type": "planted", "auto_map": {"AutoConfig": "code.Config"}}
        (base / "config.json").write_text(json.dumps(config | planted))
        for named in (str(base), str(run)):
            with pytest.raises(UsageError, match="then give --trust-remote-code"):
                evaluate(named, files=[str(data)])
        with pytest.raises(ConfigError, match=r"code\.py"):
            evaluate(str(base), files=[str(data)], trust_remote_code=True)
    finally:
        (base / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("chunked", [True, False], ids=["head", "logits"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "granite", "mixtral"])
def test_the_losses_of_labels_sum_to_the_loss_that_is_trained(name, chunked):
    assert name in ARCHITECTURES
    model = build_model(config_for(saved_model(name), chunked_cross_entropy=chunked or None), one_process())
    if not chunked:
        model.head = None
    model.module.eval()
    batch = make_batch(3)
    losses = model.label_losses(batch)
    assert losses.shape == batch.labels.shape and losses.dtype == torch.float32
    assert losses.sum().item() == pytest.approx(model.forward_loss(batch).item(), rel=1e-5)
    expected = torch.nn.functional.cross_entropy(
        model.logits(batch)[0, batch.label_positions].float(), batch.labels, reduction="none"
    )
    assert torch.allclose(losses, expected, atol=1e-5)
