"""The intermediate representation: graphs of ATen ops with typed values."""

from qcompiler.ir import attention as attention  # this and `ops` register torch.ops.qcompiler
from qcompiler.ir import ops as ops
from qcompiler.ir import rows as rows
from qcompiler.ir.call import flatten_inputs
from qcompiler.ir.edit import Draft, arguments, normalize_arguments, with_tensors
from qcompiler.ir.example import as_call
from qcompiler.ir.graph import Graph, Note, Signature, evaluate
from qcompiler.ir.spec import TensorSpec, is_float, label, module_path, source_line, spec, value
from qcompiler.ir.stage import check_stage
from qcompiler.ir.text import fingerprint, format_text, parse_text
from qcompiler.ir.trace import trace

__all__ = [
    "Draft",
    "Graph",
    "Note",
    "Signature",
    "TensorSpec",
    "arguments",
    "as_call",
    "check_stage",
    "evaluate",
    "fingerprint",
    "flatten_inputs",
    "format_text",
    "is_float",
    "label",
    "module_path",
    "normalize_arguments",
    "parse_text",
    "source_line",
    "spec",
    "trace",
    "value",
    "with_tensors",
]
