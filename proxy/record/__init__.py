"""What happened: log lines and metrics."""
