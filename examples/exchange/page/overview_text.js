// What the overview says, in the languages of text.js.

export const overview = {
  en: {
    now: "Right now", headline: (sessions, seconds) => `${sessions} sessions, up ${seconds}`,
    h: "h", min: "min", s: "s",
    latency: "Latency, p99 of each second (dashed: target)", rate: "Messages per second", queue: "Waiting in broker and gateway",
    published: "published", delivered: "delivered",
    soFar: "So far", final: "Final",
    columns: ["lane", "published", "delivered", "lost", "p50", "p99", "max", "target", "held"],
    yes: "yes", no: "no",
  },
  zh: {
    now: "实时状态", headline: (sessions, seconds) => `${sessions} 个会话，已运行 ${seconds}`,
    h: "时", min: "分", s: "秒",
    latency: "延迟，每秒 p99（虚线为目标）", rate: "每秒消息数", queue: "Broker 与 Gateway 中等待的消息",
    published: "已发布", delivered: "已送达",
    soFar: "截至目前", final: "最终结果",
    columns: ["通道", "已发布", "已送达", "丢失", "p50", "p99", "最大", "目标", "达标"],
    yes: "是", no: "否",
  },
};
