"""Writes docs/hardware.md from the functions that `preceptor-trainer plan` counts with: `make docs`.

A house test holds the page to it. Base models' configurations are those that the trainer ships (plan/published).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from preceptor_engine.settings import EngineSettings
from preceptor_trainer.hardware import Hardware
from preceptor_trainer.plan.bases import find_config
from preceptor_trainer.plan.forecast import Question, make_plan
from preceptor_trainer.plan.memory import estimate_serving
from preceptor_trainer.plan.parameters import count_parameters
from preceptor_trainer.plan.servability import Place
from preceptor_trainer.plan.workload import Workload
from preceptor_trainer.recipes import Overrides, Recipe, load_recipe, recipes_dir, resolve_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/hardware.md"
SIZES_GIB = (8, 12, 16, 24, 48, 80)
"""Memory of usual GPUs: what makers call GB there is GiB."""
USABLE = 0.9
"""A tenth of a GPU stays spare, as in docs/recipes.md; a house test holds it to that."""
NO_GPU = Hardware("cuda", "a GPU", 0, 0, "bfloat16")
"""With no byte free: the plan then takes as little as it can."""
ENGINE = {name: field.get_default() for name, field in EngineSettings.model_fields.items()}
SHARE: float = ENGINE["gpu_memory_utilization"]

HEAD = f"""# Hardware: which GPU for which recipe

This page is generated from the trainer's planning code by `make docs`; a test holds it to the code. Change the code,
not the page.

## What it is

What each shipped [recipe](recipes.md) takes of a GPU, to train and to serve, and which usual sizes of GPU suffice.

**All of it is what `preceptor-trainer plan` estimates. Nothing on this page was measured on a GPU.** What was measured,
and on what, is in [figures.md](figures.md).

Memory is in GiB (2^30 bytes); [recipes.md](recipes.md#memory) has the same estimates in GB, and those for processors.

## How to do it

Look your GPU up [below](#which-gpu). Then ask `plan`, which counts your own records: they are mostly shorter than what
the tables assume, and so take less. `--gpu-gb` is for a GPU that is not here, or for the part of it that the engine
leaves:

```bash
.venv/bin/preceptor-trainer plan allergy --recipe qwen2.5-1.5b-qlora --gpu-gb 12
```

**Beside the engine.** vLLM takes `ENGINE_GPU_MEMORY_UTILIZATION` of the GPU when it starts, {SHARE} unless set, however
small its base model is. Set it in `.env` to a share within the range that the table gives, and restart the engine. What
vLLM does not need for weights becomes KV cache, so a lower share means fewer requests at a time.

**By hand-off.** An engine that was started with `ENGINE_HAND_OFF=true` makes way for a training that asks for the GPU,
and comes back when the training ends, however it ends. Where no second engine serves, requests get 503 meanwhile:

```bash
.venv/bin/preceptor-trainer run allergy --hand-off
```
"""
TAIL = f"""
## What goes wrong

- `Training needs about ... of memory, but only ... are free`, though the table says that it fits: `plan` counts what is
  free at this moment, and the engine has its share. Lower `ENGINE_GPU_MEMORY_UTILIZATION`, or use `--hand-off`.
- The engine ends as it starts and says `Free memory on device ... is less than desired GPU memory utilization`: a
  training, or something else, has the GPU. Lower `ENGINE_GPU_MEMORY_UTILIZATION`, or wait.
- `trains only`: the base model is too large to be served there in the bits that the recipe asks for. Where the fp8
  column is small enough, set `ENGINE_QUANTIZATION=fp8`; else serve on a larger GPU.
- A training runs out of memory though `plan` let it begin: the estimate was too low. The training goes on by itself
  with half as many records a forward pass.

## Why it is so

- **A tenth is spare** in every cell: for fragments of memory, and for what the estimate misses. `plan` itself refuses
  only what exceeds the free memory.
- **The longest records count.** A batch of them is the peak, whether it comes once or in every step.
- **Serving is the least that vLLM needs:** weights, {ENGINE["max_loras"]} adapters of the recipe's rank
  (`ENGINE_MAX_LORAS`, `ENGINE_MAX_LORA_RANK`), the KV cache of one context of {ENGINE["max_model_len"]:,} tokens
  (`ENGINE_MAX_MODEL_LEN`), and 1 GB for its process. More memory serves more requests at a time.
- **fp8** and what is known about it: [decision 13](decisions/0013-fp8-serving.md).
"""
TAKES = """For a forward pass of the recipe's own batch, all of its records as long as `max_length`. Gradient
checkpointing computes more and keeps less; a recipe's `auto` leaves it off where there is memory enough.
"""


class Need(NamedTuple):
    """What a recipe takes of a GPU, in bytes."""

    recipe: Recipe
    trainable: int
    """Parameters."""
    training: int
    """With gradient checkpointing, unless the recipe turns it off."""
    training_at_ease: int
    """With all the memory it may want: without gradient checkpointing, unless the recipe turns it on."""
    serving_16_bits: int
    serving_fp8: int

    @property
    def serving(self) -> int:
        """In the bits that the recipe asks for."""
        return self.serving_fp8 if self.recipe.serving_quantization == "fp8" else self.serving_16_bits


def need_of(name: str) -> Need:
    """Plans a shipped recipe for one step of records as long as it allows."""
    recipe = resolve_recipe(name, Overrides(), NO_GPU)
    config = find_config(recipe.base_model)
    rows = recipe.batch_size * recipe.accumulation
    work = Workload(rows, rows * recipe.max_length, recipe.max_length, shared=0, answer=0)
    question = Question(recipe.base_model, Place(recipe.base_model, recipe.rank, "cuda"))
    tight = make_plan(config, recipe, work, NO_GPU, question)
    at_ease = make_plan(config, recipe, work, replace(NO_GPU, memory_bytes=sys.maxsize), question)
    counts = count_parameters(config, recipe)

    def serving(quantization: str) -> int:
        asked = recipe.model_copy(update={"serving_quantization": quantization})
        adapters, context = ENGINE["max_loras"], ENGINE["max_model_len"]
        return sum(estimate_serving(counts, asked, "cuda", adapters=adapters, context=context).values())

    return Need(
        recipe,
        tight.trainable_parameters,
        tight.memory_total_bytes,
        at_ease.memory_total_bytes,
        serving("none"),
        serving("fp8"),
    )


def needs() -> list[Need]:
    """Of every shipped recipe that names its base model."""
    names = [path.stem for path in sorted(recipes_dir().glob("*.yaml"))]
    return [need_of(name) for name in names if load_recipe(name).base_model]


class Shares(NamedTuple):
    """Of a GPU, for the engine."""

    least: float
    """Or it could not serve."""
    most: float
    """Or the training would not fit beside it; never more than the setting's default."""


def shares(need: Need, size_gib: int) -> Shares:
    """Bounds of ENGINE_GPU_MEMORY_UTILIZATION beside a training, in hundredths; the least may exceed the most."""
    size = size_gib * 2**30
    most = math.floor(100 * (USABLE - need.training / size)) / 100
    return Shares(math.ceil(100 * need.serving / size) / 100, min(SHARE, most))


def verdict(need: Need, size_gib: int) -> str:
    """What a GPU of this size does for a recipe, in as few words as a cell holds."""
    share = shares(need, size_gib)
    if share.least <= share.most:
        least, most = f"{share.least:.2f}", f"{share.most:.2f}"
        return f"beside, {least} to {most}" if least != most else f"beside, {least}"
    serves = share.least <= SHARE
    if need.training <= USABLE * size_gib * 2**30:
        return "hand-off" if serves else "trains only"
    return "serves only" if serves else "-"


def gib(count: int) -> str:
    """Bytes in GiB, rounded up: a need is never shown smaller than it is."""
    return f"{math.ceil(10 * count / 2**30) / 10:.1f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int) -> Iterator[str]:
    """A table whose columns from one on are set right."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join('---:' if at >= numbers_from else '---' for at in range(len(head)))}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def takes(found: Sequence[Need]) -> Iterator[str]:
    """The table of what each recipe takes."""
    yield "### What each recipe takes"
    yield ""
    yield from TAKES.splitlines()
    yield ""
    head = (
        *("recipe", "base model", "method", "trainable", "records x tokens", "training, GiB"),
        *("training without checkpointing, GiB", "serving in 16 bits, GiB", "serving in fp8, GiB"),
    )
    rows = [
        (
            f"`{need.recipe.name}`",
            need.recipe.base_model.rpartition("/")[2],
            need.recipe.method,
            f"{need.trainable:,}",
            f"{need.recipe.batch_size} x {need.recipe.max_length:,}",
            *(gib(need.training), gib(need.training_at_ease), gib(need.serving_16_bits), gib(need.serving_fp8)),
        )
        for need in found
    ]
    yield from table(head, rows, numbers_from=3)


def which(found: Sequence[Need]) -> Iterator[str]:
    """The table of which GPU does what."""
    yield "### Which GPU"
    yield ""
    yield "With gradient checkpointing where it takes that, served in the bits that the recipe asks for:"
    yield ""
    head = ("recipe", "served in", *(f"{size} GiB" for size in SIZES_GIB))
    rows = [
        (
            f"`{need.recipe.name}`",
            "fp8" if need.serving == need.serving_fp8 else "16 bits",
            *(verdict(need, size) for size in SIZES_GIB),
        )
        for need in found
    ]
    yield from table(head, rows, numbers_from=len(head))
    yield ""
    yield from table(
        ("cell", "what the GPU does"),
        [
            (
                "beside, 0.20 to 0.40",
                "trains while the engine serves, with `ENGINE_GPU_MEMORY_UTILIZATION` in that range",
            ),
            ("hand-off", "trains alone and serves alone, not both at a time: `--hand-off`"),
            ("trains only", f"trains alone; {SHARE} of it is too little to serve the base model"),
            ("serves only", "serves alone, and is too small to train"),
            ("-", "is too small for either"),
        ],
        numbers_from=2,
    )


def render(found: Sequence[Need]) -> str:
    """The whole page."""
    lines = [*HEAD.splitlines(), "", "## The format", "", *takes(found), "", *which(found), *TAIL.splitlines()]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Writes the page."""
    PAGE.write_text(render(needs()))
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
