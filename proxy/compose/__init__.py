"""Content steps of the sending core: text part, inline styles, tracked links and beacon."""
