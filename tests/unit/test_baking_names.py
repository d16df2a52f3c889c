"""Tensors are found under the names of today and of before."""

import pytest

from pixpod.errors import WeightsUnreadable
from pixpod_tools.bake.names import match_names


@pytest.mark.parametrize(
    ("today", "in_file"),
    [
        ("proj_out.weight", "proj_out.weight"),
        ("encoder.layers.0.mlp.fc1.bias", "text_model.encoder.layers.0.mlp.fc1.bias"),
        (
            "decoder.mid_block.attentions.0.to_q.weight",
            "decoder.mid_block.attentions.0.query.weight",
        ),
        ("decoder.mid_block.attentions.0.to_k.bias", "decoder.mid_block.attentions.0.key.bias"),
        ("decoder.mid_block.attentions.0.to_v.bias", "decoder.mid_block.attentions.0.value.bias"),
        (
            "decoder.mid_block.attentions.0.to_out.0.weight",
            "decoder.mid_block.attentions.0.proj_attn.weight",
        ),
        ("shared.weight", "encoder.embed_tokens.weight"),
        ("layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
    ],
    ids=["same", "clip", "query", "key", "value", "out", "t5", "language model"],
)
def test_tensor_is_found_under_an_older_name(today, in_file):
    assert match_names([today], {in_file, "other"}, "here") == {today: in_file}


def test_name_of_today_goes_before_an_older_one():
    assert match_names(["a.to_q.w"], {"a.query.w", "a.to_q.w"}, "here") == {"a.to_q.w": "a.to_q.w"}


def test_missing_tensor_is_named():
    with pytest.raises(WeightsUnreadable, match=r"here: has no tensor a\.weight"):
        match_names(["a.weight"], {"b.weight"}, "here")
