// Looks like the Airflow around it: its mode, and the colours that its theme has in this very version.

import { isFramed } from "./airflow.js";

const TOKENS = [
  "bg", "bg-subtle", "bg-muted", "bg-emphasized", "fg", "fg-muted", "border", "border-emphasized",
  "brand-solid", "brand-contrast", "brand-fg", "success-solid", "failed-solid", "failed-fg", "failed-subtle",
  "running-solid", "warning-solid", "warning-subtle", "queued-solid",
];

const page = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");

export function followTheme() {
  apply();
  dark.addEventListener("change", apply);
  addEventListener("storage", apply);
  if (isFramed) {
    const attributes = { attributes: true, attributeFilter: ["class", "style"] };
    new MutationObserver(apply).observe(parent.document.documentElement, attributes);
  }
}

function apply() {
  page.dataset.theme = isDark() ? "dark" : "light";
  if (!isFramed) return;
  const theirs = parent.getComputedStyle(parent.document.documentElement);
  for (const token of TOKENS) {
    const value = theirs.getPropertyValue(`--chakra-colors-${token}`).trim();
    if (value) page.style.setProperty(`--${token}`, value);
  }
}

function isDark() {
  if (isFramed) return parent.document.documentElement.classList.contains("dark");
  const chosen = localStorage.getItem("theme");
  return chosen === "dark" || (chosen !== "light" && dark.matches);
}
