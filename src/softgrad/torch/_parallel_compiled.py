"""The vocabulary-parallel losses inside `torch.compile`: a break in the graph, around which the rest is compiled.

Only code that is being compiled imports this; PyTorch's compiler is loaded then.
"""

from __future__ import annotations

import torch

from softgrad.torch import _parallel_call

_WHY = "softgrad's vocabulary-parallel losses talk to other ranks"

cross_entropy_over = torch.compiler.disable(_parallel_call.cross_entropy_over, reason=_WHY)
linear_cross_entropy_over = torch.compiler.disable(_parallel_call.linear_cross_entropy_over, reason=_WHY)
