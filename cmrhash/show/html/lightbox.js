// Lightbox: show the page of a result in a dialog. Arrow keys change the result, Escape and Back close it.
"use strict";
(() => {
  const dialog = document.getElementById("lightbox");
  if (!dialog || !dialog.showModal) return;
  const pages = new Map();
  let at = -1, here = null;
  const tiles = () => [...document.querySelectorAll("main a.open")];

  function page(link) {
    if (!pages.has(link.href)) {
      const loaded = fetch(link.href, { headers: { accept: "text/html" } }).then(async (answer) => {
        if (!answer.ok) throw new Error(answer.status);
        const found = new DOMParser().parseFromString(await answer.text(), "text/html");
        return document.importNode(found.querySelector("article.item"), true);
      });
      loaded.catch(() => pages.delete(link.href));
      if (pages.size > 60) pages.delete(pages.keys().next().value);
      pages.set(link.href, loaded);
    }
    return pages.get(link.href);
  }

  function button(name, words, path, action) {
    const made = document.createElement("button");
    made.type = "button";
    made.className = name;
    made.title = words;
    made.setAttribute("aria-label", words);
    made.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${path}"/></svg>`;
    made.addEventListener("click", action);
    return made;
  }

  const controls = document.createElement("div");
  controls.className = "controls";
  const close = button("close", "Close (Escape)", "M6 6l12 12M18 6L6 18", () => history.back());
  const previous = button("previous", "Previous (left arrow)", "M15 5l-7 7 7 7", () => show(at - 1));
  const next = button("next", "Next (right arrow)", "M9 5l7 7-7 7", () => show(at + 1));
  controls.append(close, previous, next);
  const place = document.createElement("div");
  place.setAttribute("aria-live", "polite");
  dialog.append(controls, place);

  async function show(index) {
    const links = tiles();
    const link = links[index];
    if (!link) return;
    at = index;
    const opening = !dialog.open;
    if (opening) {
      here = location.href;
      history.pushState({ lightbox: true }, "", link.href);
      dialog.showModal();
    } else {
      history.replaceState({ lightbox: true }, "", link.href);
    }
    previous.disabled = at === 0;
    next.disabled = at === links.length - 1;
    place.classList.add("waiting");
    try {
      const shown = (await page(link)).cloneNode(true);
      named(shown);
      if (at !== index) return;
      place.replaceChildren(shown);
      dialog.scrollTop = 0;
    } catch {
      location.assign(link.href);
    }
    place.classList.remove("waiting");
    if (links[at + 1]) page(links[at + 1]).catch(() => {});
  }

  function shut() {
    if (!dialog.open) return;
    dialog.close();
    place.replaceChildren();
    const link = tiles()[at];
    if (link) { link.focus({ preventScroll: true }); link.scrollIntoView({ block: "nearest" }); }
  }

  function named(part) { for (const link of part.querySelectorAll("a.copy")) link.textContent = "Copy link"; }
  named(document);

  async function copy(link) {
    const words = link.textContent;
    try {
      await navigator.clipboard.writeText(link.href);
    } catch {
      const field = document.createElement("textarea");
      field.value = link.href;
      link.after(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    link.textContent = "Copied";
    setTimeout(() => { link.textContent = words; }, 1500);
  }

  document.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    const copied = event.target.closest("a.copy");
    const opened = event.target.closest("main a.open");
    if (copied) {
      event.preventDefault();
      copy(copied);
    } else if (opened) {
      event.preventDefault();
      show(tiles().indexOf(opened));
    }
  });
  dialog.addEventListener("cancel", (event) => { event.preventDefault(); history.back(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(at - 1);
    if (event.key === "ArrowRight") show(at + 1);
  });
  addEventListener("popstate", () => { if (dialog.open && location.href === here) shut(); });
})();
