"""Composition root: a host process, its configuration and supervision; the lab."""
