"""Islands: what torch computes inside a region, and the cut around it.

conv -> nms -> linear   -->   [conv] -> nms -> [linear]
"""

import copy
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.fx.passes.split_module import split_module

from qcompiler.backends.base import Backend
from qcompiler.errors import TraceError
from qcompiler.ir import value
from qcompiler.ir.failure import first_line
from qcompiler.ir.spec import is_float, spec
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.region.capture import inputs, is_number, version
from qcompiler.region.program import traced
from qcompiler.rewrite import run

Islands = Mapping[Node, str]  # node -> why torch computes it
OWN = ("aten", "prims", "qcompiler", "")  # namespaces whose ops an exporter may know


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One call of a module: every value, and which op wrote into which."""

    values: Mapping[Node, Any]
    writes: tuple[tuple[Node, Node], ...]

    @classmethod
    def of(cls, module: fx.GraphModule, given: Sequence[Any]) -> "Seen":
        """Run a copy: what a module writes to may be the user's."""
        watch = Watch(copy.deepcopy(module), graph=module.graph)
        with torch.no_grad():
            watch.run(*apart(given))
        return cls(values=dict(watch.env), writes=tuple(watch.writes))

    def homes(self) -> dict[int, list[Node]]:
        """Storage -> the values that lie in it, in order."""
        found: dict[int, list[Node]] = {}
        for node, x in self.values.items():
            if isinstance(x, Tensor):
                found.setdefault(x.untyped_storage().data_ptr(), []).append(node)
        return found


def apart(given: Sequence[Any]) -> list[Any]:
    """The same values in memory of their own."""
    return [x.detach().clone() if isinstance(x, Tensor) else x for x in given]


class Watch(fx.Interpreter):
    """Runs a module, keeps its values, and notes what is written in place."""

    def __init__(self, module: fx.GraphModule, *, graph: fx.Graph) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self.writes: list[tuple[Node, Node]] = []

    def run_node(self, n: Node) -> Any:
        given = [(node, self.env[node]) for node in n.all_input_nodes if isinstance(self.env[node], Tensor)]
        before = [version(x) for _, x in given]
        result = super().run_node(n)
        self.writes += [(n, node) for (node, x), old in zip(given, before, strict=True) if version(x) != old]
        return result


def input_written(seen: Seen) -> str | None:
    """Why a module is no function: the input that it writes to."""
    groups = [group for group in seen.homes().values() if group[0].op in ("placeholder", "get_attr")]
    return next(
        (f"it writes to its input '{group[0].name}' ({node.name})"
         for group in groups for node, target in seen.writes if target in group),
        None,
    )  # fmt: skip


def order_matters(seen: Seen) -> str | None:
    """Why a module cannot be cut: the value that is read after another op has written into it."""
    place = {node: index for index, node in enumerate(seen.values)}
    for group in seen.homes().values():
        for node, target in seen.writes:
            older = [value for value in group if place[value] < place[node]] if target in group else []
            late = any(place.get(user, -1) > place[node] for value in older for user in value.users)
            if late:
                return f"'{target.name}' is read after {node.name} has written into it"
    return None


def inspect(module: fx.GraphModule, seen: Seen, backend: Backend) -> dict[Node, str]:
    """Islands that are known before anything is tried."""
    custom = [node for node in module.graph.nodes if namespace(node) not in OWN]
    return free_numbers(module) | refused(custom, seen.values, backend) | shared(module, seen)


def free_numbers(module: fx.GraphModule) -> dict[Node, str]:
    """Ops that take a number which the code computes as it runs: a graph has none but its tensors' sizes."""
    free = {node for node in inputs(module) if is_number(node)}
    found = {}
    for node in module.graph.nodes:
        if node.op.startswith("call") and free & {*node.all_input_nodes}:
            found[node] = "it takes a number that the code computes as it runs"
            free |= {node} if is_number(node) else set()
    return found


def namespace(node: Node) -> str:
    """mylib of mylib::nms; "" for what is no registered op."""
    packet = isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket)
    return str(node.target).split(".", maxsplit=1)[0] if packet else ""


def shared(module: fx.GraphModule, seen: Seen) -> dict[Node, str]:
    """Views through which two results, or a result and an input, are one memory: copies would part them."""
    results = module.graph.output_node().all_input_nodes
    found = {}
    for group in seen.homes().values():
        given = [node for node in group if node.op in ("placeholder", "get_attr")]
        returned = [node for node in group if node in results]
        if returned and len({*given, *returned}) > 1:
            views = [node for node in group if node.op.startswith("call")]
            # What allocates the memory may be compiled; everything that looks into it is torch's.
            for node in views if given else views[1:]:
                found[node] = "its result is a view of memory that is returned, too"
    return found


def probe(module: fx.GraphModule, seen: Seen, backend: Backend, error: Exception) -> dict[Node, str]:
    """Which ops are to blame for an error of the whole: every kind of op is tried by itself.

    What torch cannot export for any size, and yet exports op by op, is cut at the ops on open sizes.
    """
    nodes = [node for node in module.graph.nodes if node.op.startswith("call")]
    if not isinstance(error, TraceError):
        return refused(nodes, seen.values, backend)
    why = f"torch cannot export it for any size: {error.why}"
    return refused(nodes, seen.values, None) or {
        node: why for node in nodes if not is_contraction(node) and has_open_sizes(node)
    }


def has_open_sizes(node: Node) -> bool:
    return any(False in kind_of(given)[1:] for given in (node, *node.all_input_nodes))


def refused(nodes: Sequence[Node], values: Mapping[Node, Any], backend: Backend | None) -> dict[Node, str]:
    verdicts: dict[tuple[Any, ...], str | None] = {}
    found = {}
    for node in nodes:
        if not any(isinstance(x, Tensor) for x in leaves(values[node])) or node.target is operator.getitem:
            continue
        kind = (node.target, *map(kind_of, node.all_input_nodes), str(node.kwargs))
        if kind not in verdicts:
            verdicts[kind] = objection(node, values, backend)
        if verdicts[kind] is not None:
            found[node] = str(verdicts[kind])
    return found


def kind_of(given: Node) -> tuple[bool, ...]:
    """Float or not, and which of its sizes are open."""
    shape = known.shape if (known := spec(given)) else ()
    return is_float(given), *(isinstance(size, int) for size in shape)


def objection(node: Node, values: Mapping[Node, Any], backend: Backend | None) -> str | None:
    """Why one op, alone, cannot be traced or computed by a backend; None if it can."""
    tensors = [given for given in node.all_input_nodes if isinstance(values[given], Tensor)]
    if not tensors:
        return None
    graph, new = fx.Graph(), dict[Node, Any]()
    for given in tensors:
        new[given] = graph.placeholder(given.name)
        new[given].meta = dict(given.meta)
    copied = graph.node_copy(node, lambda given: new.get(given, values.get(given)))
    graph.output((copied,))
    try:
        alone = fx.GraphModule(node.graph.owning_module or torch.nn.Module(), graph)
        graph_of = run(CANONICAL, traced(alone, [values[given] for given in tensors]))
        if backend is not None:
            backend.lower(graph_of, threads=1)
    except Exception as error:
        return getattr(error, "why", None) or first_line(error)
    return None


def leaves(found: Any) -> Sequence[Any]:
    return found if isinstance(found, tuple | list) else (found,)


def cut(module: fx.GraphModule, islands: Islands) -> fx.GraphModule:
    """Split a module into parts that are all island or all not.

    level(n) = max over inputs i of  level(i)      if i and n are of a kind
                                     level(i) + 1  otherwise

    Nodes of one level make a part; every edge goes to the same level or a higher one, so parts form no cycle.
    """
    torch_s = {*islands}
    level: dict[Node, int] = {}
    for node in module.graph.nodes:
        if not node.op.startswith("call"):
            continue
        before = [given for given in node.all_input_nodes if given in level]
        if node.target is operator.getitem and before and not isinstance(value(before[0]), Tensor):
            # An item of a tuple stays with the op that made it: parts exchange tensors.
            torch_s |= {node} if before[0] in torch_s else set()
            level[node] = level[before[0]]
            continue
        lowest = max((level[given] for given in before), default=0)
        level[node] = lowest + (lowest % 2 != (node in torch_s))
    return split_module(module, module, level.__getitem__)


def is_island(name: str) -> bool:
    """Whether a part of `cut` is torch's, by its name."""
    return int(name.rsplit("_", maxsplit=1)[-1]) % 2 == 1


# Ops that are worth a kernel on integers, by what torch.compile calls them.
CONTRACTIONS = ("conv", "linear", "matmul", "addmm", "bmm", "einsum", "mm")


def is_contraction(node: Node) -> bool:
    return node.op.startswith("call") and any(word in op_name(node).lower() for word in CONTRACTIONS)


def op_name(node: Node) -> str:
    """conv2d, relu, mylib.nms: an op as its user calls it."""
    if node.op == "call_module":
        return type(node.graph.owning_module.get_submodule(str(node.target))).__name__  # type: ignore[union-attr]
    if node.op == "call_function" and isinstance(
        node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket
    ):
        return str(node.target).removesuffix(".default")
    return str(getattr(node.target, "__name__", node.target))
