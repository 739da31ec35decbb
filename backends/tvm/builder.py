"""Kernels written statement by statement: loops, vector registers, loads and stores on flat buffers.

    k = Builder("add_one")
    x, y = k.argument("x", "int32", 64), k.argument("y", "int32", 64)
    with k.loop(4) as i:
        k.store(y, i * 16, k.load(x, i * 16, 16) + splat(1, "int32", 16))
    function = k.function()

Every vector operation is explicit, so what LLVM compiles is what is written here: no schedule, no search.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.target.codegen import llvm_lookup_intrinsic_id

SHARED = "shared"  # the note on a loop whose turns threads may divide
TURNS = "turns"  # the note on how many turns a loop has, where its extent is read from memory


class Builder:
    """One function under construction; its arguments are buffers, in the order they were asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.parameters: list[Any] = []
        self.blocks: list[list[Any]] = [[]]
        self.names = 0

    def argument(self, name: str, dtype: str, size: int) -> Any:
        buffer = tirx.decl_buffer((size,), dtype, name)
        self.parameters.append(buffer)
        return buffer

    def view(self, pointer: Any, dtype: str, size: int) -> Any:
        """Memory behind a pointer."""
        buffer = tirx.decl_buffer((size,), dtype, self.fresh("p"), data=pointer)
        self.emit(tirx.DeclBuffer(buffer, data=pointer))
        return buffer

    def number(self, name: str, dtype: str = "int32") -> Any:
        """An argument that is a whole number."""
        number = tirx.Var(name, dtype)
        self.parameters.append(number)
        return number

    def register(self, dtype: str, lanes: int) -> Any:
        """A vector that may be assigned again; it never reaches memory.

        Of the scope "global", since only that is a variable on the stack, which LLVM makes a register of:
        TVM takes one of the scope "local" from the heap, call by call.
        """
        buffer = tirx.decl_buffer((lanes,), dtype, self.fresh("r"), scope="global")
        self.emit(tirx.AllocBuffer(buffer))
        return buffer

    def scratch(self, dtype: str, size: int) -> Any:
        """Memory of the function itself, for what does not fit registers; it holds anything at first."""
        buffer = tirx.decl_buffer((size,), dtype, self.fresh("s"), data_alignment=64)
        self.emit(tirx.AllocBuffer(buffer))
        return buffer

    def bind(self, value: Any) -> Any:
        """A name for a value. TVM's passes look through it: what is read often belongs into a register."""
        name = tirx.Var(self.fresh("v"), value.ty if hasattr(value, "ty") else value.dtype)
        self.emit(tirx.Bind(name, value))
        return name

    def keep(self, value: Any, dtype: str, lanes: int) -> Any:
        """A value computed here and once, however often it is read."""
        register = self.register(dtype, lanes)
        self.store(register, 0, value, lanes)
        return self.load(register, 0, lanes)

    def load(self, buffer: Any, index: Any, lanes: int = 1) -> Any:
        return buffer[tirx.Ramp(index, 1, lanes)] if lanes > 1 else buffer[index]

    def store(self, buffer: Any, index: Any, value: Any, lanes: int = 1) -> None:
        place = tirx.Ramp(index, 1, lanes) if lanes > 1 else index
        self.emit(tirx.BufferStore(buffer, value, [place]))

    def prefetch(self, buffer: Any, index: Any, *, level: int = 1) -> None:
        """Bring the cache line at an index near, for reading; an address behind the buffer does no harm.

        level: the nearest cache that it is brought into.
        """
        address = tirx.op.address_of(buffer[index])
        numbers = (tirx.const(number, "int32") for number in (0, 4 - level, 1))  # read, locality, data
        self.emit(
            tirx.Evaluate(tirx.op.call_llvm_intrin("void", intrinsic("llvm.prefetch"), address, *numbers))
        )

    @contextmanager
    def loop(self, extent: Any, *, shared: bool = False, turns: int | None = None) -> Iterator[Any]:
        """for i in 0 .. extent - 1; a loop of one turn is none.

        turns: how many there are where the extent is no number; what is not said counts as one.

        shared: threads may divide the turns among them, as `threads.divided` does; what lies outside, each of
        them does. Every shared loop of a function has the same extent, and none lies within another.
        """
        if extent == 1:
            yield tirx.const(0, "int32")
            return
        variable = tirx.Var(self.fresh("i"), "int32")
        self.blocks.append([])
        yield variable
        body = sequence(self.blocks.pop())
        end = tirx.const(extent, "int32") if isinstance(extent, int) else extent
        notes = {SHARED: extent} if shared else {TURNS: turns} if turns else {}
        zero, kind = tirx.const(0, "int32"), tirx.ForKind.SERIAL
        self.emit(tirx.For(variable, zero, end, kind, body, annotations=notes))

    @contextmanager
    def only_if(self, condition: Any) -> Iterator[None]:
        self.blocks.append([])
        yield
        self.emit(tirx.IfThenElse(condition, sequence(self.blocks.pop()), None))

    @contextmanager
    def loop_while(self, condition: Any) -> Iterator[None]:
        self.blocks.append([])
        yield
        self.emit(tirx.While(condition, sequence(self.blocks.pop())))

    def function(self) -> Any:
        made = tirx.PrimFunc(self.parameters, sequence(self.blocks[0]))
        return made.with_attr("global_symbol", self.name).with_attr("tirx.noalias", True)

    def emit(self, statement: Any) -> None:
        self.blocks[-1].append(statement)

    def fresh(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"


def sequence(statements: list[Any]) -> Any:
    if not statements:
        return tirx.Evaluate(0)
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)


def splat(value: Any, dtype: str, lanes: int) -> Any:
    """A vector of equal numbers."""
    return tirx.Broadcast(tirx.const(value, dtype) if isinstance(value, int | float) else value, lanes)


def intrinsic(name: str) -> int:
    return int(llvm_lookup_intrinsic_id(name))


def pure(dtype: str, name: str, *given: Any) -> Any:
    """A call of an LLVM intrinsic without side effects."""
    return tirx.op.call_llvm_pure_intrin(dtype, intrinsic(name), *given)
