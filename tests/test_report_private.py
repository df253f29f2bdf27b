"""What a report keeps to itself, and what hostile text cannot do in it."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections import Counter
from pathlib import Path

from report_pages import EVIL, Page, made_up, write_evil, write_run

from rewards.similarity import normalize
from srl.logs.report.report import write_report

# ---- what is nobody else's business -------------------------------------------------------------


def test_neither_places_nor_secrets(tmp_path: Path) -> None:
    folders = []
    for k, name in enumerate(("one", "two")):
        folders.append(write_run(tmp_path / name, made_up(2)))
        settings = {
            "model": f"/home/somebody/{k}/tiny",
            "data": {"path": f"/home/somebody/{k}/data-{k}.jsonl"},
            "rewards": {"/home/somebody/mine.py:own": 1.0},
            "hub_token": "hf_SECRET",
        }
        (folders[-1] / "config.yaml").write_text(json.dumps(settings))
        (folders[-1] / "command.txt").write_text(
            "/home/somebody/bin/python -m srl train --config /home/somebody/a.yaml "
            "--hub_token 'hf_SECRET'\n"
        )
    page = Page(write_report(*folders).path.read_text(encoding="utf-8"))
    assert "python -m srl train --config a.yaml --hub_token ..." in page.words
    data = ["data.path", "data-0.jsonl", "data-1.jsonl"]
    assert page.table("settings").rows == [
        ["model", "tiny", "tiny"],
        data,
        ["rewards.mine.py:own", "1.0", "1.0"],
        ["hub_token", "...", "..."],
    ]
    # What differs in its folder alone is said to differ.
    assert page.table("settings that differ").rows == [["model", "tiny", "tiny"], data]
    for word in ("somebody", "SECRET", str(tmp_path)):
        assert word not in page.source


# ---- hostile text -------------------------------------------------------------------------------


def elements(page: Page) -> Counter[str]:
    return Counter(tag for tag, _ in page.tags)


def test_hostile_text_makes_no_elements(tmp_path: Path) -> None:
    page = Page(write_report(write_evil(tmp_path)).path.read_text(encoding="utf-8"))
    found = elements(page)
    assert found["script"] == 2
    assert found["style"] == 1
    assert not {"img", "iframe", "object", "embed", "link", "base"} & found.keys()
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert "style" not in attributes
        for name in ("href", "src", "action", "formaction"):
            assert str(attributes.get(name, "#")).startswith("#")
    # All of it is there, as text.
    for evil in EVIL[:4]:
        assert evil in page.words
    for hidden in ("\u202e", "\u2066", "\u200b", "\ufeff", "\0", "\x1b", "\x07"):
        assert hidden not in page.source
    assert "\\u{202e}evil\\u{2066}\\u{200b}\\u{feff}" in page.words
    assert "nul\\u{0} esc\\u{1b}[31m bell\\u{7} \\u{d83d} alone" in page.words
    (run,) = page.runs
    assert {group["rollouts"][0]["action"] for group in run["groups"]} == {
        normalize(f"{evil} action") for evil in EVIL
    }


def test_the_policy_of_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", made_up(2))
    page = Page(write_report(run).path.read_text(encoding="utf-8"))
    source = page.source
    head = source.index("<head>") + len("<head>")
    assert source[head:].lstrip().startswith('<meta http-equiv="Content-Security-Policy"')
    (policy,) = [a["content"] for _, a in page.tags if "http-equiv" in a]
    style = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    script = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    assert (len(style), len(script)) == (1, 1)
    hashes = [hashlib.sha256(part.encode()).digest() for part in (*script, *style)]
    digests = [b64encode(digest).decode() for digest in hashes]
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digests[0]}'; style-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert "http:" not in source.replace("http://www.w3.org", "")
    assert "https:" not in source
    for method in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert method not in script[0]
