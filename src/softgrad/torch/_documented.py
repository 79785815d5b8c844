"""What the arguments of the PyTorch front-end mean, said once."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import indent
from typing import Any, TypeVar

from softgrad._core.options import DESCRIPTIONS

F = TypeVar("F", bound=Callable[..., Any])

TEXTS = {
    **DESCRIPTIONS,
    "label_smoothing": """label_smoothing : float or Tensor of one element, in [0, 1], default 0
    ``ε`` of ``y' = (1 − ε) y + ε/V``.""",
    "softcap": """softcap : float or Tensor of one element, optional
    ``c > 0`` of ``v = c·tanh(s·o / c)``.  A logit of −inf stays masked.""",
    "z_loss": """z_loss : float or Tensor of one element, default 0
    ``λ ≥ 0`` of the penalty ``λ lse(u)²``.""",
    "input": """input : Tensor
    Logits ``o``: ``(C)``, ``(N, C)`` or ``(N, C, d_1, …)`` as in `torch.nn.functional.cross_entropy`; float32, float64,
    float16 or bfloat16.""",
    "target": """target : Tensor or pair of Tensors
    Labels of any integer type, of the input's shape without the class axis; or soft targets, floats of the input's
    shape, whose rows need not sum to one; or a pair ``(indices, values)``: the soft targets that are not 0, with a
    trailing axis of k entries a row; duplicates add up, the index −1 pads.""",
    "layer": """input : Tensor of shape (..., D)
    Inputs of the head; float32, float64, float16 or bfloat16.
linear_weight : Tensor of shape (V, D)
    One row a class, of the dtype of the input.
target : Tensor or pair of Tensors
    Labels of shape (...), soft targets of shape (..., V), or a pair ``(indices, values)`` of shape (..., k).
linear_bias : Tensor of shape (V,), optional
    ``b``, of the dtype of the input.""",
    "weight": """weight : Tensor of shape (C,), optional
    Weight ``w_j`` of each class.  For labels, ``mean`` divides by the weights of the labels.""",
    "ignore_index": """ignore_index : int, default -100
    Rows with this label are ignored: loss 0, gradient exactly 0, whatever their logits hold.  Beside soft targets a
    negative one means nothing, as in PyTorch, and another one is refused.""",
    "sample_weight": """sample_weight : Tensor, one number a row, optional
    Weight ``a_i`` of each row, of any sign.  A row of weight 0 is ignored.""",
    "logit_scale": """logit_scale : float or Tensor of one element, default 1
    ``s`` of ``v = s·o``; finite and not 0.""",
    "temperature": """temperature : float or Tensor of one element, default 1
    ``τ > 0`` of ``u = v / τ``, applied last.""",
    "inplace": """inplace : bool, default False
    Write the gradient over the logits in the backward pass, which then needs no N×V memory.  PyTorch's own error stops
    whoever reads the logits afterwards.  Refused for leaves, expanded views, ``create_graph`` and ``torch.func``.""",
    "shift": """shift : bool, default False
    Position t predicts the target of t + 1: the inputs ``[..., :-1, :]`` against the targets ``[..., 1:]``.""",
    "max_memory": """max_memory : int, optional
    Bytes that the tiles of logits and products may take, beyond the gradients; by default 64 MB.  Where not two rows
    of logits fit, the loss tiles columns as well and computes each twice.  Tiles of another size change the last bits
    only: by less than 16 roundoffs of the arithmetic, at the scale of a result's largest element, and one rounding to
    its type.""",
    "accumulate_dtype": """accumulate_dtype : torch.dtype, optional
    What tiles of rows add up in: by default the weight's type, and float32 for half precision.""",
    "torch_options": """options : torch.nn.LinearCrossEntropyOptions, optional
    PyTorch's options, where they mean something here: ``batch_chunk_size`` bounds the rows of a tile, ``acc_dtype`` is
    ``accumulate_dtype``; a chunking method or policy of PyTorch's own is refused by name.""",
    "impl": """impl : {"numpy", "torch", "composite"}, optional
    Whose matrix products: by default the faster of NumPy's and PyTorch's, measured once for a type and depth
    (`softgrad.torch.products` reports it; the variable ``SOFTGRAD_TORCH_PRODUCTS`` decides for a process).
    ``composite`` uses PyTorch's operations throughout, as on other devices.""",
    "n_threads": """n_threads : int, optional
    Threads to use: by default all that both ``torch.get_num_threads()`` and ``SOFTGRAD_NUM_THREADS`` allow.  The
    result's bits do not depend on it.""",
}

TRANSFORM = ("logit_scale", "softcap", "temperature")
LOSS = (
    "weight", "ignore_index", "reduction", "label_smoothing", "sample_weight", "smooth_finite_only", *TRANSFORM,
    "z_loss",
)  # fmt: skip


def documented(*names: str) -> Callable[[F], F]:
    """Put the descriptions of the named options where ``{options}`` stands; ``{input}`` and so on likewise."""

    def decorate(function: F) -> F:
        texts = {**TEXTS, "options": "\n".join(TEXTS[name] for name in names)}
        if function.__doc__ is not None:  # python -OO strips it
            for name, text in texts.items():
                function.__doc__ = function.__doc__.replace(f"    {{{name}}}\n", indent(text, "    ") + "\n")
        return function

    return decorate
