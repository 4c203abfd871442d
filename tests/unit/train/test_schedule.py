import pytest
import torch
from transformers.optimization import get_scheduler

from allranks.config.load import resolve_mapping
from allranks.errors import ConfigError
from allranks.train.schedule import learning_rate_schedule, warmup_warning


def config(**keys):
    return resolve_mapping(
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
        ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}),
        ("cosine_warmup_with_min_lr", {"min_lr": 1e-4, "warmup_lr_rate": 0.2}),
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
    rate = learning_rate_schedule(config(cosine_min_lr_ratio=0.1, warmup_steps=0), 100)
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


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({"warmup_steps": 10}, {"pct_start": 0.2}),
        ({"warmup_steps": 0}, {"pct_start": 0.3}),
        ({"lr_div_factor": 5.0, "warmup_steps": 25}, {"pct_start": 0.5, "div_factor": 5.0}),
        ({"lr_scheduler_kwargs": {"anneal_strategy": "linear", "final_div_factor": 100.0}, "warmup_ratio": 0.0},
         {"anneal_strategy": "linear", "final_div_factor": 100.0}),
    ],
)  # fmt: skip
def test_one_cycle_is_that_of_torch(keys, options):
    ours = learning_rate_schedule(config(lr_scheduler="one_cycle", **keys), 50)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, total_steps=50, cycle_momentum=False, **options
    )
    for step in range(50):
        assert ours(step) * 1e-3 == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-15), step
        optimizer.step()
        if step < 49:
            theirs.step()


def test_rex_falls_slowly_at_first_and_to_the_floor():
    rate = learning_rate_schedule(config(lr_scheduler="rex", warmup_steps=10), 110)
    # With the share z left: z / (0.1 + 0.9 z).
    assert [rate(5), rate(10), rate(60), rate(110)] == [0.5, 1.0, pytest.approx(0.5 / 0.55), 0.0]
    rate = learning_rate_schedule(config(lr_scheduler="rex", cosine_min_lr_ratio=0.2, warmup_ratio=0.0), 100)
    assert rate(100) == pytest.approx(0.2) and rate(50) == pytest.approx(0.2 + 0.8 * 0.5 / 0.55)


@pytest.mark.parametrize(
    ("num_steps", "warmup"), [(10, 0), (33, 0), (34, 1), (100, 3), (3333, 99), (3334, 100), (50_000, 100)]
)
def test_without_a_word_the_warm_up_is_axolotls(num_steps, warmup):
    """3 % of the steps, rounded down, at most 100."""
    rate = learning_rate_schedule(config(lr_scheduler="constant_with_warmup"), num_steps)
    assert sum(rate(step) < 1 for step in range(num_steps)) == warmup
    for none in ({"warmup_steps": 0}, {"warmup_ratio": 0.0}, {"lr_scheduler": "constant"}):
        assert learning_rate_schedule(config(**{"lr_scheduler": "constant_with_warmup", **none}), num_steps)(0) == 1.0


def test_a_quadratic_warm_up():
    rate = learning_rate_schedule(config(lr_quadratic_warmup=True, warmup_steps=10), 100)
    assert [rate(1), rate(5), rate(10)] == [pytest.approx(0.01), 0.25, 1.0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lr_div_factor": 5.0}, "belongs to `lr_scheduler: one_cycle`"),
        ({"lr_quadratic_warmup": True, "warmup_steps": 0}, "needs a warm-up"),
        ({"lr_quadratic_warmup": True, "lr_scheduler": "one_cycle", "warmup_steps": 2}, "a warm-up of its own"),
        ({"lr_scheduler": "reduce_lr_on_plateau"}, "depend on the losses seen so far"),
    ],
)
def test_what_a_schedule_cannot_use_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        config(**keys)


def test_a_warm_up_that_the_run_does_not_outlast_is_told():
    told = warmup_warning(config(warmup_steps=100), 2)
    assert told and "takes 100 steps and the run has 2" in told and "no further than 1%" in told
    assert warmup_warning(config(warmup_steps=100), 101) is None
    assert warmup_warning(config(), 3) is warmup_warning(config(warmup_steps=0), 1) is None
    whole = warmup_warning(config(warmup_ratio=1.0), 50)
    assert whole and whole.startswith("warmup_ratio")
