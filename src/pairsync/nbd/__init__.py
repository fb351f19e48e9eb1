"""The NBD front door: pure protocol machines and a trio server around them."""
