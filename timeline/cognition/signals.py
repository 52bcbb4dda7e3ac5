"""What a text says by itself about the tools it needs: cheap, explainable, and rather silent than wrong.

Knows the phrases by which people ask for a sum, the date, a file, a listing, an earlier conversation or a page, and
those that only look like it: the time complexity, a date palm, 24/7, a phrase to be translated. How sums are written
stands in `arithmetic`; what people say about days and hours in `moments`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from timeline.cognition.arithmetic import Expression, expressions
from timeline.cognition.moments import asks_for_date_or_time
from timeline.cognition.numbers import numbers_in
from timeline.cognition.phrases import about_words, clauses, pattern

__all__ = [
    "BUILTIN",
    "PathInText",
    "Signal",
    "arithmetic",
    "asks_about_the_past",
    "asks_for_date_or_time",
    "asks_for_listing",
    "paths_in",
    "signals",
    "urls_in",
]


class Signal(Struct, frozen=True):
    """A cheap, explainable hint that a tool is meant.

    Args:
        tool: Its name.
        reason: Why, in words: `an arithmetic expression: 12*7`.
        arguments: Those the text itself gives, None where it gives none.
        certain: The text alone leaves no doubt.
    """

    tool: str
    reason: str
    arguments: dict[str, Any] | None = None
    certain: bool = False


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


# ------------------------------------------------------------------ sums

_RESULT_WORDS = frozenset(
    [
        "what",
        "what's",
        "whats",
        "is",
        "are",
        "how",
        "how's",
        "much",
        "many",
        "calculate",
        "compute",
        "evaluate",
        "solve",
        "work",
        "working",
        "out",
        "figure",
        "find",
        "tell",
        "me",
        "give",
        "gives",
        "please",
        "pls",
        "can",
        "could",
        "would",
        "you",
        "the",
        "result",
        "value",
        "answer",
        "sum",
        "of",
        "to",
        "hey",
        "hi",
        "hello",
        "ok",
        "okay",
        "so",
        "and",
        "also",
        "then",
        "do",
        "does",
        "get",
        "quick",
        "quickly",
        "math",
        "maths",
        "mathematics",
        "question",
        "for",
        "i",
        "i'd",
        "i'm",
        "need",
        "want",
        "know",
        "equal",
        "equals",
        "exactly",
        "exact",
        "help",
        "with",
        "my",
        "homework",
        "let's",
        "lets",
        "come",
        "comes",
        "make",
        "makes",
        "simplify",
        "check",
        "by",
        "using",
        "calculator",
        "use",
        "it",
        "will",
        "be",
        "when",
        "this",
        "that",
        "following",
        "expression",
        "like",
        "say",
        "just",
        "now",
        "total",
        "in",
        "as",
        "decimal",
        "fraction",
        "percent",
        "percentage",
        "rounded",
        "round",
        "nearest",
        "whole",
        "place",
        "places",
        "number",
        "two",
        "thanks",
        "thank",
        "add",
        "up",
        "if",
        "hmm",
        "well",
        "er",
        "um",
        "uh",
        "right",
        "correct",
        "=",
        "?",
        "!",
        ",",
        ".",
        ":",
        ";",
        "-",
        "'",
        '"',
        "`",
        "(",
        ")",
        "%",
        "dollars",
        "dollar",
        "euros",
        "euro",
        "bucks",
        "cents",
        "usd",
        "eur",
        "$",
        "€",
        "£",
    ]
)
"""Words that may stand around a sum that is asked for; any other makes it a name or a quotation: `24/7 support`."""

_ARTICLE = pattern(r"\b(?:an?|the)\s*$")
_WISH = pattern(
    r"^\W*(?:(?:hey|hi|hello|ok(?:ay)?|so|and|also|then|please|pls|now|well|quick(?:ly)?|question)\W+)*"
    r"(?:what(?:'?s| is| are| does| do| would| will| was|\b)|how (?:much|many)|calculate|compute|evaluate|solve|work out|"
    r"figure out|find|tell me|give me|(?:can|could|would) you|i (?:need|want)|add|subtract|multiply|divide|split|share|"
    r"increase|decrease|reduce|take|is|are|does|do|use|if|let'?s|do the)\b"
)
_REASONS = pattern(r"\b(?:why|prove|proof|meme|famous|called|named|song|joke|story|history of|invented|mean by)\b")
_CALCULATE = pattern(
    r"^\W*(?:(?:please|can you|could you|now|then|and|help me|i need to|i want to|let'?s)\W+)*"
    r"(?:calculate|compute|work out|evaluate|solve|convert|simplify)\b"
)
_AMOUNT = pattern(
    r"\bhow (?:much|many|far|long|old|tall|fast)\b|\bwhat(?:'s| is| was| will be) (?:the|my|his|her|their) (?:\w+ ){0,2}"
    r"(?:total|cost|price|sum|average|area|perimeter|volume|speed|distance|interest|profit|change|discount|amount)\b"
)
_STORY = pattern(
    r"\b(?:each|per|every|apiece|costs?|cost|buys?|bought|have|has|had|give|gives|gave|eat|eats|ate|left|remain\w*|"
    r"altogether|in total|earns?|paid|pays?|spend|spent|sold|sells?|travels?|drives?|drove|radius|width|wide|length|"
    r"long|height|sides?|by|mph|km/h|rate|split|share|saves?|runs?|reads?)\b"
)


def arithmetic(text: str) -> str | None:
    """The first sum that is asked for, normalised for the calculator; None if none is.

    Args:
        text: The user's words.
    """
    found = [expression for expression, _ in _sums(text)]
    return found[0].text if found else None


def _sums(text: str) -> list[tuple[Expression, bool]]:
    """The sums that are asked for, and whether that is beyond doubt; those beyond doubt first."""
    found = [
        (expression, certain)
        for clause in clauses(text)
        for expression in expressions(clause)
        if (certain := _asked_for(clause, expression)) is not None
    ]
    return sorted(found, key=lambda item: not item[1])


def _asked_for(clause: str, expression: Expression) -> bool | None:
    before, after = clause[: expression.start], clause[expression.end :]
    # "a 15% tip on 56" asks for it as "15% of 56" does; "a 4x4" doesn't.
    before = _ARTICLE.sub("", before) if expression.plain else before
    around = f"{before} {after}".lower().replace("’", "'")
    words = re.findall(r"[\w']+|[^\w\s]", around)
    if all(word in _RESULT_WORDS or word.isdigit() for word in words):
        return True
    if not expression.plain or _REASONS.search(around) or about_words(around):
        return None
    return bool(_WISH.search(clause))


def _calculator(text: str, _folder: Path | None) -> Signal | None:
    sums = _sums(text)
    if sums:
        expression, certain = sums[0]
        return Signal(
            "calculator", f"an arithmetic expression: {expression.text}", {"expression": expression.text}, certain
        )
    for clause in clauses(text):
        if about_words(clause):
            continue
        if _CALCULATE.search(clause) and numbers_in(clause):
            return Signal("calculator", "something with numbers is to be calculated", certain=True)
    if len(numbers_in(text)) > 1 and _AMOUNT.search(text) and _STORY.search(text) and not about_words(text):
        return Signal("calculator", "two numbers, and an amount is asked for")
    return None


# ------------------------------------------------------------------ files

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
_FRAMEWORKS = pattern(
    r"^(?:node|next|nuxt|vue|react|three|d3|express|angular|ember|backbone|chart|alpine|moment|p5|discord|socket|deno|"
    r"electron|nest|gatsby|svelte|solid|knockout|passport|day|plotly|brain|tensorflow|require|underscore|handlebars)\.(?:js|ts)$"
)
_NOT_PATHS = pattern(
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
        if not exists and (_FRAMEWORKS.match(path) or _NOT_PATHS.match(path) or (match["nested"] and not _looks(path))):
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


_READ = pattern(
    r"\b(?:read|open|show|display|print|cat|head|tail|view|see|load|summari[sz]e|summary|tl;?dr|review|explain|analy[sz]e|"
    r"parse|look (?:at|in|into|inside|through)|check|inspect|quote|translate|proofread|count|contents?|inside|lines?|"
    r"words?|say|says|said|contain|contains|written|according to|based on|from|find|search|grep|in|of|tell me about|"
    r"describe|what(?:'s| is| are| does)|extract|list|compare|key points|mention\w*|does|do|is|are|use|go through|go over|"
    r"fetch|get|peek|dump|output|give|which|how many|any)\b"
)
_NOT_READ = pattern(
    r"\bhow (?:do|can|to|would|should|does|did)\b|\b(?:what|which) (?:is|are|'s) (?:an? |the )?(?:purpose|use|point|meaning|"
    r"difference|format|syntax|role)\b|\bdifference between\b|\bwhat(?:'s| is| are| does) (?:an? |the )?[\w.]+(?: file)?"
    r"(?: (?:used )?for| do| mean| stand for)?\s*[?.!]*$(?<!here\?)|"
    r"\bwhat(?:'s| is| are) an? |\b(?:create|delete|remove|rename|move|copy|generate|touch|edit|modify|append|overwrite|"
    r"save|upload|download|install|commit|convert)\b(?! .*\b(?:read|summari[sz]e|show)\b)|"
    r"\b(?:write|put|add|store|export|dump)\b.*\b(?:to|into|in|as|called|named)\b|\bwrite (?:an?|some|me)\b(?!.*\bsummary\b)|"
    r"\b(?:called|named)\b|\bshould i\b|\bwhy (?:do|does|is|are|did|would)\b|\bin general\b|\btypical|\bin (?:python|"
    r"javascript|java|bash|rust|go|linux|windows|c\+\+)\b|\bwho (?:invented|created)\b|\bbest practice"
)


def _read_file(text: str, folder: Path | None) -> Signal | None:
    guess: Signal | None = None
    for clause in clauses(text):
        paths = [path for path in paths_in(clause, folder) if not path.folder]
        if not paths or _NAMES_LISTING.search(clause):
            continue
        best = max(paths, key=lambda path: path.exists)
        arguments = {"path": best.path}
        kept_off = _NOT_READ.search(clause)
        reason = f"a file that is there: {best.path}" if best.exists else f"a file's name: {best.path}"
        if not kept_off and (best.exists or _READ.search(clause)):
            return Signal("read_file", reason, arguments, certain=True)
        if best.exists or not kept_off:
            guess = guess or Signal("read_file", reason, arguments)
    return guess or _file_in_words(text)


_FILE_IN_WORDS = pattern(
    r"\b(?:read|open|show|display|print|cat|summari[sz]e|view|see|check|look (?:at|in|into)|contents? of|what(?:'s| is) in|"
    r"what does)\b(?: \w+){0,3}? (?:(?:the|my|our|this) )(?:\w+ ){0,2}?(?:file|readme|notes|changelog|licen[sc]e|makefile|"
    r"dockerfile|gitignore|config(?:uration)?|log|csv|todo list|todo|document)\b"
)


def _file_in_words(text: str) -> Signal | None:
    for clause in clauses(text):
        if _FILE_IN_WORDS.search(clause) and not _NOT_READ.search(clause) and not about_words(clause):
            return Signal("read_file", "a file is to be read, without its exact name")
    return None


# ------------------------------------------------------------------ listings

_FILES = (
    r"(?:\w+ )?(?:files?|folders?|director(?:y|ies)|sub-?(?:folders?|directories)|documents?|scripts?|modules|pdfs?|images|"
    r"markdowns?|csvs?|things|stuff)"
)
_HERE = (
    r"(?:here|(?:in|inside|within|under|of|from|at|into) (?:(?:the|this|my|our|your) )?(?:[\w./~-]+ )?(?:folders?|"
    r"director(?:y|ies)|dir|cwd|workspace|repo(?:sitory)?|project|here|tree)|(?:in|inside|under|of|within) [\w.~-]*/[\w./-]*)"
)
_NAMES_LISTING = pattern(
    rf"\b(?:list|show|display|print|give|tell|see|enumerate|get|find|view)\b(?: (?:me|us|all|of|the|my|our|your|every|any|"
    rf"out|up|a|list|names|name|current|these|available|contents|existing)){{0,6}} {_FILES}\b(?! (?:called|named)\b.*\bsays?\b)|"
    rf"\b(?:what|which|any)(?:'s| is| are)?(?: (?:the|all|other|kind of|sort of|types? of|names of the|my))?(?: \w+)? ?"
    rf"\b(?:files?|folders?|director(?:y|ies)|documents?|scripts?|subfolders?)\b(?: \w+){{0,4}}? "
    rf"(?:are|is|do|does|exist|there|{_HERE}|can|live|have|we)\b|"
    rf"\bhow many (?:\S+ )?{_FILES}\b|\b(?:what(?:'s| is| are| do we have| do i have| all is)|show|list|see|display|tell me what(?:'s| is))"
    rf"(?: (?:me|everything|all|the|contents?|of|things?|stuff|what(?:'s| is)|inside|that(?:'s| is)|there|stored|lying|located))* {_HERE}(?!\w)|"
    rf"\b(?:is|are) there (?:an?|any|some)(?: \S+)? ?{_FILES}\b|\bdo (?:i|we) have (?:an?|any|some)(?: \S+)? ?(?:files?|folders?|readme)\b|"
    r"^\W*(?:ls|dir|tree|ll|pwd)\b(?:\s+-\w+)*(?:\s+[\w./~-]+)?\W*$|\b(?:directory|folder|file) (?:listing|tree|contents|structure|list)\b|"
    r"\blist (?:the )?(?:contents? of )?(?:the )?[\w.~-]*/(?:[\w./-]*)|\blist (?:everything|all) (?:here|in|inside|under)\b|"
    r"\b(?:run|do|execute|type) (?:an? )?`?ls\b|\bwhat(?:'s| is) (?:in )?(?:here|(?:my |the )?(?:cwd|current (?:folder|directory)))\b"
)
_NOT_LISTING = pattern(
    r"\bhow (?:do|can|to|would|should|does)\b|\bcommand\b|\bin (?:python|bash|linux|java\w*|rust|go|windows|powershell|git|django|"
    r"rails|node|unix|macos|a (?:typical|standard|normal|new|linux|react|django|rust))\b|\bwhat(?:'s| is) an? \b|"
    r"\b(?:needed|required|necessary) (?:to|for)\b|\bshould (?:i|we|be)\b|\btypical|\bcourt|\blegal|\btax\b|\bvisa\b|"
    r"\b(?:explain|describe|define|create|make|delete|write|recommend|suggest|best|django|react|rails)\b|\bdoes git\b|\bfilesystem hierarchy\b|"
    r"\bmean\b|\bfor (?:my|an?) (?:visa|passport|mortgage|loan|application)\b"
)
_WHERE = pattern(
    r"\b(?:in|inside|under|of|within|from|ls|dir|tree)\s+(?:the\s+|my\s+|our\s+)?[\"'`]?(?P<path>[\w./~-]+?)[\"'`]?(?:\s+(?:folder|director\w+|dir)\b|/?\W*$)"
)
_NO_FOLDER = frozenset(
    [
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
    ]
)


def asks_for_listing(text: str) -> bool:
    """Whether the names of files or folders are asked for, on this machine and not in general.

    Args:
        text: The user's words.
    """
    return any(_listing(clause) for clause in clauses(text))


def _listing(clause: str) -> bool:
    return bool(_NAMES_LISTING.search(clause)) and not _NOT_LISTING.search(clause) and not about_words(clause)


def _list_files(text: str, folder: Path | None) -> Signal | None:
    for clause in clauses(text):
        named = [path for path in paths_in(clause, folder) if path.folder]
        if _listing(clause):
            where = _WHERE.search(clause)
            path = named[0].path if named else where["path"] if where else None
            arguments = {"path": path} if path and path.lower() not in _NO_FOLDER else {}
            return Signal("list_files", "a listing of files is asked for", arguments, certain=True)
        if named and not _NOT_LISTING.search(clause) and not about_words(clause):
            return Signal("list_files", f"a folder: {named[0].path}", {"path": named[0].path}, certain=named[0].exists)
    return None


# ------------------------------------------------------------------ the past

_ASKED = r"(?:ask|tell|told|say|said|mention|talk|discuss|speak|spoke|chat|write|wrote|answer|suggest|recommend|advise|conclude|decide|agree|explain|promise|claim|call|cover|go over|recommend|describe|share|bring up|request|want|query|inquire|enquire|converse)"
_ASKED_ED = r"(?:asked|told|said|mentioned|talked|discussed|spoken|spoke|chatted|written|wrote|answered|suggested|recommended|advised|concluded|decided|agreed|explained|promised|claimed|called|covered|gone over|went over|described|shared|brought up|queried|inquired|enquired|conversed)"
_US = r"(?:i|we|you)"
_PAST = pattern(
    rf"\b(?:did|didn't) {_US}(?: \w+)?? {_ASKED}\b|\b(?:have|had|haven't|has) {_US} (?:\w+ )??{_ASKED_ED}\b|"
    rf"\b{_US}(?:'ve|'d| have| had)? (?:\w+ )?{_ASKED_ED} (?:\w+ )*?(?:earlier|before|previously|last (?:time|week|month|session|night)|yesterday|"
    r"a while ago|the other day|already|in (?:our|my|the|a|an) (?:last|previous|earlier|past))\b|"
    rf"\b(?:earlier|before|previously|last time|last week|last month|yesterday|a while ago|the other day|once)\b,? {_US}(?:'ve|'d| have| had)? (?:\w+ )?{_ASKED_ED}\b|"
    rf"\b(?:what|which|when|where|who|how|everything|anything|something|all|the \w+|things?|stuff|topics?|questions?|advice|answer) {_US}(?:'ve|'d| have| had)? (?:\w+ )?{_ASKED_ED}\b|"
    r"\b(?:our|my) (?:\w+ )?(?:last|previous|earlier|past|prior|old|first|recent|earliest|latest|other) (?:\w+ )?(?:conversations?|chats?|questions?|discussions?|sessions?|"
    r"messages?|prompts?|talks?|quer(?:y|ies)|turns?|requests?|exchanges?)\b|"
    r"\b(?:previous|earlier|past|prior|old|last) (?:conversations?|chats?|questions?|discussions?|sessions?|messages?|prompts?|answers?|turns?)\b|"
    r"\b(?:your|the) (?:last|previous|earlier|first) (?:answers?|repl(?:y|ies)|responses?|messages?|suggestions?|explanations?)\b|"
    r"\b(?:search|look|find|check|go|scan|dig|browse|grep)(?: \w+){0,3}? (?:my|our|the|past|through) (?:\w+ )?(?:history|timeline|conversations?|chats?|past|sessions?|logs? of our|questions|messages)\b|"
    rf"\b(?:do you )?(?:remember|recall)\b(?: \w+){{0,3}} (?:when|what|that|which|how|if|whether|our|my|me|us|i|we) ?(?:\w+ ){{0,2}}?(?:{_ASKED_ED}|{_ASKED}|talks?|name|question|conversation|chat|asking|telling|discussing|talking)\b|"
    rf"\bremind me (?:what|which|when|of what|how|who|about what|where) {_US}\b|\b(?:our|the) (?:conversation|discussion|chat|talk)s? (?:about|on|regarding|from|we had)\b|"
    r"\b(?:what|which) (?:\w+ )?(?:was|were) (?:my|our|your) (?:\w+ )?(?:questions?|answers?|conversations?|topic|prompt|request|conclusion|recommendation|advice|suggestion)\b|"
    r"\b(?:what|which) (?:questions?|topics?|things?|subjects?) (?:did|have) (?:i|we)\b|\bwhat (?:did|have) we been (?:talking|discussing|chatting)\b|"
    r"\bwhat (?:have|had|were) (?:i|we) (?:been )?(?:asking|talking|discussing|chatting)\b|\b(?:did|have) (?:i|we|you) (?:ever |already |previously |just )(?:\w+ )?(?:about|with you)\b|"
    rf"\bas (?:i|you|we) (?:\w+ )?{_ASKED_ED}\b|\b(?:did|has) (?:the topic of |the subject of )?[\w ]+ (?:ever )?c[oa]me up\b"
)
_NOT_PAST = pattern(
    r"\b(?:translate|poem|haiku|story|essay|song|lyrics|how do you say|rephrase|rewrite|grammar|grammatical)\b|"
    r"\b(?:my|the|his|her|our) (?:boss|wife|husband|teacher|friend|doctor|mother|mom|mum|father|dad|colleague|manager|son|daughter|client)\b(?: \w+){0,2} (?:asked|said|told)|"
    r"\bi (?:asked|told|said to|wrote|called) (?:my|him|her|them|the|a|an)\b|\bdid we (?:say|call|decide to|want|agree) (?:goodbye|humans|as)|"
    r"^\W*how (?:do|can|should|would) (?:i|you|we) (?!.*\bour\b)|\b(?:presidents?|history of (?:rome|the))\b"
)
_SUBJECT = pattern(
    r"\b(?:about|regarding|concerning|on the (?:topic|subject) of|mention(?:ed)?|related to|to do with|for|discuss(?:ed)?|called|cover(?:ed)?|on)\b\s+(?P<words>.+)$"
)
_STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "any",
        "anything",
        "are",
        "as",
        "ask",
        "asked",
        "at",
        "be",
        "been",
        "before",
        "by",
        "can",
        "chat",
        "conversation",
        "conversations",
        "could",
        "did",
        "didn't",
        "discuss",
        "discussed",
        "do",
        "does",
        "earlier",
        "ever",
        "find",
        "first",
        "for",
        "from",
        "go",
        "had",
        "has",
        "have",
        "he",
        "her",
        "him",
        "his",
        "history",
        "how",
        "i",
        "if",
        "in",
        "is",
        "it",
        "its",
        "last",
        "look",
        "me",
        "mention",
        "mentioned",
        "message",
        "messages",
        "my",
        "of",
        "on",
        "once",
        "or",
        "our",
        "past",
        "please",
        "previous",
        "previously",
        "prior",
        "question",
        "questions",
        "recall",
        "remember",
        "remind",
        "said",
        "say",
        "search",
        "session",
        "sessions",
        "she",
        "so",
        "some",
        "something",
        "talk",
        "talked",
        "tell",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "they",
        "thing",
        "things",
        "this",
        "time",
        "timeline",
        "to",
        "today",
        "told",
        "topic",
        "us",
        "was",
        "we",
        "week",
        "were",
        "what",
        "when",
        "where",
        "whether",
        "which",
        "who",
        "why",
        "will",
        "with",
        "would",
        "yesterday",
        "you",
        "your",
        "about",
        "already",
        "again",
        "answer",
        "answered",
        "suggest",
        "suggested",
        "recommend",
        "recommended",
        "just",
        "all",
        "chats",
        "ago",
        "while",
        "one",
        "day",
        "other",
        "everything",
        "discussion",
        "discussions",
        "through",
        "wrote",
        "write",
        "give",
        "gave",
        "regarding",
        "month",
    ]
)


def asks_about_the_past(text: str) -> str | None:
    """The words to look for if an earlier part of this or another conversation is asked about, else None.

    Args:
        text: The user's words.

    Returns:
        Search words, "" where the question has none ("what was my first question?").
    """
    for clause in clauses(text):
        if _PAST.search(clause) and not _NOT_PAST.search(clause):
            return _search_words(clause)
    return None


def _search_words(clause: str) -> str:
    subject = _SUBJECT.search(clause)
    for matter in (subject["words"] if subject else "", clause):
        words = re.findall(r"[^\W_][\w+#.'-]*", matter)
        kept = [word.rstrip(".'-") for word in words if word.lower().rstrip(".'-") not in _STOP_WORDS]
        if kept:
            return " ".join(kept)
    return ""


def _search_timeline(text: str, _folder: Path | None) -> Signal | None:
    words = asks_about_the_past(text)
    if words is None:
        return None
    return Signal(
        "search_timeline", "an earlier conversation is asked about", {"query": words} if words else None, certain=True
    )


# ------------------------------------------------------------------ pages

_URL = re.compile(r"\bhttps?://[^\s<>\"'`)\]]+[^\s<>\"'`)\].,;:!?]", re.IGNORECASE)
_DOMAIN = re.compile(
    r"(?<![\w@./-])(?:www\.)?(?:[a-z0-9-]+\.)+(?:com|org|net|io|dev|edu|gov|co\.uk|de|fr|ai|app|info|eu|uk|me|wiki)(?:/[^\s<>\"'`)\]]*)?(?![\w@-])",
    re.IGNORECASE,
)
_FETCH = pattern(
    r"\b(?:fetch|open|visit|browse|go to|download|load|get|read|summari[sz]e|summary|check|look (?:at|up)|grab|pull|retrieve|scrape|see|crawl|access|"
    r"what(?:'s| is) (?:on|at)|what does|tell me (?:about|what)|headlines?|contents?|show|latest|extract|according to|page|article|site)\b"
)
_NOT_FETCH = pattern(
    r"\bhow (?:do|can|to|would|should|does)\b|\b(?:regex|regular expression|valid|parse|parsing|parts of|example of|who (?:owns|founded|made|runs)|scheme|"
    r"python|curl|javascript|function|code|script|encode|shorten|domain|mean|founded|html link|hyperlink|write an?|create|invented|history of)\b"
)


def urls_in(text: str) -> tuple[str, ...]:
    """The addresses of web pages in a text: those with `http(s)://`, and names of hosts such as `example.com/a`.

    Args:
        text: The user's words.
    """
    whole = _URL.findall(text)
    rest = _URL.sub(" ", text)
    return (*whole, *(name.rstrip(".,;:!?") for name in _DOMAIN.findall(rest)))


def urls_masked(text: str) -> str:
    """The text with every address put out of sight, all else where it was."""
    hidden = _URL.sub(lambda found: " " * len(found.group()), text)
    return _DOMAIN.sub(lambda found: " " * len(found.group()), hidden)


def _fetch_url(text: str, _folder: Path | None) -> Signal | None:
    for clause in clauses(text):
        for url in urls_in(clause):
            whole = bool(_URL.match(url))
            kept_off = bool(_NOT_FETCH.search(clause))
            asked = bool(_FETCH.search(clause)) or (whole and not _URL.sub("", clause).strip())
            if whole or (asked and not kept_off):
                address = url if whole else f"https://{url}"
                return Signal("fetch_url", f"an address: {url}", {"url": address}, certain=asked and not kept_off)
    return None


# ------------------------------------------------------------------ together


def _clock(text: str, _folder: Path | None) -> Signal | None:
    reason = asks_for_date_or_time(text)
    return Signal("clock", reason.words, certain=reason.certain) if reason else None


BUILTIN: Mapping[str, Callable[[str, Path | None], Signal | None]] = {
    "calculator": _calculator,
    "clock": _clock,
    "read_file": _read_file,
    "list_files": _list_files,
    "search_timeline": _search_timeline,
    "fetch_url": _fetch_url,
}
"""For each built-in tool: from the user's words and the folder to its signal."""


def signals(text: str, folder: Path | None = None) -> tuple[Signal, ...]:
    """What the text says about the built-in tools, in their order.

    Args:
        text: The user's words.
        folder: Where paths in it begin; None to judge paths by their looks.
    """
    return tuple(signal for read in BUILTIN.values() if (signal := read(text, folder)))
