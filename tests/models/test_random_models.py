import pytest
import torch

from qcompiler.models import Bundle, build
from qcompiler.models.bundle import Inputs

# The counts everybody gets for these networks; BERT-base is without its pooler (590,592).
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenetv2": 3_504_872,
    "vit_b_32": 88_224_232,
    "bert_base": 108_891_648,
}
OUTPUT = {"bert_base": (128, 768)}
CLASSES = (1000,)


QUICK = ("mobilenetv2", "bert_base")  # one that reads images, and one that reads words


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in QUICK else [pytest.mark.thorough]) for name in PARAMETERS],
)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(name: str) -> Bundle:
    return build(name)


def batch_of(bundle: Bundle, size: int) -> Inputs:
    """The first calibration samples as one batch; the fourth sentence of BERT is a padded one."""
    return tuple(torch.cat(column) for column in zip(*bundle.calibration[4 - size : 4], strict=True))


def test_parameter_count(name: str, bundle: Bundle) -> None:
    assert sum(parameter.numel() for parameter in bundle.module.parameters()) == PARAMETERS[name]


def test_ready_for_inference(bundle: Bundle) -> None:
    assert not any(module.training for module in bundle.module.modules())
    assert not any(parameter.requires_grad for parameter in bundle.module.parameters())


def test_data_have_batch_one_and_can_be_read_again(bundle: Bundle) -> None:
    first, again = list(bundle.calibration), list(bundle.calibration)
    assert len(first) == len(again) == 24
    for sample in (bundle.example_inputs, *first, *bundle.metric.inputs()):
        assert [value.shape for value in sample] == [value.shape for value in bundle.example_inputs]
        assert all(value.shape[0] == 1 for value in sample)
    for test in bundle.metric.inputs():
        assert not any(torch.equal(test[0], sample[0]) for sample in first)


def test_a_batch_gives_what_its_samples_give_alone(name: str, bundle: Bundle) -> None:
    alone = torch.cat([bundle.module(*sample) for sample in bundle.calibration[1:4]])
    together = bundle.module(*batch_of(bundle, 3))
    assert together.shape == (3, *OUTPUT.get(name, CLASSES))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4 * alone.abs().max().item())


def test_outputs_depend_on_the_input_and_are_of_usual_size(bundle: Bundle) -> None:
    a, b = bundle.module(*bundle.calibration[0]), bundle.module(*bundle.calibration[1])
    assert 0.1 < a.std() < 10
    assert (a - b).std() > 0.02 * a.std()


def test_export_keeps_a_symbolic_batch(bundle: Bundle) -> None:
    inputs = batch_of(bundle, 2)
    program = torch.export.export(
        bundle.module, inputs, dynamic_shapes=tuple({0: torch.export.Dim.AUTO} for _ in inputs)
    )
    (output,) = program.graph.output_node().args[0]
    batch = output.meta["val"].shape[0]
    assert isinstance(batch, torch.SymInt)
    assert all(isinstance(size, int) for size in output.meta["val"].shape[1:])
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name in program.graph_signature.user_inputs:
            assert node.meta["val"].shape[0] == batch
    exported = program.module()
    for size in (1, 3):
        inputs = batch_of(bundle, size)
        torch.testing.assert_close(exported(*inputs), bundle.module(*inputs), rtol=1e-4, atol=1e-4)


def test_the_float_module_is_perfect_and_rounded_outputs_are_not(bundle: Bundle) -> None:
    assert bundle.metric(bundle.module) == {"sqnr_db": torch.inf, "top1_agreement": 1.0, "samples": 4}
    rounded = bundle.metric(lambda *inputs: bundle.module(*inputs).bfloat16())
    # bf16 keeps 8 significant bits: a relative error of at most 2^-9, which is 54 dB.
    assert 54 < rounded["sqnr_db"] < 60
