"""Pre-training by replaced-token detection with early exits."""
