"""Training in few bits: the compiler on the joint forward/backward graph.

model = qc.compile_training(model, recipe="int8", memory="act4")
torch.compile(model, backend="qcompiler", options={"recipe": "int8", "memory": "act4"})
"""

from qcompiler.training.blocks import choose_blocks
from qcompiler.training.session import Piece, Training, compile_training

__all__ = ["Piece", "Training", "choose_blocks", "compile_training"]
