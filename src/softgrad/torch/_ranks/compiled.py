"""The losses over ranks inside `torch.compile`: a break in the graph, around which the rest is compiled.

Only code that is being compiled imports this; PyTorch's compiler is loaded then.
"""

from __future__ import annotations

import torch

from softgrad.torch._ranks import call

_WHY = "softgrad's vocabulary-parallel losses talk to other ranks"

cross_entropy_over = torch.compiler.disable(call.cross_entropy_over, reason=_WHY)
linear_cross_entropy_over = torch.compiler.disable(call.linear_cross_entropy_over, reason=_WHY)
