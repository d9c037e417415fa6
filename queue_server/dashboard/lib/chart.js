// Lines over time, drawn by uPlot (a global of vendor/uPlot.iife.min.js) in the colours of the page.
import { html, useEffect, useRef, useState, useStore } from "./view.js";
import { theme } from "./theme.js";
import { rate } from "./format.js";

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** data: [times in seconds, values, ...]; series: [{label, colour: "--css-name", fill}]. */
export function Chart({ data, series, height = 200, label, format = rate, unit = "" }) {
  const box = useRef(null);
  const plot = useRef(null);
  const [at, setAt] = useState(null);
  useStore(theme);
  const shape = `${series.map((one) => one.label).join()} ${theme.value} ${height}`;

  useEffect(() => {
    const axis = {
      stroke: colour("--muted"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
      font: "12px system-ui, sans-serif",
    };
    plot.current = new uPlot({
      width: box.current.clientWidth || 300,
      height,
      legend: { show: false },
      cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
      scales: { y: { range: (_, low, high) => [0, Math.max(high * 1.1, 1)] } },
      axes: [
        { ...axis, space: 80 },
        { ...axis, size: 56, space: 40, values: (_, ticks) => ticks.map((tick) => (tick % 1 ? "" : format(tick))) },
      ],
      series: [
        {},
        ...series.map((one) => ({
          label: one.label, stroke: colour(one.colour), width: 2, points: { show: false },
          fill: one.fill ? `${colour(one.colour)}22` : undefined,
        })),
      ],
      hooks: { setCursor: [(self) => setAt(self.cursor.idx ?? null)] },
    }, data, box.current);
    const watch = new ResizeObserver(() => {
      plot.current.setSize({ width: box.current.clientWidth, height });
    });
    watch.observe(box.current);
    return () => {
      watch.disconnect();
      plot.current.destroy();
    };
  }, [shape]);

  useEffect(() => plot.current.setData(data), [data]);

  const index = at ?? data[0].length - 1;
  const time = data[0][index];
  return html`
    <figure class="chart" role="group" aria-label=${label}>
      <figcaption>
        ${series.map((one, number) => html`
          <span key=${one.label} class="key"><i style=${{ background: `var(${one.colour})` }}></i>
            ${one.label} <b>${data[number + 1][index] == null ? "–" : format(data[number + 1][index])}</b> ${unit}</span>`)}
        <span class="muted small">${at != null && time ? new Date(time * 1000).toLocaleTimeString("en-GB") : ""}</span>
      </figcaption>
      <div ref=${box} aria-hidden="true"></div>
    </figure>`;
}
