"""The commands of deltamem-mlx eval."""
