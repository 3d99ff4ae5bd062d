"""The sidecar: the model loader as a program of its own, for applications that do not want it inside.

A program, not a library: nothing imports it. Adapters (`oip` for the Open Inference Protocol over HTTP and gRPC,
`socket` for ModelBox's own client) call `service`, which loads and runs the models; `app` wires them.
"""
