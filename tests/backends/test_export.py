"""The ONNX file: what it holds, that it is the same each time, and that it runs without us."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from qcompiler.api import explain, export_onnx
from qcompiler.backends.ort import Ort, OrtExecutable, check_opset, export, write_onnx
from qcompiler.backends.reference import Reference
from qcompiler.errors import LoweringError
from qcompiler.ir import flatten_inputs
from qcompiler.passes.decide import Decision
from qcompiler.proof import quantized
from qcompiler.target import find_target


class Odd(nn.Module):
    """Awkward names, and every kind of output: shared, returned as given, constant, nested, not a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("größe", nn.Conv2d(3, 4, 3))
        self.add_module("1", nn.Linear(4, 3))
        self.add_module("a b", nn.Linear(5, 3))
        self.model = nn.Linear(4, 3)
        self.register_buffer("fixed", torch.arange(3.0))

    def forward(self, image: Tensor, unused: Tensor, extra: Tensor) -> dict[str, Any]:
        y = self.get_submodule("größe")(image).relu().mean((2, 3))
        z = self.get_submodule("1")(y)
        return {
            "z": z, "again": z, "input": extra, "fixed": self.fixed, "none": None, "seven": 7,
            "rows": image.shape[0],
            "pair": (self.get_submodule("a b")(extra), self.model(y)),
        }  # fmt: skip


ODD_INPUTS = ((2, 3, 8, 8), (2, 1), (2, 5))


def odd_inputs(batch: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(batch, *shape[1:]) for shape in ODD_INPUTS)


@pytest.fixture(scope="module")
def odd() -> tuple[nn.Module, Decision, OrtExecutable]:
    model = Odd().eval()
    decision = explain(model, odd_inputs(2))
    return model, decision, Ort().lower(quantized(decision), threads=1)


def bare_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_every_kind_of_output_at_every_batch(
    batch: int, odd: tuple[nn.Module, Decision, OrtExecutable]
) -> None:
    model, decision, engine = odd
    inputs = odd_inputs(batch)
    flat = flatten_inputs(decision.graph, inputs)
    found = pytree.tree_unflatten(engine(flat), decision.graph.signature.out_spec)
    wanted = model(*inputs)
    assert list(found) == list(wanted)
    assert (found["seven"], found["none"], found["rows"]) == (7, None, batch)
    assert torch.equal(found["input"], inputs[2]) and torch.equal(found["fixed"], wanted["fixed"])
    assert torch.equal(found["z"], found["again"])
    reference = pytree.tree_unflatten(
        Reference().lower(engine.graph)(flat), decision.graph.signature.out_spec
    )
    assert torch.equal(found["z"], reference["z"])
    assert all(map(torch.equal, found["pair"], reference["pair"]))


def test_the_file(odd: tuple[nn.Module, Decision, OrtExecutable]) -> None:
    """Valid, with a symbolic batch, one opset of each domain, and nothing of this machine in it."""
    _, decision, engine = odd
    content = engine.path.read_bytes()
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 21, "com.microsoft": 1}
    assert [given.name for given in model.graph.input] == ["image", "unused", "extra"]
    for given in (model.graph.input[0], model.graph.output[0]):
        assert given.type.tensor_type.shape.dim[0].dim_param
    assert {entry.key for entry in model.metadata_props} == {"qcompiler.level", "qcompiler.disabled"}
    for word in (b"/tmp", b"site-packages", b".py", b"Traceback", str(Path.home()).encode()):
        assert word not in content
    names = {node.name for node in model.graph.node}
    assert {layer.node for layer in decision.plan.layers} <= names
    values = {name for node in model.graph.node for name in node.output}
    assert len(values) == sum(len(node.output) for node in model.graph.node)


def test_names_of_values_say_what_was_quantized(odd: tuple[nn.Module, Decision, OrtExecutable]) -> None:
    _, decision, engine = odd
    model = onnx.load(engine.path)
    quantized = {node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert {f"{value.value}_q" for value in decision.plan.values if not value.shared} <= quantized


class Mlp(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


def mlp(recipe: str, width: int = 64) -> Any:
    return quantized(explain(Mlp(width).eval(), torch.randn(3, width), recipe=recipe))


@pytest.mark.parametrize(
    ("recipe", "kind", "bytes_per_weight"),
    [
        ("int8", TensorProto.INT8, 1),
        ("int8-dynamic", TensorProto.INT8, 1),
        ("w4a16", TensorProto.INT4, 0.5 + 4 / 32),
    ],
)
def test_weights_are_stored_as_integers(
    recipe: str, kind: int, bytes_per_weight: float, tmp_path: Path
) -> None:
    write_onnx(mlp(recipe, 256), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    weights = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) == 256 * 256]
    assert [tensor.data_type for tensor in weights] == [kind, kind]
    size = (tmp_path / "model.onnx").stat().st_size
    assert size == pytest.approx(2 * 256 * 256 * bytes_per_weight, rel=0.1)


def test_equal_graphs_give_equal_bytes(tmp_path: Path) -> None:
    graph = mlp("int8")
    for name in ("first.onnx", "second.onnx"):
        write_onnx(graph, tmp_path / name)
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


def test_large_weights_go_to_a_file_beside_that_moves_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "EXTERNAL_DATA_BYTES", 1000)
    (tmp_path / "here").mkdir()
    x = torch.randn(3, 64)
    promised = export_onnx(Mlp().eval(), x, tmp_path / "here" / "model.onnx")
    assert promised.holds
    assert sorted(file.name for file in (tmp_path / "here").iterdir()) == ["model.onnx", "model.onnx.data"]
    before = bare_session(tmp_path / "here" / "model.onnx").run(None, {"x": x.numpy()})
    shutil.move(tmp_path / "here", tmp_path / "there")
    after = bare_session(tmp_path / "there" / "model.onnx").run(None, {"x": x.numpy()})
    np.testing.assert_array_equal(before, after)


# ---------------------------------------------------------------- opsets


class Mixed(nn.Module):
    """A convolution, data movement of every carried kind of FP8, a linear, GELU and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.norm = nn.Conv2d(3, 4, 3), nn.Linear(64, 3), nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.conv(x), 3, 1, 1).transpose(2, 3).flatten(1)[:, :64]
        return self.norm(F.gelu(self.fc(y)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("recipe", "opset"),
    [("int8", 18), ("int8", 23), ("int8-dynamic", 18), ("w4a16", 23), ("fp8", 19), ("fp8", 23)],
)
def test_promised_opsets_load_and_agree(recipe: str, opset: int, tmp_path: Path) -> None:
    model, x = Mixed().eval(), torch.randn(2, 3, 8, 8)
    promised = export_onnx(model, x, tmp_path / "model.onnx", recipe=recipe, opset=opset)
    found = onnx.load(tmp_path / "model.onnx")
    assert [(entry.domain, entry.version) for entry in found.opset_import] == [("", opset)]
    assert not promised.stray
    if recipe != "fp8":  # which loads at the basic level only, as its metadata say
        promised.enforce()
        assert bare_session(tmp_path / "model.onnx").run(None, {"x": x.numpy()})[0].shape == (2, 3)


@pytest.mark.parametrize(
    ("recipe", "opset", "lowest"),
    [("int8", 17, 18), ("int8", 24, 18), ("w4a16", 20, 21), ("fp8", 18, 19), ("int8", 0, 18)],
)
def test_other_opsets_are_refused(recipe: str, opset: int, lowest: int) -> None:
    with pytest.raises(LoweringError, match=f"needs opset {lowest} to 23"):
        check_opset(mlp(recipe), opset, find_target("cpu"))


def test_clamps_with_bounds_of_two_types() -> None:
    class Clamped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clamp(0, 1.5) + F.hardtanh(x, -1, 2.5)

    x = torch.linspace(-3, 3, 20).reshape(2, 10)
    graph = explain(Clamped().eval(), x).graph
    torch.testing.assert_close(Ort().lower(graph, threads=1)([x])[0], Clamped()(x))


def test_a_model_that_onnx_cannot_hold_is_refused_with_the_op() -> None:
    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.special.bessel_j0(x)  # type: ignore[no-any-return]

    graph = explain(Unknown().eval(), torch.randn(2, 3)).graph
    with pytest.raises(LoweringError, match="bessel_j0"):
        Ort().lower(graph)
