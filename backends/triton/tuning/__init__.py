"""Which way of computing an op is the fastest on a device, and whether it is worth it.

problem      what is asked: an op, its sizes           device     what a GPU does per second
families     who answers: kernels, spaces, peers       compiling  candidates judged by their machine code
predict      seconds on paper                          residual   what paper misses, learnt from rows
tuner        predict, compile, measure, keep           bench      seconds on a device, weights far
schedules    what rows say of a problem                borders    from how many rows on another is faster
profit       whether few bits are accepted             source     what a kernel's rows depend on
shipped      rows that came with the package           gate     whether a product's numbers are right
products, weight_only, rows    contenders
"""
