"""`python -m deltamem_mlx`: the same as the `deltamem-mlx` command."""

from deltamem_mlx.cli.main import main

if __name__ == "__main__":
    main()
