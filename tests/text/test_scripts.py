"""Whether a text separates its words."""

import pytest

from rnnt_kd.text.scripts import is_unspaced

UNSPACED = {
    "Chinese": ["今天天气很好", "我们出去玩吧"],
    "Chinese, phrases apart": ["今天天气很好 我们出去玩吧 你觉得怎么样"],
    "Chinese with English words": ["我今天用 PYTHON 写了一个很长的程序", "打开 WIFI"],
    "single characters": ["一", "二", "三"],
    "Japanese": ["きょうはいい天気ですね", "コーヒーをください", "人々は二〇一八年に"],
    "half-width Katakana": ["ｺｰﾋｰｦｸﾀﾞｻｲ"],
    "Thai, phrases apart": ["วันนี้อากาศดีมาก เราไปเที่ยวกันเถอะ"],
    "Lao": ["ມື້ນີ້ອາກາດດີຫຼາຍ"],
    "Khmer": ["ថ្ងៃនេះអាកាសធាតុល្អណាស់"],
    "Burmese": ["ဒီနေ့ရာသီဥတုအရမ်းကောင်းတယ်"],
}
SPACED = {
    "nothing": [],
    "empty": ["", " "],
    "English": ["ONE TWO", "THREE"],
    "a long word": ["DONAUDAMPFSCHIFFFAHRTSGESELLSCHAFT"],
    "Korean": ["오늘 날씨가 아주 좋네요", "커피"],
    "Hindi": ["आज मौसम बहुत अच्छा है"],
    "Arabic": ["الطقس جميل اليوم"],
    "characters apart": ["今 天 天 气 很 好"],
    "words apart": ["今天 天气 很 好", "我们 出去 玩 吧"],
    "Thai words apart": ["วันนี้ อากาศ ดี มาก เรา ไป เที่ยว กัน เถอะ"],
    "English with a Chinese name": ["THE NAME IS 王小明 SHE SAID"],
    "full-width Latin": ["ＯＮＥ ＴＷＯ"],
    "figures and marks": ["12 34", "..."],
}


@pytest.mark.parametrize("texts", UNSPACED.values(), ids=UNSPACED)
def test_words_that_nothing_separates_are_found(texts):
    assert is_unspaced(texts)


@pytest.mark.parametrize("texts", SPACED.values(), ids=SPACED)
def test_words_that_blanks_separate_are_found(texts):
    assert not is_unspaced(iter(texts))
