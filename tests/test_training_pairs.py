"""Training pairs: LR and HR belong together, and chance plays its part, always the same one."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from napari_arssr import models
from napari_arssr.degradation import ScannerModel
from napari_arssr.interpolation import apply_separable
from napari_arssr.models import ModelConfig
from napari_arssr.training import Augmentation, TrainingConfig, preset
from napari_arssr.training.batches import LatticeBatch, PointBatch, moved, predict
from napari_arssr.training.pairs import ScannerPairs, Stream
from napari_arssr.training.paper import PaperPairs, patch_starts
from napari_arssr.training.volumes import TrainingVolume

TINY = ModelConfig(
    decoder="residual",
    feature_dim=6,
    decoder_depth=3,
    decoder_width=12,
    features=8,
    growth=4,
    blocks=1,
    layers=2,
)
CONFIG = TrainingConfig(model=TINY, patch=8, lattice=6, batch=2, largest_scale=2.5)
PLAIN = Augmentation(noise=0, contrast=0, bias_field=0, blur=0, in_plane=0, ideal=0)
NOTHING = replace(
    PLAIN, other_width=0, other_kind=0, mixed=0, cubic=0, anisotropic=0, thick_slices=0
)
PAPER = replace(
    preset("paper").training,
    model=replace(TINY, decoder="published", decoder_depth=4),
    patch=5,
    cut=20,
    samples=300,
    batch=3,
)


def draw(data: npt.NDArray[Any], config: TrainingConfig, number: int = 0) -> LatticeBatch:
    return ScannerPairs([TrainingVolume(data, "drawn")], config).batch(number)


def coordinates(batch: LatticeBatch) -> list[npt.NDArray[np.float64]]:
    """Where the lattices lie in LR voxels, as the interpolation weights have it: three (B, m)."""
    size = batch.low.shape[1]
    return [(weights.double() @ torch.arange(size).double()).numpy() for weights in batch.weights]


def cells(batch: LatticeBatch) -> npt.NDArray[np.float64]:
    """LR voxels per HR voxel as the decoder is told, (B, 3)."""
    return np.stack([codes[:, 0, -1].double().numpy() for codes in batch.positions], axis=1)


def noise_volume(side: int = 50, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).random((side,) * 3, dtype=np.float32)


def equal(one: Any, other: Any) -> bool:
    """Whether two batches are the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


# The scanner protocol -------------------------------------------------------------------------


def test_low_and_high_lie_on_top_of_each_other_at_every_scale() -> None:
    """On a ramp a shift by a fraction of a voxel is that fraction of a step."""
    z, y, x = np.meshgrid(*[np.linspace(0.1, 1, 90)] * 3, indexing="ij")
    ramp = ((z + 2 * y + 4 * x) / 7).astype(np.float32)
    # Profiles narrower than an HR voxel would take the nearest one for the slice.
    augmentation = replace(
        PLAIN,
        anisotropic=0.3,
        thick_slices=0.3,
        largest_thick_scale=4.0,
        other_width=0,
        other_kind=0,
    )
    config = replace(
        CONFIG,
        patch=14,
        lattice=20,
        batch=30,
        smallest_scale=1.5,
        largest_scale=4.0,
        augmentation=augmentation,
    )
    batch = draw(ramp, config)
    scales = 1 / cells(batch)
    assert scales.min() == 1
    assert scales.max() > 3
    slope = 0.9 / 89 / 7  # of the flattest axis, per HR voxel
    along = coordinates(batch)
    base, target = batch.base.numpy(), batch.target.numpy()
    for pair in range(config.batch):
        # The patch's border is mirrored, which a ramp is not: the middle counts.
        middle = [np.flatnonzero((c[pair] > 4) & (c[pair] < 9)) for c in along]
        inside = np.ix_(*middle)
        assert base[pair][inside].size > 50
        assert np.abs(base[pair][inside] - target[pair][inside]).max() < 0.05 * slope


@pytest.mark.parametrize("augmentation", [PLAIN, replace(PLAIN, ideal=1), replace(PLAIN, mixed=1)])
def test_interpolation_of_a_smooth_volume_is_close_to_it_at_every_scale(
    augmentation: Augmentation,
) -> None:
    z, y, x = np.meshgrid(*[np.arange(90) / 90] * 3, indexing="ij")
    waves = np.cos(4 * z + 1) * np.cos(3 * y) + np.sin(4 * x + 2)
    smooth = (waves / 5 + 0.5).astype(np.float32)
    config = replace(
        CONFIG, patch=12, lattice=10, batch=30, largest_scale=4.0, augmentation=augmentation
    )
    batch = draw(smooth, config)
    error = (batch.base - batch.target).square().mean(dim=(1, 2, 3))
    assert (10 * torch.log10(1 / error)).min() > 40


def test_scale_gate_and_lattice_belong_together() -> None:
    augmentation = replace(PLAIN, largest_thick_scale=4.0)
    config = replace(CONFIG, batch=100, largest_scale=4.0, augmentation=augmentation)
    batch = draw(noise_volume(), config)
    cell = cells(batch)
    np.testing.assert_allclose(batch.gate[:, 0, 0, 0], 1 - cell.prod(axis=1), atol=1e-6)
    # Whole numbers of HR voxels in 8 LR voxels, between scale 1 and 4.
    counts = 8 / cell
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-4)
    assert counts.min() == 8
    assert counts.max() <= 32
    for axis, along in enumerate(coordinates(batch)):
        inner = (along > 0) & (along < 7)  # beyond, the weights hold the border
        picks = (along + 0.5) / cell[:, axis, None] - 0.5
        np.testing.assert_allclose(picks[inner], np.rint(picks)[inner], atol=1e-3)
        assert (np.diff(along) >= 0).all()
    thick = (counts == 8).sum(axis=1) == 2
    same = counts.max(axis=1) == counts.min(axis=1)
    assert 5 < thick.sum() < 30
    assert 50 < same.sum() < 90
    assert (~thick & ~same).sum() > 3


def test_patches_are_turned_and_mirrored_in_all_ways() -> None:
    z, y, x = np.meshgrid(*[np.linspace(0.1, 1, 40)] * 3, indexing="ij")
    config = replace(CONFIG, batch=300, augmentation=PLAIN)
    batch = draw(((z + 2 * y + 4 * x) / 7).astype(np.float32), config)
    low = batch.low.numpy()
    slopes = np.stack([np.diff(low, axis=axis).mean(axis=(1, 2, 3)) for axis in (1, 2, 3)], axis=1)
    order = np.abs(slopes).argmax(axis=1)
    seen = {
        (int(first), *signs) for first, signs in zip(order, np.sign(slopes).tolist(), strict=True)
    }
    assert len(seen) == 24  # the steepest axis anywhere, each axis either way


def test_noise_and_contrast_change_what_they_should_and_keep_the_background() -> None:
    data = np.zeros((40, 40, 40), dtype=np.float32)
    data[:, :, 8:] = np.linspace(0.2, 1, 32)
    config = replace(CONFIG, batch=30)
    plain = draw(data, replace(config, augmentation=PLAIN))
    assert set(np.unique(plain.target)) <= set(np.unique(data))
    recoloured = draw(data, replace(config, augmentation=replace(PLAIN, contrast=1.0)))
    assert recoloured.target.min() == 0
    assert recoloured.target.max() <= 1.25
    values = recoloured.target.numpy()
    unchanged = [set(np.unique(pair)) <= set(np.unique(data)) for pair in values]
    assert sum(unchanged) < 3
    flat = np.full((40, 40, 40), 0.5, dtype=np.float32)
    noisy = draw(flat, replace(config, augmentation=replace(PLAIN, noise=1.0)))
    spread = noisy.low.numpy().std(axis=(1, 2, 3))
    assert 0.02 < spread.max() < 0.05
    assert spread.min() < 0.01
    np.testing.assert_array_equal(noisy.target, 0.5)
    # What the scores are measured on is spared.
    ideal = draw(flat, replace(config, augmentation=replace(PLAIN, noise=1.0, ideal=1.0)))
    np.testing.assert_allclose(ideal.low, 0.5, atol=1e-6)


def test_a_bias_field_is_smooth_bounded_and_in_both() -> None:
    flat = np.full((60, 60, 60), 0.5, dtype=np.float32)
    augmentation = replace(NOTHING, bias_field=1.0, largest_bias=0.2)
    config = replace(CONFIG, batch=20, patch=12, lattice=12, augmentation=augmentation)
    batch = draw(flat, config)
    assert batch.target.min() >= 0.5 * 0.8**3
    assert batch.target.max() <= 0.5 * 1.2**3
    spread = batch.target.flatten(1).std(dim=1)
    assert (spread > 0.01).sum() > 10
    # So smooth that a scanner and interpolation leave it as it is.
    assert (batch.base - batch.target)[:, 3:-3, 3:-3, 3:-3].abs().max() < 0.02


def test_a_blurred_volume_is_softer_and_so_is_its_truth() -> None:
    data = noise_volume(60)
    config = replace(CONFIG, batch=20, augmentation=NOTHING)
    sharp = draw(data, config).target.flatten(1).std(dim=1)
    soft = draw(data, replace(config, augmentation=replace(NOTHING, blur=1.0)))
    assert soft.target.flatten(1).std(dim=1).max() < 0.8 * sharp.min()
    spared = draw(data, replace(config, augmentation=replace(NOTHING, blur=1.0, ideal=1.0)))
    np.testing.assert_allclose(spared.target.flatten(1).std(dim=1).mean(), sharp.mean(), rtol=0.1)


def test_a_thick_scan_is_measured_in_plane_only() -> None:
    """In thick slices voxels along one axis are means over several: less noise, at scale 1."""
    data = noise_volume(100)
    augmentation = replace(NOTHING, in_plane=1.0, largest_thick_scale=4.0)
    config = replace(CONFIG, batch=20, lattice=8, smallest_scale=1.5, augmentation=augmentation)
    batch = draw(data, config)
    counts = 8 / cells(batch)
    assert ((counts == 8).sum(axis=1) == 1).all()
    assert (np.sort(counts, axis=1)[:, 1] == np.sort(counts, axis=1)[:, 2]).all()
    assert batch.target.flatten(1).std(dim=1).max() < 0.8 * data.std()


@pytest.mark.parametrize("kind", ["gaussian", "cubic"])
def test_the_low_patch_is_what_the_scanner_sees(kind: str) -> None:
    """An impulse comes through as the scanner's own rows have it."""
    augmentation = replace(NOTHING, cubic=float(kind == "cubic"))
    config = replace(
        CONFIG, batch=40, smallest_scale=2.0, largest_scale=2.0, augmentation=augmentation
    )
    data = np.full((40, 40, 40), 0.1, dtype=np.float32)
    data[20, 20, 20] = 1.1
    low = draw(data, config).low.numpy() - 0.1
    rows = ScannerModel(kind).matrix(40, 20)  # type: ignore[arg-type]
    # The impulse lies on one of two voxels of an LR voxel, by the flips.
    largest = max(rows[:, n].max() for n in (20, 21)) ** 3
    assert low.max() == pytest.approx(largest, rel=0.01)  # a spline reaches beyond the patch
    negative = low.min() < -0.01
    assert negative == (kind == "cubic")


def test_with_mixed_scanners_the_axes_differ() -> None:
    """White noise comes out with as much power along each axis as its profile lets through."""
    augmentation = replace(NOTHING, mixed=1.0, other_width=1.0, width_factor=2.0)
    config = replace(CONFIG, batch=1, smallest_scale=2.0, augmentation=augmentation)
    pairs = ScannerPairs([TrainingVolume(noise_volume(60), "noise")], config)
    ratios = []
    for number in range(10):
        low = pairs.batch(number).low[0].numpy()
        steps = [np.diff(low, axis=axis).std() for axis in range(3)]
        ratios.append(max(steps) / min(steps))
    assert max(ratios) > 1.2


def test_the_coarsest_axis_lies_along_a_sharp_one() -> None:
    """The file's x axis is flat, so a patch shows where it lies."""
    z, y = np.meshgrid(np.linspace(0.1, 1, 60), np.linspace(0.1, 1, 60), indexing="ij")
    data = np.repeat((z + 3 * y)[..., None] / 4, 60, axis=2).astype(np.float32)
    for chance, least in ((1.0, 40), (0.0, 5)):
        augmentation = replace(NOTHING, thick_slices=1.0, smallest_thick_scale=2.0, sharp=chance)
        config = replace(CONFIG, batch=40, augmentation=augmentation, sharp_axes=(2,))
        batch = draw(data, config)
        coarse = (8 / cells(batch)).argmax(axis=1)
        low = batch.low.numpy()
        slopes = [np.abs(np.diff(low, axis=axis)).mean(axis=(1, 2, 3)) for axis in (1, 2, 3)]
        flat = np.stack(slopes, axis=1).argmin(axis=1)
        along = int((flat == coarse).sum())
        assert along >= least
        assert along == 40 or chance < 1


def test_patches_are_not_cut_from_background() -> None:
    data = np.zeros((80, 80, 80), dtype=np.float32)
    data[20:60, 20:60, 20:60] = 0.5
    batch = draw(data, replace(CONFIG, batch=20, largest_scale=1.2, augmentation=PLAIN))
    assert ((batch.target > 0).float().mean(dim=(1, 2, 3)) > 0.1).float().mean() > 0.8


def test_a_volume_smaller_than_a_patch_is_continued_by_its_border() -> None:
    data = np.random.default_rng(0).random((10, 11, 12), dtype=np.float32)
    batch = draw(data, replace(CONFIG, batch=20, largest_scale=4.0, augmentation=PLAIN))
    assert torch.isfinite(batch.low).all()
    assert set(np.unique(batch.target)) <= set(np.unique(data))


def test_patches_take_sizes_between_two() -> None:
    config = replace(CONFIG, patch=6, largest_patch=9, batch=1)
    pairs = ScannerPairs([TrainingVolume(noise_volume(), "noise")], config)
    sizes = [pairs.batch(number).low.shape[-1] for number in range(40)]
    assert set(sizes) == {6, 7, 8, 9}
    # On every device the same: none waits for another.
    other = ScannerPairs([TrainingVolume(noise_volume(), "noise")], config, rank=1)
    assert [other.batch(number).low.shape[-1] for number in range(10)] == sizes[:10]


def test_a_batch_is_known_by_its_number() -> None:
    volumes = [TrainingVolume(noise_volume(seed=seed), str(seed)) for seed in range(3)]
    first, second = ScannerPairs(volumes, CONFIG), ScannerPairs(volumes, CONFIG)
    late = first.batch(7)
    first.batch(3)
    assert equal(late, second.batch(7))
    assert equal(late, pickle.loads(pickle.dumps(second)).batch(7))
    others = [
        first.batch(8),
        ScannerPairs(volumes, CONFIG, rank=1).batch(7),
        ScannerPairs(volumes, replace(CONFIG, seed=1)).batch(7),
        ScannerPairs(volumes, CONFIG, stream=Stream.WATCH).batch(7),
    ]
    assert not any(torch.equal(late.target, other.target) for other in others)
    assert {name for n in range(10) for name in first.batch(n).names} == {"0", "1", "2"}


def test_a_batch_moves_whole_though_pinning_makes_lists_of_its_tuples() -> None:
    batch = draw(noise_volume(), CONFIG)
    pinned = LatticeBatch(*(list(part) if isinstance(part, tuple) else part for part in batch))
    there = moved(pinned, torch.device("meta"))
    assert there.names == batch.names
    tensors = [there.low, *there.weights, *there.positions, there.gate, there.base, there.target]
    assert all(tensor.device.type == "meta" for tensor in tensors)


def test_cubic_interpolation_is_there_for_the_published_decoder_but_not_in_its_result() -> None:
    config = replace(CONFIG, model=replace(TINY, decoder="published", decoder_depth=4))
    batch = draw(noise_volume(), config)
    assert (batch.gate == 1).all()
    assert all(positions.shape == (2, 6, 1) for positions in batch.positions)
    model = models.build(config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert not predict(model, batch).any()
        ours = models.build(TINY)
        np.testing.assert_allclose(predict(ours, draw(noise_volume(), CONFIG)), batch.base)


# The paper's protocol ---------------------------------------------------------------------------


def paper_volumes(count: int = 2) -> list[TrainingVolume]:
    return [
        TrainingVolume.from_array(noise_volume(30, seed), f"{seed}.nii", 20)
        for seed in range(count)
    ]


def test_the_paper_preset_is_the_published_script_s() -> None:
    config = preset("paper").training
    assert config.model == ModelConfig("RDN", "published", 128, 8, 256, 64, 64, 8, 3)
    assert (config.patch, config.cut, config.patches) == (10, 40, 6)
    assert (config.smallest_scale, config.largest_scale) == (2, 4)
    assert (config.batch, config.samples) == (15, 8000)
    assert (config.learning_rate, config.schedule, config.decay_every) == (1e-4, "step", 200)
    assert (config.epochs, config.snapshot_every) == (2500, 200)
    assert (config.warm_up, config.average, config.clip, config.squared) == (0, 0, 0, 0)


def test_an_epoch_takes_every_patch_once_and_its_last_batch_may_be_small() -> None:
    config = replace(PAPER, batch=5)
    pairs = PaperPairs(paper_volumes(), config)
    assert pairs.steps_an_epoch == 3  # of 12 patches
    for epoch in range(2):
        batches = [pairs.batch(number) for number in range(3 * epoch, 3 * epoch + 3)]
        assert [len(batch.target) for batch in batches] == [5, 5, 2]
        names = [name for batch in batches for name in batch.names]
        assert sorted(names) == ["0.nii"] * 6 + ["1.nii"] * 6
    orders = [pairs._order(epoch).tolist() for epoch in range(3)]
    assert sorted(orders[0]) == list(range(12))
    assert orders[0] != orders[1] != orders[2]


def test_several_processes_share_an_epoch() -> None:
    config = replace(PAPER, batch=2)
    ranks = [PaperPairs(paper_volumes(), config, rank=rank, ranks=3) for rank in range(3)]
    assert ranks[0].steps_an_epoch == 2
    low = [pairs.batch(number).low for pairs in ranks for number in range(2)]
    assert len({tuple(patch.flatten().tolist()) for one in low for patch in one}) == 12


def test_low_is_the_cubic_of_the_centre_and_targets_lie_where_they_say() -> None:
    volume = paper_volumes(1)[0]
    config = replace(PAPER, smallest_scale=3.0, largest_scale=3.0, samples=500)
    pairs = PaperPairs([volume], config, watch=True)
    batch = pairs.batch(0)
    for pair, patch in enumerate(pairs.patches[:3]):
        centre = patch.read(20)[2:17, 2:17, 2:17]  # (10k)³ of 40³, at half the size
        measure = ScannerModel("cubic").matrix(15, 5)
        np.testing.assert_allclose(batch.low[pair], apply_separable([measure] * 3, centre))
        index = np.rint(((batch.points[pair].numpy() + 1) * 15 - 1) / 2).astype(int)
        np.testing.assert_array_equal(batch.target[pair], centre[tuple(index.T)])
        assert len(np.unique(index, axis=0)) == 500


def test_scales_have_one_decimal_and_span_the_range() -> None:
    config = replace(PAPER, patch=10, cut=40, samples=8000, batch=1)
    volume = TrainingVolume.from_array(noise_volume(48), "noise", 40)
    pairs = PaperPairs([volume], config)
    sides = set()
    for number in range(60):
        points = pairs.batch(number).points[0, :, 0].double().numpy()
        sides.add(round(2 / np.diff(np.unique(points)).min()))
    assert min(sides) >= 20
    assert max(sides) <= 40
    assert len(sides) > 12


def test_fixed_patches_follow_content_and_seed() -> None:
    one, other = paper_volumes()
    cut = {"size": 20, "count": 6, "seed": 3}
    places = patch_starts(one.data, one.content, **cut)
    assert len(places) == 6
    assert places == patch_starts(one.data, one.content, **cut)
    assert places != patch_starts(one.data, one.content, **{**cut, "seed": 4})
    assert places != patch_starts(other.data, other.content, **cut)
    assert np.array(places).min() >= 0
    assert np.array(places).max() <= 10
    assert patch_starts(one.data, one.content, size=30, count=6, seed=3) == [(0, 0, 0)]


def test_validation_pairs_are_always_the_same() -> None:
    volumes = paper_volumes()
    pairs = PaperPairs(volumes, PAPER, watch=True)
    assert pairs.batches == 4
    first = [pairs.batch(number) for number in range(4)]
    again = PaperPairs(volumes, PAPER, rank=1, ranks=2, watch=True)
    assert equal(first, [again.batch(number) for number in range(4)])
    wave = np.sin(np.arange(30) / 4)
    smooth = (wave[:, None, None] + wave[:, None] + wave).astype(np.float32)
    batch = PaperPairs([TrainingVolume.from_array(smooth, "waves")], PAPER, watch=True).batch(0)
    assert (batch.base - batch.target).abs().mean() < 0.03
    assert batch.target.std() > 0.1


@pytest.mark.parametrize("encoder", ["RDN", "ResCNN", "SRResNet"])
def test_points_are_predicted_as_the_published_network_does(encoder: str) -> None:
    config = replace(PAPER, model=replace(PAPER.model, encoder=encoder))
    batch = PaperPairs(paper_volumes(), config).batch(0)
    assert isinstance(batch, PointBatch)
    model = models.build(config.model)
    points = batch.points.clone()
    points[:, 0] = torch.tensor([-1.0, 1.0, 0.99])  # where zeros outside count
    batch = batch._replace(points=points)
    predicted = predict(model, batch)
    with torch.no_grad():
        features = model.encoder(batch.low[:, None])
        grid = points.flip(-1)[:, :, None, None]
        sampled = functional.grid_sample(features, grid, align_corners=False)[..., 0, 0]
        inputs = torch.cat([sampled.transpose(1, 2), points], dim=-1)
        hidden = model.decoder.stage_two(inputs + model.decoder.stage_one(inputs))
    np.testing.assert_allclose(predicted.detach(), hidden[..., 0], atol=1e-5)
    predicted.sum().backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
