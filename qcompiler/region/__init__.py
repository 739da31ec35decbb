"""Region mode: the straight pieces of a model that no tracer takes whole, each compiled by itself.

    Python --torch.compile--> graphs --record N calls--> trace >> decide >> prove >> guard --> integers

What depends on data stays Python; an op that no engine takes is an island of torch inside its region.
"""

from qcompiler.region.session import Regions, backend, region_report

__all__ = ["Regions", "backend", "region_report"]
