"""The documentation as a site: every page is on it, and every link leads to a page and a place that exist."""

import html.parser
import os
import posixpath
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import doc_pages
import pytest
import site_hook
from doc_pages import ROOT


class Links(html.parser.HTMLParser):
    """The links of a page, and the names by which it is linked to."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.names = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if given.get("id"):
            self.names.add(given["id"])
        for key in ("href", "src"):
            if given.get(key):
                self.targets.append(given[key])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of the built site, by their path."""
    pytest.importorskip("mkdocs", reason="pip install 'adapterx[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_on_the_site(site):
    pages = [page.removeprefix("docs/").removesuffix(".md") for page in doc_pages.PAGES if page.startswith("docs/")]
    assert all((site / page / "index.html").exists() for page in pages if page != "README")
    assert "Bottleneck adapters for frozen Transformers" in (site / "index.html").read_text(encoding="utf-8")


def test_links_of_the_site_lead_somewhere(site):
    pages = {path.relative_to(site).as_posix(): path for path in site.rglob("*.html") if path.name != "404.html"}
    read = {name: Links(path.read_text(encoding="utf-8")) for name, path in pages.items()}
    for name, page in read.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or target.startswith("data:"):
                assert parts.scheme != "file"
                continue
            path = (
                posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path))) if parts.path else name
            )
            path = f"{path}/index.html" if (site / path).is_dir() else path
            assert (site / path).exists(), f"{name} links to {target}"
            if parts.fragment and path in read and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in read[path].names, f"{name} links to {target}"


def test_links_that_leave_the_site_become_text():
    page = "[a](adapters.md#b), [`x.py`](../adapterx/x.py), [c](../CONTRIBUTING.md), [d](https://example.org), [e](#f)"
    mended = "[a](adapters.md#b), `x.py`, [c](project/contributing.md), [d](https://example.org), [e](#f)"
    assert site_hook.mended(page, "docs/mixed.md") == mended
    assert site_hook.mended("[a](../adapters.md)", "docs/api/adapterx.md") == "[a](../adapters.md)"
    assert site_hook.mended("[a](docs/hub.md), [b](docs/README.md)", "README.md") == "[a](hub.md), [b](index.md)"
    assert site_hook.mended("[a](../README.md)", "export/README.md") == "[a](../index.md)"
    code = "```\n[a](../adapterx/x.py)\n```"
    assert site_hook.mended(code, "docs/mixed.md") == code


def test_the_order_of_the_pages():
    one, none, two = "- [a](a.md): x, [b](b.md#c)\n- [s](../setup.py)", "Words.", "- [a](a.md) [c](../CONTRIBUTING.md)"
    index = f"# T\n\n## One\n\n{one}\n\n## None\n\n{none}\n\n## Two\n\n{two}\n"
    assert site_hook.navigation(index) == [
        {"Home": "index.md"},
        {"One": ["a.md", "b.md"]},
        {"Two": ["project/contributing.md"]},
        {"Changes": "project/changelog.md"},
    ]
