import { html, useEffect, useState } from "../lib/view.js";
import { login } from "../lib/api.js";
import { Card, Field } from "../lib/components.js";

export function Login({ reason }) {
  const [text, setText] = useState("");
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    document.title = "Log in · Queue server";
  }, []);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    await login(text);
    setBusy(false);
  };
  return html`
    <main class="login">
      <h1>Log in</h1>
      <p class="muted">This server asks who you are. Enter a token or an API key that may read.</p>
      <${Card}>
        <form onSubmit=${submit} class="form">
          <${Field} wide label="Token or API key" hint="It is kept until this tab is closed, and sent to this server alone.">
            <input type="password" autocomplete="off" required autofocus value=${text}
              onInput=${(event) => setText(event.currentTarget.value)} />
          <//>
          ${reason && html`<div class="notice bad field wide" role="alert"><strong>Not accepted</strong><p>${reason}</p></div>`}
          <button type="submit" class="primary" disabled=${busy || !text.trim()}>${busy ? "Asking…" : "Log in"}</button>
        </form>
      <//>
    </main>`;
}
