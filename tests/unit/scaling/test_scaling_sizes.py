"""Numbers of nodes as they are asked for, and the batch that each of them gets."""

import pytest

from allranks.config.load import resolve_mapping
from allranks.errors import UsageError
from allranks.scaling.here import configs_of
from allranks.scaling.sizes import batch_keys, parse_sizes, refuse_more_than


def config(**keys):
    least = {"base_model": "m", "datasets": [{"path": "d.jsonl", "type": "chat_template"}], "learning_rate": 1e-4}
    return resolve_mapping(least | {"micro_batch_size": 2, "output_dir": "/out"} | keys)


def test_sizes_come_from_the_smallest_on_and_once():
    assert parse_sizes("1,2,4") == parse_sizes("4, 2,1,2") == (1, 2, 4)
    assert parse_sizes("3") == (3,)


@pytest.mark.parametrize("text", ["", "0", "1,", "-1", "1-4", "two", "1,0", "1.5", "²"])
def test_what_is_no_number_of_nodes_is_refused(text):
    with pytest.raises(UsageError, match=r"--nodes .*such as 1,2,4"):
        parse_sizes(text)


def test_more_nodes_than_there_are_are_refused_with_what_can_be():
    refuse_more_than(4, (1, 2, 4), named="there are")
    with pytest.raises(UsageError, match=r"--nodes 1,2,4: there are 3 nodes: give --nodes 1,2, or name more"):
        refuse_more_than(3, (1, 2, 4), named="there are")
    with pytest.raises(UsageError, match="there is 1 node: name more nodes"):
        refuse_more_than(1, (2,), named="there is")


def blocks_of_a_node(cfg, nodes, ranks_per_node=1):
    settings = cfg.optimizer
    if settings.batch_size:
        return settings.batch_size / nodes
    return settings.micro_batch_size * settings.gradient_accumulation_steps * ranks_per_node


@pytest.mark.parametrize("keys", [{"gradient_accumulation_steps": 4}, {"batch_size": 48}])
def test_each_rank_keeps_its_batch_or_all_together_do(keys):
    sizes = (1, 2, 3, 4, 6)
    weak = configs_of(config(**keys), sizes, num_steps=9, keep_batch=False)
    of_a_node = {blocks_of_a_node(cfg, nodes) for nodes, cfg in weak.items()}
    assert len(of_a_node) == 1
    strong = configs_of(config(**keys), sizes, num_steps=9, keep_batch=True)
    of_all = {nodes * blocks_of_a_node(cfg, nodes) for nodes, cfg in strong.items()}
    assert len(of_all) == 1
    # On the largest both are what the config itself would be there.
    assert weak[6].optimizer == strong[6].optimizer
    assert of_a_node == {8} and of_all == {48}


@pytest.mark.parametrize(
    ("keys", "keep_batch", "told"),
    [
        ({"batch_size": 10}, False, "batch_size: 10, 1 of 3 nodes"),
        ({"batch_size": 10}, True, "batch_size: 10, --keep-batch"),
        ({"gradient_accumulation_steps": 1}, True, "gradient_accumulation_steps: 1, --keep-batch"),
    ],
)
def test_a_batch_that_cannot_be_shared_equally_is_refused_with_one_that_can(keys, keep_batch, told):
    sizes = (1, 2, 3)
    cfg = config(**keys)
    with pytest.raises(UsageError) as caught:
        for nodes in sizes:
            batch_keys(cfg, nodes, sizes[-1], keep_batch=keep_batch)
    assert told in str(caught.value)
    [key] = keys
    better = int(str(caught.value).rpartition(f"(--{key.replace('_', '-')} ")[2].partition(")")[0])
    refused = int(str(caught.value).partition(" nodes: make it")[0].rpartition(" ")[2])
    batch_keys(config(**{key: better}), refused if keep_batch else 1, sizes[-1], keep_batch=keep_batch)


def test_what_is_run_saves_and_evaluates_nothing_and_tells_no_tracker():
    cfg = config(
        val_set_size=0.1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        wandb_project="p",
        warmup_steps=9,
    )
    [small] = configs_of(cfg, (2,), num_steps=35, keep_batch=False).values()
    assert small.optimizer.max_steps == 35 and small.checkpoint.save_strategy == "no"
    assert small.evaluation.eval_strategy == "no" and not small.tracking.use_wandb
    assert small.checkpoint.output_dir == "/out/bench-scaling/nodes-2"
    # `allranks train` reads it as the file that it is written to.
    assert resolve_mapping(small.flat()).flat() == small.flat()
