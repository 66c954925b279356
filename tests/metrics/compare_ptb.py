"""Compares our PTB tokenizer with the Java one that it reproduces: `python -m tests.metrics.compare_ptb`.

Needs `java` and the jar that pycocoevalcap ships. Strings are drawn from tokens of the samples and from made up
abbreviations, numbers, addresses, quotes and entities; then come all texts of the samples as they are. Every string
whose tokens differ is printed with both. The last line is JSON: strings compared and strings that differ.
"""

import argparse
import csv
import importlib.util
import json
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instructkit.evaluation.metrics import ptb

SAMPLES = Path(__file__).resolve().parents[2].parent / "shared" / "samples"
_NEUTRAL = "a cat"


def _listed(words: str) -> list[str]:
    # Not at a no-break space: that is one of them.
    return words.split(" ")


# pycocoevalcap's list. Its brackets are in capitals, the tokens are not, so they drop none.
_DROPPED = _listed("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;")

ABBREVIATIONS = _listed(
    "jan feb mar apr may jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri sat sun ala ariz ark az calif "
    "colo conn ct dak del fla ga ill ind kan kans ky la mass md me mich minn miss mo mont neb nev oh okla ont ore pa "
    "penn tenn tex va vt wash wis wisc wyo inc co cos corp pty ltd plc rt bancorp dept bhd assn univ intl natl sys mfg "
    "jr sr bros blvd rd esq etc al seq bldg sq vs alex wm jos cie cf treas est tel ext hwy mr mrs ms dr drs prof sen "
    "rep atty lt col gen messrs gov adm rev maj sgt cpl pvt capt st ste ave pres lieut hon brig comdr cmdr pfc spc "
    "supt det mt ft adj adv asst assoc ens insp mlle mme msgr sfc no nos p pp fig figs ca prop ch art op vol ed eds "
    "min max sec hr hrs oz lb lbs ml tsp tbsp approx apt dist div elec eng govt gal mgr mfr pkg pl pt qt rm ser tr "
    "u.s u.k u.s.a u.n e.g i.e a.m p.m d.c n.y l.a ph.d ed.d m.d b.a a.k.a p.s r.i.p a b c d j k s t v w x"
)
_WORDS = _listed(
    "a the A The in In it It He she on at and And but where Where many More of Of to cat Cat is are This what your You "
    "LA NYC TX Street smith Smith i I mr Mr"
)
_ELISIONS = _listed(
    "Dunkin' dunkin' somethin' nothin' Rollin' ol' Ol' 'em 'Em 'n' 'N' 'n rock'n'roll o'clock O'Clock o' l'eau L'Oreal "
    "j'ai J'ai d'or D'Angelo c'est s'il qu'on m'sieur O'Neil Hawai'i Qur'an y'all Y'all ma'am 'cause 'til 'till 'tis "
    "'twas 'Tis ain't AIN'T can't cannot CANNOT don't dont' isn't I'm i'm I'd you'll we've they're they've he's HE'S "
    "dogs' dog's Dog's 's 'S 'd 'll 've 're 'm n't N'T 'round 'bout c'mon C'mon s'mores nat'l Nat'l int'l Gov't gov't "
    "ass'n 90's 1990's '90s '90 '08 '1999 '5 'tude d'ye gimme lemme gonna Gonna wanna gotta D'oh shoulda "
    "more'n whatcha "
    "fo'c'sle ne'er e'er 'er 'im th' an' An' doin' Ma'am e'en goin' singin' lovin' Lovin' fightin' o'er Hallowe'en "
    "I'll've couldn't've y'know d'you 'd've Xi'an Ha'aretz Sa'ar"
)
_ADDRESSES = _listed(
    "www.google.com WWW.GOOGLE.COM Www.Site.Com google.com GOOGLE.COM Google.Com site.eu SITE.EU Example.EU bbc.co.uk "
    "BBC.CO.UK shop.de SHOP.DE foo.info foo.biz foo.tv foo.us foo.fr FOO.NET foo.gov foo.mil foo.edu foo.ORG Foo.Org "
    "http://a.b/c HTTP://A.B/C https://x.com/a?b=1&c=2 ftp://a.b x.com/path/to.html X.COM/A me@site.com ME@SITE.COM "
    "a.b@c.d.eu joe@x @joe @Joe_1 #tag #Tag1 #1 www.a-b.com.au www.x.y a.com. site.com, foo.eu/bar foo.uk foo.co "
    "foo.jp foo.ca foo.io foo.ly foo.me foo.cn foo.ru foo.it foo.nl foo.ch foo.at foo.be foo.es foo.se foo.au WWW.A.EU "
    "www.youtube.com/watch?v=1 foo.com's FOO.COM's foo.com-bar foo.com: (foo.com) mailto:a@b.com a@b a@b.c file.jpg "
    "image.png index.html foo.NET/ Foo.com/ 1.com 123.org a_b.com a$b.com iTunes.com Amazon.com's "
    "&lt;a@b&gt; <a@b.c> &LT;me@site.com&GT; #ta\u00adg t\u00ad-shirt \u00a0a.com"
)
_ENTITIES = _listed(
    "&amp; &lt; &gt; &quot; &apos; &nbsp; &mdash; &ndash; &AMP; &Amp; &LT; &QUOT; &#39; &#34; &#x27; &hellip; &rsquo; "
    "&copy; &eacute; & A&amp;M A&M AT&T at&t AT&amp;T R&B r&amp;b dog&apos;s DOG&APOS;S don&apos;t I&apos;m "
    "&apos;n Q&amp;A rock&apos;n 5&quot; &lt;b&gt; it&apos;ll Dunkin&apos; o&apos;clock l&apos;eau &apos;90s &apos;em "
    "B&B&B H&M. a&b M&Ms M&M's S&amp;P"
)
_SIGNS = _listed(
    "... .... .. . , : ; ! ? !! ?! - -- --- ---- _ __ / \\ ' '' \" ` `` ( ) [ ] { } < > * ** # $ % & @ ^ ~ | "
    "+ = :) :-) :( ;) :D :P =) 8) <3 :/ :-/ ^_^ >_< :'( xD XD :o :p ;-) (: \u2019 \u2018 \u201c \u201d \u2013 \u2014 "
    "\u2026 \u00e9 \u00ae \u2122 \u00b0 \u00a3 \u20ac \u00a2 \u00bd \u00bc \u00d7 \u00b7 \u2022 \u00a9 \u00a5 "
    "\u00ab \u00bb . . . ,, , \u00a0 \u00b2 \u00ad \u3000 \u301d \u301e \u201e \u2013"
)
_NUMBERS = _listed(
    "{a} {a} {b} {a}.{b} .{a} {a}. {a},{b} {a},000 {a}:{b} :{a} {b}/{c} {c}/{b}/{a} {c}-{b}-{a} {a}-{b} {a}{w} "
    "'{a} '{c}s {a}s {a}'s -{a} +{a} {m}{a} {m}{a}.{b} {m}{a}.{c}., {a}{u} {a}-{w} {w}-{a} {w}:{a} {w}{a} #{a} "
    "{a}x{b} {a}.{b}.{c} ({b}) {a}-{b} {a}%{u} {c}:{b}{u} {c}:{b}:{a} {a}.{b}., {a}. {a}, {b}{u}/{c} 1-800-{a}-{b} "
    "({a}){b}-{c} {a}+ {a}th {a}/ /{a} {w}/{a} {w}.{a} {a}.{w} {a}*{b} {a}={b} {a}'{b} {a}\" {c}'{b}\" {m} {a}k"
)
_MONEY = _listed("$ US$ A$ C$ HK$ \u00a3 \u20ac R$ us$ # USD")
_UNITS = _listed(
    "% kg km m mm cm c \u00a2 \u00b0 st nd rd th TH s 's am pm AM p.m. a.m. k K M x X D G ml oz ' \" mph hz ft in"
)


def jar() -> Path | None:
    """The tokenizer that pycocoevalcap ships, None if it is not installed."""
    spec = importlib.util.find_spec("pycocoevalcap")
    folders = spec.submodule_search_locations if spec else None
    return next(
        (jar for folder in folders or [] for jar in Path(folder).glob("tokenizer/stanford-corenlp-*.jar")), None
    )


def missing() -> str:
    """What the comparison lacks here; empty if nothing."""
    return "; ".join([] if shutil.which("java") else ["no java"]) or ("" if jar() else "pycocoevalcap is not installed")


def official(strings: list[str]) -> list[list[str]]:
    """Tokens of each string by the Java tokenizer, each between two neutral lines. Strings hold no line breaks."""
    text = "\n".join([_NEUTRAL] + [line for string in strings for line in (string, _NEUTRAL)])
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.write(text)
        file.flush()
        command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar()), "edu.stanford.nlp.process.PTBTokenizer"]
        done = subprocess.run(
            [*command, "-preserveLines", "-lowerCase", file.name], capture_output=True, check=True, encoding="utf-8"
        )
    lines = done.stdout.split("\n")
    assert len(lines) >= 2 * len(strings) + 1, "a string breaks its line"
    return [[token for token in line.rstrip().split(" ") if token and token not in _DROPPED] for line in lines[1::2]]


def ours(strings: list[str]) -> list[list[str]]:
    """Tokens of each string by instructkit, between the same neutral lines."""
    return ptb.tokenize([_NEUTRAL] + [line for string in strings for line in (string, _NEUTRAL)])[1::2]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)


def _texts_of(path: Path) -> Iterator[str]:
    content = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".json":
        yield from _strings(json.loads(content))
    elif path.suffix == ".jsonl":
        for line in content.splitlines():
            yield from _strings(json.loads(line))
    elif path.suffix == ".csv":
        yield from _strings(list(csv.reader(content.splitlines())))
    elif path.suffix in (".token", ".txt", ".tsv"):
        yield from (part for line in content.splitlines() for part in line.split("\t"))


def texts(samples: Path) -> list[str]:
    """Distinct texts (captions, questions, answers, ...) of the files in a folder, line breaks as blanks."""
    found = {}
    for path in sorted(samples.rglob("*")):
        if path.is_file():
            found |= dict.fromkeys(" ".join(text.splitlines()) for text in _texts_of(path))
    return [text for text in found if text.strip()]


def _number(rng: random.Random) -> str:
    def digits(most: int) -> str:
        return "".join(rng.choices("0123456789", k=rng.randint(1, most)))

    form = rng.choice(_NUMBERS)
    return form.format(
        a=digits(5), b=digits(3), c=digits(2), w=rng.choice(_WORDS), m=rng.choice(_MONEY), u=rng.choice(_UNITS)
    )


def _cased(rng: random.Random, word: str) -> str:
    return rng.choice([word, word.lower(), word.upper(), word.capitalize(), word.title()])


def _piece(rng: random.Random, tokens: list[str]) -> str:
    kind = rng.random()
    if kind < 0.35:
        token = rng.choice(tokens)
        return token if rng.random() < 0.7 else _cased(rng, token)
    if kind < 0.5:
        return _cased(rng, rng.choice(ABBREVIATIONS)) + rng.choice([".", ".", ".", "", ".,", "..", "...", ".:", ".'s"])
    if kind < 0.65:
        return _number(rng)
    if kind < 0.75:
        return rng.choice(_SIGNS)
    if kind < 0.8:
        return rng.choice(_WORDS)
    word = rng.choice(rng.choice([_ELISIONS, _ADDRESSES, _ENTITIES]))
    return word if rng.random() < 0.6 else _cased(rng, word)


def draw(count: int, seed: int, tokens: list[str]) -> list[str]:
    """Strings of one to six pieces, most with blanks between, some with signs or with nothing."""
    rng = random.Random(seed)
    joints = [" "] * 14 + ["", "-", "/", "'", ".", ",", ", ", ":", "&", "_", "\u2019", '"', " '", "' "]
    result = []
    for _ in range(count):
        parts = [_piece(rng, tokens)]
        for _ in range(rng.choice([0, 0, 1, 1, 2, 3, 5])):
            parts += [rng.choice(joints), _piece(rng, tokens)]
        result.append(
            rng.choice(["{}", "{}", "{}", "{}.", '"{}"', "'{}'", "({})", "{},", "a {} b"]).format("".join(parts))
        )
    return result


def differences(strings: list[str]) -> list[tuple[str, list[str], list[str]]]:
    """Each string whose tokens differ, with the Java tokenizer's tokens and ours."""
    return [
        (string, theirs, own)
        for string, theirs, own in zip(strings, official(strings), ours(strings), strict=True)
        if theirs != own
    ]


def main() -> None:
    """Print the strings that differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="strings to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=Path, default=SAMPLES, help="folder whose texts give tokens")
    options = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    real = texts(options.samples)
    tokens = sorted({token for text in real for token in text.split()})
    result = {}
    for name, strings in (
        ("drawn", draw(options.count, options.seed, tokens or _WORDS)),
        ("texts", real),
    ):
        different = differences(strings)
        for string, theirs, own in different:
            print(f"{string!a}\n    java {theirs!a}\n    ours {own!a}")
        result |= {name: len(strings), f"{name}_different": len(different)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
