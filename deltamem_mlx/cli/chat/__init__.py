"""`deltamem-mlx chat`: the command, its loop, what is typed (`/commands`), and how it looks."""
