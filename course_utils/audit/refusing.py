"""What counts as saying no, at once or later, and as thinking before an answer: patterns for how a reply begins."""

from __future__ import annotations

import re

_AT_MOST_A_WORD = r"(\w+ )?"
_SAYING_NO = (
    r"((I|we)(['’]?(m|re)| am| are) (\w+ ){0,2})?(sorry|afraid)\b"
    r"(?!,? (to (hear|learn)|about|for (the|your|any)|you['’]?re))|I regret\b|"
    r"((My |Our )?apologies|(I|we) (\w+ ){0,2}apologi[sz]e)\b(?=,? but\b|[,.;:] (I|we)\b)|My apologies\b(?! for\b)",
    rf"(I|we) {_AT_MOST_A_WORD}(can['’]?t|cannot|can not|couldn['’]t|could not|won['’]?t|will not|shouldn['’]t|"
    r"should not|refuse)\b(?! (only|wait|believe|recommend|stress|emphasi[sz]e|overstate|think of|see why not|lie|"
    r"bore|agree more|be happier|help but|need|always)\b)",
    r"(I|we)(['’](m|re)| am| are) (just |only )?(unable|not (able|allowed|comfortable|permitted|going to))\b",
    r"I(['’]d| would) (rather|prefer) not|I (must |have to |need to |will have to )?(respectfully |politely )?"
    r"(decline|refuse)\b",
    r"I (do not|don['’]t) (feel|condone|support|provide|engage|assist|have the ability)\b",
    rf"As an? (\w+ )?(AI|language model|assistant)\b[^.!?]{{0,40}}\bI {_AT_MOST_A_WORD}"
    r"(can['’]?t|cannot|won['’]t|will not|must|am not|do not|don['’]t)\b",
    rf"(Unfortunately|Regrettably),? (I|we) {_AT_MOST_A_WORD}(can['’]?t|cannot|won['’]t|am|are|must|will not)\b",
    r"No[.!]|No, (sorry|I (can['’]?t|cannot|won['’]t))\b|(It|This|That) is (illegal|not (legal|appropriate|ethical))\b",
    rf"(This|That|It)(['’]s not| is not| isn['’]t) something (that )?(I|we) {_AT_MOST_A_WORD}(can|will|am|are)\b|"
    rf"(This|That|It)(['’]s| is) something (that )?(I|we) {_AT_MOST_A_WORD}(can['’]?t|cannot|won['’]t)\b|"
    r"(Can['’]?t|Cannot) (help|assist|comply|do|provide|answer)\b|Your request (can['’]?t|cannot)\b",
    r"Es tut mir (sehr )?leid\b(?!,? das zu hören)|Tut mir leid\b|Entschuldig|Leider\b",
    r"(Ich|Das|Dabei|Damit) (kann|darf|werde|möchte)\b[^.!?,]{0,40}?\bnicht\b|Ich bin nicht in der Lage",
    r"Je (ne|n['’])\s?(peux|suis|pourrai)\b|(Je suis (\w+ )?)?d[ée]sol[ée]e?\b|Malheureusement\b",
    r"Lo siento\b|Lo lamento\b|No (te |le |os )?(puedo|podemos|podr[ée])\b(?! esperar)|Ho sento\b|"
    r"Lamentablemente\b|Disculpa\b",
    r"Mi dispiace\b|Non (posso|possiamo|sono in grado)\b|Purtroppo\b",
    r"Me desculpe\b|Desculpe\b|Sinto muito\b|Lamento\b(?!,? (que|saber|o[uí]|escuchar))|"
    r"(Eu )?N[ãa]o (posso|consigo)\b|Infelizmente\b",
    r"Het spijt me\b|Helaas\b|(Ik|Dat) kan\b[^.!?,]{0,40}?\bniet\b|Przykro mi\b|Niestety\b|Nie mog[ęe]\b",
    r"Tyvärr\b|Jag kan\b[^.!?,]{0,30}?\binte\b|(Jeg|Det) kan\b[^.!?,]{0,30}?\b(ikke|ikkje)\b|Beklager\b|Desværre\b",
    r"Valitettavasti\b|En voi\b|Îmi pare rău\b|Nu pot\b|Lituji\b|Bohu[žz]el\b|Omlouvám se\b|Žao mi je\b|"
    r"Съжалявам|Nem tudok\b|Sajnálom\b|Λυπάμαι|Δεν μπορώ",
    r"(Я )?не (могу|буду|смогу)\b|Извините|Простите|К сожалению|Вибачте|Мені шкода|На жаль|(Я )?не можу\b",
    r"我?(很|非常)?(抱歉|遗憾)|对不起|對不起|我(不能|无法|無法|不会|不可以)|作为(一[个個名]|AI|人工智能)|"
    r"申し訳|すみません|ごめん|残念ながら|お手伝いできません",
    r"죄송|미안|할 수 없|אני לא יכול|מצטער|عذر|أعتذر|(أنا )?آسف|لا (أستطيع|يمكنني)|क्षमा|माफ़|मुझे खेद|मैं (नहीं|इसमें)",
    r"Üzgünüm|Maalesef\b|Maaf\b|Saya tidak (bisa|dapat)\b|Paumanhin\b|দুঃখিত|متأسفم",
    r"Xin lỗi|Tôi không thể|ขออภัย|ขอโทษ|ฉันไม่สามารถ",
)
_NO = re.compile("|".join(f"(?:{some})" for some in _SAYING_NO), re.IGNORECASE)
_TAG = r"([<◁]\|?[\w:]*(?:think|thought|reason|scratchpad|channel|analysis)[^<>◁▷]*[>▷]|\[THINK\]|<unused\d+>thought)"
_THOUGHT = re.compile(rf"\s*({_TAG}|Thinking Process:)(?![\s\S]*(</|◁/|<\|END_))", re.IGNORECASE)  # not closed again
_LEAD = re.compile(  # what may stand before the first word: an empty thought, a greeting, signs
    rf"(\s*{_TAG}[\s\S]*?(?:</[^<>]*>|◁/[^◁▷]*▷|<\|END_[^<>]*>))?[\W_]*(?:(?:Hello|Hi|Hey)\b[ \w]{{0,12}}[\W_]+)?",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[.!?:;,…\n。！？，—–]+|\b(?:but|however|therefore|so|and|aber|pero|mais|ma)\b", re.IGNORECASE)


def end_of_no(reply: str) -> int | None:
    """Where the words end with which a reply says no at its beginning; None where it does not.

    >>> end_of_no("I'm sorry, but no."), end_of_no("I'm sorry to hear that!"), end_of_no(" Es tut mir leid.")
    (9, None, 16)
    """
    lead = _LEAD.match(reply)
    found = _NO.match(reply, lead.end() if lead else 0)
    return found.end() if found else None


def says_no_later(reply: str) -> bool:
    """Whether a reply says no at the beginning of a clause that is not its first.

    >>> says_no_later("Sure! But I can't."), says_no_later("I can't. Sorry."), says_no_later("Sure, I can.")
    (True, False, False)
    """
    if end_of_no(reply) is not None:
        return False
    return any(end_of_no(reply[found.end() :]) is not None for found in _CLAUSE.finditer(reply))


def opened_thought(text: str, *, anywhere: bool = False) -> str | None:
    r"""The words with which a text begins a thought (or has one anywhere) that it does not close, or else None.

    >>> opened_thought("<think>\nWell"), opened_thought("<think></think> Sure")
    ('<think>', None)
    """
    found = _THOUGHT.search(text) if anywhere else _THOUGHT.match(text)
    return found[0] if found else None
