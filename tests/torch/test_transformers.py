"""`patch_transformers`: the losses and gradients of the model itself, without its logits, and nothing else changed."""

from __future__ import annotations

import copy
import inspect
import io
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from softgrad.torch import (
    CrossEntropyLoss,
    cross_entropy,
    linear_cross_entropy,
    linear_prediction_stats,
    patch_transformers,
    prediction_stats,
    unpatch_transformers,
)

VOCABULARY, WIDTH, LENGTH = 101, 16, 12
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 64}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
BERT = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
BERT |= {"is_decoder": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
T = transformers

# What each adds: GPT-2 ties by default; Gemma 2 caps its logits; Cohere and Granite scale them; Mixtral adds a loss of
# its routers; BERT's head has a bias and a layer before it; BART takes its loss by nn.CrossEntropyLoss, unshifted.
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZES)),
    "llama tied": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "gpt2": lambda: T.GPT2LMHeadModel(T.GPT2Config(**GPT2)),
    "gpt2 untied": lambda: T.GPT2LMHeadModel(T.GPT2Config(**GPT2, tie_word_embeddings=False)),
    "qwen2": lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**SIZES)),
    "qwen2 tied": lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "gemma2": lambda: T.Gemma2ForCausalLM(T.Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0)),
    "gemma2 untied": lambda: T.Gemma2ForCausalLM(
        T.Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.5, tie_word_embeddings=False)
    ),
    "cohere": lambda: T.CohereForCausalLM(T.CohereConfig(**SIZES, logit_scale=0.3)),
    "granite": lambda: T.GraniteForCausalLM(T.GraniteConfig(**SIZES, logits_scaling=3.0)),
    "mixtral": lambda: T.MixtralForCausalLM(
        T.MixtralConfig(**SIZES, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.1)
    ),
    "bert": lambda: T.BertLMHeadModel(T.BertConfig(**BERT)),
    "bart": lambda: T.BartForCausalLM(
        T.BartConfig(vocab_size=VOCABULARY, d_model=WIDTH, decoder_layers=1, decoder_attention_heads=2, dropout=0.0)
    ),
}
OWN = [name for name in MODELS if name.split()[0] in {"llama", "gpt2", "qwen2", "gemma2"}]


def build(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = MODELS[name]().train()
    for parameter in model.parameters():  # larger logits than those of a fresh model; a bias that is not 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, VOCABULARY, (2, LENGTH), generator=generator)
    labels = tokens.clone()
    labels[0, :4] = -100
    labels[1, -3:] = -100
    return {"input_ids": tokens, "labels": labels}


def step(model: Any, **inputs: Any) -> tuple[Any, dict[str, Tensor]]:
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same_step(model: Any, **inputs: Any) -> Any:
    """Compare a step of the model with one of its patched self, and return what the latter puts out."""
    output, gradients = step(model, **inputs)
    patched, its_gradients = step(patch_transformers(model), **inputs)
    assert patched.logits is None
    assert "logits" not in patched
    assert patched.loss.dtype == output.loss.dtype == torch.float32
    torch.testing.assert_close(patched.loss, output.loss, rtol=2e-6, atol=0)
    assert its_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(its_gradients[name], gradient, rtol=0, atol=5e-6 * scale + 1e-9, msg=name)
    return patched


EXTRAS = {
    "labels": {},
    "num_items_in_batch": {"num_items_in_batch": torch.tensor(7)},
    "a number of items": {"num_items_in_batch": 7},
    "ignore_index": {"ignore_index": 5},
    "shift_labels": {"shift_labels": torch.arange(2 * LENGTH).reshape(2, LENGTH) % VOCABULARY},
}


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("name", OWN)
def test_loss_and_gradients(name: str, extra: str) -> None:
    inputs = batch()
    if extra == "ignore_index":
        inputs["labels"][inputs["labels"] == -100] = 5
    same_step(build(name), **inputs, **EXTRAS[extra])


@pytest.mark.parametrize("name", sorted(MODELS.keys() - set(OWN)))
def test_other_models(name: str) -> None:
    model, inputs = build(name), batch()
    output = same_step(model, **inputs)
    if name == "mixtral":
        assert output.aux_loss > 0


def test_every_label_ignored() -> None:
    inputs = batch()
    inputs["labels"].fill_(-100)
    output, gradients = step(patch_transformers(build("llama")), **inputs)
    assert torch.isnan(output.loss)  # as the model's own
    assert all(not gradient.any() for gradient in gradients.values())


def test_labels_by_position() -> None:
    model, inputs = build("llama"), batch()
    place = list(inspect.signature(model.forward).parameters).index("labels")
    arguments = [inputs["input_ids"], *[None] * (place - 1), inputs["labels"]]
    loss = model(*arguments).loss
    output = patch_transformers(model)(*arguments)
    assert output.logits is None
    torch.testing.assert_close(output.loss, loss)


def test_a_tuple() -> None:
    model, inputs = build("mixtral"), batch()
    plain = model(**inputs, return_dict=False)
    patched = patch_transformers(model)(**inputs, return_dict=False)
    assert len(patched) == len(plain)
    logits = next(i for i, value in enumerate(plain) if isinstance(value, Tensor) and value.shape[-1:] == (VOCABULARY,))
    assert patched[logits] is None
    torch.testing.assert_close(patched[0], plain[0])


def test_some_logits() -> None:
    model, inputs = build("gemma2"), batch()
    inputs["labels"] = inputs["labels"][:, -5:]
    same_step(model, **inputs, logits_to_keep=5)


class Sizes(TorchDispatchMode):
    """The largest tensor that an operation has put out."""

    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and not leaf.is_meta:  # a shape without memory
                self.largest = max(self.largest, leaf.numel(), leaf.untyped_storage().nbytes() // leaf.itemsize)
        return output


@pytest.mark.parametrize("name", ["llama", "llama with an adapter", "gpt2", "gemma2"])
def test_no_logits_in_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, length = 30_000, 400
    for sizes in (SIZES, GPT2):
        monkeypatch.setitem(sizes, "vocab_size", vocabulary)
    for sizes, names in ((SIZES, "max_position_embeddings"), (GPT2, "n_positions")):
        monkeypatch.setitem(sizes, names, length)
    model = build(name.split()[0])
    if "adapter" in name:
        model.lm_head = Adapter(model.lm_head)
    patch_transformers(model)
    tokens = torch.randint(3, vocabulary, (2, length), generator=torch.Generator().manual_seed(2))
    logits = tokens.numel() * vocabulary

    with torch.no_grad(), Sizes() as sizes_of_the_plain:
        model(input_ids=tokens, labels=tokens)
    assert sizes_of_the_plain.largest >= logits  # what is looked for would be seen

    tracemalloc.start()  # NumPy's arrays
    with Sizes() as seen:
        model(input_ids=tokens, labels=tokens).loss.backward()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen.largest < 0.75 * logits
    assert peak < 0.9 * 4 * logits


@pytest.mark.parametrize("name", OWN)
def test_what_has_no_labels_is_as_before(name: str) -> None:
    model, tokens = build(name).eval(), batch()["input_ids"]
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(tokens), "pad_token_id": 0}

    def results() -> list[Tensor]:
        with torch.no_grad():
            return [
                model.generate(tokens, **settings),
                model(tokens).logits,
                model(tokens, logits_to_keep=3).logits,
                model(tokens, logits_to_keep=torch.tensor([1, 4])).logits,
            ]

    before = results()
    patch_transformers(model)
    for one, other in zip(results(), before, strict=True):
        assert torch.equal(one, other)
    model(tokens).logits.sum().backward()  # with gradients, too


def test_evaluation() -> None:
    model, inputs = build("gemma2").eval(), batch()
    with torch.no_grad():
        plain = model(**inputs)
        patched = patch_transformers(model)(**inputs)
        assert torch.equal(patched.logits, plain.logits)
        assert torch.equal(patched.loss, plain.loss)
        without = patch_transformers(model, logits_in_evaluation=False)(**inputs)
    assert without.logits is None
    torch.testing.assert_close(without.loss, plain.loss)


def test_transformers_is_not_imported() -> None:
    code = "import sys, softgrad.torch; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_signature_is_the_model_s() -> None:
    model = build("qwen2")
    assert inspect.signature(patch_transformers(model).forward) == inspect.signature(build("qwen2").forward)


def test_twice_is_once_and_back() -> None:
    model, inputs = build("llama"), batch()
    names = set(model.__dict__), set(model.lm_head.__dict__), type(model)
    state = list(model.state_dict())
    assert patch_transformers(model) is model
    forward = model.forward
    assert patch_transformers(model) is model
    assert model.forward == forward
    assert list(model.state_dict()) == state
    assert unpatch_transformers(model) is model
    assert (set(model.__dict__), set(model.lm_head.__dict__), type(model)) == names
    assert model(**inputs).logits is not None
    assert unpatch_transformers(model) is model


def test_a_forward_of_the_instance_is_kept() -> None:
    model, inputs = build("llama"), batch()
    calls = []
    original = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    counted.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    model.forward = counted
    assert patch_transformers(model)(**inputs).logits is None
    assert calls == [1]
    assert unpatch_transformers(model).forward is counted


def test_wrapped_afterwards() -> None:
    """As `accelerate` does for mixed precision: unpatching then lets calls through."""
    model, inputs = build("llama"), batch()
    patched = patch_transformers(model).forward
    model.forward = lambda *args, **kwargs: patched(*args, **kwargs)
    assert model(**inputs).logits is None
    assert unpatch_transformers(model)(**inputs).logits is not None


class Wrapper(nn.Module):
    """As PEFT's: it has the names of the model inside, whose forward it calls."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def get_output_embeddings(self) -> Any:
        return self.model.get_output_embeddings()

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        return self.model.forward(input_ids, labels=labels)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("outside", [False, True])
def test_wrappers(inside: bool, outside: bool) -> None:
    model, inputs = build("llama"), batch()
    loss = model(**inputs).loss
    wrapper = Wrapper(model)
    if inside:
        patch_transformers(model)
    if outside:
        patch_transformers(wrapper)
    output = wrapper(**inputs)
    assert (output.logits is None) == (inside or outside)
    torch.testing.assert_close(output.loss, loss)


def test_copies() -> None:
    model, inputs = patch_transformers(build("llama")), batch()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(3)
    assert other(**inputs).logits is None
    assert other(**inputs).loss > model(**inputs).loss
    unpatch_transformers(other)
    assert model(**inputs).logits is None
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded(**inputs).logits is not None  # documented
    assert patch_transformers(loaded)(**inputs).logits is None


def test_another_head() -> None:
    model = patch_transformers(build("llama"))
    model.resize_token_embeddings(VOCABULARY + 20)
    inputs = batch()
    output = model(**inputs)
    assert output.logits is None
    torch.testing.assert_close(output.loss, unpatch_transformers(model)(**inputs).loss)


def test_gradient_checkpointing() -> None:
    model = build("llama")
    enable = (
        getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    )  # its old name
    enable()
    same_step(model, **batch(), use_cache=False)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(autocast: bool) -> None:
    model, inputs = build("llama"), batch()
    if not autocast:
        model = model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = model(**inputs).loss
        output = patch_transformers(model)(**inputs)
    output.loss.backward()
    assert output.loss.dtype == plain.dtype == torch.float32
    assert output.logits is None
    assert output.loss.detach() != output.loss.detach().bfloat16()  # not rounded on the way
    torch.testing.assert_close(output.loss, plain, rtol=5e-3, atol=0)
    assert model.lm_head.weight.grad.dtype == model.lm_head.weight.dtype


def test_compiled() -> None:
    model, inputs = build("gemma2"), batch()
    output, gradients = step(patch_transformers(model), **inputs, use_cache=False)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    other = compiled(**inputs, use_cache=False)
    other.loss.backward()
    assert other.logits is None
    torch.testing.assert_close(other.loss, output.loss)
    torch.testing.assert_close(model.lm_head.weight.grad, gradients["model.embed_tokens.weight"], rtol=1e-4, atol=1e-6)


# Losses that are not the library's: followed, or refused; never another one.


def shifted(logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
    """As models wrote it before there was a loss function, and with label smoothing."""
    logits = logits[..., :-1, :].contiguous()
    labels = labels[..., 1:].contiguous()
    loss = nn.CrossEntropyLoss(label_smoothing=0.2)
    return loss(logits.view(-1, logits.size(-1)), labels.view(-1).to(logits.device))


def scaled_and_capped(logits: Tensor, labels: Tensor, vocab_size: int, **_: Any) -> Tensor:
    logits = -3.0 * torch.tanh(input=logits.float() / 2.0 * 0.5)
    return functional.cross_entropy(input=logits.reshape((-1, vocab_size)), target=labels.reshape(-1), reduction="sum")


def by_row(logits: Tensor, labels: Tensor, vocab_size: int, **_: Any) -> Tensor:
    losses = functional.cross_entropy(logits.view(-1, vocab_size), labels.view(-1), reduction="none")
    return (losses * torch.linspace(-1, 1, len(losses))).sum()


def of_the_first(logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
    return functional.cross_entropy(logits[0, 2:-1], labels[0, 2:-1]) + functional.cross_entropy(logits[1], labels[1])


def by_softgrad(logits: Tensor, labels: Tensor, vocab_size: int, **_: Any) -> Tensor:
    options = {"label_smoothing": 0.1, "z_loss": 0.2, "temperature": 0.7, "logit_scale": -1.5, "softcap": 3.0}
    weights = {"weight": torch.linspace(1, 2, vocab_size), "sample_weight": torch.linspace(0, 1, labels.numel())}
    return cross_entropy(2 * logits.view(-1, vocab_size), labels.view(-1), **weights, **options)


def by_softgrad_once_capped(logits: Tensor, labels: Tensor, vocab_size: int, **_: Any) -> Tensor:
    capped = -(2.0 * torch.tanh(logits / 2.0))
    loss = CrossEntropyLoss(reduction="sum", logit_scale=-1.5, z_loss=0.1)
    return loss(capped.view(-1, vocab_size), labels.view(-1))


def by_rows_in_turn(logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
    assert len(logits) == len(labels)
    losses = [cross_entropy(one, own) for one, own in zip(logits, labels, strict=True)]
    return torch.stack(losses).sum()


@pytest.mark.parametrize(
    "loss",
    [shifted, scaled_and_capped, by_row, of_the_first, by_softgrad, by_softgrad_once_capped, by_rows_in_turn],
)
def test_other_losses_are_followed(loss: Callable[..., Tensor]) -> None:
    model = build("llama")
    model.loss_function = loss
    same_step(model, **batch())


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another function": (lambda logits: torch.logsumexp(logits, -1).sum(), "passes its logits to logsumexp"),
    "a method": (lambda logits: logits.logsumexp(-1).sum(), r"uses \.logsumexp of its logits"),
    "a sum": (lambda logits: logits + 1, "adds something"),
    "a mask": (lambda logits: logits.__setitem__((..., 3), -1e9), "writes into"),
    "a part of the classes": (lambda logits: logits[..., :50], "takes a part of the classes"),
    "one class": (lambda logits: logits[:, :, 3], "takes a part of the classes"),
    "chosen rows": (lambda logits: logits[torch.ones(2, LENGTH, dtype=torch.bool)], "picks from its logits"),
    "another view": (lambda logits: logits.view(-1), r"views its logits of shape \(2, 12, 101\) as \(2424,\)"),
    "a learnt scale": (lambda logits: logits * nn.Parameter(torch.ones(())), "scales its logits by a Parameter"),
    "two caps": (lambda logits: logits.tanh().tanh(), "twice"),
    "another axis": (
        lambda logits: functional.cross_entropy(logits, torch.zeros(2, VOCABULARY)),
        r"of logits of shape",
    ),
    "a list": (lambda logits: torch.cat([logits[0], logits[1]]), "passes its logits to cat"),
    "a tuple behind a tensor": (lambda logits: torch.stack((torch.ones(3), logits)), "passes its logits to stack"),
    "a keyword": (lambda logits: torch.vstack(tensors=[logits, logits]), "passes its logits to vstack"),
    "log-probabilities": (
        lambda logits: functional.nll_loss(torch.log_softmax(logits[0], -1), torch.zeros(LENGTH).long()),
        "passes its logits to log_softmax",
    ),
    "another loss": (
        lambda logits: functional.nll_loss(logits[0], torch.zeros(LENGTH).long()),
        "passes its logits to nll_loss",
    ),
    "statistics": (lambda logits: prediction_stats(logits), "passes its logits to prediction_stats"),
    "statistics of a layer": (
        lambda logits: linear_prediction_stats(logits, torch.ones(3, VOCABULARY)),
        "passes its logits to linear_prediction_stats",
    ),
    "another head": (
        lambda logits: linear_cross_entropy(logits, torch.ones(3, VOCABULARY), torch.zeros(2, LENGTH).long()),
        "passes its logits to linear_cross_entropy",
    ),
    "memory to write over": (
        lambda logits: cross_entropy(logits[0], torch.zeros(LENGTH).long(), inplace=True),
        "takes cross_entropy with inplace=True",
    ),
    "a cap over a cap": (
        lambda logits: cross_entropy(logits[0].tanh(), torch.zeros(LENGTH).long(), softcap=2.0),
        "caps them twice",
    ),
    "a learnt scale of a cap": (
        lambda logits: cross_entropy(logits[0].tanh(), torch.zeros(LENGTH).long(), logit_scale=torch.tensor(2.0)),
        "by a tensor",
    ),
    "no loss at all": (lambda logits: torch.zeros((), requires_grad=True), "takes its loss elsewhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_losses_are_refused(case: str) -> None:
    model, inputs = patch_transformers(build("llama")), batch()
    loss, message = REFUSED[case]
    kept = model.loss_function
    model.loss_function = lambda logits, labels, **_: loss(logits)
    with pytest.raises(NotImplementedError, match="LlamaForCausalLM.*" + message + ".*unpatch_transformers"):
        model(**inputs)
    model.loss_function = kept
    assert model(inputs["input_ids"]).logits.shape == (2, LENGTH, VOCABULARY)  # an error leaves nothing behind
    assert model(**inputs).logits is None


@pytest.mark.parametrize("size_average", [None, False, True])
@pytest.mark.parametrize("reduce", [None, False, True])
def test_deprecated_arguments(size_average: bool | None, reduce: bool | None) -> None:
    model = build("llama")

    def loss(logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
        return functional.cross_entropy(logits[0], labels[0], size_average=size_average, reduce=reduce).sum()

    model.loss_function = loss
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "size_average and reduce args")
        same_step(model, **batch())


# --- adapters, and weights that come and go ---


class Adapter(nn.Module):
    """LoRA as PEFT computes it: a base layer, and for each adapter ``s·B(A(dropout(x)))``."""

    def __init__(self, base: nn.Linear, ranks: tuple[int, ...] = (4,), bias: bool = False) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.dropout, self.scaling = nn.Dropout(0.3), [2.0, 0.7][: len(ranks)]
        self.lora_a = nn.ModuleList(nn.Linear(base.in_features, rank, bias=False) for rank in ranks)
        self.lora_b = nn.ModuleList(nn.Linear(rank, base.out_features, bias=bias) for rank in ranks)
        self.magnitude: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        result = self.base_layer(x)
        dtype = result.dtype
        for a, b, scaling in zip(self.lora_a, self.lora_b, self.scaling, strict=True):
            result = result + b(a(self.dropout(x.to(a.weight.dtype)))) * scaling
        if self.magnitude is not None:  # as DoRA
            result = result * self.magnitude
        return result.to(dtype)


@pytest.mark.parametrize(("ranks", "bias"), [((4,), False), ((4, 3), True)])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_adapters_of_the_head(name: str, ranks: tuple[int, ...], bias: bool) -> None:
    model, inputs = build(name), batch()
    model.set_output_embeddings(Adapter(model.get_output_embeddings(), ranks, bias))
    steps = []
    for patched in (False, True):
        if patched:
            patch_transformers(model)
        torch.manual_seed(3)
        steps.append(step(model, **inputs))
    (plain, expected), (output, found) = steps
    assert output.logits is None
    torch.testing.assert_close(output.loss, plain.loss, rtol=2e-6, atol=0)
    assert found.keys() == expected.keys()
    assert any("lora_b.0" in key for key in found)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=0, atol=5e-6 * float(gradient.abs().max()), msg=key)


def test_adapters_added_afterwards() -> None:
    model, inputs = patch_transformers(build("llama")), batch()
    model.lm_head = Adapter(model.lm_head).eval()
    output = model(**inputs)
    assert output.logits is None
    torch.testing.assert_close(output.loss, unpatch_transformers(model)(**inputs).loss)
    assert "forward" not in model.lm_head.base_layer.__dict__


def test_adapters_of_another_type() -> None:
    """A half-precision base with adapters in float32, as PEFT makes them."""
    model, inputs = build("llama").bfloat16(), batch()
    model.lm_head = Adapter(model.lm_head).eval()
    plain, expected = step(model, **inputs)
    output, found = step(patch_transformers(model), **inputs)
    torch.testing.assert_close(output.loss, plain.loss, rtol=5e-3, atol=0)
    for key in ("lm_head.lora_a.0.weight", "lm_head.lora_b.0.weight"):
        assert found[key].dtype == torch.float32
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0.03 * float(expected[key].abs().max()))


def test_adapters_that_are_refused() -> None:
    model = patch_transformers(build("llama"))
    model.lm_head = Adapter(model.lm_head)
    model.lm_head.magnitude = torch.ones(VOCABULARY)
    with pytest.raises(NotImplementedError, match=r"LlamaForCausalLM scales its logits by a Tensor"):
        model(**batch())
    model.lm_head = Adapter(build("llama").lm_head)
    model.lm_head.base_layer.weight = nn.Parameter(model.lm_head.base_layer.weight.data.as_subclass(Quantised))
    with pytest.raises(NotImplementedError, match=r"adapters around an output embedding whose weight is no plain"):
        model(**batch())


class Quantised(Tensor):
    """A weight with a meaning of its own."""


def hook(layer: nn.Module, weight: Tensor) -> None:
    """Offload a layer as `accelerate` does: its weight has memory during its forward pass only."""
    layer._old_forward = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        layer.weight = nn.Parameter(weight, requires_grad=False)
        try:
            return layer._old_forward(*args, **kwargs)
        finally:
            layer.weight = nn.Parameter(weight.to("meta"), requires_grad=False)

    layer.forward = forward
    layer.weight = nn.Parameter(weight.to("meta"), requires_grad=False)


@pytest.mark.parametrize("first", ["the patch", "the hook"])
def test_an_offloaded_head(first: str) -> None:
    model, inputs = build("llama"), batch()
    weight = model.lm_head.weight.detach().clone()
    loss = model(**inputs).loss
    if first == "the patch":
        patch_transformers(model)
    hook(model.lm_head, weight)
    patch_transformers(model)
    output = model(**inputs)
    output.loss.backward()
    assert output.logits is None
    assert model.lm_head.weight.is_meta
    torch.testing.assert_close(output.loss, loss)
    again = unpatch_transformers(model)(**inputs)  # the hook stays
    assert again.logits.shape == (2, LENGTH, VOCABULARY)
    torch.testing.assert_close(again.loss, loss)


def partitioned(weight: Tensor) -> None:
    """As DeepSpeed ZeRO-3 leaves a weight between passes."""
    weight.data = torch.empty(0)


def freed(weight: Tensor) -> None:
    """As FSDP leaves a weight whose layer is sharded by itself."""
    weight.untyped_storage().resize_(0)


@pytest.mark.parametrize(
    ("lose", "message"),
    [(partitioned, r"has shape \(0,\), as DeepSpeed ZeRO-3"), (freed, "has no memory, as fully_shard")],
)
def test_a_weight_that_goes_after_the_layer(lose: Callable[[Tensor], None], message: str) -> None:
    model, inputs = patch_transformers(build("llama")), batch()
    weight = model.lm_head.weight
    whole = weight.detach().clone()
    handle = model.lm_head.register_forward_hook(lambda *_: lose(weight))
    with pytest.raises(NotImplementedError, match=rf"LlamaForCausalLM: the weight of the output embedding {message}"):
        model(**inputs)
    handle.remove()
    model.lm_head.weight = nn.Parameter(whole)
    assert model(**inputs).logits is None


def test_a_weight_on_another_device() -> None:
    model, inputs = patch_transformers(build("llama")), batch()
    model.lm_head.to("meta")
    with pytest.raises(NotImplementedError, match=r"the weight .* is on meta and its input on cpu: it is offloaded"):
        model(**inputs)


def test_a_weight_that_is_partitioned_from_the_start() -> None:
    model = build("llama")
    partitioned(model.lm_head.weight)
    with pytest.raises(NotImplementedError, match=r"LlamaForCausalLM: the weight of the output embedding .*ZeRO-3"):
        patch_transformers(model)


class Head(nn.Linear):
    """A layer that may compute something else."""


def test_models_that_are_refused() -> None:
    with pytest.raises(TypeError, match=r"model: Linear has no output embedding"):
        patch_transformers(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model: LlamaModel has no output embedding"):
        patch_transformers(build("llama").model)
    model = build("llama")
    model.lm_head = Head(WIDTH, VOCABULARY, bias=False)
    with pytest.raises(
        TypeError, match=r"the output embedding of LlamaForCausalLM is a .*\.Head, not a plain torch\.nn\.Linear"
    ):
        patch_transformers(model)
    model = build("llama")
    model.lm_head.forward = lambda x: x
    with pytest.raises(TypeError, match=r"has a forward of its own"):
        patch_transformers(model)
    model = build("llama")
    model.forward = lambda input_ids: input_ids
    with pytest.raises(TypeError, match=r"LlamaForCausalLM\.forward takes no labels"):
        patch_transformers(model)


def test_a_head_that_is_replaced_by_another_kind() -> None:
    model = patch_transformers(build("llama"))
    model.lm_head = Head(WIDTH, VOCABULARY, bias=False)
    with pytest.raises(TypeError, match=r"is a .*\.Head"):
        model(**batch())
