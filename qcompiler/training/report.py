"""What became of a model that trains in few bits: its products, what it keeps, how far its gradients are."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler.passes.training.speed import Pace
from qcompiler.training.session import Piece, Training

if TYPE_CHECKING:
    from rich.console import RenderableType

NOTHING = 1e-5  # share of all gradients below which one is rounding: a bias before a norm, say


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingReport:
    """All graphs of a model, and under which recipe and memory they were compiled."""

    recipe: str
    memory: str
    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, training: Training) -> "TrainingReport":
        return cls(recipe=training.recipe.name, memory=training.memory.name, pieces=tuple(training.pieces))

    @property
    def step(self) -> tuple[Piece, ...]:
        """The graphs of one step: where shapes gave several for one place, those that keep most."""
        places: dict[tuple[int, ...], dict[int, list[Piece]]] = {}
        for piece in self.pieces:
            places.setdefault(piece.place, {}).setdefault(piece.version, []).append(piece)
        return tuple(
            piece
            for versions in places.values()
            for piece in max(versions.values(), key=lambda found: sum(p.after.crossing for p in found))
        )

    @property
    def kept(self) -> tuple[int, int]:
        """Bytes that cross from forward to backward in one step: in float, and as they are."""
        return sum(p.before.crossing for p in self.step), sum(p.after.crossing for p in self.step)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=110, color_system=None)
        with console.capture() as captured:
            console.print(self.__rich__())
        return captured.get().rstrip()

    def __rich__(self) -> "RenderableType":
        from rich.console import Group
        from rich.text import Text

        before, after = self.kept
        ratio = f", {before / after:.1f} times fewer than in float" if after else ""
        graphs = f"{len(self.step)} graph{'s' if len(self.step) != 1 else ''}"
        if len(self.pieces) > len(self.step):
            graphs += f" and {len(self.pieces) - len(self.step)} of other shapes"
        settings = f"recipe {self.recipe}, memory {self.memory}, {graphs}"
        head = f"{settings}: {mega(after)} MB cross into backward{ratio}"
        return Group(
            Text(head, style="bold"),
            *(show(piece) for piece in self.pieces for show in (peaks, products, values, gradients)),
        )


def products(piece: Piece) -> "RenderableType":
    """How each product is computed."""
    from rich.table import Table

    table = Table(title="Products", title_justify="left")
    timed = any(row.pace for row in piece.products)
    for title in ("product", "of", "computed in", *["ms in float, in few bits"] * timed, "because"):
        table.add_column(title, justify="right" if title.startswith("ms") else "left")
    for row in piece.products:
        parameter = piece.names.get(row.parameter, row.parameter)
        paces = [milliseconds(row.pace)] * timed
        table.add_row(row.role or row.name, parameter, row.formats, *paces, row.why)
    return table


def milliseconds(pace: Pace | None) -> str:
    """Of a product in float, and in few bits."""
    return f"{1e3 * pace.floating:.3g}, {1e3 * pace.few:.3g}" if pace else ""


def peaks(piece: Piece) -> "RenderableType":
    """The memory of a step, simulated, and what is computed again for it."""
    from rich.text import Text

    after, before = piece.after, piece.before
    lines = [
        f"Peak of a step: {mega(after.bytes)} MB, {mega(before.bytes)} MB in float; "
        f"results and gradients are {mega(after.left)} MB of it in the end."
    ]
    lines += [f"Computed again in backward: {kind}." for kind in piece.again]
    return Text("\n".join(lines))


def values(piece: Piece) -> "RenderableType":
    """What crosses, in how many bits, and why it does where it is not stored."""
    from rich.table import Table

    table = Table(title="Values that cross into backward", title_justify="left")
    for title in ("value", "shape", "bits", "MB as it is", "MB stored", "because"):
        table.add_column(title, justify="right" if title.startswith(("bits", "MB")) else "left")
    for value in piece.saved:
        if value.is_held:
            continue
        bits = piece.bits.get(value.name)
        size = " x ".join(map(str, value.shape))
        table.add_row(
            value.name,
            size,
            str(bits or ""),
            mega(value.bytes()),
            mega(value.bytes(bits)),
            "" if bits else value.why,
        )
    return table


def gradients(piece: Piece) -> "RenderableType":
    """How far the gradients of one step are from float's."""
    from rich.table import Table
    from rich.text import Text

    if piece.checked is None:
        return Text(f"Not compared with float, because {piece.unchecked}.")
    table = Table(
        "gradient of", "from float's, relative", title="One step against float", title_justify="left"
    )
    for name, apart in piece.checked.parameters.items():
        told = f"{apart.distance:.4f}" if apart.share > NOTHING else "nothing in float"
        table.add_row(name, told)
    table.add_row("all together", f"{piece.checked.gradient:.4f}", style="bold")
    return table


def mega(count: int) -> str:
    return f"{count / 1e6:.3f}"
