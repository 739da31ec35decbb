"""One way in which a kernel is called, as far as the compiler has to know."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.static import Types


@dataclass(frozen=True, kw_only=True)
class Use:
    """name: what tells it from a kernel's other uses. constants: those beside a configuration's."""

    name: str = ""
    types: Types
    constants: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """module: the file in kernels/ with the kernel. uses: all that a configuration serves on a capability."""

    module: str
    uses: Callable[[Configuration, int], list[Use]]
