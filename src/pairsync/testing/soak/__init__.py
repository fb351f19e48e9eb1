"""Soak: chains of faults and repairs drawn from a seed, in a lab of real processes that writes all the time.

`plan` draws a chain and reads it back from its text, `runner` makes it happen and judges it.  What a failure
table cannot hold is looked for here: three to five failures, repairs that overlap them, and orders that
nobody thought of.  ``python -m pairsync.testing.soak --seed S --chains N``.
"""
