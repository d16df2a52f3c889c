"""Stages hold to their plans: which components they use, and how many bytes are on the device.

The real runner with the shipped models of three families, and the CPU as the device.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from support import loading
from support.factories import CATALOG

from pixpod.catalog import ModelSpec
from pixpod.contract.rules import Capabilities
from pixpod.engine.component_key import ComponentKey, extra_key
from pixpod.engine.engine import DiffusionEngine
from pixpod.engine.execution.batch import Batch
from pixpod.engine.execution.condition_cache import ConditionCache
from pixpod.engine.execution.conditions import RefinerCondition, SourceCondition, TextCondition
from pixpod.engine.execution.model_runner import ModelRunner
from pixpod.engine.execution.runnable_model import RunnableModel
from pixpod.engine.execution.stages import (
    DecodeStage,
    DenoiseStage,
    EncodeStage,
    RefineStage,
    Stage,
    StageContext,
)
from pixpod.engine.memory.budget import Budget
from pixpod.engine.memory.needs import Need
from pixpod.engine.memory.offloading import OffloadableWeights
from pixpod.engine.memory.placement import Placement
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.model import ComponentNotOnloaded, LoadedExtra, LoadedModel, Pipeline
from pixpod.engine.scheduling.batching import BatchItem, ItemResult
from pixpod.families import Precision
from pixpod.inputs.client import GuardedClient
from pixpod.inputs.intake import Intake
from pixpod.inputs.targets import Targets
from pixpod.job import (
    Conditions,
    Delivery,
    GenerationRequest,
    ImageResult,
    InputImage,
    Mode,
    Quality,
    RawImage,
    RefinerOptions,
)
from pixpod.methods import StageName, StagePlan, method_of, stages_of
from pixpod.outputs.storage import InlineImageStore
from pixpod.serving.concurrency import Concurrency
from pixpod.serving.delivery import ImageDelivery
from pixpod.serving.refresh import Refresh
from pixpod.serving.worker import Worker
from pixpod.timeline import BootTimeline, Span

CPU = torch.device("cpu")
PRECISIONS = {
    "flux-tiny": Precision.FLOAT8_DYNAMIC,
    "sdxl-tiny": Precision.FLOAT32,
    "sd15-tiny": Precision.FLOAT32,
}
PLANNED_SIZE = (96, 96)
"""The size that plans are made for; requests are not larger."""


REFINER = "refiner"


def load(name: str) -> LoadedModel:
    """A model; one with refiners has one of the same weights."""
    model, other = (
        loading.load(name, loading.shipped(name), PRECISIONS[name], CPU) for _ in range(2)
    )
    if model.spec.family.refiner:
        key = extra_key(REFINER, PRECISIONS[name])
        model.extras[REFINER] = LoadedExtra(module=other.denoiser, key=key)
    return model


def need_of(model: LoadedModel) -> Need:
    """What a model needs by the real sizes of its modules."""
    width, height = PLANNED_SIZE
    spec = model.spec
    request = spec.default_request(width=width, height=height)
    return Need(
        model=spec.name,
        precision=PRECISIONS[spec.name],
        denoiser=spec.family.denoiser,
        keys={name: model.key_of(name) for name in (*model.components, *model.extras)},
        sizes=sizes_of(model),
        stages=stages_of(spec, method_of(spec, request)),
        saved_bytes=0,
    )


def sizes_of(model: LoadedModel) -> dict[ComponentKey, int]:
    """The bytes of all that is loaded."""
    names = (*model.components, *model.extras)
    return {
        model.key_of(name): OffloadableWeights(model.module_of(name), CPU).size_bytes
        for name in names
    }


def budget_of(needs: list[Need], percent: int) -> Budget:
    """From the least with which each stage works, to that with which nothing is offloaded."""
    least = max(need.stage_bytes(stage) for need in needs for stage in need.stages)
    working = max(stage.working_bytes(1) for need in needs for stage in need.stages)
    most = working + sum(size for need in needs for size in need.sizes.values())
    return Budget(gpu_bytes=least + (most - least) * percent // 100, overhead_bytes=0)


# --- what stages really use ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One stage of one batch. `before` and `during` are the components on the device."""

    model: LoadedModel
    plan: StagePlan
    batch_size: int
    before: frozenset[ComponentKey]
    during: frozenset[ComponentKey]
    used: frozenset[str]


class Observer:
    """Watches the stages of one runner through modules' hooks and the placement."""

    def __init__(self, placement: Placement) -> None:
        self.seen: list[Observed] = []
        self._placement = placement
        self._before: frozenset[ComponentKey] = frozenset()

    def stages(self) -> dict[StageName, Stage]:
        cache = ConditionCache(0)
        source, refiner = SourceCondition(cache), RefinerCondition(cache)
        real: dict[StageName, Stage] = {
            StageName.TEXT_ENCODE: EncodeStage([TextCondition(cache), refiner], "a text"),
            StageName.IMAGE_ENCODE: EncodeStage([source], "an image"),
            StageName.DENOISE: DenoiseStage([source]),
            StageName.REFINE: RefineStage([source, refiner]),
            StageName.DECODE: DecodeStage([source]),
        }
        return {name: _ObservedStage(name, stage, self) for name, stage in real.items()}

    def prepare(self, stage: Stage, batch: Batch) -> bool:
        """Called by the runner before it onloads."""
        self._before = self._placement.on_device
        return stage.prepare(batch)

    def run(self, name: StageName, stage: Stage, batch: Batch, context: StageContext) -> None:
        model, used = batch.model, set[str]()
        plans = stages_of(model.spec, batch.method)
        during = self._placement.on_device
        with ExitStack() as hooks:
            for component, module in entry_modules(model):
                note = partial(_note, used, component)
                hooks.callback(module.register_forward_pre_hook(note).remove)
            stage.run(batch, context)
        self.seen.append(
            Observed(
                model=model,
                plan=next(plan for plan in plans if plan.name is name),
                batch_size=len(batch.rows),
                before=self._before,
                during=during,
                used=frozenset(used),
            )
        )


class _ObservedStage:
    def __init__(self, name: StageName, stage: Stage, observer: Observer) -> None:
        self.prepare = partial(observer.prepare, stage)
        self.run = partial(observer.run, name, stage)


def _note(used: set[str], component: str, *call: object) -> None:
    used.add(component)


def entry_modules(model: LoadedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the modules of which one runs whenever their component computes something."""
    vae = model.spec.family.vae
    for name in (*model.components, *model.extras):
        module = model.module_of(name)
        if name == vae:
            yield from ((name, module.encoder), (name, module.decoder))
        else:
            yield name, module


# --- random methods and plans --------------------------------------------------------------------

SIDES = st.sampled_from([32, 64, 96])


def with_image(width: int, height: int) -> dict[str, Any]:
    raw = RawImage(width=width, height=height, pixels=bytes(3 * width * height))
    conditions = Conditions(image=InputImage(raw=raw, digest=f"{width}x{height}"))
    return {"mode": Mode.IMAGE_TO_IMAGE, "strength": 1.0, "conditions": conditions}


@st.composite
def requests(draw, name: str) -> GenerationRequest:
    """Any method of a shipped model, with few steps."""
    spec = CATALOG[name]
    changes = {
        "width": draw(SIDES),
        "height": draw(SIDES),
        "num_inference_steps": 2,
        "scheduler": draw(st.sampled_from(sorted(spec.family.schedulers))),
        "guidance_scale": draw(st.sampled_from([1.0, 3.0])),
        "seeds": tuple(range(draw(st.integers(1, 4)))),
    }
    if name == "flux-tiny" and draw(st.booleans()):
        changes |= {"true_cfg_scale": 2.0, "negative_prompt": "a blue square"}
    if name == "flux-tiny" and draw(st.booleans()):
        changes |= {"quality": Quality.TURBO, "num_inference_steps": 8, "seeds": (0,)}
    elif draw(st.booleans()):
        changes |= with_image(changes["width"], changes["height"])
    scheduler = spec.family.schedulers[changes["scheduler"]]
    if spec.family.refiner and scheduler.can_be_split and draw(st.booleans()):
        changes["refiner"] = RefinerOptions(name=REFINER, num_inference_steps=1)
    return spec.default_request(**changes)


@st.composite
def workloads(draw) -> tuple[int, list[GenerationRequest]]:
    """A budget in percent of what may be saved, and requests for some models."""
    names = draw(st.lists(st.sampled_from(sorted(PRECISIONS)), min_size=1, max_size=4))
    return draw(st.integers(0, 100)), [draw(requests(name)) for name in names]


@settings(max_examples=8, deadline=None)
@given(workloads())
def test_stages_hold_to_any_plan(workload):
    percent, work = workload
    observed, placement = run_observed(percent, work)
    optional = {
        StageName.ADAPT,
        StageName.PREPROCESS,
        StageName.IMAGE_ENCODE,
        StageName.REFINE,
        StageName.UPSCALE,
    }
    assert {seen.plan.name for seen in observed} - optional == {*StageName} - optional
    for seen in observed:
        assert_holds(seen, placement)


@pytest.mark.parametrize(
    "names", [("flux-tiny",), ("sdxl-tiny", "sd15-tiny"), tuple(PRECISIONS)], ids="-".join
)
def test_stages_hold_to_the_tightest_plan_and_offload(names):
    """Each model twice, in turn; the second time something of it must be onloaded."""
    width, height = PLANNED_SIZE
    work = [
        CATALOG[name].default_request(width=width, height=height, num_inference_steps=1)
        for name in names * 2
    ]
    observed, placement = run_observed(0, work)
    assert placement.plan.offloaded
    for seen in observed:
        assert_holds(seen, placement)
    second_round = observed[len(observed) // 2 :]
    moved = {seen.model.spec.name for seen in second_round if seen.during - seen.before}
    assert moved == {name for name in names if offloads(name, placement)}
    assert moved


def test_model_and_refiner_take_turns_on_the_device():
    """The tightest plan has room for one of both."""
    width, height = PLANNED_SIZE
    refiner = RefinerOptions(name=REFINER, num_inference_steps=1)
    request = CATALOG["sdxl-tiny"].default_request(
        width=width, height=height, num_inference_steps=2, refiner=refiner
    )
    observed, placement = run_observed(0, [request, request])
    seen = [each for each in observed if each.plan.name in (StageName.DENOISE, StageName.REFINE)]
    assert len(seen) == 4
    for each in seen:
        assert_holds(each, placement)
        model = each.model
        there = {model.key_of("unet"), model.key_of(REFINER)} & each.during
        assert there == {model.key_of(each.plan.components[0])}


def offloads(name: str, placement: Placement) -> bool:
    return any(key.model == name for key in placement.plan.offloaded)


def assert_holds(seen: Observed, placement: Placement) -> None:
    wanted = {seen.model.key_of(name) for name in seen.plan.components}
    assert seen.used == set(seen.plan.components)
    assert wanted <= seen.during
    assert seen.during - seen.before <= wanted
    sizes = {key: size for need in placement.plan.needs for key, size in need.sizes.items()}
    resident_bytes = sum(sizes[key] for key in seen.during)
    assert placement.plan.budget is not None
    free_bytes = placement.plan.budget.free_bytes
    assert resident_bytes + seen.plan.working_bytes(seen.batch_size) <= free_bytes


def run_observed(percent: int, work: list[GenerationRequest]) -> tuple[list[Observed], Placement]:
    """What happened in each stage within a budget; its images are those without a budget."""
    models = {name: load(name) for name in dict.fromkeys(each.model for each in work)}
    needs = [need_of(model) for model in models.values()]
    placement = Placement(make_plan(needs, budget_of(needs, percent)))
    items = [item_of(request, models[request.model], placement) for request in work]
    expected = run_all(models, items, Placement(make_plan((), None)), {})
    observer = Observer(placement)
    assert run_all(models, items, placement, observer.stages()) == expected
    return observer.seen, placement


def item_of(request: GenerationRequest, model: LoadedModel, placement: Placement) -> BatchItem:
    """As many of the images as a queue would put into one batch."""
    runnable = RunnableModel(
        model, ModelRunner(placement, ConditionCache(0)), BootTimeline(time.perf_counter)
    )
    return BatchItem(request=request, seeds=request.seeds[: runnable.max_batch_size(request)])


def run_all(
    models: dict[str, LoadedModel],
    items: list[BatchItem],
    placement: Placement,
    stages: dict[StageName, Stage],
) -> list[tuple[ImageResult, ...]]:
    """Images of each item, which is a batch of its own."""
    for model in models.values():
        placement.add(model)
        for extra in model.extras.values():
            size_bytes = sizes_of(model)[extra.key]
            placement.admit(extra.key, size_bytes, CPU, partial(getattr, extra, "module"))
    runner = ModelRunner(placement, ConditionCache(0), stages=stages)
    images = []
    for item in items:
        (result,) = runner.execute(models[item.request.model], [item], lambda calls: None)
        assert isinstance(result, ItemResult)
        images.append(result.images)
    return images


# --- planted stages ------------------------------------------------------------------------------


def call_denoiser(pipe: Pipeline) -> None:
    pipe.unet(torch.zeros(1, 16, 8, 8), 1, torch.zeros(1, 77, 64))


def read_weights(pipe: Pipeline) -> None:
    next(pipe.text_encoder.parameters())


class PlantedStage(DecodeStage):
    """Does something with another component before it decodes, as often as given."""

    def __init__(self, touch: Callable[[Pipeline], None], times: int) -> None:
        super().__init__()
        self._touch = touch
        self._times = times

    def run(self, batch: Batch, context: StageContext) -> None:
        if self._times:
            self._times -= 1
            self._touch(context.pipe)
        super().run(batch, context)


class LoadedAlready:
    """A loader of one model, which is there from the start."""

    device_name = "cpu"

    def __init__(self, model: RunnableModel) -> None:
        self._load: Future[RunnableModel] = Future()
        self._load.set_result(model)

    def load(self, name: str, quality: Quality) -> Future[RunnableModel]:
        return self._load

    def reading(self) -> tuple[Span, ...]:
        return ()

    def stop(self) -> None:
        pass


@pytest.mark.parametrize(
    ("touch", "component"), [(call_denoiser, "unet"), (read_weights, "text_encoder")]
)
def test_stage_that_uses_another_component_fails_its_job_only(touch, component, caplog):
    """Whether it is on the device or not: here everything is."""
    spec = CATALOG["sd15-tiny"]
    timeline = BootTimeline(time.perf_counter)
    stages = {StageName.DECODE: PlantedStage(touch, times=1)}
    runner = ModelRunner(Placement(make_plan((), None)), ConditionCache(0), stages=stages)
    loader: Any = LoadedAlready(RunnableModel(load(spec.name), runner, timeline))
    engine = DiffusionEngine(
        models={spec.name: spec},
        loader=loader,
        timeline=timeline,
        preload=False,
        warmup_sizes=(),
        is_batching=True,
        on_host_fault=lambda error: None,
    )
    first, second = asyncio.run(replies_of(spec, engine, 2))
    assert first["error"] == (
        f"internal_error: {component} is used by a stage whose plan does not name it"
    )
    assert "refresh_worker" not in first
    (logged,) = (record.exc_info for record in caplog.records if record.exc_info)
    assert isinstance(logged[1], ComponentNotOnloaded)
    assert len(second["images"]) == 1


async def replies_of(spec: ModelSpec, engine: DiffusionEngine, count: int) -> list[dict[str, Any]]:
    """Replies of a worker to the same job, one after the other."""
    worker = Worker(
        capabilities=Capabilities(
            models={spec.name: spec},
            qualities={spec.name: (Quality.DEFAULT,)},
            deliveries=(Delivery.INLINE,),
        ),
        engine=engine,
        delivery=ImageDelivery(
            stores={Delivery.INLINE: InlineImageStore()},
            key_prefix="",
            key_secret=SecretStr(""),
            max_reply_bytes=10_000_000,
        ),
        usd_per_gpu_second=None,
        concurrency=Concurrency(max_when_warm=1, is_warm=lambda: True, num_taken=lambda: 1),
        refresh=Refresh(after_images=0),
        intake=Intake(GuardedClient(Targets())),
        platform=None,
        worker_id="test",
        max_job_s=120,
    )
    job = {"model": spec.name, "prompt": "a red circle", "num_inference_steps": 2}
    async with worker:
        return [await worker.handle({"id": "job", "input": job}) for _ in range(count)]
