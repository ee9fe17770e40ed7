"""The customer's side: it reads changes, carries them and writes them, inside the customer's network.

`link` brings desired-state documents in and takes reports out, `node` reconciles them into worker processes, and
`worker` runs sources, transforms, buffers and sinks. It imports `contracts` and nothing of the other plane.
"""
