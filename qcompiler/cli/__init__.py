"""The commands. Importing this is quick: torch and the engines load when a verb needs them."""

from qcompiler.cli.app import app, main

__all__ = ["app", "main"]
