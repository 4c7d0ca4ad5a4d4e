"""Close an adapter's write gates a little: less is written by chance, and by intent.

    python examples/smollm2_adapter/close.py ADAPTER OUT --by 1

What it costs in recall and gives in perplexity is in docs/training.md.
"""

import argparse
import shutil
from pathlib import Path

import mlx.core as mx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("adapter", type=Path, help="folder of the adapter, in mlx-lm's form")
    parser.add_argument("out", type=Path, help="folder of the new one")
    parser.add_argument("--by", type=float, default=1.0, help="taken from every gate's logit")
    args = parser.parse_args()

    weights = mx.load(str(args.adapter / "adapters.safetensors"))
    closed = {n: w - args.by if n.endswith("beta_bias") else w for n, w in weights.items()}
    args.out.mkdir(parents=True)
    mx.save_safetensors(str(args.out / "adapters.safetensors"), closed)
    shutil.copy(args.adapter / "adapter_config.json", args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
