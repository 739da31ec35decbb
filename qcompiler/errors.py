"""One small tree of errors: what failed, at which node, why, and what to do about it."""


class QCompilerError(Exception):
    """A refusal in one sentence: `what`, at `node`, because `why`; `fix`."""

    def __init__(
        self, what: str, *, node: str | None = None, why: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.node = node
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        where = f" at {self.node}" if self.node else ""
        because = f", because {self.why}" if self.why else ""
        remedy = f"; {self.fix}" if self.fix else ""
        return " ".join(f"{self.what}{where}{because}{remedy}".splitlines())


class TraceError(QCompilerError):
    """The model could not be turned into a graph; `is_control_flow` where its Python depends on the data."""

    is_control_flow = False


class InputError(QCompilerError):
    """The inputs do not have the shape, type or structure that the model wants."""


class RecipeError(QCompilerError):
    """The recipe asks for something that does not exist or does not fit."""


class CalibrationError(QCompilerError):
    """The calibration data cannot give ranges."""


class PlanError(QCompilerError):
    """No consistent plan exists for the graph, the recipe and the target."""


class LoweringError(QCompilerError):
    """A planned node cannot be expressed on the backend."""


class EngineError(QCompilerError):
    """An engine failed while it ran a model, for a reason of its own and not because of the inputs."""


class TuningError(QCompilerError):
    """Schedules cannot be measured, or what was measured cannot be kept or read."""


class ContractError(QCompilerError):
    """What executes differs from what was promised."""


class ArtifactError(QCompilerError):
    """A saved artifact cannot be read, or does not match its manifest."""


class TargetError(QCompilerError):
    """The target does not exist or cannot run what is asked of it."""


class GraphError(QCompilerError):
    """A graph breaks a rule that must hold at its stage."""
