"""A compiled model: machine code, constants, and what to do with them.

    from run import Model
    outputs = Model("folder")(images)    # arrays in, a tuple of arrays out
    python run.py inputs.npz outputs.npz

Needs Python 3.11, numpy and apache-tvm-ffi. LOADING A LIBRARY EXECUTES ITS CODE: load only what comes from
somebody whom you trust. The sums in the manifest show damage, not origin: whoever changes the files can
change those as well.

A model is compiled for the shapes of its inputs, and for one thread; calls of several threads take turns.
"""

import hashlib
import json
import math
import mmap
import platform
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tvm_ffi

FORMAT = 1
MANIFEST, CONSTANTS = "manifest.json", "constants.bin"
ALIGNMENT = 64  # bytes; vectors are loaded from there
SPARE = 64  # elements behind the last pixel of a plane
RUNTIME = (0, 1)  # of apache-tvm-ffi: what code calls in it changes with these numbers
CPU = Path("/proc/cpuinfo")

Array: TypeAlias = np.ndarray[Any, Any]
Values: TypeAlias = dict[Any, Any]  # by name, and what functions find by its place in the table


class LibraryError(Exception):
    """A refusal in one sentence."""


# ---------------------------------------------------------------- what must hold before code is loaded


def read(folder: Path) -> dict[str, Any]:
    """The manifest, after checking that every file is what it says."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        signed = manifest.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LibraryError(f"'{folder}' is no library of a model: its {MANIFEST} cannot be read") from error
    if manifest.get("format") != FORMAT:
        raise LibraryError(
            f"'{folder}' has format {manifest.get('format')}, and this loader reads {FORMAT}; use its own"
        )
    if signed != digest(canonical(manifest)):
        raise LibraryError(f"'{path}' is not the file that was exported; copy the folder again")
    for name, wanted in manifest["files"].items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise LibraryError(f"'{folder}' lacks the file '{name}'; copy the whole folder") from error
        if found != wanted["sha256"]:
            raise LibraryError(f"'{folder / name}' is not the file that was exported; copy the folder again")
    return dict(manifest)


def canonical(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_machine(manifest: Mapping[str, Any]) -> None:
    """An instruction that the CPU does not have ends the process."""
    here, wanted = (platform.system(), platform.machine()), (manifest["system"], manifest["machine"])
    if here != wanted:
        raise LibraryError(
            f"this library is for {' on '.join(wanted)}, and this is {' on '.join(here)}; export it for here"
        )
    missing = sorted(set(manifest["features"]) - features())
    if missing:
        raise LibraryError(
            f"this CPU lacks {', '.join(missing)}, which the library was compiled for; export it for this one"
        )


def features() -> set[str]:
    """What Linux says that the CPU can do."""
    try:
        lines = CPU.read_text().splitlines()
    except OSError as error:
        raise LibraryError(f"nothing says what this CPU can do: '{CPU}' cannot be read") from error
    named = (line.partition(":") for line in lines)
    return {word for key, _, words in named if key.strip() in ("flags", "Features") for word in words.split()}


def check_runtime() -> None:
    found = tuple(int(number) for number in tvm_ffi.__version__.split(".")[:2])
    if found != RUNTIME:
        raise LibraryError(
            f"apache-tvm-ffi {tvm_ffi.__version__} is not what this library calls; install {wanted_runtime()}"
        )


def wanted_runtime() -> str:
    return f"apache-tvm-ffi=={'.'.join(map(str, RUNTIME))}.*"


def code(path: Path) -> Any:
    try:
        return tvm_ffi.load_module(str(path.resolve()))
    except Exception as error:  # the system's refusals, such as of a C library that is too old
        raise LibraryError(f"'{path}' cannot be loaded: {' '.join(str(error).split())}") from error


# ---------------------------------------------------------------- memory


def placed(count: int, dtype: Any) -> Array:
    """Zeros that begin on a cache line."""
    size = count * np.dtype(dtype).itemsize
    room = np.zeros(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(dtype)


def aligned(floats: Array, *, writeable: bool = False) -> Array:
    """An array as a function takes it: flat float32, where a vector load may begin.

    writeable: as DLPack hands over nothing else.
    """
    flat = np.ascontiguousarray(floats, np.float32).reshape(-1)
    if flat.ctypes.data % ALIGNMENT == 0 and (flat.flags.writeable or not writeable):
        return flat
    found = placed(flat.size, np.float32)
    found[:] = flat
    return found


def part(block: Array, described: Mapping[str, Any]) -> Array:
    start, dtype = described["offset"], np.dtype(described["dtype"])
    return block[start : start + described["count"] * dtype.itemsize].view(dtype)


def mapped(path: Path, size: int) -> Array:
    """A file as it lies in memory, which processes share."""
    if size == 0:
        return placed(0, np.uint8)
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), np.uint8)


def inside(memory: Array, plane: Mapping[str, int]) -> Array:
    """The pixels [N, H, W, C] of a plane, less its border."""
    height, width, border = plane["height"], plane["width"], plane["border"]
    shape = (plane["images"], height + 2 * border, width + 2 * border, plane["pitch"])
    pixels = memory[:-SPARE].reshape(shape)
    return pixels[:, border : border + height, border : border + width, : plane["channels"]]


def by_pixel(values: Array, is_image: bool) -> Array:
    """[N, C, H, W] or [N, C, W] -> [N, H, W, C]; rows [.., K] -> [1, 1, rows, K]"""
    if is_image:
        return (values[:, :, None] if values.ndim == 3 else values).transpose(0, 2, 3, 1)
    return values.reshape(1, 1, -1, values.shape[-1])


# ---------------------------------------------------------------- what happens between calls


def moved(values: Values, step: Mapping[str, Any]) -> Array:
    """What a step computes of arrays."""
    return MOVES[step["do"]](step, *(values[name] for name in step["of"]))


MOVES: dict[str, Callable[..., Array]] = {
    "reshape": lambda step, x: x.reshape(step["shape"]),
    "transpose": lambda step, x: x.transpose(step["axes"]),
    "broadcast": lambda step, x: np.broadcast_to(x, step["shape"]),
    "select": lambda step, x: np.take(x, step["index"], axis=step["axis"]),
    "concatenate": lambda step, *xs: np.concatenate(xs, axis=step["axis"]),
    "add": lambda step, x, y: x + y,
    "count": lambda step: np.arange(*step["shape"]),
    "differs": lambda step, x: x != step["number"],
    "dequantize": lambda step, q, scale, zero: (q.astype(np.float32) - zero.astype(np.float32)) * scale,
}


class Model:
    """model(x, y, ..) -> a tuple of arrays: those of `outputs`, of inputs as in `inputs`.

    keep_cache: the caches of a decoder are no inputs and outputs, but stay in memory from call to call. They
    are empty at first: begin at 0.
    """

    def __init__(self, folder: str | Path = Path(__file__).parent, *, keep_cache: bool = False) -> None:
        folder = Path(folder)
        self.manifest = manifest = read(folder)
        check_machine(manifest)
        check_runtime()
        steps = manifest["steps"]
        kept = [step for step in steps if keep_cache and step["do"] in ("enter", "leave")]
        names = {step["value"] for step in kept}
        self.inputs = [port for port in manifest["inputs"] if port["name"] not in names]
        self.outputs = [port for port in manifest["outputs"] if port["name"] not in names]
        self.turn = threading.Lock()
        # Its functions are those of the module, which must live as long.
        self.module = code(folder / manifest["code"])
        block = mapped(folder / CONSTANTS, manifest["files"][CONSTANTS]["bytes"])
        arena = placed(manifest["arena"], np.uint8)
        self.memory = {name: part(arena, store) for name, store in manifest["stores"].items()}
        for name, store in manifest["stores"].items():
            self.memory[name][:] = store["fill"]
        for step in kept:  # memory that nothing else uses between two calls
            store = manifest["stores"][step["store"]]
            self.memory[step["store"]] = placed(store["count"], store["dtype"])
        self.memory |= {name: part(block, constant) for name, constant in manifest["constants"].items()}
        self.tensors = {
            name: part(block, tensor).reshape(tensor["shape"]) for name, tensor in manifest["tensors"].items()
        }
        self.own = placed(manifest["meeting"], np.int32), placed(manifest["workspace"], np.uint8)
        found = [*self.own, *map(self.memory.get, manifest["table"])]
        self.addresses = placed(len(found), np.int64)
        self.addresses[:] = [0 if x is None else x.ctypes.data for x in found]  # 0: loaded call by call
        table = tvm_ffi.from_dlpack(self.addresses, require_alignment=ALIGNMENT)
        self.call = partial(self.module["main"], table)
        self.steps = [self.bound(step) for step in steps if step not in kept]

    def __call__(self, *given: Any) -> tuple[Array, ...]:
        values = {**self.tensors, **self.checked(given)}
        with self.turn:
            for step in self.steps:
                step(values)
        return tuple(values[output["name"]] for output in self.outputs)

    def checked(self, given: Sequence[Any]) -> Values:
        if len(given) != len(self.inputs):
            names = ", ".join(wanted["name"] for wanted in self.inputs)
            raise LibraryError(
                f"the model takes {len(self.inputs)} inputs ({names}), and {len(given)} were given"
            )
        found = {}
        for wanted, x in zip(self.inputs, map(np.asarray, given), strict=True):
            if list(x.shape) != wanted["shape"] or x.dtype != wanted["dtype"]:
                raise LibraryError(
                    f"input '{wanted['name']}' is {x.dtype} {list(x.shape)}, and the model was compiled for "
                    f"{wanted['dtype']} {wanted['shape']}"
                )
            found[wanted["name"]] = x
        return found

    def bound(self, step: Mapping[str, Any]) -> Callable[[Values], Any]:
        """A step with all that is known before a call."""
        kind = step["do"]
        if kind == "call":
            return lambda values: self.call(step["first"], step["last"], 0, 1)
        if kind in MOVES:
            return lambda values: values.__setitem__(step["value"], moved(values, step))
        return partial(getattr(self, kind), step)

    def load(self, step: Mapping[str, Any], values: Values) -> None:
        """Floats where functions find them; they live as long as the values of a call."""
        self.hold(step, values, values[step["value"]])

    def mask(self, step: Mapping[str, Any], values: Values) -> None:
        """0 where to look, and -inf elsewhere."""
        mask = values[step["value"]]
        self.hold(step, values, np.where(mask, 0.0, -math.inf) if mask.dtype == bool else mask)

    def hold(self, step: Mapping[str, Any], values: Values, floats: Array) -> None:
        values[step["place"]] = held = aligned(floats)
        self.addresses[step["place"]] = held.ctypes.data

    def lend(self, step: Mapping[str, Any], values: Values) -> None:
        """New memory where functions write rows that are returned."""
        made, shape = placed(step["count"], np.float32), step["shape"]
        self.hold(step, values, made)
        values[step["value"]] = made[: math.prod(shape)].reshape(shape)

    def put(self, step: Mapping[str, Any], values: Values) -> None:
        """A tensor of codes or floats, by channel or by row, onto its plane."""
        self.pixels(step)[:] = by_pixel(values[step["value"]], step["plane"]["image"])

    def take(self, step: Mapping[str, Any], values: Values) -> None:
        """What is on a plane, in a shape."""
        pixels, shape = self.pixels(step), step["shape"]
        by_channel = pixels.transpose(0, 3, 1, 2) if step["plane"]["image"] else pixels
        values[step["value"]] = np.array(by_channel, order="C").reshape(shape)

    def function(self, step: Mapping[str, Any], values: Values) -> None:
        """Arrays of floats from arrays of floats."""
        given = [aligned(values[name], writeable=True).reshape(values[name].shape) for name in step["of"]]
        made = [placed(math.prod(to["shape"]), np.float32).reshape(to["shape"]) for to in step["to"]]
        self.module[step["name"]](
            *(tvm_ffi.from_dlpack(x, require_alignment=ALIGNMENT) for x in (*given, *made))
        )
        values.update(zip((to["value"] for to in step["to"]), made, strict=True))

    def pixels(self, step: Mapping[str, Any]) -> Array:
        return inside(self.memory[step["store"]], step["plane"])

    def gather(self, step: Mapping[str, Any], values: Values) -> None:
        """Rows of a table onto a plane."""
        table, indices = values[step["table"]], values[step["indices"]].reshape(-1)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(table):
            raise LibraryError(f"'{step['indices']}' holds numbers that are not 0 .. {len(table) - 1}")
        self.pixels(step)[:] = by_pixel(table[indices], step["plane"]["image"])

    def first(self, step: Mapping[str, Any], values: Values) -> None:
        """The first of some whole numbers."""
        start, last = int(values[step["value"]].reshape(-1)[0]), step["last"]
        if not 0 <= start <= last:
            raise LibraryError(
                f"'{step['value']}' is {start}, and the cache has room behind 0 .. {last} only"
            )
        self.memory[step["store"]][0] = start

    def enter(self, step: Mapping[str, Any], values: Values) -> None:
        """A cache into memory."""
        cache = values[step["value"]]
        self.memory[step["store"]][: cache.size] = cache.reshape(-1)

    def leave(self, step: Mapping[str, Any], values: Values) -> None:
        """A cache out of memory."""
        shape = step["shape"]
        values[step["value"]] = self.memory[step["store"]][: math.prod(shape)].reshape(shape).copy()


def main(arguments: Iterable[str]) -> int:
    """Inputs by name from one file, outputs by name into another."""
    try:
        given, returned = arguments
        model = Model()
        with np.load(given) as arrays:
            inputs = [arrays[wanted["name"]] for wanted in model.inputs]
        found = dict(zip((output["name"] for output in model.outputs), model(*inputs), strict=True))
        np.savez(returned, **found)
    except (LibraryError, OSError, KeyError, ValueError) as error:
        print(f"error: {error}; usage: run.py inputs.npz outputs.npz", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
