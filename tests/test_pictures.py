"""The picture of an encoding says what the encoding really adds, for every method, and is the same each time."""

import builtins
import xml.etree.ElementTree as ElementTree

import matplotlib.figure
import pytest
import torch

import hf_relpos
from hf_relpos.attention.eager import run
from hf_relpos.pictures import pictures, sparkline, text_of
from hf_relpos.plots import plot_encoding, save_plot
from hf_relpos.probe import call_of_alike_tokens, host_of_encoding, scores_of

SIZES = {"num_heads": 2, "head_dim": 8, "length": 10}
every_method = pytest.mark.parametrize("name", hf_relpos.list_encodings())


@every_method
def test_scores_are_those_of_the_eager_backend(name):
    encoding = hf_relpos.build_encoding(name, num_heads=2, head_dim=8, max_position_embeddings=10, causal=True).eval()
    call = call_of_alike_tokens(encoding, length=10, batch=2)
    visible = call.mask.tile()
    expected = scores_of(call).masked_fill(~visible, -torch.inf).softmax(-1)
    torch.testing.assert_close(run(call)[1], expected)


@every_method
def test_every_method_has_a_picture(name):
    found = pictures(name, **SIZES)
    assert found
    for picture in found:
        assert picture.distances[-1] == 9
        assert picture.distances[0] == (0 if picture.causal else -9)
        assert picture.mean.shape == picture.spread.shape == (2, len(picture.distances))
        assert not picture.mean.isnan().any()
        assert picture.mean.any() or not list(hf_relpos.build_encoding(name, num_heads=2, head_dim=8).parameters())
        assert len(text_of(picture, heads=1)) == 2
    again = pictures(name, **SIZES)
    assert all(torch.equal(left.mean, right.mean) for left, right in zip(found, again, strict=True))


def test_a_bias_of_distance_is_shown_exactly():
    for causal, picture in zip((True, False), pictures({"type": "alibi"}, **SIZES), strict=True):
        slopes = torch.tensor([2.0**-4, 2.0**-8])
        assert picture.causal is causal
        assert picture.exact
        assert not picture.drawn
        torch.testing.assert_close(picture.mean, -slopes[:, None] * picture.distances.abs())
        assert not picture.spread.any()


def test_a_rotation_is_shown_by_what_it_takes_from_alike_tokens():
    picture = pictures("rope", **SIZES)[0]
    assert not picture.exact
    assert (picture.mean[:, 0].abs() < 1e-6).all()
    assert (picture.mean[:, 1:] < 0).all()
    assert (picture.spread[:, 1:] > 0).all()


def test_what_adds_nothing_at_first_is_drawn():
    assert pictures({"type": "cope"}, **SIZES)[0].drawn
    assert not pictures("none", **SIZES)[0].drawn


def test_a_built_encoding_and_a_list_have_pictures():
    parts = [{"type": "alibi"}, {"type": "rope", "heads": [0, 1]}]
    encoding = hf_relpos.build_encoding(parts, num_heads=4, head_dim=8)
    assert host_of_encoding(encoding).num_heads == 4
    (picture,) = pictures(encoding, length=10)
    assert picture.where == "encoder"
    assert not picture.exact
    assert len(plot_encoding(encoding, length=10).axes) == 1
    assert "alibi + rope" in plot_encoding(parts, length=10).get_suptitle()
    with pytest.raises(TypeError, match="Linear is not an encoding"):
        pictures(torch.nn.Linear(2, 2))


def test_one_direction_alone_and_none_at_all():
    (picture,) = pictures({"type": "alibi", "direction": "one_sided"}, **SIZES)
    assert picture.where == "encoder"
    assert picture.mean.isinf().any()
    assert f"head 0  {' ' * 9}█" in text_of(picture)[1]
    with pytest.raises(ValueError, match="unknown rel_pos type 't6'"):
        pictures("t6")


def test_sparkline():
    assert sparkline(torch.tensor([0.0, 7.0])) == "▁█"
    assert sparkline(torch.tensor([1.0, -torch.inf])) == "▁ "
    assert sparkline(torch.zeros(3)) == "▁▁▁"
    assert len(sparkline(torch.arange(100.0), width=20)) == 20


def test_a_saved_picture_is_the_same_each_time(tmp_path):
    for name in ("a.svg", "b.svg", "c.png"):
        figure = plot_encoding("t5", **SIZES)
        assert isinstance(figure, matplotlib.figure.Figure)
        save_plot(figure, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert "head 1" in text
    assert "dc:date" not in text
    ElementTree.fromstring(text)
    assert (tmp_path / "c.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(ValueError, match=r"must end in \.png or \.svg"):
        save_plot(figure, tmp_path / "d.jpg")


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"pip install 'hf-relpos\[plots\]'"):
        plot_encoding("t5")
    # numbers need no matplotlib
    assert pictures("t5", **SIZES)
