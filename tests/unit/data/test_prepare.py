"""From a config to the prepared data set: counts, splits, errors, fingerprint, and what survives races and crashes."""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from allranks.config import load_config
from allranks.data import prepare
from allranks.data.fingerprint import fingerprint
from allranks.errors import ConfigError, DataError, RefusedError
from tests.unit.data.conftest import make_tokenizer, save_model_folder


def records(count, start=0):
    return [
        {
            "messages": [
                {"role": "user", "content": f"sum {i}?"},
                {"role": "assistant", "content": "five " * (1 + i % 7)},
            ]
        }
        for i in range(start, start + count)
    ]


@pytest.fixture
def chat(write_jsonl):
    return {"path": str(write_jsonl(records(40))), "type": "chat_template"}


def texts(blocks, tokenizer):
    return sorted(tokenizer.decode(blocks.document(i)[0]) for i in range(blocks.num_documents))


class TestWhatIsPrepared:
    def test_every_record_once_in_blocks(self, make_config, chat, tokenizer):
        prepared = prepare(make_config(chat, sample_packing=True))
        expected = sorted(
            f"<|im_start|>user\n{a['content']}<|im_end|>\n<|im_start|>assistant\n{b['content']}<|im_end|>\n"
            for a, b in (record["messages"] for record in records(40))
        )
        assert texts(prepared.train, tokenizer) == expected
        assert prepared.train.token_counts.max() <= 128 and prepared.eval is None
        stats = prepared.stats
        assert (stats["documents"], stats["blocks"]) == (40, len(prepared.train))
        assert stats["tokens"] == len(prepared.train.tokens) == prepared.train.token_counts.sum()
        assert stats["target_tokens"] == prepared.train.mask.sum() == prepared.train.target_counts.sum()
        assert stats["packing_efficiency"] == stats["tokens"] / (128 * stats["blocks"])

    def test_without_packing_each_document_is_a_block(self, make_config, chat):
        prepared = prepare(make_config(chat))
        assert len(prepared.train) == 40 == prepared.train.num_documents

    def test_a_relative_folder_holds_the_same(self, make_config, chat, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        told = prepare(make_config(chat, dataset_prepared_path="relative")).train
        assert np.array_equal(told.tokens, prepare(make_config(chat)).train.tokens) and told.tokens.any()

    def test_several_data_sets_of_different_types(self, make_config, chat, write_jsonl, tokenizer):
        other = write_jsonl([{"instruction": "a", "output": "It is mine."}], "other.jsonl")
        cfg = make_config(datasets=[chat, {"path": str(other), "type": "alpaca"}], sample_packing=True)
        prepared = prepare(cfg)
        assert sum("It is mine." in text for text in texts(prepared.train, tokenizer)) == 1
        assert [(s["records"], s["documents"]) for s in prepared.stats["datasets"]] == [(40, 40), (1, 1)]

    def test_the_result_does_not_depend_on_the_number_of_processes(self, make_config, chat, tmp_path):
        one = prepare(make_config(chat, dataset_num_proc=1, sample_packing=True))
        two = prepare(
            make_config(chat, dataset_num_proc=2, sample_packing=True, dataset_prepared_path=str(tmp_path / "two"))
        )
        assert two.fingerprint == one.fingerprint and two.path != one.path
        np.testing.assert_array_equal(two.train.tokens, one.train.tokens)
        np.testing.assert_array_equal(two.train.mask, one.train.mask)
        assert two.stats == one.stats

    def test_shards(self, make_config, chat):
        prepared = prepare(make_config(chat | {"shards": 4, "shards_idx": 1}))
        assert prepared.train.num_documents == 10

    def test_repeated_documents(self, make_config, write_jsonl):
        data = {"path": str(write_jsonl(records(5) + records(3))), "type": "chat_template"}
        assert prepare(make_config(data)).train.num_documents == 8
        prepared = prepare(make_config(data, dataset_exact_deduplication=True))
        assert prepared.train.num_documents == 5 and prepared.stats["datasets"][0]["duplicates"] == 3


class TestLength:
    @pytest.fixture
    def long(self, write_jsonl):
        long = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "five " * 200}]}
        asks = {"messages": [{"role": "user", "content": "five " * 200}, {"role": "assistant", "content": "a"}]}
        return {"path": str(write_jsonl([*records(3), long, asks])), "type": "chat_template"}

    def test_drop(self, make_config, long):
        lines = []
        prepared = prepare(make_config(long), report=lines.append)
        assert any("5 records -> 3 documents; left out: 2 too long" in line for line in lines)
        assert prepared.train.num_documents == 3 and prepared.stats["datasets"][0]["too_long"] == 2

    def test_truncate_leaves_out_what_has_no_target_left(self, make_config, long):
        prepared = prepare(make_config(long, excess_length_strategy="truncate"))
        assert prepared.train.num_documents == 4 and prepared.train.token_counts.max() == 128
        source = prepared.stats["datasets"][0]
        assert (source["truncated"], source["no_target"]) == (2, 1)

    def test_raise(self, make_config, long):
        with pytest.raises(DataError, match=r"has \d+ tokens, more than sequence_len \(128\)"):
            prepare(make_config(long, excess_length_strategy="raise"))

    def test_too_short(self, make_config, chat):
        source = prepare(make_config(chat, min_sample_len=24)).stats["datasets"][0]
        assert source["too_short"] > 0 and source["documents"] == 40 - source["too_short"]

    def test_nothing_left_is_an_error(self, make_config, chat):
        message = r"data.jsonl: no document is left of it: 40 too long. sequence_len is 5; \d+ would keep 95 % of it"
        with pytest.raises(DataError, match=message):
            prepare(make_config(chat, sequence_len=5))

    def test_a_set_of_which_nothing_is_left_is_an_error_beside_others(self, make_config, chat, write_jsonl):
        long = {"path": str(write_jsonl(records(3, start=10**150), "long.jsonl")), "type": "chat_template"}
        message = r"long.jsonl: no document is left of it: 3 too long. sequence_len is 128"
        with pytest.raises(DataError, match=message):
            prepare(make_config(None, datasets=[chat, long]))
        with pytest.raises(DataError, match=message.replace("sequence_len is 128", "eval_sequence_len is 64")):
            prepare(make_config(chat, test_datasets=[long, chat], eval_sequence_len=64))
        broken = {"path": str(write_jsonl([{"messages": 3}] * 2, "broken.jsonl")), "type": "chat_template"}
        with pytest.raises(DataError, match=r"broken.jsonl: no document is left of it: 2 broken$"):
            prepare(make_config(None, datasets=[chat, broken], skip_invalid=True))

    @pytest.mark.parametrize("strategy", ["drop", "truncate"])
    def test_the_lengths_that_keep_95_and_99_percent_are_said(self, make_config, write_jsonl, strategy):
        texts = [{"messages": [{"role": "assistant", "content": "five " * count}]} for count in range(10, 110)]
        keys = {"sequence_len": 1000, "excess_length_strategy": strategy}
        data = {"path": str(write_jsonl(texts)), "type": "chat_template"}
        lengths = np.sort(prepare(make_config(data, **keys)).train.token_counts)
        for index, is_said in ((94, False), (93, True), (50, True)):
            for _ in range(2):  # the second time it is there already
                lines = []
                prepare(make_config(data, **keys | {"sequence_len": int(lengths[index])}), report=lines.append)
                warnings = [line for line in lines if line.startswith("warning: ")]
                assert len(warnings) == is_said, warnings
                if is_said:
                    what = "left out" if strategy == "drop" else "cut"
                    assert (
                        f"{99 - index} of 100 samples ({99 - index}%) are longer than sequence_len and {what}"
                        in warnings[0]
                    )
                    assert (
                        f"sequence_len: {lengths[94]} keeps 95 % of them whole, {lengths[98]} keeps 99 %" in warnings[0]
                    )

    def test_each_of_the_suggested_lengths_keeps_what_it_says(self, make_config, write_jsonl):
        texts = [{"messages": [{"role": "assistant", "content": "five " * (7 * i % 99)}]} for i in range(1, 99)]
        data = {"path": str(write_jsonl(texts)), "type": "chat_template"}
        source = prepare(make_config(data, sequence_len=20)).stats["datasets"][0]
        for share, length in ((0.95, source["keep_95"]), (0.99, source["keep_99"])):
            for shorter, keeps in ((0, True), (1, False)):
                found = prepare(make_config(data, sequence_len=length - shorter)).stats["datasets"][0]
                assert (found["documents"] >= share * found["records"]) == keeps


class TestPieces:
    """Completion texts longer than a block, cut as Axolotl cuts them."""

    @pytest.fixture
    def texts(self, write_jsonl):
        texts = ["It is five. " * count for count in (1, 3, 60, 25)] + ["naïve café " * 33]
        return {"path": str(write_jsonl([{"text": text} for text in texts])), "type": "completion"}

    def pieces(self, make_config, data, **keys):
        blocks = prepare(make_config(data, shuffle_merged_datasets=False, **keys)).train
        return [blocks.document(i) for i in range(blocks.num_documents)]

    @pytest.mark.parametrize("length", [7, 16, 33, 100])
    def test_nothing_is_lost(self, make_config, texts, length, tokenizer):
        whole = self.pieces(make_config, texts, sequence_len=10_000)
        found = self.pieces(make_config, texts, sequence_len=length)
        assert np.array_equal(np.concatenate([t for t, _ in found]), np.concatenate([t for t, _ in whole]))
        # As Axolotl: each piece but a text's last is as long as a block, and all but its first token is trained.
        wanted = [min(length, len(t) - at) for t, _ in whole for at in range(0, len(t), length)]
        joined = [(a, b) for a, b in zip(wanted, [*wanted[1:], 0], strict=True) if b == 1]
        assert sorted(len(t) for t, _ in found if len(t) < length - 1) == sorted(
            [size for size in wanted if 1 < size < length - 1] + [2 for _ in joined]
        )
        assert all(mask[0] == 0 and mask[1:].all() and len(mask) > 1 for _, mask in found)

    @pytest.mark.parametrize("overlap", [1, 3, 15])
    def test_with_an_overlap_each_token_is_trained_once(self, make_config, texts, overlap):
        whole = self.pieces(make_config, texts, sequence_len=10_000)
        found = self.pieces(make_config, texts | {"overlap": overlap}, sequence_len=16)
        trained = np.concatenate([tokens[mask == 1] for tokens, mask in found])
        assert np.array_equal(trained, np.concatenate([tokens[1:] for tokens, _ in whole]))
        for (before, _), (after, mask) in pairwise(found):
            if mask[: overlap + 1].sum() <= 1 and len(before) == 16 and not mask[:overlap].any():
                assert np.array_equal(before[-overlap:], after[:overlap])

    def test_how_many_were_cut_is_counted(self, make_config, texts):
        lines = []
        source = prepare(make_config(texts, sequence_len=32), report=lines.append).stats["datasets"][0]
        assert source["in_pieces"] == 3 and source["too_long"] == 0
        assert any("5 records -> " in line and "3 of them cut into pieces" in line for line in lines)

    def test_evaluation_has_its_own_length(self, make_config, texts):
        prepared = prepare(make_config(texts, test_datasets=[texts], sequence_len=64, eval_sequence_len=16))
        assert prepared.eval.token_counts.max() == 16 and prepared.train.token_counts.max() == 64

    def test_an_overlap_must_leave_room(self, make_config, texts):
        with pytest.raises(ConfigError, match=r"overlap.*must be below the length of a block, 16"):
            make_config(texts | {"overlap": 16}, sequence_len=16)
        with pytest.raises(ConfigError, match="overlap: has no effect with type alpaca; it is for completion"):
            make_config(texts | {"overlap": 1, "type": "alpaca"})


class TestEvaluation:
    @pytest.mark.parametrize(("size", "count"), [(0.1, 4), (3, 3), (0.001, 1)])
    def test_part_of_the_documents_is_set_aside(self, make_config, chat, tokenizer, size, count):
        prepared = prepare(make_config(chat, val_set_size=size, sample_packing=True))
        assert prepared.eval.num_documents == count and prepared.train.num_documents == 40 - count
        whole = texts(prepare(make_config(chat)).train, tokenizer)
        assert sorted(texts(prepared.train, tokenizer) + texts(prepared.eval, tokenizer)) == whole

    def test_the_seed_decides_which(self, make_config, chat, tokenizer):
        first, other = (prepare(make_config(chat, val_set_size=5, seed=seed)) for seed in (1, 2))
        assert texts(first.eval, tokenizer) != texts(other.eval, tokenizer)

    @pytest.mark.parametrize("size", [1, 0.3, 6])
    @pytest.mark.parametrize("num_processes", [1, 2])
    def test_a_record_is_in_one_of_them_with_all_its_documents(
        self, make_config, write_jsonl, tokenizer, size, num_processes
    ):
        from tests.unit.data.test_chat import THINKING

        talks = []
        for n in range(8):
            turns = [("user", f"sum {n}?"), ("assistant", "<think>\nadd\n</think>\n\nfive")] * 2
            talks.append({"messages": [{"role": role, "content": text} for role, text in turns]})
        data = {"path": str(write_jsonl([*talks, talks[0], talks[3]])), "type": "chat_template"}
        template = {"chat_template": "jinja", "chat_template_jinja": THINKING}
        prepared = prepare(make_config(data, val_set_size=size, dataset_num_proc=num_processes, **template))
        train, held_out = texts(prepared.train, tokenizer), texts(prepared.eval, tokenizer)
        assert len(train) + len(held_out) == 20 and len(held_out) in {1: (2,), 0.3: (6,), 6: (6,)}[size]
        asked = [{re.search(r"sum \d", text)[0] for text in part} for part in (train, held_out)]
        assert not asked[0] & asked[1] and len(asked[0] | asked[1]) == 8

    def test_the_pieces_of_a_text_are_in_one_of_them(self, make_config, write_jsonl, tokenizer):
        stories = [{"text": f"story{n} " * 60} for n in range(6)]
        data = {"path": str(write_jsonl(stories)), "type": "completion"}
        prepared = prepare(make_config(data, val_set_size=0.4, sequence_len=64))
        told = [
            set(re.findall(r"story\d", " ".join(texts(part, tokenizer)))) for part in (prepared.train, prepared.eval)
        ]
        assert told[0] and told[1] and not told[0] & told[1]

    def test_one_record_cannot_be_divided_but_equal_ones_if_there_are_no_others(self, make_config, write_jsonl):
        data = {"path": str(write_jsonl([{"text": "five " * 200}])), "type": "completion"}
        with pytest.raises(DataError, match="documents come from one record, which is either trained or evaluated"):
            prepare(make_config(data, val_set_size=0.4, sequence_len=64))
        equal = {"path": str(write_jsonl(records(1) * 5, "equal.jsonl")), "type": "chat_template"}
        prepared = prepare(make_config(equal, val_set_size=0.4))
        assert (prepared.train.num_documents, prepared.eval.num_documents) == (3, 2)

    def test_all_of_it_is_too_much(self, make_config, chat):
        with pytest.raises(DataError, match="val_set_size 40 takes 40 of 40 documents"):
            prepare(make_config(chat, val_set_size=40))

    def test_test_datasets(self, make_config, chat, write_jsonl, tokenizer):
        held = {"path": str(write_jsonl(records(3, start=100), "held.jsonl")), "type": "chat_template"}
        prepared = prepare(make_config(chat, test_datasets=[held], eval_sample_packing=False, sample_packing=True))
        assert prepared.train.num_documents == 40 and len(prepared.eval) == 3
        assert "sum 100?" in texts(prepared.eval, tokenizer)[0]

    def test_both_ways_at_once_is_an_error(self, make_config, chat):
        with pytest.raises(ConfigError, match="val_set_size"):
            prepare(make_config(chat, test_datasets=[chat], val_set_size=0.1))


class TestBrokenRecords:
    @pytest.fixture
    def broken(self, tmp_path):
        lines = [json.dumps(record) for record in records(6)]
        lines[1] = '{"messages": ['
        lines[3] = json.dumps({"messages": [{"role": "usr", "content": "a"}]})
        lines[4] = json.dumps({"messages": [{"role": "user", "content": "a"}]})
        path = tmp_path / "broken.jsonl"
        path.write_text("\n".join(lines))
        return {"path": str(path), "type": "chat_template"}

    def test_all_are_named_with_file_and_line_and_stop_the_run(self, make_config, broken):
        with pytest.raises(DataError) as caught:
            prepare(make_config(broken))
        message = str(caught.value)
        assert "3 of 6 records are broken" in message and "skip_invalid: true" in message
        assert "broken.jsonl:2: not valid JSON" in message
        assert "broken.jsonl:4: field messages, message 0: role 'usr' is not known" in message
        assert "broken.jsonl:5: nothing in it is trained" in message

    def test_skip_invalid_leaves_them_out_and_says_so(self, make_config, broken):
        lines = []
        prepared = prepare(make_config(broken, skip_invalid=True), report=lines.append)
        assert prepared.train.num_documents == 3 and prepared.stats["datasets"][0]["invalid"] == 3
        assert any("3 of 6 records are broken" in line for line in lines)

    def test_the_reason_stands_at_each_line_with_the_way_out(self, make_config, write_jsonl):
        rows = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d", "input": ""}, {"\x1b[1m": 1}]
        data = {"path": str(write_jsonl(rows)), "type": "chat_template"}
        with pytest.raises(DataError) as caught:
            prepare(make_config(data))
        lines = str(caught.value).splitlines()
        for number in (1, 2):
            assert f"data.jsonl:{number}: no field messages" in lines[number]
            assert lines[number].endswith(". For these fields use type: alpaca")
        assert str(caught.value).replace("\n", "").isprintable()

    def test_only_some_of_many_are_shown(self, make_config, write_jsonl):
        data = {"path": str(write_jsonl([{"x": i} for i in range(2000)])), "type": "chat_template"}
        with pytest.raises(DataError) as caught:
            prepare(make_config(data))
        message = str(caught.value)
        assert "2000 of 2000 records" in message and "and 1995 more" in message and len(message.splitlines()) < 12

    @pytest.mark.parametrize("num_processes", [1, 2])
    def test_a_failure_leaves_nothing_behind(self, make_config, broken, tmp_path, num_processes):
        with pytest.raises(DataError):
            prepare(make_config(broken, dataset_num_proc=num_processes))
        assert [p.name for p in (tmp_path / "prepared").iterdir() if not p.name.endswith(".lock")] == []

    def test_a_missing_file(self, make_config):
        with pytest.raises(DataError, match=r"data file no/such.jsonl does not exist"):
            prepare(make_config({"path": "no/such.jsonl", "type": "alpaca"}))

    def test_a_hub_id_without_a_network(self, make_config):
        with pytest.raises(DataError, match="no such local file or folder, and it cannot be loaded from the Hub"):
            prepare(make_config({"path": "nobody/nothing", "type": "alpaca"}))

    def test_a_model_without_a_tokenizer(self, make_config, chat, tmp_path):
        (tmp_path / "bare").mkdir()
        with pytest.raises(ConfigError, match=r"base_model: .*bare: no tokenizer can be loaded"):
            prepare(make_config(chat, base_model=str(tmp_path / "bare")))


class TestFingerprint:
    def test_it_is_of_the_content_not_of_the_place_or_time(self, make_config, chat, model_folder, tmp_path):
        data = shutil.copy(chat["path"], tmp_path / "copy.json")
        os.utime(data, (1, 1))
        model = shutil.copytree(model_folder, tmp_path / "model copy")
        here = make_config(chat, seed=1)
        there = make_config(
            chat | {"path": str(data)}, base_model=str(model), seed=2, dataset_num_proc=3, micro_batch_size=2,
            dataset_prepared_path=str(tmp_path / "else"),
        )  # fmt: skip
        assert fingerprint(here) == fingerprint(there)

    def test_a_changed_byte_changes_it(self, make_config, chat):
        before = fingerprint(make_config(chat))
        with Path(chat["path"]).open("r+b") as file:
            content = file.read()
            file.seek(content.index(b"five"))
            file.write(b"fivE")
        assert fingerprint(make_config(chat)) != before

    @pytest.mark.parametrize(
        "keys",
        [
            {"sequence_len": 64},
            {"sample_packing": True},
            {"chat_template": "llama3"},
            {"chat_template": "jinja", "chat_template_jinja": "{{ messages }}"},
            {"train_on_inputs": True},
            {"roles_to_train": ["user"]},
            {"default_system_message": "s"},
            {"val_set_size": 2},
            {"tokens": ["<new>"]},
            {"special_tokens": {"eos_token": "<|endoftext|>"}},
            {"skip_invalid": True},
        ],
    )
    def test_settings_that_change_the_data_change_it(self, make_config, chat, keys):
        assert fingerprint(make_config(chat, **keys)) != fingerprint(make_config(chat))

    def test_the_data_sets_settings_count(self, make_config, chat):
        assert fingerprint(make_config(chat | {"train_on_eos": "none"})) != fingerprint(make_config(chat))

    def test_another_tokenizer_changes_it(self, make_config, chat, tmp_path):
        other = save_model_folder(tmp_path / "other", make_tokenizer(bos="<s>"))
        assert fingerprint(make_config(chat, base_model=str(other))) != fingerprint(make_config(chat))

    def test_the_text_of_a_template_file_counts_and_not_its_path(self, make_config, chat, tmp_path):
        prints = []
        for name, text in [("a", "{{ messages }}"), ("b", "{{ messages }}"), ("a", "{{ messages }} ")]:
            (tmp_path / name).write_text(text)
            cfg = make_config(chat, chat_template="jinja", chat_template_jinja=str(tmp_path / name))
            prints.append(fingerprint(cfg))
        assert prints[0] == prints[1] != prints[2]


def prepare_and_send(cfg, queue):
    lines = []
    prepared = prepare(cfg, report=lines.append)
    queue.put((str(prepared.path), prepared.train.num_documents, any("tokenizing" in line for line in lines)))


class TestStore:
    def test_it_is_made_once(self, make_config, chat):
        cfg, lines = make_config(chat), []
        first = prepare(cfg)
        again = prepare(cfg, report=lines.append)
        assert again.path == first.path and lines == [] and again.stats == first.stats

    def test_opening_needs_neither_transformers_nor_datasets(self, make_config, chat, tmp_path):
        cfg = make_config(chat)
        prepare(cfg)
        (tmp_path / "config.yaml").write_text(json.dumps(cfg.flat()))
        assert load_config(tmp_path / "config.yaml").data == cfg.data
        program = (
            "import sys; from allranks.config import load_config; from allranks.data import prepare, BlockOrder;"
            f"prepared = prepare(load_config({str(tmp_path / 'config.yaml')!r}));"
            "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'jinja2', 'huggingface_hub'};"
            "print(len(prepared.train), *(heavy & set(sys.modules)))"
        )
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert result.stdout.split() == ["40"]

    def test_processes_that_race_share_one(self, make_config, chat):
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        racers = [context.Process(target=prepare_and_send, args=(make_config(chat), queue)) for _ in range(4)]
        for racer in racers:
            racer.start()
        results = [queue.get(timeout=60) for _ in racers]
        for racer in racers:
            racer.join()
        assert {result[:2] for result in results} == {(results[0][0], 40)}
        assert sum(result[2] for result in results) == 1  # the others waited

    def test_without_locks_the_first_to_finish_wins(self, make_config, chat, monkeypatch):
        import fcntl

        def no_locks(*_):
            raise OSError("No locks available")

        monkeypatch.setattr(fcntl, "flock", no_locks)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        racers = [context.Process(target=prepare_and_send, args=(make_config(chat), queue)) for _ in range(3)]
        for racer in racers:
            racer.start()
        results = [queue.get(timeout=60) for _ in racers]
        for racer in racers:
            racer.join()
        assert {result[:2] for result in results} == {(results[0][0], 40)}

    @pytest.mark.parametrize("damage", ["truncate", "remove", "manifest", "no manifest"])
    def test_a_damaged_one_is_made_again(self, make_config, chat, damage):
        cfg = make_config(chat)
        first = prepare(cfg)
        tokens, manifest = first.path / "train" / "tokens.npy", first.path / "manifest.json"
        expected = np.array(first.train.tokens)
        if damage == "truncate":
            os.truncate(tokens, tokens.stat().st_size - 4)
        elif damage == "remove":
            tokens.unlink()
        elif damage == "manifest":
            manifest.write_text(manifest.read_text()[:50])
        else:
            manifest.unlink()
        again = prepare(cfg)
        np.testing.assert_array_equal(again.train.tokens, expected)
        assert sorted(p.name for p in again.path.parent.iterdir()) == sorted(
            [again.path.name, f".{again.path.name}.lock"]
        )

    def test_what_a_killed_process_left_is_not_taken_and_is_cleared_away(self, make_config, chat):
        import socket

        cfg = make_config(chat)
        folder = prepare(cfg).path
        leftover = folder.rename(folder.with_name(f".{folder.name}.building-{socket.gethostname()}-1-abc"))
        (leftover / "manifest.json").unlink()
        assert prepare(cfg).train.num_documents == 40 and not leftover.exists()

    def test_a_folder_that_cannot_be_written(self, make_config, chat, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(RefusedError, match=r"dataset_prepared_path: .* cannot be written .*--dataset-prep"):
            prepare(make_config(chat, dataset_prepared_path=str(tmp_path / "file" / "sub")))


def test_what_the_launcher_prepared_is_opened_without_reading_the_data_again(make_config, write_jsonl):
    path = write_jsonl([{"text": "It is five."}])
    cfg = make_config({"path": str(path), "type": "completion"})
    made = prepare(cfg)
    path.unlink()
    assert prepare(cfg, known=made.fingerprint).fingerprint == made.fingerprint


def test_what_is_known_and_not_whole_is_prepared(make_config, write_jsonl):
    cfg = make_config({"path": str(write_jsonl([{"text": "It is five."}])), "type": "completion"})
    made = prepare(cfg)
    (made.path / "train" / "tokens.npy").unlink()
    assert prepare(cfg, known=made.fingerprint).train.tokens.tolist() == made.train.tokens.tolist()
    assert prepare(cfg, known="0" * 64).fingerprint == made.fingerprint
