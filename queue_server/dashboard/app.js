// The frame around the pages: navigation, who is logged in, light or dark, the way the figures come.
import { Component, html, render, useEffect, useRef, useStore } from "./lib/view.js";
import { contact, identify, logout, session } from "./lib/api.js";
import { connect, connection } from "./lib/live.js";
import { route } from "./lib/router.js";
import { theme, toggleTheme } from "./lib/theme.js";
import { Empty, ErrorBox, Page, Skeleton, Toasts } from "./lib/components.js";
import { Login } from "./pages/login.js";
import { Overview } from "./pages/overview.js";
import { Queues } from "./pages/queues.js";
import { Queue } from "./pages/queue.js";
import { Groups, Group } from "./pages/groups.js";
import { Messages, Message } from "./pages/messages.js";
import { DeadLetters } from "./pages/dead_letters.js";
import { System } from "./pages/system.js";

const NAVIGATION = [
  ["", "Overview"],
  ["queues", "Queues"],
  ["groups", "Groups"],
  ["messages", "Messages"],
  ["dead-letters", "Dead letters"],
  ["system", "System"],
];

function Current({ parts, query }) {
  const [section = "", first, second] = parts;
  switch (section) {
    case "": return html`<${Overview} />`;
    case "queues": return first === undefined
      ? html`<${Queues} query=${query} />` : html`<${Queue} key=${first} name=${first} query=${query} />`;
    case "groups": return second === undefined
      ? html`<${Groups} query=${query} />` : html`<${Group} key=${`${first}/${second}`} group=${first} queue=${second} query=${query} />`;
    case "messages": return second === undefined
      ? html`<${Messages} query=${query} />`
      : html`<${Message} key=${`${first}/${second}`} partitionId=${first} transactionId=${second} />`;
    case "dead-letters": return html`<${DeadLetters} query=${query} />`;
    case "system": return html`<${System} />`;
    default: return html`
      <${Page} title="No such page"><${Empty} title="This address leads nowhere">
        <a href="#/">Go to the overview</a><//><//>`;
  }
}

/** Around a page: what it throws while it is drawn is told in its place, and the frame stays. */
class Boundary extends Component {
  constructor() {
    super();
    this.state = { error: null };
  }

  static getDerivedStateFromError(error) {
    return { error };
  }

  componentDidCatch(error) {
    console.error(error);
  }

  render({ children }, { error }) {
    if (!error) return children;
    return html`
      <${Page} title="This page failed">
        <${ErrorBox} error=${error} retry=${() => this.setState({ error: null })} />
        <p><a href="#/">Go to the overview</a>, or load the page again: a newer version of the server may be the reason.</p><//>`;
  }
}

const CONNECTION = {
  live: ["Live", "Figures are renewed when the server has news"],
  polling: ["Polling", "Figures are asked for every few seconds"],
  offline: ["Offline", "The server does not answer; the figures are old"],
};

/** Above every page while the server does not answer; the figures below are dimmed. */
function NoAnswer() {
  const { at, missed } = useStore(contact);
  return html`
    <div class="notice bad no-answer" role="alert">
      <strong>No answer from this server since ${at ? new Date(at).toLocaleTimeString("en-GB") : "the page was opened"}</strong>
      <p>The figures are as of then. Is it running? The dashboard keeps asking${missed > 1 ? `; ${missed} requests without an answer so far` : ""}.</p>
    </div>`;
}

function Shell() {
  const { parts, query } = useStore(route);
  const who = useStore(session);
  const [word, explanation] = CONNECTION[useStore(connection)];
  const shown = useStore(theme);
  const main = useRef(null);
  const place = parts.join("/");
  const first = useRef(true);
  useEffect(() => {
    // Who goes to another page by keyboard begins there at its heading.
    if (!first.current) {
      main.current.querySelector("h1")?.focus();
      scrollTo(0, 0);
    }
    first.current = false;
    // Where the navigation is wider than the screen.
    document.querySelector(".nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  }, [place]);
  return html`
    <a class="skip" href="#main" onClick=${(event) => {
      event.preventDefault();
      main.current.focus();
    }}>Skip to the content</a>
    <div class="shell">
      <div class="side">
        <a class="brand" href="#/"><img src="dashboard/icon.svg" alt="" />Queue server</a>
        <nav class="nav" aria-label="Pages">
          ${NAVIGATION.map(([key, label]) => html`
            <a key=${key} href=${`#/${key}`} aria-current=${(parts[0] ?? "") === key ? "page" : undefined}>${label}</a>`)}
        </nav>
        <div class="side-foot">
          <span class=${`dot small muted ${connection.value}`} title=${explanation}>${word}</span>
          ${who.authentication && html`
            <div class="row"><span class="small muted" title=${`May: ${who.access.join(", ")}`}>${who.subject ?? "logged in"}</span>
              <button type="button" class="small" onClick=${logout}>Log out</button></div>`}
          <button type="button" class="small" onClick=${toggleTheme}
            aria-label=${`Switch to the ${shown === "dark" ? "light" : "dark"} theme`}>${shown === "dark" ? "☀ Light" : "☾ Dark"}</button>
        </div>
      </div>
      <main id="main" ref=${main} tabindex="-1" class=${connection.value === "offline" ? "old" : ""}>
        ${connection.value === "offline" && html`<${NoAnswer} />`}
        <${Boundary} key=${place}><${Current} parts=${parts} query=${query} /><//></main>
    </div>`;
}

function App() {
  const who = useStore(session);
  useEffect(() => {
    if (who?.access) connect();
  }, [who]);
  let shown;
  if (who === null) shown = html`<main><${Skeleton} /></main>`;
  else if (who.failed) shown = html`<main><${ErrorBox} error=${who.failed} retry=${identify} />
    ${who.failed.status === 403 && html`<button type="button" onClick=${logout}>Log in with another credential</button>`}</main>`;
  else if (who.access) shown = html`<${Shell} />`;
  else shown = html`<${Login} reason=${who.login} />`;
  return html`${shown}<${Toasts} />`;
}

render(html`<${App} />`, document.getElementById("app"));
identify();
