"""The algebra of the compiler, as tables of rules."""

from qcompiler.passes.rules.arithmetic import ARITHMETIC
from qcompiler.passes.rules.linear import LINEAR

RULES = (*ARITHMETIC, *LINEAR)

__all__ = ["ARITHMETIC", "LINEAR", "RULES"]
