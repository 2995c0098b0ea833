// Search bar: send a photo as soon as it is chosen, dropped or pasted; ask for words by their address.
"use strict";
(() => {
  const form = document.getElementById("ask");
  if (!form) return;
  const file = form.elements.file;
  const problem = document.getElementById("too-large");
  document.documentElement.classList.add("scripted");

  function busy() { form.classList.add("busy"); form.setAttribute("aria-busy", "true"); }

  function send() {
    problem.hidden = !file.files.length || file.files[0].size <= Number(form.dataset.most);
    if (!problem.hidden) { file.value = ""; return; }
    busy();
    form.submit();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (file.files.length) { send(); return; }
    const query = new URLSearchParams();
    for (const [name, value] of new FormData(form)) {
      if (name === "k" && value === form.dataset.k) continue;
      if (typeof value === "string" && value.trim()) query.append(name, value);
    }
    if (!query.has("q") && !query.has("photo") && !query.has("id")) { form.elements.q.focus(); return; }
    busy();
    location.assign(form.getAttribute("action") + "?" + query);
  });

  function take(event, files) {
    if (!files || !files.length) return;
    event.preventDefault();
    file.files = files;
    send();
  }

  for (const choice of form.querySelectorAll("select")) {
    choice.addEventListener("change", () => {
      if (new URLSearchParams(location.search).size) form.requestSubmit();
    });
  }
  file.addEventListener("change", send);
  addEventListener("paste", (event) => take(event, event.clipboardData && event.clipboardData.files));
  addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) form.classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    take(event, event.dataTransfer.files);
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea, dialog")) return;
    event.preventDefault();
    form.elements.q.select();
  });
  addEventListener("pageshow", () => { form.classList.remove("busy"); form.removeAttribute("aria-busy"); });
})();
