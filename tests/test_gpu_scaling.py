"""The arithmetic of many GPUs, against numbers worked out by hand."""

from dataclasses import replace

import pytest

from scripts import benchmark
from scripts.benchmarks.gpu_scaling import (
    RASTERS,
    Rates,
    loader_rate,
    ring_seconds,
    run_scaling,
    tiles_of,
    update_seconds,
)

RATES = Rates(peak=100e12, share=0.5, link=100e9, network=10e9, loader=1000.0, overlaps=False)


def test_a_ring_sends_nearly_twice_the_bytes():
    """400 MB: nothing for one GPU; 2 x 7/8 x 4 ms on a node's links; 2 x 63/64 x 40 ms on the network."""
    assert ring_seconds(400e6, gpus=1, rates=RATES) == 0
    assert ring_seconds(400e6, gpus=8, rates=RATES) == pytest.approx(0.007)
    assert ring_seconds(400e6, gpus=64, rates=RATES) == pytest.approx(0.07875)


@pytest.mark.parametrize(
    ("size", "overlap", "tiles"),
    [(2048, 0.0, 5**2), (2048, 0.75, 18**2), (20_000, 0.0, 52**2), (20_000, 0.75, 205**2), (384, 0.75, 1), (383, 0, 0)],
)
def test_tiles_of_a_raster(size, overlap, tiles):
    """Windows of 384 pixels, every 384 or every 96: (2048 - 384) / 96 = 17.3, so 18 along an edge."""
    assert tiles_of(size, edge=384, overlap=overlap) == tiles


def test_an_update_takes_the_longest_or_the_sum():
    """512 tiles of 100 GFLOP on 8 GPUs at 50 TFLOP/s: 64 x 2 ms; 7 ms of network; 64 tiles read in 64 ms."""
    work = {"flops": 100e9, "gradient_bytes": 400e6, "gpus": 8}
    expected = {"compute": 0.128, "network": 0.007, "loader": 0.064, "all": 0.135}
    assert update_seconds(512, **work, rates=RATES) == pytest.approx(expected)
    together = replace(RATES, overlaps=True)
    assert update_seconds(512, **work, rates=together)["all"] == pytest.approx(0.128)
    assert update_seconds(512, **work, rates=replace(together, loader=100.0))["all"] == pytest.approx(0.64)
    assert update_seconds(9, **work, rates=together)["compute"] == pytest.approx(0.004)  # two tiles on the busiest


def arguments(*flags):
    """The options as read from a command line."""
    return benchmark.parse_arguments(["scaling", *flags])


def test_a_table_by_hand():
    """Twice as many GPUs that only compute: half the time, the same GPU hours and cost."""
    flags = "--models tiny --layers 2 --input_size 32 --rasters state --overlap 0 --gpus 1 2 --epochs 3600 --price 2"
    rates = "--peak_tflops 1 --shares 0.5 0.5 --link_gb_s 1e9 --loader_memory 1e9"
    one, two = run_scaling(arguments(*flags.split(), *rates.split()))["rows"]
    assert one["tiles"] == (20_000 // 128) ** 2 == 24_336
    # 24336 = 47 x 512 + 272, so that every update is shared out evenly.
    assert one["hours_good"] == one["hours_bad"] == pytest.approx(24_336 * one["gflop_a_tile"] / 500)
    assert two["hours_good"] == pytest.approx(one["hours_good"] / 2) and two["limits_good"] == "compute"
    assert two["cost_good"] == pytest.approx(one["cost_good"]) == pytest.approx(2 * one["hours_good"])
    assert one["gradient_mb"] == two["gradient_mb"] > 1


def test_layers_that_do_not_fit_are_read_from_files():
    """40,000 x 40,000 x 4 bytes x 8 processes are 47.7 GiB a layer: four fit 256 GiB, ten do not."""
    args = arguments()
    assert loader_rate(args, size=40_000, layers=4) == pytest.approx(6550 / 2)
    assert loader_rate(args, size=40_000, layers=10) == pytest.approx(256 / 5)
    assert loader_rate(arguments("--input_size", "48"), size=2_048, layers=2) == pytest.approx(4 * 6550)


def test_an_unknown_raster_is_refused(capsys):
    assert benchmark.main(["scaling", "--rasters", "moon"]) == 2
    assert f"--rasters moon: unknown, expected one or more of {', '.join(RASTERS)}" in capsys.readouterr().err
