"""How a fact is asked for: the phrasings that atlas is trained on, and those it never sees before its test.

A trained phrasing is a question of its own, or a frame around a noun phrase; `{is}` agrees with that.
The unseen ones are written apart: a test proves that each differs by at least two words from every trained.
"""

from dataclasses import dataclass

FRAMES = (
    "What {is} {thing}?",
    "What's {thing}?",
    "Which {is} {thing}?",
    "Tell me {thing}.",
    "Please tell me {thing}.",
    "Tell me what {thing} {is}.",
    "Can you tell me {thing}?",
    "Can you tell me what {thing} {is}?",
    "Could you please tell me {thing}?",
    "Do you know {thing}?",
    "Do you know what {thing} {is}?",
    "Name {thing}.",
    "Please name {thing}.",
    "Give me {thing}.",
    "I want to know {thing}.",
    "I would like to know {thing}.",
    "I need {thing}.",
    "Hi, what {is} {thing}?",
    "So, what {is} {thing}?",
    "Quick question: what {is} {thing}?",
    "I wonder what {thing} {is}.",
    "Any idea what {thing} {is}?",
    "I forgot {thing}.",
    "{thing}",
    "{thing}?",
    "{thing}, please.",
    "For my homework: {thing}.",
    "What would you say {is} {thing}?",
    "Help me with {thing}.",
    "My friend asked me about {thing}.",
)

FOLLOW_UPS = (
    "And {its}?",
    "What about {its}?",
    "How about {its}?",
    "And what {is} {its}?",
    "What {is} {its}?",
    "Tell me {its} too.",
)

SAME_AGAIN = (
    "And {subject}?",
    "What about {subject}?",
    "And for {subject}?",
    "How about {subject}?",
    "{subject}?",
)


@dataclass(frozen=True)
class Phrasings:
    """The ways to ask for one relation: noun phrases, whole questions, follow-ups ("its …"), unseen ones."""

    things: tuple[str, ...]
    questions: tuple[str, ...]
    its: tuple[str, ...]
    unseen: tuple[str, ...]
    verb: str = "is"

    def trained(self) -> tuple[str, ...]:
        """Every phrasing to train on, each with one place for `{subject}`."""
        framed = (frame.format(thing=thing, **{"is": self.verb}) for frame in FRAMES for thing in self.things)
        return (*dict.fromkeys(phrase[0].upper() + phrase[1:] for phrase in framed), *self.questions)

    def follow_ups(self) -> tuple[str, ...]:
        """Phrasings that need the turn before, which was about the same country."""
        return tuple(frame.format(its=its, **{"is": self.verb}) for frame in FOLLOW_UPS for its in self.its)


PHRASINGS: dict[str, Phrasings] = {
    "capital": Phrasings(
        things=(
            "the capital of {subject}",
            "the capital city of {subject}",
            "{subject}'s capital",
            "the city that is capital of {subject}",
        ),
        questions=(
            "Which city is the capital of {subject}?",
            "What city is the capital of {subject}?",
            "What is the name of the capital of {subject}?",
            "What is {subject}'s capital city called?",
            "{subject} has which capital?",
            "{subject} capital",
            "Where is the government of {subject}?",
            "Which city is the seat of government in {subject}?",
            "From which city is {subject} governed?",
            "Does {subject} have a capital, and which one?",
            "What do people call the capital of {subject}?",
            "I am going to {subject}, what is the capital there?",
        ),
        its=("its capital", "the capital", "the capital city"),
        unseen=(
            "Let's see if you remember which capital belongs to {subject}.",
            "If I visit {subject}, what capital city will I be in?",
            "My teacher wants the name of the capital that {subject} has.",
            "Is there a capital city in {subject}? If so, which?",
            "Capital city for the country {subject}, do you know it?",
            "Remind me again which city serves as capital of {subject}.",
            "How is the capital of {subject} named?",
            "Which capital would I fly to in {subject}?",
        ),
    ),
    "capital_of": Phrasings(
        things=(
            "the country whose capital is {subject}",
            "the country with the capital {subject}",
            "the country that has {subject} as its capital",
            "the country {subject} is the capital of",
        ),
        questions=(
            "{subject} is the capital of which country?",
            "{subject} is the capital of what?",
            "Of which country is {subject} the capital?",
            "What country has {subject} as its capital?",
            "Which country's capital is {subject}?",
            "Which country has its capital in {subject}?",
            "What country is {subject} the capital of?",
            "{subject} is whose capital?",
            "Which country is governed from {subject}?",
            "Whose capital city is {subject}?",
            "I know that {subject} is a capital, but of which country?",
            "Which land calls {subject} its capital?",
        ),
        its=(),
        unseen=(
            "If {subject} is the capital, which country am I in?",
            "A capital called {subject}: to which country does it belong?",
            "For what country does {subject} serve as the capital city?",
            "I flew to {subject}, a capital city. Which country is that?",
            "Guess which country uses {subject} as capital.",
            "Somebody said {subject} is a capital. Of what country exactly?",
            "Which nation has the capital city {subject}?",
            "Match this capital with its country: {subject}.",
        ),
    ),
    "continent": Phrasings(
        things=(
            "the continent of {subject}",
            "{subject}'s continent",
            "the continent that {subject} is in",
            "the continent where {subject} lies",
            "the continent {subject} belongs to",
        ),
        questions=(
            "Which continent is {subject} in?",
            "What continent is {subject} on?",
            "On which continent is {subject}?",
            "In which continent does {subject} lie?",
            "On what continent can I find {subject}?",
            "To which continent does {subject} belong?",
            "{subject} is on which continent?",
            "{subject} is part of which continent?",
            "{subject} continent",
            "Which continent is home to {subject}?",
            "Where in the world is {subject}, which continent?",
            "{subject} belongs to what continent?",
        ),
        its=("its continent", "the continent", "the continent it is in"),
        unseen=(
            "If I look for {subject} on a globe, which continent should I turn to?",
            "Would you say which continent {subject} counts as part of?",
            "Under which continent is {subject} listed in an atlas?",
            "Which of the continents includes {subject}?",
            "My atlas is lost. On which continent would {subject} be?",
            "People from {subject} live on what continent?",
            "Travelling to {subject} means travelling to which continent?",
            "Please sort {subject} into a continent.",
        ),
    ),
    "currency": Phrasings(
        things=(
            "the currency of {subject}",
            "{subject}'s currency",
            "the currency used in {subject}",
            "the money of {subject}",
            "the official currency in {subject}",
        ),
        questions=(
            "Which currency does {subject} use?",
            "What currency do they use in {subject}?",
            "What money do people use in {subject}?",
            "What kind of money is used in {subject}?",
            "How do people pay in {subject}?",
            "What do I pay with in {subject}?",
            "Which currency is used in {subject}?",
            "{subject} uses which currency?",
            "{subject} currency",
            "With what currency can I pay in {subject}?",
            "In {subject}, what is the currency?",
            "Which money do I need in {subject}?",
        ),
        its=("its currency", "the currency", "the money there"),
        unseen=(
            "I am changing money before flying to {subject}. Which currency should I get?",
            "Prices in {subject} are given in what currency?",
            "If I buy bread in {subject}, which currency do I hand over?",
            "What is the name of the currency that {subject} prints?",
            "Which currency will be in my wallet in {subject}?",
            "Shops in {subject} take which currency?",
            "Salaries in {subject} are paid in which currency?",
            "For a trip to {subject}, what money should I bring?",
        ),
    ),
    "languages": Phrasings(
        things=(
            "the languages of {subject}",
            "{subject}'s languages",
            "the languages spoken in {subject}",
            "the main languages of {subject}",
        ),
        questions=(
            "Which languages are spoken in {subject}?",
            "What languages do people speak in {subject}?",
            "What do people speak in {subject}?",
            "Which language do they speak in {subject}?",
            "What language is spoken in {subject}?",
            "{subject} speaks which languages?",
            "{subject} languages",
            "In {subject}, what do people speak?",
            "Which languages does {subject} have?",
            "What is the language of {subject}?",
            "How do people talk in {subject}, in which language?",
            "What languages can I hear in {subject}?",
        ),
        its=("its languages", "the languages", "the languages there"),
        verb="are",
        unseen=(
            "Which language should I learn before I move to {subject}?",
            "If I lived in {subject}, what languages would my neighbours talk in?",
            "Newspapers in {subject} are written in which languages?",
            "A person from {subject} usually speaks what language?",
            "What languages will I need on holiday in {subject}?",
            "Say which languages the people of {subject} use.",
            "Children in {subject} grow up with which languages?",
            "In what language do they say good morning in {subject}?",
        ),
    ),
    "neighbours": Phrasings(
        things=(
            "the neighbours of {subject}",
            "{subject}'s neighbours",
            "the countries that border {subject}",
            "the countries next to {subject}",
            "the neighbouring countries of {subject}",
        ),
        questions=(
            "Which countries border {subject}?",
            "What countries does {subject} border?",
            "Which countries share a border with {subject}?",
            "With which countries does {subject} share a border?",
            "Who are the neighbours of {subject}?",
            "What borders {subject}?",
            "{subject} borders which countries?",
            "{subject} neighbours",
            "Which countries lie around {subject}?",
            "{subject} has which neighbours?",
            "What are the borders of {subject}?",
            "Does {subject} have neighbours, and which ones?",
        ),
        its=("its neighbours", "the neighbours", "the countries around it"),
        verb="are",
        unseen=(
            "If I leave {subject} by car, which countries can I drive into?",
            "Draw a map around {subject}: which countries touch it?",
            "Which countries would I see on the other side of the border of {subject}?",
            "List all neighbours that {subject} has on land.",
            "Starting in {subject}, which countries can I walk to?",
            "Which states are adjacent to {subject}?",
            "{subject} shares its land borders with whom?",
            "Are there countries bordering on {subject}? Which?",
        ),
    ),
    "population": Phrasings(
        things=(
            "the population of {subject}",
            "{subject}'s population",
            "the number of people in {subject}",
            "the number of inhabitants of {subject}",
        ),
        questions=(
            "How many people live in {subject}?",
            "How many people are there in {subject}?",
            "How many inhabitants does {subject} have?",
            "How large is the population of {subject}?",
            "How big is {subject}'s population?",
            "{subject} has how many people?",
            "{subject} population",
            "About how many people live in {subject}?",
            "What number of people live in {subject}?",
            "How many citizens does {subject} have?",
            "How populous is {subject}?",
            "In {subject}, how many people are there?",
        ),
        its=("its population", "the population", "the number of people there"),
        unseen=(
            "If everybody in {subject} came to a party, how many people would come?",
            "Roughly how many persons call {subject} their home?",
            "Count the people of {subject} for me.",
            "What is the head count of the people living in {subject}?",
            "How many human beings live in the country of {subject}?",
            "Is the population of {subject} large? How many people?",
            "Give me an estimate of how many residents {subject} has.",
            "How many people would a census find in {subject}?",
        ),
    ),
    "city": Phrasings(
        things=(
            "the country of the city {subject}",
            "the country where {subject} is",
            "the country that {subject} is in",
            "the country {subject} lies in",
        ),
        questions=(
            "Where is {subject}?",
            "In which country is {subject}?",
            "Which country is {subject} in?",
            "What country is {subject} in?",
            "In which country does {subject} lie?",
            "{subject} is a city in which country?",
            "{subject} is in which country?",
            "Where is the city of {subject}?",
            "To which country does the city of {subject} belong?",
            "Where can I find {subject}?",
            "Where does {subject} lie?",
            "What country does {subject} belong to?",
        ),
        its=(),
        unseen=(
            "I have a ticket to {subject}. Which country will I land in?",
            "My cousin moved to {subject}; which country is it located in?",
            "Point me to the country in which I would find the city {subject}.",
            "Somebody born in {subject} was born in which country?",
            "If I am standing in {subject}, what country am I in?",
            "Whereabouts is {subject}, I mean which country?",
            "Which country has a big city named {subject}?",
            "Which country do I have to enter to see {subject}?",
        ),
    ),
}
