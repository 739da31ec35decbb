"""What is asked of a device: an op of certain sizes, as text in the rows of the database."""

from dataclasses import dataclass, replace

LARGEST = 8192  # rows of a bucket; beyond it times grow in proportion


@dataclass(frozen=True, kw_only=True)
class Problem:
    """y [M, N] = act(x [M, K] W^T + bias) + residual, or rows [M, K] where N is 0.

    op: the family that answers. scheme: bits, scales and layout of what is stored in few bits. out: the type
    of the result. heavy: whether more happens to the result than scales and a bias.
    """

    op: str
    scheme: str
    M: int
    N: int
    K: int
    out: str = "bf16"
    heavy: bool = False

    @property
    def text(self) -> str:
        """The workload of a row, which is read again by nobody: problems are looked up, not parsed."""
        sizes = ", ".join(
            f"{name} {size}" for name, size in (("M", self.M), ("N", self.N), ("K", self.K)) if size
        )
        return f"{self.op}, {self.scheme}, {sizes}, {self.out}{', heavy' if self.heavy else ''}"

    @property
    def bucketed(self) -> "Problem":
        return replace(self, M=bucket(self.M))


def bucket(rows: int) -> int:
    """The power of two that stands for a number of rows: the next, at most 8192."""
    return min(1 << max(rows - 1, 0).bit_length(), LARGEST)
