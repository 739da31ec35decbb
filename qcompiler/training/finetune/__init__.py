"""A training loop in few bits, with float beside it: what `qcompiler train` runs.

task = Task(name="mine", module=module, batches=loader.__iter__, loss=cross_entropy, validation=held_out)
fine_tune(task, Settings(recipe="int8", memory="act8")).data
"""

from qcompiler.training.finetune.run import Settings, Trained, fine_tune
from qcompiler.training.finetune.task import Task

__all__ = ["Settings", "Task", "Trained", "fine_tune"]
