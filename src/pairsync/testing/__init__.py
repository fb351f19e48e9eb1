"""Public test tools: the simulator, fault wrappers, conformance suites for embedders.

Nothing in the package imports this room.
"""
