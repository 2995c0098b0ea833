// Send a photo as soon as it is dropped, pasted or chosen. Without this script the button of the form sends it.
"use strict";
const form = document.getElementById("drop");
const photo = form.querySelector("input[type=file]");
const problem = form.querySelector(".problem");

function send() {
  const ask = new FormData(document.getElementById("ask"));
  for (const name of ["lang", "to", "k"]) form.elements[name].value = ask.get(name);
  problem.hidden = !photo.files.length || photo.files[0].size <= Number(form.dataset.most);
  if (photo.files.length && problem.hidden) form.submit();
}

function take(event, files) {
  if (!files || !files.length) return;
  event.preventDefault();
  photo.files = files;
  send();
}

document.documentElement.classList.add("scripted");
photo.addEventListener("change", send);
form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
addEventListener("paste", (event) => take(event, event.clipboardData && event.clipboardData.files));
addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) form.classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  form.classList.remove("over");
  take(event, event.dataTransfer.files);
});
