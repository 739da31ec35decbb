"""Memory for planes: what is read for the last time gives its place to what comes next, while it is near.

    a -> b -> c -> d    -->    c lies where a lay, and d where b lay

Otherwise the activations of a network pass through the whole of the second cache, and every store waits.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.tvm.build import placed
from qcompiler.backends.tvm.program import Program, Store


def memory(program: Program) -> dict[str, NDArray[Any]]:
    """An array for every store; those of the same room overlap, and are never in use together."""
    rooms = shared(program)
    memories = {room: placed(np.zeros(size, np.uint8)) for room, size in sizes(program, rooms).items()}
    found = {}
    for name, room in rooms.items():
        store = program.stores[name]
        array = memories[room][: store.bytes].view(store.dtype)
        array[:] = store.fill
        found[name] = array
    return found


def sizes(program: Program, rooms: Mapping[str, str]) -> dict[str, int]:
    """Bytes of every room."""
    found: dict[str, int] = defaultdict(int)
    for name, room in rooms.items():
        found[room] = max(found[room], program.stores[name].bytes)
    return found


def shared(program: Program) -> dict[str, str]:
    """Store -> the store whose room it is in; the room given up last is taken first."""
    owners = {name: owner(program.stores, name) for name in program.stores}
    used = [[owners[name] for name in step.memory if name in owners] for step in program.steps]
    last = {name: turn for turn, names in enumerate(used) for name in names}
    rooms: dict[str, str] = {}
    free: dict[Any, list[str]] = defaultdict(list)
    for turn, names in enumerate(used):
        for name in dict.fromkeys(names):
            if name not in rooms:
                waiting = free[mould(program.stores[name])]
                rooms[name] = waiting.pop() if waiting else name
        for name in dict.fromkeys(names):
            if last[name] == turn:
                free[mould(program.stores[name])].append(rooms[name])
    return {name: rooms.get(found, found) for name, found in owners.items()}


def owner(stores: Mapping[str, Store], name: str) -> str:
    while stores[name].shares:
        name = stores[name].shares
    return name


def mould(store: Store) -> Any:
    """What stores of one room have in common: borders are written once, before the first call."""
    return (store.plane, store.fill) if store.plane.border else None
