"""Nothing that the exporter says on its own."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter's own warnings, logs and printed graphs say nothing to a user of this compiler."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(max(before, logging.ERROR))
        try:
            yield
        finally:
            logging.disable(before)
