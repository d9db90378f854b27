// Who is signed in. The cookie is that of all tabs of a browser: what one of them does
// to it, the others must learn at once, or they show one person what is another's.
//
// Only the server's answer counts. It is asked before each connection and after it,
// when the tab comes into sight, when another tab has signed in or out, and every
// few seconds. Each answer also tells the server's clock.

const mark = "exchange-user"; // what the tabs tell each other; whose it is while somebody is signed in
const every = 15_000; // milliseconds

export class Identity {
  session = null; // {user, expires, …} as the server said
  #changed;
  #clock;
  #asked = 0;   // questions
  #settled = 0; // the last of them that counted

  // changed(session, why) is told who it is from now on, or null. why is "" for what
  // was done in this tab, else "other", "elsewhere", "expired" or "unknown".
  constructor(changed, clock) {
    this.#changed = changed;
    this.#clock = clock;
    addEventListener("storage", (e) => e.key === mark && this.#another());
    addEventListener("pageshow", (e) => e.persisted && this.#another());
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.#another());
    setInterval(() => this.check(), every);
  }

  get user() { return this.session?.user ?? null; }

  // #another does not wait for the server to stop showing what may be another's.
  #another() {
    const user = localStorage.getItem(mark);
    if (this.user && user !== this.user) this.#become(null, user ? "" : "elsewhere");
    this.check();
  }

  // check asks the server. It returns whether it is who it was; undefined if the
  // server cannot be asked.
  async check() {
    const asked = ++this.#asked, sent = performance.now();
    let status, session;
    try {
      const answer = await fetch("api/session");
      status = answer.status;
      if (answer.ok) session = await answer.json();
    } catch { return undefined; }
    if (asked < this.#settled) return undefined; // somebody has signed in or out since
    const first = !this.#settled;
    this.#settled = asked;
    if (status === 401) {
      if (!this.user) return true;
      this.#become(null, Date.now() >= this.session.expires ? "expired" : localStorage.getItem(mark) === null ? "elsewhere" : "unknown");
      return false;
    }
    if (!session) return undefined;
    if (session.now) this.#clock.compare(sent, performance.now(), session.now / 1000);
    if (session.user === this.user) {
      Object.assign(this.session, session);
      return true;
    }
    this.#become(session, first ? "" : "other");
    return false;
  }

  // signIn returns the status of the answer; 0 if there was none.
  async signIn(user) {
    this.#settled = ++this.#asked;
    try {
      const answer = await fetch("api/session", { method: "POST", body: JSON.stringify({ user }) });
      this.#settled = ++this.#asked;
      if (answer.ok) this.#become(await answer.json(), "");
      return answer.status;
    } catch { return 0; }
  }

  // signOut returns whether the server knows. The page is clean in any case.
  async signOut() {
    this.#settled = ++this.#asked;
    localStorage.removeItem(mark);
    this.#become(null, "");
    try {
      const answer = await fetch("api/session", { method: "DELETE" });
      this.#settled = ++this.#asked;
      return answer.ok || answer.status === 401;
    } catch { return false; }
  }

  #become(session, why) {
    this.session = session;
    if (session) localStorage.setItem(mark, session.user);
    this.#changed(session, why);
  }
}
