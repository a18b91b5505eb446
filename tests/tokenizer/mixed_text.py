"""A few thousand lines of mixed text: prose, source code, many scripts, and everything that is awkward to cut."""
import os, random, sysconfig, unicodedata

PROSE = [
    "The quick brown fox doesn't jump over the lazy dog; it's 12,345.67 metres away, isn't it?",
    "I'll say we've won, they're here, you'd better go, I'm late -- SHE'S LATE, THEY'VE LEFT, I'LL STAY, WE'RE OFF.",
    "Die Übergrößenträger kauften für 3,50 € sechs Äpfel; daß „das“ so heißt, weiß man.",
    "L'été dernier, nous avons mangé des crêpes à l'œuf, n'est-ce pas ? C'était déjà l'aube.",
    "El pingüino comió ñoquis en el año 2024, ¿verdad? ¡Sí!",
    "Příliš žluťoučký kůň úpěl ďábelské ódy. Zażółć gęślą jaźń. Árvíztűrő tükörfúrógép.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю — №5.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Τι κάνεις;",
    "我今天去了北京大学，看见了三只猫。价格是１２３４元！「你好」",
    "今日は東京で寿司を食べました。カタカナとひらがな、漢字が混ざります。ｶﾞｷﾞｸﾞ",
    "안녕하세요, 오늘 날씨가 좋네요. 한국어 문장입니다 ㅋㅋㅋ",
    "مرحبا بالعالم، كَيْفَ حَالُكَ؟ السعر ١٢٣٫٤٥ ريال.",
    "שלום עולם, מה שלומך? בְּרֵאשִׁית בָּרָא אֱלֹהִים",
    "नमस्ते दुनिया, आप कैसे हैं? क्षत्रिय १२३४",
    "வணக்கம் உலகம்! தமிழ் எழுத்துக்கள்",
    "สวัสดีชาวโลก วันนี้อากาศดีมากๆ ๑๒๓",
    "សួស្តី​ពិភពលោក មាន​អក្សរ​ច្រើន",
    "Xin chào thế giới, tiếng Việt có nhiều dấu: ắ ằ ẳ ẵ ặ.",
    "👋🏽 Hello 👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 🇩🇪🇯🇵 keycap 1️⃣ ❤️‍🔥 🤦🏻‍♀️!!!",
    "x² + y³ ≥ ½·z₄ ⇒ ∑ₙ ∫∂x √π ≈ 3.14159 Ⅷ ⅷ ① ㊷",
    "e\u0301 a\u0308 o\u0302\u0323 n\u0303 \u0301alone Z\u0351\u036b\u0343a\u0324l\u0316g\u0301o",
    "''' \"\"\" ``` '' 's 't 're 'LL 'Ve 'D 'm' ' s ''s it''s 'sit 'tis",
    "tabs\tand\t\tmore\t\t\ttabs,   three spaces,  two, trailing   ",
    "    indented\n        more\n\n\n    back\r\n\r\nwindows\r\rold mac\n \n  \n\t\nend\n\n",
    "nbsp\u00a0here\u2003em\u2009thin\u3000wide\u2028line\u2029para\u0085nel\u1680ogham\u180emvs\u200bzwsp\ufeffbom",
    "nul\0byte \x01\x02\x1b[31mred\x1b[0m \x7f \x1c\x1d\x1e\x1f",
    "1 12 123 1234 12345 123456 1234567 0x1F 1e-10 1_000_000 12.34.56 ١٢٣٤ ⅓¼",
    "https://example.com/a/b?c=d&e=%20f#g user@example.org C:\\Windows\\System32 /usr/lib/x86_64",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "=====----=====****#####_____.....,,,,,;;;;;:::::!!!!!?????((((([[[[[{{{{{<<<<<>>>>>}}}}}]]]]])))))",
    "<|im_start|>user\nhi<|im_end|> <|endoftext|> <|eot_id|> <s> </s> [INST] <0x0A> <unk>",
    "camelCaseWord HTTPServerError snake_case_word SCREAMING_CASE kebab-case-word iPhone15ProMax McDONALD's",
]

RANGES = [(0x20, 0x7F), (0xA0, 0x250), (0x250, 0x370), (0x370, 0x530), (0x530, 0x590), (0x590, 0x780), (0x900, 0xE00),
          (0xE00, 0x1000), (0x1000, 0x1400), (0x1780, 0x1900), (0x1E00, 0x2000), (0x2000, 0x2070), (0x2070, 0x2C00),
          (0x3000, 0x3400), (0x4E00, 0xA000), (0xA000, 0xA8E0), (0xAC00, 0xD7A4), (0xF900, 0xFFFE), (0x10000, 0x10900),
          (0x1D400, 0x1D800), (0x1F000, 0x1FB00), (0x20000, 0x20100)]


def code_and_docs(rng, n):
    """Lines of Python's standard library: code, and the prose of pydoc's topics."""
    lines, root = [], sysconfig.get_path("stdlib")
    for name in ["argparse.py", "typing.py", "difflib.py", "decimal.py", "_pydecimal.py", "pydoc_data/topics.py",
                 "html/entities.py", "json/encoder.py", "textwrap.py", "encodings/aliases.py"]:
        path = os.path.join(root, name)
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as f:
                lines += f.read().split("\n")
    out = []
    while lines and len(out) < n:
        at = rng.randrange(len(lines))
        out.append("\n".join(lines[at:at + rng.choice([1, 1, 2, 5, 20])]))
    return out


def random_text(rng):
    """Characters of a few ranges. Unassigned ones are left out: libraries know different versions of Unicode. What
    counts is assigned in Python 3.11's (14.0) already."""
    out = []
    for _ in range(rng.randrange(1, 12)):
        low, high = rng.choice(RANGES)
        for _ in range(rng.randrange(1, 10)):
            c = chr(rng.randrange(low, high))
            if unicodedata.category(c) not in ("Cn", "Cs", "Co"):
                out.append(c)
        out.append(rng.choice(["", "", " ", "  ", "\n", "\r\n", "\t", "'s", "'RE", "1", "12", ".", "\u0301", "\u00a0"]))
    return "".join(out)


def spliced(rng):
    parts = []
    for _ in range(rng.randrange(2, 6)):
        s = rng.choice(PROSE)
        a = rng.randrange(len(s))
        parts.append(s[a:a + rng.randrange(1, 30)])
        parts.append(rng.choice(["", " ", "  ", "\n", "\n\n", "\t", "   \n", " \r\n "]))
    return "".join(parts)


def mixed_lines(n, extra_files=(), seed=1):
    rng = random.Random(seed)
    lines = list(PROSE) + ["", " ", "  ", "\n", "\t", "a", " a", "\u0301", "1", "12345678901"]
    lines += code_and_docs(rng, n // 4)
    for path in extra_files:
        with open(path, encoding="utf-8", errors="replace") as f:
            text = f.read().split("\n")
        for _ in range(n // 4 // len(extra_files)):
            at = rng.randrange(len(text))
            lines.append("\n".join(text[at:at + rng.choice([1, 2, 6])]))
    while len(lines) < n:
        lines.append(random_text(rng) if rng.random() < 0.5 else spliced(rng))
    return lines
