"""HTTP, for those who run the proxy."""
