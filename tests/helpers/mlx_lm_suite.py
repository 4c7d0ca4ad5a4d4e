"""mlx-lm's own tests, with a memory attached to every model that they make.

    python tests/helpers/mlx_lm_suite.py MLX_LM

``MLX_LM`` is a checkout of mlx-lm at the version that is installed, or its unpacked source
distribution; it is not part of this repository. The tests run three times: with plain models, with
a memory that corrects nothing, and with one that does. A test that passes with plain models may
fail with a memory for one of three reasons only.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

KINDS = ("plain", "zero", "random")
CACHE = "expects a layer's cache of a class of mlx-lm's, or gives it one; it is a DeltaMemCache"
SCALES = "expects all that an attention puts out to be scaled, and a memory adds to it"
SAVES = "writes all parameters of the patched model into the weights of a plain one"
REASONS = {
    "test_llama_model_sliding_attention": CACHE,
    "test_phixtral": CACHE,
    "test_spark2_5": CACHE,
    "test_step3p5_make_cache_uses_fallback_sliding_pattern": CACHE,
    "test_step3p5_make_cache_uses_rotating_for_sliding_layers": CACHE,
    "test_mimo_v2_flash_attention_value_scale": SCALES,
    "test_prism_hadamard_qwen35_matches_qwen3_5": SAVES,
}


def attach_to_all(kind: str) -> None:
    """From now on every model of mlx-lm that is made has a memory, where it can have one."""
    import mlx_lm.models
    from mlx_lm.utils import load_model

    import deltamem_mlx as dm

    config = dm.DeltaMemConfig(output_init=kind, online_gain=0.5)
    making: list[object] = []

    def wrapped(init: Callable[..., None]) -> Callable[..., None]:
        @wraps(init)
        def make(model: object, *args: object, **kwargs: object) -> None:
            making.append(model)
            try:
                init(model, *args, **kwargs)
            finally:
                making.pop()
            # Only the outermost of nested models, and none that weights are about to be read for.
            if not making and sys._getframe(1).f_code is not load_model.__code__:
                try:
                    dm.attach(model, config, seed=0)
                    model.unfreeze()
                except ValueError:
                    pass  # it has no attention that can keep one

        return make

    for module in iter_modules(mlx_lm.models.__path__):
        try:
            cls = import_module(f"mlx_lm.models.{module.name}").Model
        except (AttributeError, ImportError, SystemExit):  # one leaves where a package is missing
            continue
        if "__init__" in vars(cls):
            cls.__init__ = wrapped(cls.__init__)


def pytest_configure() -> None:
    kind = os.environ.get("MEMORY", "plain")
    if kind != "plain":
        attach_to_all(kind)


def outcomes(tests: Path, kind: str) -> dict[str, str]:
    """Test → ``passed``, ``skipped``, or the last line of its failure."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = ["-m", "pytest", "-q", "-p", "mlx_lm_suite", "-p", "no:cacheprovider"]
        command += ["--continue-on-collection-errors"]
        here = str(Path(__file__).parent)
        root = str(Path(__file__).parents[2])
        subprocess.run(
            [sys.executable, *command, "--timeout=300", f"--junitxml={report}", str(tests)],
            env=os.environ
            | {"MEMORY": kind, "PYTHONPATH": f"{here}:{root}", "HF_HUB_OFFLINE": "1"},
            cwd=folder,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        found = {}
        for case in xml.parse(report).iter("testcase"):
            name = f"{case.get('classname')}::{case.get('name')}"
            failure = next((c for c in case if c.tag in ("failure", "error")), None)
            skipped = any(c.tag == "skipped" for c in case)
            said = "passed" if failure is None else failure.get("message", "failed")
            found[name] = "skipped" if skipped else said.partition("\n")[0][:150]
    return found


def main() -> int:
    """Runs the tests and says which fail for none of the reasons; 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mlx_lm", type=Path)
    parser.add_argument("--kinds", nargs="*", default=KINDS[1:], choices=KINDS[1:])
    args = parser.parse_args()
    tests = args.mlx_lm / "tests"
    plain = outcomes(tests, "plain")
    passed = [name for name, said in plain.items() if said == "passed"]
    print(f"plain: {len(passed)} of {len(plain)} tests pass")
    unknown = 0
    for kind in args.kinds:
        found = outcomes(tests, kind)
        failed = {name: found.get(name, "gone") for name in passed if found.get(name) != "passed"}
        print(f"{kind} memory: {len(passed) - len(failed)} of these pass")
        for name, said in failed.items():
            reason = REASONS.get(name.rpartition("::")[2])
            unknown += reason is None
            print(f"  {name}: {reason or 'NOT EXPECTED'} ({said})")
    return int(unknown > 0)


if __name__ == "__main__":
    sys.exit(main())
