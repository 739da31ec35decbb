"""Where activations lie: uint8 codes by pixel, with a border of the zero point for whoever reads beyond it.

(n, h, w, c)  -->  ((n (H + 2 b) + h + b) (W + 2 b) + w + b) pitch + c
"""

from dataclasses import dataclass

SPARE = 64  # bytes behind the last pixel: a vector may be read where it begins inside
GRAIN = 16  # channels that lie side by side in whole pixels; registers of sums hold as many, or a share


def pitch_of(channels: int) -> int:
    """Bytes from a pixel to the next, where all of its channels are written in whole registers."""
    return -(-channels // GRAIN) * GRAIN


@dataclass(frozen=True, kw_only=True)
class Plane:
    """A batch of images of codes. Invariant: pitch >= channels; bytes between them are never looked at."""

    images: int
    height: int
    width: int
    channels: int
    pitch: int
    border: int = 0

    @property
    def line(self) -> int:
        """Bytes from a pixel to the one below it."""
        return (self.width + 2 * self.border) * self.pitch

    @property
    def image(self) -> int:
        return (self.height + 2 * self.border) * self.line

    @property
    def size(self) -> int:
        return self.images * self.image + SPARE

    @property
    def origin(self) -> int:
        """Where pixel (0, 0) of the first image lies."""
        return self.border * (self.line + self.pitch)


NUMBER = Plane(images=1, height=1, width=1, channels=1, pitch=1)  # of the call: a scale, a zero point
