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
/** Ticks of an axis of durations, in seconds: as clocks and calendars divide them. */
export const DURATION_STEPS = [
  1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, DAY_S, 2 * DAY_S, 7 * DAY_S,
];
const TEXT = "12px system-ui, sans-serif";
const MARGIN = 14;

/** Points without the last, if its time goes on: a part of it would look like a fall, or a spike. */
export function ended(points, key, bucketMinutes) {
  const last = points.at(-1);
  const runs = last && new Date(last[key]).getTime() + bucketMinutes * 60_000 > Date.now();
  return runs ? points.slice(0, -1) : points;
}

/** As wide as the longest of *texts*, on the canvas of a chart. */
function axisWidth(self, texts) {
  if (!texts?.length) return 40;
  self.ctx.save();
  self.ctx.font = TEXT;
  const widest = Math.max(...texts.map((text) => self.ctx.measureText(text ?? "").width));
  self.ctx.restore();
  return Math.ceil(widest) + MARGIN;
}

/** data: [times in seconds, values, ...]; series: [{label, colour: "--css-name", fill}].
 *  With *seconds* the chart is never wider, and a minute wide from the beginning. */
export function Chart({ data, series, height = 200, label, format = rate, unit = "", seconds = 0, steps }) {
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
      font: TEXT,
    };
    plot.current = new uPlot({
      width: box.current.clientWidth || 300,
      height,
      // Room for half of the last time.
      padding: [8, 36, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
      scales: {
        x: seconds ? { range: (_, low, high) => [Math.max(high - seconds, Math.min(low, high - NARROW_S)), high] } : {},
        y: { range: (_, low, high) => [0, Math.max(high * 1.1, 1)] },
      },
      axes: [
        { ...axis, space: 88, size: 32, values: timeTexts },
        { ...axis, size: axisWidth, space: 24, ...(steps && { incrs: steps }), values: (_, ticks) => ticks.map((tick) => (tick % 1 ? "" : format(tick))) },
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

  const time = at == null ? null : data[0][at];
  // Without a place that is pointed at, the last value that is known.
  const value = (line) => (at == null ? line.findLast((one) => one != null) : line[at]);
  return html`
    <figure class="chart" role="group" aria-label=${label}>
      <figcaption>
        ${series.map((one, number) => html`
          <span key=${one.label} class="key"><i style=${{ background: `var(${one.colour})` }}></i>
            ${one.label} <b>${value(data[number + 1]) == null ? "–" : format(value(data[number + 1]))}</b> ${unit}</span>`)}
        <span class="muted small">${time ? new Date(time * 1000).toLocaleTimeString("en-GB") : ""}</span>
      </figcaption>
      <div ref=${box} aria-hidden="true"></div>
    </figure>`;
}
