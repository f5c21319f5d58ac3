"""Durable store of the sending core: what was accepted, what became of it, and what is due next."""
