"""The demo: real processes and real SMTP, on loopback, with nothing to set up."""
