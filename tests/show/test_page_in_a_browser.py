"""A real browser uses the page: flows at the size of a desk and of a phone, by mouse and keyboard, without scripts."""

import json
import os
import re
import socket

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

from browser import MISSING, browser
from served_process import serving

ASKED = os.environ.get("CMRHASH_BROWSER", "") not in ("", "0")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ASKED, reason="set CMRHASH_BROWSER=1 to drive a real browser"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}"),
]

SCREENS = [(1280, 800), (390, 844)]


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    """(window, address of a page) of one process and one browser for all tests."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            raise OSError(f"a test tried to connect to {address}")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        with serving(made) as (_, _port, address), browser(tmp_path_factory.mktemp("browser")) as window:
            window.go(f"{address}?q=dog&lang=en")
            window.wait(".under")  # once the encoders are loaded
            yield window, address


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Replaces the fixture of all tests; ``page`` allows this machine only."""


@pytest.fixture(params=SCREENS, ids=["desk", "phone"])
def window(page, request):
    """The browser at the size of a screen, with an empty log. Every test ends without a complaint of the browser."""
    window, _ = page
    window.show_as(*request.param)
    window.logged("browser")
    window.logged("performance")
    yield window
    window.devtools("Emulation.setScriptExecutionDisabled", value=False)
    assert window.logged("browser") == []  # nothing missing, nothing against the policy


@pytest.fixture
def address(page):
    return page[1]


def ids(window):
    """Ids of the photos found."""
    sources = window.run("return [...document.querySelectorAll('#list-image img')].map(i => i.getAttribute('src'))")
    return [re.match(r"/thumb/(i\d+)", source)[1] for source in sources]


def inside(window):
    """Whether nothing is wider than the screen."""
    return window.run("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(("sentence", "lang"), [("dog and cat", "en"), ("Hund und Katze", "de")])
def test_words_find_photos_and_no_other_host_is_asked(window, address, sentence, lang):
    window.go(address)
    assert window.run("return document.activeElement.id") == "q"  # ready to type
    window.one("#q").type(sentence + "\n")
    window.wait(".under")
    assert window.one(".chip[aria-current]").text == {"en": "English", "de": "Deutsch"}[lang]
    assert window.drawn("#list-image img") == 24
    assert inside(window)
    requests = [json.loads(entry["message"])["message"] for entry in window.logged("performance")]
    asked = {m["params"]["request"]["url"] for m in requests if m["method"] == "Network.requestWillBeSent"}
    assert any("/thumb/" in url for url in asked)
    assert not [url for url in asked if not url.startswith(address)]


def test_results_start_near_the_top(window, address):
    window.go(f"{address}?q=dog&lang=en")
    first = window.run("return document.querySelector('#list-image img').getBoundingClientRect().top")
    assert first < 200
    assert window.run("return document.querySelector('.choices').checkVisibility()") is False  # more options are closed
    window.one(".more > summary").click()
    assert window.run("return document.querySelector('.choices').checkVisibility()") is True
    assert inside(window)


def test_photos_keep_their_shape(window, address):
    window.go(f"{address}?q=dog&lang=en")
    window.drawn("#list-image img")
    wrong = window.run(
        "return [...document.querySelectorAll('#list-image img')].filter(i => "
        "Math.abs(i.clientWidth / i.clientHeight / (i.naturalWidth / i.naturalHeight) - 1) > .05).length"
    )
    assert wrong == 0
    heights = window.run(
        "const rows = {}; for (const i of document.querySelectorAll('#list-image .frame')) {"
        "const box = i.getBoundingClientRect(); (rows[Math.round(box.top)] ??= []).push(box.height)}"
        "return Object.values(rows).map(row => Math.max(...row) - Math.min(...row))"
    )
    assert max(heights) < 1.5  # tiles of a row are equally high


def test_a_photo_is_sent_once_it_is_chosen_and_survives_reload_and_words(window, address, made):
    window.go(address)
    window.one("#file").type(str(made / "mine/images/3.jpg"))  # no button is pressed
    window.wait("#found-text")
    assert window.drawn(".by img, #list-image img, #list-text img") == 1 + 24 + 24
    shared, found = window.run("return location.href"), ids(window)
    window.go("about:blank")
    window.go(shared)
    assert ids(window) == found
    window.find(".chip[lang=de]")[0].click()
    window.until("document.querySelector('.chip[aria-current]').lang === 'de'")
    assert "photo=" in window.run("return location.search")
    window.one("#q").type("dog 4\n")
    window.until("new URLSearchParams(location.search).get('q') === 'dog 4'")
    assert "photo=" in window.run("return location.search")
    window.one(".by a").click()
    window.until("!location.search.includes('photo=')")
    assert window.run("return document.getElementById('q').value") == "dog 4"


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_photo_can_be_dropped_and_pasted(window, address, event):
    window.go(address)
    window.run(
        "document.createElement('canvas').toBlob(blob => { const data = new DataTransfer();"
        "data.items.add(new File([blob], 'a.png', {type: 'image/png'}));"
        f"const name = '{event}' === 'drop' ? 'dataTransfer' : 'clipboardData';"
        f"const made = new Event('{event}', {{bubbles: true, cancelable: true}}); made[name] = data;"
        "document.body.dispatchEvent(made); })"
    )
    window.wait(".by img")
    assert "photo=" in window.run("return location.search")


def test_the_lightbox_follows_the_arrow_keys_and_closes(window, address):
    window.go(f"{address}?q=dog&lang=en&k=3")
    results, found = window.run("return location.href"), ids(window)
    window.find("a.open")[0].click()
    window.wait("dialog[open] article")
    for key, at in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowRight", 2), ("ArrowLeft", 1)):
        window.key(key)
        window.until(f"location.pathname === '/item/{found[at]}'")
        window.until(f"document.querySelector('dialog .id').textContent.includes('item {found[at]},')")
    assert window.run("return new URL(document.querySelector('dialog img').src).pathname") == f"/photo/{found[1]}"
    assert window.drawn("dialog img") == 1
    langs = window.run("return [...document.querySelectorAll('dialog [lang]')].map(part => part.lang)")
    assert {"de", "en"} <= set(langs)
    assert window.run("return document.querySelector('dialog').scrollWidth <= innerWidth")
    window.key("Escape", windowsVirtualKeyCode=27)
    window.until("!document.querySelector('dialog[open]')")
    window.until(f"location.href === {json.dumps(results)}")
    assert window.run("return document.activeElement.getAttribute('href')").startswith(f"/item/{found[1]}?")
    window.find("a.open")[2].click()
    window.wait("dialog[open] article")
    window.run("history.back()")
    window.until("!document.querySelector('dialog[open]')")


def test_more_and_less_like_this_and_the_link_of_an_item(window, address):
    window.go(f"{address}?q=dog&lang=en&k=3")
    found = ids(window)
    window.find("a.open")[1].click()
    window.wait("dialog[open] article")
    window.until("document.querySelector('dialog .copy').textContent === 'Copy link'")
    window.one("dialog .copy").click()
    window.until("document.querySelector('dialog .copy').textContent === 'Copied'")
    window.run("[...document.querySelectorAll('dialog .button')].find(a => a.textContent === 'Less like this').click()")
    window.until(f"location.search.includes('unlike={found[1]}')")
    window.find("a.open")[0].click()
    window.wait("dialog[open] article")
    window.one("dialog .button").click()
    window.until("location.search.startsWith('?id=')")
    window.wait(".by img")


def test_more_results_are_added_in_place(window, address):
    window.go(f"{address}?q=dog&lang=en&k=15")
    assert len(set(ids(window))) == 15
    for count in (30, 40):
        window.one("a[data-list]").click()
        window.until(f"document.querySelectorAll('#list-image > li').length === {count}")
    assert len(set(ids(window))) == 40
    assert not window.find("a[data-list]")
    assert "skip" not in window.run("return location.search")


def test_labels_filter_with_one_click(window, address):
    window.go(f"{address}?q=dog&lang=en")
    chip = window.find(".chip[href*='label=']")[0]
    label = chip.text
    chip.click()
    window.until(f"new URLSearchParams(location.search).get('label') === {json.dumps(label)}")
    assert window.one(".chip[aria-current][href='/?q=dog&lang=en']").text == f"{label} ×"


def test_everything_essential_works_without_scripts(window, address, made):
    window.devtools("Emulation.setScriptExecutionDisabled", value=True)
    window.go(address)
    bar, button = (window.one(css).box for css in (".bar", ".bar button"))
    assert button["x"] + button["width"] <= bar["x"] + bar["width"]
    window.one("#q").type("dog\n")
    window.wait(".under")
    window.one("a[data-list]").click()
    assert window.one(".rank").text.endswith("25")
    window.find("a.open")[0].click()
    window.wait("article.item")
    window.one(".back a").click()
    window.wait(".under")
    window.one("#file").type(str(made / "mine/images/3.jpg"))
    window.one(".bar button").click()
    window.wait(".by img")
    window.one(".toolbar")
    assert window.find("#found-text") or window.find("#found-image")


def test_the_keyboard_reaches_the_results(window, address):
    window.go(f"{address}?q=dog&lang=en")
    window.run("document.activeElement.blur()")
    window.key("Tab", windowsVirtualKeyCode=9)
    assert window.run("return document.activeElement.className") == "skip"
    window.key("Enter", windowsVirtualKeyCode=13, text="\r")
    window.until("document.activeElement.id === 'results'")
    window.key("/", text="/")
    window.until("document.activeElement.id === 'q'")
    outline = window.run(
        "const a = document.querySelector('a.open'); a.focus({focusVisible: true});"
        "const style = getComputedStyle(a); return [style.outlineStyle, style.outlineWidth]"
    )
    assert outline == ["solid", "3px"]


def test_a_wrong_address_and_a_photo_that_is_gone_are_told(window, address):
    for path, words in (("nowhere", "nothing at this address"), ("?photo=0123", "no longer on the server")):
        window.go(address + path)
        assert words in window.one("main").text
        assert inside(window)
        assert [entry["level"] for entry in window.logged("browser")] == ["SEVERE"]  # the status
    window.one(".message a").click()
    window.wait(".tiles")


def luminance(colour):
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    parts = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["", "?q=dog&lang=en", "?id=i3", "item/i3", "scores", "?photo=0"])
def test_words_stand_out_from_the_ground(page, window, address, path, scheme):
    window.show_as(1280, 800, scheme)
    window.go(address + path)
    ground = luminance(window.run("return getComputedStyle(document.body).backgroundColor"))
    assert (ground < 0.1) == (scheme == "dark")
    pairs = window.run(
        "const out = []; for (const e of document.querySelectorAll('body *')) {"
        "if (!e.checkVisibility() || !e.innerText || e.children.length || e.closest('.caption')) continue;"
        "let under = e, back; do { back = getComputedStyle(under).backgroundColor; under = under.parentElement }"
        "while (under && back === 'rgba(0, 0, 0, 0)');"
        "if (!back.startsWith('rgba')) out.push([getComputedStyle(e).color, back, e.className || e.tagName]) }"
        " return out"
    )
    for front, back, name in pairs:
        low, high = sorted((luminance(front), luminance(back)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, front, back)
    window.logged("browser")


def test_plots_are_loaded_on_their_own_page(window, address):
    window.go(address)
    assert not window.find(".plots")
    window.one("footer a").click()
    window.wait(".plots")
    assert window.drawn(".plots img") == len(window.find("figcaption")) > 0
    assert inside(window)
