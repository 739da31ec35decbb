"""Which layers compute on integers, decided from the target's rows, the recipe and the flow of codes.

A row that *starts* (conv, linear) is worth quantizing an input for. A row that *links* (gelu) is worth it
between a kernel that can return codes and one that starts. Every other row only *carries* codes: it runs on
integers if all its operands are codes already. So the residual add of a CNN, fed by
convolutions that return codes, becomes integer, and the residual stream of a transformer, fed by linears
that return float, stays float, without either being named anywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch.fx import Node

from qcompiler.errors import PlanError
from qcompiler.ir import Graph, arguments, is_float, label, spec
from qcompiler.ir.spec import module_path
from qcompiler.numerics import parse_format
from qcompiler.passes.fuse import Group
from qcompiler.recipe import Recipe
from qcompiler.target import Target


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was decided for one group, and why."""

    group: Group
    recipe: Recipe  # as it holds for this layer
    integer: bool
    mode: str  # "static", "dynamic", "weight-only" or "float"
    why: str
    output_codes: bool = False


def place(
    graph: Graph, groups: Mapping[Node, Group], recipe: Recipe, target: Target, floats: Mapping[str, str]
) -> dict[Node, Choice]:
    """Anchor -> choice. `floats` maps names of anchors that must stay float to the reason."""
    recipe.check_patterns([layer_names(group) for group in groups.values()])
    choices = {
        anchor: start(group, recipe, target, floats) for anchor, group in groups.items() if group.row.starts
    }
    for anchor, group in groups.items():
        if not group.row.starts:
            decide = link if group.row.links else carry
            choices[anchor] = decide(group, recipe, choices, floats)
    ordered = {anchor: choices[anchor] for anchor in groups}
    return {anchor: settle_output(choice, graph, ordered) for anchor, choice in ordered.items()}


def layer_names(group: Group) -> tuple[str, ...]:
    return (module_path(group.anchor), group.anchor.name, label(group.anchor))


def start(group: Group, recipe: Recipe, target: Target, floats: Mapping[str, str]) -> Choice:
    """Decide a conv or linear by its recipe and by whether its weight is known."""
    layer = recipe.for_layer(*layer_names(group))
    given = arguments(group.anchor)
    weight = given[group.row.weight] if group.row.weight else None

    def choice(mode: str, why: str) -> Choice:
        return Choice(
            group=group, recipe=layer, integer=mode in ("static", "dynamic"), mode=mode, why=why,
            output_codes=mode == "static" and group.row.output == "required",
        )  # fmt: skip

    if group.anchor.name in floats:
        return choice("float", floats[group.anchor.name])
    if layer.weights is None:
        return choice("float", "the recipe keeps this layer in float")
    if not is_float(given[group.row.operands[0]]):
        return choice("float", "its operands are not floating point")
    if group.row.weight is None:
        if layer.activations is None or layer.dynamic:
            return choice("float", "the recipe keeps activations in float here")
        return choice("static", "compute-bound: integer kernel on calibrated inputs")
    if not isinstance(weight, Node) or weight.op != "get_attr":
        return choice("float", "its weight is computed at run time")
    if not is_float(weight):
        return choice("float", "its operands are not floating point")
    if group.row.formula == "conv" and rank(given[group.row.operands[0]]) != rank(weight):
        return choice("float", "its input has no batch dimension")
    is_linear = group.row.formula == "linear"
    if layer.activations is None or layer.dynamic:
        refuse_other_dynamic(layer, group, target)
        if not is_linear:
            return choice("float", f"recipe '{layer.name}' quantizes linears only")
        if layer.dynamic and layer.activations:
            if target.dynamic_kernel is None:
                return choice("float", f"target '{target.name}' has no kernel for ranges taken at run time")
            return choice("dynamic", "range taken at run time")
        if why := uneven(group, recipe, target) or unread(group, layer, target):
            return choice("float", why)
        return choice("weight-only", "weight stored in few bits")
    if why := uncalibrated(layer, target):
        return choice("float", why)
    bias = given.get(str(group.row.bias))
    if isinstance(bias, Node) and bias.op != "get_attr":
        return choice("float", "its bias is computed at run time")
    kind = "few-bit floats" if "float" in str(layer.activations) else "integer kernel"
    return choice("static", f"compute-bound: {kind} on calibrated input")


def uncalibrated(layer: Recipe, target: Target) -> str:
    """Why the target reads no codes of a recipe's activations by a range that is known before; else empty."""
    wanted, formats = layer.activations, target.calibrated_formats
    name = target.activation if wanted in (None, "target") else parse_format(str(wanted)).name
    if formats is None or name in formats:
        return ""
    return f"target '{target.name}' reads {name} by ranges taken at run time alone: use a dynamic recipe"


def rank(value: Node) -> int:
    found = spec(value)
    return len(found.shape) if found is not None else 0


def refuse_other_dynamic(layer: Recipe, group: Group, target: Target) -> None:
    """Ranges taken at run time exist for some formats only."""
    formats = target.dynamic_formats
    wanted = layer.activations
    if layer.dynamic and wanted not in (None, "target") and parse_format(wanted).name not in formats:
        raise PlanError(
            f"activations in '{wanted}' cannot take their range at run time",
            node=label(group.anchor),
            why=f"kernels of target '{target.name}' quantize to {' or '.join(formats) or 'nothing'}",
            fix="use a recipe with these or another target, or leave activations out of a dynamic recipe",
        )


def uneven(group: Group, recipe: Recipe, target: Target) -> str:
    """Why a linear cannot have the recipe's groups; empty where it can, or where an error should say so.

    A recipe speaks of all layers, and one that its groups do not fit stays float. A size that an override
    gives to this very layer, or that no kernel of the target takes, is a mistake: the plan refuses it.
    """
    names = layer_names(group)
    layer = recipe.for_layer(*names)
    asked = any(override.changes.get("group_size") for override in recipe.overrides_of(*names))
    inputs = spec(arguments(group.anchor)[str(group.row.weight)])
    assert inputs is not None
    width, sizes = inputs.shape[-1], target.group_sizes(str(layer.weights))
    if asked or layer.group_size not in sizes or not layer.group_size or width % layer.group_size == 0:
        return ""
    fitting = [size for size in sizes if size == 0 or width % size == 0]
    hint = f"; group_size {max(fitting)} would fit it" if fitting else ""
    return f"its {width} inputs are no whole number of groups of {layer.group_size}{hint}"


def unread(group: Group, layer: Recipe, target: Target) -> str:
    """Why the target's kernel for weights of few bits does not read a linear; empty where it does."""
    row, given = target.reader_of(str(layer.weights)), arguments(group.anchor)
    x, weight = (spec(given[name]) for name in (group.row.operands[0], str(group.row.weight)))
    assert x is not None and weight is not None
    if row is None:
        return ""
    if x.dtype not in row.reads:
        found, *wanted = (str(dtype).removeprefix("torch.") for dtype in (x.dtype, *row.reads))
        return f"its input is {found}, and the kernel reads {' or '.join(sorted(wanted))}: convert the model"
    for size, of, what in zip(weight.shape, (row.outputs, row.inputs), ("outputs", "inputs"), strict=True):
        if size % of:
            return f"its {size} {what} are no multiple of {of}, as many as the kernel takes at a time"
    return ""


def carry(group: Group, recipe: Recipe, choices: Mapping[Node, Choice], floats: Mapping[str, str]) -> Choice:
    """An op that does not start is integer if all its operands are codes already."""
    layer = recipe.for_layer(*layer_names(group))
    missing = next((operand for operand in operands(group) if not has_codes(operand, choices)), None)

    def choice(integer: bool, why: str) -> Choice:
        mode = "static" if integer else "float"
        return Choice(group=group, recipe=layer, integer=integer, mode=mode, why=why, output_codes=integer)

    if group.anchor.name in floats:
        return choice(False, floats[group.anchor.name])
    if layer.activations is None or layer.weights is None or layer.dynamic:
        return choice(False, "the recipe keeps activations in float here")
    if all(operand.op == "get_attr" for operand in operands(group)):
        return choice(False, "it has no tensor operands that could be codes")
    if missing is not None:
        return choice(
            False, f"its operand {label(missing)} is float; quantizing it only for this op does not pay"
        )
    return choice(True, "its operands are codes already")


def link(group: Group, recipe: Recipe, choices: Mapping[Node, Choice], floats: Mapping[str, str]) -> Choice:
    """An op of one operand is integer where codes can come in, and go on to a kernel that starts."""
    carried = carry(group, recipe, choices, floats)
    if carried.integer or group.anchor.name in floats or carried.recipe.dynamic:
        return carried
    (operand,) = operands(group)
    source = producer(operand, choices)
    readers = list(group.result.users)
    comes = source is not None and source.mode == "static" and len(operand.users) == 1
    goes = bool(readers) and all(
        reader in choices and choices[reader].mode == "static" and choices[reader].group.row.starts
        for reader in readers
    )
    if not comes or not goes:
        return carried
    why = "between a kernel that can return codes and one that reads them"
    return replace(carried, integer=True, mode="static", why=why, output_codes=True)


def operands(group: Group) -> list[Node]:
    """The values that the kernel would read as codes; constants are among them."""
    given = arguments(group.anchor)
    found: list[Node] = []
    for name in group.row.operands:
        argument = given.get(name)
        given_nodes = list(argument) if isinstance(argument, list | tuple) else [argument]
        nodes = [node for node in given_nodes if isinstance(node, Node)]
        if len(nodes) < len(given_nodes):
            return []
        found.extend(nodes)
    return [*found, group.residual] if group.residual is not None else found


def has_codes(value: Node, choices: Mapping[Node, Choice]) -> bool:
    """Whether a value exists as codes: an integer kernel returns it, or one that starts reads it.

    What a float kernel returns is a stream that stays float for all but the kernels that start there.
    """
    if value.op == "get_attr":
        found = spec(value)
        return found is not None and found.dtype.is_floating_point
    produced = producer(value, choices)
    if produced is not None:
        return produced.output_codes
    return any(
        choice.mode == "static" and choice.group.row.starts and value in operands(choice.group)
        for choice in choices.values()
    )


def producer(value: Node, choices: Mapping[Node, Choice]) -> Choice | None:
    return next((choice for choice in choices.values() if choice.group.result is value), None)


def settle_output(choice: Choice, graph: Graph, choices: Mapping[Node, Choice]) -> Choice:
    """A linear returns codes where all its readers want codes, or where it absorbs a clamp; float elsewhere.

    The kernel that returns float has no clamp: one behind it would keep the whole layer in float.
    """
    row = choice.group.row
    if choice.mode != "static" or row.output != "optional":
        return choice
    result = choice.group.result
    readers = list(result.users)
    all_take_codes = bool(readers) and all(
        reader in choices and choices[reader].mode == "static" and result in operands(choices[reader].group)
        for reader in readers
    )
    reason = (
        "all readers take codes" if all_take_codes else "it absorbs a clamp" if choice.group.chain else ""
    )
    return replace(
        choice,
        output_codes=bool(reason),
        why=f"{choice.why}; {reason}" if reason else choice.why,
    )
