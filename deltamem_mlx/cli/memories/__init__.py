"""`deltamem-mlx memories`: what there is, and what is done to it."""
