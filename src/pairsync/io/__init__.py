"""Trio: keys, mutual TLS, lanes, network paths and the link to the peer host."""
