"""The words and symbols that are units, their canonical names, and the words behind a number that are none."""

import re

_PLAIN_SYMBOLS = """
m g s L N J W V Pa Hz mol eV cal A C F K h dB hp ppm psi atm bar rpm lm lx cd Bq Gy Sv Wb MeV keV GeV ly au AU nmi floz oclock Å KB MB GB TB
km cm mm dm nm kg mg ms ns mL cL dL kN mN kJ MJ kW MW GW kV mV kPa MPa kHz MHz GHz kcal mA
"""
_OTHER_SYMBOLS = "l=L ml=mL cl=cL dl=dL Ω=ohm kΩ=kohm MΩ=Mohm μm=um μg=ug μs=us"
_PREFIXES = "kilo=k centi=c deci=d milli=m micro=u nano=n mega=M giga=G ="
_NAMES = """
meter=m metre=m gram=g gramme=g second=s liter=L litre=L newton=N joule=J watt=W volt=V pascal=Pa ohm=ohm calorie=cal ampere=A
mole=mol hertz=Hz byte=byte bit=bit
"""
_OTHER_NAMES = """
s: sec secs | min: mins minute minutes | h: hr hrs hour hours | day: days | week: weeks wk wks | month: months
year: years yr yrs | decade: decades | century: centuries | am: a.m. | pm: p.m.
in: inch inches | ft: foot feet | yd: yard yards | mi: mile miles | knot: knots | acre: acres | hectare: hectares ha
pound: pounds lb lbs £ gbp | oz: ounce ounces | ton: tons | tonne: tonnes | gallon: gallons gal | quart: quarts qt
pint: pints pt | cup: cups | degree: degrees deg degs ° | C: celsius centigrade | F: fahrenheit | K: kelvin kelvins
rad: radian radians rads | A: amp amps | kbyte: kb | Mbyte: mb | Gbyte: gb | um: micron microns | Å: angstrom angstroms | %: percent pct
dollar: dollars usd buck bucks $ | cent: cents ¢ | euro: euros eur € | yen: jpy ¥ | rupee: rupees inr rs ₹
yuan: rmb cny | ruble: rubles rouble roubles ₽ | peso: pesos | franc: francs chf | won: krw ₩ | unit: units
person: people persons | child: children | student: students | apple: apples | orange: oranges | marble: marbles | book: books
coin: coins | ball: balls | cookie: cookies | way: ways | point: points | page: pages | car: cars | card: cards | box: boxes
ticket: tickets | girl: girls | boy: boys | egg: eggs | dog: dogs | cat: cats | tree: trees | pencil: pencils | step: steps
"""
_OTHER_NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy eighty ninety
hundred hundreds thousand thousands million millions billion billions trillion trillions quadrillion lakh lakhs crore crores
dozen dozens score scores gross myriad grand pair pairs couple half halves third thirds quarter quarters fourth fourths fifth
fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths
millionth millionths billionth billionths double triple twice thrice tens ones fold mil bil bln mln
and but not nor minus plus over googol mod modulo divided multiplied choose factorial root power powers exponent
than more less least most fewer greater smaller larger higher lower about approximately approx roughly nearly almost around
under below above between from through until the that this wrong incorrect false maybe perhaps probably either neither else
otherwise with without remainder base basis binary octal decimal hex hexadecimal negative positive inverse reciprocal opposite
sin cos tan log exp sqrt infinity infinite undefined error only unknown except percentile off
"""


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in text.split())


def _known_words() -> dict[str, str]:
    words = {}
    for line in re.split(r"[|\n]", _OTHER_NAMES.strip()):
        name, _, others = line.strip().partition(": ")
        words.update(dict.fromkeys([*others.split(), *([name.lower()] if name not in SYMBOLS else [])], name))
    for prefix, short in _pairs(_PREFIXES).items():
        for name, symbol in _pairs(_NAMES).items():
            words[prefix + name] = words[prefix + name + "s"] = short + symbol
    return words


SYMBOLS = {symbol: symbol for symbol in _PLAIN_SYMBOLS.split()} | _pairs(_OTHER_SYMBOLS)
"""Symbols, where capitals count, and what they are called here."""
WORDS = _known_words()
"""Words and signs, in small letters, and what they are called here."""
CANONICAL = frozenset({*SYMBOLS.values(), *WORDS.values()})
NO_UNITS = frozenset(_OTHER_NUMBERS.split())
"""Words that say another number, or that the number is not the answer; no unit, whatever the typeface."""
OTHER_NUMBER = re.compile(
    r"\w*illi(?:on|ard)|millones|tausend|mille|\w+fold$"
    r"|(?:fif|six|seven|eigh|nin|ten|eleven|twelf|\w*teen|\w+tie|hundred|thousand)ths?$"
    r"|(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|teen|twentie|thirtie|fortie|fiftie)e?s$"
)
"""And words that do so in other forms, in small letters, from their start."""
