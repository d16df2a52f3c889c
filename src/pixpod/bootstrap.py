"""Builds a worker from settings: the only place where concrete classes meet."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pixpod.catalog import Catalog, load_catalog
from pixpod.contract.rules import Capabilities
from pixpod.contract.stacks import load_presets
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.engine import DiffusionEngine
from pixpod.engine.loading.loader import HostFaultListener, ModelLoader
from pixpod.engine.precision.precision import offered_qualities
from pixpod.errors import InvalidSettings
from pixpod.extras import Extras, check_names, choose_extras, load_extras
from pixpod.families import FAMILIES, FamilySpec
from pixpod.inputs.client import GuardedClient
from pixpod.inputs.intake import Intake
from pixpod.inputs.lora_cache import LoraCache
from pixpod.inputs.loras import DeployedLoras, Loras
from pixpod.job import Delivery
from pixpod.outputs.caller_stores import CallerStores
from pixpod.outputs.encoding import MetadataOptions
from pixpod.outputs.nsfw_model import load_onnx_classifier
from pixpod.outputs.spool import Spool
from pixpod.outputs.storage import DirectoryImageStore, ImageStore, InlineImageStore
from pixpod.serving.concurrency import Concurrency, max_concurrency
from pixpod.serving.dead_letters import DeadLetters
from pixpod.serving.delivery import ImageDelivery
from pixpod.serving.refresh import Refresh
from pixpod.serving.safety import Safety
from pixpod.serving.spooling import Spooling
from pixpod.serving.stored_results import StoredResults
from pixpod.serving.webhooks import Webhooks
from pixpod.serving.worker import Platform, Worker
from pixpod.settings import ALL_MODELS, PLATFORM_VOLUME, Settings
from pixpod.stacks import parse_stacks
from pixpod.timeline import BootTimeline
from pixpod.weights.sources import (
    BakedSource,
    HubSource,
    PlatformCacheSource,
    VolumeSource,
    WeightsLocator,
)

if TYPE_CHECKING:
    from pixpod.outputs.s3_storage import S3ImageStore


def build_worker(
    settings: Settings,
    timeline: BootTimeline | None = None,
    on_host_fault: HostFaultListener | None = None,
    platform: Platform | None = None,
    *,
    families: Mapping[str, FamilySpec] = FAMILIES,
) -> Worker:
    """Wire a worker; nothing heavy is imported and nothing is loaded before it is started.

    Use it as `async with build_worker(settings) as worker`. `on_host_fault` is called with a fault
    of this host before the jobs that wait are answered. `families` are those that the catalog may
    name. Raises InvalidSettings.
    """
    locator = _build_locator(settings)
    models = _choose_models(settings, locator, families)
    extras = _choose_extras(settings, locator, models, families)
    engine = _build_engine(settings, models, extras, locator, timeline, on_host_fault)
    bucket = _build_bucket(settings)
    return Worker(
        capabilities=_build_capabilities(settings, models, extras, locator),
        engine=engine,
        delivery=_build_delivery(settings, bucket),
        usd_per_gpu_second=settings.usd_per_gpu_second,
        concurrency=Concurrency(
            max_when_warm=settings.max_concurrency or max_concurrency(models.values()),
            is_warm=lambda: engine.is_warm,
            num_taken=platform.num_taken_jobs if platform else lambda: 1,
        ),
        refresh=Refresh(after_images=settings.refresh_after_images),
        intake=Intake(GuardedClient(settings.targets)),
        loras=Loras(
            LoraCache(settings.local_dir / "loras", settings.lora_cache_bytes),
            DeployedLoras(settings.lora_dir),
        ),
        safety=Safety(load=load_onnx_classifier, threshold=settings.safety_threshold),
        platform=platform,
        worker_id=settings.worker_id,
        max_job_s=settings.max_job_s,
        metadata=MetadataOptions(
            has_ai_mark=settings.marks_ai, has_prompts=settings.has_prompts_in_files
        ),
        results=StoredResults(store=bucket, secret=settings.key_secret) if bucket else None,
        webhooks=_build_webhooks(settings, bucket),
    )


def _build_capabilities(
    settings: Settings, models: Catalog, extras: Extras, locator: WeightsLocator
) -> Capabilities:
    qualities = {
        name: offered_qualities(
            spec, locator.stored_precision(spec), settings.requested_precision(name)
        )
        for name, spec in models.items()
    }
    return Capabilities(
        models=models,
        qualities=qualities,
        deliveries=settings.deliveries,
        extras=extras,
        targets=settings.targets,
        signs_webhooks=bool(settings.webhook_secrets),
        lora_names=DeployedLoras(settings.lora_dir).names,
        safety=settings.safety,
        presets=load_presets(settings.presets_file),
    )


def build_engine(settings: Settings, timeline: BootTimeline | None = None) -> DiffusionEngine:
    """Build the engine of such a worker alone. Raises InvalidSettings."""
    locator = _build_locator(settings)
    models = _choose_models(settings, locator, FAMILIES)
    extras = _choose_extras(settings, locator, models, FAMILIES)
    return _build_engine(settings, models, extras, locator, timeline, None)


def _build_engine(
    settings: Settings,
    models: Catalog,
    extras: Extras,
    locator: WeightsLocator,
    timeline: BootTimeline | None,
    on_host_fault: HostFaultListener | None,
) -> DiffusionEngine:
    timeline = timeline or BootTimeline(time.perf_counter)
    # without a platform the waiting job is answered with the host's fault
    on_host_fault = on_host_fault or (lambda error: None)
    presets = load_presets(settings.presets_file)
    stacks = parse_stacks(settings.stacks, models, extras, presets=presets)
    loader = ModelLoader(
        models=models,
        extras=extras,
        stacks=stacks,
        locator=locator,
        device=settings.device,
        requested_precision=settings.requested_precision,
        accepted_licences=settings.accepted_licences,
        verify=settings.verify,
        timeline=timeline,
        on_host_fault=on_host_fault,
        memory_limit_gib=settings.memory_limit_gb,
        compiled=_build_compiled_store(settings) if settings.is_compiling else None,
        prompt_cache_bytes=settings.prompt_cache_bytes,
    )
    return DiffusionEngine(
        models=models,
        loader=loader,
        timeline=timeline,
        preload=settings.preload,
        warmup_sizes=settings.warmup_sizes,
        is_batching=settings.is_batching,
        on_host_fault=on_host_fault,
        extras=extras,
        stacks=stacks,
    )


def _build_compiled_store(settings: Settings) -> CompiledStore:
    untrusted = () if settings.is_volume_code_trusted else (PLATFORM_VOLUME, settings.volume_dir)
    return CompiledStore(settings.compiled_dir, untrusted=untrusted)


def _build_locator(settings: Settings) -> WeightsLocator:
    """Return all places where weights may be, the quickest first."""
    return WeightsLocator(
        (
            BakedSource(settings.weights_dir),
            PlatformCacheSource(settings.hub_cache_dir, weights_dir=settings.weights_dir),
            VolumeSource(settings.volume_dir, settings.local_dir),
            HubSource(settings.local_dir, settings.hub_token, is_allowed=settings.is_hub_allowed),
        )
    )


def _choose_models(
    settings: Settings, locator: WeightsLocator, families: Mapping[str, FamilySpec]
) -> Catalog:
    """Return the models of PIXPOD_MODELS, else all that the image or the volume holds."""
    catalog = load_catalog(settings.catalog_file, families=families)
    names = settings.models or locator.names
    if not names:
        raise InvalidSettings(
            f"PIXPOD_WEIGHTS_DIR={str(settings.weights_dir)!r} holds no models, nor does a volume: "
            "bake some, or name models to be copied or downloaded in PIXPOD_MODELS"
        )
    for name in (*names, *settings.precisions):
        if name not in catalog and name != ALL_MODELS:
            known = ", ".join(catalog)
            raise InvalidSettings(f"model {name!r} is not in the catalog, which has {known}")
    for name in names:
        if settings.device == "cpu" and catalog[name].requires_cuda:
            raise InvalidSettings(f"PIXPOD_DEVICE: expected cuda or auto for {name}, got 'cpu'")
    return {name: catalog[name] for name in names}


def _choose_extras(
    settings: Settings,
    locator: WeightsLocator,
    models: Catalog,
    families: Mapping[str, FamilySpec],
) -> Extras:
    """Return the extras of PIXPOD_EXTRAS, else all that are there and fit a served model."""
    known = load_extras(settings.catalog_file, families=families)
    check_names(known, load_catalog(settings.catalog_file, families=families))
    return choose_extras(settings.extras, known, models, locator.extra_names)


def _build_webhooks(settings: Settings, bucket: "S3ImageStore | None") -> Webhooks | None:
    if not settings.webhook_secrets:
        return None
    return Webhooks(
        client=GuardedClient(settings.targets, retry_waits_s=()),
        secrets=settings.webhook_secrets,
        letters=_build_letters(settings, bucket),
    )


def _build_letters(settings: Settings, bucket: "S3ImageStore | None") -> DeadLetters | None:
    place = settings.letter_place
    if place is None:
        return None
    store = bucket if place is Delivery.S3 else DirectoryImageStore(settings.output_dir)
    assert store is not None
    return DeadLetters(store=store, secrets=settings.webhook_secrets)


def _build_bucket(settings: Settings) -> "S3ImageStore | None":
    if settings.s3 is None:
        return None
    from pixpod.outputs.s3_storage import S3ImageStore  # boto3 only where it is needed

    return S3ImageStore(settings.s3)


def spool_directory(settings: Settings, volume: Path = PLATFORM_VOLUME) -> Path | None:
    """Return where the spool is: as it is set, else on the network volume; None without either.

    The platform mounts a network volume and the models that it caches in the same place, never
    both.
    """
    is_volume = volume.is_mount() and not (volume / "huggingface-cache").exists()
    return settings.spool_dir or (volume / "pixpod-spool" if is_volume else None)


def build_spool(settings: Settings) -> Spool | None:
    """Return the spool; None without a place, or without a secret that seals what is in it."""
    directory = spool_directory(settings)
    if directory is None or not settings.key_secret.get_secret_value():
        return None
    return Spool(directory, secret=settings.key_secret, max_bytes=settings.spool_max_bytes)


def _build_spooling(settings: Settings) -> Spooling | None:
    spool = build_spool(settings) if settings.falls_back and settings.spool_max_bytes else None
    return Spooling(spool=spool, secret=settings.key_secret) if spool else None


def _build_delivery(settings: Settings, bucket: "S3ImageStore | None") -> ImageDelivery:
    return ImageDelivery(
        stores={each: _build_store(each, settings, bucket) for each in settings.deliveries},
        key_prefix=settings.s3.prefix if settings.s3 else "",
        key_secret=settings.key_secret,
        max_reply_bytes=settings.max_reply_bytes,
        callers=CallerStores(GuardedClient(settings.targets), settings.targets),
        falls_back=settings.falls_back,
        spool=_build_spooling(settings),
    )


def _build_store(
    delivery: Delivery, settings: Settings, bucket: "S3ImageStore | None"
) -> ImageStore:
    match delivery:
        case Delivery.S3:
            assert bucket is not None
            return bucket
        case Delivery.DIRECTORY:
            return DirectoryImageStore(settings.output_dir)
        case Delivery.INLINE:
            return InlineImageStore()
        case Delivery.PUT | Delivery.S3_CONFIG:
            raise AssertionError("settings offer no place that a job must name")
