"""NEFTune's noise: as large as the paper says for each document, while training only."""

import torch

from allranks.model.build import build_model
from allranks.model.train_model import TrainModel
from tests.tiny_models import config_for, make_batch, one_process, saved_model

LENGTHS = (4, 16)


def embedded(model: TrainModel, *, train: bool) -> torch.Tensor:
    """What the first layer gets."""
    found = []
    layer = model.hf_model.model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0].detach()))
    model.module.train(train)
    model.forward_loss(make_batch(1, LENGTHS))
    handle.remove()
    return found[0][0]


def test_the_noise_of_a_document_depends_on_its_own_length():
    model = build_model(config_for(saved_model("llama"), neftune_noise_alpha=8.0), one_process())
    plain = embedded(model, train=False)
    noise = torch.stack([embedded(model, train=True) - plain for _ in range(30)])
    width = plain.shape[-1]
    for length, part in zip(LENGTHS, noise.split(LENGTHS, dim=1), strict=True):
        bound = 8.0 / (length * width) ** 0.5
        assert 0.95 * bound < part.abs().max() <= bound * 1.001
        assert abs(part.mean()) < 0.05 * bound
    assert torch.equal(plain, embedded(build_model(config_for(saved_model("llama")), one_process()), train=True))


def test_axolotls_older_name():
    assert config_for(saved_model("llama"), noisy_embedding_alpha=5.0).optimizer.neftune_noise_alpha == 5.0
