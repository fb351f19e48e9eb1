"""The ``pairsync`` command; imports lazily, so that ``--help`` is quick."""
