"""Route ``deliver``: a message is composed, made durable, answered with 250, and then attempted until it is final."""
