"""From a model to the module that is trained: PTQ's own plan, with fake quantization at its edges."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.errors import InputError, RecipeError
from qcompiler.ir import arguments, trace
from qcompiler.job import Job, settled
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.decide import Decision, planned
from qcompiler.passes.forms import forms
from qcompiler.passes.qat.insert import HOME, Network, fake_quantized
from qcompiler.passes.qat.lineage import Recorder
from qcompiler.qat.module import Prepared, QATModule, place
from qcompiler.qat.quantizers import METHODS, Observing, value_quantizer, weight_quantizer
from qcompiler.recipe import Override, Recipe, find_recipe
from qcompiler.rewrite import run
from qcompiler.steps import Steps
from qcompiler.target import Target, find_target


def prepare_qat(
    model: nn.Module,
    example_inputs: Any,
    *,
    calibration: Iterable[Any] | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe = "int8",
    target: str | Target = "cpu",
    method: str = "ste",
    observe_steps: int = 100,
    observe_rate: float = 0.01,
    seed: int = 0,
    progress: bool = False,
) -> QATModule:
    """A module that computes what the quantized model will, and can be trained.

    model, example_inputs, calibration, recipe, target: as for `compile`. The model itself stays as it is; it
        must be in eval mode, because training is of the graph that ships: batch norm is folded with the
        statistics that it has, by gamma and beta that are trained, and dropout is gone.
    method: "ste" (straight-through, scales observed), "lsq" (scales learned) or "pact" (bounds learned).
    observe_steps: of how many batches in training mode every value is observed, before its scale stands or
        is learned; observe_rate: how fast the average of these moves.

    Smoothing, equalization, bias correction and rounding methods of the recipe are left to training.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"cannot train a {type(model).__name__}", why="training starts from a module's parameters",
            fix="pass the nn.Module",
        )  # fmt: skip
    if method not in METHODS:
        raise RecipeError(f"there is no method '{method}'", fix=f"use one of {', '.join(METHODS)}")
    if observe_steps < 0 or not 0 < observe_rate <= 1:
        raise RecipeError(
            f"observe_steps is {observe_steps} and observe_rate {observe_rate}",
            fix="observe at least 0 batches, at a rate above 0 and up to 1",
        )
    chosen, aim = untouched(find_recipe(recipe)), find_target(target)
    with Steps(visible=progress) as steps, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        steps.tell("tracing", 0, None)
        traced = trace(model, example_inputs)
        with Recorder(traced.tensors) as recorder:
            graph = run((*CANONICAL, *forms(chosen, aim)), traced)
        data = settled(model, example_inputs, calibration)
        decision = planned(graph, data, chosen, aim, steps.tell)
    job = Job(
        name=type(model).__name__, original=graph, data=data, example=example_inputs,
        has_data=calibration is not None,
    )  # fmt: skip
    network = fake_quantized(graph, decision.plan, recorder)
    module = QATModule(Prepared(job=job, decision=decision, network=network, method=method))
    place_tensors(module, model, network, traced.tensors)
    place(module, f"{HOME}.values", nn.Module())
    place(module, f"{HOME}.weights", nn.Module())
    observing, weights = Observing(steps=observe_steps, rate=observe_rate), weights_of(decision)
    for name, (value, highest) in network.values.items():
        place(module, name, value_quantizer(method, value, highest, observing))
    for name, spec in network.weights.items():
        place(module, name, weight_quantizer(method, spec, weights[spec.layer]))
    return module


def untouched(recipe: Recipe) -> Recipe:
    """The recipe without what mends a model after training."""
    overrides = tuple(
        Override(
            pattern=override.pattern,
            changes={key: change for key, change in override.changes.items() if key != "weight_method"},
        )
        for override in recipe.overrides
    )
    return replace(
        recipe, smooth=None, equalize=False, bias_correction=False, dynamic_where_better=False,
        weight_method="nearest", overrides=overrides,
    )  # fmt: skip


def place_tensors(module: QATModule, model: nn.Module, network: Network, held: Mapping[str, Tensor]) -> None:
    """Copies of what the network reads of the model; one that has two names stays one.

    A model of which nothing asks for a gradient, as one is that was loaded to be run, is trained as a whole.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers, saved = dict(model.named_buffers(remove_duplicate=False)), set(model.state_dict())
    all_of_it = not any(parameter.requires_grad for parameter in parameters.values())
    copies: dict[int, nn.Parameter] = {}
    graphs = (network.graph, network.folded)
    names = dict.fromkeys(str(node.target) for graph in graphs for node in graph.find_nodes(op="get_attr"))
    for name in names:
        if name in parameters:
            own = parameters[name]
            copy = nn.Parameter(own.detach().clone(), requires_grad=all_of_it or own.requires_grad)
            place(module, name, copies.setdefault(id(own), copy))
        elif name in network.constants:
            place(module, name, network.constants[name].clone(), kept=False)
        else:
            place(module, name, buffers.get(name, held[name]).detach().clone(), kept=name in saved)


def weights_of(decision: Decision) -> Mapping[str, Tensor]:
    """The weight of every layer that has one to quantize."""
    nodes, tensors = decision.graph.by_name, decision.graph.tensors
    return {
        spec.layer: tensors[str(arguments(nodes[spec.layer])[spec.argument].target)]
        for spec in decision.plan.weights
    }
