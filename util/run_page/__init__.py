"""The page of a run, report.html: one file without a network that says what a run read, did and cost, and what is next.

`page.py` writes it as the run goes, from `record.py` (report.json: what no other file holds) and the files of the run,
which `pretraining.py`, `finetuning.py`, `maps.py` and `studies.py` read into the blocks of `content.py`; `charts.py`
turns those into lines and ticks, and `render.py` fills the template.
"""
