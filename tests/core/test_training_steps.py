"""Steps of a training: split without a trace, averaged, scheduled, resumable, and they learn."""

import itertools
import sys
from dataclasses import replace

import pytest
import torch
from small_training import CONFIG, UNET, Small, assert_same_weights, orbits, trained
from torch import nn

from v3d_core.diffusion import training_data
from v3d_core.diffusion.layout import ClipShape, VaeShape
from v3d_core.diffusion.training import OrbitBatch, OrbitTrainer
from v3d_core.diffusion.training_data import EncodedOrbits, encode_latents, encode_tokens
from v3d_core.diffusion.training_loss import NoiseConfig
from v3d_core.diffusion.training_processes import Processes, joined_processes

# --- a batch in parts ----------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_gives_the_weights_of_a_whole_one(parts):
    whole, split = trained(CONFIG), trained(replace(CONFIG, accumulate=parts))
    assert_same_weights(whole, split, rtol=1e-5, atol=1e-6)
    assert (
        float((whole.unet.mix - Small().mix).detach().abs().max()) > 0.02
    )  # 3 steps of up to 0.01


def work_as(rank, folder, queue):
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        here = Processes(2, rank, rank)
        trainer = trained(replace(CONFIG, accumulate=2), world=2, rank=rank, make=unet)
        assert here.any(rank == 1) and not here.any(False)
        assert float(here.mean(torch.tensor(float(rank)))) == 0.5
        queue.put((rank, [p.detach().numpy() for p in trainer.parameters]))
        here.wait()
    finally:
        torch.distributed.destroy_process_group()


def unet():
    pytest.importorskip("diffusers")
    from v3d_core.diffusion.training_networks import new_unet

    return new_unet(UNET, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are made by fork")
def test_two_processes_end_with_the_weights_of_one(tmp_path):
    alone = trained(CONFIG, make=unet)
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=work_as, args=(r, tmp_path, queue)) for r in range(2)]
    for worker in workers:
        worker.start()
    results = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(timeout=30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    start = unet()
    moved = 0.0
    for mine, other, expected, before in zip(
        results[0], results[1], alone.parameters, start.parameters(), strict=True
    ):
        assert (mine == other).all()
        # sums in another order: Adam makes much of the last digits of tiny gradients
        torch.testing.assert_close(torch.from_numpy(mine), expected.detach(), rtol=0, atol=1e-3)
        moved = max(moved, float((expected - before).detach().abs().max()))
    assert moved > 2e-2


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_processes(torch.device("cpu")) as (here, device):
        assert (here.world, here.first, device) == (1, True, torch.device("cpu"))
        assert here.any(True) and not here.any(False)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"accumulate": 3}, "batch of 4 .* 3 equal"),
        ({"precision": "float64"}, "float64.*float32, bfloat16"),
        ({"steps": 0}, "steps 0"),
        ({"ema_decay": 1.0}, "ema_decay.*1.0"),
    ],
)
def test_impossible_settings_are_named(changed, text):
    with pytest.raises(ValueError, match=text):
        replace(CONFIG, **changed)


def test_a_batch_that_does_not_split_among_processes_is_refused():
    with pytest.raises(ValueError, match=r"4 orbits .* 3 processes"):
        OrbitTrainer(Small(), None, CONFIG, world=3)


def test_batches_without_what_the_trainer_asks_for_are_refused():
    trainer = OrbitTrainer(Small(), None, CONFIG)
    with pytest.raises(ValueError, match="must have tokens"):
        trainer.tokens(OrbitBatch(torch.zeros(1, 3, 4, 4, 4)))
    learning = OrbitTrainer(Small(), nn.Linear(1, 1), CONFIG)
    with pytest.raises(ValueError, match="must have pictures"):
        learning.tokens(OrbitBatch(torch.zeros(1, 3, 4, 4, 4)))


# --- one step ------------------------------------------------------------------------------------


def test_the_rate_rises_stays_and_falls_along_lines():
    config = replace(CONFIG, learning_rate=2.0, warmup_steps=10, decay_share=0.2)
    rates = [config.rate(step) for step in range(101)]
    expected = [2.0 * min(1, (s + 1) / 10, (100 - s) / 20) for s in range(101)]
    assert rates == pytest.approx(expected)
    assert rates[0] == pytest.approx(0.2) and rates[9:81] == [2.0] * 72 and rates[100] == 0


def test_the_step_is_adamw_at_that_rate():
    """Adam's first step is the rate times the sign of the gradient, after AdamW's decay."""
    config = replace(CONFIG, warmup_steps=4, weight_decay=0.5)
    before = Small().mix
    trainer = trained(config, 1)
    rate = 1e-2 / 4
    step = trainer.unet.mix - before * (1 - rate * 0.5)
    torch.testing.assert_close(step.abs(), torch.full_like(step, rate), rtol=1e-3, atol=0)


def test_the_average_is_the_recursion_with_a_young_average_forgetting_faster():
    trainer = OrbitTrainer(Small(), None, CONFIG)
    average, data = trainer.parameters[0].detach().double(), orbits()
    for step in range(1, 15):
        trainer.update(data)
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * trainer.parameters[0].detach().double()
    torch.testing.assert_close(trainer.average[0].double(), average, rtol=1e-5, atol=1e-6)
    weights = trainer.parameters[0].detach().clone()
    trainer.swap_average()
    torch.testing.assert_close(
        trainer.parameters[0].detach().double(), average, rtol=1e-5, atol=1e-6
    )
    trainer.swap_average()
    assert torch.equal(trainer.parameters[0], weights)


def test_without_an_average_there_is_none_and_the_weights_are_the_same():
    with_one, without = trained(CONFIG), trained(replace(CONFIG, ema_decay=0.0))
    assert without.average == []
    before = [p.detach().clone() for p in without.parameters]
    without.swap_average()
    assert all(torch.equal(a, b) for a, b in zip(before, without.parameters, strict=True))
    assert_same_weights(with_one, without)


def test_only_the_given_parameters_learn():
    network = Small()
    trainer = OrbitTrainer(network, None, CONFIG, trained=[network.token])
    trainer.update(orbits())
    fresh = Small()
    assert torch.equal(network.mix, fresh.mix) and torch.equal(network.level, fresh.level)
    assert not torch.equal(network.token, fresh.token)


def test_a_large_gradient_is_cut_to_its_largest_norm():
    trainer = OrbitTrainer(Small(), None, replace(CONFIG, clip_gradient=1e-3))
    trainer.update(orbits())
    moments = [trainer.optimiser.state[p]["exp_avg"] for p in trainer.parameters]
    norm = torch.cat([m.flatten() for m in moments]).norm() / 0.1  # 1 - beta of a first step
    assert float(trainer.gradient_norm) > 1e-2
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_seeds_give_other_batches_and_the_same_seed_the_same_run():
    assert_same_weights(trained(CONFIG), trained(CONFIG))
    other = trained(replace(CONFIG, seed=1))
    assert not torch.equal(other.parameters[0], trained(CONFIG).parameters[0])


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing():
    plain = trained(CONFIG, 2, make=unet)
    saving = trained(replace(CONFIG, gradient_checkpointing=True), 2, make=unet)
    assert_same_weights(plain, saving)


@pytest.mark.slow
def test_bfloat16_computes_in_half_and_learns_in_full_precision():
    trainer = trained(replace(CONFIG, precision="bfloat16"), 1, make=unet)
    assert {p.dtype for p in trainer.parameters} == {torch.float32}
    exact = trained(CONFIG, 1, make=unet)
    norms = float(trainer.gradient_norm), float(exact.gradient_norm)
    assert norms[0] != norms[1] and norms[0] == pytest.approx(norms[1], rel=0.05)


@pytest.mark.slow
def test_a_small_model_learns_one_orbit_by_heart():
    """At high noise v is the orbit, less of it the noise, so the orbit alone is to be learnt."""
    data = orbits(count=1, frames=2)
    noise = NoiseConfig(log_sigma_mean=3.0, drop_token=0, drop_latent=0)
    config = replace(CONFIG, noise=noise, batch_size=2, learning_rate=3e-3, ema_decay=0.0)
    trainer = OrbitTrainer(unet(), None, config)
    losses = torch.stack([trainer.update(data) for _ in range(30)])
    # measured: 0.66 before, 0.13 after
    assert float(losses[-10:].mean()) < 0.4 * float(losses[:5].mean())


# --- the data ------------------------------------------------------------------------------------


def test_rows_turn_orbits_so_that_the_drawn_frame_comes_first():
    data = orbits(count=4, frames=5)
    rows = data.draw(200, torch.Generator().manual_seed(0))
    assert {tuple(r) for r in rows.tolist()} == set(itertools.product(range(4), range(5)))
    batch = data.load(rows, torch.device("cpu"))
    for row, latents, token in zip(rows.tolist(), batch.latents, batch.tokens, strict=True):
        orbit, front = row
        assert torch.equal(latents, data.latents[orbit].roll(-front, 0))
        assert torch.equal(token, data.tokens[orbit, front].float())


def test_orbits_that_are_no_whole_turns_are_not_turned():
    data = orbits(count=4)
    still = EncodedOrbits(data.latents, data.tokens, random_front=False)
    rows = still.draw(50, torch.Generator().manual_seed(0))
    assert not rows[:, 1].any() and set(rows[:, 0].tolist()) == set(range(4))


def test_pictures_come_as_colours_of_the_first_frame():
    pictures = torch.arange(2 * 3 * 4 * 4 * 3, dtype=torch.uint8).view(2, 3, 4, 4, 3)
    data = EncodedOrbits(torch.zeros(2, 3, 4, 1, 1), pictures=pictures)
    batch = data.load(torch.tensor([[1, 2]]), torch.device("cpu"))
    assert batch.tokens is None and torch.equal(batch.pictures[0], pictures[1, 2].float() / 255)
    with pytest.raises(ValueError, match="either tokens or pictures"):
        EncodedOrbits(torch.zeros(2, 3, 4, 1, 1))


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_encoding_in_portions_changes_nothing(at_once, monkeypatch):
    pytest.importorskip("diffusers")
    from v3d_core.diffusion.conditioning import clip_pixels
    from v3d_core.diffusion.training_networks import new_image_encoder, new_vae

    vae = new_vae(VaeShape(channels=32, channel_mult=(1, 1), res_blocks=1), 0)
    encoder = new_image_encoder(ClipShape(80, 1, 80, 28, 56, 8), 0)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (2, 4, 16, 16, 3), generator=generator).to(torch.uint8)
    monkeypatch.setattr(training_data, "ENCODE_PIXELS", at_once * 256)
    monkeypatch.setattr(training_data, "clip_pixels", lambda p: clip_pixels(p, 56))
    told = []

    def tell(step, total, **_):
        told.append((step, total))

    latents = encode_latents(vae, pictures, tell)
    tokens = encode_tokens(encoder, pictures)
    assert told[-1] == (8, 8)
    with torch.no_grad():
        for i, j in itertools.product(range(2), range(4)):
            frame = pictures[i, j].float()
            mean = vae.encoder((frame / 127.5 - 1).movedim(-1, 0)[None])[0, :4]
            torch.testing.assert_close(latents[i, j], mean.half(), rtol=1e-2, atol=1e-3)
            token = encoder(pixel_values=clip_pixels(frame[None] / 255, 56)).image_embeds[0]
            torch.testing.assert_close(tokens[i, j], token.half(), rtol=1e-2, atol=1e-3)
