// What the page says, in the languages it speaks.

import { overview } from "./overview_text.js";

const texts = {
  en: {
    ...overview.en,
    title: "Exchange notifications", other: "中文", otherCode: "zh",
    intro: [
      "This is a small exchange that tells its users what happens to their orders, their accounts and their risk, each message within milliseconds of the event.",
      "Sign in as one of its simulated users to see your own messages come in. Then cut the connection, or restart the exchange, and see that nothing is missing afterwards.",
      "What is urgent (lane P0) overtakes the rest, and stays on top of the page until you have acknowledged it.",
    ],
    signIn: "Sign in", signOut: "Sign out", userID: "User ID",
    range: (last) => `One of u00001 … ${last}. This demonstration asks for no password.`,
    noUser: "There is no such user.", refusedFor: (status) => `The exchange does not let you in now (status ${status}).`,
    unreachable: "The exchange cannot be reached.",
    why: {
      expired: () => "Your sign-in has expired. Please sign in again.",
      unknown: () => "The exchange does not know your sign-in any more. Please sign in again.",
      elsewhere: () => "You have signed out in another tab.",
      other: (user) => `${user} has signed in in another tab, so this page now shows what is ${user}’s.`,
      kept: () => "The exchange could not be told that you have signed out. This page goes on trying; until then this browser is still signed in.",
    },
    dismiss: "Dismiss", edge: (name) => `at edge ${name}`,
    feed: "Your notifications", channels: "Channels", waiting: "Nothing has arrived yet.",
    filter: "Show", lane: "Lanes", instrument: "Instrument", anyInstrument: "any", allInstruments: "whole market",
    search: "Text", nothingMatches: "Nothing matches the filter.",
    shown: (n, of) => `The filter shows ${n} of the last ${of}.`,
    skipped: (n) => `${n} older ones are not shown: too many came to keep them all`,
    orders: (n) => `${n} orders`, earlier: (n) => `and ${n} earlier ones`,
    received: (n) => `${n} received`, pause: "Pause", resume: (n, text) => n ? `Continue (${text} new)` : "Continue",
    tookLast: (n, p50, p99) => `latency of the last ${n}: p50 ${p50}, p99 ${p99}`,
    clocks: (error) => `Latency: from the exchange’s timestamp to the arrival in this page. As far as the page can tell, the two clocks agree to within ${error}; a latency may be wrong by as much.`,
    apart: (difference, error) => `Latency: from the exchange’s timestamp to the arrival in this page. The two clocks are ${difference} apart, which is taken out; a latency may be wrong by ${error}.`,
    clocksUnknown: "Latency: from the exchange’s timestamp to the arrival in this page. The two clocks have not been compared yet.",
    urgent: "Urgent, to be acknowledged", acknowledge: "Acknowledge", acknowledgeAll: (n) => `Acknowledge all (${n})`,
    more: (n, type, detail) => `And ${n} more, the latest: ${type}, ${detail}.`,
    beyond: (n) => `Another ${n} are not kept here.`,
    spoken: (n, text, type, detail) => (n > 1 ? `${text} urgent messages, the latest: ` : "") + `${type}: ${detail}`,
    actions: "Try it", marginCall: "Margin call for me", halt: "Halt the market for everybody",
    cut: "Cut my connection for 5 s", kill: (edge) => `Kill edge ${edge}`,
    tooOften: "Too often. Please wait a moment.", failed: (status) => `The exchange has refused that (status ${status}).`,
    toDark: "Dark", toLight: "Light",
    off: "not signed in", connecting: "connecting", replaying: "connected, catching up", live: "connected",
    silent: "nothing is heard", lost: "connection lost", isCut: "connection cut",
    lastHeard: (s) => `last heard ${s} s ago`, retryIn: (s) => `next attempt in ${s} s`, backIn: (s) => `back in ${s} s`,
    tryNow: "Try now", here: "Connect again",
    replaced: "open elsewhere; this page has stopped", refused: "the exchange has refused the connection",
    draining: "the exchange is closing and delivers what it has accepted", finished: "the exchange has closed",
    checking: "Back. Checking that nothing is missing …",
    whole: (s, n, text) => `Back after ${s} s: ` + (n === 0 ? "nothing was published meanwhile." :
      n === 1 ? "1 notification was missed, and it is here now, once and in order." :
      `${text} notifications were missed, and all ${text} are here now, each once and in order.`),
    hole: (s, missing, twice) => `Back after ${s} s: ${missing} missing, ${twice} twice.`,
    gone: "The exchange’s history does not go back to where this page was: what happened meanwhile is not shown. From here on everything is.",
    gap: "The exchange has dropped messages for this page: they are not shown. From here on everything is.",
    integrity: (streams, n) => `${n} numbers checked in ${streams} streams: none missing, none twice.`,
    broken: (missing, twice) => `${missing} missing, ${twice} twice.`,
    wasCut: "connection cut", isBack: "connection back: what was missed follows",
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
    order: (buys, n, price) => `${buys ? "buy" : "sell"} ${n} at ${price}`,
    filled: (n, price) => `${n} at ${price}`, partly: (n, left) => `${n}, ${left} left`,
    opened: (name, cash) => `${name}, ${cash}`,
    account: (balance, available, risk) => `balance ${balance}, available ${available}, risk ${risk}`,
    position: (long, short, profit) => `long ${long}, short ${short}, profit ${profit}`,
    profit: (n) => `profit ${n}`, risk: (ratio) => `risk ${ratio}`,
    margin: (n, required, until) => `margin ${n}, required ${required} until ${until}`,
    limit: (n, limit) => `${n}, limit ${limit}`, resumes: (at) => `, resumes at ${at}`,
    titled: (title, content) => `${title}: ${content}`,
    phrase: {}, askedBy: (user) => `asked for by ${user}`,
  },
  zh: {
    ...overview.zh,
    title: "交易所通知", other: "English", otherCode: "en",
    intro: [
      "这是一个小型交易所：委托、资金和风险一有变化，用户在几毫秒内就会收到通知。",
      "以任意一个模拟用户登录，就能看到属于自己的通知。然后试着断开连接，或者重启交易所，看看恢复之后是否一条不少。",
      "紧急通知（优先级队列 P0）会越过其他通知，并一直固定在页面顶部，直到您确认为止。",
    ],
    signIn: "登录", signOut: "退出登录", userID: "用户编号",
    range: (last) => `可用 u00001 至 ${last} 中的任意一个。演示环境不需要密码。`,
    noUser: "没有这个用户。", refusedFor: (status) => `交易所暂时无法登录（状态码 ${status}）。`,
    unreachable: "无法连接交易所。",
    why: {
      expired: () => "登录已过期，请重新登录。",
      unknown: () => "交易所已不认可您的登录，请重新登录。",
      elsewhere: () => "您已在另一个标签页退出登录。",
      other: (user) => `另一个标签页已用 ${user} 登录，本页现在显示 ${user} 的内容。`,
      kept: () => "未能把退出登录告知交易所。本页会继续尝试；在此之前，本浏览器仍处于登录状态。",
    },
    dismiss: "知道了", edge: (name) => `接入节点 ${name}`,
    feed: "我的通知", channels: "频道", waiting: "还没有收到通知。",
    filter: "显示", lane: "优先级队列", instrument: "合约", anyInstrument: "全部", allInstruments: "全市场",
    search: "文字", nothingMatches: "没有符合筛选条件的通知。",
    shown: (n, of) => `最近 ${of} 条中有 ${n} 条符合筛选条件。`,
    skipped: (n) => `较早的 ${n} 条未显示：通知太多，无法全部保留`,
    orders: (n) => `${n} 笔委托`, earlier: (n) => `另有更早的 ${n} 条`,
    received: (n) => `已收到 ${n} 条`, pause: "暂停", resume: (n, text) => n ? `继续（${text} 条新通知）` : "继续",
    tookLast: (n, p50, p99) => `最近 ${n} 条的延迟：p50 ${p50}，p99 ${p99}`,
    clocks: (error) => `延迟：从交易所的时间戳到本页收到为止。就本页所能判断，两边的时钟相差不超过 ${error}，延迟的误差也在此范围内。`,
    apart: (difference, error) => `延迟：从交易所的时间戳到本页收到为止。两边的时钟相差 ${difference}，已经扣除；延迟的误差不超过 ${error}。`,
    clocksUnknown: "延迟：从交易所的时间戳到本页收到为止。两边的时钟尚未比对。",
    urgent: "紧急通知，待确认", acknowledge: "确认", acknowledgeAll: (n) => `全部确认（${n}）`,
    more: (n, type, detail) => `另有 ${n} 条，最新一条：${type}，${detail}。`,
    beyond: (n) => `还有 ${n} 条未能在此保留。`,
    spoken: (n, text, type, detail) => (n > 1 ? `${text} 条紧急通知，最新一条：` : "") + `${type}：${detail}`,
    actions: "试一试", marginCall: "给我发一条追加保证金通知", halt: "全市场暂停交易",
    cut: "断开我的连接 5 秒", kill: (edge) => `终止接入节点 ${edge}`,
    tooOften: "操作太频繁，请稍候。", failed: (status) => `交易所拒绝了该操作（状态码 ${status}）。`,
    toDark: "深色", toLight: "浅色",
    off: "未登录", connecting: "正在连接", replaying: "已连接，正在补发", live: "已连接",
    silent: "收不到任何数据", lost: "连接中断", isCut: "连接已断开",
    lastHeard: (s) => `${s} 秒前最后收到数据`, retryIn: (s) => `${s} 秒后重试`, backIn: (s) => `${s} 秒后恢复`,
    tryNow: "立即重试", here: "重新连接",
    replaced: "已在别处打开，本页停止接收", refused: "交易所拒绝了连接",
    draining: "交易所正在关闭，已受理的消息会全部送达", finished: "交易所已关闭",
    checking: "已恢复，正在核对是否有遗漏……",
    whole: (s, n, text) => `${s} 秒后恢复：` + (n === 0 ? "期间没有新通知。" : `期间错过 ${text} 条通知，现已全部收到，不重不漏，顺序一致。`),
    hole: (s, missing, twice) => `${s} 秒后恢复：缺少 ${missing} 条，重复 ${twice} 条。`,
    gone: "交易所保留的历史不够久，无法从本页中断处续传：期间的通知未显示。从现在起一条不少。",
    gap: "交易所丢弃了发给本页的部分消息：这些消息未显示。从现在起一条不少。",
    integrity: (streams, n) => `已核对 ${streams} 个序列中的 ${n} 个编号：无遗漏，无重复。`,
    broken: (missing, twice) => `缺少 ${missing} 条，重复 ${twice} 条。`,
    wasCut: "连接已断开", isBack: "连接已恢复，以下为中断期间的通知",
    channel: { trade: "交易", account: "资金", position: "持仓", risk: "风控", system: "系统" },
    type: {
      order_accepted: "委托已受理", order_rejected: "委托被拒", order_partially_filled: "部分成交",
      order_filled: "全部成交", order_canceled: "已撤单", order_expired: "委托已失效",
      trade_executed: "成交", trade_canceled: "成交撤销", account_open: "开户",
      account_update: "资金更新", position_update: "持仓更新", position_profit: "持仓盯市",
      risk_alert: "风险预警", margin_call: "追加保证金", position_limit: "持仓限额",
      system_notice: "公告", trading_session_start: "开市", trading_session_end: "收市",
      market_halt: "暂停交易",
    },
    order: (buys, n, price) => `${buys ? "买入" : "卖出"} ${n} 手，价格 ${price}`,
    filled: (n, price) => `${n} 手，价格 ${price}`, partly: (n, left) => `${n} 手，剩余 ${left} 手`,
    opened: (name, cash) => `${name}，入金 ${cash}`,
    account: (balance, available, risk) => `余额 ${balance}，可用 ${available}，风险度 ${risk}`,
    position: (long, short, profit) => `多头 ${long}，空头 ${short}，盈亏 ${profit}`,
    profit: (n) => `盈亏 ${n}`, risk: (ratio) => `风险度 ${ratio}`,
    margin: (n, required, until) => `保证金 ${n}，应有 ${required}，截止 ${until}`,
    limit: (n, limit) => `${n} 手，限额 ${limit} 手`, resumes: (at) => `，${at} 恢复`,
    titled: (title, content) => `${title}：${content}`,
    // What the exchange itself says comes in English.
    phrase: {
      "insufficient margin": "保证金不足", "canceled by the user": "用户撤单", "quote replaced": "报价更新",
      "erroneous price": "价格错误", "good for the day": "当日有效，收市失效", "volatility interruption": "价格剧烈波动",
      "reduce positions or pay in": "请减仓或追加资金", "asked for on the page": "由本页发起", futures: "期货账户",
      "Margin rates": "保证金比例", "Margin rates change with the next trading day.": "保证金比例自下一交易日起调整。",
      Statement: "结算单", "Your daily statement is ready.": "您的当日结算单已生成。",
    },
    askedBy: (user) => `由 ${user} 发起`,
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
