// Lines over time, drawn by uPlot (a global of vendor/uPlot.iife.min.js) in the colours of the page.
import { html, useEffect, useRef, useState, useStore } from "./view.js";
import { theme } from "./theme.js";
import { rate } from "./format.js";

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

const DAY_S = 86_400;

/** Times at the bottom, in the form that their distance asks for. */
function timeTexts(_, ticks) {
  const span = ticks.at(-1) - ticks[0];
  const form = span > 2 * DAY_S ? { day: "2-digit", month: "short" }
    : span > 600 ? { hour: "2-digit", minute: "2-digit" } : { hour: "2-digit", minute: "2-digit", second: "2-digit" };
  return ticks.map((tick) => new Intl.DateTimeFormat("en-GB", form).format(new Date(tick * 1000)));
}

const NARROW_S = 60;

/** data: [times in seconds, values, ...]; series: [{label, colour: "--css-name", fill}].
 *  With *seconds* the chart is never wider, and a minute wide from the beginning. */
export function Chart({ data, series, height = 200, label, format = rate, unit = "", seconds = 0 }) {
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
      scales: {
        x: seconds ? { range: (_, low, high) => [Math.max(high - seconds, Math.min(low, high - NARROW_S)), high] } : {},
        y: { range: (_, low, high) => [0, Math.max(high * 1.1, 1)] },
      },
      axes: [
        { ...axis, space: 88, size: 32, values: timeTexts },
        { ...axis, size: 56, space: 28, values: (_, ticks) => ticks.map((tick) => (tick % 1 ? "" : format(tick))) },
      ],
      series: [
        {},
        ...series.map((one) => ({
          label: one.label, stroke: colour(one.colour), width: 2, points: { show: false }, spanGaps: true,
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
