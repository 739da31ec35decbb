"""Training in few bits: the compiler on the joint forward/backward graph.

model = qc.compile_training(model, recipe="int8", memory="act4")
torch.compile(model, backend="qcompiler", options={"recipe": "int8", "memory": "act4"})
"""

from qcompiler.training.batch import BatchSize, find_batch_size
from qcompiler.training.blocks import choose_blocks
from qcompiler.training.compiled import compile_training, training_report
from qcompiler.training.report import TrainingReport
from qcompiler.training.session import Piece, Training
from qcompiler.training.state import load_training_state, training_state

__all__ = [
    "BatchSize",
    "Piece",
    "Training",
    "TrainingReport",
    "choose_blocks",
    "compile_training",
    "find_batch_size",
    "load_training_state",
    "training_report",
    "training_state",
]
