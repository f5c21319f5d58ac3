"""Content steps of the sending core: what is done to a message before it is stored and sent. Pure."""
