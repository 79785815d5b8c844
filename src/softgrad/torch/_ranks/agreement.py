"""The agreement of ranks about a call, before anything is reduced.

Every call begins with one all-gather of a header of fixed size, so that a rank with another shape, dtype, option or
target, or one that has refused its arguments, is found before reductions of different sizes meet: all ranks raise, and
name it.  The header carries the sizes of the slices as well.  On a mesh of several dimensions a second header goes over
each further dimension in turn, with the verdict of the first, so that all ranks of the mesh raise alike.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from softgrad.torch._ranks.group import ALONE, Place, name_of, reduced

HEADER_BYTES = 2048
SIZE_DIGITS = 20  # of the slice's size, at the head of the header
CONTENTS = "the contents of "  # begins the names of facts that are checksums


def fingerprint(tensor: Tensor | None) -> str:
    """Return the CRC-32 of a tensor's bytes: contents that differ share it with probability 2⁻³²."""
    if tensor is None:
        return ""
    data: Any = tensor.detach().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{zlib.crc32(memoryview(data)):08x}"


@dataclass
class Agreement:
    """Facts about a call that ranks have to share.

    Attributes
    ----------
    function : str
    facts : dict
        Of all ranks.
    rows : tuple of int
        The shape of the rows, of the ranks that share the classes of some rows.
    contents : dict of str to tuple of Tensor
        Tensors equal on the ranks that share the classes of some rows, by argument.
    plain : dict of str to tuple of Tensor
        Tensors equal on all ranks, by argument.
    remedy : str
        Advice for contents that differ.
    further : tuple
        Groups along the other dimensions of the mesh.
    """

    function: str
    facts: dict[str, Any] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    contents: dict[str, tuple[Tensor | None, ...]] = field(default_factory=dict)
    plain: dict[str, tuple[Tensor | None, ...]] = field(default_factory=dict)
    remedy: str = ""
    further: tuple[Any, ...] = ()

    def reach(self, group: Any, device: Any, size: int, error: Exception | None) -> Place:
        """Exchange headers; return this rank's place, or raise on every rank."""
        refusal = None if error is None else f"{type(error).__name__}: {error}"
        place, verdict = Place(group, 0, (size,)), None
        facts = {"function": self.function, **self.facts}
        if group is not ALONE or self.further:
            facts |= _fingerprints(self.plain)
        if group is not ALONE:
            own = _fingerprints({name: parts for name, parts in self.contents.items() if name not in self.plain})
            heads, texts = self._exchange(
                group, device, size, _text({**facts, "rows": self.rows, **own}, refusal, None)
            )
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
        names = [name_of(group, i) for i in range(len(texts))]
        refusals = [f"{name} refused its arguments: {text.split(chr(10), 1)[1]}"
                    for name, text in zip(names, texts, strict=True) if text.startswith("refusal")]  # fmt: skip
        if refusals:
            return "; ".join(refusals)
        rows = [dict(line.split("=", 1) for line in text.split("\n")[2:] if "=" in line) for text in texts]
        complaints = {fact: _complaint(names, [row.get(fact, "?") for row in rows], fact) for fact in rows[0]}
        told = "; about ".join(text for text in complaints.values() if text) or "their arguments"
        contents = any(text and fact.startswith(CONTENTS) for fact, text in complaints.items())
        return f"the ranks disagree about {told}" + (f"; {self.remedy}" if contents and self.remedy else "")


def _fingerprints(arguments: dict[str, tuple[Tensor | None, ...]]) -> dict[str, str]:
    return {f"{CONTENTS}{name}": "".join(map(fingerprint, parts)) for name, parts in arguments.items()}


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
