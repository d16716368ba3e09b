"""The texts in locales/: generated English, whole and faithful translations, served by the host."""

import json
import re
import shutil
import subprocess

import pytest
from make_locales import LOCALES, english, flat, grown, languages, read, still_right

OTHERS = languages()
# What a translation must repeat: code, %marks%, <marks>, names with _ or a suffix, acronyms,
# a choice that the text explains (`auto:`), and numbers.
LITERALS = re.compile(
    r"`[^`]+`|%\w+%|<\w+>|[A-Za-z]\w*_\w+|\w*\.[a-zA-Z]\w+|\b[A-Z][A-Z0-9]{2,}\b"
    r"|\b[a-z][a-z0-9_ ]*:(?= )|\d+x\d+|(?<![A-Za-z\d])-?\d+(?:[.,]\d+)*|\bpx\b|%"
)
UNITS = {
    "pixel": {"zh": "像素", "ja": "ピクセル", "ko": "픽셀", "es": "píxel", "fr": "pixel"},
    "degrees": {"zh": "度", "ja": "度", "ko": "도", "es": "grados", "fr": "degré"},
    "seconds": {"zh": "秒", "ja": "秒", "ko": "초", "es": "segundos", "fr": "seconde"},
    "minutes": {"zh": "分", "ja": "分", "ko": "분", "es": "minutos", "fr": "minute"},
    "millimetres": {
        **{"zh": "毫米", "ja": "ミリメートル", "ko": "밀리미터"},
        **{"es": "milímetros", "fr": "millimètre"},
    },
}
QUOTED = re.compile(r"[“「«]\s?(V3D [^”」»]+?)\s?[”」»]")  # a node of ours
WEB = LOCALES.parent / "web"
ASKED = re.compile(r'\bword\(\s*"(\w+)"')  # a text that one of our web modules draws
MARK = re.compile(r"\{\w+\}")  # what is filled in there
PARSED = ("display_name", "description", "name")  # by vue-i18n; it takes tooltips as they are


def literals(text: str, choices: set[str]) -> list[str]:
    """What has to stand in any translation of a text; a colon counts after a choice only."""
    found = LITERALS.findall(text)
    return [word for word in found if not word.endswith(":") or word[:-1] in choices]


def choices_of(info: dict) -> set[str]:
    """Values of a node's combos, which no language translates."""
    specs = [spec for group in info["input"].values() for spec in group.values()]
    options = [option for spec in specs if len(spec) > 1 for option in spec[1].get("options", [])]
    return {o["key"] if isinstance(o, dict) else str(o) for o in options}


def test_english_is_what_the_schemas_say(object_info):
    assert read("en") == english(object_info), "run make_locales.py"
    assert OTHERS == ["es", "fr", "ja", "ko", "zh"]


def test_inputs_below_a_choice_have_the_keys_that_the_front_end_asks_for():
    inputs = read("en")["V3DOrbitCameras"]["inputs"]
    assert {"orbit", "orbit_views", "orbit_fov", "frame"} <= inputs.keys()
    assert inputs["orbit_fov"]["name"] == "fov"
    assert inputs["orbit_fov"]["tooltip"].startswith("custom: ")
    assert " svd: " in inputs["orbit_fov"]["tooltip"]


def test_translation_of_a_changed_text_is_taken_out_and_others_stay():
    before = {("A", "name"): "one", ("A", "tooltip"): "old", ("gone",): "x"}
    now = {("A", "tooltip"): "new", ("A", "name"): "one", ("B",): "more"}
    old = {("A", "name"): "eins", ("A", "tooltip"): "alt", ("gone",): "weg"}
    assert still_right(old, before, now) == {("A", "name"): "eins"}
    tree = {"A": {"name": "one", "inputs": {"b": {"tooltip": "t"}}}}
    assert grown(flat(tree)) == tree


@pytest.mark.parametrize("language", OTHERS)
def test_translation_has_every_text_and_no_other(language):
    texts, wanted = flat(read(language)), flat(read("en"))
    assert texts.keys() == wanted.keys()
    assert not [path for path, text in texts.items() if not text.strip()]
    tips = {path: text for path, text in texts.items() if path[-1] == "tooltip"}
    assert not [path for path, text in tips.items() if text == wanted[path]]
    if language in ("ja", "ko", "zh"):
        assert not [path for path, text in tips.items() if text.isascii()]
    names = [node["display_name"] for node in read(language).values()]
    assert len(set(names)) == len(names)
    assert all(name.startswith("V3D ") for name in names)


@pytest.mark.parametrize("language", OTHERS)
def test_translation_repeats_numbers_units_and_names(language, object_info):
    texts, missing = flat(read(language)), []
    for path, text in flat(read("en")).items():
        own, said = path[0], texts[path]
        if path[-1] == "name":
            continue
        for word in literals(text, choices_of(object_info[own])):
            # another widget of the node goes by the name it has in that language
            widget = texts.get((own, "inputs", word, "name"), word)
            if word not in said and widget not in said:
                missing.append((path, word))
        for unit, name in UNITS.items():
            if re.search(rf"\b{unit}", text, re.IGNORECASE) and name[language] not in said:
                missing.append((path, unit))
    assert not missing


def test_the_check_of_literals_sees_numbers_units_and_names():
    text = "auto: x_y of `pip a` in .mtl, %date%: -1, 0.02, 20,000, 512x512 px, PSNR. Wrong: no."
    assert literals(text, {"auto"}) == [
        *(
            "auto:",
            "x_y",
            "`pip a`",
            ".mtl",
            "%date%",
            "-1",
            "0.02",
            "20,000",
            "512x512",
            "px",
            "PSNR",
        ),
    ]


@pytest.mark.parametrize("language", ["en", *OTHERS])
def test_no_text_uses_the_front_ends_message_syntax(language):
    parsed = {path: text for path, text in flat(read(language)).items() if path[-1] in PARSED}
    assert not [path for path, text in parsed.items() if set(text) & set("{}@|$")]


def test_host_serves_all_languages(server):
    served = server.get_json("/i18n")
    for folder in LOCALES.iterdir():
        assert served[folder.name]["nodeDefs"] == read(folder.name)
        assert served[folder.name]["v3d"] == panel_words(folder.name)
    fit = served["zh"]["nodeDefs"]["V3DFitSplat"]
    assert fit["display_name"] == "V3D 拟合高斯泼溅"
    assert fit["inputs"]["preset"]["name"] == "预设"


def panel_words(language: str) -> dict[str, str]:
    """What our web modules draw, by key; below one key, because the host merges all packs' texts."""
    tree = json.loads((LOCALES / language / "main.json").read_text(encoding="utf-8"))
    assert list(tree) == ["v3d"]
    return tree["v3d"]


@pytest.mark.parametrize("language", OTHERS)
def test_panels_say_the_same_in_every_language(language):
    texts, wanted = panel_words(language), panel_words("en")
    assert list(texts) == list(wanted)
    assert not [key for key, text in texts.items() if not text.strip()]
    marks = {key: sorted(MARK.findall(text)) for key, text in texts.items()}
    assert marks == {key: sorted(MARK.findall(text)) for key, text in wanted.items()}
    worded = [key for key, text in wanted.items() if re.search(r"[A-Za-z]{2}", MARK.sub("", text))]
    assert not [key for key in worded if texts[key] == wanted[key]]
    if language in ("ja", "ko", "zh"):
        assert not [key for key, text in texts.items() if text.isascii()]
    kept = re.compile(r"PSNR|dB|custom|°|\d+")  # names, units and numbers
    said = [(key, word) for key, text in wanted.items() for word in kept.findall(text)]
    assert not [(key, word) for key, word in said if word not in texts[key]]


@pytest.mark.parametrize("language", ["en", *OTHERS])
def test_no_word_of_the_panels_uses_more_of_the_front_ends_syntax_than_marks(language):
    texts = panel_words(language)
    assert not [key for key, text in texts.items() if set(MARK.sub("", text)) & set("{}@|$%")]


def test_every_word_of_the_panels_is_asked_for_and_stands_in_english():
    asked, calls = set(), 0
    for path in WEB.glob("*.js"):
        source = path.read_text(encoding="utf-8")
        asked |= set(ASKED.findall(source))
        calls += len(re.findall(r"\bword\(", source)) - len(ASKED.findall(source))
    assert calls == 1  # its definition; a key that is put together would not be seen here
    assert asked == panel_words("en").keys()


HOST = {  # as much of the front end as web/v3d_words.js needs
    "scripts/api.js": "export const api = { getCustomNodesI18n: () => globalThis.i18n() };",
    "scripts/app.js": """export const app = {
      extensionManager: { setting: { get: (id) => id === "Comfy.Locale" && globalThis.language } },
      registerExtension: (extension) => { globalThis.extension = extension; },
    };""",
}
SPEAK = """
import { readFileSync } from "fs";
import { word } from "./extensions/ComfyUI-V3D/v3d_words.js";
const served = JSON.parse(readFileSync("served.json"));
const keys = Object.keys(served.en.v3d);
const said = {};
async function say(name, i18n, language) {
  Object.assign(globalThis, { i18n, language });
  await globalThis.extension.init();
  said[name] = Object.fromEntries(keys.map((key) => [key, word(key, { frame: 3, last: 17, azimuth: "60" })]));
}
await say("fails", async () => { throw new Error("no answer"); }, "zh");
await say("zh", async () => served, "zh");
await say("unknown", async () => served, "xx");
await say("lacking", async () => ({ zh: { v3d: { hide: served.zh.v3d.hide } } }), "zh");
console.log(JSON.stringify(said));
"""


def test_panels_speak_the_language_of_the_host_and_else_english(tmp_path):
    program = shutil.which("node")
    if program is None:
        pytest.skip("web/v3d_words.js was not run: there is no `node`")
    pack = tmp_path / "extensions" / "ComfyUI-V3D"
    for folder in (pack, tmp_path / "scripts"):
        folder.mkdir(parents=True)
    shutil.copy(WEB / "v3d_words.js", pack)
    served = {language: {"v3d": panel_words(language)} for language in ["en", *OTHERS]}
    files = {"package.json": '{"type": "module"}', "served.json": json.dumps(served)}
    for name, text in (HOST | files | {"run.js": SPEAK}).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = subprocess.run([program, "run.js"], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)

    def filled(texts: dict[str, str]) -> dict[str, str]:
        values = {"{frame}": "3", "{last}": "17", "{azimuth}": "60"}
        return {k: MARK.sub(lambda m: values.get(m[0], "undefined"), t) for k, t in texts.items()}

    english, chinese = filled(panel_words("en")), filled(panel_words("zh"))
    assert said["fails"] == said["unknown"] == english
    assert said["zh"] == chinese
    assert said["lacking"] == english | {"hide": chinese["hide"]}
    assert said["fails"]["frameAzimuth"] == "frame 3 of 0-17, azimuth 60°"


def help_pages() -> list[tuple[str, str]]:
    """Node and language of every translated help page."""
    pages = (LOCALES.parent / "web" / "docs").glob("*/*.md")
    return sorted((page.parent.name, page.stem) for page in pages)


@pytest.mark.parametrize(("node", "language"), help_pages())
def test_translated_help_page_is_served_and_says_what_the_english_one_says(node, language, server):
    page = server.get(f"/extensions/ComfyUI-V3D/docs/{node}/{language}.md").decode()
    english_page = server.get(f"/extensions/ComfyUI-V3D/docs/{node}.md").decode()
    texts = read(language)[node]
    assert page.startswith(f"# {texts['display_name']}\n")
    rows = [f"{i['name']} `{key}`" for key, i in texts["inputs"].items()]
    assert not [row for row in rows if row not in page]
    assert not [o["name"] for o in texts["outputs"].values() if f"**{o['name']}**" not in page]
    numbers = re.compile(r"(?<![A-Za-z\d])-?\d+(?:[., ]\d+)*")
    assert set(numbers.findall(english_page)) <= set(numbers.findall(page))
    assert page.count("\n#") == english_page.count("\n#")
    assert page.count("\n|") == english_page.count("\n|")
    assert page.count("\n* ") == english_page.count("\n* ")


@pytest.mark.parametrize("language", OTHERS)
def test_nodes_of_ours_are_quoted_by_the_names_they_have(language):
    docs = (LOCALES.parent / "web" / "docs").glob(f"*/{language}.md")
    said = [*flat(read(language)).values(), *(page.read_text("utf-8") for page in docs)]
    quoted = {name for text in said for name in QUOTED.findall(text)}
    assert len(quoted) > 10
    assert quoted <= {node["display_name"] for node in read(language).values()}
