"""Hugging Face models without logits: the head promises them, and the loss is taken from the promise."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from types import EllipsisType, MethodType
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn

from softgrad.torch.linear import linear_cross_entropy

Model = TypeVar("Model", bound=nn.Module)

PATCH = "_softgrad_patch"  # where a patched model keeps its `_Patch`
CALL = "_softgrad_call"  # where its head finds the `_Call` it is in, or None


@dataclass
class _Patch:
    """What is remembered in the model itself, so that copies of the model have their own."""

    logits_in_evaluation: bool
    replaced: Callable[..., Any] | None  # a forward that the instance had of its own


@dataclass
class _Call:
    """One forward: whose it is, and whether a loss has been taken."""

    model: str
    lost: bool = False

    def refuse(self, what: str) -> NoReturn:
        raise NotImplementedError(
            f"{self.model} {what}, which patch_transformers cannot follow without making the logits; "
            "call unpatch_transformers(model) to train it"
        )


@dataclass(frozen=True, eq=False)
class PromisedLogits:
    """Logits ``o = s·(x Wᵀ + b)``, or ``o = c·tanh(s·(x Wᵀ + b))``, that have not been computed.

    It does what models do to logits between their head and their loss: scaling, a softcap, a change of type or shape,
    a slice of positions, `torch.nn.functional.cross_entropy`.  Anything else is refused: a loss that is not understood
    must not become another one.
    """

    call: _Call
    x: torch.Tensor  # (..., D)
    head: nn.Linear
    dtype: torch.dtype
    scale: float = 1.0  # s
    cap: float | None = None  # c, once tanh has been taken

    # What is asked of a tensor's form.

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.x.shape[:-1], self.head.weight.shape[0]))

    @property
    def ndim(self) -> int:
        return self.x.ndim

    @property
    def device(self) -> torch.device:
        return self.x.device

    def dim(self) -> int:
        return self.x.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def contiguous(self) -> PromisedLogits:
        return self

    def to(self, *args: Any, **kwargs: Any) -> PromisedLogits:
        dtype = self.dtype
        for arg in (*args, *kwargs.values()):
            if isinstance(arg, (torch.dtype, torch.Tensor)):
                dtype = arg if isinstance(arg, torch.dtype) else arg.dtype
            if isinstance(arg, (str, torch.device, torch.Tensor)):
                device = arg.device if isinstance(arg, torch.Tensor) else torch.device(arg)
                if device != self.device:
                    self.call.refuse(f"moves its logits from {self.device} to {device}")
        return replace(self, dtype=dtype)

    def view(self, *shape: Any) -> PromisedLogits:
        size = torch.empty(self.shape, device="meta").view(*shape).shape  # PyTorch's rules, and its errors
        if size[-1:] != self.shape[-1:]:
            self.call.refuse(f"views its logits of shape {tuple(self.shape)} as {tuple(size)}")
        return replace(self, x=self.x.reshape(*size[:-1], self.x.shape[-1]))

    reshape = view

    def __getitem__(self, index: Any) -> PromisedLogits:
        index = index if isinstance(index, tuple) else (index,)
        if not all(isinstance(i, (int, slice, EllipsisType)) for i in index):
            self.call.refuse("picks from its logits by a tensor, None or a list")
        after = len(index) - index.index(...) - 1 if ... in index else 0
        reaches_classes = after > 0 or len(index) - (... in index) == self.ndim
        if reaches_classes and index[-1] != slice(None):
            self.call.refuse("takes a part of the classes of its logits")
        return replace(self, x=self.x[index])

    # What is done to each logit.

    def _scaled(self, factor: Any, inverse: bool = False) -> PromisedLogits:
        if not isinstance(factor, Real):
            self.call.refuse(f"scales its logits by a {type(factor).__name__}")
        by = 1 / float(factor) if inverse else float(factor)
        return replace(self, scale=self.scale * by) if self.cap is None else replace(self, cap=self.cap * by)

    def __mul__(self, factor: Any) -> PromisedLogits:
        return self._scaled(factor)

    def __rmul__(self, factor: Any) -> PromisedLogits:
        return self._scaled(factor)

    def __truediv__(self, divisor: Any) -> PromisedLogits:
        return self._scaled(divisor, inverse=True)

    def tanh(self) -> PromisedLogits:
        if self.cap is not None:
            self.call.refuse("takes tanh of its logits twice")
        return replace(self, cap=1.0)

    def __add__(self, other: Any) -> NoReturn:
        self.call.refuse("adds something to its logits")

    __radd__ = __sub__ = __rsub__ = __add__

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        self.call.refuse("writes into its logits")

    # The end of it, or a refusal.

    def cross_entropy(
        self,
        target: torch.Tensor,
        weight: torch.Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """`torch.nn.functional.cross_entropy`, from the promise."""
        if self.ndim != 2:
            self.call.refuse(f"takes cross_entropy of logits of shape {tuple(self.shape)}")
        if size_average is not None or reduce is not None:
            self.call.refuse("takes cross_entropy by size_average or reduce")
        self.call.lost = True
        # c·tanh(s·o) is softgrad's c·tanh(s'·o / c) with s' = s·c; tanh is odd, so that the sign of c goes to s'.
        # Logits of half precision in float32 have a loss in float32, as under autocast.
        half = self.x.dtype in (torch.float16, torch.bfloat16) and self.dtype == torch.float32
        context = torch.autocast(self.device.type, self.x.dtype) if half else contextlib.nullcontext()
        with context:
            loss: torch.Tensor = linear_cross_entropy(
                self.x,
                self.head.weight,
                target,
                linear_bias=self.head.bias,
                weight=weight,
                ignore_index=ignore_index,
                reduction=reduction,
                label_smoothing=label_smoothing,
                logit_scale=self.scale if self.cap is None else self.scale * self.cap,
                softcap=None if self.cap is None else abs(self.cap),
            )
        return loss.to(self.dtype)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known: dict[Any, Any] = {torch.tanh: cls.tanh, nn.functional.cross_entropy: cls.cross_entropy}
        kwargs = dict(kwargs or {})
        first = args[0] if args else kwargs.pop("input", None)
        if function in known and isinstance(first, cls):
            return known[function](first, *args[1:], **kwargs)
        promised = next(a for a in (first, *args, *kwargs.values()) if isinstance(a, cls))
        return promised.call.refuse(f"passes its logits to {getattr(function, '__name__', function)}")

    def __getattr__(self, name: str) -> Any:
        if name == "float":  # a method of that name would hide the type in this class
            return lambda: replace(self, dtype=torch.float32)
        if hasattr(torch.Tensor, name) and not name.startswith("__"):
            self.call.refuse(f"uses .{name} of its logits")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def patch_transformers(model: Model, *, logits_in_evaluation: bool = True) -> Model:
    """Let a Hugging Face model train without its logits.

    Patch once; then call ``model(input_ids, labels=labels)``, or use a `transformers.Trainer`, as before.  A call with
    ``labels``, with gradients enabled, takes its loss from hidden states and head by `linear_cross_entropy`, and the
    ``logits`` of its output are None.  Calls without ``labels`` (`generate` among them), and evaluation under
    `torch.no_grad`, are as before.

    The model's own ``forward`` and loss function run, on an object that stands for the logits.  Shifted labels,
    ``shift_labels``, ``num_items_in_batch``, ``ignore_index``, logit scales, softcaps, auxiliary losses of routers,
    ``return_dict=False`` and ``logits_to_keep`` therefore mean what they mean in the model.  Whatever else a model does
    with its logits raises an error at its first such call; none gets another loss in silence.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Whose output embedding is a `torch.nn.Linear`, tied or not.  It is changed in place.  Of a wrapper (PEFT,
        `torch.compile`, distributed data parallel), patch the model inside.
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
        If ``model`` takes no ``labels``, or has no output embedding, or one that is not a plain `torch.nn.Linear`.
    NotImplementedError
        Later, from a call with ``labels``, if the model does something unknown with its logits.

    Notes
    -----
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
    head = _head(model)
    if "labels" not in inspect.signature(model.forward).parameters:
        raise TypeError(f"model: {type(model).__name__}.forward takes no labels, so there is no loss to patch")
    patch: _Patch | None = model.__dict__.get(PATCH)
    if patch is not None and _is_ours(model.__dict__.get("forward")):
        patch.logits_in_evaluation = logits_in_evaluation
        return model
    _prepare(head)
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
    for module in model.modules():  # not only the head that the model has now
        if CALL in module.__dict__:
            del module.forward
            delattr(module, CALL)
    return model


def _is_ours(forward: Any) -> bool:
    return bool(getattr(forward, "_softgrad", False))


def _patched(original: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a patched model.

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
        head, call = _head(self), _Call(type(self).__name__)
        if CALL not in head.__dict__:  # the model has another head than it had
            _prepare(head)
        if head.__dict__[CALL] is not None:  # inside a wrapper that is patched as well, whose call it is
            return _original(self, patch, args, kwargs)
        setattr(head, CALL, call)
        try:
            output = _original(self, patch, args, kwargs)
        finally:
            setattr(head, CALL, None)
        if not call.lost:
            call.refuse("takes its loss elsewhere than from its output embedding")
        return _delivered(output)

    forward._softgrad = True  # type: ignore[attr-defined]
    return forward


def _original(model: nn.Module, patch: _Patch | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if patch is not None and patch.replaced is not None:
        return patch.replaced(*args, **kwargs)
    return type(model).forward(model, *args, **kwargs)


def _head(model: nn.Module) -> nn.Linear:
    """Return the output embedding, if it is one that can be promised."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    name = type(model).__name__
    if head is None:
        raise TypeError(f"model: {name} has no output embedding; a language model of transformers has one")
    # Adapters, quantised and parametrised layers are other classes: they compute something else than x Wᵀ + b.
    if type(head) is not nn.Linear:
        kind = f"{type(head).__module__}.{type(head).__qualname__}"
        raise TypeError(f"model: the output embedding of {name} is a {kind}, not a plain torch.nn.Linear")
    if "forward" in head.__dict__ and CALL not in head.__dict__:
        raise TypeError(f"model: the output embedding of {name} has a forward of its own, not torch.nn.Linear's")
    return head


def _prepare(head: nn.Linear) -> None:
    """Make a head that promises its logits inside a call, and computes them otherwise.

    It stays so between calls: `torch.compile` follows an attribute that changes, but not a method that does.
    """
    setattr(head, CALL, None)
    head.forward = functools.partial(_promise, head)  # type: ignore[method-assign,assignment]


def _promise(head: nn.Linear, input: torch.Tensor) -> torch.Tensor | PromisedLogits:  # noqa: A002 (Linear's name for it)
    call: _Call | None = head.__dict__[CALL]
    return nn.Linear.forward(head, input) if call is None else PromisedLogits(call, input, head, input.dtype)


def _delivered(output: Any) -> Any:
    """The output, with None where logits were promised."""
    if isinstance(output, tuple):
        return tuple(None if isinstance(value, PromisedLogits) else value for value in output)
    if isinstance(output, Mapping):  # a ModelOutput, which drops None when it is made, not when it is assigned
        values = {key: None if isinstance(value, PromisedLogits) else value for key, value in output.items()}
        return type(output)(**values)
    return output
