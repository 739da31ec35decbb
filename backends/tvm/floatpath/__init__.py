"""Floats without a kernel of ours: chains of ops as one function each, scheduled and compiled by TVM.

values       numbers by their place       functions   exp, tanh, erf as arithmetic
elementwise, movement, reductions, contractions       ops as expressions, by idea
ops          the table of them            group       which ops become one function
build        its TIR                      schedule    without measurement
traces       a schedule as data           choice      TVM or torch
step         a call of one                steps       ops of a program that torch would compute
draw         schedules from MetaSchedule's space
tuning       torch, the schedule without measurement, and drawn ones, measured side by side
cuda         the same functions as CUDA C++
"""
