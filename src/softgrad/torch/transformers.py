"""Hugging Face models trained without logits: the head promises them, and the loss is computed from the promise."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from types import EllipsisType, MethodType
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from softgrad.torch._call import PLAIN
from softgrad.torch._legacy import legacy_reduction
from softgrad.torch.linear import linear_cross_entropy
from softgrad.torch.loss import cross_entropy

__all__ = ["patch_transformers", "unpatch_transformers"]

Model = TypeVar("Model", bound=nn.Module)

PATCH = "_softgrad_patch"  # where a patched model keeps its `_Patch`
CALL = "_softgrad_call"  # where a layer that promises finds the `_Call` it is in, or None
HOOKED = "_old_forward"  # where accelerate keeps the forward of a layer that it has hooked


@dataclass
class _Patch:
    """State kept in the model itself, so that copies of the model have their own."""

    logits_in_evaluation: bool
    replaced: Callable[..., Any] | None  # a forward that the instance had of its own


@dataclass
class _Call:
    """One forward pass of a patched model."""

    model: str
    lost: bool = False  # whether a loss has been taken

    def refuse(self, what: str) -> NoReturn:
        """Raise for an operation on the logits that has no counterpart without them."""
        raise NotImplementedError(
            f"{self.model} {what}, which patch_transformers cannot follow without making the logits; "
            "call unpatch_transformers(model) to train it"
        )


class _Term(NamedTuple):
    """One layer's part ``s·(x Wᵀ + b)`` of the logits."""

    x: Tensor  # (..., D)
    # The tensors that the layer had during its forward: hooks (accelerate's offloading) may give it others afterwards.
    weight: Tensor
    bias: Tensor | None
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class PromisedLogits:
    """Logits ``o = s·Σ_i s_i·(x_i W_iᵀ + b_i)``, or ``c·tanh`` of that, that have not been computed.

    The sum has one term for a plain output embedding, and one more for each adapter (LoRA) around it.  The object does
    what models do to logits between their head and their loss: scaling, a softcap, a change of type or shape, a slice
    of positions, cross-entropy.  It refuses anything else, so that no loss silently becomes another one.
    """

    call: _Call
    terms: tuple[_Term, ...]
    classes: int
    dtype: torch.dtype
    scale: float = 1.0  # s
    cap: float | None = None  # c, once tanh has been taken

    # --- the form of a tensor ---

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.terms[0].x.shape[:-1], self.classes))

    @property
    def ndim(self) -> int:
        return self.terms[0].x.ndim

    @property
    def device(self) -> torch.device:
        return self.terms[0].x.device

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return self.shape[0]

    def contiguous(self) -> PromisedLogits:
        return self

    def to(self, *args: Any, **kwargs: Any) -> PromisedLogits:
        dtype = self.dtype
        for arg in (*args, *kwargs.values()):
            if isinstance(arg, (torch.dtype, Tensor)):
                dtype = arg if isinstance(arg, torch.dtype) else arg.dtype
            if isinstance(arg, (str, torch.device, Tensor)):
                device = arg.device if isinstance(arg, Tensor) else torch.device(arg)
                if device != self.device:
                    self.call.refuse(f"moves its logits from {self.device} to {device}")
        return replace(self, dtype=dtype)

    def view(self, *shape: Any) -> PromisedLogits:
        size = torch.empty(self.shape, device="meta").view(*shape).shape  # PyTorch's rules, and its errors
        if size[-1:] != self.shape[-1:]:
            self.call.refuse(f"views its logits of shape {tuple(self.shape)} as {tuple(size)}")
        return self._of_rows(lambda x: x.reshape(*size[:-1], x.shape[-1]))

    reshape = view

    def __getitem__(self, index: Any) -> PromisedLogits:
        index = index if isinstance(index, tuple) else (index,)
        if not all(isinstance(i, (int, slice, EllipsisType)) for i in index):
            self.call.refuse("picks from its logits by a tensor, None or a list")
        after = len(index) - index.index(...) - 1 if ... in index else 0
        reaches_classes = after > 0 or len(index) - (... in index) == self.ndim
        if reaches_classes and index[-1] != slice(None):
            self.call.refuse("takes a part of the classes of its logits")
        return self._of_rows(lambda x: x[index])

    def _of_rows(self, change: Callable[[Tensor], Tensor]) -> PromisedLogits:
        return replace(self, terms=tuple(term._replace(x=change(term.x)) for term in self.terms))

    # --- arithmetic on each logit ---

    def _scaled(self, factor: Any, inverse: bool = False) -> PromisedLogits:
        if not isinstance(factor, Real):
            self.call.refuse(f"scales its logits by a {type(factor).__name__}")
        by = 1 / float(factor) if inverse else float(factor)
        return replace(self, scale=self.scale * by) if self.cap is None else replace(self, cap=self.cap * by)

    def __mul__(self, factor: Any) -> PromisedLogits:
        return self._scaled(factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> PromisedLogits:
        return self._scaled(divisor, inverse=True)

    def __neg__(self) -> PromisedLogits:
        return self._scaled(-1.0)

    def tanh(self) -> PromisedLogits:
        if self.cap is not None:
            self.call.refuse("takes tanh of its logits twice")
        return replace(self, cap=1.0)

    def __add__(self, other: Any) -> PromisedLogits:
        """Return the sum with an adapter's part of the same logits."""
        if not isinstance(other, PromisedLogits) or other.shape != self.shape or self.cap or other.cap:
            self.call.refuse("adds something to its logits")
        terms = tuple(term._replace(scale=term.scale * one.scale) for one in (self, other) for term in one.terms)
        return replace(self, terms=terms, scale=1.0, dtype=torch.promote_types(self.dtype, other.dtype))

    def __radd__(self, other: Any) -> NoReturn:
        self.call.refuse("adds something to its logits")

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        self.call.refuse("writes into its logits")

    # --- the loss, or a refusal ---

    def cross_entropy(
        self,
        target: Any,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        logit_scale: float | Tensor = 1.0,
        softcap: float | None = None,
        inplace: bool = False,
        **options: Any,
    ) -> Tensor:
        """`torch.nn.functional.cross_entropy` and `softgrad.torch.cross_entropy`, from the promise."""
        if self.ndim != 2:
            self.call.refuse(f"takes cross_entropy of logits of shape {tuple(self.shape)}")
        if inplace:
            self.call.refuse("takes cross_entropy with inplace=True")
        x, head, bias, scale = self._layer()
        if self.cap is None:
            logit_scale = scale * logit_scale
        else:
            if isinstance(logit_scale, Tensor) or softcap is not None:
                self.call.refuse("scales its softcapped logits by a tensor, or caps them twice")
            # c·tanh(s·o) is softgrad's c·tanh(s'·o / c) with s' = s·c; tanh is odd, so the sign of c goes to s'.
            cap = self.cap * logit_scale
            logit_scale, softcap = scale * cap, abs(cap)
        self.call.lost = True
        # Logits of half precision in float32 have a loss in float32, as under autocast.
        half = x.dtype in (torch.float16, torch.bfloat16) and self.dtype == torch.float32
        with torch.autocast(self.device.type, x.dtype) if half else contextlib.nullcontext():
            loss: Tensor = linear_cross_entropy(
                x,
                head,
                target,
                linear_bias=bias,
                weight=weight,
                ignore_index=ignore_index,
                reduction=legacy_reduction(size_average, reduce, reduction),
                label_smoothing=label_smoothing,
                logit_scale=logit_scale,
                softcap=softcap,
                **options,
            )
        return loss.to(self.dtype)

    def _layer(self) -> tuple[Tensor, Tensor, Tensor | None, float]:
        """Return x, W, b and s of one layer that makes all terms.

        Several terms are one layer over ``[s_1 x_1, s_2 x_2, …]``, whose weight is ``[W_1, W_2, …]``: exact, also with
        the dropout between a model and its adapter, at the cost of a copy of W, and of its gradient.
        """
        for term in self.terms:
            _check_weight(self.call.model, term.weight, self.classes, self.device)
        if len(self.terms) == 1:
            (term,) = self.terms
            return term.x, term.weight, term.bias, self.scale * term.scale
        if any(type(term.weight) not in PLAIN for term in self.terms):
            self.call.refuse("has adapters around an output embedding whose weight is no plain tensor")
        x = torch.cat([term.x if term.scale == 1 else term.x * term.scale for term in self.terms], -1)
        head = torch.cat([term.weight for term in self.terms], 1)
        biases = [term.bias * term.scale for term in self.terms if term.bias is not None]
        bias = sum(biases[1:], biases[0]).to(head.dtype) if biases else None
        return x, head, bias, self.scale

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known: dict[Any, Any] = {
            torch.tanh: cls.tanh,
            nn.functional.cross_entropy: cls.cross_entropy,
            cross_entropy: cls.cross_entropy,
        }
        kwargs = dict(kwargs or {})
        first = args[0] if args else kwargs.get("input")
        if function in known and isinstance(first, cls):
            kwargs.pop("input", None)
            return known[function](first, *args[1:], **kwargs)
        promised = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, cls)]
        return promised[0].call.refuse(f"passes its logits to {getattr(function, '__name__', function)}")

    def __getattr__(self, name: str) -> Any:
        if name == "float":  # a method of that name would hide the type in this class
            return lambda: replace(self, dtype=torch.float32)
        if hasattr(Tensor, name) and not name.startswith("__"):
            self.call.refuse(f"uses .{name} of its logits")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _check_weight(model: str, weight: Tensor, classes: int, device: torch.device) -> None:
    """Refuse a weight that something else took away after the layer's forward pass."""
    if weight.ndim != 2 or weight.shape[0] != classes:
        shape = tuple(weight.shape)
        where = f"has shape {shape}, as DeepSpeed ZeRO-3 leaves it between passes; use ZeRO stage 1 or 2"
    elif weight.device != device:
        where = f"is on {weight.device} and its input on {device}: it is offloaded; give it the device of its input"
    elif not torch.compiler.is_compiling() and type(weight) in PLAIN and not weight.untyped_storage().nbytes():
        where = "has no memory, as fully_shard leaves it between passes; shard it with the model and not by itself"
    else:
        return
    raise NotImplementedError(
        f"{model}: the weight of the output embedding {where}, or call unpatch_transformers(model)"
    )


def patch_transformers(model: Model, *, logits_in_evaluation: bool = True) -> Model:
    """Train a Hugging Face model without its logits: patch it in place.

    Patch once; then call ``model(input_ids, labels=labels)``, or use a `transformers.Trainer`, as before.  A call with
    ``labels``, with gradients enabled, takes its loss from hidden states and head by `linear_cross_entropy`, and the
    ``logits`` of its output are None.  Calls without ``labels`` (`generate` among them), and evaluation under
    `torch.no_grad`, are as before.

    The model's own ``forward`` and loss function run, on an object that stands for the logits.  Shifted labels,
    ``shift_labels``, ``num_items_in_batch``, ``ignore_index``, logit scales, softcaps, auxiliary losses of routers,
    ``return_dict=False`` and ``logits_to_keep`` therefore mean what they mean in the model.  Any other operation on the
    logits raises an error at its first call; no loss silently becomes another one.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A model whose output embedding is a `torch.nn.Linear`, tied or not, or an adapter (PEFT) around one.  It is
        changed in place.  Of a wrapper (`torch.compile`, distributed data parallel), patch the model inside.
    logits_in_evaluation : bool, default True
        False: calls with ``labels`` make no logits under `torch.no_grad` either, for an evaluation that takes the loss
        alone (``prediction_loss_only=True`` of the ``Trainer``).

    Returns
    -------
    transformers.PreTrainedModel
        ``model``.  Patching it again only sets ``logits_in_evaluation``.

    Raises
    ------
    TypeError
        If ``model`` takes no ``labels``, or has no output embedding, or none with a plain `torch.nn.Linear` in it.
    NotImplementedError
        Later, from a call with ``labels``, for an operation on the logits that has no counterpart without them, and for
        a head whose weight is gone when the loss is taken (DeepSpeed ZeRO-3, a head that FSDP shards by itself).

    Notes
    -----
    LoRA on the output embedding makes one layer of base and adapter for each loss: a copy of the weight, and a gradient
    of its size, but no logits.  Variants that do more than add ``s·B A x`` (DoRA) raise an error.

    A ``Trainer`` with ``label_smoothing_factor`` or a ``compute_loss_func`` takes the loss of the model's logits, after
    a call without ``labels``, and gains nothing.  ``forward`` is replaced in the instance: `copy.deepcopy` keeps the
    patch, `pickle` drops it.  Calls of one model from several threads at a time are not supported.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from softgrad.torch import patch_transformers
    >>> config = LlamaConfig(
    ...     vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    ... )
    >>> model = patch_transformers(LlamaForCausalLM(config))
    >>> tokens = torch.arange(10)[None]
    >>> output = model(tokens, labels=tokens)
    >>> output.loss.backward()
    >>> print(output.logits, model(tokens).logits.shape)
    None torch.Size([1, 10, 100])
    """
    layers = _layers(model)
    for layer in layers:
        _check_weight(type(model).__name__, layer.weight, layer.out_features, layer.weight.device)
    if "labels" not in inspect.signature(model.forward).parameters:
        raise TypeError(f"model: {type(model).__name__}.forward takes no labels, so there is no loss to patch")
    patch: _Patch | None = model.__dict__.get(PATCH)
    if patch is not None and _is_ours(model.__dict__.get("forward")):
        patch.logits_in_evaluation = logits_in_evaluation
        return model
    _prepare(layers)
    setattr(model, PATCH, _Patch(logits_in_evaluation, model.__dict__.get("forward")))
    model.forward = MethodType(_patched(model.forward), model)
    return model


def unpatch_transformers(model: Model) -> Model:
    """Undo `patch_transformers`; a model that is not patched stays as it is.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        It is changed in place.

    Returns
    -------
    transformers.PreTrainedModel
        ``model``.

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from softgrad.torch import patch_transformers, unpatch_transformers
    >>> model = patch_transformers(GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2)))
    >>> unpatch_transformers(model) is model
    True
    """
    patch: _Patch | None = model.__dict__.pop(PATCH, None)
    if patch is None:
        return model
    if _is_ours(model.__dict__.get("forward")):  # else it has been wrapped since, and passes calls on from now on
        del model.forward
        if patch.replaced is not None:
            model.forward = patch.replaced
    for module in model.modules():  # not only the layers that the head has now
        if CALL in module.__dict__:
            delattr(module, CALL)
            if _is_promise(module.__dict__.get("forward")):
                del module.forward
            if _is_promise(module.__dict__.get(HOOKED)):
                setattr(module, HOOKED, MethodType(nn.Linear.forward, module))
    return model


def _is_ours(forward: Any) -> bool:
    return bool(getattr(forward, "_softgrad", False))


def _patched(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the forward of a patched model.

    The signature is the original's, which `transformers` inspects.  The model is an argument, not a variable of this
    function's: a copy of the model then calls itself.
    """
    place = list(inspect.signature(original).parameters).index("labels")

    @functools.wraps(getattr(original, "__func__", original))
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        patch: _Patch | None = self.__dict__.get(PATCH)
        labels = args[place] if len(args) > place else kwargs.get("labels")
        if patch is None or labels is None or (patch.logits_in_evaluation and not torch.is_grad_enabled()):
            return _original(self, patch, args, kwargs)
        layers, call = _layers(self), _Call(type(self).__name__)
        if any(CALL not in layer.__dict__ for layer in layers):  # the model has another head than it had
            _prepare(layers)
        if layers[0].__dict__[CALL] is not None:  # inside a wrapper that is patched as well, whose call it is
            return _original(self, patch, args, kwargs)
        for layer in layers:
            setattr(layer, CALL, call)
        try:
            output = _original(self, patch, args, kwargs)
        finally:
            for layer in layers:
                setattr(layer, CALL, None)
        if not call.lost:
            call.refuse("takes its loss elsewhere than from its output embedding")
        return _delivered(output)

    forward._softgrad = True  # type: ignore[attr-defined]
    return forward


def _original(model: nn.Module, patch: _Patch | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if patch is not None and patch.replaced is not None:
        return patch.replaced(*args, **kwargs)
    return type(model).forward(model, *args, **kwargs)


def _layers(model: nn.Module) -> list[nn.Linear]:
    """Return the layers that make logits: the output embedding, or, of an adapter, its base and its own last layers."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    name = type(model).__name__
    if head is None:
        raise TypeError(f"model: {name} has no output embedding; a language model of transformers has one")
    layers = [head] if isinstance(head, nn.Linear) else [m for m in head.modules() if isinstance(m, nn.Linear)]
    # An adapter's last layers make as many logits as its base.
    layers = [layer for layer in layers if all(layer.out_features >= other.out_features for other in layers)]
    # Subclasses (quantised, parametrised, sharded by FSDP) may compute something else than x Wᵀ + b.
    odd = [layer for layer in layers or [head] if type(layer) is not nn.Linear]
    if odd:
        kind = f"{type(odd[0]).__module__}.{type(odd[0]).__qualname__}"
        raise TypeError(
            f"model: the output embedding of {name} is a {kind}, not a plain torch.nn.Linear; "
            "quantise, parametrise or shard other layers"
        )
    for layer in layers:
        if CALL not in layer.__dict__ and "forward" in layer.__dict__ and HOOKED not in layer.__dict__:
            raise TypeError(f"model: the output embedding of {name} has a forward of its own, not torch.nn.Linear's")
    return layers


def _prepare(layers: list[nn.Linear]) -> None:
    """Make layers that promise their logits inside a call, and compute them otherwise.

    They stay so between calls: `torch.compile` follows an attribute that changes, but not a method that does.
    """
    for layer in layers:
        if CALL not in layer.__dict__:
            setattr(layer, HOOKED if HOOKED in layer.__dict__ else "forward", functools.partial(_promise, layer))
        setattr(layer, CALL, None)


def _promise(layer: nn.Linear, input: Tensor) -> Tensor | PromisedLogits:  # noqa: A002 (Linear's name for it)
    call: _Call | None = layer.__dict__[CALL]
    if call is None:
        return nn.Linear.forward(layer, input)
    term = _Term(input, layer.weight, layer.bias)
    return PromisedLogits(call, (term,), layer.weight.shape[0], input.dtype)


def _is_promise(forward: Any) -> bool:
    return isinstance(forward, functools.partial) and forward.func is _promise


def _delivered(output: Any) -> Any:
    """Return the output, with None where logits were promised."""
    if isinstance(output, tuple):
        return tuple(None if isinstance(value, PromisedLogits) else value for value in output)
    if isinstance(output, Mapping):  # a ModelOutput, which drops None when it is made, not when it is assigned
        values = {key: None if isinstance(value, PromisedLogits) else value for key, value in output.items()}
        return type(output)(**values)
    return output
