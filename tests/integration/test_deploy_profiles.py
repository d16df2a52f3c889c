"""Profiles of scripts/deploy and scripts/build_image are those that scripts/bake makes."""

from pixpod.families import Precision
from pixpod_tools.bake.recipes import PROFILES
from pixpod_tools.container import building
from pixpod_tools.deploy.profiles import load_profiles


def formats(plan):
    return plan.t5 or Precision.BFLOAT16, plan.adaln


def test_profiles_are_those_of_the_bake():
    baked = {
        name: {(each.model, each.plan.precision, formats(each.plan)) for each in recipes}
        for name, recipes in PROFILES.items()
    }
    known = {
        name: {
            (model, precision, (profile.t5, profile.adaln))
            for model, precision in profile.models.items()
        }
        for name, profile in load_profiles().items()
    }
    assert known == baked


def test_profiles_of_images_can_be_baked():
    assert set(building.PROFILES) == PROFILES.keys()
