// "Show more" adds the next results to the list in place; without this script it is a link to them.
"use strict";
document.addEventListener("click", async (event) => {
  const link = event.target.closest("a[data-list]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  if (link.getAttribute("aria-busy")) return;
  link.setAttribute("aria-busy", "true");
  const words = link.textContent;
  link.textContent = "Loading";
  try {
    const answer = await fetch(link.href, { headers: { accept: "text/html" } });
    if (!answer.ok) throw new Error(answer.status);
    const found = new DOMParser().parseFromString(await answer.text(), "text/html");
    const list = document.getElementById(link.dataset.list);
    const more = [...(found.getElementById(link.dataset.list) || { children: [] }).children];
    list.append(...more);
    const next = found.querySelector(`a[data-list="${link.dataset.list}"]`);
    if (next) { link.href = next.href; } else { link.remove(); }
    const first = more[0] && more[0].querySelector("a");
    if (first) first.focus({ preventScroll: true });
  } catch {
    location.assign(link.href);
  } finally {
    link.textContent = words;
    link.removeAttribute("aria-busy");
  }
});
