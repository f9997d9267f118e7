"""English names of languages by ISO 639 code: those that a country lists among its first three."""

_NAMES = """
aa=Afar|af=Afrikaans|ak=Akan|am=Amharic|ar=Arabic|ay=Aymara|az=Azerbaijani|bal=Baluchi|be=Belarusian
bem=Bemba|ber=Berber|bg=Bulgarian|bho=Bhojpuri|bi=Bislama|bm=Bambara|bn=Bengali|br=Breton|bs=Bosnian
ca=Catalan|cab=Garifuna|ch=Chamorro|chk=Chuukese|cmn=Mandarin|cs=Czech|cy=Welsh|da=Danish|de=German
diq=Zazaki|dje=Zarma|dv=Dhivehi|dz=Dzongkha|ee=Ewe|el=Greek|en=English|es=Spanish|et=Estonian|fa=Persian
fi=Finnish|fil=Filipino|fj=Fijian|fo=Faroese|fr=French|frp=Franco-Provencal|fuc=Pulaar|fud=Futunan|fy=Frisian
ga=Irish|gag=Gagauz|gd=Gaelic|gil=Gilbertese|gl=Galician|gn=Guarani|gv=Manx|ha=Hausa|haw=Hawaiian|he=Hebrew
hi=Hindi|hna=Mina|hns=Sarnami|ho=Hiri Motu|hr=Croatian|ht=Haitian Creole|hu=Hungarian|hy=Armenian
id=Indonesian|is=Icelandic|it=Italian|iu=Inuktitut|ja=Japanese|ka=Georgian|kg=Kongo|kk=Kazakh|kl=Greenlandic
km=Khmer|ko=Korean|kr=Kanuri|ktu=Kituba|ku=Kurdish|ky=Kyrgyz|la=Latin|lb=Luxembourgish|lg=Luganda|ln=Lingala
lo=Lao|loz=Lozi|lt=Lithuanian|lv=Latvian|men=Mende|meu=Motu|mey=Hassaniya|mg=Malagasy|mh=Marshallese|mi=Maori
miq=Miskito|mk=Macedonian|ml=Malayalam|mn=Mongolian|mnk=Mandinka|mos=Mossi|ms=Malay|mt=Maltese
mwl=Mirandese|my=Burmese|na=Nauruan|nan=Min Nan|naq=Nama|nb=Bokmal|nd=Ndebele|ne=Nepali|niu=Niuean|nl=Dutch
nn=Nynorsk|no=Norwegian|nr=Ndebele|nrf=Norman|nso=Northern Sotho|ny=Chichewa|om=Oromo|pap=Papiamento
pau=Palauan|pl=Polish|pon=Pohnpeian|pov=Crioulo|ps=Pashto|pt=Portuguese|qu=Quechua|rm=Romansh|rn=Kirundi|ro=Romanian
rom=Romani|ru=Russian|rw=Kinyarwanda|se=Sami|sg=Sango|sh=Serbo-Croatian|si=Sinhala|sk=Slovak|sl=Slovenian
sm=Samoan|sma=Southern Sami|sn=Shona|snk=Soninke|so=Somali|sov=Sonsorolese|sq=Albanian|sr=Serbian
srn=Sranan Tongo|ss=Swati|st=Sotho|sv=Swedish|sw=Swahili|ta=Tamil|tem=Temne|tet=Tetum|tg=Tajik|th=Thai
ti=Tigrinya|tig=Tigre|tk=Turkmen|tkl=Tokelauan|tl=Tagalog|tn=Tswana|to=Tongan|tpi=Tok Pisin|tr=Turkish
tt=Tatar|tum=Tumbuka|tvl=Tuvaluan|ty=Tahitian|uk=Ukrainian|ur=Urdu|uz=Uzbek|vi=Vietnamese|vmw=Makhuwa|wls=Wallisian
wo=Wolof|wof=Wolof|wuu=Wu Chinese|xal=Kalmyk|xh=Xhosa|yao=Yao|yo=Yoruba|yue=Cantonese|zh=Chinese|zu=Zulu
"""


def _parse(names: str) -> dict[str, str]:
    entries = (entry.partition("=") for entry in names.strip().replace("\n", "|").split("|"))
    return {code: name for code, _, name in entries}


LANGUAGES: dict[str, str] = _parse(_NAMES)
