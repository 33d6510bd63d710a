"""The page of a run in a real browser: no error, every picture loads, nothing wider than the window at 1280 and 400
pixels. Needs Chromium or Chrome.
"""

import html
import json
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
from matplotlib.image import imsave
from rasterio.crs import CRS

from datasets.ground.grid import Grid
from datasets.survey.overview import ground_map
from util.run_page.page import page_of
from util.run_page.record import RunRecord, Session

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")

LONG = "a_layer_whose_name_has_no_space_and_does_not_end_where_a_narrow_window_does"

LISTEN = """<script>
var problems = [];
window.addEventListener("error", e => problems.push(e.message || "not loaded: " + e.target.outerHTML), true);
</script>"""
TELL = """<script>
window.addEventListener("load", () => {
  const root = document.documentElement, images = [...document.images];
  const right = e => e.getBoundingClientRect().right, width = e => e.getBoundingClientRect().width;
  const height = e => e.getBoundingClientRect().height, all = names => [...document.querySelectorAll(names)];
  const own = all("body *").filter(e => !e.closest(".scroll, pre, .document table"));
  parent.postMessage(JSON.stringify({
    problems, width: window.innerWidth, client: root.clientWidth, scroll: root.scrollWidth, images: images.length,
    unloaded: images.filter(i => !i.complete || !i.naturalWidth).length,
    outside: own.filter(e => right(e) > root.clientWidth + 1).map(e => e.outerHTML.slice(0, 80)),
    empty: all("h1, h2, th, td, dd, img, svg").filter(e => !width(e)).map(e => e.outerHTML.slice(0, 80)),
    small: all("svg text").filter(e => height(e) < 8).length,
    drawn: all("svg path, svg rect").length,
  }), "*");
});
</script>"""
FRAME = """<!DOCTYPE html><title>frame</title><pre id="found"></pre><script>
window.addEventListener("message", e => document.getElementById("found").textContent = e.data);
</script><iframe src="page.html" style="border: 0; width: {width}px; height: 900px"></iframe>"""
"""Windows of Chromium are at least 500 pixels wide; a frame within one may be as narrow as a telephone."""


def opened(text, folder, *, width):
    """What a browser finds in a page, and what it writes to its console."""
    listening = text.replace("<head>", f"<head>{LISTEN}").replace("</body>", f"{TELL}</body>")
    (folder / "page.html").write_text(listening, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--enable-logging=stderr", "--v=0", f"--user-data-dir={folder / 'profile'}", "--hide-scrollbars"]
    command += ["--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, (folder / "frame.html").as_uri()], capture_output=True, text=True, timeout=240)
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, f"{done.stdout[:500]}\n{done.stderr[-2000:]}"
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console


def write_run(folder):
    """A pre-training and a product of inference in one folder, with long names, many layers and pictures."""
    layers = []
    for number in range(12):
        values = {"low": -1e-5, "high": 123456.789, "counts": list(range(32)), "values": 496}
        row = {"name": f"{LONG}_{number}", "file": f"/data/{LONG * 3}.tif", "kind": "continuous", "unit": "10^-5 SI"}
        row |= {"transform": "asinh", "group": number, "pixels": "123456 x 123456", "pixel": "12.5 m", "valid": 0.97}
        layers.append(row | {"scored": "1x 2x 4x", "histogram": values})
    grid = Grid(
        CRS.from_epsg(28354), left=500_000.0, top=6_000_000.0, resolution_x=100.0, resolution_y=100.0, rows=60, cols=90
    )
    ground = ground_map(grid, fraction=np.linspace(0, 1, 600).reshape(20, 30), cell=3)
    left, bottom, right, top = ground["bounds"]
    ground |= {"rectangles": [{"bounds": [left, bottom, (left + right) / 2, top], "name": "held-out block"}]}
    ground |= {"points": [{"name": "centre of a training tile", "places": [[left, top], [right, bottom]]}]}
    overview = {"layers": layers, "counts": [["training tiles", "1,138"]], "map": ground}
    warning = {"text": f"{LONG * 4} is not what it seems", "level": "warning", "time": 0.0, "times": 3}
    command = f"python -m main_pretrain --data_dir /data/{LONG * 3}"
    session = Session(time.time(), command, {"device": "cpu"}, "finished", time.time() + 60)
    names = [layer["name"] for layer in layers]
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        for epoch in range(1, 400):
            skill = {"rmse": 1.0, "rmse_mean": 2.0, "rmse_interpolation": 3.0, "skill": 1 - 1 / epoch}
            line = {"kind": "epoch", "epoch": epoch, "step": epoch, "train_loss": 1 / epoch, "val_loss": 2 / epoch}
            line |= {"val_tiles": 9, "val_views": 27, "seconds": epoch, "tiles_per_s": 5.0, "wait_share": 0.1}
            line |= {"lr": 1e-3, "peak_memory_mb": 100, "val": {name: {"1x": skill, "4x": skill} for name in names}}
            log.write(json.dumps(line) + "\n")
    for name in ("reconstruction-last", LONG):
        imsave(folder / f"{name}.png", np.random.default_rng(0).integers(0, 255, (300, 2400, 3), dtype=np.uint8))
    raster = {"name": LONG, "pixels": "1 x 1", "pixel": "1 m", "bands": f"1: {LONG}", "type": "uint8", "size": "1 MB"}
    facts = {"rasters": [raster], "project": "maps.qgs"}
    shared = {"overview": overview, "warnings": [warning]}
    return [
        RunRecord("main_pretrain", sessions=[session], **shared),
        RunRecord("main_inference", "embeddings", sessions=[session], facts=facts, **shared),
    ]


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("runs", [1, 2])
def test_a_browser_shows_all_of_a_page(tmp_path, width, runs):
    text = page_of(tmp_path, write_run(tmp_path)[:runs])
    found, console = opened(text, tmp_path, width=width)
    assert console == [] and found["problems"] == []
    assert found["width"] == width
    assert found["images"] == runs and found["unloaded"] == 0
    assert found["scroll"] <= found["client"] and found["outside"] == []
    assert found["empty"] == [] and found["small"] == 0 and found["drawn"] > 100


def test_the_browser_would_notice(tmp_path):
    text = page_of(tmp_path, write_run(tmp_path)[:1])
    broken = (
        '<img src="data:image/png;base64,AAAA" alt="x"><div style="width: 3000px">wide</div><script>nothing()</script>'
    )
    found, console = opened(text.replace("</main>", f"{broken}</main>"), tmp_path, width=1280)
    assert found["unloaded"] == 1 and found["scroll"] > found["client"]
    assert any("nothing is not defined" in line for line in console)
    assert any("nothing is not defined" in text for text in found["problems"])
