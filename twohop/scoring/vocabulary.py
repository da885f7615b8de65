"""The words that the rules of scoring know, all of them in the form in which words are compared.

What is done with them is written in ``docs/scoring.md``.
"""

Phrases = dict[str, tuple[tuple[str, ...], ...]]
"""Phrases by their first word: what may follow it."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _phrases(lines: str) -> Phrases:
    phrases: Phrases = {}
    for line in lines.split(" | "):
        first, *rest = line.split()
        phrases[first] = (*phrases.get(first, ()), tuple(rest))
    return phrases


# Where a direction names a part of it, and nothing else.
PARTS = {
    "africa": _set("north east west"),
    "asia": _set("north south east west"),
    "europe": _set("north south east west"),
}
# Names that go on are other names, also where the longer one is in no list.
DIRECTIONS = _set("new north south east west")
LONGER_NAMES = (
    "Papua New Guinea", "Equatorial Guinea", "Guinea-Bissau", "Northern Ireland",
    "Northern Cyprus", "Democratic Republic of the Congo", "Democratic Republic of Congo",
    "DR Congo", "DRC Congo", "American Samoa", "Western Sahara", "Inner Mongolia",
    "Mexico City", "Kuwait City", "Panama City", "Guatemala City", "Quebec City",
    "Oklahoma City", "Kansas City", "Baja California", "French Guiana", "Dominican Republic",
)  # fmt: skip
# Behind a hyphen these describe, and the name stands for itself: "Paris-based".
BEHIND_HYPHEN = _set(
    "a an the it its this that which city based born style speaking area made led native is area"
)
# Names that are also ordinary words: they are names only where they are written as names.
ORDINARY = _set(
    "a i nice male reading bath mobile split may march cork orange us it in is as at be by do he "
    "if me my of on or so to up we go am who no an and are can did for how its let now one out see "
    "she the too use was way you all any but end few had has her him his not off old our own per "
    "put say set top try two why yet bar ball lens tours rich essen chili"
)

ABBREVIATED = _set("saint mount dr mr mrs ms prof no nr c ca approx vs jr sr fort etc")
# Words that say nothing else than that, and how surely, an answer is given.
ANSWERING = _set(
    "a an the it its it's is are was were be been being am im i id we you they he she this that "
    "these those there here one who whom which what where when whose answer answers correct right "
    "true final option choice choices name names named called known as think believe guess say "
    "would will shall should could can might may must seems seem looks look appears appear like "
    "probably maybe perhaps possibly likely certainly definitely surely clearly indeed sure of in "
    "to for on at by with from into or and nor either both even also too well so thus therefore "
    "hence then but however rather just only simply most more very quite really my your his her "
    "their our me mine him them us yes yeah ok okay hmm um uh well oh ah please note city town "
    "country place thing person year number no possible another alternatively best least has have "
    "had do does did if not actually wait sorry again still else vs versus 1st 2nd "
    "3rd together namely "
    "les la le el il der die das est ist es et und y e o ou oder eller tai lub albo "
    "или либо и або او ام و هي هو يا או η και या और है veya yahut ya da ve atau hoac "
    "또는 혹은 아니면 그리고 vielleicht wahrscheinlich peut etre probablement quizas tal vez forse "
    "возможно может быть наверное вероятно "
    "或 者 还 還 和 与 與 及 と か や 是"
)
VERBS = _set(
    "is are was were be has have had lies lie flows does do did can could may might will would "
    "means refers remains became become died born wrote located situated serves speak speaks its "
    "isnt wasnt arent werent doesnt didnt thats"
)
# Who says something else, if a verb of saying is near: "many think", not "many live".
REPORTERS = _set("some many most people others commonly popularly often sometimes")
SAYING = _set(
    "say says said think thinks thought believe believes believed assume assumes assumed claim "
    "claims claimed guess suppose call calls called consider imagine expect mistake mistaken "
    "answer confuse known"
)
REPORTING = _set("mistakenly wrongly confused")
CONCEDING = _set("although though while whereas unlike despite even except besides")
RELATIVE = _set("which who whose where that")
CONTRASTING = _set("but however instead sondern mais sino aber ma yet")
# Behind a comma: what is so against what was.
NOW = _phrases(
    "now | today | nowadays | since then | these days | heute | jetzt | aujourdhui | hoy | ahora | "
    "сейчас | теперь"
)
CLAUSES = CONTRASTING | _set("while whereas although though because so")

# Right before a name: it is said of something else, and counts only where nothing else is said.
BESIDE = _set(
    "unlike near formerly former previously beside alongside outside toward "
    "towards until like compared fruher ehemals autrefois antiguamente раньше ранее"
)
BESIDE_PHRASES = _phrases("used to be | was once | once was | was formerly | was previously")
DIRECTION_OF = _set("north south east west ahead instead outside northeast northwest southeast "
                    "southwest northern part center")  # fmt: skip
# "The city of X" is X, "the capital of X" is not.
PLACES_OF = _set("city town village state island municipality district republic")
# Before a name: it is what a picture shows.
SHOWN = _set("this these country nation flag shows shown depicts represents")
LOCATING = _set("in at near from within inside outside on by")
ON_THE_WAY = _set(
    "the a an of city town country capital state province region heart center centre middle "
    "south north east west southern northern eastern western downtown old central"
)

# What is said of the names behind these is denied, to the end of the clause.
NEGATORS = _set(
    "not isnt wasnt arent werent doesnt didnt dont cant cannot couldnt wouldnt wont aint never "
    "neither nor unsure uncertain unlikely doubt doubtful excluding except non without "
    "whether wrongly falsely nowhere refuse refused "
    "nicht kein keine keinen niet geen pas nao nie ne nest inte ikke bukan khong "
    "не δεν οχι ليس ليست لا לא than"
)
NEGATING_PHRASES = _phrases(
    "rather than | instead of | other than | as opposed to | no longer | contrary to | "
    "anything but | no evidence | no reason | idea if | say if | tell if | sure if | "
    "know if | wonder if | clear if | no se si | nao sei se | non so se | "
    "mas grande que | plus grand que | plus grande que | mayor que | maior que | grosser als | "
    "kleiner als | groter dan | больше чем | "
    "wrong to | incorrect to | false to | mistake to | mistaken to | error to | wrong that | "
    "incorrect that | false that | untrue that | misconception that | mistake that | myth that | "
    "no such | ruled out | rule out | rules out | no es | no era | non e | no way"
)
NOT_NEGATING = _phrases(
    "not only | not just | not merely | not simply | no doubt | without doubt | without a doubt | "
    "without any doubt | not surprisingly | dont forget | cant go wrong | never doubt | "
    "not to mention | why not | none other than | no other than"
)
DENIED = _phrases(
    "is not the | is not correct | is not right | is not it | is not true | is not what | "
    "is not my | is not an | isnt the | isnt correct | isnt right | isnt it | isnt what | "
    "isnt true | was not the | wasnt the | is wrong | is incorrect | is false | is not among | "
    "would be wrong | is out | was wrong | can be ruled | is ruled | is unlikely | नहीं | "
    "would be incorrect | ist falsch | is not actually | degil | نہيں | نيست"
)
# In a bracket behind a name, or behind a comma: it is the wrong one.
WRONG = _set("wrong incorrect false untrue mistaken falsch faux incorrecto")
# Between a name and "wrong": then no more than these are, or might be. And what may follow "wrong".
OTHERS = _set(
    "other others else rest all any anything everything not isnt arent never no unless if i im may "
    "might could"
)
GUESSES = _set("answer choice guess option one though however")
# With nothing behind: "Rome is not, Paris is".
IS_NOT = _phrases("is not | isnt | was not | wasnt")
DENIED_ASIDE = _phrases(
    "a common misconception | a common mistake | a common error | a misconception | wrong | "
    "incorrect | not correct | not the right | not the correct | falsch | faux"
)
DENIED_BEFORE = (
    "不是",
    "并非",
    "並非",
    "而非",
    "并不是",
    "並不是",
    "不在",
    "ไม่ใช่",
    "មិនមែន",
    "ບໍ່ແມ່ນ",
)
DENIED_BEHIND = (
    *(
        "ではな",
        "ではあり",
        "でな",
        "じゃな",
        "じゃあり",
        "でしたが",
        "だったが",
        "아닙",
        "아닌",
        "아녜",
    ),
    *("아니라", "아니다", "아니고", "아니에", "아니야", "아니며", "아니었", "아니지"),
)

# At the start of a part of a sentence: what is said from here on replaces what was said before.
CORRECTIONS = _phrases(
    "actually | wait | sorry | correction | i mean | i meant | scratch that | or rather | rather | "
    "on 2nd thought | on 2nd thoughts | on second thoughts | my mistake | let me correct | "
    "make that | oops | strike that | apologies | my apologies | i apologize | excuse me | "
    "hang on | hold on | "
    "no wait | oh no | i misspoke | i stand corrected"
)
AFTER_NO = _set("it its thats that the wait actually i sorry he she they this")
FINAL = _phrases(
    "answer is | answer would be | answer must be | final answer | the answer | answer was | "
    "therefore | thus | hence | in conclusion | to conclude | in short | so the | "
    "correct answer | correct option | my answer | ill go with | i will go with | id go with | "
    "ill say | i was wrong | i was mistaken | my guess | best guess | i go with | "
    "lets go with | i choose | i pick"
)
OPENING_QUESTIONS = _set("what which who where when how whose")
TURNS = _set("q question user human instruction")

# A sentence that begins so and ends with a question mark asks.
ASKING = _set(
    "is was are were could would does did can might what which who where when how do should will "
    "whose"
)
AFFIRMING = _set("yes yeah yep correct indeed right exactly true")
NO = _set("no nope nah")
# Words by which a text is Spanish, where "no" denies what follows.
SPANISH = _set("es son fue era esta llama")
SPANISH_ARTICLES = _set("el la los las un una")
REFUSING = _phrases(
    "cannot | cant | dont know | do not know | unable | not able | unknown | sorry | not sure | "
    "unsure | no idea | not certain | dont have | do not have | uncertain | couldnt | could not | "
    "im not | wont | will not | not possible | impossible | refuse | decline | "
    "weiss nicht | weiss es nicht | weiss ich nicht | sais pas | no lo se | no se | nao sei | "
    "non lo so | non so | weet het niet | weet niet | nie wiem | vet inte | ved ikke | "
    "не знаю | لا اعرف | नहीं पता | नहीं जानता | δεν ξερω | δεν γνωριζω | bilmiyorum | "
    "모르겠습니다 | 모르겠어요 | 모릅니다 | 몰라요"
)
# Behind a denial, or "hard to": what somebody who refuses does not do or have.
KNOWING = _set(
    "know recall remember tell say determine identify see recognize recognise information context "
    "clue idea clear certain shown visible provide specify state answer"
)
HARDLY = _set("no hard difficult insufficient")
REFUSING_TEXTS = (
    *("不知道", "不清楚", "无法", "無法", "不能确定", "不确定", "不確定"),
    *("わかりません", "分かりません", "わからない", "分からない", "不明です", "ไม่ทราบ", "ไม่รู้"),
)
# Before a number: it bounds what is meant, and is not it.
BOUNDING = _set("before after pre post than over under above below beyond exceeding least most")
CHOOSING = _set(
    "or oder ou eller tai lub albo или либо або او ام يا או या veya yahut atau hoac "
    "또는 혹은 아니면 或 か"
)
JOINING = CHOOSING | _set("nor and und y o et e и و και और ve 그리고 和 与 與 及 と や η")
# Of scripts without spaces, whose words are letters here: the whole text between two names.
JOINING_TEXTS = (
    *("หรือ", "หรือว่า", "และ", "ຫຼື", "ແລະ", "ឬ", "និង", "သို့မဟုတ်"),
    *("または", "又は", "もしくは", "あるいは", "それとも", "或者", "还是", "還是", "或是", "以及"),
)

# Letters next to a short name in a script without spaces: there the name ends.
BOUNDS = frozenset(
    "是在于於為为叫即有的和与與或及非不从到对對市省县縣国國语語人城位名称稱答案都州区區府道，。"
    "得能选選择擇认說说做作号就也只还還又定该該应應概许許者座个個这這那其它他她我们們想觉猜了吧吗呢"
    "啊而但却卻才则由被给給等所之以因如像去来來住生产產建写寫画畫"
    "はがをにでとのもやへだよねかも"
)
