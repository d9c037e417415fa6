// Creates a queue, or changes the options of one that exists.
import { html, useEffect, useState } from "../lib/view.js";
import { get, path, post } from "../lib/api.js";
import { href } from "../lib/router.js";
import { MAY_BE_EMPTY, OPTION_GROUPS } from "../lib/options.js";
import { Dialog, DialogFooter, Field, Skeleton, toast } from "../lib/components.js";

// What a queue has that was configured without any option.
const DEFAULTS = {
  leaseTime: 300, retryLimit: 3, priority: 0, maxSize: 0, delayedProcessing: 0, windowBuffer: 0,
  retentionSeconds: 0, completedRetentionSeconds: 0, maxWaitTimeSeconds: 0, deliveryLimit: 0,
  retentionEnabled: false, encryptionEnabled: false, retryBackoff: false,
  retryDelay: null, ttl: null, dedupWindowSeconds: null,
};

export function QueueForm({ name, onClose, onDone }) {
  const isNew = name === undefined;
  const [values, setValues] = useState(isNew ? { ...DEFAULTS, queue: "", namespace: "", task: "" } : null);
  const [before, setBefore] = useState(DEFAULTS);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);

  useEffect(() => {
    if (isNew) return;
    get(path`/api/v1/dashboard/queues/${name}/options`).then((found) => {
      setBefore(found);
      setValues({ ...found, queue: name });
    }, setError);
  }, [name]);

  const set = (key) => (event) => {
    const field = event.currentTarget;
    setValues({ ...values, [key]: field.type === "checkbox" ? field.checked : field.value });
  };
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    const options = {};
    for (const [, fields] of OPTION_GROUPS) {
      for (const [key, , kind] of fields) {
        const value = kind === "bool" ? values[key]
          : values[key] === "" || values[key] == null ? null : Number(values[key]);
        // Only what was changed: another change made meanwhile stays.
        if (value !== (before[key] ?? null)) options[key] = value;
      }
    }
    try {
      const answer = await post("/api/v1/configure", {
        queue: values.queue, namespace: values.namespace, task: values.task, options,
        mode: isNew ? "create" : "merge",
      });
      if (answer.warning) toast(answer.warning, "bad");
      else toast(isNew ? `Created ${values.queue}` : `Changed ${values.queue}`);
      onDone(values.queue);
    } catch (failure) {
      setError(failure);
      setBusy(false);
    }
  };

  return html`
    <${Dialog} wide title=${isNew ? "Create a queue" : `Configure ${name}`} onClose=${onClose}>
      <form onSubmit=${submit}>
        <div class="body">
          ${!values && !error && html`<${Skeleton} lines=${8} />`}
          ${values && html`
            <div class="form">
              <${Field} wide label="Name" hint=${isNew ? "Any text. Partitions are made as messages are pushed to them." : undefined}>
                <input type="text" required maxlength="512" autofocus=${isNew} disabled=${!isNew} value=${values.queue} onInput=${set("queue")} />
              <//>
              <${Field} label="Namespace" hint="Consumers can pop from all queues of a namespace."><input type="text" value=${values.namespace ?? ""} onInput=${set("namespace")} /><//>
              <${Field} label="Task" hint="Consumers can pop from all queues with the same task."><input type="text" value=${values.task ?? ""} onInput=${set("task")} /><//>
              ${OPTION_GROUPS.map(([title, fields]) => html`
                <fieldset key=${title}><legend>${title}</legend>
                  <div class="form">${fields.map(([key, label, kind, hint]) => (kind === "bool" ? html`
                    <label key=${key} class="check"><input type="checkbox" checked=${Boolean(values[key])} onChange=${set(key)} />
                      <span><span class="label">${label}</span><br /><span class="muted small">${hint}</span></span></label>` : html`
                    <${Field} key=${key} label=${kind ? `${label} (${kind})` : label} hint=${hint}>
                      <input type="number" step="1" min=${key === "priority" ? undefined : 0} required=${!MAY_BE_EMPTY.has(key)}
                        value=${values[key] ?? ""} onInput=${set(key)} />
                    <//>`))}</div>
                </fieldset>`)}
            </div>`}
        </div>
        <${DialogFooter} error=${error}>
          ${error?.body?.code === "queue_exists" && html`<a class="button" href=${href(["queues", values.queue])}>Open ${values.queue}</a>`}
          <button type="button" onClick=${onClose}>Cancel</button>
          <button type="submit" class="primary" disabled=${busy || !values}>${busy ? "Working…" : isNew ? "Create queue" : "Save"}</button>
        <//>
      </form>
    <//>`;
}
