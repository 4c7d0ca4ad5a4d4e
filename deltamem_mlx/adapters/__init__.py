"""An adapter's life: read, check, load, publish."""
