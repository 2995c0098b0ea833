"""A real browser, by the W3C WebDriver protocol and nothing but the standard library."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import subprocess
import time
from contextlib import contextmanager

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()
LOAD = 25_000  # milliseconds
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's own name of a reference
MISSING = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]


class Browser:
    """One window."""

    def __init__(self, port, session):
        self.port, self.session = port, session

    def call(self, method, path, content=None):
        return _call(self.port, method, f"/session/{self.session}{path}", content)

    def go(self, address):
        """Load a page; once more if Chromium, on a busy machine, has lost the first try."""
        try:
            self.call("POST", "/url", {"url": address})
        except AssertionError as error:
            if "timeout" not in str(error):
                raise
            self.call("POST", "/url", {"url": address})

    def find(self, css):
        found = self.call("POST", "/elements", {"using": "css selector", "value": css})
        return [Element(self, reference[ELEMENT]) for reference in found]

    def one(self, css):
        return self.find(css)[0]

    def wait(self, css, seconds=30):
        """The elements once there are some."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.find(css):
                return found
        raise AssertionError(f"no {css}: {self.run('return document.body.innerText')}")

    def run(self, script):
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def logged(self, kind):
        """Entries of a log since it was asked last."""
        return self.call("POST", "/se/log", {"type": kind})

    def devtools(self, command, **options):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": options})

    def screenshot(self, path, whole=True):
        """A PNG of the page, however long; whole=False: of what is in view."""
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def show_as(self, width, height, scheme="light"):
        """Take the size of a screen, below 500 pixels that of a phone, and the colours "light" or "dark"."""
        phone = width < 500
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.devtools("Emulation.setDeviceMetricsOverride", **screen)
        self.devtools("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def key(self, name, **options):
        """Press a key and let it go."""
        for kind in ("rawKeyDown", "keyUp"):
            self.devtools("Input.dispatchKeyEvent", type=kind, key=name, code=name, **options)

    def until(self, script, seconds=30):
        """The value of a script once it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.run(f"return {script}"):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never {script}: {self.run('return document.body.innerText')}")

    def drawn(self, css):
        """How many pictures there are, once all have come that are asked for."""
        each = f"[...document.querySelectorAll('{css}')].map(i => {{i.loading = 'eager'; return i.decode()}})"
        return self.run(f"return Promise.all({each}).then(all => all.length)")


class Element:
    """One of the page's."""

    def __init__(self, browser, reference):
        self.browser, self.path = browser, f"/element/{reference}"

    def type(self, text):
        self.browser.call("POST", f"{self.path}/value", {"text": text})

    def clear(self):
        self.browser.call("POST", f"{self.path}/clear", {})

    def click(self):
        self.browser.call("POST", f"{self.path}/click", {})

    @property
    def text(self):
        return self.browser.call("GET", f"{self.path}/text")

    @property
    def box(self):
        """Its place and size: x, y, width, height."""
        return self.browser.call("GET", f"{self.path}/rect")


@contextmanager
def browser(folder):
    """A fresh Chromium. folder: for its profile."""
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        started = next(line for line in driver.stdout if "successfully on port" in line)
        port = int(started.rsplit(" ", 1)[1].rstrip(".\n"))
        options = {"args": [*FLAGS, f"--user-data-dir={folder}"]}
        wanted = {
            "goog:chromeOptions": options,
            "timeouts": {"pageLoad": LOAD},
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        }
        made = _call(port, "POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        yield Browser(port, made["sessionId"])
        _call(port, "DELETE", f"/session/{made['sessionId']}")
    finally:
        driver.terminate()
        driver.wait()
        driver.stdout.close()


def _call(port, method, path, content=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, None if content is None else json.dumps(content))
        value = json.loads(connection.getresponse().read())["value"]
    finally:
        connection.close()
    if isinstance(value, dict) and "error" in value:
        raise AssertionError(f"{value['error']}: {value['message']}")
    return value
