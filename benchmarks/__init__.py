"""The benchmark of pairsync: ours and its peers in the same run, on the same machine, by the same clients.

``run.py`` is the entry (``make bench``).  What is measured stands in `rows`, who is measured in `ours` and
`peers`, with what in `clients`, and how figures become ratios and verdicts in `report` (pure).
"""
