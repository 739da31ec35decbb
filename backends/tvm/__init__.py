"""Kernels of our own, generated as TVM's TIR and compiled by LLVM: integers at the speed of the machine.

builder   statements, loops, registers              isa      vector instructions as data
plane     where activations lie                     build    functions to machine code
kernels/  one file per family of layers
"""
