"""Render docs/stacks.md, with plans of the worker's own planner."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pixpod.catalog import load_catalog
from pixpod.engine.memory.residency import ResidencyPlan, make_plan
from pixpod.engine.scheduling.batching import BUCKETS, bucket
from pixpod.errors import ModelUnavailable
from pixpod.extras import ExtraKind, Extras, ExtraSpec, load_extras
from pixpod.families import FAMILIES, FLUX, GIB, SDXL, FamilySpec
from pixpod.gpus import find_gpu
from pixpod.job import LoraSlots
from pixpod.stacks import USUAL_RANK, parse_stacks
from pixpod_tools.generate.markdown import code, generated_from, table
from pixpod_tools.generate.models_page import extra_title
from pixpod_tools.plan.served import Target, find_needs, find_target, target_of

_HEAD = f"""\
# Stacks

A stack is a model together with what one job uses beside it: extras, such as
[ControlNets](controlnets.md), and [LoRAs](loras.md). Any job may use any extras that a deployment
has. `PIXPOD_STACKS` names those that must be ready:

```sh
PIXPOD_STACKS=sdxl+canny+loras,flux-dev+loras=128
```

- The parts of a stack are names of extras, and `loras`. `loras=RANK` is room for LoRAs whose
  ranks are so much together, one of 16, 32, 64, 128, 256; `loras` alone is {USUAL_RANK}, which is
  enough for four of rank 16.
- `studio` stands for a stack of each served model with what most jobs of a studio use: a refiner,
  one ControlNet and `loras`. `heavy` has everything that one job may use: all kinds of extras,
  four ControlNets, and the highest rank. Both choose among the extras of the deployment
  (`PIXPOD_EXTRAS`), the largest first.

A worker does four things with its stacks:

- **It plans for them.** Components and extras of a stack are on the GPU, or are offloaded to host
  memory between the stages of an image. Both count, as do slots for LoRAs, in each stage that
  uses them.
- **It refuses what does not fit**, at start, with the stage, the numbers and what would help.
  `scripts/plan` and `scripts/deploy` use the same planner.
- **It loads their extras at start**, behind the models, if it loads models at start
  (`PIXPOD_PRELOAD`).
- **It warms each of them up** with one image of the first of `PIXPOD_WARMUP_SIZES`, so that the
  first job with it waits for nothing. `scripts/boot_report` shows it.

Extras in no stack are loaded when a job names them, and are the first to be offloaded. The plan
only makes sure that each of them fits beside its model. Where memory is short in spite of all,
copies of the denoiser that no job uses are dropped ([architecture.md](architecture.md#memory)).

## Stacks of jobs

A job may name a preset, too: the fields of the preset fill the job.

```json
{{"input": {{"model": "sdxl", "prompt": "a pier", "stack": "studio", "guidance_scale": 6.5}}}}
```

`studio` and `heavy` give it what they are planned with, as far as that needs no file of the job:
the refiner, with a third of the model's default steps after those of the model (10 after 30).
Control images, image prompts and LoRAs come from the job, whose stack has room for them. Models
without a refiner get no field.

A deployment may have presets of its own, tables of job fields in a TOML file that
`PIXPOD_PRESETS` names:

```toml
[portrait]
num_inference_steps = 30
guidance_scale = 5.0
negative_prompt = "blurred, watermark"
refiner = {{ num_inference_steps = 10 }}
loras = [{{ source = "house-style", scale = 0.7 }}]
output = {{ format = "webp", quality = 85 }}
```

- Fields that the job gives win; null counts as absent. Of `output`, each field counts by itself;
  all others are replaced as a whole.
- A preset has no `model` and no `prompt`, and nothing that belongs to one job: no
  `idempotency_key`, no webhook. Names and types of its fields are checked at start. Whether a model
  takes them is checked with each job, and is a problem of `stack` if not.
- `stack` in the reply has the name and the fields that were filled, so callers see what is in a
  preset.
- `PIXPOD_STACKS` takes these names as well. They stand for a stack of each served model with the
  extras that the fields name, and room for LoRAs of rank {USUAL_RANK} if there are any.
  `scripts/plan --presets FILE` and the key `presets` of [deploy.toml](deploy.md) take the file, and
  plan these stacks like others.

`{{"describe": true}}` lists the names in `stacks`.

## Examples

Beside the models, these deployments have

"""

_PLANS = """
The plans are those of `scripts/plan --models ... --extras ... --stacks ... --gpu ...`, in the
precision that a worker chooses on that GPU. Needed is the memory of the largest stage of one
image, with 1 GiB for CUDA; batches are of images in the models' default sizes, and at most of
eight.
"""

_REFUSED = """
## A stack that does not fit

`heavy` for SDXL in 12 GiB of a GPU (`PIXPOD_MEMORY_LIMIT_GB=12`) is refused with this text:

"""

_SLOTS = """
## Memory of LoRAs

GiB for each image of a batch at rank 64, proportional to the rank. Plans have slots in all
layers, jobs in those that their LoRAs need: as a rule the usual ones, which are those of the
blocks (FLUX, without modulation) or of attention.

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Example:
    models: tuple[str, ...]
    stacks: tuple[str, ...]


_EXAMPLES = (
    _Example(models=("sdxl",), stacks=("studio",)),
    _Example(models=("sdxl",), stacks=("heavy",)),
    _Example(models=("flux-dev",), stacks=("flux-dev+loras=128",)),
    _Example(models=("flux-dev", "sdxl"), stacks=("studio",)),
)
_GPUS = ("RTX 4090", "6000 Ada", "H100")
_NETS = (
    ("canny", SDXL, 2.33),
    ("depth", SDXL, 2.33),
    ("flux-canny", FLUX, 3.99),
)


def render() -> str:
    """Return the text of the page."""
    extras = _extras()
    return (
        _HEAD
        + table(("extra", "kind", "for", "GiB in 16 bits"), _extra_rows(extras))
        + _PLANS
        + "".join(_plans(name, extras) for name in _GPUS)
        + _REFUSED
        + f"> {_refusal(extras)}\n"
        + _SLOTS
        + table(("family", "usual layers", "all layers"), _slot_rows())
        + generated_from("the planner", "src/pixpod_tools/generate/stacks_page.py")
    )


def _extras() -> Extras:
    """Return published extras of the catalog, and nets of the usual sizes."""
    published = {name: extra for name, extra in load_extras().items() if extra.repository}
    nets = {
        name: ExtraSpec(
            name=name,
            kind=ExtraKind.CONTROLNET,
            family=family,
            licence="",
            types=(name,),
            gib_16=gib,
        )
        for name, family, gib in _NETS
    }
    return {**published, **nets}


def _extra_rows(extras: Extras) -> Iterator[tuple[str, ...]]:
    for extra in extras.values():
        yield f"`{extra.name}`", extra.kind, extra_title(extra), f"{extra.gib_16:.2f}"


def _plans(gpu_name: str, extras: Extras) -> str:
    gpu = find_gpu(gpu_name)
    assert gpu is not None
    target = target_of(gpu)
    rows = [row for example in _EXAMPLES for row in _rows(example, target, extras)]
    head = ("models", "`PIXPOD_STACKS`", "stack", "needed", "batch", "offloaded between stages")
    return f"\n### {gpu.name}, {target.budget.gpu_bytes / GIB:.1f} GiB\n\n" + table(head, rows)


def _rows(example: _Example, target: Target, extras: Extras) -> Iterator[tuple[str, ...]]:
    plan = _plan(example.models, example.stacks, target, extras)
    for need in plan.needs:
        for stack in need.declared_stacks:
            batch_size = bucket(plan.max_batch_size(need.model, stack.stages, max(BUCKETS)))
            yield (
                code(example.models),
                code(example.stacks),
                f"`{stack.name}`",
                f"{plan.needed_bytes(need, stack.stages) / GIB:.1f} GiB",
                str(batch_size),
                code(map(str, plan.offloaded)) or "-",
            )


def _plan(
    models: Sequence[str], entries: Sequence[str], target: Target, extras: Extras
) -> ResidencyPlan:
    catalog = load_catalog()
    served = {name: catalog[name] for name in models}
    stacks = parse_stacks(entries, served, extras)
    needs = find_needs(models, catalog, None, target, extras=extras, stacks=stacks)
    return make_plan(needs, target.budget)


def _refusal(extras: Extras) -> str:
    try:
        _plan(["sdxl"], ["heavy"], find_target(None, 12), extras)
    except ModelUnavailable as refusal:
        return str(refusal)
    raise AssertionError("the example is of a stack that does not fit")


def _slot_rows() -> Iterator[tuple[str, ...]]:
    for family in FAMILIES.values():
        if family.lora:
            yield (
                family.title,
                _slots_gib(family, is_whole=False),
                _slots_gib(family, is_whole=True),
            )


def _slots_gib(family: FamilySpec, *, is_whole: bool) -> str:
    assert family.lora is not None
    slots = LoraSlots(rank=64, is_whole=is_whole)
    return f"{family.lora.slot_bytes(slots) / GIB:.2f}"
