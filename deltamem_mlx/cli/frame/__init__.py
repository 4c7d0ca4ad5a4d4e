"""What every command stands in: its errors, output, progress, settings and models."""
