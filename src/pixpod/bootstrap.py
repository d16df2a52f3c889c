"""Where concrete classes meet: settings in, a worker out."""

from pixpod.catalog import Catalog, load_catalog
from pixpod.engine.diffusion import DiffusionEngine
from pixpod.engine.weights import Manifest
from pixpod.errors import InvalidSettings
from pixpod.job import Delivery
from pixpod.pricing import PriceList
from pixpod.rules import Offer
from pixpod.settings import ALL_MODELS, Settings
from pixpod.storage import DirectoryImageStore, ImageStore, InlineImageStore
from pixpod.worker import Worker, WorkerOptions


def build_worker(settings: Settings) -> Worker:
    """Wire a worker; nothing heavy is imported and nothing is loaded before it is started.

    Use it as `async with build_worker(settings) as worker`. Raises InvalidSettings.
    """
    manifest = Manifest.read(settings.weights_dir)
    models = _choose_models(settings, manifest)
    engine = DiffusionEngine(
        models=models,
        manifest=manifest,
        device=settings.device,
        precisions=settings.precisions,
        accepted_licences=settings.accepted_licences,
        preload=settings.preload,
    )
    return Worker(
        offer=Offer(models=models, deliveries=settings.deliveries),
        engine=engine,
        stores={delivery: _build_store(delivery, settings) for delivery in settings.deliveries},
        prices=PriceList.load(settings.usd_per_gpu_second),
        options=WorkerOptions(
            worker_id=settings.worker_id,
            key_prefix=settings.s3.prefix if settings.s3 else "",
            key_secret=settings.key_secret,
            max_reply_bytes=settings.max_reply_bytes,
        ),
    )


def _choose_models(settings: Settings, manifest: Manifest) -> Catalog:
    """What PIXPOD_MODELS says, else all that the weights directory holds."""
    catalog = load_catalog(settings.catalog_file)
    names = settings.models or manifest.names
    for name in (*names, *settings.precisions):
        if name not in catalog and name != ALL_MODELS:
            known = ", ".join(catalog)
            raise InvalidSettings(f"model {name!r} is not in the catalog, which has {known}")
    return {name: catalog[name] for name in names}


def _build_store(delivery: Delivery, settings: Settings) -> ImageStore:
    match delivery:
        case Delivery.S3:
            from pixpod.s3_storage import S3ImageStore  # boto3 only where it is needed

            assert settings.s3 is not None
            return S3ImageStore(settings.s3)
        case Delivery.DIRECTORY:
            return DirectoryImageStore(settings.output_dir)
        case Delivery.INLINE:
            return InlineImageStore()
        case Delivery.PUT:
            raise InvalidSettings("delivery by PUT is not supported by this version")
