import pytest
import torch
from transformers.optimization import get_scheduler

from allranks.config import RunConfig
from allranks.errors import ConfigError
from allranks.train.schedule import learning_rate_schedule


def config(**keys):
    return RunConfig.from_flat(
        {"base_model": "m", "datasets": [{"path": "d.jsonl", "type": "alpaca"}], "learning_rate": 1e-3, **keys}
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear", {}),
        ("cosine", {}),
        ("cosine", {"num_cycles": 1.5}),
        ("constant", {}),
        ("constant_with_warmup", {}),
        ("polynomial", {"lr_end": 1e-5, "power": 2.0}),
        ("cosine_with_restarts", {"num_cycles": 3}),
        ("cosine_with_min_lr", {"min_lr": 1e-4}),
        ("inverse_sqrt", {}),
        ("inverse_sqrt", {"timescale": 20}),
    ],
)
def test_rates_are_those_of_transformers(name, options):
    num_steps, warmup = 50, 0 if name == "constant" else 7
    ours = learning_rate_schedule(
        config(lr_scheduler=name, lr_scheduler_kwargs=options, warmup_steps=warmup), num_steps
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    theirs = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=num_steps, scheduler_specific_kwargs=options
    )
    for step in range(num_steps):
        assert ours(step) * 1e-3 == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-15), step
        optimizer.step()
        theirs.step()


def test_cosine_min_lr_ratio_is_the_floor():
    rate = learning_rate_schedule(config(cosine_min_lr_ratio=0.1), 100)
    assert rate(0) == 1.0 and rate(100) == pytest.approx(0.1) and min(map(rate, range(200))) >= 0.1


def test_cosine_constant_lr_ratio_ends_the_decay_early():
    rate = learning_rate_schedule(config(cosine_min_lr_ratio=0.1, cosine_constant_lr_ratio=0.8), 100)
    assert rate(79) > 0.1 and rate(80) == pytest.approx(0.1) == rate(99)


def test_cosine_constant_lr_ratio_counts_the_warm_up_too():
    rate = learning_rate_schedule(config(cosine_min_lr_ratio=0.1, cosine_constant_lr_ratio=0.5, warmup_steps=20), 100)
    assert rate(20) == 1.0 and rate(35) == pytest.approx(0.55) and rate(49) > 0.1 and rate(50) == pytest.approx(0.1)


def test_warmup_ratio_is_a_share_of_the_steps():
    rate = learning_rate_schedule(config(warmup_ratio=0.1, lr_scheduler="constant_with_warmup"), 100)
    assert [rate(0), rate(5), rate(10)] == [0.0, 0.5, 1.0]


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ConfigError):
        learning_rate_schedule(config(lr_scheduler="cosinus"), 10)
    with pytest.raises(ConfigError, match="power"):
        learning_rate_schedule(config(lr_scheduler="linear", lr_scheduler_kwargs={"power": 2}), 10)
