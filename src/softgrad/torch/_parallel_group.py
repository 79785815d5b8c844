"""Ranks that share a vocabulary: their agreement about a call before anything is reduced, and the reductions.

Every call begins with one all-gather of a header of fixed size, so that a rank with another shape, dtype, option or
target, or one that has refused its arguments, is found before reductions of different sizes meet: all ranks raise, and
name it.  The header carries the sizes of the slices as well.  On a mesh of several dimensions a second header goes over
each further dimension in turn, with the verdict of the first, so that all ranks of the mesh raise alike.

`Sum` and `Vary` are the pair of transposes that makes the composition differentiable to any order.  A tensor is either
the same on all ranks, or each rank has its own.  ``Sum`` turns the latter into the former and ``Vary`` is the way back:
the identity, whose gradient is summed over the ranks.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

ALONE = "alone"  # a group of one rank, with nobody to ask
HEADER_BYTES = 2048
SIZE_DIGITS = 20  # of the slice's size, at the head of the header
CONTENTS = "the contents of "  # what checksums are facts about


class Place(NamedTuple):
    """Which columns are this rank's."""

    group: Any
    rank: int  # in the group
    sizes: tuple[int, ...]  # of the slices, by rank

    @property
    def offset(self) -> int:
        """The first of this rank's classes."""
        return sum(self.sizes[: self.rank])

    @property
    def own(self) -> int:
        """How many classes this rank has."""
        return self.sizes[self.rank]

    @property
    def classes(self) -> int:
        """V."""
        return sum(self.sizes)


def group_of(group: Any) -> Any:
    """A process group, checked."""
    if group is ALONE:
        return group
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("there is no process group; call torch.distributed.init_process_group, or run torchrun")
    if group is None:
        group = dist.group.WORLD
    if group is dist.GroupMember.NON_GROUP_MEMBER or dist.get_rank(group) < 0:
        raise ValueError(f"rank {dist.get_rank()} is not in the group; only the group's ranks make the call")
    return group


# --- agreement -------------------------------------------------------------------------------------------------------


def fingerprint(tensor: Tensor | None) -> str:
    """Return the CRC-32 of a tensor's bytes: contents that differ share it with probability 2⁻³²."""
    if tensor is None:
        return ""
    data: Any = tensor.detach().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{zlib.crc32(memoryview(data)):08x}"


@dataclass
class Agreement:
    """Facts about a call that ranks have to share."""

    function: str
    facts: dict[str, Any] = field(default_factory=dict)  # on all ranks
    own: dict[str, Any] = field(default_factory=dict)  # on the ranks that share the classes of some rows
    remedy: str = ""  # for contents that differ
    further: tuple[Any, ...] = ()  # groups along the other dimensions of the mesh

    def reach(self, group: Any, device: Any, size: int, error: Exception | None) -> Place:
        """Exchange headers; return this rank's place, or raise on every rank."""
        refusal = None if error is None else f"{type(error).__name__}: {error}"
        facts = {"function": self.function, **self.facts}
        place, verdict = Place(group, 0, (size,)), None
        if group is not ALONE:
            heads, texts = self._exchange(group, device, size, _text({**facts, **self.own}, refusal, None))
            verdict = self._verdict(group, texts)
            place = Place(group, dist.get_rank(group), tuple(map(int, heads)))
        for other in self.further:
            _, texts = self._exchange(other, device, 0, _text(facts, refusal, verdict))
            verdict = self._verdict(other, texts)
        if error is not None:
            raise error
        if verdict is not None:
            raise RuntimeError(f"{self.function}: {verdict}")
        return place

    def _exchange(self, group: Any, device: Any, size: int, text: str) -> tuple[list[str], list[str]]:
        header = f"{size:<{SIZE_DIGITS}}{text}".encode()[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0")
        with torch._C._DisableFuncTorch():  # the header is data, also where the call is refused for being transformed
            own = torch.frombuffer(bytearray(header), dtype=torch.uint8).to(device)
            everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
            reduced(lambda: dist.all_gather(everyone, own, group=group), group, self.function)
            found = [bytes(one.cpu().numpy()).rstrip(b"\0").decode(errors="replace") for one in everyone]
        return [one[:SIZE_DIGITS] for one in found], [one[SIZE_DIGITS:] for one in found]

    def _verdict(self, group: Any, texts: list[str]) -> str | None:
        """Return the same account of a disagreement on every rank of the group."""
        if all(text == texts[0] and text.startswith("facts") for text in texts):
            return None
        for text in texts:
            if text.startswith("verdict"):
                return text.split("\n", 1)[1]
        names = [_name(group, i) for i in range(len(texts))]
        refusals = [f"{name} refused its arguments: {text.split(chr(10), 1)[1]}"
                    for name, text in zip(names, texts, strict=True) if text.startswith("refusal")]  # fmt: skip
        if refusals:
            return "; ".join(refusals)
        rows = [dict(line.split("=", 1) for line in text.split("\n")[2:] if "=" in line) for text in texts]
        complaints = {fact: _complaint(names, [row.get(fact, "?") for row in rows], fact) for fact in rows[0]}
        told = "; about ".join(text for text in complaints.values() if text) or "their arguments"
        contents = any(text and fact.startswith(CONTENTS) for fact, text in complaints.items())
        return f"the ranks disagree about {told}" + (f"; {self.remedy}" if contents and self.remedy else "")


def _text(facts: dict[str, Any], refusal: str | None, verdict: str | None) -> str:
    if verdict is not None:
        return f"verdict\n{verdict}"
    if refusal is not None:
        return f"refusal\n{refusal}"
    lines = "\n".join(f"{name}={value}" for name, value in facts.items())
    # The sum covers what the header may cut off.
    return f"facts\n{zlib.crc32(lines.encode()):08x}\n{lines}"


def _complaint(names: list[str], values: list[str], fact: str) -> str:
    usual = Counter(values).most_common(1)[0][0]
    rest = ", ".join(name for name, value in zip(names, values, strict=True) if value == usual)
    odd = [(name, value) for name, value in zip(names, values, strict=True) if value != usual]
    if not odd:
        return ""
    if fact.startswith(CONTENTS):  # checksums mean nothing to a reader
        return f"{fact}, other on {', '.join(name for name, _ in odd)} than on {rest}"
    return f"{fact}: {', '.join(f'{name} has {value}' for name, value in odd)}, and {rest} {usual}"


def _name(group: Any, i: int) -> str:
    return f"rank {dist.get_global_rank(group, i)}"


# --- reductions ------------------------------------------------------------------------------------------------------


def reduced(collective: Any, group: Any, function: str = "softgrad.torch.parallel") -> Any:
    """Call a collective; where it fails, say who waited for whom."""
    try:
        return collective()
    except RuntimeError as error:
        others = [i for i in range(dist.get_world_size(group)) if i != dist.get_rank(group)]
        raise RuntimeError(
            f"{function}: rank {dist.get_rank()} lost the others of its group "
            f"({', '.join(_name(group, i) for i in others)}): one of them has ended, or did not make the same call "
            f"within the group's time-out.  {error}"
        ) from error


def all_reduce(tensor: Tensor, operation: Any, group: Any) -> Tensor:
    """Reduce in place, over every rank of the group."""
    if group is not ALONE:
        reduced(lambda: dist.all_reduce(tensor, op=operation, group=group), group)
    return tensor


def maximum(tensor: Tensor, group: Any) -> Tensor:
    """The largest over the ranks; NaN counts as +inf, since not every back end hands it on."""
    return all_reduce(torch.where(torch.isnan(tensor), float("inf"), tensor), dist.ReduceOp.MAX, group)


def total(tensor: Tensor, groups: tuple[Any, ...]) -> Tensor:
    """The sum over the ranks of each group in turn, in place."""
    for group in groups:
        all_reduce(tensor, dist.ReduceOp.SUM, group)
    return tensor


class Later:
    """Sums on their way: one begins while the next tile is computed."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.under_way: list[Any] = []

    def begin(self, tensor: Tensor) -> None:
        """Sum a contiguous tensor in place, some time before `finish` returns."""
        if self.group is not ALONE:
            work = reduced(lambda: dist.all_reduce(tensor, group=self.group, async_op=True), self.group)
            self.under_way.append(work)

    def finish(self) -> None:
        """Wait."""
        for work in self.under_way:
            reduced(work.wait, self.group)
        self.under_way.clear()


class Sum(torch.autograd.Function):
    """``Σ`` over the ranks: the same on all of them."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, groups: tuple[Any, ...]) -> Tensor:
        ctx.groups = groups
        return total(tensor.clone(memory_format=torch.contiguous_format), groups)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return Vary.apply(upstream, ctx.groups), None


class Vary(torch.autograd.Function):
    """What is the same on all ranks, for each rank's own use."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, groups: tuple[Any, ...]) -> Tensor:
        ctx.groups = groups
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return Sum.apply(upstream, ctx.groups), None
