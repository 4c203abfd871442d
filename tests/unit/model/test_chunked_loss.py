"""The loss without full logits: exact, small, and made inside the output layer whatever that is."""

import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from allranks.errors import ConfigError
from allranks.model import chunked
from allranks.model.build import build_model
from allranks.model.chunked import PLAIN, Shaping, linear_cross_entropy, module_cross_entropy, torchs_covers
from allranks.model.head import logits_spec
from tests.tiny_models import config_for, make_batch, make_model, one_process, saved_model

LABELS, HIDDEN, VOCABULARY = 23, 8, 31


def layer_and_labels(bias=False, dtype=torch.float32):
    torch.manual_seed(3)
    layer = nn.Linear(HIDDEN, VOCABULARY, bias=bias, dtype=dtype)
    hidden = torch.randn(LABELS, HIDDEN, dtype=dtype, requires_grad=True)
    return layer, hidden, torch.randint(0, VOCABULARY, (LABELS,))


def gradients(loss, layer, hidden, scale=0.25):
    """As in a step: the sum becomes a mean only after the loss is made."""
    wanted = [hidden, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    return torch.autograd.grad(loss * scale, wanted)


needs_torchs = pytest.mark.skipif(
    not hasattr(nn, "LinearCrossEntropyOptions"), reason="torch has no linear_cross_entropy in chunks before 2.13"
)


@pytest.fixture(params=["ours", pytest.param("torch's", marks=needs_torchs)])
def whose(request, monkeypatch):
    """Who makes the loss where torch's function covers the case."""
    if request.param == "ours":
        monkeypatch.setattr(chunked, "torchs_covers", lambda *_: False)
    return request.param


@pytest.mark.usefixtures("whose")
@pytest.mark.parametrize("rows", [1, 5, 23, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shaping", [PLAIN, Shaping(scale=0.3), Shaping(cap=0.7), Shaping(scale=2.0, cap=0.7)])
def test_loss_and_gradients_equal_those_of_full_logits(rows, bias, shaping):
    layer, hidden, labels = layer_and_labels(bias)
    expected = F.cross_entropy(shaping(layer(hidden)), labels, reduction="sum")
    for loss in (
        linear_cross_entropy(hidden, layer.weight, layer.bias, labels, rows=rows, shaping=shaping),
        module_cross_entropy(layer, hidden, labels, rows=rows, shaping=shaping),
    ):
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-5)
        pairs = zip(gradients(loss, layer, hidden), gradients(expected, layer, hidden), strict=True)
        for ours, full in pairs:
            torch.testing.assert_close(ours, full, rtol=1e-5, atol=1e-6)
        expected = F.cross_entropy(shaping(layer(hidden)), labels, reduction="sum")  # its graph is used up


@needs_torchs
@pytest.mark.parametrize("rows", [1, 5, 23, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_labels", [1, 22, 23])
def test_torchs_function_and_ours_agree(monkeypatch, rows, bias, num_labels):
    layer, hidden, labels = layer_and_labels(bias)
    made = []
    for covers in (torchs_covers, lambda *_: False):
        monkeypatch.setattr(chunked, "torchs_covers", covers)
        # As under an optimizer step: gradients of several micro-batches add up.
        loss = linear_cross_entropy(hidden[:num_labels], layer.weight, layer.bias, labels[:num_labels], rows=rows)
        assert ("linear_cross_entropy" in loss.grad_fn.name()) == (covers is torchs_covers)
        made.append([loss, *gradients(loss, layer, hidden)])
    for theirs, ours in zip(*made, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-6)


@needs_torchs
def test_torchs_function_is_taken_only_where_it_covers_the_case(monkeypatch):
    def cases():
        layer, hidden, _ = layer_and_labels()
        yield "plain", True, (hidden, layer.weight, LABELS, PLAIN)
        yield "scale", False, (hidden, layer.weight, LABELS, Shaping(scale=0.3))
        yield "cap", False, (hidden, layer.weight, LABELS, Shaping(cap=0.7))
        yield "no label", False, (hidden, layer.weight, 0, PLAIN)
        yield "frozen", False, (hidden, layer.weight.detach(), LABELS, PLAIN)
        halves = layer_and_labels(dtype=torch.bfloat16)
        yield "16 bits", False, (halves[1], halves[0].weight, LABELS, PLAIN)
        yield "mixed", False, (hidden, halves[0].weight, LABELS, PLAIN)

    for name, covered, case in cases():
        assert torchs_covers(*case) is covered, name
    *_, plain = (case for name, _, case in cases() if name == "plain")
    with torch.no_grad():
        assert not torchs_covers(*plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torchs_covers(*plain)
    monkeypatch.delattr(nn, "LinearCrossEntropyOptions")
    assert not torchs_covers(*plain)


def test_a_frozen_layer_gets_no_gradient():
    layer, hidden, labels = layer_and_labels()
    layer.requires_grad_(False)
    linear_cross_entropy(hidden, layer.weight, None, labels, rows=5).backward()
    assert layer.weight.grad is None and hidden.grad is not None


@pytest.mark.parametrize("low_precision_weights", [False, True])
def test_in_bfloat16_the_softmax_is_in_float32_and_chunks_add_up_in_float32(low_precision_weights):
    layer, hidden, labels = layer_and_labels(dtype=torch.bfloat16 if low_precision_weights else torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not low_precision_weights):
        loss = linear_cross_entropy(hidden, layer.weight, None, labels, rows=4)
        logits = layer(hidden)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(logits.float(), labels, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-5)
    ours, full = gradients(loss, layer, hidden), gradients(expected, layer, hidden)
    for one, other in zip(ours, full, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one.float(), other.float(), rtol=2e-2, atol=1e-2)
    # Much nearer to the truth than summing six chunks in bfloat16 would be: rounded once.
    exact = layer.weight.detach().float().requires_grad_()
    inputs = hidden.detach().bfloat16().float()
    precise = F.cross_entropy((inputs @ exact.bfloat16().float().T), labels, reduction="sum") * 0.25
    (truth,) = torch.autograd.grad(precise, exact)
    assert (ours[1].float() - truth).norm() / truth.norm() < 5e-3


@pytest.mark.usefixtures("whose")
def test_its_gradients_are_used_once():
    layer, hidden, labels = layer_and_labels()
    loss = linear_cross_entropy(hidden, layer.weight, None, labels, rows=5)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"one backward pass only|backward called twice"):
        loss.backward()


def test_peak_memory_is_a_tenth_of_full_logits():
    """4096 labels over 150,000 tokens, by the kernel's own count of what the process held at most."""
    program = """
        import re, torch
        from pathlib import Path
        from allranks.model.chunked import linear_cross_entropy, rows_of_a_chunk

        def held(name):
            return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

        labels, vocabulary, width = 4096, 150_000, 16
        hidden = torch.randn(labels, width, requires_grad=True)
        weight = (torch.randn(vocabulary, width) / 4).requires_grad_()
        targets = torch.randint(0, vocabulary, (labels,))
        # Once small, so that libraries have what they load and allocate at their first call.
        linear_cross_entropy(hidden[:9], weight, None, targets[:9], rows=3).backward()
        hidden.grad = weight.grad = None
        before = held("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        rows = rows_of_a_chunk(labels, vocabulary, None)
        linear_cross_entropy(hidden, weight, None, targets, rows=rows).backward()
        gradients = (hidden.numel() + weight.numel()) * 4
        print(held("VmHWM") - before - gradients, labels * vocabulary * 4)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, timeout=200
    )
    peak, full = map(int, run.stdout.split())
    assert full > 2.4e9
    assert 0 < peak < 0.1 * full


@pytest.mark.parametrize(
    ("name", "shaping"),
    [("llama", PLAIN), ("gemma2", Shaping(cap=1.0)), ("cohere", Shaping(scale=0.0625)), ("mixtral", PLAIN)],
)
def test_what_a_model_does_to_its_logits_is_found(name, shaping):
    spec = logits_spec(make_model(name))
    assert spec is not None and spec.shaping == shaping


def test_a_model_that_does_something_else_to_its_logits_keeps_them_in_full():
    model = make_model("llama")
    plain = type(model).forward

    class Halved(type(model)):
        def forward(self, *args, logits_to_keep=0, **kwargs):
            out = plain(self, *args, logits_to_keep=logits_to_keep, **kwargs)
            out.logits = out.logits.sign() * out.logits.abs().sqrt()
            return out

    model.__class__ = Halved
    assert logits_spec(model) is None


KEYS = {
    "full": {"chunked_cross_entropy": False},
    "auto": {},
    "one row at a time": {"chunked_cross_entropy": True, "chunked_cross_entropy_num_chunks": 1000},
}


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere"])
def test_the_keys_change_how_the_loss_is_made_and_not_the_loss(name, monkeypatch):
    widest = []
    linear = F.linear

    def watch(inputs, weight, *rest):
        if len(weight) == 97:  # the vocabulary
            widest.append(inputs.numel() // inputs.shape[-1])
        return linear(inputs, weight, *rest)

    monkeypatch.setattr(F, "linear", watch)
    monkeypatch.setattr(chunked, "torchs_covers", lambda *_: False)  # it does not call that
    batch = make_batch(1)
    losses, seen = {}, {}
    for way, keys in KEYS.items():
        widest.clear()
        model = build_model(config_for(saved_model(name), **keys), one_process())
        losses[way] = model.forward_loss(batch)
        seen[way] = (len(widest), max(widest))
    num_labels = len(batch.labels)
    assert seen == {"full": (1, num_labels), "auto": (1, num_labels), "one row at a time": (num_labels, 1)}
    for way in KEYS:
        torch.testing.assert_close(losses[way], losses["full"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"cut_cross_entropy": True}, r"cut_cross_entropy: .*CUDA only.*`chunked_cross_entropy`"),
        (
            {"plugins": ["axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"]},
            r"cut_cross_entropy: .*CUDA only",
        ),
        ({"liger_fused_linear_cross_entropy": True}, r"liger_fused_linear_cross_entropy: .*CUDA only.*chunks"),
        ({"liger_rms_norm": True}, r"liger_rms_norm: .*CUDA only.*torch_compile"),
        ({"liger_swiglu": True}, r"liger_glu_activation: .*CUDA only"),
    ],
)
def test_kernels_for_cuda_are_refused_on_the_cpu(keys, said):
    with pytest.raises(ConfigError, match=said):
        build_model(config_for(saved_model("llama"), **keys), one_process())
