"""Make the plan: placement, classes of values that share a scale, and the range of each by measured error."""

import operator
from collections.abc import Iterable, Mapping, Sequence

import networkx as nx
import numpy as np
import torch
from torch.fx import Node

from qcompiler.errors import PlanError
from qcompiler.ir import Graph, arguments, label, source_line
from qcompiler.ir.graph import operator_of
from qcompiler.ir.spec import returns_float
from qcompiler.numerics import (
    Format,
    Histogram,
    IntFormat,
    PerTensor,
    Scheme,
    accumulator_bound,
    best_range,
    params_from_range,
    parse_format,
    quantize,
)
from qcompiler.numerics.observers.histogram import FloatArray
from qcompiler.numerics.observers.search import Function
from qcompiler.passes.calibrate import Ranges
from qcompiler.passes.fuse import Group, starts_at_zero
from qcompiler.passes.placement import Choice, operands, place
from qcompiler.passes.weights import MOST_BIAS, bias_codes, weight_params, with_room_for_bias
from qcompiler.plan import LayerPlan, Plan, ValueSpec, WeightSpec
from qcompiler.recipe import Recipe
from qcompiler.rewrite import Trait, has
from qcompiler.target import Target
from qcompiler.target.machine import this_cpu

aten = torch.ops.aten


def values_to_observe(choices: Mapping[Node, Choice]) -> list[Node]:
    """The activations that need a range: what integer kernels read and return."""
    wanted: dict[Node, None] = {}
    for choice in choices.values():
        if choice.mode != "static":
            continue
        wanted.update(dict.fromkeys(value for value in operands(choice.group) if value.op != "get_attr"))
        if choice.output_codes:
            wanted[choice.group.result] = None
    return list(wanted)


def make_plan(
    graph: Graph,
    groups: Mapping[Node, Group],
    ranges: Ranges,
    recipe: Recipe,
    target: Target,
    floats: Mapping[str, str] | None = None,
) -> Plan:
    """Decide every tensor and layer; raises PlanError naming the layer where no legal choice exists."""
    choices = place(graph, groups, recipe, target, floats or {})
    weights = tuple(
        plan_weight(choice, graph, target)
        for choice in choices.values()
        if choice.mode != "float" and choice.group.row.weight
    )
    values = (*plan_values(choices, ranges, target, graph), *plan_dynamic(choices, target))
    placed = (describe(choice, target) for choice in choices.values() if is_layer(choice))
    order = {node.name: position for position, node in enumerate(graph.fx.nodes)}
    plan = Plan(
        recipe=recipe.name,
        target=target.name,
        values=tuple(sorted(values, key=lambda value: order[value.value])),
        weights=weights,
        layers=tuple(sorted((*placed, *unplaced(graph, groups)), key=lambda layer: order[layer.node])),
    )
    check_accumulators(plan, graph)
    return plan


# ---------------------------------------------------------------- layers


def is_layer(choice: Choice) -> bool:
    """Data movement is not computation; everything else counts for coverage."""
    return choice.group.row.formula != "move"


def describe(choice: Choice, target: Target) -> LayerPlan:
    row, layer = choice.group.row, choice.recipe
    weight_only = next((w.kernel for w in target.weight_only if w.format == layer.weights), "float")
    static = row.kernel if choice.output_codes else row.to_float or row.kernel
    dynamic = target.block_kernel if layer.group_size else str(target.dynamic_kernel)
    kernels = {"static": static, "dynamic": dynamic, "weight-only": weight_only}
    precision = "float"
    if choice.mode == "static":
        precision = activation_format(layer, target).name
    elif choice.mode != "float":
        precision = weight_format(layer, target).name
    # Minifloats without a kernel are stored in few bits and computed in float.
    kernel = kernels.get(choice.mode, "float") if target.computes(precision) else "float"
    return LayerPlan(
        node=choice.group.anchor.name,
        label=label(choice.group.anchor),
        op=str(choice.group.anchor.target).removeprefix("aten.").removeprefix("qcompiler.").split(".")[0],
        kernel=kernel,
        precision="int8" if precision == "uint8" else precision,
        why=choice.why,
        source=source_line(choice.group.anchor) or "",
        output_quantized=choice.output_codes,
    )


def unplaced(graph: Graph, groups: Mapping[Node, Group]) -> Iterable[LayerPlan]:
    """Ops that the target has no integer row for, so that nothing float goes unmentioned."""
    inside = {node for group in groups.values() for node in (group.anchor, *group.chain)}
    for node in graph.fx.nodes:
        if computes_float(node) and node not in inside and not has(node, Trait.MOVES_DATA):
            op = str(node.target).removeprefix("aten.").removeprefix("qcompiler.").split(".")[0]
            yield LayerPlan(
                node=node.name, label=label(node), op=op, kernel="float", precision="float",
                why="the target has no integer kernel for this op", source=source_line(node) or "",
            )  # fmt: skip


def computes_float(node: Node) -> bool:
    """Whether an op computes floats; taking a value apart is no computation."""
    parting = (operator.getitem, aten.split.Tensor, aten.split_with_sizes.default)
    return node.op == "call_function" and node.target not in parting and returns_float(node)


def activation_format(layer: Recipe, target: Target) -> Format:
    name = target.activation if layer.activations in (None, "target") else str(layer.activations)
    format = parse_format(name)
    target.supports(format.name, "activations")
    return format


def weight_format(layer: Recipe, target: Target) -> Format:
    name = target.weight if layer.weights in (None, "target") else str(layer.weights)
    format = parse_format(name)
    target.supports(format.name, "weights")
    return format


# ---------------------------------------------------------------- weights


def plan_weight(choice: Choice, graph: Graph, target: Target) -> WeightSpec:
    group, layer = choice.group, choice.recipe
    format = weight_format(layer, target)
    weight = arguments(group.anchor)[str(group.row.weight)]
    reduction = graph.tensors[str(weight.target)].shape[1:].numel()
    size = layer.group_size
    square = choice.mode == "dynamic" and bool(size) and target.dynamic_blocks.get(format.name) == size
    if size and choice.mode != "weight-only" and not square:
        raise PlanError(
            f"group size {size} does not fit integer activations",
            node=label(group.anchor),
            why="an integer kernel has one scale per output channel",
            fix="set group_size to 0, or activations to null",
        )
    if square and (layer.weight_observer, layer.weight_method) != ("minmax", "nearest"):
        raise PlanError(
            f"weights in squares of {size} by '{layer.weight_observer}' and '{layer.weight_method}'",
            node=label(group.anchor),
            why="the scale of a square is that of its largest weight",
            fix="set weight_observer to 'minmax' and weight_method to 'nearest'",
        )
    if choice.mode == "weight-only":
        check_weight_only(format.name, size, group, target)
    if size and reduction % size and not square:
        raise PlanError(
            f"group size {size} does not divide the {reduction} inputs of the layer",
            node=label(group.anchor),
            fix="choose a divisor, or set weights to null for this layer to keep it in float",
        )
    reader = target.reader_of(format.name) if choice.mode == "weight-only" else None
    return WeightSpec(
        layer=group.anchor.name, argument=str(group.row.weight), format=format.name, axis=0, group_size=size,
        observer=layer.weight_observer, limit=weight_limit(choice, target), method=layer.weight_method,
        float_bias=choice.mode != "static" or bool(group.row.to_float and not choice.output_codes),
        scale_type=reader.scales if reader is not None else "float32", square=square,
    )  # fmt: skip


def weight_limit(choice: Choice, target: Target) -> int:
    """Without the target's CPU features, pairs of products saturate at 16 bits: weights need a bit less."""
    safe = not target.features or any(name in this_cpu().features for name in target.features)
    return 0 if safe or not choice.integer else int(target.weight_limit or 0)


def check_weight_only(format: str, size: int, group: Group, target: Target) -> None:
    sizes = target.group_sizes(format)
    if size not in sizes:
        why = f"its group sizes for {format} are {list(sizes)}" if sizes else f"it reads no {format} weights"
        raise PlanError(
            f"weights in {format} with group size {size} have no kernel on target '{target.name}'",
            node=label(group.anchor),
            why=why,
            fix="change weights or group_size in the recipe",
        )


# ---------------------------------------------------------------- activations


def plan_values(
    choices: Mapping[Node, Choice], ranges: Ranges, target: Target, graph: Graph
) -> Iterable[ValueSpec]:
    """One spec per value that exists as codes, classes sharing their scale."""
    classes = share(choices)
    order = {node: position for position, node in enumerate(graph.fx.nodes)}
    for members in sorted(classes, key=lambda nodes: min(order[node] for node in nodes)):
        ordered = sorted(members, key=order.__getitem__)
        yield from plan_class(ordered, choices, ranges, target)


def share(choices: Mapping[Node, Choice]) -> list[set[Node]]:
    """Values joined by kernels that pass codes through must have one scale and zero point."""
    joined: nx.Graph[Node] = nx.Graph()
    joined.add_nodes_from(values_to_observe(choices))
    for choice in choices.values():
        if choice.mode == "static" and choice.group.row.output == "same":
            joined.add_edge(operands(choice.group)[0], choice.group.result)
    return [set(members) for members in nx.connected_components(joined)]


def plan_class(
    members: Sequence[Node], choices: Mapping[Node, Choice], ranges: Ranges, target: Target
) -> Iterable[ValueSpec]:
    format = class_format(members, choices, target)
    histogram = merged([ranges[node.name].histogram for node in members])
    recipe = next(choice.recipe for choice in choices.values() if touches(choice, members[0]))
    scheme = scheme_of(histogram, format, target)
    name, (lo, hi), scores = best_range(
        histogram, format, scheme, recipe.observers, read_by=function_behind(members, choices)
    )
    bound = upper_bound(members)
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale, zero_point = affine(lo, hi, format, scheme, bound)
    shared = members[0].name if len(members) > 1 else ""
    for node in members:
        yield ValueSpec(
            value=node.name, label=label(node), format=format.name, why=reason(node, choices, target, format),
            readers=readers_of_codes(node, choices), shared=shared, observer=name, lo=lo, hi=hi,
            scale=scale, zero_point=zero_point, scores=scores,
        )  # fmt: skip


def scheme_of(histogram: Histogram, format: Format, target: Target) -> Scheme:
    if not target.zero_points:
        return "symmetric"
    return "one_sided" if histogram.low >= 0 and isinstance(format, IntFormat) else "asymmetric"


def function_behind(members: Sequence[Node], choices: Mapping[Node, Choice]) -> Function | None:
    """The function of one number that alone reads a value, as numpy knows it."""
    readers = [choice for choice in choices.values() if set(members) & set(operands(choice.group))]
    if len(members) > 1 or len(readers) != 1 or readers[0].mode != "static" or not readers[0].group.row.links:
        return None
    anchor = readers[0].group.anchor
    literals = {name: given for name, given in arguments(anchor).items() if not isinstance(given, Node)}

    def function(x: FloatArray) -> FloatArray:
        y: FloatArray = operator_of(anchor)(torch.from_numpy(x), **literals).numpy()
        return y

    return function


def merged(histograms: Sequence[Histogram]) -> Histogram:
    union = Histogram()
    for histogram in histograms:
        union.merge(histogram)
    return union


def touches(choice: Choice, value: Node) -> bool:
    return choice.mode == "static" and (value is choice.group.result or value in operands(choice.group))


def class_format(members: Sequence[Node], choices: Mapping[Node, Choice], target: Target) -> Format:
    """The format that the layers around a class agree on; an explicit one beats the target's own."""
    wanted = {
        activation_format(choice.recipe, target)
        for choice in choices.values()
        if any(touches(choice, member) for member in members)
    }
    explicit = {format for format in wanted if format.name != target.activation}
    if len(explicit) > 1:
        raise one_format(members[0], {format.name for format in explicit})
    return next(iter(explicit or wanted))


def one_format(value: Node, wanted: Iterable[str]) -> PlanError:
    return PlanError(
        f"the layers around '{label(value)}' want its value as {', '.join(sorted(wanted))}",
        why="one tensor has one format",
        fix="give these layers the same activations in the recipe",
    )


def affine(lo: float, hi: float, format: Format, scheme: Scheme, bound: float | None) -> tuple[float, int]:
    """Scale and zero point; a clamp's upper bound must stay implied, so the top code may not exceed it."""
    params = params_from_range(lo, hi, format, PerTensor(), scheme=scheme)
    scale, zero = np.float32(params.scale), int(params.zero_point)
    if bound is None or not isinstance(format, IntFormat):
        return float(scale), zero
    return min(float(scale), largest_step(bound, format.qmax - zero)), zero


def largest_step(bound: float, steps: int) -> float:
    """The largest float32 of which that many do not exceed a bound."""
    top = np.float32(steps)
    scale = np.float32(bound) / top
    while scale * top > np.float32(bound):  # the division has rounded up
        scale = np.nextafter(scale, np.float32(0))
    return float(scale)


def upper_bound(members: Sequence[Node]) -> float | None:
    """The smallest upper bound of an absorbed clamp that ends in one of these values."""
    bounds = [
        float(arguments(node)["max"])
        for node in members
        if node.target is aten.clamp.default and starts_at_zero(node) and arguments(node)["max"] is not None
    ]
    return min(bounds, default=None)


def readers_of_codes(value: Node, choices: Mapping[Node, Choice]) -> tuple[str, ...]:
    """Empty if the value only exists as codes; else the kernels that read codes while others read float."""
    if any(choice.group.result is value and choice.output_codes for choice in choices.values()):
        return ()
    return tuple(
        reader_of(value, choice.group).name
        for choice in choices.values()
        if choice.mode == "static" and value in operands(choice.group)
    )


def reader_of(value: Node, group: Group) -> Node:
    """The node of a group that reads a value: its anchor, or the sum behind it."""
    return group.chain[0] if value is group.residual else group.anchor


def reason(value: Node, choices: Mapping[Node, Choice], target: Target, format: Format) -> str:
    support = target.supports(format.name, "activations")
    limits = f" ({support.reason})" if support.executes == "float" else ""
    produced = next((c for c in choices.values() if c.group.result is value and c.output_codes), None)
    if produced is not None:
        return f"{produced.group.row.kernel} returns codes{limits}"
    count = len(readers_of_codes(value, choices))
    return f"read as codes by {count} kernel{'s' if count > 1 else ''}, by the others as float{limits}"


def plan_dynamic(choices: Mapping[Node, Choice], target: Target) -> Iterable[ValueSpec]:
    """Inputs of dynamically quantized linears; one value read by several is quantized once."""
    readers: dict[Node, dict[str, tuple[str, int]]] = {}
    for anchor, choice in choices.items():
        if choice.mode == "dynamic":
            found = readers.setdefault(operands(choice.group)[0], {})
            found[anchor.name] = activation_format(choice.recipe, target).name, choice.recipe.group_size
    by_row = target.range_of == "row"
    for value, formats in readers.items():
        (format, block), *others = dict.fromkeys(formats.values())
        if others:
            raise one_format(value, {name + f" in blocks of {n}" * (n > 0) for name, n in formats.values()})
        each = "of each block " if block else "of each row " if by_row else ""
        yield ValueSpec(
            value=value.name, label=label(value), format=format, why=f"range {each}taken at run time",
            readers=tuple(formats), dynamic=True, by_row=by_row, block=block, observer="run time",
        )  # fmt: skip


# ---------------------------------------------------------------- overflow


def check_accumulators(plan: Plan, graph: Graph) -> None:
    """Refuse a layer whose 32-bit accumulator could wrap for some input, from its actual weights."""
    values = {value.value: value for value in plan.values}
    for planned in plan.weights:
        node = graph.by_name[planned.layer]
        value = values.get(node.args[0].name) if isinstance(node.args[0], Node) else None
        weight = graph.tensors[str(arguments(node)[planned.argument].target)]
        format = parse_format(value.format) if value is not None else None
        if value is None or not isinstance(format, IntFormat) or format.bits > 8:
            continue  # its products are summed in float
        if weight[0].numel() * 255 * 127 < MOST_BIAS:
            continue
        params, bias = weight_params(weight, planned), None
        given = arguments(node).get("bias")
        if isinstance(given, Node) and not planned.float_bias:
            params = with_room_for_bias(params, graph.tensors[str(given.target)], value.scale)
            bias = bias_codes(graph.tensors[str(given.target)], value.scale, params.scale)
        codes = quantize(weight, params)
        if int(accumulator_bound(codes, value.zero_point, format.qmin, format.qmax, bias).max()) >= 2**31:
            raise PlanError(
                f"a sum over {weight[0].numel()} products can exceed 32 bits",
                node=label(node),
                why="the integer kernel would wrap silently",
                fix="keep this layer in float with an override",
            )
