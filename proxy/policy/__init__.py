"""Pure decisions over values and a given clock: what a reply means, and when to try again."""
