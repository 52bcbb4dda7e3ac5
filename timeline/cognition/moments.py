"""How people ask for the date and the time, and what only sounds like it: the time complexity, a date palm.

Knows that the clock is needed wherever the answer depends on when it is asked: also for "how many days until
Christmas" and "is it Friday yet", not for "how many days are in a leap year".
"""

from __future__ import annotations

from msgspec import Struct

from timeline.cognition.past import asks_about_the_past
from timeline.cognition.phrases import Phrases, about_programs, about_words, clauses

__all__ = ["Moment", "asks_for_date_or_time"]


class Moment(Struct, frozen=True):
    """A wish for the date or the time.

    Args:
        words: Why it was taken for one.
        certain: The text leaves no doubt.
    """

    words: str
    certain: bool


_WEEKDAY = r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)days?)"
_MONTH = (
    r"(?:january|february|march|april|june|july|august|september|october|november|december|"
    r"(?:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\b\.?(?= ?\d)|may(?= ?\d|\b(?! i| we| be)))"
)
_FEAST = (
    r"(?:christmas(?: eve| day)?|xmas|new year(?:'?s)?(?: eve| day)?|easter|halloween|thanksgiving|valentine'?s?(?: day)?|"
    r"hanukkah|ramadan|diwali|eid|passover|mother'?s day|father'?s day|independence day|labou?r day|memorial day|"
    r"black friday|st\.? patrick'?s(?: day)?|boxing day|spring|summer|autumn|winter|fall(?= begins| starts|\W*$)|"
    r"chinese new year|lunar new year|earth day|april fools'?(?: day)?)"
)
_SPAN = r"(?:seconds?|minutes?|mins?|hours?|hrs?|days?|nights?|weeks?|weekends?|months?|years?|quarters?|business days|working days|sleeps|time)"
_TARGET = (
    rf"(?:(?:the |my |our |next |this |coming |a )*(?:{_WEEKDAY}|{_MONTH}|{_FEAST}|weekend|end of|start of|beginning of|"
    r"birthday|anniversary|deadline|midnight|noon|tomorrow|tonight|next|today|now|equinox|solstice|holidays?|vacation|"
    r"year ends?|\d{1,2}(?::\d\d)? ?(?:am|pm|o'?clock)|\d{1,2}(?:st|nd|rd|th)|\d{4}\b|\d{1,2}[./-]\d{1,2}|\d{1,2}:\d\d|"
    rf"\d{{1,2}} {_MONTH}|semester|term|the year))"
)
_PLACE = r"(?:(?:the )?(?:[A-Z][\w.-]+|new york|london|tokyo|paris|berlin|sydney|india|japan|china|utc|gmt|est|pst|cet)(?:[ ,]+\w+)?)"
_END = (
    rf"(?:\W*$|\W+(?:is it|it is|right now|now|today|tonight|tomorrow|yesterday|currently|at the moment|at present|please|"
    rf"pls|here|there|again|exactly|and|or|for (?:me|us|an?|my|the|this|our)|this|on your|by you|according|anyway|thanks|thank you|"
    rf"where|as of|of the|of today|in (?:{_PLACE}|my|your|this|iso|words|24|utc))\b)"
)
_THING = (
    r"(?:(?:date|time|day|year|month|weekday|week(?: number)?|hour|minute|datetime|timestamp|clock|season|quarter|century|"
    r"decade|day of (?:the |this )?(?:week|month|year)|calendar (?:week|date)|week of the year|unix time|epoch time|time of day)"
    r"(?:(?:,| and| &| or|/| \+) ?(?:the )?(?:current )?(?:date|time|day|year|month|weekday|hour))*)"
)
_NOW = r"(?:current|present|exact|local|precise|actual|right|correct|today'?s|this|system)"

_CERTAIN = (
    (
        "it asks what the date or the time is",
        Phrases(
            rf"\b(?:what|which|whats|what's|what is|tell me|give me|show me|know|got|have|say|need|check|get|print|display|"
            rf"what're|and|also|report|see|read out|state|want|is)\s+(?:me )?(?:the\s+)(?:{_NOW} )*{_THING}{_END}"
        ),
    ),
    (
        "it asks for the current date or time",
        Phrases(
            rf"\b(?:current|present|exact|local|precise|today'?s|system) (?:{_NOW} )?(?:utc |gmt |local )?{_THING}{_END}"
        ),
    ),
    (
        "it asks what day or time it is",
        Phrases(
            rf"\b(?:what|which|wat) (?:\w+ )??{_THING} (?:is|was|will|are|would|s|do|does|did|has)(?:n't)? ?"
            r"(?:it|we|today|tomorrow|yesterday|now|this|that|the (?:day|date))\b"
            r"(?! (?:set|called|about|said|named|made|usually|take|takes|for|best|that|when|safe|normal|built|land|win|won|lose|"
            r"enter|entered|discover|become|became|invent|sign|signed|take|get|got|going to take|peak|open|opens|close|closes|happen))"
        ),
    ),
    (
        "it asks what day or time it is",
        Phrases(
            rf"\b(?:what|which|whats|what's) {_THING}(?:'s| is) (?:it|today|tomorrow|yesterday)\b|\bwhat {_THING} it (?:is|was|currently is)\b"
        ),
    ),
    (
        "it names today, and asks for its date",
        Phrases(
            rf"\b(?:today|tomorrow|yesterday)'?s (?:date|day|weekday)\b|\b(?:{_THING}) (?:is it |it is |is )?(?:today|now|right now|tomorrow){_END}"
            r"|\bwhat(?:'?s| is| was| will be)? (?:today|tomorrow|yesterday)\W*$|\bwhat(?:'?s| is) the day (?:after tomorrow|before yesterday|today|tomorrow)\b"
        ),
    ),
    (
        "it asks how long until or since a date",
        Phrases(
            rf"\bhow (?:many|much|long|far|soon)\b(?: (?:more|full|whole|other))?(?: {_SPAN})?(?: \w+){{0,4}}? ?"
            rf"\b(?:until|till|til|'til|to|to go|before|since|left|remain\w*|away|off|ago|passed|gone|elapsed|between now and)\b"
            rf"(?: (?:it'?s|it is|until|till|to|in|before|of|for|is|are|was|we (?:get|reach)|from|there|go|since|the|this|next|my|our|on))* ?"
            rf"(?:{_TARGET}|(?:this |the |current )(?:year|month|week|quarter|day|century|decade|semester))"
        ),
    ),
    (
        "it asks how far away a date is",
        Phrases(
            rf"\bhow (?:many|much|long|far|soon|close)\b(?: {_SPAN})?(?: (?:away|are we|is|off|until|till|from))+ (?:from |to |until |till )?{_TARGET}"
            rf"|\b(?:countdown|time left|days left|days remaining|days) (?:to|until|till) {_TARGET}"
            rf"|\bhow many {_SPAN} (?:\w+ )?(?:are )?(?:left|remain\w*)(?: (?:in|of|this|the|for|until)\b.*)?\W*$(?<!game)"
        ),
    ),
    (
        "it asks whether it is a certain day or time",
        Phrases(
            r"\bare we (?:still |already |now |yet )*(?:past|before|after|near|close to) (?:the )?(?:\d{1,2}(?:st|nd|rd|th)|noon|midnight|end of)|"
            r"\bare we (?:still |already |now )?in (?:\d{4}|january|february|march|april|may|june|july|august|september|october|november|december|spring|summer|autumn|winter)\b|"
            rf"\b(?:is|was|isn't|will) (?:it|today|tomorrow|yesterday|this(?: year)?|now|the current (?:year|month|day))"
            rf"(?: (?:already|still|now|yet|currently|really|a|an|the|be|almost|nearly|actually|today|in|past|before|after|going to be))* "
            rf"(?:{_WEEKDAY}|{_MONTH}|weekend|weekday|workday|working day|morning|afternoon|evening|night|noon|midnight|"
            rf"leap year|am or pm|am\b|pm\b|{_FEAST}|public holiday|bank holiday|holiday|business hours|\d{{1,2}}(?::\d\d)? ?(?:am|pm|o'?clock)|\d{{1,2}}:\d\d|"
            rf"20\d\d|first of|end of the (?:month|year|week)|an? (?:even|odd) (?:day|year|month))(?! (?:movie|song|album))"
        ),
    ),
    (
        "it asks for the weekday or the date of a day",
        Phrases(
            rf"\b(?:what|which) (?:day(?: of the week)?|weekday|date|month|year|time)(?:'s| is| was| will| does| did| would| are)(?: \w+){{0,5}}? ?"
            rf"(?:{_WEEKDAY}|(?:in|from|after) \w+ {_SPAN}|\d{{1,2}}(?:st|nd|rd|th)? of (?:this|next|the) month|\w+ {_SPAN} (?:ago|from (?:now|today)|later|earlier)|{_MONTH} \d|\d{{1,2}}(?:st|nd|rd|th)? (?:of )?{_MONTH}|"
            rf"{_FEAST}(?: \w+)? (?:this|next) year|tomorrow|yesterday|today|now|\d{{4}}-\d\d-\d\d)\b"
            rf"|\b(?:what|which) (?:day of the week|weekday)\b(?!.* (?:usually|always|named|called|typically|do|does (?:the|a)))"
            rf"|\b(?:date|day|weekday|time) (?:was|is|will|would)(?: it| be)*(?: \w+)? \w+ {_SPAN} (?:ago|from (?:now|today)|later)\b"
            rf"|\bwhat(?:'s| is| will be| was)? (?:the )?(?:date|day|time)?(?: be)? ?(?:in )?(?:\d+|a|one|two|three|five|ten) {_SPAN} (?:from (?:now|today)|ago)\b"
            rf"|\b(?:date|day) (?:of|on) (?:this|next|last|the coming) {_WEEKDAY}"
            rf"|\bwhen is (?:the )?(?:next|this|coming) (?:{_WEEKDAY}|weekend|leap year|full week|month|{_FEAST})"
        ),
    ),
    (
        "it asks for the time",
        Phrases(
            r"\b(?:do you (?:have|know)|have you got|got|can you (?:tell|give)(?: me)?|could you (?:tell|give)(?: me)?|tell me|what'?s|need to know) (?:the )?(?:current )?time\b"
            rf"(?! (?:complexity|signature|machine|travel|zone|limit|frame|value|series|dilation|period|out|off|constant|table)){_END}"
            rf"|\b(?:what'?s?|current|local|the|exact) time (?:is it |now |right now |it is )?(?:over )?(?:in|at) {_PLACE}"
            rf"|\btime (?:now|right now|zone (?:am i|are we|is this) )|\bwhat time zone (?:am i|are we)\b"
            r"|\b(?:unix|epoch|utc|gmt|iso)(?: 8601)? ?(?:time|timestamp|date)?(?: (?:right )?now|\W*$)|\b(?:seconds|milliseconds) since (?:the )?(?:unix )?epoch\b"
        ),
    ),
    (
        "it is nothing but a word for the time",
        Phrases(
            r"^\W*(?:(?:the|current|today'?s|please|now|right|local|what|whats|hey|show|and|tell|me|is|it) )*(?:date|time|clock|today|now|datetime|weekday|"
            r"date and time|time and date|day of (?:the )?week|what day)(?: (?:today|now|please|pls|right now|and time|and date))*\W*$"
        ),
    ),
    (
        "it asks how old something is today",
        Phrases(
            r"\bhow old (?:am i|is|are|would|will|was)\b.*\b(?:born|if|since|today|now|this year)\b|\bhow old .*\bborn (?:in|on)\b"
            rf"|\bhow many {_SPAN} (?:have|has) (?:passed|gone by|elapsed|it been)\b|\bhow long (?:ago (?:was|is|did)|has it been since)\b"
        ),
    ),
)
_POSSIBLE = (
    (
        "it speaks of how long until something",
        Phrases(rf"\bhow (?:many {_SPAN}|long|much time)\b.*\b(?:until|till|til|left|remain\w*)\b"),
    ),
    (
        "it speaks of days, hours or dates",
        Phrases(
            r"\b(?:dates?|weekdays?|o'?clock|deadline|timezone|time zone|(?:mon|tues|wednes|thurs|fri|satur|sun)day)\b|\b(?:what|which|when|how many|how long|is it|tell me|know)\b.*\b(?:time|days?|weeks?|months?|years?|hours?|minutes?)\b|^\W*when(?:'s| is| are| will| does| do)\b"
        ),
    ),
)
_HISTORY = Phrases(
    r"\b(?:what|which|when|how many|how long|how much)\b.*\b(?:did|was|were|does|takes?|lasts?|last)\b (?!it\b|we\b|today|yesterday|tomorrow|this|i\b)|"
    rf"\bhow (?:many|much) {_SPAN} of (?!{_MONTH}|the|this)|"
    r"\b(?:date|year|day|time|month) (?:of|when|that) (?!today|this|next|tomorrow)|\b(?:born|died|invented|founded|released|come out|came out)\b"
)
"""What a time is asked of that is in the books."""
_NEVER = Phrases(
    r"\btime (?:complexity|complexities|signatures?|machines?|travel\w*|series|dilation|limits?|period|value of money|constant|capsule|management|lapse)\b|"
    r"\bdate (?:palms?|night|ideas?|format\w*|fruits?|types?|syrup|sugar|column|field|parsing|library|picker|cake|bars)\b|\b(?:first|blind|double|dinner|due|release|expiry|expiration|birth) dates?\b|"
    r"\bday in the life\b|\bday (?:job|care|dream|trip|trading|one patch)\b|\b(?:best|good|right|ideal|worst|optimal|perfect|bad|cheapest) (?:time|day|month|year|date)s? (?:of (?:the )?(?:year|day|week) )?(?:to|for|in)\b|"
    r"\bhow (?:are|is|was) (?:you|your|life|it going|everything)\b|\bonce upon a time\b|\bof all time\b|\bday of the dead\b|\bgroundhog day\b|"
    r"\bhow many (?:days|hours|minutes|seconds|weeks|months|years)(?: are)?(?: there)? in (?:an? |one |\d|january|february|march|april|may|june|july|august|september|october|november|december)|"
    r"\bsong (?:called|named)?\b|\bmovie\b|\bnews\b|\bweather\b|\bword of the day\b|\bclock speed\b|\bbiological clock\b|\bthis day in\b|\bon this day\b|\bquote of the day\b|\btime (?:does|do|did) (?:the|a|an)\b"
)


def asks_for_date_or_time(text: str) -> Moment | None:
    """Whether the answer depends on when it is asked.

    Args:
        text: The user's words.
    """
    possible: Moment | None = None
    for clause in clauses(text):
        if about_words(clause) or about_programs(clause) or _NEVER.search(clause):
            continue
        if asks_about_the_past(clause) is not None:
            continue  # "What did we discuss this week?"
        for words, known in _CERTAIN:
            if known.search(clause):
                return Moment(words, certain=True)
        for words, known in _POSSIBLE:
            if possible is None and known.search(clause) and not _HISTORY.search(clause):
                possible = Moment(words, certain=False)
    return possible
