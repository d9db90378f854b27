// A Chromium without a window, told what to do over a pipe: it ends with us,
// whatever becomes of us.
import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";

const program = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"].find((name) => {
  try {
    execFileSync("which", [name]);
    return true;
  } catch {
    return false;
  }
});

/** Why there is none, if so. */
export const noChromium = program ? undefined : "there is no Chromium here";

if (noChromium) console.warn(`skipped: tests in Chromium: ${noChromium}`);

export class Chromium {
  #last = 0;
  #answers = new Map<number, { resolve: (result: any) => void; reject: (error: Error) => void }>();
  #profile = mkdtempSync(join(tmpdir(), "chromium"));
  #child: ChildProcess;
  #to: Writable;

  constructor() {
    const flags = ["--headless", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--disable-extensions", "--disable-quic",
      "--disable-background-networking", "--disable-component-update", "--disable-sync",
      "--remote-debugging-pipe", `--user-data-dir=${this.#profile}`, "about:blank"];
    if (process.getuid?.() === 0) flags.unshift("--no-sandbox"); // it has none for root
    this.#child = spawn(program!, flags, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"], detached: true });
    this.#to = this.#child.stdio[3] as Writable;
    this.#to.on("error", () => {}); // the exit tells
    let text = "";
    (this.#child.stdio[4] as Readable).setEncoding("utf8").on("data", (more: string) => {
      const messages = (text + more).split("\0");
      text = messages.pop()!;
      for (const message of messages) this.#hear(JSON.parse(message));
    });
    this.#child.on("exit", () => {
      for (const { reject } of this.#answers.values()) reject(new Error("Chromium has ended"));
    });
  }

  #hear({ id, result, error }: { id?: number; result?: unknown; error?: { message: string } }): void {
    const answer = this.#answers.get(id!);
    if (!answer) return; // an event
    this.#answers.delete(id!);
    if (error) answer.reject(new Error(error.message));
    else answer.resolve(result);
  }

  #call(method: string, params: object = {}, sessionId?: string): Promise<any> {
    const id = ++this.#last;
    return new Promise((resolve, reject) => {
      this.#answers.set(id, { resolve, reject });
      this.#to.write(JSON.stringify({ id, method, params, sessionId }) + "\0");
    });
  }

  /** Opens a page, and returns what evaluates an expression there: what that
   *  resolves to, as JSON. */
  async open(url: string): Promise<<T>(expression: string) => Promise<T>> {
    const { targetId } = await this.#call("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await this.#call("Target.attachToTarget", { targetId, flatten: true });
    const evaluate = async <T>(expression: string): Promise<T> => {
      const { result, exceptionDetails } = await this.#call("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true }, sessionId);
      if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
      return result.value as T;
    };
    await this.#call("Page.navigate", { url }, sessionId);
    while (!(await evaluate(`location.href === ${JSON.stringify(url)} && document.readyState === "complete"`).catch(() => false)));
    return evaluate;
  }

  async close(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      const gone = once(this.#child, "exit");
      process.kill(-this.#child.pid!, "SIGKILL"); // it has children
      await gone;
    }
    rmSync(this.#profile, { recursive: true, force: true, maxRetries: 100, retryDelay: 100 });
  }
}
