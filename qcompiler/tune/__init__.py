"""Costs: measured honestly where possible, from the roofline where not."""
