"""What paper misses, learnt from rows: log(measured / predicted) as a linear function of a configuration.

    log r = c . f(configuration, prediction)        c by ridge regression (Hoerl, Kennard 1970)

The rows are those that came with the package, so the order of candidates is the same for everyone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.tuning.predict import Predicted

PENALTY = 1.0  # in units of one row: a feature that one row alone has keeps half of what that row says


@dataclass(frozen=True, kw_only=True)
class Sample:
    configuration: Configuration
    predicted: Predicted
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Residual:
    """coefficients: one per feature; all zero where nothing was learnt."""

    coefficients: tuple[float, ...] = ()

    def __call__(self, configuration: Configuration, predicted: Predicted) -> float:
        """Seconds, corrected."""
        if not self.coefficients:
            return predicted.seconds
        return float(
            predicted.seconds * np.exp(features(configuration, predicted) @ np.array(self.coefficients))
        )


def features(configuration: Configuration, predicted: Predicted) -> NDArray[np.float64]:
    """Logarithms of sizes, and what the time was limited by."""
    constants = configuration.constants
    sizes = [np.log2(constants[name]) if name in constants else 0.0 for name in ("BM", "BN", "BK", "BLOCK")]
    limits = [float(predicted.limit == name) for name in ("arithmetic", "memory", "L2")]
    others = [
        np.log2(configuration.warps), configuration.stages, float(bool(constants.get("DESCRIPTORS"))),
        np.log2(min(predicted.waves, 64.0)), np.log2(constants.get("SPLIT", 1)),
        float("PERSISTENT" in constants),
    ]  # fmt: skip
    return np.array([*sizes, *others, *limits])


def learnt(samples: Sequence[Sample]) -> Residual:
    """The ridge solution (F'F + penalty) c = F'y; nothing of no samples."""
    if not samples:
        return Residual()
    table = np.array([features(sample.configuration, sample.predicted) for sample in samples])
    wanted = np.array([np.log(sample.seconds / sample.predicted.seconds) for sample in samples])
    left = table.T @ table + PENALTY * np.eye(table.shape[1])
    return Residual(coefficients=tuple(np.linalg.solve(left, table.T @ wanted).tolist()))
