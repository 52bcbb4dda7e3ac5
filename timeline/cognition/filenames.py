"""How files and folders are named in a text, and what is wanted of them: their content, or a list of names.

Knows that `node.js`, `and/or` and `3.11` are no files, that "how do I list files in Linux" asks for no listing, and
"what is package.json used for" for no content.
"""

from __future__ import annotations

import re
from pathlib import Path

from msgspec import Struct

from timeline.cognition.addresses import urls_masked
from timeline.cognition.phrases import Phrases, about_words, clauses

__all__ = ["PathInText", "Wish", "asks_for_listing", "content_wanted", "listing_wanted", "paths_in"]


class PathInText(Struct, frozen=True):
    """A word of the text that names a file or folder.

    Args:
        path: As written, without quotes.
        exists: It is there, seen from the folder.
        folder: It is a folder, or looks like one.
    """

    path: str
    exists: bool
    folder: bool = False


_EXTENSIONS = (
    "txt|md|markdown|rst|py|pyi|ipynb|js|mjs|ts|tsx|jsx|json|jsonl|ndjson|yaml|yml|toml|ini|cfg|conf|csv|tsv|log|html|htm|"
    "css|scss|xml|svg|sql|sh|bash|zsh|bat|ps1|rs|go|c|h|cpp|cc|hpp|java|kt|swift|rb|php|pl|lua|r|jl|scala|tex|bib|env|"
    "lock|diff|patch|org|adoc|pdf|docx?|xlsx?|pptx?|odt|rtf|gradle|properties|vue|dart|ex|exs|hs|ml|proto|tf|srt"
)
_FILE_WORD = re.compile(
    rf"""(?<![\w@/.~$-])(?:
        (?P<quoted>["'`“‘])(?P<inner>[^"'`“”‘’\n]*?(?:\.(?:{_EXTENSIONS})|/[^"'`“”‘’\n]*))["'`”’]
      | (?P<rooted>(?:~|\.\.?)?/[\w.@~+-]+(?:/[\w.@+-]*)*|~/|\./|\.\./?)
      | (?P<nested>[\w.@+-]+(?:/[\w.@+-]+)*/[\w.@+-]*)
      | (?P<name>[\w@+-][\w.@+-]*\.(?:{_EXTENSIONS}))
      | (?P<dotted>\.(?:gitignore|env|bashrc|zshrc|vimrc|editorconfig|dockerignore|profile|npmrc)[\w.]*)
      | (?P<known>README|LICENSE|LICENCE|CHANGELOG|CONTRIBUTING|Makefile|makefile|Dockerfile|Gemfile|Procfile|Jenkinsfile|
          TODO|AUTHORS|NOTICE|Vagrantfile|CMakeLists)
    )(?![\w/@-])""",
    re.VERBOSE | re.IGNORECASE,
)
_FRAMEWORKS = Phrases(
    r"^(?:node|next|nuxt|vue|react|three|d3|express|angular|ember|backbone|chart|alpine|moment|p5|discord|socket|deno|"
    r"electron|nest|gatsby|svelte|solid|knockout|passport|day|plotly|brain|tensorflow|require|underscore|handlebars)\.(?:js|ts)$"
)
_NOT_PATHS = Phrases(
    r"^(?:and/or|he/she|she/he|his/her|him/her|s/he|yes/no|either/or|tcp/ip|input/output|i/o|read/write|true/false|on/off|"
    r"client/server|a/c|n/a|w/o?|c/c|km/h|m/s|ci/cd|ui/ux|ac/dc|a/b|\d+/\d+|[a-z]{1,3}/[a-z]{1,3}|\.+|/+)$"
)


def paths_in(text: str, folder: Path | None = None) -> tuple[PathInText, ...]:
    """The files and folders that a text names: those that exist, and words that look like one.

    Args:
        text: The user's words.
        folder: Where relative paths begin; None to judge by their looks alone.
    """
    bare = urls_masked(text)
    found: dict[str, PathInText] = {}
    for match in _FILE_WORD.finditer(bare):
        path = match["inner"] or match.group().strip("\"'`“”‘’")
        path = path.rstrip(".,;:!?")
        if not path or path in found:
            continue
        exists, is_folder = _look(folder, path)
        if not exists and (
            _FRAMEWORKS.search(path) or _NOT_PATHS.search(path) or (match["nested"] and not _looks(path))
        ):
            continue
        if match["known"] and not exists and not match.group().isupper() and match.group()[0].islower():
            continue
        found[path] = PathInText(path, exists, is_folder or path.endswith("/"))
    if folder is not None:
        # Any word may be a folder's or a file's name; those that are in no dictionary count alone.
        for word in re.findall(r"[\w.@+-]+", _FILE_WORD.sub(" ", bare)):
            if len(word) > 2 and word not in found and re.search(r"[._\d-]", word.strip(".-_")):  # noqa: PLR2004
                exists, is_folder = _look(folder, word.rstrip("."))
                if exists:
                    found[word] = PathInText(word.rstrip("."), exists=True, folder=is_folder)
    return tuple(found.values())


def _looks(path: str) -> bool:
    """Whether `a/b` looks like a path more than like `and/or`: deeper, with a dot, or with a slash at its end."""
    last = path.rsplit("/", 1)[-1]
    return "." in last or not last or path.count("/") > 1 or path.split("/", maxsplit=1)[0] in _FOLDERS


_FOLDERS = (
    "src",
    "docs",
    "doc",
    "tests",
    "test",
    "lib",
    "app",
    "bin",
    "etc",
    "home",
    "tmp",
    "config",
    "scripts",
    "data",
)


def _look(folder: Path | None, path: str) -> tuple[bool, bool]:
    if folder is None:
        return False, False
    try:
        whole = folder / Path(path).expanduser()
        return whole.exists(), whole.is_dir()
    except (OSError, ValueError, RuntimeError):
        return False, False


_READ = Phrases(
    r"\b(?:read|open|show|display|print|cat|head|tail|view|see|load|summari[sz]e|summary|tl;?dr|review|explain|analy[sz]e|"
    r"parse|look (?:at|in|into|inside|through)|check|inspect|quote|translate|proofread|count|contents?|inside|lines?|"
    r"words?|say|says|said|contain|contains|written|according to|based on|from|find|search|grep|in|of|tell me about|"
    r"describe|what(?:'s| is| are| does)|extract|list|compare|key points|mention\w*|does|do|is|are|use|go through|go over|"
    r"fetch|get|peek|dump|output|give|which|how many|any)\b"
)
_NOT_READ = Phrases(
    r"\bhow (?:do|can|to|would|should|does|did)\b|\b(?:what|which) (?:is|are|'s) (?:an? |the )?(?:purpose|use|point|meaning|"
    r"difference|format|syntax|role)\b|\bdifference between\b|\bwhat(?:'s| is| are| does) (?:an? |the )?[\w.]+(?: file)?"
    r"(?: (?:used )?for| do| mean| stand for)?\s*[?.!]*$(?<!here\?)|"
    r"\bwhat(?:'s| is| are) an? |\b(?:create|delete|remove|rename|move|copy|generate|touch|edit|modify|append|overwrite|"
    r"save|upload|download|install|commit|convert)\b(?! .*\b(?:read|summari[sz]e|show)\b)|"
    r"\b(?:write|put|add|store|export|dump)\b.*\b(?:to|into|in|as|called|named)\b|\bwrite (?:an?|some|me)\b(?!.*\bsummary\b)|"
    r"\b(?:story|poem|song|joke)\b|\bshould i\b|\bwhy (?:do|does|is|are|did|would)\b|\bin general\b|\btypical|\bin (?:python|"
    r"javascript|java|bash|rust|go|linux|windows|c\+\+)\b|\bwho (?:invented|created)\b|\bbest practice"
)


_FILE_IN_WORDS = Phrases(
    r"\b(?:read|open|show|display|print|cat|summari[sz]e|view|see|check|look (?:at|in|into)|contents? of|what(?:'s| is) in|"
    r"what does)\b(?: \w+){0,3}? (?:(?:the|my|our|this) )(?:\w+ ){0,2}?(?:file|readme|notes|changelog|licen[sc]e|makefile|"
    r"dockerfile|gitignore|config(?:uration)?|log|csv|todo list|todo|document)\b"
)


_SOME_FILE = Phrases(r"\b(?:file|readme|notes|changelog|document|todo list|log file|spreadsheet)\b")


class Wish(Struct, frozen=True):
    """That a file's content or a listing is wanted.

    Args:
        why: In words.
        path: Of what, as written; None where the text doesn't say.
        certain: Beyond doubt.
    """

    why: str
    path: str | None
    certain: bool


def content_wanted(text: str, folder: Path | None = None) -> Wish | None:
    """Whether the content of a file is wanted, and of which.

    Args:
        text: The user's words.
        folder: Where relative paths begin; None to judge by their looks alone.
    """
    doubtful: Wish | None = None
    for clause in clauses(text):
        paths = [path for path in paths_in(clause, folder) if not path.folder]
        if asks_for_listing(clause):
            continue
        kept_off = bool(_NOT_READ.search(clause))
        if paths:
            best = max(paths, key=lambda path: path.exists)
            certain = not kept_off and (best.exists or bool(_READ.search(clause)))
            why = f"a file that is there: {best.path}" if best.exists else f"a file's name: {best.path}"
            wish = Wish(why, best.path, certain)
        elif kept_off or about_words(clause):
            continue
        elif _FILE_IN_WORDS.search(clause):
            wish = Wish("a file is to be read, without its exact name", None, certain=False)
        elif _SOME_FILE.search(clause):
            wish = Wish("a file is spoken of", None, certain=False)
        else:
            continue
        if wish.certain:
            return wish
        if doubtful is None and (not kept_off or (paths and best.exists)):
            doubtful = wish
    return doubtful


# ------------------------------------------------------------------ listings

_FILES = (
    r"(?:[\w.*]+ )?(?:files?|folders?|director(?:y|ies)|sub-?(?:folders?|directories)|documents?|scripts?|modules|pdfs?|images|"
    r"markdowns?|csvs?|things|stuff|items|entries)"
)
_HERE = (
    r"(?:here|(?:in|inside|within|under|of|from|at|into) (?:(?:the|this|my|our|your) )?(?:[\w./~-]+ )?(?:folders?|"
    r"director(?:y|ies)|dir|cwd|workspace|repo(?:sitory)?|project|here|tree)|(?:in|inside|under|of|within) (?![\w./~-]*\.\w{1,5}\b)[\w.~-]*/[\w./-]*)"
)
_NAMES_LISTING = Phrases(
    rf"\b(?:list|show|display|print|give|tell|see|enumerate|get|find|view)\b(?: (?:me|us|all|of|the|my|our|your|every|any|"
    rf"out|up|a|list|names|name|current|these|available|contents|existing)){{0,6}} {_FILES}\b(?! (?:called|named)\b.*\bsays?\b)|"
    rf"\b(?:what|which|any)(?:'s| is| are)?(?: (?:the|all|other|kind of|sort of|types? of|names of the|my))?(?: \w+)? ?"
    rf"\b(?:files?|folders?|director(?:y|ies)|documents?|scripts?|subfolders?)\b(?: \w+){{0,4}}? "
    rf"(?:are|is|do|does|exist|there|{_HERE}|can|live|have|we)\b|"
    rf"\bhow many (?:\S+ )?{_FILES}\b|\b(?:what(?:'s| is| are| do we have| do i have| have (?:i|we) got| can (?:i|you|we) (?:see|find)| all is| else is)|show|list|see|display|tell me what(?:'s| is))"
    rf"(?: (?:me|everything|whatever|all|the|contents?|of|things?|stuff|what(?:'s| is)|inside|that(?:'s| is)|there|stored|lying|located))* {_HERE}(?!\w)|"
    rf"\b(?:is|are) there (?:an?|any|some)(?: \S+)? ?{_FILES}\b|\bdo (?:i|we) have (?:an?|any|some)(?: \S+)? ?(?:files?|folders?|readme)\b|"
    rf"\b(?:is|are) there (?:an?|any|some) [\w. *-]+ {_HERE}(?![\w.])|\bdo (?:i|we) have (?:an?|any|some) [\w. *-]+ {_HERE}(?!\w)|"
    r"\bfind (?:all|every|any|me all)?(?: \w+)* ?(?:\*?\.[a-z]{1,5}\b|[a-z]+ files\b)|\b(?:files|folders|contents?|everything|stuff) (?:in|inside|under|of) (?:here|the (?:current )?(?:folder|directory)|this)\b|"
    r"^\W*(?:ls|dir|tree|ll|pwd)\b(?:\s+-\w+)*(?:\s+[\w./~-]+)?\W*$|\b(?:directory|folder|file) (?:listing|tree|contents|structure|list)\b|"
    r"\blist (?:the )?(?:contents? of )?(?:the )?[\w.~-]*/(?:[\w./-]*)|\blist (?:everything|all) (?:here|in|inside|under)\b|"
    r"\b(?:run|do|execute|type) (?:an? )?`?ls\b|\bwhat(?:'s| is) (?:in )?(?:here|(?:my |the )?(?:cwd|current (?:folder|directory)))\b"
)
_NOT_LISTING = Phrases(
    r"\bhow (?:do|can|to|would|should|does)\b|\bcommand\b|\bin (?:python|bash|linux|java\w*|rust|go|windows|powershell|git|django|"
    r"rails|node|unix|macos|a (?:typical|standard|normal|new|linux|react|django|rust))\b|\bwhat(?:'s| is) an? \b|"
    r"\b(?:needed|required|necessary) (?:to|for)\b|\bshould (?:i|we|be)\b|\btypical|\bcourt|\blegal|\btax\b|\bvisa\b|"
    r"\b(?:explain|describe|define|create|make|delete|write|recommend|suggest|best|django|react|rails)\b|\bdoes git\b|\bfilesystem hierarchy\b|"
    r"\bmean\b|\bfor (?:my|an?) (?:visa|passport|mortgage|loan|application)\b"
)
_WHERE = Phrases(
    r"\b(?:in|inside|under|of|within|from|ls|dir|tree)\s+(?:the\s+|my\s+|our\s+)?[\"'`]?(?P<path>[\w./~-]+?)[\"'`]?(?:\s+(?:folder|director\w+|dir)\b|/?\W*$)"
)
_NO_FOLDER = (
    "this",
    "the",
    "my",
    "our",
    "current",
    "here",
    "it",
    "there",
    "total",
    "all",
    "detail",
    "home",
    "working",
    "project",
    "same",
    "folder",
    "directory",
)


def asks_for_listing(text: str) -> bool:
    """Whether the names of files or folders are asked for, on this machine and not in general.

    Args:
        text: The user's words.
    """
    return any(_listing(clause) for clause in clauses(text))


def _listing(clause: str) -> bool:
    return bool(_NAMES_LISTING.search(clause)) and not _NOT_LISTING.search(clause) and not about_words(clause)


_SOME_FOLDER = Phrases(r"\b(?:files|folders?|directory|directories|documents|cwd|workspace)\b")


def listing_wanted(text: str, folder: Path | None = None) -> Wish | None:
    """Whether a list of files is wanted, and of which folder.

    Args:
        text: The user's words.
        folder: Where relative paths begin; None to judge by their looks alone.
    """
    doubtful: Wish | None = None
    for clause in clauses(text):
        if _NOT_LISTING.search(clause) or about_words(clause):
            continue
        named = next((path for path in paths_in(clause, folder) if path.folder), None)
        if _listing(clause):
            where = _WHERE.search(clause)
            path = named.path if named else where["path"] if where else None
            path = None if path and path.lower() in _NO_FOLDER else path
            return Wish("a listing of files is asked for", path, certain=True)
        if named and named.exists:
            return Wish(f"a folder that is there: {named.path}", named.path, certain=True)
        if doubtful is None and (named or _SOME_FOLDER.search(clause)):
            why = f"a folder's name: {named.path}" if named else "files or folders are spoken of"
            doubtful = Wish(why, named.path if named else None, certain=False)
    return doubtful
