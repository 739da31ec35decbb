"""What a person looks at after compiling: a short text in the terminal, one page in the browser."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.errors import ArtifactError
from qcompiler.report import html, terminal

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """All that is known about one compilation, as plain JSON-able values.

    `data` has the keys coverage, accuracy, layers, speed, refused, fusions, tensors and manifest, and regions
    where the model was compiled region by region. Each may be missing or None, and so may anything inside:
    it is then shown as not measured.
    """

    data: Mapping[str, Any]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Report":
        """The report of what `to_dict` returned. Raises ArtifactError for anything but a mapping."""
        if not isinstance(data, Mapping):
            raise ArtifactError(
                "this is no report",
                why=f"a report is a mapping, and this is {type(data).__name__}",
                fix="give what Report.to_dict returned",
            )
        return cls(data=copy.deepcopy(dict(data)))

    def to_dict(self) -> dict[str, Any]:
        """A copy of the data; `json.dumps` takes it."""
        return copy.deepcopy(dict(self.data))

    def __str__(self) -> str:
        return terminal.text(self.data)

    def rich(self) -> "RenderableType":
        """The text in colour: `rich.print(report.rich())`."""
        return terminal.renderable(self.data)

    def save(self, path: str | Path) -> Path:
        """Write the page, one HTML file that loads nothing. Raises ArtifactError if it cannot be written."""
        return html.write(html.page(self.data), Path(path))
