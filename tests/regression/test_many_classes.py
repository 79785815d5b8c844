"""Many classes with few rows each: what a fit holds beside X and `max_memory` is bounded, and changes no result."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from softgrad.regression import fit

FEATURES = 16
_PEAK = """
import sys, threading, time
import numpy as np
from softgrad.regression import fit

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

classes, rows, budget, n_threads = map(int, sys.argv[1:])
random = np.random.default_rng(0)
x = random.standard_normal((rows, 16), dtype=np.float32)
y = np.arange(rows) % classes
fit(x[:40], y[:40] % 4, 4, max_iter=2)  # loads what a fit needs
base, most, done = anonymous(), 0, False
def watch():
    global most
    while not done:
        most = max(most, anonymous())
        time.sleep(0.001)
watcher = threading.Thread(target=watch); watcher.start()
smoothing = 0.0 if rows >= classes else 0.1  # gives every class a part of a row
result = fit(x, y, classes, label_smoothing=smoothing, max_memory=budget, max_iter=1, n_threads=n_threads)
done = True; watcher.join()
print(result.n_iter, result.objective, (most - base) * 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("classes", "rows"),
    [(100_000, 64), (4_000, 8_000)],
    ids=["a hundred thousand classes", "two rows each of four thousand"],
)
def test_a_fit_takes_no_more_than_it_says(classes: int, rows: int) -> None:
    budget = 1_000_000
    command = [sys.executable, "-c", _PEAK, str(classes), str(rows), str(budget), "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    iterations, objective, peak = done.stdout.split()
    assert int(iterations) == 1
    assert np.isfinite(float(objective))
    assert int(peak) < budget + (160 << 20) + 12 * 8 * classes * FEATURES  # as `fit` documents max_memory
    assert int(peak) > 8 * classes * FEATURES  # it was measured at all


def test_memory_changes_no_optimum_of_many_classes() -> None:
    random = np.random.default_rng(1)
    centres = random.normal(size=(2100, 8))  # beyond the closed form's threshold
    y = np.repeat(np.arange(2100), 2)
    x = (centres[y] + 0.3 * random.normal(size=(4200, 8))).astype(np.float32)
    free = fit(x, y, 2100, C=0.1)
    tight = fit(x, y, 2100, C=0.1, max_memory=1_000_000)
    assert free.converged
    assert tight.converged
    assert tight.objective == pytest.approx(free.objective, rel=2e-6)
    np.testing.assert_allclose(tight.coef, free.coef, atol=2e-2)
