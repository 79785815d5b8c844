"""One rank of a group that loses another: by SIGKILL, or because it is late.  Writes down what the call ended with."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from softgrad.torch.parallel import vocab_parallel_linear_cross_entropy


def main(how: str, folder: str, rank: int, ranks: int, seconds: float) -> int:
    """The last rank goes, after a first call that all of them make."""
    store = Path(folder) / "store"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=seconds)
    )
    x, weight, target = torch.zeros(4, 3, requires_grad=True), torch.zeros(5, 3), torch.arange(4)
    loss = vocab_parallel_linear_cross_entropy(x, weight, target)
    first = float(loss.detach())
    if rank == ranks - 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(2 * seconds)
        os._exit(0)
    start, said = time.monotonic(), ""
    try:
        loss.backward() if how == "killed" else vocab_parallel_linear_cross_entropy(x, weight, target)
    except RuntimeError as error:
        said = str(error)
    outcome = {"first": first, "said": said, "seconds": time.monotonic() - start}
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(outcome))
    os._exit(0)  # the group is in no state to be destroyed


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
