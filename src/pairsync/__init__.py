"""pairsync: a disk that lives on two hosts at once."""
