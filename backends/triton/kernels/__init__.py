"""The kernels, one idea in a file; they import torch and Triton alone, and touch no GPU until launched."""
