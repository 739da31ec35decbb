"""Which way of computing an op is the fastest on a device, and whether it is worth it.

problem      what is asked: an op, its sizes           device     what a GPU does per second
families     who answers: kernels, spaces, peers       compiling  candidates judged by their machine code
predict      seconds on paper                          residual   what paper misses, learnt from rows
tuner        predict, compile, measure, keep           bench      seconds on a device, weights far
schedules    what rows say of a problem                borders    from how many rows on another is faster
asked        what a model asks of a device             decided    decisions over numbers of rows
joint        what computes its linears, together       profit     whether few bits are accepted
shipped      rows that came with the package           source     what a kernel's rows depend on
gate         whether a product's numbers are right      callers    how peers are called
products, weight_only, rows    contenders
"""
