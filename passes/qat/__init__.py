"""Training through a plan: where fake quantization stands, and how constants follow from parameters."""
