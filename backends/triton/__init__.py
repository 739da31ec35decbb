"""Low-bit kernels for GPUs, written in Triton: a file for each family of kernels in each folder.

kernels/         what runs on the device        configurations/  how it is compiled, and within which bounds
ops/             the kernels as ops of torch    signatures/      what kernels are called with
static           machine code read without a GPU
"""
