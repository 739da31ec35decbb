"""`qcompiler export --format cuda`: the float ops of a model as CUDA C++."""

from collections import Counter
from math import prod
from pathlib import Path

from rich.table import Table
from rich.text import Text

from qcompiler.cli.screen import complain, say, show
from qcompiler.cli.source import Source
from qcompiler.errors import InputError


def export_cuda(source: Source, folder: Path, architecture: str) -> None:
    """The float graph's groups, one file each, for the shapes of the example."""
    from qcompiler.backends.shapes import shapes_of
    from qcompiler.backends.tvm.floatpath.cuda import emitted, write
    from qcompiler.ir import trace
    from qcompiler.passes.canonicalize import CANONICAL
    from qcompiler.rewrite.pipeline import run as rewritten

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"'{folder}' is no empty folder", fix="name another, which is made")
    graph = rewritten(CANONICAL, trace(source.model, source.example_inputs))
    found = emitted(graph, shapes_of(graph), architecture)
    files = write(found, folder)
    table = Table(box=None, pad_edge=False)
    for name in ("function", "ops", "blocks x threads", "bytes"):
        table.add_column(name, overflow="fold", header_style="dim")
    for each in found.functions:
        ops = ", ".join(op.split(".")[1] for op in each.ops)
        launches = ", ".join(f"{prod(one.blocks)} x {prod(one.threads)}" for one in each.launches)
        table.add_row(each.name, Text(ops), launches, str(each.bytes))
    if found.functions:
        show(table)
    reasons = Counter(found.left.values())
    for reason, count in reasons.most_common():
        complain(f"{count} nodes are not covered: {reason}", kind="warning")
    say(f"{len(found.functions)} functions for {architecture}, {len(files)} files in {folder}")
