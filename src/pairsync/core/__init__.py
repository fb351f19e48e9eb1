"""PURE: dirty maps, lineage, resync plans, write tracking, the in-flight window, the session router.

No clock, socket, file or random source: time is integer nanoseconds, an argument, and effects are returned.
"""
