// What the page says, in the languages it speaks.

import { overview } from "./overview_text.js";

const texts = {
  en: {
    ...overview.en,
    title: "Exchange notifications", other: "中文", otherCode: "zh",
    signIn: "Sign in", signOut: "Sign out", userID: "User ID",
    range: (last) => `One of u00001 … ${last}. This demonstration asks for no password.`,
    noUser: "There is no such user.", expired: "Your sign-in has expired. Please sign in again.",
    unreachable: "The exchange cannot be reached.",
    feed: "Your notifications", channels: "Channels", waiting: "Nothing has arrived yet.",
    received: (n) => `${n} received`, pause: "Pause", resume: (n) => n ? `Continue (${n} new)` : "Continue",
    actions: "Try it", marginCall: "Margin call for me", halt: "Halt the market for everybody",
    cut: "Cut my connection for 5 s",
    toDark: "Dark", toLight: "Light",
    off: "not signed in", connecting: "connecting …", replaying: "connected, catching up …", live: "connected",
    isCut: (s) => `cut, back in ${s} s`, lost: (s) => `connection lost, trying again in ${s} s`,
    replaced: "open elsewhere; this page has stopped", over: "the exchange has closed",
    refused: "the exchange refused the connection",
    checking: "Back. Checking that nothing is missing …",
    whole: (s, n) => `Back after ${s} s: all ${n} notifications published meanwhile arrived, each once and in order.`,
    hole: (s, missing, twice) => `Back after ${s} s: ${missing} missing, ${twice} twice.`,
    gone: "The history does not reach back that far: start from a fresh snapshot.",
    gap: "The server dropped messages for this connection: start from a fresh snapshot.",
    integrity: (streams, n) => `${n} numbers checked in ${streams} streams: none missing, none twice.`,
    broken: (missing, twice) => `${missing} missing, ${twice} twice.`,
    wasCut: "connection cut", isBack: "connection back: what was missed follows",
    draining: "The exchange is closing: it delivers what it has accepted.",
    channel: { trade: "Trades", account: "Account", position: "Positions", risk: "Risk", system: "System" },
    type: {
      order_accepted: "Order accepted", order_rejected: "Order rejected", order_partially_filled: "Partially filled",
      order_filled: "Order filled", order_canceled: "Order canceled", order_expired: "Order expired",
      trade_executed: "Trade", trade_canceled: "Trade canceled", account_open: "Account opened",
      account_update: "Account", position_update: "Position", position_profit: "Position marked",
      risk_alert: "Risk alert", margin_call: "Margin call", position_limit: "Position limit",
      system_notice: "Notice", trading_session_start: "Trading begins", trading_session_end: "Trading ends",
      market_halt: "Market halt",
    },
    buy: "buy", sell: "sell", at: "at", left: "left", balance: "balance", available: "available",
    risk: "risk", long: "long", short: "short", profit: "profit", limit: "limit", margin: "margin",
    required: "required", until: "until", resumes: "resumes",
  },
  zh: {
    ...overview.zh,
    title: "交易所通知", other: "English", otherCode: "en",
    signIn: "登录", signOut: "退出", userID: "用户编号",
    range: (last) => `u00001 … ${last} 中的任意一个。演示环境不需要密码。`,
    noUser: "没有这个用户。", expired: "登录已过期，请重新登录。",
    unreachable: "无法连接交易所。",
    feed: "我的通知", channels: "频道", waiting: "还没有收到通知。",
    received: (n) => `已收到 ${n} 条`, pause: "暂停", resume: (n) => n ? `继续（${n} 条新通知）` : "继续",
    actions: "试一试", marginCall: "给我追加保证金通知", halt: "全市场暂停交易",
    cut: "断开连接 5 秒",
    toDark: "深色", toLight: "浅色",
    off: "未登录", connecting: "正在连接……", replaying: "已连接，正在补发……", live: "已连接",
    isCut: (s) => `已断开，${s} 秒后恢复`, lost: (s) => `连接中断，${s} 秒后重试`,
    replaced: "已在别处打开，本页停止接收", over: "交易所已关闭",
    refused: "交易所拒绝了连接",
    checking: "已恢复，正在核对是否有遗漏……",
    whole: (s, n) => `${s} 秒后恢复：期间发布的 ${n} 条通知全部收到，不重不漏，顺序一致。`,
    hole: (s, missing, twice) => `${s} 秒后恢复：缺少 ${missing} 条，重复 ${twice} 条。`,
    gone: "历史记录不足以续传：请重新加载快照。",
    gap: "服务器丢弃了本连接的消息：请重新加载快照。",
    integrity: (streams, n) => `已核对 ${streams} 个序列的 ${n} 个编号：无遗漏，无重复。`,
    broken: (missing, twice) => `缺少 ${missing} 条，重复 ${twice} 条。`,
    wasCut: "连接已断开", isBack: "连接已恢复，以下为断开期间的通知",
    draining: "交易所正在关闭：已接收的消息会全部送达。",
    channel: { trade: "交易", account: "资金", position: "持仓", risk: "风控", system: "系统" },
    type: {
      order_accepted: "报单已受理", order_rejected: "报单被拒", order_partially_filled: "部分成交",
      order_filled: "全部成交", order_canceled: "已撤单", order_expired: "报单已过期",
      trade_executed: "成交", trade_canceled: "成交撤销", account_open: "开户",
      account_update: "资金更新", position_update: "持仓更新", position_profit: "持仓盈亏",
      risk_alert: "风险预警", margin_call: "追加保证金", position_limit: "持仓限额",
      system_notice: "公告", trading_session_start: "开市", trading_session_end: "收市",
      market_halt: "暂停交易",
    },
    buy: "买", sell: "卖", at: "价格", left: "剩余", balance: "余额", available: "可用",
    risk: "风险度", long: "多", short: "空", profit: "盈亏", limit: "限额", margin: "保证金",
    required: "应有", until: "截止", resumes: "恢复",
  },
};

const asked = new URLSearchParams(location.search).get("lang") ?? localStorage.getItem("lang") ?? navigator.language;
export let code = asked.startsWith("zh") ? "zh" : "en";
export let t = texts[code];

export function speak(next) {
  code = next;
  t = texts[code];
  localStorage.setItem("lang", code);
  const url = new URL(location);
  url.searchParams.set("lang", code);
  history.replaceState(null, "", url);
}

export const number = (n, digits = 0) =>
  n === null ? "–" : n.toLocaleString(code === "zh" ? "zh-CN" : "en-US", { maximumFractionDigits: digits, minimumFractionDigits: 0 });

// brief is number in the space of a label.
export const brief = (n) =>
  n < 10_000 ? number(n) : n.toLocaleString(code === "zh" ? "zh-CN" : "en-US", { notation: "compact", maximumSignificantDigits: 3 });

export const clock = (ms) => new Date(ms).toLocaleTimeString(code === "zh" ? "zh-CN" : "en-GB", { hour12: false });

// millis makes Unix milliseconds of nanoseconds, which no number of JavaScript holds.
export const millis = (ns) => Number(ns / 1_000_000n);

// milliseconds, with three digits
export function duration(ms) {
  if (!ms) return "–";
  if (ms < 1) return `${Math.round(ms * 1000)} µs`;
  return ms < 1000 ? `${Number(ms.toPrecision(3))} ms` : `${Number((ms / 1000).toPrecision(3))} s`;
}

// describe says in one line what a notification's payload holds.
export function describe(p) {
  const side = { BUY: t.buy, SELL: t.sell }[p.direction];
  switch (p.type) {
    case "order_accepted":
    case "trade_executed":
      return `${p.instrument_id} ${side} ${number(p.volume)} ${t.at} ${number(p.price, 2)} · ${p.order_id}`;
    case "order_rejected":
    case "order_canceled":
    case "order_expired":
    case "trade_canceled":
      return `${p.instrument_id} · ${p.order_id} · ${p.reason}`;
    case "order_partially_filled":
      return `${p.instrument_id} ${number(p.filled_volume)}, ${t.left} ${number(p.remaining_volume)} · ${p.order_id}`;
    case "order_filled":
      return `${p.instrument_id} ${number(p.filled_volume)} ${t.at} ${number(p.average_price, 2)} · ${p.order_id}`;
    case "account_open":
      return `${p.account_id} ${p.account_name} ${number(p.init_cash)}`;
    case "account_update":
      return `${t.balance} ${number(p.balance, 2)}, ${t.available} ${number(p.available, 2)}, ${t.risk} ${percent(p.risk_ratio)}`;
    case "position_update":
      return `${p.instrument_id} ${t.long} ${number(p.volume_long)}, ${t.short} ${number(p.volume_short)}, ${t.profit} ${number(p.profit_long + p.profit_short, 2)}`;
    case "position_profit":
      return `${p.instrument_id} ${t.profit} ${number(p.position_profit, 2)}`;
    case "risk_alert":
      return `${t.risk} ${percent(p.risk_ratio)} · ${p.suggestion}`;
    case "margin_call":
      return `${t.margin} ${number(p.current_margin)}, ${t.required} ${number(p.required_margin)}, ${t.until} ${clock(millis(p.deadline))}`;
    case "position_limit":
      return `${p.instrument_id} ${number(p.current_volume)}, ${t.limit} ${number(p.limit_volume)}`;
    case "system_notice":
      return `${p.title}: ${p.content}`;
    case "trading_session_start":
    case "trading_session_end":
      return `${p.trading_day}`;
    case "market_halt":
      return `${p.instrument_id} · ${p.reason}` + (p.resume_at ? `, ${t.resumes} ${clock(millis(p.resume_at))}` : "");
  }
  return "";
}

const percent = (ratio) => ratio === null ? "∞" : `${number(ratio * 100, 1)} %`;
