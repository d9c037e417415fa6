// Figures, sizes and times for people. Everything that is a number is in tabular figures by CSS.

const integer = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });
const oneDigit = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 1 });
const absolute = new Intl.DateTimeFormat("en-GB", {
  year: "numeric", month: "short", day: "2-digit", hour: "2-digit", minute: "2-digit",
  second: "2-digit", timeZoneName: "short",
});

export const NONE = "–";

export function count(value) {
  return value == null ? NONE : integer.format(value);
}

/** 1,234 up to ten thousand, then 12.3 k, 4.5 M. */
export function short(value) {
  if (value == null) return NONE;
  if (Math.abs(value) < 10_000) return integer.format(value);
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return `${oneDigit.format(value / size)} ${unit}`;
  }
  return NONE;
}

export function rate(value) {
  if (value == null) return NONE;
  return value > 0 && value < 10 ? oneDigit.format(value) : short(Math.round(value));
}

export function bytes(value) {
  if (value == null) return NONE;
  let unit = 0;
  while (value >= 1024 && unit < 4) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && value < 100 ? oneDigit.format(value) : integer.format(value)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

export function percent(share) {
  return share == null ? NONE : `${oneDigit.format(share * 100)} %`;
}

/** The two largest units: 3 d 4 h, 5 min 12 s, 1.2 s. */
export function duration(seconds) {
  if (seconds == null) return NONE;
  if (seconds < 0.001) return "0 s";
  if (seconds < 1) return `${integer.format(seconds * 1000)} ms`;
  if (seconds < 10) return `${oneDigit.format(seconds)} s`;
  const whole = Math.round(seconds);
  for (const [size, unit, below, small] of [
    [86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"],
  ]) {
    if (whole >= size) {
      const rest = Math.floor((whole % size) / below);
      return rest ? `${Math.floor(whole / size)} ${unit} ${rest} ${small}` : `${Math.floor(whole / size)} ${unit}`;
    }
  }
  return `${whole} s`;
}

/** How old something is: whole seconds, so that it does not flicker. */
export function age(seconds) {
  if (seconds == null) return NONE;
  return seconds < 1 ? "< 1 s" : duration(Math.max(Math.floor(seconds), 1));
}

/** `age` for where there is little room: one unit, unless the first is small. */
export function briefly(seconds) {
  const text = age(seconds);
  return /^\d\d/.test(text) ? text.split(" ").slice(0, 2).join(" ") : text;
}

export function ageSeconds(time) {
  return time == null ? null : Math.max(0, (Date.now() - new Date(time).getTime()) / 1000);
}

/** Whether a moment has come: a message that is due later is scheduled, not late. */
export function isDue(time) {
  return new Date(time).getTime() <= Date.now();
}

export function dueIn(time) {
  return `due in ${briefly((new Date(time).getTime() - Date.now()) / 1000)}`;
}

/** The beginning of the last *hours*; a minute less, as a range a moment longer gets wider buckets. */
export function since(hours) {
  return new Date(Date.now() - hours * 3_600_000 + 60_000).toISOString();
}

export function absoluteTime(time) {
  return time == null ? "" : absolute.format(new Date(time));
}

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

export const QUEUE_MODE = "__QUEUE_MODE__";

export function groupName(name) {
  return name === QUEUE_MODE ? "queue mode" : name;
}
