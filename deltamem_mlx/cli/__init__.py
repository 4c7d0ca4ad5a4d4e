"""The `deltamem-mlx` command: one small module a command, the frame in `main`."""
