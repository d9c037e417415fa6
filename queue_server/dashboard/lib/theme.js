// Light, dark, or what the system says.
import { Store } from "./view.js";

const system = matchMedia("(prefers-color-scheme: dark)");

function shown() {
  return document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light");
}

/** "light" or "dark", as it is shown. */
export const theme = new Store(shown());
system.addEventListener("change", () => theme.set(shown()));

export function toggleTheme() {
  const chosen = shown() === "dark" ? "light" : "dark";
  localStorage.setItem("theme", chosen);
  document.documentElement.dataset.theme = chosen;
  theme.set(chosen);
}
