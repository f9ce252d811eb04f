"""What XLA runs: a closed set of fixed-shape programs over one donated state.

`state` defines what lives on the device between calls, `prefill` and `decode` are the programs of a
decoder, `encode` is that of an encoder (which has no state), `buckets` says how a prompt is cut,
`compile` builds all of them before the first request, `manifest` lists what they cost, `guard`
calls them and counts what compiles later all the same. It knows nothing of requests, HTTP or files.
"""
