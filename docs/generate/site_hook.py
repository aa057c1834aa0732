"""What turns docs/ into a site: pages that stand elsewhere, the order of all pages, and links that leave the site.

A hook of MkDocs (mkdocs.yml). The pages themselves are written for a forge, where a link may lead to any file.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {  # path in the repository to the page of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "export/README.md": "project/running-exports.md",
    "csrc/README.md": "project/csrc.md",
}
LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"^(```.*?^```$)", re.DOTALL | re.MULTILINE)


def on_config(config: Any) -> Any:
    """Take the order of the pages from the lists in docs/README.md."""
    config["nav"] = navigation((ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that stand outside of docs/."""
    from mkdocs.structure.files import File

    for path, page in ELSEWHERE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=mended(text, path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Mend the links of a page of docs/."""
    source = page.file.src_uri
    return markdown if source in ELSEWHERE.values() else mended(markdown, f"docs/{source}")


def navigation(index: str) -> list[Any]:
    """Return the pages by section: every heading of the index with the pages that the list below it links to."""
    entries: list[Any] = [{"Home": "index.md"}]
    seen: set[str] = set()
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        pages = [page_of(match["target"].partition("#")[0], "docs/README.md") for match in LINK.finditer(body)]
        pages = [page for page in dict.fromkeys(pages) if page and page not in seen]
        seen.update(pages)
        if pages:
            entries.append({title.strip(): pages})
    return [*entries, {"Changes": "project/changelog.md"}]


def mended(markdown: str, path: str) -> str:
    """Return a page with its links as they are on the site; a link to a file that is no page becomes its text."""
    here = page_of(path, "") or ""

    def link(match: re.Match[str]) -> str:
        target, mark, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", match["target"]) or not target:
            return match[0]
        page = page_of(target, path)
        if page is None:
            return match["text"]
        return f"[{match['text']}]({posixpath.relpath(page, posixpath.dirname(here) or '.')}{mark}{anchor})"

    parts = FENCE.split(markdown)
    return "".join(part if FENCE.fullmatch(part) else LINK.sub(link, part) for part in parts)


def page_of(target: str, path: str) -> str | None:
    """Return the page of the site that a link leads to, from a file of the repository; None: to none."""
    found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if found == "docs/README.md":
        return "index.md"
    if found in ELSEWHERE:
        return ELSEWHERE[found]
    return found.removeprefix("docs/") if found.startswith("docs/") and found.endswith(".md") else None
