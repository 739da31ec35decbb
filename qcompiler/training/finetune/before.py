"""The training in float from which fine-tuning starts: AdamW, a short warm-up, a cosine down to nothing."""

from itertools import islice

import torch
from torch import nn

from qcompiler.models.charlm import warm_cosine
from qcompiler.progress import Tell
from qcompiler.training.finetune.task import Task, endless, loss_of


def train_before(task: Task, *, steps: int, rate: float, tell: Tell) -> None:
    """Change the module's weights by so many steps."""
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, max(steps, 1)))
    for step, batch in enumerate(islice(endless(task), steps)):
        tell("training in float before", step, steps)
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(task, task.module, batch))
        nn.utils.clip_grad_norm_(task.module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
