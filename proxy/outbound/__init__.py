"""SMTP out: one connection, the pool of them, and the route that streams messages through it."""
