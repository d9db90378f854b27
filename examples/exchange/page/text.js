// What the page says, in the language of its reader. The other one is loaded when
// somebody asks for it.

import { overview } from "./overview_text.js";

const asked = new URLSearchParams(location.search).get("lang") ?? localStorage.getItem("lang") ?? navigator.language;
export let code = asked.startsWith("zh") ? "zh" : "en";
export let t = await load(code);

async function load(code) { return { ...overview[code], ...(await import(`./${code}.js`)).texts }; }

// speak fails if the exchange does not answer.
export async function speak(next) {
  t = await load(next);
  code = next;
  localStorage.setItem("lang", code);
  const url = new URL(location);
  url.searchParams.set("lang", code);
  history.replaceState(null, "", url);
}

const formats = new Map(); // to make one takes longer than to use it

export function number(n, digits = 0) {
  if (n === null) return "–";
  const key = `${code} ${digits}`;
  if (!formats.has(key)) formats.set(key, new Intl.NumberFormat(code === "zh" ? "zh-CN" : "en-US", { maximumFractionDigits: digits }));
  return formats.get(key).format(n);
}

// brief is number in the space of a label.
export const brief = (n) =>
  n < 10_000 ? number(n) : n.toLocaleString(code === "zh" ? "zh-CN" : "en-US", { notation: "compact", maximumSignificantDigits: 3 });

const two = (n) => String(n).padStart(2, "0");

// clock tells the time of Unix milliseconds.
export function clock(ms) {
  const d = new Date(ms);
  return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
}

// exactly is clock with milliseconds.
export const exactly = (ms) => `${clock(ms)}.${String(Math.floor(ms) % 1000).padStart(3, "0")}`;

// of is the time of Unix nanoseconds, which no number of JavaScript holds.
const of = (ns) => clock(Number(ns / 1_000_000n));

// milliseconds, with three digits
export function duration(ms) {
  if (!ms) return "–";
  if (ms < 1) return `${Math.round(ms * 1000)} µs`;
  return ms < 1000 ? `${Number(ms.toPrecision(3))} ms` : `${Number((ms / 1000).toPrecision(3))} s`;
}

// said is a phrase of the exchange.
function said(text = "") {
  const user = /^asked for by (u\d+)$/.exec(text);
  return user ? t.askedBy(user[1]) : t.phrase[text] ?? text;
}

// describe says in one line what a notification's payload holds.
export function describe(p) {
  switch (p.type) {
    case "order_accepted":
    case "trade_executed":
      return `${p.instrument_id} ${t.order(p.direction === "BUY", number(p.volume), number(p.price, 2))} · ${p.order_id}`;
    case "order_rejected":
    case "order_canceled":
    case "order_expired":
    case "trade_canceled":
      return `${p.instrument_id} · ${p.order_id} · ${said(p.reason)}`;
    case "order_partially_filled":
      return `${p.instrument_id} ${t.partly(number(p.filled_volume), number(p.remaining_volume))} · ${p.order_id}`;
    case "order_filled":
      return `${p.instrument_id} ${t.filled(number(p.filled_volume), number(p.average_price, 2))} · ${p.order_id}`;
    case "account_open":
      return `${p.account_id} ${t.opened(said(p.account_name), number(p.init_cash))}`;
    case "account_update":
      return t.account(number(p.balance, 2), number(p.available, 2), percent(p.risk_ratio));
    case "position_update":
      return `${p.instrument_id} ${t.position(number(p.volume_long), number(p.volume_short), number(p.profit_long + p.profit_short, 2))}`;
    case "position_profit":
      return `${p.instrument_id} ${t.profit(number(p.position_profit, 2))}`;
    case "risk_alert":
      return `${t.risk(percent(p.risk_ratio))} · ${said(p.suggestion)}`;
    case "margin_call":
      return t.margin(number(p.current_margin), number(p.required_margin), of(p.deadline));
    case "position_limit":
      return `${p.instrument_id} ${t.limit(number(p.current_volume), number(p.limit_volume))}`;
    case "system_notice":
      return t.titled(said(p.title), said(p.content));
    case "trading_session_start":
    case "trading_session_end":
      return `${p.trading_day}`;
    case "market_halt":
      return `${p.instrument_id === "ALL" ? t.allInstruments : p.instrument_id} · ${said(p.reason)}` + (p.resume_at ? t.resumes(of(p.resume_at)) : "");
  }
  return "";
}

const percent = (ratio) => ratio === null ? "∞" : `${number(ratio * 100, 1)} %`;
