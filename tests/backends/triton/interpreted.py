"""Kernels step by step on the CPU, in a process in which Triton interprets.

`python -m tests.backends.triton.interpreted` prints a line of JSON for each case: its name and what failed.
"""

from __future__ import annotations

import json
import time
import traceback

import torch

from tests.backends.triton.cases import CASES


def main() -> None:
    torch.set_num_threads(1)
    for name, claim in CASES.items():
        torch.manual_seed(0)
        start = time.thread_time()
        try:
            claim()
            failure = ""
        except Exception:
            failure = traceback.format_exc()
        print(
            json.dumps({"case": name, "failure": failure, "seconds": time.thread_time() - start}), flush=True
        )


if __name__ == "__main__":
    main()
