import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from fitting_case import CENTRE, GRID, brain, stack, three, truth
from safetensors.torch import load_file, save_file

from napari_arssr import fitting
from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import Cancelled, FileError, UsageError
from napari_arssr.evaluation import psnr
from napari_arssr.field import Field
from napari_arssr.fitting import implicit
from napari_arssr.fitting.fitted import FittedField, positions
from napari_arssr.fitting.implicit import Course, Samples, fit_hash_grid, fit_irem
from napari_arssr.fitting.measurement import Measurement
from napari_arssr.fitting.poses import rigid
from napari_arssr.fitting.stacks import prepare
from napari_arssr.models.hash_grid import HashGrid, HashGridConfig
from napari_arssr.models.irem import IREM, IREMConfig
from napari_arssr.normalization import Normalizer
from napari_arssr.volume import Box, Grid, Volume

TINY = IREMConfig(frequencies=16, width=24, layers=5, skips=(2,))
SMALL = HashGridConfig(levels=4, coarsest=4, finest=24, log_table=12, width=16)
SLAB = ScannerModel("slice-profile")
PAPER = {"method": "irem", "preset": "paper", "spacing": 1.6, "register": False}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def samples(volumes, scanner=None, motions=None):
    stacks = prepare(volumes, Normalizer())[0]
    return Samples(GRID, stacks, motions or [s.still for s in stacks], scanner)


def tensors_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


# ------------------------------------------------------------------------------ networks


def test_the_network_is_the_published_one():
    network = IREM(IREMConfig())
    linear = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    assert [m.in_features for m in linear[:18]] == [256] * 6 + [512] + [256] * 5 + [512] + [256] * 5
    assert all(m.out_features == 256 for m in linear[:18])
    assert (linear[18].in_features, linear[18].out_features, len(linear)) == (256, 1, 19)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert len(norms) == 18
    assert network.frequencies.shape == (128, 3)
    assert float(network.frequencies.std()) == pytest.approx(1, abs=0.1)
    assert "frequencies" not in dict(network.named_parameters())


def test_the_encoding_is_of_the_published_form():
    network = IREM(TINY).eval()
    seen = []
    network.layers[0].register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    points = torch.rand(7, 3) * 2 - 1
    assert network(points).shape == (7,)
    phase = 2 * torch.pi * points @ network.frequencies.T
    torch.testing.assert_close(seen[0], torch.cat([phase.cos(), phase.sin()], dim=1))


def test_the_same_seed_gives_the_same_frequencies():
    one, other = (IREM(TINY, torch.Generator().manual_seed(3)).frequencies for _ in range(2))
    assert torch.equal(one, other)


def test_a_hash_grid_begins_as_nothing_and_can_become_anything():
    network = HashGrid(SMALL, torch.Generator().manual_seed(0))
    points = torch.rand(4096, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert not network(points).any()
    wanted = torch.sin(5 * points[:, 0]) * points[:, 1]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = ((network(points) - wanted) ** 2).mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05 * float((wanted**2).mean())


def test_a_hash_grid_interpolates_between_its_nodes():
    network = HashGrid(HashGridConfig(levels=1, coarsest=4, finest=4, log_table=12))
    assert HashGridConfig(levels=8, coarsest=8, finest=128).cells == [
        8,
        12,
        18,
        26,
        39,
        58,
        86,
        128,
    ]
    table = network.tables[0]
    place = torch.tensor([[0.5, 0.25, 0.75], [0.5, 0.375, 0.75], [0.5, 0.5, 0.75]])
    one, middle, other = network._level(place, table, 4)
    torch.testing.assert_close(middle, (one + other) / 2)
    torch.testing.assert_close(one, table[(2 * 5 + 1) * 5 + 3])


# --------------------------------------------------------------------------- irem as published


def test_every_voxel_in_the_volume_is_a_sample_where_its_stack_was():
    volumes = [stack(0), stack(1)]
    stacks = prepare(volumes, Normalizer())[0]
    motion = rigid((0.1, 0.2, -0.1, 3, 4, 5), CENTRE)
    given = Samples(GRID, stacks, [stacks[0].still, motion @ stacks[1].still])
    source = stacks[1].volume.grid.moved(motion)
    inside = GRID.holds(GRID.index(source.world(np.argwhere(np.ones(source.shape)))))
    first = volumes[0].data.size
    assert len(given) == first + inside.sum() < first + inside.size
    number = first + inside[: 3 * 32 * 32 + 5 * 32 + 6].sum()
    index = given.index(torch.tensor([number]), given.motions)[0, 0]
    world = volumes[1].grid.world([5, 3, 6])
    moved = motion[:3, :3] @ world + motion[:3, 3]
    np.testing.assert_allclose(index.numpy(), GRID.index(moved), atol=1e-4)
    assert float(given.values[number]) == volumes[1].data[5, 3, 6]


def test_poses_move_a_small_subject_by_as_much_of_its_size():
    shifts = []
    for size in (1.0, 1e-3):
        scale = np.diag([size, size, size, 1.0])
        grid = replace(GRID, affine=scale @ GRID.affine)
        stacks = prepare([replace(one, affine=scale @ one.affine) for one in three()], Normalizer())
        given = Samples(grid, stacks[0], [s.still for s in stacks[0]])
        motions = implicit._moved(torch.ones(len(given.motions), 6), given)
        moved = (motions[:, :3, :3] - given.motions[:, :3, :3]) @ given.centres[:, :, None]
        shifts.append((moved[..., 0] + motions[:, :3, 3]).numpy() / size)
    np.testing.assert_allclose(shifts[0], shifts[1], atol=1e-4)
    np.testing.assert_allclose(shifts[0], 0.5, atol=1e-4)


def test_voxels_that_a_reconstruction_does_not_count_train_no_network():
    stacks = prepare(three(), Normalizer())[0]
    motions = [s.still for s in stacks]
    motions[0] = rigid((0, 0, 0, 0, 0, 6.4), CENTRE) @ motions[0]  # one slice up
    motions[1] = rigid((0.1, 0.2, -0.1, 3, 4, 5), CENTRE) @ motions[1]
    counted = Measurement(GRID, stacks, motions, SLAB).inside
    given = Samples(GRID, stacks, motions, SLAB)
    number = np.bincount(given.stack_of.numpy(), minlength=3)
    np.testing.assert_array_equal(number, [part.sum() for part in counted])
    assert set(given.slices[given.stack_of == 0].tolist()) == set(range(7))
    away = [rigid((0, 0, 0, 500, 0, 0), CENTRE) @ s.still for s in stacks]
    with pytest.raises(UsageError, match="No voxel of any stack lies in the 32 × 36 × 32 voxels"):
        Samples(GRID, stacks, away)


def test_positions_keep_the_shape_of_space():
    grid = Grid.from_spacing((10, 20, 40), (4.0, 1.0, 1.0))
    corners = positions(grid, np.array([[-0.5, -0.5, -0.5], [9.5, 19.5, 39.5]]))
    np.testing.assert_allclose(corners, [[-1, -0.5, -1], [1, 0.5, 1]])
    given = samples(three())
    index = torch.rand(5, 3) * 30
    np.testing.assert_allclose(
        given.position(index).numpy(), positions(GRID, index.numpy()), atol=1e-5
    )


def test_the_fit_learns_the_stacks():
    wider = IREMConfig(frequencies=32, width=64, layers=4, skips=(2,))
    state = fit_irem(samples(three(factor=8)), Course(epochs=60), config=wider)
    assert len(state.losses) == 60
    assert state.losses[-1] < 0.5 * state.losses[0]
    assert not state.network.training


def test_a_stopped_fit_goes_on_to_where_it_would_have_ended():
    given = samples(three(factor=8))
    whole = fit_irem(given, Course(epochs=3), config=TINY)
    asked, kept = [], []

    def stop():
        asked.append(0)
        return len(asked) > 7

    with pytest.raises(Cancelled):
        fit_irem(given, Course(epochs=3, stop=stop, keep=kept.append), config=TINY)
    (state,) = kept
    assert state.step == 7
    resumed = fit_irem(given, Course(epochs=3), state)
    assert resumed.step == whole.step
    for name, tensor in tensors_of(whole.network).items():
        torch.testing.assert_close(tensors_of(resumed.network)[name], tensor)


def test_a_fit_that_is_stopped_while_it_is_shown_is_kept():
    kept, asked = [], []

    def seen(state):
        asked.append(state.step)
        if len(asked) == 5:
            raise Cancelled

    course = Course(epochs=3, stop=lambda: len(asked) >= 5, keep=kept.append, seen=seen)
    with pytest.raises(Cancelled):
        fit_irem(samples(three(factor=8)), course, config=TINY)
    assert [state.step for state in kept] == [5]


def test_a_fit_goes_on_for_as_long_as_it_was_begun_for(monkeypatch):
    monkeypatch.setattr("napari_arssr.fitting.implicit.IREMConfig", lambda: TINY)
    volumes, begun = three(factor=8), fitting.Settings(**PAPER, epochs=3)
    asked, kept = [], []

    def stop():
        asked.append(0)
        return len(asked) > 12

    with pytest.raises(Cancelled):
        fitting.fit(volumes, begun, watch=fitting.Watch(stop=stop, keep=kept.append))
    same = replace(begun, epochs=None)
    state = fitting.fit(volumes, same, resume=kept[-1])
    assert len(state.trained.losses) == 3
    steps = state.trained.step
    # It is done; more minutes are more steps.
    state = fitting.fit(volumes, replace(same, minutes=0.01), resume=state)
    assert state.trained.step > steps


def test_the_rate_is_halved_as_published(monkeypatch):
    rates = []
    step = torch.optim.Adam.step

    def watched(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    stacks = [replace(s, rows=s.rows[::40]) for s in prepare(three(factor=8), Normalizer())[0]]
    given = Samples(GRID, stacks, [s.still for s in stacks])
    fit_irem(given, Course(epochs=502), config=IREMConfig(2, 2, 1, ()))
    assert rates[0] == rates[499] == 1e-4
    assert rates[500] == rates[501] == 5e-5


def test_minutes_end_a_fit():
    started = time.monotonic()
    state = fit_irem(samples(three(factor=8)), Course(minutes=0.01), config=TINY)
    assert state.step > 0
    assert time.monotonic() - started < 20


def test_who_watches_a_network_sees_it_learn_and_changes_nothing(monkeypatch):
    monkeypatch.setattr("napari_arssr.fitting.implicit.IREMConfig", lambda: TINY)
    volumes, settings = three(factor=8), fitting.Settings(**PAPER, epochs=4)
    seen, told = [], []
    watch = fitting.Watch(seen=seen.append, measured=lambda *number: told.append(number))
    watched = fitting.fit(volumes, settings, watch=watch)
    alone = fitting.fit(volumes, settings)
    for name, tensor in tensors_of(alone.trained.network).items():
        torch.testing.assert_close(tensors_of(watched.trained.network)[name], tensor)
    assert seen
    assert all(volume.data.std() > 0 for volume in seen)
    assert {stage for stage, _ in told} == {"fit the network"}
    assert told[-1][1] < told[0][1]


def test_the_paper_preset_gives_a_field_of_the_network_alone():
    state = fitting.fit(three(factor=8), fitting.Settings(**PAPER, minutes=0.02))
    assert state.base is None
    field = state.field()
    assert isinstance(field, Field)
    network = state.trained.network
    assert isinstance(network, IREM)
    data = field.sample(GRID).data
    points = torch.from_numpy(positions(GRID, np.array([[3.0, 4, 5], [20, 21, 22]])))
    with torch.no_grad():
        expected = network(points.float()).numpy() * state.normalizer.high
    np.testing.assert_allclose(data[[3, 20], [4, 21], [5, 22]], expected, atol=1e-4)


# ------------------------------------------------------------------------------ hash grid


def test_a_hash_grid_finds_what_the_reconstruction_lacks():
    base = truth().data.copy()
    base[10:20, 10:24, 10:20] -= 0.3
    given = samples(three(noise=0.01), SLAB)
    believed = np.ones(len(given.motions))
    found = fit_hash_grid(given, base, believed, Course(epochs=12), move=False, config=SMALL)
    assert found.after < 0.8 * found.before
    normal = Normalizer()
    field = FittedField(Volume(base, GRID.affine), normal, network=found.trained.network)
    better = psnr(truth().data, field.sample(GRID).data, mask=brain(), data_range=1.0)
    assert better > psnr(truth().data, base, mask=brain(), data_range=1.0) + 1.5


def test_where_nothing_is_to_be_gained_the_network_is_nothing():
    stacks = prepare(three(), Normalizer())[0]
    seen = Measurement(GRID, stacks, [s.still for s in stacks], SLAB).forward(truth().data)
    perfect = []
    for one, values in zip(stacks, seen, strict=True):
        data = values.reshape(one.volume.data.shape)
        perfect.append(replace(one, volume=replace(one.volume, data=data)))
    given = Samples(GRID, perfect, [s.still for s in stacks], SLAB)
    found = fit_hash_grid(
        given, truth().data, np.ones(len(given.motions)), Course(epochs=1), config=SMALL
    )
    assert found.before < 3e-3
    assert found.after <= found.before


@pytest.mark.parametrize(("gain", "kept"), [(0.1, True), (1e-4, False)])
def test_a_hash_grid_is_kept_where_it_predicts_better_by_more_than_chance(monkeypatch, gain, kept):
    random = np.random.default_rng(0)
    alone = torch.from_numpy(random.chisquare(1, 5000))
    by_chance = torch.from_numpy(random.permutation(alone.numpy()))
    told = (1 - gain) * (alone if kept else by_chance)

    def errors(_fit, _moved, *, with_network=True):
        return told if with_network else alone

    monkeypatch.setattr("napari_arssr.fitting.implicit._HashGridFit.errors", errors)
    given = samples(three(factor=8), SLAB)
    found = fit_hash_grid(
        given, truth().data * 0.8, np.ones(len(given.motions)), Course(epochs=1), config=SMALL
    )
    assert told.mean() < alone.mean()
    assert bool(found.trained.network.last.weight.any()) is kept
    assert np.allclose(found.motions, given.motions.numpy(), atol=1e-5) is not kept
    assert (found.after < found.before) is kept


def test_a_hash_grid_s_fit_refines_poses(monkeypatch):
    monkeypatch.setattr("napari_arssr.fitting.implicit._GRID_BATCH", 1024)
    motion = rigid((0.01, -0.01, 0.01, 0.6, -0.5, 0.4), CENTRE)
    stacks = prepare(three(), Normalizer())[0]
    motions = [s.still for s in stacks]
    motions[1] = np.linalg.inv(motion) @ motions[1]  # as if registration had missed by so much
    given = Samples(GRID, stacks, motions, SLAB)
    believed = np.ones(len(given.motions))
    base = truth().data
    found = fit_hash_grid(given, base, believed, Course(epochs=8), config=SMALL)
    part = found.motions[8:17]

    def away(moved):
        return np.linalg.norm(
            (moved[:, :3, :3] @ np.array(CENTRE) + moved[:, :3, 3]) - CENTRE, axis=1
        ).mean()

    assert away(part) < 0.6 * away(motions[1])


def test_the_improved_irem_is_never_below_what_it_began_with():
    settings = fitting.Settings(
        "irem", spacing=1.6, register=False, motion="none", network_prior=False, epochs=1
    )
    state = fitting.fit(three(noise=0.02), settings)
    assert state.numbers["held_back_after"] <= state.numbers["held_back_before"]
    base = replace(state, trained=None).field().sample(GRID).data
    result = state.field().sample(GRID).data
    scores = [psnr(truth().data, d, mask=brain(), data_range=1.0) for d in (base, result)]
    assert scores[1] > scores[0] - 0.1


def test_the_improved_irem_adds_what_a_reconstruction_lacks(monkeypatch):
    monkeypatch.setattr("napari_arssr.fitting.implicit._GRID_BATCH", 1024)
    monkeypatch.setattr("napari_arssr.fitting.implicit.hash_grid_config", lambda _grid: SMALL)
    # So strong a prior leaves a blurred volume.
    settings = fitting.Settings(
        "irem",
        spacing=1.6,
        register=False,
        motion="none",
        network_prior=False,
        weight=1.0,
        epochs=6,
    )
    state = fitting.fit(three(), settings)
    assert state.numbers["held_back_after"] < 0.8 * state.numbers["held_back_before"]
    base = replace(state, trained=None).field().sample(GRID).data
    result = state.field().sample(GRID).data
    scores = [psnr(truth().data, d, mask=brain(), data_range=1.0) for d in (base, result)]
    assert scores[1] > scores[0] + 1


# ------------------------------------------------------------------------- field and files


def test_a_field_has_a_network_of_its_own():
    network = HashGrid(SMALL, torch.Generator().manual_seed(0)).train()
    torch.nn.init.normal_(network.last.weight, std=0.5)
    base = Volume(truth().data, GRID.affine)
    field = FittedField(base, Normalizer(), network=network)
    assert network.training
    before = field.sample(GRID).data
    torch.nn.init.zeros_(network.last.weight)
    np.testing.assert_array_equal(field.sample(GRID).data, before)


@pytest.fixture(scope="module")
def fitted_state():
    torch.set_num_threads(1)
    volumes = [stack(0), stack(1, gain=2.0), stack(2)]
    settings = fitting.Settings("srr", spacing=1.6, register=False)
    state = fitting.fit(volumes, settings, uncertainty=True)
    network = HashGrid(SMALL, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(network.last.weight, std=0.5)
    from napari_arssr.fitting.implicit import Trained

    state.trained = Trained(network.eval(), 5, {"0.exp_avg": torch.ones(3)}, [0.5, 0.25])
    return state


def test_a_box_a_plane_and_another_spacing_agree_with_the_whole(fitted_state):
    field = fitted_state.field()
    whole = field.sample(GRID).data
    assert np.abs(whole - replace(fitted_state, trained=None).field().sample(GRID).data).max() > 0
    box = Box((3, 4, 5), (9, 20, 18))
    np.testing.assert_allclose(field.sample(GRID.crop(box)).data, whole[box.slices], atol=1e-5)
    fine = field.sample(GRID.scaled(3)).data
    np.testing.assert_allclose(fine[1::3, 1::3, 1::3], whole, atol=1e-5)
    turned = GRID.crop(Box((10, 10, 10), (11, 26, 22))).moved(
        rigid((0.3, 0.2, 0.1, 0, 0, 0), CENTRE)
    )
    plane = field.sample(turned).data
    (index,) = np.rint(GRID.index(turned.world([[0, 8, 6]]))).astype(int)
    assert plane.shape == (1, 16, 12)
    near = whole[tuple(slice(i - 1, i + 2) for i in index)]
    assert near.min() - 0.05 <= plane[0, 8, 6] <= near.max() + 0.05
    with pytest.raises(Cancelled):
        field.sample(GRID, stop=lambda: True)


def test_a_fit_is_saved_and_loads_again(fitted_state, tmp_path):
    path = fitting.save(tmp_path / "fit.safetensors", fitted_state)
    loaded = fitting.load(path)
    assert loaded.settings == fitted_state.settings
    assert loaded.stage == "done"
    assert loaded.grid == fitted_state.grid
    assert loaded.numbers == fitted_state.numbers
    np.testing.assert_array_equal(
        loaded.field().sample(GRID).data, fitted_state.field().sample(GRID).data
    )
    np.testing.assert_array_equal(loaded.uncertainty, fitted_state.uncertainty)
    for one, other in zip(loaded.stacks, fitted_state.stacks, strict=True):
        assert (one.name, one.digest, one.gain) == (other.name, other.digest, other.gain)
        assert one.agreement == other.agreement
        assert one.grid == other.grid
        np.testing.assert_array_equal(one.motion, other.motion)
        np.testing.assert_array_equal(one.weight, other.weight)
    assert loaded.trained.losses == [0.5, 0.25]
    torch.testing.assert_close(loaded.trained.memory["0.exp_avg"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["fit.safetensors"]


def test_a_mask_is_saved_with_the_fit(tmp_path):
    inside = np.zeros(GRID.shape, dtype=np.uint8)
    inside[8:24, 10:26, 8:24] = 1
    settings = fitting.Settings("linear", spacing=1.6, register=False)
    state = fitting.fit(three(), settings, mask=Volume(inside, GRID.affine, name="mask"))
    loaded = fitting.load(fitting.save(tmp_path / "fit.safetensors", state))
    np.testing.assert_array_equal(loaded.field().sample(GRID).data, state.field().sample(GRID).data)
    assert not loaded.field().sample(GRID).data[inside == 0].any()


def test_damaged_and_other_files_are_refused(fitted_state, tmp_path):
    with pytest.raises(FileError, match="no such fit"):
        fitting.load(tmp_path / "none.safetensors")
    path = fitting.save(tmp_path / "fit.safetensors", fitted_state)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(FileError, match="not a whole safetensors file"):
        fitting.load(cut)
    tensors = load_file(path)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(FileError, match="no fit of napari-arssr"):
        fitting.load(tmp_path / "other.safetensors")
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        header = opened.metadata()
    tensors["base"] = tensors["base"][:3]
    save_file(tensors, tmp_path / "small.safetensors", metadata=header)
    with pytest.raises(FileError, match="damaged or of another version"):
        fitting.load(tmp_path / "small.safetensors")
    boundless = json.loads(header["napari-arssr fit"])
    config = {"layers": 10**9, "skips": []}
    boundless["network"] = {"kind": "irem", "config": config, "step": 0, "losses": []}
    header = {"napari-arssr fit": json.dumps(boundless)}
    save_file(load_file(path), tmp_path / "boundless.safetensors", metadata=header)
    with pytest.raises(FileError, match=r"1000000000 layers for \d+ tensors"):
        fitting.load(tmp_path / "boundless.safetensors")
    with pytest.raises(UsageError, match=r"ends in \.safetensors"):
        fitting.save(tmp_path / "fit.npz", fitted_state)
    with pytest.raises(FileError, match="does not exist"):
        fitting.save(tmp_path / "no" / "fit.safetensors", fitted_state)


def test_a_fit_of_other_stacks_or_settings_is_not_gone_on_with(fitted_state):
    settings = fitted_state.settings
    with pytest.raises(UsageError, match="one of other stacks"):
        fitting.fit(three(), settings, resume=fitted_state)
    volumes = [stack(0), stack(1, gain=2.0), stack(2)]
    with pytest.raises(UsageError, match="other settings"):
        fitting.fit(volumes, replace(settings, penalty="tikhonov"), resume=fitted_state)
    assert fitting.fit(volumes, settings, resume=fitted_state) is fitted_state


def test_a_registered_fit_is_not_gone_on_with_as_one_that_is_not(fitted_state):
    volumes = [stack(0), stack(1, gain=2.0), stack(2)]
    settings = fitted_state.settings
    with pytest.raises(UsageError, match="begun without registration"):
        fitting.fit(volumes, replace(settings, register=True), resume=fitted_state)
    registered = replace(fitted_state, settings=replace(settings, register=True))
    with pytest.raises(UsageError, match="begun with registration"):
        fitting.fit(volumes, settings, resume=registered)
    # Without it what it would go by is no other setting.
    idle = replace(settings, metric="mutual-information")
    assert fitting.fit(volumes, idle, resume=fitted_state) is fitted_state


def test_more_of_what_cannot_be_trained_on_is_refused(fitted_state):
    volumes = [stack(0), stack(1, gain=2.0), stack(2)]
    settings = fitting.Settings("irem", spacing=1.6, register=False, epochs=2, minutes=5.0)
    done = replace(fitted_state, settings=settings)
    with pytest.raises(UsageError, match=r"3 epochs more would change nothing.*leave --epochs out"):
        fitting.fit(volumes, replace(settings, epochs=3), resume=done)
    with pytest.raises(UsageError, match=r"0\.5 minutes more would change nothing"):
        fitting.fit(volumes, replace(settings, minutes=0.5), resume=done)
    # The same words sample it again, and so does leaving them out.
    for same in (settings, replace(settings, epochs=None, minutes=0.0)):
        assert fitting.fit(volumes, same, resume=done) is done


def test_a_fit_stopped_between_stages_goes_on_from_there(tmp_path):
    volumes = three(noise=0.01)
    settings = fitting.Settings(spacing=1.6, network_prior=False, motion="stacks", register=False)
    kept = tmp_path / "fit.safetensors"

    def keep(state):
        fitting.save(kept, state)

    class Ended(Exception):
        pass

    def progress(_share, stage):
        if stage == "reconstruct":
            raise Ended

    with pytest.raises(Ended):
        fitting.fit(volumes, settings, watch=fitting.Watch(progress=progress, keep=keep))
    stages = []
    resumed = fitting.load(kept)
    assert resumed.stage == "posed"
    watch = fitting.Watch(progress=lambda _share, stage: stages.append(stage))
    result = fitting.fit(volumes, settings, resume=resumed, watch=watch)
    assert "find poses" not in stages
    whole = fitting.fit(volumes, settings)
    np.testing.assert_allclose(result.base, whole.base, atol=1e-4)
