// Who is signed in. The cookie is that of all tabs of a browser: what one of them does
// to it, the others must learn at once, or they show one person what is another's.
//
// Only the server's answer counts. It is asked before each connection and after it,
// when the tab comes into sight, when another tab has signed in or out, and every
// few seconds. Each answer also tells the server's clock.

// What the tabs tell each other: who is signed in; empty while the server has yet to be
// told that he has left.
const mark = "exchange-user";
const every = 15_000; // milliseconds

// request is a fetch that fails in the end, even if nobody ever answers: a connection
// that swallows everything never fails by itself.
export const request = (path, options, within = 20_000) => fetch(path, { ...options, signal: AbortSignal.timeout(within) });

export class Identity {
  session = null; // {user, expires, …} as the server said
  #changed;
  #clock;
  #why = "";    // the last change: what the server says may be here before what the other tab does
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
    if (this.user ? user !== this.user : !user && this.#why === "unknown") this.#become(null, user ? "" : "elsewhere");
    this.check();
  }

  // check asks the server. It returns whether it is who it was; undefined if the
  // server cannot be asked.
  async check() {
    if (localStorage.getItem(mark) === "" && !await this.#leave()) return undefined;
    const asked = ++this.#asked, sent = performance.now();
    let status, session;
    try {
      const answer = await request("api/session");
      status = answer.status;
      if (answer.ok) session = await answer.json();
    } catch { return undefined; }
    if (asked < this.#settled) return undefined; // somebody has signed in or out since
    const first = !this.#settled;
    this.#settled = asked;
    if (status === 401) {
      if (!this.user) return true;
      this.#become(null, this.#expired() ? "expired" : localStorage.getItem(mark) ? "unknown" : "elsewhere");
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

  // #expired is by the server's clock.
  #expired() { return Date.now() + this.#clock.difference > this.session.expires - 1_000; }

  // signIn returns the status of the answer; 0 if there was none.
  async signIn(user) {
    this.#settled = ++this.#asked;
    try {
      const answer = await request("api/session", { method: "POST", body: JSON.stringify({ user }) });
      this.#settled = ++this.#asked;
      if (answer.ok) this.#become(await answer.json(), "");
      return answer.status;
    } catch { return 0; }
  }

  // signOut returns whether the server knows. The page is clean in any case, and goes on
  // trying.
  signOut() {
    this.#settled = ++this.#asked;
    localStorage.setItem(mark, "");
    this.#become(null, "");
    return this.#leave();
  }

  async #leave() {
    try {
      const answer = await request("api/session", { method: "DELETE" });
      if (!answer.ok) return false;
    } catch { return false; }
    this.#settled = ++this.#asked;
    if (localStorage.getItem(mark) === "") localStorage.removeItem(mark);
    return true;
  }

  #become(session, why) {
    this.session = session;
    this.#why = why;
    if (session) localStorage.setItem(mark, session.user);
    this.#changed(session, why);
  }
}
