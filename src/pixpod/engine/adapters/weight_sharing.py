"""Copies of modules that share all weights with the original.

Something that is put on a copy is not on the original, so that it never has to be taken off again.
"""

from collections import OrderedDict

from torch import nn

_OF_THE_ORIGINAL = ("forward", "_diffusers_hook")
"""Attributes of an instance that refer to it: compiled code, and diffusers' registry of caches."""


def share_weights(module: nn.Module) -> nn.Module:
    """Return a module of the same structure around the very same parameters and buffers.

    Weights that are offloaded, onloaded or converted in place later on are so for both.
    """
    return _share(module, {})


def _share(module: nn.Module, copies: dict[int, nn.Module]) -> nn.Module:
    if id(module) in copies:
        return copies[id(module)]
    copy = module.__class__.__new__(module.__class__)
    copies[id(module)] = copy
    for name, value in module.__dict__.items():
        if name not in _OF_THE_ORIGINAL:
            # those are dicts of hooks; a config is of another class
            copy.__dict__[name] = value.copy() if type(value) is OrderedDict else value
    copy.__dict__["_parameters"] = module._parameters.copy()
    copy.__dict__["_buffers"] = module._buffers.copy()
    copy.__dict__["_non_persistent_buffers_set"] = module._non_persistent_buffers_set.copy()
    copy.__dict__["_modules"] = {
        name: child and _share(child, copies) for name, child in module._modules.items()
    }
    return copy
