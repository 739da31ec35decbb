"""`qcompiler models`: the models that come along."""

from rich.table import Table

from qcompiler.cli.screen import show


def run() -> None:
    """List the built-in models."""
    from qcompiler.models import describe, names

    table = Table("name", "description", "weights", box=None, pad_edge=False, header_style="dim")
    for name in names():
        entry = describe(name)
        table.add_row(name, entry.description, entry.weights)
    show(table)
