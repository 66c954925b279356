"""Penn Treebank tokens of captions, as the COCO caption scorers see them, without Java.

Reproduces what pycocoevalcap's `PTBTokenizer` returns: the PTB tokenizer of Stanford CoreNLP 3.4.1 with
`-preserveLines -lowerCase`, less 17 punctuation tokens. Written from the tokenizer's rules and its observed output.

One thing differs on purpose: a character that breaks the line (carriage return, form feed, ...) is a blank here, while
there it moves the tokens of all later captions by one. And letters and signs that Unicode has taken in since are read
by Python's tables, where the Java tokenizer knows those of its time: rare scripts, unassigned code points.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

# The scorers list -LRB- and other brackets as well, but in capitals, while the tokens are in lower case: so brackets
# stay, also in all published scores.
_DROPPED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "---", "----", "...", ";"))
_ELLIPSIS = re.compile(r"\.{3,5}|\.(?:\u00a0\.)+")
# Inside of a character class. An address may hold, and start with, any of these but the plain blank and the tab.
_BLANKS = r" \t\u00a0\u2000-\u200a\u3000"
_PLAIN_BLANKS = re.compile(rf"\n|[ \t][{_BLANKS}]*")
_LINE_BREAKS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))
# Of an address or emoticon only these are rendered.
_BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-", " ": "\u00a0"})
_RENDERED = _BRACKETS | str.maketrans(
    {
        "[": "-lsb-",
        "]": "-rsb-",
        "{": "-lcb-",
        "}": "-rcb-",
        "\u00a3": "#",
        "\u0080": "$",
        "\u20a0": "$",
        "\u20ac": "$",
        "\u00a4": "$",
        "\u00a2": "cents",
        "\u00bc": "1/4",
        "\u00bd": "1/2",
        "\u00be": "3/4",
        "\u2153": "1/3",
        "\u2154": "2/3",
        "\u00ad": "",
    }
)
# In ASCII; the signs left out stay as they are.
_TYPOGRAPHIC_QUOTES = "\u0091-\u0094\u2018-\u201f\u00ab\u00bb\u2039\u203a"
_ASCII_QUOTES = str.maketrans(
    dict.fromkeys("\u0091\u2018\u201b\u2039", "`")
    | dict.fromkeys("\u0092\u2019\u203a", "'")
    | dict.fromkeys("\u0093\u201c\u00ab", "``")
    | dict.fromkeys("\u0094\u201d\u00bb", "''")
)
_DROPPED_SIGNS = frozenset(
    "\"'`\u2018\u2019\u201b\u201c\u201d\u00ab\u00bb\u2039\u203a\u300c\u300d\u301d\u301e\u301f\u2026\ufffd"
    "\u2010\u2011\u2012\u2013\u2014\u2015\u0091\u0092\u0093\u0094\u0096\u0097"
)
# Rare punctuation, currencies, Roman numerals and CJK signs that no rule of the scanner knows.
_UNKNOWN_SIGN = re.compile(
    "[\u2024\u2025\u2027\u203c\u203d\u2043\u2045-\u205e\u20a1-\u20a3\u20a5-\u20ab\u20ad-\u20cf\u2150-\u2152"
    "\u215f-\u2182\u2185-\u218b\u3003\u3004\u3007-\u300b\u300e-\u3011\u3013-\u301c\u3020-\u3029\u3030"
    "\u3036-\u303a\u303d-\u303f]"
)
# In any case, but only the lower case of these two is understood as a quotation mark.
_SIGN_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}
_SIGN_ENTITY = re.compile("|".join(_SIGN_ENTITIES), re.IGNORECASE)
_QUOTE_ENTITIES = frozenset(("&quot;", "&apos;"))
_BLANK_ENTITIES = frozenset(("&nbsp;", "&mdash;", "&ndash;"))
_ENTITY = r"(?i:&(?:amp|lt|gt|quot|apos|nbsp|[mn]dash|[aeiou](?:acute|grave|uml)|#\d+);)"

# Alternatives of regular expressions. Abbreviations keep their period. The tokenizer ignores case except in character
# classes; an abbreviation that starts with a class for its capital is an ordinary word without one ("mass", "Mass.").
# Of two words in one, the second is read again, with what follows.
_JOINED = {"can": "not", "gon": "na", "got": "ta", "lem": "me", "gim": "me", "wan": "na"}
_TITLES = (
    "(?i:mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|capt|ste?|ave|pres"
    "|lieut|hon|brig|co?mdr|pfc|spc|supts?|det|mt|ft|adj|adv|asst|assoc|ens|insp|mlle|mme|msgr|sfc"
    "|dept|elec|invt|natl|treas|vs|alex|wm|jos|cie|cf|ph|a\\.k\\.a)|(?i:m)[ft](?i:g)"
)
# These may end a sentence, so they are looked for with the two characters that follow.
_ENDINGS = (
    "(?i:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri"
    "|ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt"
    "|wisc?|wyo|inc|cos?|corp|ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys|est|ext|tel"
    "|jr|sr|bros|blvd|rd|esq|etc|al|seq|bldg|sq|(?:ed|ph)\\.d)"
    "|A(?i:rk|z)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash)|(?i:pp?t)[ey](?i:s?)"
)
# Abbreviations only before a number.
_NUMBERED = "nos?|pp?|figs?|ca|prop|op|art"
_FILE_TYPES = (
    "bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt"
    "|wav|x|xml|zip"
)
# After an initial they show that a sentence ended with it, also in capitals.
_STARTERS = (
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More"
    "|Mr.|Ms.|Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We"
    "|What|When|While|Yet|You"
)

_PLAIN_CAPTION = re.compile(r"[A-Za-z]+(?:[ ,]+[A-Za-z]+)* ?\.?")
_JOINED_WORDS = frozenset(first + second for first, second in _JOINED.items())
_PLAIN_WORD = re.compile(r"[A-Za-z]+(?=[ \t\n])")
_NOT_PLAIN = re.compile(rf"(?i)\b(?:(?:{'|'.join(_JOINED_WORDS)})\b|(?:[a-z]|{_TITLES}|{_ENDINGS})\.)")


@cache
def _category(letters: str, stop: int = 0x10000) -> str:
    """Inside of a character class: the characters whose Unicode category starts with one of the letters."""
    chars = "".join(chr(code) if unicodedata.category(chr(code))[0] in letters else "\0" for code in range(stop))
    runs = [run for run in chars.split("\0") if run]
    return "".join(f"{re.escape(run[0])}-{re.escape(run[-1])}" for run in runs)


# A curly apostrophe and an entity make a clitic also where letters follow ("dog’sbody"), the plain one does not.
_CURLY = "(?:[\u0092\u2019]|(?i:&apos;))"
_APOSTROPHE = f"(?:'|{_CURLY})"
_QUOTE = "(?:['`\u0091\u0092\u2018\u2019\u201b]|(?i:&apos;))"
_AND = "(?:(?i:&amp;)|[+&])"
_INITIALISM = rf"[A-Z]+(?:{_AND}[A-Z]+)+"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+"
_NATION = r"(?:Canada|Sino|Korean|EU|Japan|non)-U\.S"
_ACRONYM = rf"(?:[A-Za-z](?:\.[A-Za-z])*|{_NATION})"
_NUMBER = r"[-+]?(?:\d*(?:[.,:\u00ad]\d+)+|\d+)"
_SLASH = r"\\?/"


@cache
def _alpha() -> str:
    return f"[{_category('L')}]"


@cache
def _letter() -> str:
    # Accents (free-standing ones too) and vowel signs belong to a word; the marks after 0x2000 modify symbols.
    return rf"(?:[\u02c2-\u02ff\u0375{_category('L')}{_category('M', 0x2000)}\u00ad]|(?i:&[aeiou](?:acute|grave|uml);))"


@cache
def _word() -> str:
    letter = _letter()
    return rf"{letter}(?:{letter}|\d)*(?:[.!?]{letter}(?:{letter}|\d)*)*"


@cache
def _thing() -> str:
    letter = rf"(?:{_alpha()}|\d)"
    elided = rf"(?:[dDoOlL]{_QUOTE}{letter})?{letter}+"
    return rf"{elided}(?:[-_\u058a\u2010\u2011]{elided})*"


@cache
def _compound() -> str:
    return rf"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:(?:{_INITIALS}|{_NATION})\.|[A-Za-z0-9\u00ad]+))+"


def _clitic_rules() -> list[str]:
    return [
        rf"({_CURLY}(?:[msdMSD]|(?i:re|ve|ll)))",
        r"('[msdMSD])(?:[^A-Za-z]|$)",
        r"('(?i:re|ve|ll))[^A-Za-z]",
        rf"((?i:n){_QUOTE}(?i:t))",
    ]


def _apostrophe_rules() -> list[str]:
    alpha = _alpha()
    return [
        rf"({_word()}){_APOSTROPHE}(?:[msdMSD]|(?i:re|ve|ll))",
        rf"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*)[nN]{_QUOTE}[tT]",
        r"('[nN])[ \t\n\u00a0]",
        rf"({_CURLY}[nN])",
        rf"([yY]{_APOSTROPHE}){alpha}",
        rf"([dDjJlL]{_APOSTROPHE})",
        rf"((?i:{_APOSTROPHE}(?:n{_APOSTROPHE}|em|till?|cause)|(?:ol|dunkin|somethin){_APOSTROPHE}))",
        r"((?i:'t))(?i:is|was)",
        r"((?i:c'mon|s'mores|nat'l|e'er|ev'ry|li'l|nor'easter|cont'd\.))",
        rf"((?i:cap{_APOSTROPHE}n|c{_APOSTROPHE}est|o{_QUOTE}o)|{_APOSTROPHE}[2-9]0[sS])",
        rf"({_APOSTROPHE}\d\d)[{_BLANKS}\n]",
        rf"([A-HJ-XZn]{_QUOTE}{alpha}{{2,}})",
        rf"({alpha}+[aeiouyAEIOUY]{_QUOTE}[aeiouA-Z]{alpha}*)",
    ]


def _word_rules() -> list[str]:
    slashed = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    return [
        rf"({_word()})",
        rf"((?:{_ENDINGS})\.)(?s:..)",
        rf"({_thing()})",
        rf"({_compound()})",
        rf"({slashed}(?:{_SLASH}{slashed}){{1,2}})",
        r"(-(?:RRB|LRB|RCB|LCB|RSB|LSB)-|(?i:pro-|anti-)|C\+\+|C#)",
        rf"({_ACRONYM}\.)",
        rf"((?:{_TITLES}|{_ENDINGS})\.)",
        rf"((?i:{_NUMBERED})\.)[ \u00a0]*\d",
        *(rf"({word}\.)[,;:]" for word in (_word(), _thing(), _compound())),
    ]


def _number_rules() -> list[str]:
    return [
        rf"({_NUMBER})",
        rf"(\d{{1,2}}(?:-|{_SLASH})\d{{1,2}}(?:-|{_SLASH})\d{{2,4}})",
        rf"((?:\d{{1,4}}[- \u00a0])?\d{{1,4}}(?:{_SLASH}|\u2044)\d{{1,4}})",
        r"((?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"
        r"[0-9]{3,4}[- \u00a0]?[0-9]{3,5})",
        r"([\u00b9\u00b2\u00b3\u2070-\u2079]+|[\u2080-\u2089]+)",
    ]


def _web_rules() -> list[str]:
    end = r"[^ \t\n\"<>|.!?(){},-]"
    letter = rf"(?:{_alpha()}|\d)"
    path = rf"/[^ \t\n\"<>|()]+{end}"
    labels = r"(?i:www)\.(?:[^ \t\n\"<>|.!?(){},]+\.)+"
    name = "[A-Za-z][A-Za-z0-9:._-]*"
    attribute = rf"{name}(?: *= *(?:'[^'\n]*'|\"[^\"\n]*\"))?|/"
    return [
        rf"((?i:https?)://[^ \t\n\"<>|(){{}}]+{end})",
        rf"({labels}[a-zA-Z]{{2,4}})",
        # Labels may hold slashes: the longest match starts its path as early as possible.
        rf"({labels}?[a-zA-Z]{{2,4}}{path})",
        # Its class excludes the range from comma to underscore: digits, capitals and more.
        rf"((?:[^ \t\n!\"$'(),-_`{{|}}]+\.)+(?i:com|net|org|edu)(?:{path})?)",
        r"((?:<|(?i:&lt;))?[a-zA-Z0-9][^ \t\n\"<>|(){}\u00a0]*@"
        r"(?:[^ \t\n\"<>|(){}.\u00a0]+\.)*[^ \t\n\"<>|(){}.\u00a0]+>?)",
        rf"({letter}+(?:\.{letter}+)*\.(?i:{_FILE_TYPES}))[{_BLANKS}\n.!?,]",
        rf"(@[a-zA-Z_][a-zA-Z_0-9]*|#{_letter()}+)",
        rf"(<(?:[!?][A-Za-z-][^>\n]*|/?{name}(?: +(?:{attribute}))* */?)>)",
    ]


def _emoticon_rules() -> list[str]:
    return [
        r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?:[^A-Za-z0-9]|$)",
        r"([-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\))",
    ]


def _sign_rules() -> list[str]:
    return [
        r"([?!]+|\*+|@+|_+|#+|-+|<<|>>)",
        r"(\.{3,5}|\.(?:[ \u00a0]\.){2,4})",
        r"([A-Z]*\$)",
    ]


@cache
def _rules() -> list[tuple[re.Pattern[str], str]]:
    """Rules as (pattern, kind). Group 1 is the token, the rest of a match is context.

    As in a generated scanner, the longest match with its context wins, the first rule among equals, and the context is
    then read again.
    """
    starters = "|".join(rf"{word[0]}(?i:{re.escape(word[1:])})" for word in _STARTERS.split("|"))
    kinds = {
        "joined": [rf"((?i:{first}))(?i:{second})" for first, second in _JOINED.items()],
        "clitic": _clitic_rules(),
        "token": _apostrophe_rules() + _word_rules() + _number_rules() + _sign_rules(),
        "entities": [rf"({_INITIALISM}\.)[,;:]", rf"({_INITIALISM})", rf"({_ENTITY})"],
        "address": _web_rules(),
        "emoticon": _emoticon_rules(),
        "quotes": [rf"(''|[`{_TYPOGRAPHIC_QUOTES}]{{1,2}})"],
        "sentence end": [rf"({_ACRONYM}\.)[{_BLANKS}\n]+(?:{starters})[{_BLANKS}\n]"],
        "blank": [rf"([{_BLANKS}]+)"],
        "other": ["(.)"],
    }
    table = [(pattern, kind) for kind, patterns in kinds.items() for pattern in patterns]
    return [(re.compile(pattern), kind) for pattern, kind in table]


def _is_dropped(char: str) -> bool:
    # The Java scanner reads 16-bit units, so that a character beyond them, such as an emoji, is unknown to it.
    if ord(char) in _RENDERED:
        return False
    if char in _DROPPED_SIGNS or _UNKNOWN_SIGN.match(char):
        return True
    return char > "\uffff" or char.isspace() or unicodedata.category(char)[0] in "CM"


def _ascii_apostrophe(token: str) -> str:
    return token.replace("&apos;", "'").translate(_ASCII_QUOTES)


def _render(token: str, kind: str) -> list[str]:
    if kind == "blank" or (kind == "other" and _is_dropped(token)):
        return []
    if kind == "sentence end" and len(token) == 2:
        token = token[0]
    if token in _QUOTE_ENTITIES or token.lower() in _BLANK_ENTITIES:
        return []
    if kind in ("clitic", "quotes"):
        token = _ascii_apostrophe(token)
    if kind == "entities":
        token = _SIGN_ENTITY.sub(lambda found: _SIGN_ENTITIES[found[0].lower()], token)
    rendered = token.translate(_BRACKETS if kind in ("address", "emoticon") else _RENDERED).lower()
    return [] if rendered in _DROPPED or _ELLIPSIS.fullmatch(rendered) else [rendered]


def _longest_match(text: str, position: int) -> tuple[str, str]:
    end, token, kind = -1, "", ""
    for pattern, name in _rules():
        found = pattern.match(text, position)
        if found and found.end() > end:
            end, token, kind = found.end(), found[1], name
    return token, kind


def _lex(text: str, start: int, end: int) -> list[str]:
    tokens: list[str] = []
    end = start + len(text[start:end].rstrip())
    while start < end:
        if blanks := _PLAIN_BLANKS.match(text, start):
            start = blanks.end()
        elif (plain := _PLAIN_WORD.match(text, start)) and plain[0].lower() not in _JOINED_WORDS:
            tokens.append(plain[0].lower())
            start = plain.end()
        else:
            token, kind = _longest_match(text, start)
            # A no-break space can belong to an address, but not at the end of a caption.
            tokens += filter(None, _render(token[: end - start], kind))
            start += len(token)
    return tokens


def _plain(line: str) -> list[str] | None:
    """Tokens of a caption of plain words, None if it takes the rules to tell."""
    if not _PLAIN_CAPTION.fullmatch(line) or _NOT_PLAIN.search(line):
        return None
    return line.lower().replace(",", " ").replace(".", " ").split()


def tokenize(captions: Sequence[str]) -> list[list[str]]:
    """Tokens of each caption, in lower case and without punctuation.

    A caption's tokens can depend on its neighbours: an initial at the end ("J. K.") loses its period if the next
    caption begins like a sentence, and 'll, 're or 've at the end of the very last caption loses its apostrophe. For
    the official numbers give all captions of one side at once and in order.

    Args:
        captions: Any strings; line breaks inside count as blanks.

    Returns:
        One list per caption, empty if it holds no words. A token may hold no-break spaces ("1 1/2"); brackets are
        tokens such as "-lrb-".
    """
    lines = [caption.translate(_LINE_BREAKS) for caption in captions]
    text = "\n".join(lines)
    result = []
    start = 0
    for line in lines:
        end = start + len(line)
        words = _plain(line)
        result.append(_lex(text, start, end) if words is None else words)
        start = end + 1
    return result
