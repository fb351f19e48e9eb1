"""Failure table: every single failure of a pair and every two in turn, with real processes and real writers.

``cells`` says what may fail and what has to come of it, derived from `core.outlook`; ``watch`` looks at both
hosts and at their clients, and knows whether two have served at once; ``runner`` makes it happen in a lab;
``report`` says what came of it.  ``python -m pairsync.testing.failuretable`` runs it all.
"""
