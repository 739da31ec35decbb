"""A quantized graph as calls of the ops: the backend named "triton".

layers    the linears that ops compute       candidates   what may compute them: kernels of ours and vendors'
lower     a graph that calls them            executable   where its inputs are: run, verified and profiled
capture   whole graphs replayed on CUDA      predict      what to expect where nothing can be timed
onward    what results go on as              verify       a linear against the reference
readings  what linears read, who makes it    backend      the form that all backends have
"""
