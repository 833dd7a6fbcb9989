"""Lists of English words that instructions of IFBench are about."""

_CONJUNCTIONS = "and but for nor or so yet"
_PRONOUNS = """
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
it its itself they them their theirs themselves
"""
_STOP_WORDS = """
what which who whom this that these those am is are was were be been being have has had having do does did doing a an
the and but if or because as until while of at by for with about against between into through during before after above
below to from up down in out on off over under again further then once here there when where why how all any both each
few more most other some such no nor not only own same so than too very s t can will just don should now d ll m o re ve
y ain aren couldn didn doesn hadn hasn haven isn ma mightn mustn needn shan shouldn wasn weren won wouldn
"""
_NAMES = """
Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia Benjamin Harper Leo
Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella Jacob Scarlett Nathan Victoria Elijah Layla
Nicholas Audrey David Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan
"""

CONJUNCTIONS = frozenset(_CONJUNCTIONS.split())
PRONOUNS = frozenset(_PRONOUNS.split())
STOP_WORDS = PRONOUNS | frozenset(_STOP_WORDS.split())  # of NLTK's list for English
NAMES = frozenset(_NAMES.split())  # that `count:person_names` counts
