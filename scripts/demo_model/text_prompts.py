"""Texts that the text encoder is trained on, each with the facts it states: captions of the corpus and free prompts.

Captions alone would teach little: they always keep the same order, use few words, and never name a harp in house. So
half of the texts combine any properties in any order, and captions are cut short and rephrased.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from musicgen_train.demo.caption_reading import SINGLE, Facts, find_phrases, read_facts, ways_to_say
from musicgen_train.demo.corpus import captions_of
from musicgen_train.demo.draws import Draws

NOUNS = ("track", "song", "piece", "tune", "music", "melody", "instrumental", "loop", "composition", "background music")
# Words that state no property of the corpus; the encoder must learn to ignore them.
_OTHER_WORDS = """
a the and of for my your some this that very really quite more less little great good nice beautiful amazing
simple catchy modern old new classic vintage retro original cinematic romantic magical mysterious strange elegant
about like inspired by style feel mood vibe sound sounds tone texture theme story scene film movie trailer video
game podcast intro outro ending verse chorus bridge hook riff solo rhythm harmony chord note scale beat bar tempo
sea ocean rain night morning summer winter forest city street road car train dream love heart light sky star moon
sunrise sunset journey adventure hero battle party wedding birthday coffee shop restaurant elevator radio studio
live band orchestra quartet trio ensemble performance recording high low quality stereo mono 4k 70s 90s 2020s
pop classical opera reggae latin bossa nova samba tango flamenco gospel r&b indie alternative experimental
playing plays play with without featuring feat using over under into through slowly gradually building build
builds up down drop break fade repeat repeating layered layers background foreground voice vocal singing lyrics
please make me create generate write give want need something anything everything people children friends family
"""
OTHER_WORDS = tuple(_OTHER_WORDS.split())

_OPENINGS = ("", "", "", "make me ", "I want ", "please write ", "music for a video: ", "this is ", "generate ")
_SEPARATORS = (", ", ", ", " ", " / ", "; ", " and ")
_TYPO_SHARE, _OTHER_WORDS_SHARE = 0.1, 0.25
# Most prompts ask for a tempo of the corpus, since those are what the decoder can play.
_CORPUS_TEMPOS = tuple(tempo for tempo in SINGLE["bpm"] if 60 <= int(tempo) <= 150)
# The probability that a prompt names a property.
_SAID = {"style": 0.65, "tempo": 0.3, "mode": 0.3, "energy": 0.35, "brightness": 0.3, "drums": 0.3}


class PromptSource:
    """Draws texts without end.

    Args:
        seed: equal seeds give equal texts.
        pieces: number of composed pieces whose captions are used.
    """

    def __init__(self, seed: int, pieces: int) -> None:
        self._draws = Draws("prompts", seed)
        self._captions = [caption for index in range(pieces) for caption in captions_of(seed, index, seconds=4.0)]

    def draw(self) -> tuple[str, Facts]:
        """Return a text and the facts it states; some texts then get a typo, which the facts ignore."""
        draws = self._draws
        text = self._caption() if draws.chance(0.5) else free_prompt(draws)
        if draws.chance(_OTHER_WORDS_SHARE):
            text = _with_other_words(text, draws)
        facts = read_facts(text)
        return (_with_typo(text, draws) if draws.chance(_TYPO_SHARE) else text), facts

    def _caption(self) -> str:
        draws = self._draws
        caption = draws.choice(self._captions)
        form = draws.integer(0, 3)
        if form == 0:
            return rephrase(caption, draws)
        if form == 1:
            parts = caption.split(",")
            first = draws.integer(0, len(parts) - 1)
            return ",".join(parts[first : draws.integer(first + 1, len(parts))]).strip()
        return caption


def rephrase(text: str, draws: Draws, share: float = 0.6) -> str:
    """Replace a share of a text's phrases by others with the same meaning."""
    for phrase in reversed(find_phrases(text)):
        if phrase.facts in ways_to_say() and draws.chance(share):
            text = text[: phrase.start] + draws.choice(ways_to_say()[phrase.facts]) + text[phrase.end :]
    return text


def free_prompt(draws: Draws) -> str:
    """Draw a prompt that names some properties, whether or not they go together in the corpus."""
    words = {kind: _say(kind, draws) for kind, share in _SAID.items() if draws.chance(share)}
    players = [_player(draws) for _ in range(draws.integer(0, 3))]
    if draws.chance(0.25):
        key = draws.choice(SINGLE["key"])
        words.pop("mode", None)
        players.append(f"in {draws.choice(_ways_to_say_key(key))}")
    if draws.chance(0.3):
        words.pop("tempo", None)
        bpm = draws.integer(45, 220) if draws.chance(0.3) else int(draws.choice(_CORPUS_TEMPOS))
        players.append(f"{draws.choice(('', 'at '))}{bpm}{draws.choice((' bpm', ' BPM', 'bpm', ' beats per minute'))}")
    style, drums = words.pop("style", ""), words.pop("drums", "")
    adjectives = draws.shuffled(list(words.values()))
    if drums:
        players = draws.shuffled([*players, drums])
    if draws.chance(0.4):
        everything = [*adjectives, *([style] if style else []), *players]
        return draws.choice(_SEPARATORS).join(draws.shuffled(everything)) or draws.choice(NOUNS)
    later = adjectives.pop() if len(adjectives) > 1 and draws.chance(0.3) else ""
    front = draws.choice((", ", " ", " and ")).join(adjectives)
    if players and draws.chance(0.25):
        # "calm piano melody"
        style = " ".join(filter(None, (style, players.pop(0))))
    noun = "" if style and draws.chance(0.3) else draws.choice(NOUNS)
    text = draws.choice(_OPENINGS) + " ".join(filter(None, (draws.choice(("", "a")), front, style, noun)))
    if players:
        text += draws.choice((" with ", ", ", " featuring ")) + draws.choice((", ", " and ")).join(players)
    return text + (draws.choice((", sounds ", " that feels ", ". It is ", ", ")) + later if later else "")


def _say(kind: str, draws: Draws) -> str:
    value = draws.choice(SINGLE[kind])
    return draws.choice(ways_to_say()[frozenset({(kind, value)})])


def _player(draws: Draws) -> str:
    """Name an instrument, sometimes with what it plays, and rarely as absent."""
    alone, playing = _players()
    said = draws.choice(playing if draws.chance(0.35) else alone)
    article = "no " if draws.chance(0.03) else draws.choice(("", "", "a "))
    return article + draws.choice(ways_to_say()[said])


@functools.cache
def _players() -> tuple[Sequence[Facts], Sequence[Facts]]:
    """The facts that can be said of an instrument: that it plays, and that it plays a given figure."""
    kinds = {facts: {kind for kind, _ in facts} for facts in ways_to_say()}
    return (
        [facts for facts, said in kinds.items() if said == {"instrument"}],
        [facts for facts, said in kinds.items() if said == {"instrument", "figure"}],
    )


def _ways_to_say_key(key: str) -> Sequence[str]:
    return [text for facts, texts in ways_to_say().items() if ("key", key) in facts for text in texts]


def _with_other_words(text: str, draws: Draws) -> str:
    words = text.split(" ")
    for _ in range(draws.integer(1, 4)):
        words.insert(draws.integer(0, len(words)), draws.choice(OTHER_WORDS))
    return " ".join(words)


def _with_typo(text: str, draws: Draws) -> str:
    """Leave out, double or swap a letter in a word of at least five letters."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return text
    place = draws.choice(long)
    word, at = words[place], draws.integer(1, len(words[place]) - 2)
    this, following = word[at], word[at + 1]
    words[place] = word[:at] + draws.choice((following, this * 2 + following, following + this)) + word[at + 2 :]
    return " ".join(words)
