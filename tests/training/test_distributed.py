"""Two processes: replicas and shards have, to the last bit, the gradients of one that computes both."""

from pathlib import Path

from tests.processes import held_by_two, needs_gloo


@needs_gloo
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    """The claims are the functions of distributed.py."""
    held_by_two(Path(__file__).with_name("distributed.py"), tmp_path)
