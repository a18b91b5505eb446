"""Facts, questions and short chat: everything that is made up rather than read.

The test side never shares names, wordings or positions with training: names are split by a checksum, wordings
by list, and a fact may start only at token positions with p % 8 == 5 in tests, never there in training."""

import zlib

ONSETS = "b br c ch d dr f fl g gl gr h j k kl l m n p pl qu r s sh sk sl st t th tr v w z".split()
VOWELS = "a e i o u ai ea ee ia io oa ou".split()
CODAS = ["", "", "", "n", "r", "l", "s", "th", "m", "nd", "rk", "x", "ck", "t", "v", "nt"]
ENDS = "a o us in el ar is on ia ett win ley ton man der ric mund bert a e y".split()

THINGS = [
    "code",
    "number",
    "password",
    "key",
    "secret number",
    "room number",
    "access code",
    "pin",
    "ticket number",
    "locker code",
    "telephone number",
    "badge number",
    "token",
    "account number",
    "gate code",
]

# {t} thing, {n} name, {v} value. The first list of each pair trains, the second only tests.
FACTS = (
    [
        "The {t} of {n} is {v}.",
        "{n}'s {t} is {v}.",
        "The {t} for {n} is {v}.",
        "{n} has the {t} {v}.",
        "For {n}, the {t} is {v}.",
        "Remember that the {t} of {n} is {v}.",
        "The {t} that belongs to {n} is {v}.",
        "{n} was given the {t} {v}.",
        "Note: the {t} of {n} is {v}.",
        "It is known that {n}'s {t} is {v}.",
        "They say the {t} of {n} is {v}.",
        "{n} uses {v} as the {t}.",
        "As for {n}, the {t} is {v}.",
        "Please write down {n}'s {t}: {v}.",
        "{t} of {n}: {v}.",
        "{n} wrote down the {t}, which was {v}.",
        "On the list, {n} stands beside the {t} {v}.",
        "The {t} of {n} was set to {v}.",
        "{n} told me that the {t} is {v}.",
        "{v} is the {t} of {n}.",
        "The {t} {v} belongs to {n}.",
        "{n} ({t} {v}) signed the book.",
        "Nobody but {n} knew the {t} {v}.",
        "We gave {n} the {t} {v}.",
        "When asked for a {t}, {n} always answers {v}.",
    ],
    [
        "Do not forget that {n}'s {t} is {v}.",
        "The {t} assigned to {n} is {v}.",
        "You should know that {n} has the {t} {v}.",
        "According to the letter, the {t} of {n} is {v}.",
        "{n} keeps the {t} {v}.",
        "In the end {n} chose the {t} {v}.",
        "Here is the {t} of {n}: {v}.",
    ],
)
ASKS = (
    [
        "What is the {t} of {n}?",
        "What is {n}'s {t}?",
        "Tell me the {t} of {n}.",
        "Which {t} does {n} have?",
        "Do you know the {t} of {n}?",
        "What was the {t} of {n}?",
        "Give me {n}'s {t}.",
        "Please repeat the {t} of {n}.",
        "I forgot the {t} of {n}. What is it?",
        "Find the {t} of {n} in the text.",
        "And the {t} of {n}?",
        "What {t} belongs to {n}?",
        "From the text above, what is the {t} of {n}?",
        "How about the {t} of {n}?",
    ],
    [
        "Can you tell me the {t} of {n}?",
        "According to the text, what is {n}'s {t}?",
        "I need the {t} of {n}.",
        "What did the text say was the {t} of {n}?",
        "Name the {t} of {n}.",
    ],
)
ANSWER = "The {t} of {n} is {v}."
WORD_VALUES = """amber apple arrow autumn badger barley beacon birch bramble bridge bronze button candle
canyon castle cedar cherry cloud cobalt copper coral cotton crystal daisy dragon eagle ember falcon feather
fern flint forest garnet ginger glacier granite harbor hazel heron honey indigo iron island ivory jasper
juniper kettle ladder lantern lemon lilac linen lion lizard maple marble meadow mirror monkey mountain mustard
nettle oak ocean olive onyx orange orchid otter paper parrot pearl pepper piano pine planet plum pocket poppy
prairie quartz rabbit raven ribbon river robin rose ruby saddle saffron sailor salmon scarlet shadow silver
sparrow spider spring summer sunset swallow thistle thunder tiger timber tulip turtle valley velvet violet
walnut water whistle willow window winter wolf yellow""".split()


def is_test_name(name):
    return zlib.crc32(name.encode()) % 8 == 0


def make_name(rng, test):
    while True:
        word = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
        if rng.random() < 0.4:
            word += rng.choice(ONSETS) + rng.choice(VOWELS)
        word += rng.choice(ENDS)
        if rng.random() < 0.25:
            word += " " + (rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(ENDS)).capitalize()
        word = word[0].upper() + word[1:]
        if is_test_name(word) == test:
            return word


def make_value(rng):
    r = rng.random()
    if r < 0.75:
        return str(rng.randrange(10, 100) * 10**3 + rng.randrange(1000))[: rng.choice((3, 4, 4, 5, 5))]
    if r < 0.9:
        return rng.choice(WORD_VALUES)
    return rng.choice(WORD_VALUES) + " " + rng.choice(WORD_VALUES)


class Fact:
    def __init__(self, rng, test, names, number_only=False):
        self.name = make_name(rng, test)
        while self.name in names:
            self.name = make_name(rng, test)
        names.add(self.name)
        self.thing = rng.choice(THINGS)
        self.value = str(rng.randrange(10000, 100000)) if number_only else make_value(rng)
        side = 1 if test else 0
        self.told = self.fill(rng.choice(FACTS[side]))
        self.asked = self.fill(rng.choice(ASKS[side]))

    def fill(self, wording):
        text = wording.format(t=self.thing, n=self.name, v=self.value)
        return text[0].upper() + text[1:]

    def answer_parts(self):
        """The answer cut where its value starts and ends."""
        before, after = ANSWER.split("{v}")
        return before.rstrip().format(t=self.thing, n=self.name), " " + self.value, after


# --- chat ---
CAPITALS = dict(
    zip(
        """France Italy Spain Germany England Scotland Ireland Portugal Greece Austria Norway
Sweden Finland Denmark Poland Hungary Russia Egypt Japan China India Canada Cuba Peru Chile Turkey Belgium
Iceland Kenya""".split(),
        """Paris Rome Madrid Berlin London Edinburgh Dublin Lisbon Athens Vienna Oslo Stockholm Helsinki
    Copenhagen Warsaw Budapest Moscow Cairo Tokyo Beijing Delhi Ottawa Havana Lima Santiago Ankara Brussels
    Reykjavik Nairobi""".split(),
    )
)
OPPOSITES = """hot cold|big small|day night|old young|good bad|high low|open closed|light dark|rich poor|
long short|near far|wet dry|fast slow|hard soft|full empty|early late|strong weak|true false|happy sad|
black white""".split("|")
COLOURS = dict(
    p.split()
    for p in """sky blue|grass green|snow white|coal black|blood red|gold yellow|sun yellow|
leaf green|night black|milk white|rose red|sea blue""".split("|")
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
ANIMALS = dict(
    p.split()
    for p in """dog barks|cat meows|cow moos|sheep bleats|horse neighs|lion roars|duck quacks|
bird sings|wolf howls|bee hums|pig grunts|snake hisses|frog croaks|crow caws""".split("|")
)
FIXED = [
    (
        ["Hello", "Hello!", "Hi", "Hi there", "Good morning", "Hey"],
        ["Hello! How can I help you?", "Hello! What can I do for you?"],
    ),
    (["How are you?", "How are you today?", "How do you do?"], ["I am well, thank you. How can I help you?"]),
    (
        ["Who are you?", "What are you?", "What is your name?"],
        ["I am a very small language model. I know a little, and I can find what you tell me."],
    ),
    (
        ["What can you do?", "Can you help me?", "Help"],
        ["I can answer short questions, and find facts in the text you give me."],
    ),
    (["Thank you", "Thanks!", "Thank you very much."], ["You are welcome."]),
    (["Goodbye", "Bye", "Good night"], ["Goodbye!"]),
    (["How many days are in a week?"], ["There are seven days in a week."]),
    (["How many months are in a year?"], ["There are twelve months in a year."]),
]


def chat_pair(rng):
    """One short question and its answer."""
    kind = rng.randrange(11)
    pick = rng.choice
    if kind <= 1:
        asks, answers = pick(FIXED)
        return pick(asks), pick(answers)
    if kind == 2:
        land = pick(list(CAPITALS))
        return (
            pick(
                [
                    "What is the capital of {}?",
                    "Tell me the capital of {}.",
                    "Which city is the capital of {}?",
                ]
            ).format(land),
            f"The capital of {land} is {CAPITALS[land]}.",
        )
    if kind == 3:
        a, b = pick(OPPOSITES).split()
        if rng.random() < 0.5:
            a, b = b, a
        return (
            pick(["What is the opposite of {}?", "Tell me the opposite of {}."]).format(a),
            f"The opposite of {a} is {b}.",
        )
    if kind == 4:
        thing = pick(list(COLOURS))
        return (
            pick(["What colour is {}?", "What color is {}?"]).format("the " + thing),
            f"The {thing} is {COLOURS[thing]}.",
        )
    if kind == 5:
        cycle = pick([DAYS, MONTHS])
        i = rng.randrange(len(cycle))
        return (
            pick(["What comes after {}?", "Which comes after {}?"]).format(cycle[i]),
            f"After {cycle[i]} comes {cycle[(i + 1) % len(cycle)]}.",
        )
    if kind == 6:
        i = rng.randrange(len(NUMBERS) - 1)
        return f"Which number comes after {NUMBERS[i]}?", f"After {NUMBERS[i]} comes {NUMBERS[i + 1]}."
    if kind == 7:
        a, b = rng.randrange(10), rng.randrange(10)
        return pick(["What is {} plus {}?", "What is {} + {}?"]).format(a, b), f"{a} plus {b} is {a + b}."
    if kind == 8:
        animal = pick(list(ANIMALS))
        return f"What does a {animal} do?", f"A {animal} {ANIMALS[animal]}."
    if kind == 9:
        words = " ".join(pick(WORD_VALUES) for _ in range(rng.randrange(1, 5)))
        return pick(["Say: {}", "Repeat after me: {}", "Please say {}"]).format(
            words
        ), f"{words.capitalize()}."
    name = make_name(rng, False)
    return (
        pick(["My name is {}.", "I am {}.", "Hello, I am {}."]).format(name),
        f"Hello, {name}! How can I help you?",
    )
