"""A training step's own kernels on a CPU: draws, and activations stored in few bits.

philox   draws in registers             draws    the same in memory
store    floats to codes                recall   and back
values   floats as whole numbers        calls    all of it on torch's tensors
install  torch calls them from then on
"""

from qcompiler.backends.tvm.training.install import install

__all__ = ["install"]
