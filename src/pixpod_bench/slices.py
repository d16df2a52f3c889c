"""Names of what a card is measured by, the most important first: time on a card is lent.

Standard library only, because a bare machine must be able to tell them.
"""

from collections.abc import Mapping

SLICES: Mapping[str, str] = {
    "flux": "FLUX as it is served, beside diffusers",
    "sdxl": "SDXL as it is served, beside diffusers",
    "memory": "FLUX and SDXL on one card, and on 24 GB of it",
    "load": "mixed requests at random times, one by one and in batches",
    "flux-sweep": "FLUX over sizes, batches and lengths of text",
    "flux-ablation": "precision, compilation and attention of FLUX",
    "flux-recipes": "FP8 by rows and by tensors, AdaLN in 16 bits, fused QKV",
    "unets": "SDXL and SD 1.5 over batches and ways to run",
    "vae": "ways to decode",
    "overlap": "each batch decoded while the next one is denoised",
}
