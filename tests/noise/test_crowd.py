"""A crowd of simulated annotators: who draws what, and that the truth on it is kept."""

import numpy as np
import pytest

from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.phantom import PhantomImages
from coseg_lightning.errors import InputError
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.noise import Crowd, write_noisy_layer
from coseg_lightning.noise.crowd import Drawn, Person
from coseg_lightning.noise.geometry import signed_distance

IDS = [f"s{i}" for i in range(300)]


@pytest.mark.parametrize("level", [0.0, 0.1, 0.3, 0.7, 1.0])
def test_exactly_the_asked_share_is_bad_and_the_careless_make_most_of_it(level):
    crowd = Crowd()
    draws = crowd.draws(IDS, level, seed=3)
    assert sorted(draws) == sorted(IDS)
    assert sum(drawn.is_bad for drawn in draws.values()) == round(level * 300)
    people = crowd.people(level, 3)
    assert np.mean([person.bad_share for person in people]) == pytest.approx(level, abs=1e-5)
    found = [
        np.mean([drawn.is_bad for drawn in draws.values() if drawn.person == person])
        for person in people
    ]
    expected = [person.bad_share for person in people]
    np.testing.assert_allclose(found, expected, atol=0.25)


def test_the_seed_alone_says_who_draws_what():
    crowd = Crowd()
    draws = crowd.draws(IDS, 0.3, seed=1)
    assert crowd.draws(IDS[::-1], 0.3, seed=1) == draws
    assert crowd.draws(IDS, 0.3, seed=2) != draws
    more = crowd.draws(IDS, 0.4, seed=1)
    assert [d.person.name for d in more.values()] == [d.person.name for d in draws.values()]
    bad = [{i for i, d in some.items() if d.is_bad} for some in (draws, more)]
    assert len(bad[0] - bad[1]) < 10  # the shares of persons move a little
    clean = crowd.draws(IDS, 0.3, seed=1, clean=IDS[:50])
    assert not set(clean) & set(IDS[:50])
    with pytest.raises(InputError, match="shall stay clean; give a lower noise level"):
        crowd.draws(IDS, 0.9, seed=1, clean=IDS[:50])


@pytest.mark.parametrize("displacement", [-4.0, 0.0, 6.0])
def test_outlines_are_displaced_as_asked(displacement):
    y, x = np.mgrid[:256, :256] - 127.5
    disc = (np.hypot(x, y) < 60).astype(np.uint8)
    drawn = Drawn(Person("a", displacement, 0.2, 0), is_bad=False)
    mask = Crowd(wobble=0).draw(disc, drawn, id="a", seed=0)
    area = np.sqrt(mask.sum() / np.pi) - np.sqrt(disc.sum() / np.pi)
    assert area == pytest.approx(displacement, abs=0.5)
    worse = Crowd(wobble=0).draw(disc, drawn._replace(is_bad=True), id="a", seed=0)
    assert np.abs(signed_distance(disc > 0)[worse != mask]).max() > 3
    small = Crowd(wobble=0).draw(disc[::2, ::2], drawn, id="a", seed=0)
    assert 4 * small.sum() == pytest.approx(mask.sum(), rel=0.05)


def test_the_layer_says_who_drew_each_mask_and_whether_it_is_bad(tmp_path):
    images = PhantomImages("train", 24, 64, 0)
    layer = write_noisy_layer(images, Crowd(count=4), 0.25, 0, tmp_path / "noise")
    draws = Crowd(count=4).draws(images.ids, 0.25, 0)
    for sample_id in images.ids:
        facts = layer.facts(sample_id)
        assert facts["annotator"] == draws[sample_id].person.name
        assert facts["bad"] == draws[sample_id].is_bad
        assert 0 < facts["dice"] <= 1
    assert set(LabelStore(tmp_path / "noise").ids) == set(images.ids)


def test_the_datamodule_tells_it_to_the_samples(tmp_path):
    images = PhantomImages("train", 24, 64, 0)

    def data(**options):
        return CoSegDataModule(
            images, image_size=64, in_channels=1, noise_folder=tmp_path / "noise", **options
        )

    crowd = data(noise=Crowd(count=4), noise_level=0.25)
    crowd.prepare_data()
    crowd.prepare_data()  # the layer is that of these settings
    samples = crowd.given_samples()
    draws = Crowd(count=4).draws(images.ids, 0.25, 0)
    assert samples.annotators == {i: drawn.person.name for i, drawn in draws.items()}
    assert samples.plain().annotators == samples.annotators
    assert samples.replaced == {i for i, drawn in draws.items() if drawn.is_bad}
    assert data(noise=Crowd(count=4), noise_level=0.5).given_samples().annotators
    with pytest.raises(InputError, match="noisy masks of other settings"):
        data(noise=Crowd(count=4), noise_level=0.25, clean_ids=images.ids[:2]).prepare_data()


@pytest.mark.parametrize("wrong", [{"count": 0}, {"bias": -1}, {"careless": -1}, {"wavelength": 0}])
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=r"noise.crowd.count=.* must be at least 1"):
        Crowd(**wrong)
