"""cmail-proxy: a transparent SMTP proxy that turns provider header fields into X-Cmail fields."""

__version__ = "0.1.0"
