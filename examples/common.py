"""Text, tokenizer and memory of the process, for all examples.

Nothing is downloaded.  The text is Python's own reference, which every CPython carries for ``help()``; the tokenizer is
of GPT-2's kind, trained on that text in a fraction of a second.  The heads have as many rows as GPT-2's, of which the
text uses about 6,700: the cost of a loss depends on the rows, not on which of them are targets.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer

VOCABULARY = 50_257  # GPT-2's


def tokenizer() -> ByteLevelBPETokenizer:
    """Train a byte-level BPE tokenizer on the text; the same one each time."""
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(text(), vocab_size=VOCABULARY, min_frequency=2, show_progress=False)
    return made


def text() -> list[str]:
    """Python's reference, a string for each topic."""
    return [topics[name] for name in sorted(topics)]


def corpus() -> torch.Tensor:
    """Python's reference as one row of tokens."""
    return torch.tensor(tokenizer().encode("\n\n".join(text())).ids)


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
