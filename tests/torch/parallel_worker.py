"""One rank of the tests of `softgrad.torch.parallel`: runs cases under `torchrun`, and writes down how each ended.

Each case ends with all ranks comparing the bits of what it returned.  The first failure ends the run: a rank that has
left a case early is out of step with the others.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def bits(results: Any) -> list[str]:
    """The tensors' bytes."""
    return [
        t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes().hex()
        for t in results or []
        if t.numel()
    ]


def main(folder: str, *modules: str) -> int:
    """Run the cases of some modules."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")  # PyTorch's own forward mode
    cases = {name: case for module in modules for name, case in __import__(module).CASES.items()}
    log = Path(folder) / f"rank{dist.get_rank()}.jsonl"
    with log.open("w") as out:
        for name, case in cases.items():
            start, problem = time.perf_counter(), ""
            try:
                own = bits(case())
            except BaseException:
                problem, own = traceback.format_exc(), ["failed"]
            everyone: list[Any] = [None] * dist.get_world_size()
            if not problem:
                try:
                    dist.all_gather_object(everyone, own)
                    for rank, other in enumerate(everyone):
                        if other and own and other != own and other != ["failed"]:
                            problem = f"rank {rank} has other bits than rank {dist.get_rank()}"
                except RuntimeError:
                    problem = traceback.format_exc()
            print(json.dumps({"case": name, "problem": problem, "seconds": time.perf_counter() - start}), file=out)
            out.flush()
            if problem:
                return 1
    dist.destroy_process_group()
    os._exit(0)  # A thread of gloo that asks for the interpreter while it shuts down aborts the process (PyTorch 2.13).


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
