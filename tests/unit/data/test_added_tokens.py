"""A prepared data set says which added tokens are in it, and which of them only the config adds."""

from allranks.data import prepare


def test_the_added_tokens_that_occur(make_config, write_jsonl, tokenizer):
    turns = [{"role": "user", "content": "What is the <note> sum?"}, {"role": "assistant", "content": "five"}]
    dataset = {"path": str(write_jsonl([{"messages": turns}])), "type": "chat_template"}
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in ("<|im_start|>", "<|im_end|>")}
    plain = prepare(make_config(dataset)).stats
    assert (plain["added_tokens"], plain["new_tokens"]) == (ids, [])

    given = {"tokens": ["<note>", "<unused>", "<|im_end|>"], "special_tokens": {"pad_token": "<pad>"}}
    stats = prepare(make_config(dataset, **given)).stats
    assert stats["added_tokens"].keys() == {*ids, "<note>"} and stats["new_tokens"] == ["<note>"]
