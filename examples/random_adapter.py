"""Write a δ-mem adapter of small random weights: for trying commands before you have trained one.

    python examples/random_adapter.py MODEL OUT_DIR

It makes the model a little worse, not better. Train a real one with `deltamem-mlx train`.
"""

import sys

import deltamem_mlx as dm

if len(sys.argv) != 3:
    sys.exit(__doc__)
model, _ = dm.load(sys.argv[1])
dm.attach(model, dm.DeltaMemConfig(delta_heads=("q", "o"), output_init="random"), seed=0)
dm.save_adapter(model, sys.argv[2])
print(f"wrote {sys.argv[2]}")
