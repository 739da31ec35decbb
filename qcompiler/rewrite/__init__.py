"""Rewriting: traits of ops, patterns, rules with laws, and pipelines of passes."""

from qcompiler.rewrite.pattern import Match, Pattern
from qcompiler.rewrite.pipeline import Pass, Pipeline, run
from qcompiler.rewrite.rule import EXACT, Law, Rule, apply_rules, reals
from qcompiler.rewrite.traits import TRAITS, Trait, has, traits

__all__ = [
    "EXACT", "TRAITS", "Law", "Match", "Pass", "Pattern", "Pipeline", "Rule", "Trait",
    "apply_rules", "has", "reals", "run", "traits",
]  # fmt: skip
