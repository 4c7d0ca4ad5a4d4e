"""Write a model's first layers as a model: a draft model to try, where no smaller one is at hand.

    python examples/first_layers.py MODEL LAYERS OUT_DIR
    deltamem-mlx bench --model MODEL --adapter ADAPTER --draft-model OUT_DIR

A real draft, a smaller model of the same family, guesses better.
"""

import sys
from pathlib import Path

from mlx_lm import load
from mlx_lm.utils import save

if len(sys.argv) != 4:
    sys.exit(__doc__)
source, layers, target = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
model, tokenizer, config = load(str(source), return_config=True)
model.model.layers = model.model.layers[:layers]
save(target, source, model, tokenizer, config | {"num_hidden_layers": layers})
print(f"wrote {target}")
