"""Answers of runs, adapters and models, beside those that plain transformers and PEFT give to the same prompts."""

import io
import json
import os
import signal
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from allranks import interrupt
from allranks.cli.main import main
from allranks.export.export import export
from allranks.inference import session
from allranks.inference.answer import Answer, Sampling
from allranks.inference.prompts import Prompt, text_prompt
from allranks.inference.session import answerers, side_by_side
from tests.tiny_runs import LORA, train
from tests.unit.inference.conftest import TEMPLATE, keys_of, make_tokenizer

GREEDY = Sampling(max_new_tokens=12, temperature=0)
QUESTION = "w20 w21"


def plainly(model, base):
    """The greedy answer to QUESTION."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer(f"w11 {QUESTION} <end> w12 ", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = model.eval().generate(input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=2)
    return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


def asked(named, **options):
    return {
        one.label: one.ask(text_prompt(QUESTION), GREEDY, lambda text: None).text for one in answerers(named, **options)
    }


def said(*arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.fixture
def run_of(tmp_path, base):
    """A run whose checkpoint answers otherwise than its base model."""

    def make(**keys):
        settings = keys_of(base, tmp_path / "none.jsonl", **keys)
        return train(tmp_path / "run", "llama", tokenizer=make_tokenizer(), **settings).run

    return make


def test_a_run_that_trained_the_whole_model(tmp_path, base, run_of):
    run = run_of()
    exported = export(run, tmp_path / "exported").folder
    after = plainly(AutoModelForCausalLM.from_pretrained(exported), base)
    before = plainly(AutoModelForCausalLM.from_pretrained(base), base)
    assert after != before
    assert asked(str(run), compare="base") == {"base": before, "step 7": after}
    assert asked(str(run / "checkpoints" / "step-00000007"), compare=str(exported)) == {
        str(exported): after,
        "step 7": after,
    }
    assert asked(str(exported)) == {"model": after}


def test_an_adapter_in_a_run_in_a_folder_and_merged(tmp_path, base, run_of):
    run = run_of(**LORA)
    folder = export(run, tmp_path / "adapter").folder
    before = plainly(AutoModelForCausalLM.from_pretrained(base), base)
    after = plainly(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder), base)
    assert after != before
    assert asked(str(run), compare="base") == {"base": before, "step 7": after}
    assert asked(str(folder), compare="base") == {"base": before, "adapter": after}
    assert asked(str(run), merged=True) == {"step 7": after} and asked(str(folder), merged=True) == {"model": after}


@pytest.mark.parametrize("to_32", [False, True])
def test_an_adapter_whose_training_added_tokens(tmp_path, base, to_32):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<new>"])
    settings = keys_of(base, tmp_path / "none.jsonl", resize_token_embeddings_to_32x=to_32, **LORA)
    settings |= {"lora_modules_to_save": ["embed_tokens", "lm_head"]}
    run = train(tmp_path / "run", "llama", tokenizer=tokenizer, **settings).run
    folder = export(run, tmp_path / "adapter").folder
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(128 if to_32 else len(tokenizer))
    after = plainly(PeftModel.from_pretrained(model, folder), folder)
    assert [*asked(str(run)).values(), *asked(str(folder)).values()] == [after, after]


def test_prompts_from_arguments_a_text_file_records_and_stdin(tmp_path, base, capsys, monkeypatch):
    (tmp_path / "p.txt").write_text("w22\nw23\n\n")
    records = [
        {"messages": [{"role": "system", "content": "w9"}, {"role": "user", "content": "w24"}]},
        {"conversations": [{"from": "human", "value": "w25"}, {"from": "gpt", "value": "w26"}]},
        {"instruction": "w27", "input": "w28", "output": "w29"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    greedy = ("--temperature", "0", "--max-new-tokens", "3", "--json")

    def messages(*arguments):
        lines = said("generate", str(base), *arguments, *greedy, capsys=capsys).splitlines()
        return [[(turn["role"], turn["content"]) for turn in json.loads(line)["messages"]] for line in lines]

    assert messages(QUESTION, "w1", "--prompts", str(tmp_path / "p.txt")) == [
        [("user", text)] for text in (QUESTION, "w1", "w22", "w23")
    ]
    assert messages("--prompts", str(tmp_path / "p.jsonl"), "--system", "w8") == [
        [("system", "w9"), ("user", "w24")],
        [("system", "w8"), ("user", "w25")],  # what the assistant said is what is asked for
        [("system", "w8"), ("user", "w27\n\nw28")],
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("w30 w31\n"))
    assert messages() == [[("user", "w30 w31")]]


def test_raw_text_goes_on_without_a_template(base, capsys):
    told = said("generate", str(base), "w20 w21", "--raw", "--temperature", "0", "--max-new-tokens", "4", capsys=capsys)
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    found = model.generate(
        **tokenizer("w20 w21", return_tensors="pt"), max_new_tokens=4, do_sample=False, pad_token_id=0
    )
    assert told.split() == tokenizer.decode(found[0, 2:], skip_special_tokens=True).split()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{base}", "w1", "--raw", "--system", "w2"], "takes no --system"),
        (["{base}", "w1", "--merge"], "is no adapter"),
        (["{base}", "w1", "--compare", "base"], "give --compare the base model's name"),
        (["{base}", "--prompts", "nowhere.jsonl"], "does not exist"),
        (["{base}", "w1 " * 70], "has positions for 64"),
        (["{bare}", "w1"], "has no chat template: give one with --chat-template"),
        (["{base}", "--prompts", "{bad}"], "bad.jsonl:1: no prompt: expected messages"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(tmp_path, base, capsys, arguments, told):
    import shutil

    bare = shutil.copytree(base, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n')
    places = {"base": base, "bare": bare, "bad": tmp_path / "bad.jsonl"}
    with pytest.raises(SystemExit) as ended:
        main(["generate", *(word.format(**places) for word in arguments)])
    error = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and error.startswith("error: ") and told in error


def test_a_template_of_ones_own(tmp_path, base, capsys):
    (tmp_path / "t.jinja").write_text(TEMPLATE.replace("w12", "w13"))
    plain = said("generate", str(base), QUESTION, "--temperature", "0", "--max-new-tokens", "8", capsys=capsys)
    options = ("--chat-template", str(tmp_path / "t.jinja"), "--temperature", "0", "--max-new-tokens", "8")
    assert said("generate", str(base), QUESTION, *options, capsys=capsys) != plain


class Echo:
    """Stands for a model: says how many messages it was given and what came last."""

    label = "echo"

    def ask(self, prompt: Prompt, sampling: Sampling, on_text):
        if prompt.asked == "stop":
            raise KeyboardInterrupt
        text = f"{len(prompt.content)}:{prompt.asked}"
        on_text(text)
        return Answer(text, 1, True)


def test_a_chat_goes_on_is_reset_and_outlives_an_answer_that_is_stopped(monkeypatch, capsys):
    monkeypatch.setattr(session, "answerers", lambda *arguments, **options: [Echo()])
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\nstop\n\nc\n/what\n/reset\nd\n/exit\ne\n"))
    told = said("chat", "anything", "--system", "be kind", capsys=capsys)
    assert told.splitlines() == ["2:a", "4:b", " … (ended)", "6:c", "2:d"]


def test_every_answer_can_be_stopped_by_ctrl_c(monkeypatch, capsys):
    class Stopped(Echo):
        def ask(self, prompt, sampling, on_text):
            os.kill(os.getpid(), signal.SIGINT)
            return super().ask(prompt, sampling, on_text)

    def exited(code):
        raise AssertionError(f"the second Ctrl-C ended the chat with {code}")

    monkeypatch.setattr(session, "answerers", lambda *arguments, **options: [Stopped()])
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\nc\n"))
    monkeypatch.setattr("allranks.interrupt.os._exit", exited)
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupt.end_at_once()  # as the console script begins
        told = said("chat", "anything", capsys=capsys)
    finally:
        signal.signal(signal.SIGINT, before)
    assert told.splitlines() == [" … (ended)"] * 3
    assert not interrupt.was_interrupted(OSError("later")), "an error after it would be told as a Ctrl-C"


def test_two_models_in_a_chat_go_on_with_their_own_words(monkeypatch, capsys):
    heard = []

    class Heard(Echo):
        def __init__(self, label):
            self.label = label

        def ask(self, prompt, sampling, on_text):
            heard.append((self.label, [turn["content"] for turn in prompt.content]))
            return Answer(f"{self.label} says", 1, True)

    monkeypatch.setattr(session, "answerers", lambda *arguments, **options: [Heard("base"), Heard("step 7")])
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\n"))
    said("chat", "anything", capsys=capsys)
    assert heard[2:] == [("base", ["a", "base says", "b"]), ("step 7", ["a", "step 7 says", "b"])]


@pytest.mark.parametrize("width", [80, 140])
def test_two_answers_stand_side_by_side_in_the_width_there_is(width):
    text = "one two three four five six seven eight nine ten " * 5
    lines = side_by_side([("base", text), ("step 7", "short\nand 你好 [bold]not markup[/bold]")], width).split("\n")
    assert max(map(len, lines)) <= width and lines[0].split() == ["base", "step", "7"]
    assert "short" in lines[1] and "one two" in lines[1] and "[bold]not" in "\n".join(lines)
    assert " ".join(line[: width // 2 - 2].strip() for line in lines[1:]).split() == text.split()
