"""Types of which a model family is made: plain data, no tensor and no library class.

A family is one `FamilySpec` in a file of this package. Figures are bytes as GiB (2^30).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum

from pixpod.job import LoraSlots, Mode, Resize

GIB = 2**30

SLOT_RANKS = (16, 32, 64, 128, 256)


class Precision(StrEnum):
    """Number format of the denoiser; all other components stay 16-bit or wider.

    The 8-bit ones are torchao's: `dynamic` quantizes activations as they come and computes in 8
    bits, `weight_only` computes in bfloat16 and saves memory only.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT8_DYNAMIC = "float8_dynamic"
    FLOAT8_WEIGHT_ONLY = "float8_weight_only"
    INT8_DYNAMIC = "int8_dynamic"

    @property
    def is_8_bit(self) -> bool:
        return self in (
            Precision.FLOAT8_DYNAMIC,
            Precision.FLOAT8_WEIGHT_ONLY,
            Precision.INT8_DYNAMIC,
        )


STORED_PRECISIONS = (
    Precision.FLOAT32,
    Precision.BFLOAT16,
    Precision.FLOAT16,
    Precision.FLOAT8_DYNAMIC,
)
"""Formats that a denoiser's files may have; the others are made from these at load time."""


class Role(StrEnum):
    """The role of a component in a pipeline."""

    TEXT_ENCODER = "text_encoder"
    DENOISER = "denoiser"
    VAE = "vae"
    CONTROLNET = "controlnet"
    REFINER = "refiner"
    IMAGE_ENCODER = "image_encoder"
    IP_ADAPTER = "ip_adapter"
    REDUX = "redux"
    UPSCALER = "upscaler"
    DEPTH_ESTIMATOR = "depth_estimator"


_OF_TRANSFORMERS = frozenset(
    {Role.TEXT_ENCODER, Role.IMAGE_ENCODER, Role.UPSCALER, Role.DEPTH_ESTIMATOR}
)


class Guidance(StrEnum):
    """The way in which a family makes images follow the prompt.

    `CLASSIFIER_FREE` runs the denoiser for the prompt and the negative prompt if
    `guidance_scale` is above 1. `EMBEDDED` feeds `guidance_scale` to the denoiser, and does the
    former for `true_cfg_scale`. `EMBEDDED_ONLY` has no `true_cfg_scale`.
    """

    CLASSIFIER_FREE = "classifier_free"
    EMBEDDED = "embedded"
    EMBEDDED_ONLY = "embedded_only"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentSpec:
    """A folder with weights, and its size on a device for use when its files are not at hand.

    `class_name` names the module's class. `gib_8` is the size with 8 bits a value and
    a scale per row, None for a component that is never quantized; `gib_8_adaln16` the same with
    the modulation layers at 16 bits. A model may be served without one that `is_optional`.
    """

    name: str
    role: Role
    class_name: str
    gib_16: float
    gib_8: float | None = None
    gib_8_adaln16: float | None = None
    is_optional: bool = False

    @property
    def library(self) -> str:
        """Name of the library that has the class."""
        return "transformers" if self.role in _OF_TRANSFORMERS else "diffusers"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserSize:
    """Sizes of a denoiser, as a `ComponentSpec` has them."""

    gib_16: float
    gib_8: float | None = None
    gib_8_adaln16: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSpec:
    """A scheduler under the name that requests use.

    `options` replace those of the model's own scheduler config. A step of a scheduler of order
    `calls_per_step` calls the denoiser so many times, except the last one, which calls it once.
    `max_steps` is the scheduler's own limit.
    """

    class_name: str
    options: Mapping[str, object] = field(default_factory=dict)
    calls_per_step: int = 1
    max_steps: int | None = None

    @property
    def can_be_split(self) -> bool:
        """Return whether two pipelines can share its steps: each of them is one call."""
        return self.calls_per_step == 1

    def num_calls(self, num_inference_steps: int) -> int:
        """Denoiser calls of a whole image; Heun's 2n - 1 is `len(scheduler.timesteps)`."""
        return self.calls_per_step * (num_inference_steps - 1) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyRule:
    """Jobs that a warm worker takes at a time: a batch of at most `max_batch_size`, and `ahead`.

    Applies to models with at most `max_steps` by default; None for any number. `reason` is the
    source of the numbers.
    """

    max_batch_size: int
    ahead: int
    reason: str
    max_steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSpec:
    """Modules of a component that are compiled, each on its own, by class name.

    On CUDA, `is_channels_last` lays out the weights of convolutions as their kernels want them,
    and `has_cuda_graphs` captures the launches of a region as one graph.
    """

    component: str
    classes: tuple[str, ...]
    is_channels_last: bool = False
    has_cuda_graphs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationSpec:
    """Layers of a denoiser that 8-bit formats spare.

    `keep_16_bit` are top-level modules that stay in 16 bits. `adaln` is a regular expression for
    the full names of modulation layers, which have one row per image instead of one per token.
    """

    keep_16_bit: frozenset[str]
    adaln: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingMemory:
    """Memory for activations while a stage runs, in GiB.

    `text_gib` while texts are encoded; `fixed_gib` for any batch, `denoise_gib` and `decode_gib`
    more for each image of 1024x1024; `encode_gib` for encoding one such image.
    """

    text_gib: float
    fixed_gib: float
    denoise_gib: float
    decode_gib: float
    encode_gib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderSpec:
    """Tensors by which a single file with weights of a family is recognised.

    `has` are regular expressions for names, each of which some tensor has, with the second
    dimension of that tensor, None for any. No tensor has a name of `lacks`.
    """

    has: Mapping[str, int | None]
    lacks: tuple[str, ...] = ()

    def fits(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Return whether a file with these tensors has weights of the family."""
        found = (
            any(
                re.fullmatch(pattern, name) and inputs in (None, *shape[1:2])
                for name, shape in shapes.items()
            )
            for pattern, inputs in self.has.items()
        )
        lacking = "|".join(self.lacks)
        has_others = bool(lacking) and any(re.fullmatch(lacking, name) for name in shapes)
        return all(found) and not has_others


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """Limits of the LoRAs of one request, and the memory that they take in a batch.

    `max_rank` is for all of them together. `usual` is a regular expression for the names of the
    denoiser's layers that LoRAs usually have, `excluded` for those that cannot have any, as they
    do not see the rows of a batch one by one. `gib_at_64` is what an image of a batch takes at a
    rank of 64 in these layers, and `whole_gib_at_64` in all layers.
    """

    usual: str
    gib_at_64: float
    whole_gib_at_64: float
    excluded: str = ""
    max_files: int = 8
    max_rank: int = 256

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks that slots may have."""
        return tuple(rank for rank in SLOT_RANKS if rank <= self.max_rank)

    def is_usual(self, layer: str) -> bool:
        return re.fullmatch(self.usual, layer) is not None

    def can_have(self, layer: str, *, is_whole: bool = True) -> bool:
        """Return whether a layer of the denoiser can have LoRAs: any one if they are `is_whole`."""
        if re.fullmatch(self.excluded, layer):
            return False
        return is_whole or self.is_usual(layer)

    def slots_for(self, rank: int, *, is_whole: bool) -> LoraSlots:
        """Return the slots for so high a rank; the ranks of slots are few, as each is compiled."""
        return LoraSlots(rank=next(each for each in SLOT_RANKS if each >= rank), is_whole=is_whole)

    def slot_bytes(self, slots: LoraSlots) -> int:
        """Return the bytes that slots take for each image of a batch."""
        gib = self.whole_gib_at_64 if slots.is_whole else self.gib_at_64
        return round(gib * GIB * slots.rank / 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTextSpec:
    """Hidden states of CLIP encoders that a denoiser sees as text.

    `state` is the one that is read, counted from the last; `is_normalized`: through the encoder's
    last norm. `num_layers` are those of the smallest encoder. A text has at most `max_chunks`.
    """

    state: int
    is_normalized: bool
    num_layers: int = 12
    max_chunks: int = 4

    @property
    def max_clip_skip(self) -> int:
        return self.num_layers - self.state


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlNetSpec:
    """ControlNets of a family: the class of a net, and the pipelines that take several of them.

    `pipelines` has the diffusers class for each mode; controls are refused with other modes.
    `true_cfg_modes` are those whose class takes a `true_cfg_scale`. `sees_latents`: nets see
    control images through the VAE, otherwise as pixels of 0 to 1. `union_class_name` is the class
    of a net for several types, None where there are none, and `union_pipelines` those that take
    several such nets and no others; empty if `pipelines` take both.
    """

    class_name: str
    pipelines: Mapping[Mode, str]
    union_class_name: str | None = None
    union_pipelines: Mapping[Mode, str] = field(default_factory=dict)
    true_cfg_modes: frozenset[Mode] = frozenset()
    sees_latents: bool = False
    max_controls: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinerSpec:
    """Refiners of a family: denoisers that run the last steps in the place of the model's own.

    `class_name` is that of a refiner. `pipeline` is the diffusers class that goes on with latents.
    `calls` is where the code that reads texts for it is found, as `module:object`.
    """

    class_name: str
    pipeline: str
    calls: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePromptSpec:
    """Image prompts of a family: the role of its adapters, and what their image encoder sees.

    The encoder sees squares that are made from images by `resize`, with values that are normalised
    by `mean` and `std`. Tokens of images are appended to those of the text if `extends_text`,
    otherwise the denoiser attends to them by weights of the adapter.
    """

    adapter: Role
    resize: Resize
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    extends_text: bool = False
    max_images: int = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FamilySpec:
    """Everything that distinguishes one model architecture from another.

    `components` are in the order in which an image needs them. `pipelines` has the diffusers
    class for each mode, the main one first; other modes are refused. `calls` is where the code for
    text encoding, pipeline arguments and decoding is found, as `module:object`. `size_multiple_px`
    divides both sides. `pipeline_options` are arguments of the pipeline's constructor beside
    components. `batch_tokens` is the number of latent and text tokens that saturate a Hopper GPU.
    `runs_started_steps`: of the steps that a strength leaves, a part of one is run as a whole step.
    `step_cache_blocks` are the denoiser's lists of blocks for `quality: turbo`, empty where
    steps cannot be skipped. `max_edited` is the number of images that are edited
    together. `sees_mask`: the denoiser itself sees a request's mask. `upcasts_vae`:
    a float16 VAE decodes in float32 if its config says `force_upcast`. `has_denoiser_files`:
    one-file checkpoints hold the denoiser and perhaps the VAE, otherwise the whole pipeline;
    `header` recognises them, None for a family that is not recognised. `lora`
    is None for a family that takes no LoRA, `controlnet` for one that takes no control image,
    `refiner` for one that has none, and `image_prompt` for one that takes none; `clip_text` is None
    for one whose texts are read by other encoders too: it has no prompt weights, chunks and
    `clip_skip`.
    """

    name: str
    title: str
    components: tuple[ComponentSpec, ...]
    pipelines: Mapping[Mode, str]
    calls: str
    size_multiple_px: int
    schedulers: Mapping[str, SchedulerSpec]
    prompt_fields: frozenset[str]
    has_sequence_length: bool
    guidance: Guidance
    batch_tokens: int
    concurrency: tuple[ConcurrencyRule, ...]
    regions: tuple[RegionSpec, ...]
    working_memory: WorkingMemory
    quantization: QuantizationSpec | None = None
    pipeline_options: Mapping[str, object] = field(default_factory=dict)
    sets_attention_backend: bool = False
    upcasts_vae: bool = False
    max_edited: int = 1
    sees_mask: bool = False
    runs_started_steps: bool = False
    step_cache_blocks: tuple[str, ...] = ()
    has_denoiser_files: bool = False
    header: HeaderSpec | None = None
    lora: LoraSpec | None = None
    controlnet: ControlNetSpec | None = None
    clip_text: ClipTextSpec | None = None
    refiner: RefinerSpec | None = None
    image_prompt: ImagePromptSpec | None = None

    @property
    def component_names(self) -> tuple[str, ...]:
        return tuple(component.name for component in self.components)

    @property
    def text_encoders(self) -> tuple[str, ...]:
        return self.names_of(Role.TEXT_ENCODER)

    @property
    def denoiser(self) -> str:
        """Folder name of the denoiser: `transformer` or `unet`."""
        return self.names_of(Role.DENOISER)[0]

    @property
    def vae(self) -> str:
        return self.names_of(Role.VAE)[0]

    @property
    def large_text_encoder(self) -> str | None:
        """The text encoder that may be held in 8 bits (T5), if there is one."""
        names = (c.name for c in self.components if c.role is Role.TEXT_ENCODER and c.gib_8)
        return next(names, None)

    @property
    def default_mode(self) -> Mode:
        return next(iter(self.pipelines))

    @property
    def default_pipeline(self) -> str:
        """Class that the `model_index.json` of this family's repositories names."""
        return self.pipelines[self.default_mode]

    @property
    def optional_components(self) -> frozenset[str]:
        """Names of the components that a model may be served without."""
        return frozenset(component.name for component in self.components if component.is_optional)

    def names_of(self, role: Role) -> tuple[str, ...]:
        return tuple(component.name for component in self.components if component.role is role)

    def variant(
        self, *, without: Collection[str], denoiser_size: DenoiserSize | None
    ) -> "FamilySpec":
        """Return the family of a model that lacks components, or has a denoiser of another size."""
        size = asdict(denoiser_size) if denoiser_size else {}
        kept = (component for component in self.components if component.name not in without)
        components = (
            replace(each, **size) if each.role is Role.DENOISER else each for each in kept
        )
        return replace(self, components=tuple(components))

    def component(self, name: str) -> ComponentSpec:
        """Return the component of this name. Raises KeyError."""
        return {each.name: each for each in self.components}[name]
