"""Penn Treebank tokens of captions, as the COCO caption scorers see them, without Java.

Reproduces what pycocoevalcap's `PTBTokenizer` returns: the PTB tokenizer of Stanford CoreNLP 3.4.1 with
`-preserveLines -lowerCase`, less 17 punctuation tokens. Written from the tokenizer's rules and its observed output.

One thing differs on purpose: a character that breaks the line (carriage return, form feed, ...) is a blank here, while
there it moves the tokens of all later captions by one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

# The scorers list -LRB- and other brackets as well, but in capitals, while the tokens are in lower case: so brackets
# stay, also in all published scores.
_DROPPED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "---", "----", "...", ";"))
_LINE_BREAKS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))
_RENDERED = str.maketrans(
    {
        "(": "-lrb-",
        ")": "-rrb-",
        "[": "-lsb-",
        "]": "-rsb-",
        "{": "-lcb-",
        "}": "-rcb-",
        "\u00a3": "#",
        "\u20ac": "$",
        "\u00a4": "$",
        "\u00a2": "cents",
        "\u00bc": "1/4",
        "\u00bd": "1/2",
        "\u00be": "3/4",
        "\u2153": "1/3",
        "\u2154": "2/3",
        " ": "\u00a0",
        "\u00ad": "",
        "\u2019": "'",
        "\u2018": "'",
        "\u0092": "'",
    }
)
# Quotation marks and dashes: whatever the tokenizer renders them as, it is among the dropped tokens.
_DROPPED_SIGNS = frozenset(
    "\"'`\u2018\u2019\u201b\u201c\u201d\u00ab\u00bb\u2039\u203a\u300c\u300d\u301d\u2026\ufffd"
    "\u2010\u2011\u2012\u2013\u2014\u2015\u0091\u0092\u0093\u0094\u0096\u0097"
)
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">"} | dict.fromkeys(
    ("&quot;", "&apos;", "&nbsp;", "&mdash;", "&ndash;"), "."
)

# Alternatives of regular expressions. Abbreviations keep their period.
_JOINED = "cannot|gonna|gotta|lemme|gimme|wanna"
_ABBREVIATIONS = (
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri"
    "|ala|ariz|az|calif|colo|conn|dak|del|fla|ga|ind|kans?|ky|la|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt"
    "|wisc?|wyo|inc|cos?|corp|ptys?|ltd|plc|rt|bancorp|dept|bhd|assn|univ|intl|sys"
    "|jr|sr|bros|blvd|rd|esq|etc|al|seq|bldg|sq|(?:ed|ph)\\.d|vs|alex|wm|jos|cie|a\\.k\\.a|cf|treas"
    "|mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|capt|ste?|ave|pres"
    "|lieut|hon|brig|co?mdr|pfc|spc|supts?|det|mt|ft|adj|adv|asst|assoc|ens|insp|mlle|mme|msgr|sfc"
)
# Ordinary words unless they have a capital.
_PROPER_ABBREVIATIONS = "Ark|Ill|Mass|Miss|Ore|Pa|Tex|Wash"
# Abbreviations only before a number.
_NUMBERED = "nos?|pp?|figs?|ca|prop|ch|art"
# After an initial they show that a sentence ended with it.
_STARTERS = (
    "A|About|According|Additionally|After|An|And|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More"
    "|Mr\\.|Ms\\.|Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We"
    "|What|When|While|Yet|You"
)

_PLAIN_CAPTION = re.compile(r"[A-Za-z]+(?:[ ,]+[A-Za-z]+)* ?\.?")
_JOINED_WORDS = frozenset(_JOINED.split("|"))
_PLAIN_WORD = re.compile(r"[A-Za-z]+(?=\s)")
_NOT_PLAIN = re.compile(rf"\b(?:(?:{_JOINED})\b|(?:[a-z]|{_ABBREVIATIONS}|{_PROPER_ABBREVIATIONS})\.)", re.IGNORECASE)


@cache
def _category(letters: str, stop: int = 0x10000) -> str:
    """Inside of a character class: the characters whose Unicode category starts with one of the letters."""
    chars = "".join(chr(code) if unicodedata.category(chr(code))[0] in letters else "\0" for code in range(stop))
    runs = [run for run in chars.split("\0") if run]
    return "".join(f"{re.escape(run[0])}-{re.escape(run[-1])}" for run in runs)


_APOSTROPHE = "['\u0092\u2019]"
_QUOTE = "['`\u0091\u0092\u2018\u2019\u201b]"
_ACRONYM = r"(?:[A-Za-z](?:\.[A-Za-z])*|(?:Canada|Sino|Korean|EU|Japan|non)-U\.S)"
_NUMBER = r"[-+]?(?:\d*(?:[.,]\d+)+|\d+(?:[.:,\u00ad]\d+)*)"


@cache
def _alpha() -> str:
    return f"[{_category('L')}]"


@cache
def _word() -> str:
    # Accents and vowel signs belong to a word; the marks after 0x2000 modify symbols.
    letter = f"[{_category('L')}{_category('M', 0x2000)}\u00ad]"
    return rf"{letter}(?:{letter}|\d)*(?:[.!?]{letter}(?:{letter}|\d)*)*"


def _clitic_rules() -> list[str]:
    apostrophe, alpha = _APOSTROPHE, _alpha()
    return [
        rf"({_word()}){apostrophe}(?:[msdMSD]|(?i:re|ve|ll))",
        rf"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*)[nN]{_QUOTE}[tT]",
        rf"([nN]{_QUOTE}[tT])",
        rf"({apostrophe}[msdMSD])(?:[^A-Za-z]|$)",
        rf"({apostrophe}(?i:re|ve|ll))[^A-Za-z]",
        rf"({apostrophe}(?i:n))\s",
        rf"([yY]{apostrophe}){alpha}",
        rf"((?i:{apostrophe}(?:n{apostrophe}|em|till?|cause|t(?=is|was))|ol{apostrophe}))",
        rf"((?i:c{apostrophe}mon|s{apostrophe}mores|nat{apostrophe}l)|{apostrophe}[2-9]0s)",
        rf"({alpha}+[aeiouyAEIOUY]{apostrophe}[aeiouA-Z]{alpha}*)",
    ]


def _word_rules() -> list[str]:
    elided = rf"(?:[dDoOlL]{_QUOTE}{_alpha()})?(?:{_alpha()}|\d)+"
    slashed = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    return [
        rf"({_word()})",
        rf"({elided}(?:[-_\u058a\u2010\u2011]{elided})*)",
        rf"([A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:[A-Za-z0-9]+|{_ACRONYM}\.))+)",
        rf"({slashed}(?:/{slashed}){{1,2}})",
        r"(-(?:RRB|LRB|RCB|LCB|RSB|LSB)-|(?i:pro-|anti-)|[A-Z]+(?:[+&][A-Z]+)+|C\+\+|C#)",
        rf"({_ACRONYM}\.)",
        rf"((?:(?i:{_ABBREVIATIONS})|{_PROPER_ABBREVIATIONS})\.)",
        rf"((?i:{_NUMBERED})\.)[ \u00a0]*\d",
        rf"((?:{_word()}|{_NUMBER})\.)[,;:]",
    ]


def _number_rules() -> list[str]:
    return [
        rf"({_NUMBER})",
        r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})",
        r"((?:\d{1,4}[- \u00a0])?\d{1,4}[/\u2044]\d{1,4})",
        r"((?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"
        r"[0-9]{3,4}[- \u00a0]?[0-9]{3,5})",
        r"([\u00b9\u00b2\u00b3\u2070-\u2079]+|[\u2080-\u2089]+)",
    ]


def _web_rules() -> list[str]:
    tail = r"[^ \t\n\"<>|()]+[^ \t\n\"<>|.!?(){},-]"
    name = "[A-Za-z][A-Za-z0-9:._-]*"
    attribute = rf"{name}(?: *= *(?:'[^'\n]*'|\"[^\"\n]*\"))?|/"
    return [
        rf"((?i:https?)://{tail})",
        rf"(www\.(?:[^ \t\n\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}(?:/{tail})?)",
        rf"((?:[^ \t\n\"`'<>|.!?(){{}},_$-]+\.)+(?:com|net|org|edu)(?:/{tail})?)",
        r"([a-zA-Z0-9][^ \t\n\"<>|(){}]*@(?:[^ \t\n\"<>|(){}.]+\.)*[^ \t\n\"<>|(){}.]+)",
        rf"(@[a-zA-Z_][a-zA-Z_0-9]*|#{_alpha()}+)",
        rf"(<(?:[!?][A-Za-z-][^>\n]*|/?{name}(?: +(?:{attribute}))* */?)>)",
    ]


def _sign_rules() -> list[str]:
    return [
        r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?:[^A-Za-z]|$)",
        r"([-^x=~<>']_[-^x=~<>'])",
        r"([?!]+|\*+|@+|_+|#+|-+|<<|>>)",
        r"([A-Z]*\$)",
        rf"({'|'.join(_ENTITIES)})",
    ]


@cache
def _rules() -> list[tuple[re.Pattern[str], str]]:
    """Rules as (pattern, kind). Group 1 is the token, the rest of a match is context.

    As in a generated scanner, the longest match with its context wins, the first rule among equals, and the context is
    then read again.
    """
    table = [(rf"((?i:{_JOINED}))", "joined")]
    table += [
        (pattern, "token")
        for rules in (_clitic_rules, _word_rules, _number_rules, _web_rules, _sign_rules)
        for pattern in rules()
    ]
    table += [(rf"({_ACRONYM}\.)\s+(?:{_STARTERS})\s", "sentence end"), (r"(.)", "other")]
    return [(re.compile(pattern), kind) for pattern, kind in table]


def _split_joined(word: str) -> list[str]:
    cut = 3 if word.endswith("not") else 2
    return [word[:-cut], word[-cut:]]


def _is_dropped(char: str) -> bool:
    # The Java scanner reads 16-bit units, so that a character beyond them, such as an emoji, is unknown to it.
    return char in _DROPPED_SIGNS or char > "\uffff" or unicodedata.category(char)[0] in "CM"


def _render(token: str, kind: str) -> list[str]:
    if kind == "joined":
        return _split_joined(token.lower())
    if kind == "other" and _is_dropped(token):
        return []
    if kind == "sentence end" and len(token) == 2:
        token = token[0]
    rendered = _ENTITIES.get(token, token.translate(_RENDERED).lower())
    return [] if rendered in _DROPPED else [rendered]


def _longest_match(text: str, position: int) -> tuple[str, str]:
    end, token, kind = -1, "", ""
    for pattern, name in _rules():
        found = pattern.match(text, position)
        if found and found.end() > end:
            end, token, kind = found.end(), found[1], name
    return token, kind


def _lex(text: str, start: int, end: int) -> list[str]:
    tokens: list[str] = []
    while start < end:
        if text[start].isspace():
            start += 1
        elif (plain := _PLAIN_WORD.match(text, start)) and plain[0].lower() not in _JOINED_WORDS:
            tokens.append(plain[0].lower())
            start = plain.end()
        else:
            token, kind = _longest_match(text, start)
            tokens += filter(None, _render(token, kind))
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
