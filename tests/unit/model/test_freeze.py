"""`unfrozen_parameters`: what matches is trained, nothing else, and a checkpoint still holds the whole model."""

import pytest
import torch

from allranks.checkpoint.state import RunState
from allranks.errors import ConfigError
from allranks.export.export import export
from allranks.model.build import build_model
from allranks.train.checkpoint import Checkpointer
from allranks.train.storage import ALONE
from allranks.train.strategies import make_strategy
from tests.tiny_models import config_for, make_batch, one_process, saved_model


def built(**keys):
    cfg = config_for(saved_model("llama"), **keys)
    return cfg, build_model(cfg, one_process())


def test_only_what_matches_is_trained():
    _, model = built(unfrozen_parameters=["^lm_head.weight$", "model.layers.1.mlp.[a-z_]+.weight"], bf16=True)
    trained = {name for name, p in model.hf_model.named_parameters() if p.requires_grad}
    mlp = {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert trained == {"lm_head.weight", *mlp}
    assert model.num_trainable == sum(p.numel() for p in model.hf_model.parameters() if p.requires_grad)
    assert model.hf_model.model.embed_tokens.weight.dtype == torch.bfloat16, "frozen weights need no float32"


def test_it_trains_saves_goes_on_and_exports_the_whole_model(tmp_path):
    keys = {"unfrozen_parameters": ["lm_head"], "optimizer": "adamw_torch"}

    def start():
        cfg, model = built(**keys)
        strategy = make_strategy(cfg, model)
        folder = tmp_path / "checkpoints"
        saver = Checkpointer(
            folder,
            strategy.state,
            group=None,
            storage=ALONE,
            asynchronous=False,
            keep=None,
            write_extras=model.config.save_pretrained,
        )
        return cfg, model, strategy, saver

    def step(model, strategy):
        strategy.backward(model.forward_loss(make_batch(1)))
        strategy.step()

    cfg, model, strategy, saver = start()
    before = {name: p.detach().clone() for name, p in model.hf_model.named_parameters()}
    step(model, strategy)
    path = saver.save(1, RunState(1, cfg.flat(), adapter=False))
    moved = {name for name, p in model.hf_model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"lm_head.weight"}
    export(path, tmp_path / "out", dtype="float32")
    _, exported = built(base_model=str(tmp_path / "out"))
    for name, parameter in exported.hf_model.named_parameters():
        assert torch.equal(parameter, model.hf_model.get_parameter(name)), name

    _, again, resumed, loader = start()
    loader.load(path)
    for one, other in ((model, strategy), (again, resumed)):
        step(one, other)
    assert torch.equal(model.hf_model.lm_head.weight, again.hf_model.lm_head.weight)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["model.layers.7"], r"nothing is called model\.layers\.7; names are such as model\.embed_tokens\.weight"),
        (["^lm_head.weight$[:10]"], "rows of a parameter cannot be chosen"),
        (["lm_head("], "is not a regular expression"),
    ],
)
def test_what_cannot_be_meant_is_refused(patterns, message):
    with pytest.raises(ConfigError, match=message):
        built(unfrozen_parameters=patterns)
