"""Wikipedia markup to plain prose.

Not a parser: prose paragraphs are kept, everything else (templates, tables, references, headings,
lists, galleries, formulae, the sections after the article) is dropped, and the gaps that this
leaves in a sentence (empty brackets, doubled spaces) are closed.
"""

from __future__ import annotations

import bz2
import html
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from io import BytesIO

_END_SECTIONS = re.compile(
    r"(?mi)^==\s*(see also|references?|notes?|notes and references|footnotes|citations|sources"
    r"|external links|further reading|bibliography|works cited|selected bibliography|literature)"
    r"\s*==\s*$"
)
_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
_MEDIA = re.compile(
    r"\[\[\s*(?:file|image|category|[a-z]{2,3}|media)\s*:(?:[^\[\]]|\[\[[^\[\]]*\]\]"
    r"|\[[^\[\]]*\])*\]\]",
    re.I,
)
_KEEP_LAST = set(
    "lang nowrap transl transliteration abbr quote blockquote cquote smallcaps sc lang-en".split()
)


def articles(dump: bytes) -> Iterator[tuple[str, str]]:
    """(title, prose) of every article in a bz2-compressed MediaWiki export; redirects are
    skipped."""
    title = ""
    for _, node in ET.iterparse(BytesIO(bz2.decompress(dump))):
        tag = node.tag.rpartition("}")[2]
        if tag == "title":
            title = node.text or ""
        elif tag == "text" and ":" not in title and not (node.text or "").startswith("#"):
            yield title, prose(node.text or "")
        elif tag == "page":
            node.clear()


def _inline(match: re.Match[str]) -> str:
    """The words that a template stands for in a sentence, if it does."""
    name, *args = (part.strip() for part in match[1].split("|"))
    name, args = name.lower(), [a for a in args if "=" not in a]
    if name in ("convert", "cvt") and len(args) >= 2:
        if args[1] in ("to", "-", "–", "and") and len(args) >= 4:
            return f"{args[0]} {args[1]} {args[2]} {args[3]}"
        return f"{args[0]} {args[1]}"
    if name in _KEEP_LAST and args:
        return args[-1] if name.startswith(("lang", "trans")) else args[0]
    if name in ("circa", "c.") and args:
        return f"c. {args[0]}"
    return ""


def prose(markup: str) -> str:
    """Plain paragraphs, separated by blank lines, of an article in wiki markup."""
    text = html.unescape(markup)
    end = _END_SECTIONS.search(text)
    text = text[: end.start()] if end else text
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"<ref[^>]*/>", "", text, flags=re.I)
    text = re.sub(r"<ref[^>]*>.*?</ref>", "", text, flags=re.S | re.I)
    text = re.sub(
        r"<(math|chem|gallery|timeline|code|source|syntaxhighlight|pre|score|imagemap|table|div)\b"
        r".*?</\1>",
        "\x00",
        text,
        flags=re.S | re.I,
    )
    before = None
    while before != text:  # innermost templates first
        before, text = text, _TEMPLATE.sub(_inline, text)
    text = re.sub(r"(?s)^\{\|.*?^\|\}", "", text, flags=re.M)
    before = None
    while before != text:
        before, text = text, _MEDIA.sub("", text)
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
    text = re.sub(r"\[(?:https?:|ftp:|//)\S*\s*([^\]]*)\]", r"\1", text)
    text = re.sub(r"<br\s*/?>", " ", text, flags=re.I)
    text = re.sub(r"</?[a-z][^<>]*>", "", text, flags=re.I)
    text = re.sub(r"'{2,}", "", text)
    return "\n\n".join(filter(None, map(_paragraph, text.split("\n"))))


def _paragraph(line: str) -> str:
    """The line without the gaps of dropped markup, if it is a paragraph of prose; else empty."""
    line = line.strip()
    if not line or line[0] in "*#:;=|!{}<>" or re.search(r"[\x00{}|\[\]<>]|https?:|__", line):
        return ""
    line = html.unescape(line)
    line = re.sub(r"[\xa0\u2009\u202f\u200a\t]", " ", line)
    line = re.sub(r"[\u200b-\u200f\u2060\ufeff\xad]", "", line)
    before = None
    while before != line:
        before = line
        line = re.sub(r"\(\s*[,;:–-]+\s*", "(", line)
        line = re.sub(r"\s*[,;:–-]*\s*\)", ")", line)
        line = re.sub(r"\(\s*(?:or|and|also|pronounced|IPA|listen)?\s*\)|\"\"|“”", "", line)
    line = re.sub(r"\s+([,.;:!?)])", r"\1", line)
    line = re.sub(r"\s{2,}", " ", line).strip()
    if len(line) < 80 or not re.search(r"[.!?][\"'”’)]*$", line):
        return ""
    return line
