"""Two processes: replicas of DDP round alike; parameters of FSDP2 are DTensors, and so are their states."""

from pathlib import Path

from tests.processes import held_by_two, needs_gloo


@needs_gloo
def test_two_processes_step_save_and_load_as_one(tmp_path: Path) -> None:
    """The claims are the functions of sharded.py."""
    held_by_two(Path(__file__).with_name("sharded.py"), tmp_path)
