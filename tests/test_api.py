"""The product as a user calls it: what goes in, what comes out, what is saved, and what is refused."""

import hashlib
import json
import re
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import qcompiler as qc
from qcompiler.api import explain
from qcompiler.errors import (
    CalibrationError,
    ContractError,
    InputError,
    LoweringError,
    PlanError,
    RecipeError,
    TraceError,
)
from qcompiler.numerics import sqnr

Pair = namedtuple("Pair", ["first", "second"])


class Everything(nn.Module):
    """A small CNN with two inputs and a nested result."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, image: Tensor, scale: Tensor) -> dict[str, Any]:
        y = F.relu(self.conv(image))
        pooled = y.mean((2, 3))
        return {"logits": self.head(pooled), "parts": (pooled, [y.amax((1, 2, 3)) * scale]), "none": None}


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, 8, 8), torch.ones(batch)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Everything().eval()


@pytest.fixture(scope="module")
def compiled(model: nn.Module) -> qc.Compiled:
    calibration = [inputs(4) for _ in range(3)]
    return qc.compile(model, inputs(2), calibration=calibration, threads=1, progress=False)


@pytest.fixture(scope="module")
def exact(model: nn.Module) -> qc.Compiled:
    return qc.compile(model, inputs(2), backend="reference", progress=False)


def same(found: Any, wanted: Any) -> bool:
    one, other = pytree.tree_flatten(found), pytree.tree_flatten(wanted)
    return one[1] == other[1] and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(one[0], other[0], strict=True)
    )


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_the_result_has_the_models_form_at_every_batch(
    batch: int, model: nn.Module, compiled: qc.Compiled, exact: qc.Compiled
) -> None:
    given = inputs(batch)
    wanted = model(*given)
    for found in (compiled(*given), exact(*given)):
        assert pytree.tree_structure(found) == pytree.tree_structure(wanted)
        for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
            if isinstance(b, Tensor):
                assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_arguments_may_be_named(compiled: qc.Compiled) -> None:
    image, scale = inputs(2)
    wanted = compiled(image, scale)
    assert same(compiled(scale=scale, image=image), wanted)
    assert same(compiled(image, scale=scale), wanted)


@pytest.mark.parametrize(
    ("example", "call"),
    [
        (torch.zeros(2, 3), lambda f, x: f(x)),
        ((torch.zeros(2, 3),), lambda f, x: f(x)),
        ([torch.zeros(2, 3)], lambda f, x: f(x)),
        ({"x": torch.zeros(2, 3)}, lambda f, x: f(x=x)),
    ],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_forms_of_example_inputs(example: Any, call: Callable[..., Any]) -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Pair:
            return Pair(x.exp(), x)

    compiled = qc.compile(Plain().eval(), example, backend="reference", progress=False)
    x = torch.randn(5, 3)
    found = call(compiled, x)
    assert isinstance(found, Pair)
    assert same(found, Pair(x.exp(), x))


def test_containers_of_tensors_as_arguments() -> None:
    class Nested(nn.Module):
        def forward(self, pairs: list[Tensor], *, named: dict[str, Tensor]) -> Tensor:
            return pairs[0] @ pairs[1].T + named["bias"]

    def given(batch: int) -> dict[str, Any]:
        pairs = [torch.randn(batch, 3), torch.randn(4, 3)]
        return {"pairs": pairs, "named": {"bias": torch.randn(batch, 4)}}

    compiled = qc.compile(Nested().eval(), given(2), backend="reference", progress=False)
    call = given(5)
    torch.testing.assert_close(compiled(**call), Nested()(**call))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f: f(torch.randn(2, 3, 8, 8)), "takes 2 inputs"),
        (lambda f: f(torch.randn(2, 3, 9, 8), torch.ones(2)), "has shape"),
        (lambda f: f(torch.randn(2, 3, 8, 8).double(), torch.ones(2)), "has dtype"),
        (lambda f: f(torch.randn(3, 8, 8), torch.ones(2)), "has shape"),
        (lambda f: f("image", torch.ones(2)), "not a tensor"),
    ],
)
def test_wrong_calls_are_refused(call: Callable[..., Any], words: str, compiled: qc.Compiled) -> None:
    with pytest.raises(InputError, match=words):
        call(compiled)


def test_threads_get_the_same_results(compiled: qc.Compiled) -> None:
    samples = [inputs(1 + i % 3) for i in range(24)]
    wanted = [compiled(*sample) for sample in samples]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda sample: compiled(*sample), samples))
    assert all(map(same, found, wanted))


# ---------------------------------------------------------------- saved


def test_a_saved_model_gives_equal_results(compiled: qc.Compiled, tmp_path: Path) -> None:
    compiled.save(tmp_path / "model.qc")
    again = qc.load(tmp_path / "model.qc", threads=1)
    for batch in (1, 2, 5):
        given = inputs(batch)
        assert same(again(*given), compiled(*given))
    assert again.plan == compiled.plan
    before = digests(tmp_path / "model.qc")
    compiled.save(tmp_path / "model.qc")
    assert digests(tmp_path / "model.qc") == before


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


LOADER = """
import sys, types
import torch
import qcompiler
class Spy:
    def find_spec(self, name, path=None, target=None):
        assert not name.startswith(("transformers", "pickle5", "users_model")), name
sys.meta_path.insert(0, Spy())
import pickle, builtins
pickle.load = pickle.loads = torch.load = None
compiled = qcompiler.load(sys.argv[1], threads=1)
print(compiled(torch.ones(3, 3, 8, 8), torch.ones(3))["logits"].tolist())
"""


def test_loading_needs_neither_the_model_nor_pickle(exact: qc.Compiled, tmp_path: Path) -> None:
    exact.save(tmp_path / "model.qc")
    ran = subprocess.run(
        [sys.executable, "-c", LOADER, str(tmp_path / "model.qc")], capture_output=True, text=True, check=True
    )
    wanted = exact(torch.ones(3, 3, 8, 8), torch.ones(3))["logits"].tolist()
    assert json.loads(ran.stdout) == wanted


def test_a_result_type_that_is_unknown_where_it_is_loaded_becomes_a_tuple(tmp_path: Path) -> None:
    class Odd:
        def __init__(self, value: Tensor) -> None:
            self.value = value

    class Returns(nn.Module):
        def forward(self, x: Tensor) -> Odd:
            return Odd(x.exp())

    name = "tests.test_api.Odd"
    pytree.register_pytree_node(
        Odd, lambda odd: ([odd.value], None), lambda values, _: Odd(*values), serialized_type_name=name
    )
    x = torch.randn(3, 2)
    try:
        compiled = qc.compile(Returns().eval(), x, backend="reference", progress=False)
        assert isinstance(compiled(x), Odd)
        compiled.save(tmp_path / "model.qc")
    finally:
        pytree._deregister_pytree_node(Odd)
    with pytest.warns(UserWarning, match="becomes a tuple"):
        again = qc.load(tmp_path / "model.qc")
    found: Any = again(x)
    assert isinstance(found, tuple) and len(found) == 1
    (found,) = found
    assert torch.equal(found, x.exp())


# ---------------------------------------------------------------- exported


def test_an_exported_file_runs_without_us(model: nn.Module, tmp_path: Path) -> None:
    given = inputs(2)
    promised = qc.export_onnx(model, given, tmp_path / "model.onnx")
    promised.enforce()
    assert {row.layer.op for row in promised.rows if row.executed == "int8"} >= {"conv2d", "linear"}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["image", "scale"]
    image, scale = inputs(5)
    found = session.run(None, {"image": image.numpy(), "scale": scale.numpy()})
    assert sqnr(model(image, scale)["logits"], torch.from_numpy(found[0])) > 15


# ---------------------------------------------------------------- settings and refusals


class S8(nn.Module):
    """An activation with two readers: in int8 it stays float on this engine."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        return self.second(y) + y  # type: ignore[no-any-return]


def test_a_layer_that_the_groups_do_not_fit_is_float_by_plan_and_strict_has_no_objection(
    tmp_path: Path,
) -> None:
    """On the engine; an export has no speed guard, which could take the other layer to float as well."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 64)).eval(), torch.randn(4, 64)
    found = qc.export_onnx(model, x, tmp_path / "x.onnx", recipe="w4a16", strict=True, progress=False)
    first, second = [row for row in found.rows if row.layer.op == "linear"]
    assert (first.layer.precision, first.executed) == ("int4", "int4")
    assert (second.layer.precision, second.executed) == ("float", "float")
    assert second.layer.why.startswith("its 48 inputs are no whole number of groups of 32")


def test_strict_refuses_a_layer_that_would_run_in_float() -> None:
    with pytest.raises(ContractError, match="run in float"):
        qc.compile(
            S8().eval(), torch.randn(2, 3, 4, 4), recipe={"activations": "int8"}, strict=True, threads=1,
            progress=False,
        )  # fmt: skip


def test_the_caller_s_random_state_is_left_alone(model: nn.Module) -> None:
    given = inputs(2)
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    qc.compile(model, given, backend="reference", progress=False)
    assert torch.equal(torch.rand(3), wanted)


def test_calibration_may_be_a_generator(model: nn.Module, exact: qc.Compiled) -> None:
    batches = [inputs(2) for _ in range(3)]
    listed, streamed = (
        explain(model, inputs(2), calibration=data).plan for data in (batches, (batch for batch in batches))
    )
    assert listed == streamed != exact.plan


def test_explain_decides_what_compile_decides(model: nn.Module) -> None:
    given = inputs(2)
    plan = explain(model, given).plan
    assert plan == qc.compile(model, given, backend="reference", progress=False).plan


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"backend": "tpu"}, LoweringError, "no backend 'tpu'"),
        ({"recipe": "int7"}, RecipeError, "no recipe 'int7'"),
        ({"recipe": {"overrides": [{"pattern": "nope", "weights": None}]}}, RecipeError, "matches no layer"),
        ({"calibration": []}, CalibrationError, "calibration"),
        ({"threads": 0}, InputError, "threads is 0; give a number from 1 on"),
        ({"threads": 2.0}, InputError, "threads is 2.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    arguments: dict[str, Any], error: type[Exception], words: str, model: nn.Module
) -> None:
    with pytest.raises(error, match=words):
        qc.compile(model, inputs(2), progress=False, **arguments)


@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic", "w8a16"])
@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "inf")])
def test_a_broken_weight_is_named(recipe: str, value: float, kind: str) -> None:
    last = nn.Linear(8, 4)
    with torch.no_grad():
        last.weight[1, 3] = value
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), last).eval()
    with pytest.raises(PlanError, match=f"a weight of the model contains {kind} at 2/linear_1"):
        qc.compile(model, torch.randn(2, 8), recipe=recipe, progress=False)


@pytest.mark.parametrize(("recipe", "told"), [("int8", True), ("int8-dynamic", False), ("w8a16", False)])
def test_ranges_from_the_example_alone_are_told(recipe: str, told: bool) -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval(), torch.randn(2, 8)
    found = [
        qc.compile(model, x, calibration=data, recipe=recipe, backend="reference", progress=False)
        for data in (None, [x])
    ]
    line = "ranges come from the example inputs alone"
    assert [line in " ".join(str(one.report()).split()) for one in found] == [told, False]


def test_what_it_is_stands_in_one_line(exact: qc.Compiled) -> None:
    assert re.fullmatch(r"<Compiled: int8 on the reference: \d+ of \d+ planned layers .*>", repr(exact))


def test_a_result_that_holds_no_tensors_is_refused_by_name() -> None:
    class Box:
        pass

    class Boxed(nn.Module):
        def forward(self, x: Tensor) -> Box:
            return Box()

    with pytest.raises(TraceError, match="returns a Box"):
        qc.compile(Boxed().eval(), torch.randn(2, 2), progress=False)


# ---------------------------------------------------------------- models of others, unchanged


SMALL = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": 50, "max_position_embeddings": 32,
}  # fmt: skip


def transformer(name: str) -> nn.Module:
    library = pytest.importorskip("transformers")
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    built: nn.Module = {
        "bert": lambda: library.BertModel(library.BertConfig(**SMALL)),
        "gpt2": lambda: library.GPT2LMHeadModel(
            library.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50, n_positions=32, **tokens)
        ),
        "llama": lambda: library.LlamaForCausalLM(
            library.LlamaConfig(**SMALL, num_key_value_heads=1, **tokens)
        ),
    }[name]()
    return built.eval()


def sentence(batch: int) -> dict[str, Tensor]:
    return {
        "input_ids": torch.randint(3, 50, (batch, 8)),
        "attention_mask": torch.ones(batch, 8, dtype=torch.long),
    }


@pytest.mark.parametrize(
    ("name", "backend"), [("bert", "auto"), ("gpt2", "reference"), ("llama", "reference")]
)
def test_transformers_go_through_unchanged(name: str, backend: str) -> None:
    """With the result type of their library, caches of keys and values included."""
    model = transformer(name)
    compiled = qc.compile(model, sentence(2), backend=backend, threads=1, progress=False)
    assert compiled.data["coverage"]["holds"]
    for batch in (1, 2, 3):
        given = sentence(batch)
        with torch.no_grad():
            wanted = model(**given)
        found = compiled(**given)
        assert type(found) is type(wanted)
        assert list(found) == list(wanted)
        assert sqnr(wanted[0], found[0]) > 20
        if "past_key_values" in wanted:
            assert type(found.past_key_values) is type(wanted.past_key_values)
            keys = found.past_key_values.layers[0].keys
            assert keys.shape == wanted.past_key_values.layers[0].keys.shape


def test_a_llama_in_bfloat16_has_weights_of_few_bits_by_gptq() -> None:
    """For a GPU, on the CPU: every layer, and the model by them, closer than by the nearest codes."""
    library = pytest.importorskip("transformers")
    changes = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2, "vocab_size": 64}
    model = library.LlamaForCausalLM(library.LlamaConfig(**SMALL | changes)).bfloat16().eval()
    data, recipe = [sentence(16) for _ in range(2)], {"base": "w4a16", "weight_observer": "minmax"}
    compiled = qc.compile(
        model, data[0], calibration=data, recipe=recipe, target="cuda", progress=False, strict=True
    )
    assert {layer.precision for layer in compiled.plan.layers if layer.op == "linear"} == {"int4"}
    for spec in compiled.plan.weights:
        assert spec.method.startswith("gptq") and spec.scores[spec.method] > spec.scores["nearest"]
    (judged,) = (note for note in compiled.graph.notes if note.node == "whole graph")
    assert (judged.rule, judged.outcome) == ("round", "applied")
    with torch.no_grad():
        wanted = model(**data[0]).logits
    found = compiled(**data[0]).logits
    assert found.dtype == torch.bfloat16 and sqnr(wanted.float(), found.float()) > 10


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_transformers_with_a_cache_lower_to_the_engine(name: str, tmp_path: Path) -> None:
    model = transformer(name)
    qc.export_onnx(model, sentence(2), tmp_path / "model.onnx", recipe="int8-dynamic").enforce()


def test_the_caller_s_float_mode_is_left_alone() -> None:
    """ONNX Runtime flushes denormals in the thread that opens a session; ours gives the mode back."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    found = qc.compile(model, torch.randn(2, 8), threads=1, progress=False)
    found(torch.randn(2, 8))
    tiny = torch.tensor(5e-324, dtype=torch.float64)
    assert (tiny * 2).item() > 0


def test_inputs_that_share_the_batch_must_agree_on_it() -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.cat([a, b], 1)

    found = qc.compile(Two().eval(), (torch.randn(4, 3), torch.randn(4, 2)), progress=False)
    with pytest.raises(InputError, match="has 8 rows and 'a' has 4"):
        found(torch.randn(4, 3), torch.randn(8, 2))


def test_a_clamp_behind_a_linear_that_floats_read_stays_in_integers() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.linear(x).relu(), x.exp()], 1)

    found = qc.compile(Joined().eval(), torch.randn(8, 64), strict=True, progress=False)
    assert found.to_dict()["coverage"]["holds"]
