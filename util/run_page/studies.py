"""What the page of a study shows: its report, of which the study writes the text."""

from __future__ import annotations

import re
from pathlib import Path

import markdown
from markupsafe import Markup, escape

from util.run_page.common_sections import environment_rows, next_section, run_section, view_of, warnings_section
from util.run_page.content import Block, Document, Facts, Section, Table, Text, View
from util.run_page.pictures import picture_uri
from util.run_page.record import RunRecord

REPORT = "report.md"


def study_view(folder: Path, record: RunRecord) -> View:
    """The view of a study.

    Args:
        folder: its --output_dir.
        record: its record.
    """
    report = folder / REPORT
    body: list[Block] = [Text(["The report is written when the first programs are done and the study ends."])]
    if report.exists():
        body = [Document(document(report))]
    tasks = record.facts.get("tasks", [])
    rows = [[of["name"], of["state"], of.get("said", "")] for of in tasks]
    progress: list[Block] = [Table("Programs", ["program", "state", "message"], rows)] if rows else []
    environment = environment_rows(record)  # none where the report alone was written again
    cost: list[Block] = [Facts(environment)] if environment else []
    sections = [
        Section("Report", body),
        next_section(record, []),
        warnings_section(record),
        Section("Programs", progress),
        Section("Cost", cost),
        run_section(record),
    ]
    return view_of(record, record.facts.get("title") or "Is multi-scale pre-training worth its cost?", sections)


def document(path: Path) -> Markup:
    """A Markdown file as HTML: without its title, headings one level lower, pictures inside; HTML in it stays text."""
    text = re.sub(r"\A# [^\n]*\n", "", path.read_text(encoding="utf-8"))
    converter = markdown.Markdown(extensions=["tables", "fenced_code", "sane_lists"], output_format="html")
    converter.preprocessors.deregister("html_block")
    converter.inlinePatterns.deregister("html")
    html = converter.convert(text)
    for level in (4, 3, 2):
        html = re.sub(rf"(</?)h{level}>", rf"\1h{level + 1}>", html)

    def inside(found: re.Match[str]) -> str:
        uri = picture_uri(path.parent / found["src"])
        return f'<img alt="{found["alt"]}" src="{escape(uri)}">' if uri else found["alt"]

    html = re.sub(r'<img alt="(?P<alt>[^"]*)" src="(?P<src>[^"]*)"\s*/?>', inside, html)
    return Markup(html)
