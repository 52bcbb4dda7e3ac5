"""How people ask about what was said before, by them or to them, and which words to look for then."""

from __future__ import annotations

import re

from timeline.cognition.phrases import Phrases, about_words, clauses

__all__ = ["asks_about_the_past", "may_ask_about_the_past"]

_ASKED = r"(?:ask|tell|told|say|said|mention|talk|discuss|speak|spoke|chat|write|wrote|answer|suggest|recommend|advise|conclude|decide|agree|explain|promise|claim|call|cover|go over|recommend|describe|share|bring up|request|want|query|inquire|enquire|converse)"
_ASKED_ED = r"(?:asked|told|said|mentioned|talked|discussed|spoken|spoke|chatted|written|wrote|answered|suggested|recommended|advised|concluded|decided|agreed|explained|promised|claimed|called|covered|gone over|went over|described|shared|brought up|queried|inquired|enquired|conversed)"
_US = r"(?:i|we|you)"
_PAST = Phrases(
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
    rf"\b(?:of|all|among|through) (?:my|our) (?:\w+ )?(?:questions|prompts|messages|conversations|chats)\b|\bas (?:i|you|we) (?:\w+ )?{_ASKED_ED}\b|\bi(?:'ve| have)? (?:gave|given|sent|showed|shown|told|asked|shared with|mentioned to) you\b(?! so)|\byou(?:'ve| have)? (?:gave|sent|showed|taught|told|given|recommended|suggested)(?: to)? me\b|"
    r"\b(?:what|which) (?:\w+ ){0,2}(?:was|were|am|have) i (?:just |been )?(?:asking|talking|telling|saying)\b|\b(?:what|which) were we (?:just )?\w+ing\b|"
    rf"\b(?:last time|when) we (?:spoke|talked|chatted|met)\b|\b(?:what|which) (?:\w+ ){{0,3}}did i (?:say|tell|mention|claim|call|ask)\b|\b(?:did|has) (?:the topic of |the subject of )?[\w ]+ (?:ever )?c[oa]me up\b"
)
_NOT_PAST = Phrases(
    r"^\W*(?:please |pls |now |and )?(?:remember|note|memori[sz]e|keep in mind|don't forget) (?:that|this|to|my)\b|"
    r"\b(?:translate|poem|haiku|story|essay|song|lyrics|how do you say|rephrase|rewrite|grammar|grammatical)\b|"
    r"\b(?:my|the|his|her|our) (?:boss|wife|husband|teacher|friend|doctor|mother|mom|mum|father|dad|colleague|manager|son|daughter|client)\b(?: \w+){0,2} (?:asked|said|told)|"
    r"\bi (?:asked|told|said to|wrote|called) (?:my|him|her|them|the|a|an)\b|\bdid we (?:say|call|decide to|want|agree) (?:goodbye|humans|as)|"
    r"^\W*how (?:do|can|should|would) (?:i|you|we) (?!.*\bour\b)|\b(?:presidents?|history of (?:rome|the))\b"
)
_SUBJECT = Phrases(
    r"\b(?:about|regarding|concerning|on the (?:topic|subject) of|mention(?:ed)?|related to|to do with|for|discuss(?:ed)?|called|cover(?:ed)?|on)\b\s+(?P<words>.+)$"
)
_STOP_WORDS = (
    "a an and any anything are as ask asked at be been before by can chat conversation conversations could did"
    " didn't discuss discussed do does earlier ever find first for from go had has have he her him his history how"
    " i if in is it its last look me mention mentioned message messages my of on once or our past please previous"
    " previously prior question questions recall remember remind said say search session sessions she so some"
    " something talk talked tell that the their them then there they thing things this time timeline to today told"
    " topic us was we week were what when where whether which who why will with would yesterday you your about"
    " already again answer answered suggest suggested recommend recommended just all chats ago while one day other"
    " everything discussion discussions through wrote write give gave regarding month"
)
_NO_SUBJECT = frozenset(_STOP_WORDS.split())


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


_ASKS = Phrases(
    r"\?|\b(?:what|which|when|where|who|how|remind|remember|recall|tell me|did|have|do you|find|search|look)\b"
)
_MAYBE = Phrases(
    r"\b(?:i|we|you|our|my|me)\b.*\b(?:earlier|before|previous(?:ly)?|last time|yesterday|last week|already|ago|history|recall|remember|"
    r"again|so far|conversations?|chats?|discussion|remind)\b|\b(?:remind|remember|recall|last time|earlier|previous(?:ly)?|history)\b.*\b(?:i|we|you|our|my|me)\b"
)


def may_ask_about_the_past(text: str) -> str | None:
    """As `asks_about_the_past`, for a text that only speaks of something earlier.

    Args:
        text: The user's words.
    """
    for clause in clauses(text):
        if _ASKS.search(clause) and _MAYBE.search(clause) and not _NOT_PAST.search(clause) and not about_words(clause):
            return _search_words(clause)
    return None


_WHEN = Phrases(r"\b(?:a while|some time|a long time) (?:back|ago)\b|\bthe other day\b|\bback then\b")


def _search_words(clause: str) -> str:
    clause = _WHEN.without(clause)
    subject = _SUBJECT.search(clause)
    for matter in (subject["words"] if subject else "", clause):
        words = re.findall(r"[^\W_][\w+#.'-]*", matter)
        kept = [word.rstrip(".'-") for word in words if word.lower().rstrip(".'-") not in _NO_SUBJECT]
        if kept:
            return " ".join(kept)
    return ""
